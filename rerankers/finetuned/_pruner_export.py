"""The network of `triptych_pruner` as one ONNX file in 8-bit integers, and the same file computing in float32.

The encoder is that of `retrievers/text/_int8_bert.py`. Three things differ: word vectors are 8-bit integers too, each
with a scale of its own; positions of the passage stand in the second half of the table of positions, with the vector
of its kind added; and two heads follow. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...retrievers.text._int8_bert import LOUD, graph, quantized

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto
    from tokenizers import Tokenizer

HEADS = ("keep", "relevance")


def exported(config: dict[str, Any], weights: Mapping[str, np.ndarray], longest: int) -> bytes:
    """A serialised ONNX model: `ids` int64 (1, pieces) and `places` int64 (pieces,) → `keep`, `relevance` (1, pieces).

    Both are logits; `relevance` counts at the first piece alone. The place of piece number n is n in the question and
    n + `longest` in the passage.

    Args:
        config: that of the BERT encoder.
        weights: float32 by their names in the encoder, and `keep.weight`, `keep.bias`, `relevance.weight`,
            `relevance.bias`.
        longest: most pieces of an input.
    """
    import onnx

    own = dict(weights)
    kinds, places = own["embeddings.token_type_embeddings.weight"], own["embeddings.position_embeddings.weight"]
    own["embeddings.position_embeddings.weight"] = np.concatenate([places[:longest] + kind for kind in kinds])
    own["embeddings.token_type_embeddings.weight"] = np.zeros_like(kinds)
    model = onnx.load_model_from_string(graph(config, own))
    _quantize_words(model.graph, own["embeddings.word_embeddings.weight"])
    _add_heads(model.graph, own)
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString()
    return made


def in_float32(serialized: bytes) -> bytes:
    """The same model without products in 8-bit integers, for processors on which their sums can overflow."""
    import onnx

    model = onnx.load_model_from_string(serialized)
    nodes = [made for node in model.graph.node for made in _widened(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    made: bytes = model.SerializeToString()
    return made


def _widened(node: NodeProto) -> Iterator[NodeProto]:
    from onnx import helper

    if node.op_type != "DynamicQuantizeMatMul":
        yield node
        return
    given, whole, scales, _, bias = node.input
    name = node.output[0]
    yield helper.make_node("DequantizeLinear", [whole, scales], [f"{name}.wide"], axis=1)
    yield helper.make_node("MatMul", [given, f"{name}.wide"], [f"{name}.product"])
    yield helper.make_node("Add", [f"{name}.product", bias], [name])


def _quantize_words(into: GraphProto, words: np.ndarray) -> None:
    """Word vectors as int8, looked up and multiplied by the scale of each."""
    from onnx import helper, numpy_helper

    whole, scales = quantized(words.T)
    tensors = [
        numpy_helper.from_array(whole.T.copy(), "words"),
        numpy_helper.from_array(scales[:, None], "word.scales"),
    ]
    rest = [tensor for tensor in into.initializer if tensor.name != "words"]
    del into.initializer[:]
    into.initializer.extend([*tensors, *rest])
    looked_up = [
        helper.make_node("Gather", ["words", "ids"], ["word8"], name="word8"),
        helper.make_node("Cast", ["word8"], ["word32"], name="word32", to=1),
        helper.make_node("Gather", ["word.scales", "ids"], ["word.scale"], name="word.scale"),
        helper.make_node("Mul", ["word32", "word.scale"], ["word"], name="word"),
    ]
    nodes = [node for node in into.node if node.output[0] not in ("word16", "word")]
    del into.node[:]
    into.node.extend([*looked_up, *nodes])


def _add_heads(into: GraphProto, weights: Mapping[str, np.ndarray]) -> None:
    from onnx import TensorProto, helper, numpy_helper

    states = into.output[0].name
    del into.output[:]
    for name in HEADS:
        matrix, bias = f"{name}.weight", f"{name}.bias"
        into.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weights[matrix][0]), matrix))
        into.initializer.append(numpy_helper.from_array(weights[bias], bias))
        into.node.append(helper.make_node("MatMul", [states, matrix], [f"{name}.product"]))
        into.node.append(helper.make_node("Add", [f"{name}.product", bias], [name]))
        into.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "pieces"]))


def random_weights(seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray], Tokenizer]:
    """Configuration, weights and tokenizer (single characters) of one random layer, for tests."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    letters = [chr(code) for code in range(33, 127)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    config = {
        "hidden_size": 32,
        "intermediate_size": 2 * LOUD,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 512,
        "vocab_size": len(names),
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    chance = np.random.default_rng(seed)
    drawn = {name: chance.normal(0, 0.2, shape).astype(np.float32) for name, shape in _shapes(config).items()}
    gains = {name: np.ones_like(found) for name, found in drawn.items() if name.endswith("LayerNorm.weight")}
    return config, {**drawn, **gains}, tokenizer


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of every tensor of an encoder with heads, by name."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    matrices = dict.fromkeys(HEADS, (1, hidden))
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        square = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        matrices |= {f"{layer}.{name}": (hidden, hidden) for name in square}
        matrices |= {f"{layer}.intermediate.dense": (wide, hidden), f"{layer}.output.dense": (hidden, wide)}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{norm}.{part}": (hidden,) for part in ("weight", "bias")}
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes

"""A BERT cross-encoder in 8-bit integers: the encoder of `retrievers/text/_int8_bert.py`, a pooler and a classifier.

The table of positions stands twice in the graph, once for each segment with the vector of that segment added, so that
one look-up gives both. Pooler and classifier are small and stay in float32. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import Unsupported
from ...retrievers.text._int8_bert import graph

if TYPE_CHECKING:
    from onnx import GraphProto

NEEDED = {"model_type": "bert", "hidden_act": "gelu", "is_decoder": False}
"""What the graph computes; a configuration that says otherwise is refused."""


class Pair(NamedTuple):
    """A query and a passage, or a window of it, as the model reads them: token ids, and the segment (0, 1) of each."""

    ids: Sequence[int]
    segments: Sequence[int]


class Int8Cross:
    """Logits of pairs. Each is read alone, without padding, on one of `threads` workers; safe from many threads.

    Args:
        config, weights: of a `BertForSequenceClassification`: float32 by their names in it.
        longest: most tokens of a pair.

    Raises:
        Unsupported: the model is not a BERT as in `NEEDED`.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, np.ndarray], longest: int, threads: int
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # As in `Int8Bert`: the higher levels join operations into slower ones.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        model = exported(config, weights, longest)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._longest = longest
        self._pool = ThreadPoolExecutor(threads, "int8-cross")
        self.threads = threads

    def __call__(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Float32 (pairs, labels)."""
        return np.concatenate(list(self._pool.map(self._one, pairs)))

    def _one(self, pair: Pair) -> np.ndarray:
        places = np.arange(len(pair.ids)) + self._longest * np.array(pair.segments, np.int64)
        logits: np.ndarray = self._session.run(None, {"ids": np.array([pair.ids], np.int64), "places": places})[0]
        return logits


def exported(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], longest: int) -> bytes:
    """A serialised ONNX model: `ids` int64 (1, tokens) and `places` int64 (tokens,) → `logits` float32 (1, labels).

    The place of token number n is n in the first segment and n + `longest` in the second.

    Raises:
        Unsupported: the model is not a BERT as in `NEEDED`.
    """
    import onnx

    for name, value in NEEDED.items():
        if config.get(name, value) != value:
            raise Unsupported(
                f"The model has {name} `{config[name]}`, and int8 is for `{value}`.", "Use the precision `auto`."
            )
    own = {name.removeprefix("bert."): values for name, values in weights.items()}
    segments, places = own["embeddings.token_type_embeddings.weight"], own["embeddings.position_embeddings.weight"]
    if len(segments) == 1:
        segments = segments[[0, 0]]
    own["embeddings.position_embeddings.weight"] = np.concatenate([places[:longest] + one for one in segments[:2]])
    own["embeddings.token_type_embeddings.weight"] = np.zeros_like(segments)
    model = onnx.load_model_from_string(graph(dict(config), own, first_only=True))
    _add_head(model.graph, own)
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString()
    return made


def _add_head(into: GraphProto, weights: Mapping[str, np.ndarray]) -> None:
    """`classifier(tanh(pooler(state of the first token)))`."""
    from onnx import TensorProto, helper, numpy_helper

    states = into.output[0].name
    del into.output[:]
    names = [f"{layer}.{part}" for layer in ("pooler.dense", "classifier") for part in ("weight", "bias")]
    tensors = {name: np.ascontiguousarray(weights[name], np.float32) for name in names}
    into.initializer.extend([numpy_helper.from_array(values, name) for name, values in tensors.items()])
    into.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first.place"))
    into.node.extend(
        [
            helper.make_node("Gather", [states, "first.place"], ["first"], axis=1),
            helper.make_node("Gemm", ["first", *names[:2]], ["pooled.product"], transB=1),
            helper.make_node("Tanh", ["pooled.product"], ["pooled"]),
            helper.make_node("Gemm", ["pooled", *names[2:]], ["logits"], transB=1),
        ]
    )
    labels = len(weights["classifier.bias"])
    into.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, labels]))

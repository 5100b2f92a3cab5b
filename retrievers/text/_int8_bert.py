"""A BERT encoder in 8-bit integers: its graph, written from the pinned safetensors while it is loaded, in onnxruntime.

Weights are quantised once, each output of a matrix with a scale of its own; activations while it runs, each matrix
product with one scale. Attention, norms and GELU stay in float32. The few hidden units of a feed-forward layer whose
outputs can be large get a product of their own: with one scale for all they would leave the others too few steps. Which
they are follows from the weights alone, so nothing is calibrated on anybody's text.

A text is read alone and without padding, each on one core: that is as fast as batches are, a text's states never depend
on what else is read, and threads never wait for each other inside a product.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

LOUD = 128
"""Hidden units of a feed-forward layer that are quantised apart."""
SPREAD = 4.0
"""Standard deviations up to which a unit's input is expected, when units are ordered by how loud they can be."""
CONTRIB = "com.microsoft"

Given = TypeVar("Given")
Made = TypeVar("Made")


class Int8Bert:
    """Token states of one text. Safe from many threads: all of them share `threads` workers.

    Args:
        session: an onnxruntime session over `graph`, with one thread for each run.
        threads: how many texts `map` has read at the same time.
    """

    dtype = "int8"

    def __init__(self, session: Any, threads: int) -> None:
        self.threads = threads
        self._session = session
        self._pool = ThreadPoolExecutor(threads, "int8-bert")

    @classmethod
    def load(cls, folder: Path, threads: int) -> Int8Bert:
        """From `config.json` and `model.safetensors` of a BERT encoder with GELU and absolute positions.

        Raises:
            BadInput: a tensor is missing, or the file is damaged.
        """
        import onnxruntime
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        config = json.loads((folder / "config.json").read_text("utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Beyond the basic level sums and norms are joined into an operation that is several times as slow.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            model = graph(config, load_file(folder / "model.safetensors"))
        except KeyError as error:
            key = error.args[0]
            raise BadInput(f"`model.safetensors` has no `{key}`.", "Give the weights of this model.") from None
        except SafetensorError as error:
            raise BadInput(f"`model.safetensors` cannot be read: {error}.", "Run `triptych pull embedded`.") from None
        return cls(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]), threads)

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """Float32 (pieces, hidden) of the word pieces `ids`."""
        feed = {"ids": np.array([ids], np.int64), "places": np.arange(len(ids), dtype=np.int64)}
        states: np.ndarray = self._session.run(None, feed)[0][0]
        return states

    def map(self, work: Callable[[Given], Made], given: Sequence[Given]) -> Iterator[Made]:
        """`work` on each, `threads` at a time, in order; a single one in this thread, so that work may map again."""
        return map(work, given) if len(given) == 1 else self._pool.map(work, given)


def quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Int8 (inputs, outputs) and the float32 (outputs,) scales that give the float32 matrix back."""
    scales = np.maximum(np.abs(matrix).max(axis=0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(matrix / scales).astype(np.int8), scales


def loudness(matrix: np.ndarray, bias: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Float32 (outputs,): how large outputs can be, `SPREAD` deviations above their mean, for a layer-normalised input.

    Args:
        matrix, bias: float32 (inputs, outputs) and (outputs,).
        gain, shift: float32 (inputs,), of the layer norm whose output is the input.
    """
    made: np.ndarray = shift @ matrix + bias + SPREAD * np.linalg.norm(matrix * gain[:, None], axis=0)
    return made


def graph(config: dict[str, Any], weights: dict[str, np.ndarray], first_only: bool = False) -> bytes:
    """The serialised ONNX model: `ids` int64 (1, pieces) and `places` int64 (pieces,) → float32 (1, pieces, hidden).

    Args:
        first_only: the state of the first piece alone, (1, 1, hidden): the last layer computes no other.
    """
    from onnx import TensorProto, helper

    made = _Graph(config, weights)
    states = made.embedded()
    last = config["num_hidden_layers"] - 1
    for number in range(last + 1):
        states = made.layer(states, f"encoder.layer.{number}", first_only and number == last)
    shapes: dict[str, tuple[int | str, ...]] = {"ids": (1, "pieces"), "places": ("pieces",)}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
    length = 1 if first_only else "pieces"
    output = helper.make_tensor_value_info(states, TensorProto.FLOAT, [1, length, config["hidden_size"]])
    whole = helper.make_graph(made.nodes, "bert", inputs, [output], made.tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
    serialized: bytes = helper.make_model(whole, opset_imports=opsets, ir_version=8).SerializeToString()
    return serialized


class _Graph:
    """Nodes and tensors so far. Methods add to them and return the name of what they compute."""

    def __init__(self, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        self.config = config
        self.weights = weights
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def embedded(self) -> str:
        kinds = self.weights["embeddings.token_type_embeddings.weight"]
        # Half as large in float16, and no vector turns by more than a thousandth.
        words = self._tensor("words", self.weights["embeddings.word_embeddings.weight"].astype(np.float16))
        places = self._tensor("positions", self.weights["embeddings.position_embeddings.weight"] + kinds[0])
        found = self._node("Cast", [self._node("Gather", [words, "ids"], "word16")], "word", to=1)
        return self._normed(found, self._node("Gather", [places, "places"], "place"), "embeddings.LayerNorm")

    def layer(self, states: str, name: str, first_only: bool) -> str:
        attention = f"{name}.attention"
        keys, values = (self._linear(states, f"{attention}.self.{part}") for part in ("key", "value"))
        if first_only:
            states = self._node("Gather", [states, self._tensor("cls.place", np.zeros(1, np.int64))], "cls", axis=1)
        heads = [self._linear(states, f"{attention}.self.query"), keys, values]
        count = self.config["num_attention_heads"]
        mixed = self._node("MultiHeadAttention", heads, f"{attention}.mixed", CONTRIB, num_heads=count)
        mixed = self._linear(mixed, f"{attention}.output.dense")
        states = self._normed(mixed, states, f"{attention}.output.LayerNorm")
        return self._normed(self._feed_forward(states, name), states, f"{name}.output.LayerNorm")

    def _feed_forward(self, states: str, name: str) -> str:
        into, bias = self._parameters(f"{name}.intermediate.dense")
        out, out_bias = self._parameters(f"{name}.output.dense")
        gain, shift = (self.weights[f"{name}.attention.output.LayerNorm.{part}"] for part in ("weight", "bias"))
        loudest_first = np.argsort(-loudness(into, bias, gain, shift), kind="stable")
        loud, rest = loudest_first[:LOUD], loudest_first[LOUD:]
        halves = []
        for part, units in (("loud", loud), ("rest", rest)) if len(rest) else (("rest", loud),):
            hidden = self._product(states, into[:, units], bias[units], f"{name}.{part}.in")
            hidden = self._node("Gelu", [hidden], f"{name}.{part}.gelu", CONTRIB)
            own = out_bias if part == "rest" else np.zeros_like(out_bias)
            halves.append(self._product(hidden, out[units], own, f"{name}.{part}.out"))
        return self._node("Add", halves, f"{name}.out") if len(halves) > 1 else halves[0]

    def _linear(self, given: str, name: str) -> str:
        return self._product(given, *self._parameters(name), name)

    def _parameters(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.weights[f"{name}.weight"].T, self.weights[f"{name}.bias"]

    def _product(self, given: str, matrix: np.ndarray, bias: np.ndarray, name: str) -> str:
        whole, scales = quantized(matrix)
        tensors = [self._tensor(f"{name}.int8", whole), self._tensor(f"{name}.scales", scales), ""]
        return self._node("DynamicQuantizeMatMul", [given, *tensors, self._tensor(f"{name}.bias", bias)], name, CONTRIB)

    def _normed(self, one: str, other: str, name: str) -> str:
        total = self._node("Add", [one, other], f"{name}.sum")
        parameters = [self._tensor(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        epsilon = self.config["layer_norm_eps"]
        return self._node("LayerNormalization", [total, *parameters], name, axis=-1, epsilon=epsilon)

    def _tensor(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _node(self, kind: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes))
        return name

"""A trained student -> the ONNX graph that is served: the same answers from a third of the nodes.

In: a classifier in Hugging Face's layout. Out: an fp32 ONNX file with one input, `input_ids`
(batch, tokens), and the output `logits` (batch, classes); with a domain also `distance` (batch,),
how far the message is from it; with n-grams also `ngram_margin` (batch,), what they say of the
answer. It is written node by node, not traced:

- no mask and no padding: a message is run by itself (serve_app/model/classifier.py), so there is
  none;
- attention is one node instead of fourteen;
- token types are added to the positions once, here, and only positions that can occur are kept;
- the last layer computes the mean of the positions only, because the head reads nothing else.

A traced graph of so small a model spends a third of its time on shapes, transpositions and masks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from serve_app.model.classifier import DISTANCE, NGRAM_MARGIN
from train_jobs.student.domain import Domain
from train_jobs.student.ngrams import BITS, PRIME, STEP, Ngrams, scales
from train_jobs.student.quantize import in_blocks
from train_jobs.training.encoders import Block, Parts, max_tokens, parts_of, trained_classifier

_OURS: Final = "com.microsoft"  # ONNX Runtime's own operators
_OPSETS: Final = {"": 18, _OURS: 1}
_IR_VERSION: Final = 10
# Configurations' names of activations -> operator and its domain.
_ACTIVATIONS: Final = {
    "gelu": ("Gelu", _OURS),
    "gelu_new": ("FastGelu", _OURS),
    "relu": ("Relu", ""),
    "tanh": ("Tanh", ""),
}


class _Graph:
    """Nodes in the order of their computation; every method returns its output's name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []
        self._floats: list[onnx.ValueInfoProto] = []  # shape inference knows only ONNX's own

    def node(self, kind: str, given: Sequence[str], name: str, domain: str = "", **how: Any) -> str:
        self._nodes.append(helper.make_node(kind, given, [name], name, domain=domain, **how))
        if domain:
            self._floats.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return name

    def tensor(self, value: Any, name: str) -> str:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, one: str, other: str, name: str) -> str:
        return self.node("Add", [one, other], name)

    def linear(self, x: str, layer: torch.nn.Linear, name: str) -> str:
        weight = self.tensor(layer.weight.T, f"{name}.weight")
        product = self.node("MatMul", [x, weight], f"{name}.product")
        return self.add(product, self.tensor(layer.bias, f"{name}.bias"), name)

    def norm(self, x: str, layer: torch.nn.LayerNorm, name: str) -> str:
        weight, bias = f"{name}.weight", f"{name}.bias"
        given = [x, self.tensor(layer.weight, weight), self.tensor(layer.bias, bias)]
        return self.node("LayerNormalization", given, name, axis=-1, epsilon=layer.eps)

    def activation(self, x: str, kind: str, name: str) -> str:
        operator, domain = _ACTIVATIONS[kind]
        return self.node(operator, [x], name, domain)

    def model(self, outputs: Mapping[str, Sequence[str]]) -> onnx.ModelProto:
        """Args: outputs: their names and dimensions."""
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
        floats = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ]
        graph = helper.make_graph(
            self._nodes, "edge", [ids], floats, self._tensors, value_info=self._floats
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


class _Output:
    """The nodes of one more output: their names begin with its own, by which quantize.py knows
    what to leave alone."""

    def __init__(self, graph: _Graph, name: str) -> None:
        self._graph, self._name = graph, name

    def node(self, kind: str, given: Sequence[str], name: str, domain: str = "", **how: Any) -> str:
        return self._graph.node(kind, given, f"{self._name}.{name}", domain, **how)

    def tensor(self, value: Any, name: str) -> str:
        return self._graph.tensor(value, f"{self._name}.{name}")

    def last(self, kind: str, given: Sequence[str]) -> None:
        self._graph.node(kind, given, self._name)


def _layer(graph: _Graph, x: str, read: str, block: Block, parts: Parts, name: str) -> str:
    """One layer. Args: x: every position; read: the positions that are computed."""
    given = [
        graph.linear(read, block.query, f"{name}.query"),
        graph.linear(x, block.key, f"{name}.key"),
        graph.linear(x, block.value, f"{name}.value"),
    ]
    attention = graph.node(
        "MultiHeadAttention", given, f"{name}.attention", _OURS, num_heads=parts.heads
    )
    attended = graph.linear(attention, block.attended, f"{name}.attended")
    x = graph.norm(
        graph.add(attended, read, f"{name}.attended_sum"),
        block.attended_norm,
        f"{name}.attended_norm",
    )
    wide = graph.linear(x, block.widen, f"{name}.widen")
    active = graph.activation(wide, parts.activation, f"{name}.active")
    narrow = graph.linear(active, block.narrow, f"{name}.narrow")
    return graph.norm(graph.add(narrow, x, f"{name}.sum"), block.norm, f"{name}.norm")


def _distance(graph: _Graph, x: str, domain: Domain) -> None:
    """Domain.distances, of features `x` (batch, H)."""
    made = _Output(graph, DISTANCE)

    def tensor(value: Any, name: str) -> str:
        return made.tensor(np.asarray(value, np.float32), name)

    last = made.tensor(np.array([-1]), "axis")
    # Not a Gemm, which quantizers take apart under other names.
    each = made.node("MatMul", [x, tensor(domain.classes, "classes")], "each")
    moved = made.node("Add", [each, tensor(domain.offsets, "offsets")], "moved")
    nearest = made.node("ReduceMin", [moved, last], "nearest", keepdims=0)
    leading = made.node("MatMul", [x, tensor(domain.directions, "directions")], "leading")
    less = made.node("ReduceSumSquare", [leading, last], "less", keepdims=0)
    whole = made.node("ReduceSumSquare", [x, last], "whole", keepdims=0)
    weighed = made.node("Mul", [whole, tensor(domain.weight, "weight")], "weighed")
    square = made.node("Add", [made.node("Sub", [weighed, less], "own"), nearest], "square")
    made.last("Sqrt", [made.node("Relu", [square], "positive")])


def _ngram_margin(graph: _Graph, ngrams: Ngrams, longest: int) -> None:
    """Ngrams.margins of `input_ids`, of the class with the highest of `logits`."""
    made = _Output(graph, NGRAM_MARGIN)
    axis = made.tensor(np.array([1]), "one")  # both an axis and where the second token is
    said = made.node("ReduceSum", [_read(made, ngrams, axis), axis], "said", keepdims=0)
    answer = made.node("ArgMax", ["logits"], "answer", axis=1, keepdims=1)
    own = made.node("GatherND", [said, answer], "own", batch_dims=1)
    classes = made.tensor(np.arange(ngrams.table.shape[1]), "classes")
    answered = made.node("Equal", [answer, classes], "answered")
    least = made.tensor(np.float32(-np.inf), "least")
    others = made.node("Where", [answered, least, said], "others")
    best = made.node("ReduceMax", [others, axis], "best", keepdims=0)
    factors = made.tensor(scales(longest).astype(np.float32), "factors")
    factor = made.node("Gather", [factors, "tokens"], "factor")
    made.last("Mul", [made.node("Sub", [own, best], "lead"), factor])


def _read(made: _Output, ngrams: Ngrams, axis: str) -> str:
    """The table's rows (batch, n-grams, width) of ngrams.hashed(`input_ids`)."""
    start, last = made.tensor(np.array([0]), "start"), made.tensor(np.array([-1]), "last")
    end = made.tensor(np.array([np.iinfo(np.int64).max]), "end")
    former = made.node("Slice", ["input_ids", start, last, axis], "former")
    latter = made.node("Slice", ["input_ids", axis, end, axis], "latter")
    moved = made.node("Mul", [former, made.tensor(np.array(STEP), "step")], "moved")
    pairs = made.node("Add", [moved, latter], "pairs")
    grams = made.node("Concat", ["input_ids", pairs], "grams", axis=1)
    mixed = made.node("Mod", [grams, made.tensor(np.array(PRIME), "prime")], "mixed")
    size = made.tensor(np.array(len(ngrams.table)), "size")
    buckets = made.node("Mod", [mixed, size], "buckets")
    values, scale, zero = in_blocks(ngrams.table, BITS, ngrams.block)
    given = [made.tensor(values, "table"), buckets]
    given += [made.tensor(scale, "table.scale"), made.tensor(zero, "table.zero")]
    return made.node(
        "GatherBlockQuantized", given, "read", _OURS,
        gather_axis=0, quantize_axis=1, block_size=ngrams.block, bits=BITS,
    )  # fmt: skip


def graph_of(
    parts: Parts, domain: Domain | None = None, ngrams: Ngrams | None = None
) -> onnx.ModelProto:
    """The graph of a classifier that was taken apart, and of what else it tells of a message."""
    graph = _Graph()
    zero, one = graph.tensor(np.array([0]), "zero"), graph.tensor(np.array([1]), "one")
    words = graph.node("Gather", [graph.tensor(parts.words, "words"), "input_ids"], "words.read")
    tokens = graph.node("Shape", ["input_ids"], "tokens", start=1, end=2)
    positions = graph.node(
        "Slice", [graph.tensor(parts.positions, "positions"), zero, tokens], "positions.read"
    )
    x = graph.norm(graph.add(words, positions, "embedded"), parts.embedded_norm, "embedded_norm")
    for index, block in enumerate(parts.blocks):
        last = index == len(parts.blocks) - 1
        read = graph.node("ReduceMean", [x, one], "mean", keepdims=1) if last else x
        x = _layer(graph, x, read, block, parts, f"layer.{index}")
    read = graph.node("Squeeze", [x, one], "read")
    pooled = graph.activation(
        graph.linear(read, parts.pooled, "pooled"), parts.pooled_activation, "pooled.active"
    )
    graph.linear(pooled, parts.classifier, "logits")
    outputs = {"logits": ["batch", "classes"]}
    if domain:
        _distance(graph, read, domain)
        outputs[DISTANCE] = ["batch"]
    if ngrams:
        _ngram_margin(graph, ngrams, len(parts.positions))
        outputs[NGRAM_MARGIN] = ["batch"]
    return graph.model(outputs)


def write(
    source: Path, target: Path, domain: Domain | None = None, ngrams: Ngrams | None = None
) -> None:
    """Writes the served graph of the classifier in `source`, in fp32."""
    model = trained_classifier(source)
    onnx.save(graph_of(parts_of(model, max_tokens(str(source))), domain, ngrams), target)

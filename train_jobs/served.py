"""A trained student -> the ONNX graph that is served: the same answers from a third of the nodes.

In: a classifier in Hugging Face's layout. Out: an fp32 ONNX file with one input, `input_ids`
(batch, tokens), and the output `logits` (batch, classes); with a domain also `distance` (batch,),
how far the message is from it. It is written node by node, not traced:

- no mask and no padding: a message is run by itself (serve_app/classifier.py), so there is none;
- attention is one node instead of fourteen;
- token types are added to the positions once, here, and only positions that can occur are kept;
- the last layer computes the first position only, because the head reads no other.

A traced graph of so small a model spends a third of its time on shapes, transpositions and masks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModelForSequenceClassification

from serve_app.classifier import DISTANCE
from train_jobs.domain import Domain
from train_jobs.encoders import Block, Parts, max_tokens, parts_of

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
    """Domain.distances, of features `x` (batch, H).

    Every node's name begins with the output's, by which quantize.py knows what to leave alone.
    """

    def node(kind: str, given: Sequence[str], name: str, **how: Any) -> str:
        return graph.node(kind, given, f"{DISTANCE}.{name}", **how)

    def tensor(value: Any, name: str) -> str:
        return graph.tensor(np.asarray(value, np.float32), f"{DISTANCE}.{name}")

    last = graph.tensor(np.array([-1]), f"{DISTANCE}.axis")
    # Not a Gemm, which quantizers take apart under other names.
    each = node("MatMul", [x, tensor(domain.classes, "classes")], "each")
    moved = node("Add", [each, tensor(domain.offsets, "offsets")], "moved")
    nearest = node("ReduceMin", [moved, last], "nearest", keepdims=0)
    leading = node("MatMul", [x, tensor(domain.directions, "directions")], "leading")
    less = node("ReduceSumSquare", [leading, last], "less", keepdims=0)
    whole = node("ReduceSumSquare", [x, last], "whole", keepdims=0)
    weighed = node("Mul", [whole, tensor(domain.weight, "weight")], "weighed")
    square = node("Add", [node("Sub", [weighed, less], "own"), nearest], "square")
    graph.node("Sqrt", [node("Relu", [square], "positive")], DISTANCE)


def graph_of(parts: Parts, domain: Domain | None = None) -> onnx.ModelProto:
    """The graph of a classifier that was taken apart, and of its distance from a domain."""
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
        read = graph.node("Slice", [x, zero, one, one], "first") if last else x
        x = _layer(graph, x, read, block, parts, f"layer.{index}")
    first = graph.node("Squeeze", [x, one], "read")
    pooled = graph.activation(
        graph.linear(first, parts.pooled, "pooled"), parts.pooled_activation, "pooled.active"
    )
    graph.linear(pooled, parts.classifier, "logits")
    outputs = {"logits": ["batch", "classes"]}
    if domain:
        _distance(graph, first, domain)
        outputs[DISTANCE] = ["batch"]
    return graph.model(outputs)


def write(source: Path, target: Path, domain: Domain | None = None) -> None:
    """Writes the served graph of the classifier in `source`, in fp32."""
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    onnx.save(graph_of(parts_of(model, max_tokens(str(source))), domain), target)

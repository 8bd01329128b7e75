"""The ways to make an fp32 ONNX classifier small, each a pure file-to-file step.

In: an exported fp32 model. Out: one file per variant. Which one is shipped is measured, not
guessed, by compress.py. A variant is named for its matrix products, then for its embedding:

    int8     weights 8 bits per channel, activations scaled over the run when it happens (dynamic)
    int7     the same with weights of 7 bits: no CPU can overflow on them
    static8  activations scaled once, by the minimum and maximum seen on `calibration`
    rows8    weights 8 bits in blocks, activations scaled per row: a neighbour hardly matters
    rows4    the same with 4 bits
    -e8, -e4 the embedding in blocks of 8 or 4 bits (GatherBlockQuantized)

The other outputs' nodes are left alone. The distance from the domain stays in fp32: it is a small
difference of large numbers. What the n-gram margin reads has 4 bits from the start.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from serve_app.model.classifier import DISTANCE, NGRAM_MARGIN

Products = Literal["int8", "int7", "static8", "rows8", "rows4"]
_DOMAIN: Final = "com.microsoft"
# Of the embedding's row of 384. Smaller blocks cost more scales than they save error.
_EMBEDDING_BLOCK: Final = {8: 128, 4: 64}
_MIN_TABLE_BYTES: Final = 1 << 16  # a token-type table of two rows is not worth a node
_ROWS_BLOCK: Final = {8: 128, 4: 32}


@dataclass(frozen=True, kw_only=True)
class QuantizeRecipe:
    """One variant. `needs` names the CPU flags without which it computes something else."""

    products: Products
    embedding_bits: Literal[8, 4] | None
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.products}-e{self.embedding_bits}" if self.embedding_bits else self.products


# Signed 8-bit weights times unsigned 8-bit activations are added in pairs into 16 bits on a CPU
# without VNNI, and saturate there; weights of up to 64 cannot (255 x 64 x 2 < 2^15).
RECIPES: Final = (
    QuantizeRecipe(products="int8", embedding_bits=None, needs=("vnni",)),
    QuantizeRecipe(products="int8", embedding_bits=8, needs=("vnni",)),
    QuantizeRecipe(products="int8", embedding_bits=4, needs=("vnni",)),
    QuantizeRecipe(products="int7", embedding_bits=8),
    QuantizeRecipe(products="int7", embedding_bits=4),
    QuantizeRecipe(products="static8", embedding_bits=8, needs=("vnni",)),
    QuantizeRecipe(products="rows8", embedding_bits=8),
    QuantizeRecipe(products="rows4", embedding_bits=4),
)


def quantize(
    recipe: QuantizeRecipe, source: Path, target: Path, seen: Sequence[Mapping[str, NDArray[Any]]]
) -> None:
    """Writes one variant of `source`. `seen` are inputs as served, for the ranges of `static8`."""
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        step = Path(scratch) / "products.onnx"
        if recipe.products in ("int8", "int7"):
            _dynamic(source, step, recipe)
        elif recipe.products == "static8":
            _static(source, step, seen)
        else:
            _rows(source, step, 8 if recipe.products == "rows8" else 4)
        model = onnx.load(step)
    if recipe.embedding_bits:
        quantize_tables(model, recipe.embedding_bits)
    onnx.save(model, target)


def _dynamic(source: Path, target: Path, recipe: QuantizeRecipe) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"] if recipe.embedding_bits else ["MatMul", "Gather"],
        per_channel=True,
        reduce_range=recipe.products == "int7",
        weight_type=QuantType.QInt8,  # four times faster than unsigned where there is VNNI
        nodes_to_exclude=_left_alone(source),
    )


def _static(source: Path, target: Path, seen: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Seen(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(seen)

        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(self._left, None)

    quantize_static(
        source,
        target,
        Seen(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,  # percentiles collapse BERT models
        nodes_to_exclude=_left_alone(source),
        extra_options={"MatMulConstBOnly": True},
    )


def _rows(source: Path, target: Path, bits: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    how = DefaultWeightOnlyQuantConfig(
        block_size=_ROWS_BLOCK[bits],
        is_symmetric=True,
        accuracy_level=4,  # activations in int8, scaled per row and block
        bits=bits,
    )
    left = _left_alone(source)
    made = MatMulNBitsQuantizer(onnx.load(source), algo_config=how, nodes_to_exclude=left)
    made.process()
    onnx.save(made.model.model, target)


def _left_alone(source: Path) -> list[str]:
    """The nodes that compute the other outputs."""
    names = [node.name for node in onnx.load(source).graph.node]
    return [name for name in names if name.startswith((DISTANCE, NGRAM_MARGIN))]


def quantize_tables(model: onnx.ModelProto, bits: Literal[8, 4]) -> None:
    """Embedding tables (rows, width) -> blocks of each row with a scale and a zero point, in place.

    A scale for the whole table, as dynamic quantization gives it, is set by its largest row.
    """
    graph = model.graph
    tables = {item.name: item for item in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type != "Gather" or node.input[0] not in tables:
            continue
        table = numpy_helper.to_array(tables[node.input[0]])
        if table.ndim != 2 or table.dtype != np.float32 or table.nbytes < _MIN_TABLE_BYTES:
            continue
        name, block = node.input[0], _EMBEDDING_BLOCK[bits]
        parts = dict(zip(("q", "scale", "zero"), in_blocks(table, bits, block), strict=True))
        graph.initializer.remove(tables.pop(name))
        graph.initializer.extend(
            numpy_helper.from_array(part, f"{name}_{kind}") for kind, part in parts.items()
        )
        graph.node[index].CopyFrom(
            helper.make_node(
                "GatherBlockQuantized",
                [f"{name}_q", node.input[1], f"{name}_scale", f"{name}_zero"],
                list(node.output), name=node.name, domain=_DOMAIN,
                gather_axis=0, quantize_axis=1, block_size=block, bits=bits,
            )
        )  # fmt: skip
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def in_blocks(
    table: NDArray[np.float32], bits: Literal[8, 4], block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Rounds (rows, width) to the nearest of 2^bits steps between a block's minimum and maximum.

    Returns values (rows, width x bits / 8), scales and zero points (rows, blocks), two values of
    4 bits to a byte with the lower half first, as ONNX Runtime's GatherBlockQuantized reads them.
    """
    values, scale, zero = _steps(table, bits, block)
    flat = values.astype(np.uint8).reshape(len(table), -1)[:, : table.shape[1]]
    return _packed(flat, bits), scale, _packed(zero.astype(np.uint8), bits)


def rounded(
    table: NDArray[np.float32], bits: Literal[8, 4], block: int | None = None
) -> NDArray[np.float32]:
    """A table (rows, width) as it reads after quantization, which then changes it no more.

    Args:
        block: values that share a scale; None: as of an embedding.
    """
    values, scale, zero = _steps(table, bits, block or _EMBEDDING_BLOCK[bits])
    whole = ((values - zero[..., None]) * scale[..., None]).reshape(len(table), -1)
    return np.asarray(whole[:, : table.shape[1]], np.float32)


def _steps(
    table: NDArray[np.float32], bits: Literal[8, 4], block: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Whole-numbered values (rows, blocks, block), scales and zero points (rows, blocks)."""
    rows, width = table.shape
    blocks = -(-width // block)
    padded = np.pad(table, ((0, 0), (0, blocks * block - width))).reshape(rows, blocks, block)
    low, high = np.minimum(padded.min(-1), 0), np.maximum(padded.max(-1), 0)
    top = 2**bits - 1
    scale = np.maximum((high - low) / top, np.finfo(np.float32).tiny).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, top)
    values = np.clip(np.round(padded / scale[..., None] + zero[..., None]), 0, top)
    return values, scale, zero


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return values
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    return np.asarray(even[:, ::2] | (even[:, 1::2] << 4), np.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantizers log every node, and recommend steps meant for images."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)

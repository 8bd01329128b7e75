"""Stage 5: a trained classifier -> ONNX -> int8, and a parity report of every variant.

In: a folder in Hugging Face's layout. Out: `<variant>.onnx` files, `parity.json`, `parity.png`,
and the choice: the smallest variant that agrees with fp32 (edge), or fp32 itself (cloud).

Parity is measured on `calibration`, so that the gate can judge the choice on other rows. Every
variant is measured as it is served, one message per run; `batched_*` shows what sharing a run with
others would have changed.
"""

import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import transformers
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cluster.bundles import MODEL, TOKENIZER
from cluster.errors import BundleError
from cluster.files import new_folder, write_json
from cluster.progress import Report, silent
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.classifier import OnnxScorer, softmax
from train_jobs.data import Dataset
from train_jobs.encoders import max_tokens

FP32: Final = "fp32"
PARITY: Final = "parity.json"
# What each int8 variant quantizes. The embedding table is a Gather: most of a small model's bytes.
_INT8: Final = {"int8-matmul": ("MatMul",), "int8": ("MatMul", "Gather")}


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """`min_agreement`: the share of labels that a variant must share with fp32 to be chosen."""

    min_agreement: float = 0.98
    batch: int = 16
    timed_messages: int = 200


class Variant(BaseModel):
    """One row of the parity report. Everything is against exported fp32, on `split`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: str
    rows: int
    accuracy: float
    label_flips_share: float
    logit_error_mean: float
    size_bytes: int
    p50_ms: float
    p95_ms: float
    batched_label_flips_share: float
    batched_decision_flips_share: float  # at a confidence threshold of 0.9
    company_changes: int  # answers that differ in any bit when served beside others: must be 0


@dataclass(frozen=True)
class Compressed:
    """The chosen variant with its tokenizer, ready to be calibrated."""

    path: Path
    chosen: str
    variants: tuple[Variant, ...]
    max_tokens: int

    @property
    def model(self) -> Path:
        return self.path / f"{self.chosen}.onnx"

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    def open(self, threads: int = 1) -> OnnxScorer:
        return OnnxScorer.open(self.model, self.tokenizer, self.max_tokens, threads)


def export(source: Path, target: Path) -> None:
    """Writes the classifier as an fp32 ONNX file, by Optimum."""
    from optimum.exporters.onnx import main_export

    # Tracing warns of every constant it meets; parity is measured, so nobody has to read them.
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        main_export(
            str(source), output=scratch, task="text-classification", do_validation=False,
            no_post_process=True,
        )  # fmt: skip
        shutil.copyfile(Path(scratch) / MODEL, target)


def _has_vnni() -> bool:
    import torch

    have = torch.cpu.get_capabilities()
    return bool(have.get("avx512_vnni") or have.get("avx_vnni") or have.get("amx_int8"))


def quantize(source: Path, target: Path, operators: Sequence[str]) -> None:
    """Dynamic int8 by ONNX Runtime. Signed weights: four times faster where there is VNNI."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a pre-processing that is meant for images
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(operators),
            per_channel=True,
            reduce_range=not _has_vnni(),  # without it, 8-bit products overflow 16 bits
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def _timed(scorer: OnnxScorer, texts: Sequence[str]) -> tuple[float, float]:
    """p50 and p95 in ms of one message, tokenising included."""
    for text in texts[:10]:
        scorer.logits([text])
    times = []
    for text in texts:
        start = time.perf_counter()
        scorer.logits([text])
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def _batched(scorer: OnnxScorer, texts: Sequence[str], batch: int) -> NDArray[np.float32]:
    ids = scorer.tokenizer.encode(texts)
    return np.concatenate([scorer.run(ids[i : i + batch]) for i in range(0, len(ids), batch)])


def measure(
    name: str,
    file: Path,
    scorer: OnnxScorer,
    reference: NDArray[np.float32],
    texts: Sequence[str],
    labels: Sequence[int],
    config: CompressConfig,
) -> Variant:
    """Compares a variant with fp32 logits (n, classes) and with itself in company."""
    alone = np.concatenate([scorer.logits([text]) for text in texts])
    together = scorer.logits(texts)
    batched = _batched(scorer, texts, config.batch)
    p50_ms, p95_ms = _timed(scorer, texts[: config.timed_messages])
    best = alone.argmax(-1)
    trusted = softmax(alone).max(-1) >= 0.9
    return Variant(
        name=name,
        split="calibration",
        rows=len(texts),
        accuracy=float((best == np.array(labels)).mean()),
        label_flips_share=float((best != reference.argmax(-1)).mean()),
        logit_error_mean=float(np.abs(alone - reference).mean()),
        size_bytes=file.stat().st_size,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        batched_label_flips_share=float((best != batched.argmax(-1)).mean()),
        batched_decision_flips_share=float((trusted != (softmax(batched).max(-1) >= 0.9)).mean()),
        company_changes=int((alone != together).any(-1).sum()),
    )


def choose(variants: Sequence[Variant], config: CompressConfig) -> str:
    """The smallest variant that agrees with fp32 and does not depend on its neighbours."""
    fit = [
        v
        for v in variants
        if 1 - v.label_flips_share >= config.min_agreement and not v.company_changes
    ]
    if not fit:
        raise BundleError(
            "No variant, fp32 included, gives the same answer alone and in company: "
            + ", ".join(f"{v.name} changes {v.company_changes} of {v.rows}" for v in variants)
        )
    return min(fit, key=lambda v: v.size_bytes).name


def _draw(variants: Sequence[Variant], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for variant in variants:
        point = (variant.size_bytes / 1e6, variant.accuracy)
        axes.scatter(*point, s=60)
        axes.annotate(f"{variant.name}\n{variant.p50_ms:.1f} ms", point, fontsize=8,
                      textcoords="offset points", xytext=(6, 4))  # fmt: skip
    axes.set_xlabel("model size, MB")
    axes.set_ylabel(f"accuracy on {variants[0].split}")
    axes.margins(0.2)
    figure.savefig(path, dpi=120)


def run(
    config: CompressConfig,
    dataset: Dataset,
    model: Path,
    out: Path,
    *,
    quantized: bool,
    settings: Settings,
    report: Report = silent,
) -> Compressed:
    """Exports, quantizes if asked to, measures, and chooses.

    Raises:
        BundleError: nothing that can be served came out.
    """
    texts, labels = dataset.labelled("calibration")
    length = max_tokens(str(model))
    wanted: dict[str, Any] = {FP32: (), **(_INT8 if quantized else {})}
    variants: list[Variant] = []
    with new_folder(out) as folder:
        shutil.copyfile(model / TOKENIZER, folder / TOKENIZER)
        reference: NDArray[np.float32] | None = None
        for done, (name, operators) in enumerate(wanted.items()):
            report(done, len(wanted), name)
            file = folder / f"{name}.onnx"
            if name == FP32:
                export(model, file)
            else:
                quantize(folder / f"{FP32}.onnx", file, operators)
            scorer = OnnxScorer.open(file, folder / TOKENIZER, length)
            if reference is None:
                reference = scorer.logits(texts)
            variants.append(measure(name, file, scorer, reference, texts, labels, config))
        chosen = choose(variants, config) if quantized else FP32
        write_json(
            folder / PARITY, {"chosen": chosen, "variants": [v.model_dump() for v in variants]}
        )
        _draw(variants, folder / "parity.png")
    report(len(wanted), len(wanted), chosen)
    compressed = Compressed(out, chosen, tuple(variants), length)
    picked = next(v for v in variants if v.name == chosen)
    log_stage(
        settings, "compress", params={"chosen": chosen, "quantized": quantized},
        metrics={k: float(v) for k, v in picked.model_dump().items() if isinstance(v, int | float)},
        files=[out / PARITY, out / "parity.png"], tags={"dataset": dataset.fingerprint},
    )  # fmt: skip
    return compressed

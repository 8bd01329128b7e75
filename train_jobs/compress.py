"""Stage 6: a trained classifier -> ONNX -> int8, and a parity report of every variant.

In: a folder in Hugging Face's layout. Out: `<variant>.onnx` files, `parity.json`, `parity.png`,
and the choice (edge): the smallest variant that agrees with fp32, is about as fast as the fastest,
and gives the same answer alone and in company. The edge tells its distance from the domain too
(train_jobs/student/domain.py), and what n-grams say of its answer (train_jobs/student/ngrams.py).
The cloud stays fp32.

Parity is measured on `calibration`, so that the gate can judge the choice on other rows. Every
variant is measured as it is served, one message per run; `batched_*` shows what sharing a run with
others would have changed.
"""

import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import transformers
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cluster.bundles import MODEL, TOKENIZER
from cluster.errors import BundleError
from cluster.files import new_folder, read_json, write_json
from cluster.progress import Report, silent
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.model.classifier import OnnxScorer, softmax
from serve_app.model.cpu import has_all
from train_jobs.data import Dataset
from train_jobs.student import domain, ngrams
from train_jobs.student import graph as served
from train_jobs.student.quantize import RECIPES, QuantizeRecipe, quantize
from train_jobs.student.vocabulary import TrimCost
from train_jobs.training.checkpoints import HISTORY
from train_jobs.training.encoders import max_tokens, trained_classifier

FP32: Final = "fp32"
PARITY: Final = "parity.json"
_SEEN_MESSAGES: Final = 200  # that static quantization takes its ranges from
_AS_SMALL_BYTES: Final = 100_000  # a file so little larger than another counts as small as it
_PASSES: Final = 5
_TURN: Final = 20  # messages, before another variant is timed
_WARM: Final = 3


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """What a variant must keep to be chosen, against the fp32 model that it was made from."""

    min_agreement: float = 0.98  # share of labels
    max_slowdown: float = 1.25  # p50 over the fastest's: a smaller file is not worth any price
    batch: int = 16
    timed_messages: int = 200


class Variant(BaseModel):
    """One row of the parity report. Everything is against exported fp32, on `split`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    needs: tuple[str, ...]  # CPU flags
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

    def __str__(self) -> str:
        return (
            f"{self.name:<12} {self.size_bytes / 1e6:6.2f} MB {self.p50_ms:6.2f} ms  "
            f"{self.label_flips_share:6.2%} of labels changed, accuracy {self.accuracy:.4f}, "
            f"{self.company_changes} changed by company"
        )


class ArtifactChoice(NamedTuple):
    """`anywhere` is for CPUs that lack a flag which `best` needs; None if it needs none."""

    best: str
    anywhere: str | None


@dataclass(frozen=True)
class Compressed:
    """The chosen variants with their tokenizer, ready to be calibrated."""

    path: Path
    choice: ArtifactChoice
    variants: tuple[Variant, ...]
    max_tokens: int

    @property
    def chosen(self) -> Variant:
        return next(v for v in self.variants if v.name == self.choice.best)

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    def model(self, name: str | None = None) -> Path:
        return self.path / f"{name or self.choice.best}.onnx"

    def open(self, name: str | None = None, threads: int = 1) -> OnnxScorer:
        return OnnxScorer.open(self.model(name), self.tokenizer, self.max_tokens, threads)


def export(source: Path, target: Path) -> None:
    """Writes the classifier as an fp32 ONNX file, by Optimum."""
    from optimum.exporters.onnx import onnx_export_from_model

    # Tracing warns of every constant it meets; parity is measured, so nobody has to read them.
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        model = trained_classifier(source)
        onnx_export_from_model(
            model, scratch, task="text-classification", do_validation=False, no_post_process=True
        )
        shutil.copyfile(Path(scratch) / MODEL, target)


def timed(scorers: Sequence[OnnxScorer], texts: Sequence[str]) -> list[tuple[float, float]]:
    """p50 and p95 in ms of one message for each, tokenising included, in its quietest pass.

    What else a machine does makes a pass slower, never faster, and must not choose the variant. It
    lasts for seconds or minutes, so the scorers take turns of a few messages.
    """
    passes: list[list[tuple[float, float]]] = [[] for _ in scorers]
    for _ in range(_PASSES):
        times: list[list[float]] = [[] for _ in scorers]
        for start in range(0, len(texts), _TURN):
            turn = texts[start : start + _TURN]
            for scorer, seen in zip(scorers, times, strict=True):
                for text in turn[:_WARM]:  # the others' weights are in the CPU's cache
                    scorer.logits([text])
                seen += [_ms(scorer, text) for text in turn]
        for kept, seen in zip(passes, times, strict=True):
            kept.append((float(np.percentile(seen, 50)), float(np.percentile(seen, 95))))
    return [min(kept) for kept in passes]


def _ms(scorer: OnnxScorer, text: str) -> float:
    start = time.perf_counter()
    scorer.logits([text])
    return (time.perf_counter() - start) * 1e3


def _batched(scorer: OnnxScorer, texts: Sequence[str], batch: int) -> NDArray[np.float32]:
    """Logits of messages that share a run with others: of their own length, as it takes no mask."""
    ids = scorer.tokenizer.encode(texts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    made: dict[int, NDArray[np.float32]] = {}
    for _, group in groupby(order, key=lambda i: len(ids[i])):
        rows = list(group)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            made.update(zip(part, scorer.run([ids[i] for i in part]), strict=True))
    return np.stack([made[i] for i in range(len(ids))])


def measure(
    recipe: QuantizeRecipe | None,
    file: Path,
    scorer: OnnxScorer,
    reference: NDArray[np.float32],
    texts: Sequence[str],
    labels: Sequence[int],
    config: CompressConfig,
    took_ms: tuple[float, float],
) -> Variant:
    """Compares a variant (None: fp32) with fp32 logits (n, classes) and with itself in company.

    Args: took_ms: p50 and p95 of a message, see `timed`.
    """
    alone = np.concatenate([scorer.logits([text]) for text in texts])
    together = scorer.logits(texts)
    batched = _batched(scorer, texts, config.batch)
    best = alone.argmax(-1)
    trusted = softmax(alone).max(-1) >= 0.9
    return Variant(
        name=recipe.name if recipe else FP32,
        needs=recipe.needs if recipe else (),
        split="calibration",
        rows=len(texts),
        accuracy=float((best == np.array(labels)).mean()),
        label_flips_share=float((best != reference.argmax(-1)).mean()),
        logit_error_mean=float(np.abs(alone - reference).mean()),
        size_bytes=file.stat().st_size,
        p50_ms=took_ms[0],
        p95_ms=took_ms[1],
        batched_label_flips_share=float((best != batched.argmax(-1)).mean()),
        batched_decision_flips_share=float((trusted != (softmax(batched).max(-1) >= 0.9)).mean()),
        company_changes=int((alone != together).any(-1).sum()),
    )


def choose(variants: Sequence[Variant], config: CompressConfig) -> ArtifactChoice:
    """The smallest variant that keeps what fp32 says, is fast, and minds no neighbour.

    Raises:
        BundleError: no quantized variant does, with the figures of all.
    """
    fit = [
        v
        for v in variants
        if v.name != FP32
        and 1 - v.label_flips_share >= config.min_agreement
        and not v.company_changes
    ]
    if not fit:
        table = "\n".join(f"  {v}" for v in variants)
        raise BundleError(
            f"No quantized variant gives {config.min_agreement:.1%} of fp32's labels, alone and in "
            f"company, on {variants[0].rows} rows of {variants[0].split}; nothing was "
            f"registered.\n{table}\nTrain longer (--epochs) or give more rows: a model that is "
            "unsure of its answers changes them easily."
        )
    best = _best(fit, config)
    if not best.needs:
        return ArtifactChoice(best.name, None)
    free = [v for v in fit if not v.needs]
    return ArtifactChoice(
        best.name, _best(free, config).name if free else FP32
    )  # fp32 runs anywhere


def _best(fit: Sequence[Variant], config: CompressConfig) -> Variant:
    """The smallest of the fast; of those that are as small, one that runs on any CPU."""
    slowest_ms = config.max_slowdown * min(v.p50_ms for v in fit)
    fast = [v for v in fit if v.p50_ms <= slowest_ms]
    limit = min(v.size_bytes for v in fast) + _AS_SMALL_BYTES
    small = [v for v in fast if v.size_bytes <= limit]
    return min(small, key=lambda v: (bool(v.needs), v.label_flips_share, v.size_bytes))


def _draw(variants: Sequence[Variant], choice: ArtifactChoice, path: Path) -> None:
    """The front: size against time, with what each variant costs in agreement beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for variant in variants:
        chosen = variant.name in choice
        point = (variant.size_bytes / 1e6, variant.p50_ms)
        axes.scatter(*point, s=90 if chosen else 40, marker="*" if chosen else "o")
        axes.annotate(f"{variant.name}\n{1 - variant.label_flips_share:.1%} agree", point,
                      fontsize=7, textcoords="offset points", xytext=(6, 3))  # fmt: skip
    axes.set_xlabel("model size, MB")
    axes.set_ylabel("p50 of one message, ms")
    axes.set_title(f"variants on the {variants[0].split} split; chosen: {choice.best}")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.2)
    figure.savefig(path, dpi=120)


def _seen(scorer: OnnxScorer, texts: Sequence[str]) -> list[Mapping[str, NDArray[Any]]]:
    return [scorer.feed([ids]) for ids in scorer.tokenizer.encode(texts[:_SEEN_MESSAGES])]


def _files(
    model: Path, folder: Path, length: int, dataset: Dataset, *, quantized: bool
) -> Iterator[tuple[QuantizeRecipe | None, Path, OnnxScorer]]:
    """Makes and opens fp32, then every variant that this CPU computes as meant."""

    def opened(file: Path) -> OnnxScorer:
        return OnnxScorer.open(file, folder / TOKENIZER, length)

    whole = folder / f"{FP32}.onnx"
    if quantized:
        served.write(model, whole, domain.of(model, dataset), ngrams.of(model, dataset))
    else:
        export(model, whole)
    yield None, whole, opened(whole)
    if not quantized:
        return
    seen = _seen(opened(whole), dataset.texts("calibration"))
    for recipe in RECIPES:
        if has_all(recipe.needs):
            file = folder / f"{recipe.name}.onnx"
            quantize(recipe, whole, file, seen)
            yield recipe, file, opened(file)


def _trimmed(model: Path) -> dict[str, float]:
    """What cutting the vocabulary did to held-out texts, as the distillation measured it."""
    figures = read_json(model / HISTORY)["figures"]
    return {field.name: figures[field.name] for field in fields(TrimCost)}


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
    made: list[tuple[QuantizeRecipe | None, Path, OnnxScorer]] = []
    variants: list[Variant] = []
    total = 1 + quantized * len(RECIPES)
    with new_folder(out) as folder:
        shutil.copyfile(model / TOKENIZER, folder / TOKENIZER)
        for each in _files(model, folder, length, dataset, quantized=quantized):
            made.append(each)
            report(len(made), 2 * total, each[1].stem)
        report(total, 2 * total, "timing, in turns")
        took = timed([scorer for _, _, scorer in made], texts[: config.timed_messages])
        reference = made[0][2].logits(texts)
        for (recipe, file, scorer), took_ms in zip(made, took, strict=True):
            report(total + len(variants), 2 * total, f"{file.stem} against fp32")
            variants.append(
                measure(recipe, file, scorer, reference, texts, labels, config, took_ms)
            )
        choice = choose(variants, config) if quantized else ArtifactChoice(FP32, None)
        rows = [v.model_dump() for v in variants]
        trimmed = {"vocabulary": _trimmed(model)} if quantized else {}
        write_json(folder / PARITY, {**choice._asdict(), **trimmed, "variants": rows})
        _draw(variants, choice, folder / "parity.png")
    report(2 * total, 2 * total, choice.best)
    compressed = Compressed(out, choice, tuple(variants), length)
    figures = compressed.chosen.model_dump().items()
    log_stage(
        settings, "compress", params={**choice._asdict(), "quantized": quantized},
        metrics={k: float(v) for k, v in figures if isinstance(v, int | float)},
        files=[out / PARITY, out / "parity.png"], tags={"dataset": dataset.fingerprint},
    )  # fmt: skip
    return compressed

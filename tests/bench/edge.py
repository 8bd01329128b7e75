"""The edge model against the exported fp32 cloud model, and the published recipe beside it.

    make bench-edge DATA=train.csv TEST=test.csv TEXT=text LABEL=category

Trains a cloud model with the defaults, and for it an edge model per seed, then measures all on the
test split, in one run and interleaved. The published recipe is dynamic int8 of the whole fp32 cloud
model, every message padded to 256 tokens; it gets a temperature of its own, fitted like ours. Every
figure is on `test`, on which nothing was fitted; times are of one message at a time on one thread.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.bundles import ModelBundle, load_bundle
from cluster.connect import connected
from cluster.settings import load_settings
from serve_app.model.classifier import OnnxClassifier, OnnxScorer, softmax
from serve_app.model.reliability import reliability
from tests.bench.rows import Row, publish, row
from train_jobs.calibrate import fit_temperature
from train_jobs.data import Dataset, build
from train_jobs.pipeline import PipelineConfig, cloud_of, configure, edge_of
from train_jobs.training.on_ray import Compute

ROOT: Final = Path(__file__).parents[2]
PADDED: Final = 256
_TOKENS: Final = 24
_TIMED: Final = 300
_TURN: Final = 25
_WARM: Final = 5
_COMPANY: Final = 32
_PUBLISHED: Final = 600  # rows
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """What one seed gave: for each figure, ours and the published recipe's (or fp32 cloud's)."""

    ours: Mapping[str, float]
    reference: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """One seed's edge bundle and the cloud bundle that it was made for."""

    edge: ModelBundle
    cloud: ModelBundle


class Published:
    """Dynamic int8 of the whole cloud model, messages padded to 256."""

    def __init__(self, cloud: ModelBundle, folder: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "published.onnx"
        quantize_dynamic(cloud.model_path, self.file)
        self.scorer = OnnxScorer.open(self.file, cloud.tokenizer_path, PADDED)

        self._cloud = cloud
        self._figures: dict[str, float] = {}

    def figures(
        self, dataset: Dataset, labels: NDArray[np.int64], fp32: Logits
    ) -> dict[str, float]:
        """On the first rows of `test`, because a padded message takes 20 times as long. Once."""
        if self._figures:
            return self._figures
        texts, labels, fp32 = (
            dataset.texts("test")[:_PUBLISHED],
            labels[:_PUBLISHED],
            fp32[:_PUBLISHED],
        )
        alone, together = self.logits(texts), self.logits(texts, _COMPANY)
        fitted, numbers = dataset.labelled("calibration")
        heat = fit_temperature(self.logits(fitted[:_PUBLISHED]), np.array(numbers[:_PUBLISHED]))
        accuracy = float((alone.argmax(-1) == labels).mean())
        size = self.file.stat().st_size + self._cloud.tokenizer_path.stat().st_size
        started = replica(
            _THEIRS.format(folder=str(_folder(self, self._cloud)), file=self.file.name)
        )
        self._figures = {
            "smaller": 1 - size / self._cloud.size_bytes,
            "accuracy": accuracy,
            "kept": accuracy / float((fp32.argmax(-1) == labels).mean()),
            "changed": float((alone != together).any(-1).sum()),
            "changed_labels": float((alone.argmax(-1) != together.argmax(-1)).sum()),
            "error": error_of(alone, labels, heat),
            "rows": float(len(texts)),
            "start_s": started["s"],
            "memory_mb": started["mb"],
            "torch": float(started["torch"]),
        }
        return self._figures

    def logits(self, texts: Sequence[str], together: int = 1) -> Logits:
        ids = [item + [0] * (PADDED - len(item)) for item in self.scorer.tokenizer.encode(texts)]
        return np.concatenate(
            [self._run(ids[i : i + together]) for i in range(0, len(ids), together)]
        )

    def _run(self, ids: list[list[int]]) -> Logits:
        feed = self.scorer.feed(ids)
        feed["attention_mask"] = (feed["input_ids"] != 0).astype(np.int64)
        return np.asarray(self.scorer.session.run(None, feed)[0], np.float32)


def train(config: PipelineConfig, seeds: int, home: Path) -> tuple[Dataset, list[Pair]]:
    """One cloud model with the defaults, and for it an edge model per seed; kept for a rerun."""
    settings = load_settings(home)
    dataset = build(config.data, settings)
    with connected(settings):
        if not (home / "cloud-bundle").is_dir():
            for left in ("dapt", "cloud", "cloud-onnx"):
                shutil.rmtree(home / left, ignore_errors=True)
            cloud_of(config, dataset, home, settings, {})
        cloud = load_bundle(home / "cloud-bundle")
        edges = []
        for seed in range(seeds):
            folder = home / f"seed-{seed}"
            bundle = folder / "edge-bundle"
            if not bundle.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                other = settings.model_copy(update={"seed": seed})
                edge_of(config, dataset, home / "cloud", folder, other, {})
            edges.append(load_bundle(bundle))
    return dataset, [Pair(edge, cloud) for edge in edges]


def about_24_tokens(texts: Sequence[str], scorer: OnnxScorer) -> list[str]:
    """Test messages, joined with the next until they have the length; real words, fixed length."""
    made, parts = [], list[str]()
    for text in texts:
        parts.append(text)
        length = len(scorer.tokenizer.encode([" ".join(parts)])[0])
        if length >= _TOKENS - 2:
            if length <= _TOKENS + 2:
                made.append(" ".join(parts))
            parts = []
    return made[:_TIMED]


def p50s_ms(runs: Sequence[Any], texts: Sequence[str], turn: int = _TURN) -> list[float]:
    """Median time of one message for each callable, in turns of so many messages each.

    A replica serves one model, whose weights stay in its CPU's cache; a model of 90 MB that ran
    before every single message would put them out of it. The first of each turn warm up.
    """
    times: list[list[float]] = [[] for _ in runs]
    warm = min(_WARM, turn - 1)
    for first in range(0, len(texts), turn):
        for kept, answer in zip(times, runs, strict=True):
            for number, text in enumerate(texts[first : first + turn]):
                start = time.perf_counter()
                answer([text])
                if number >= warm:
                    kept.append((time.perf_counter() - start) * 1e3)
    return [float(np.median(kept)) for kept in times]


def error_of(logits: Logits, labels: NDArray[np.int64], temperature: float) -> float:
    probabilities = softmax(logits, temperature)
    return reliability(probabilities.max(-1), probabilities.argmax(-1) == labels).error


def changed_by_company(model: OnnxClassifier, texts: Sequence[str]) -> int:
    """Predictions that differ in any bit between alone, in a list, and beside the longest text."""
    alone = [model.predict([text])[0] for text in texts]
    longest = max(texts, key=len)
    beside = [model.predict([longest, text])[1] for text in texts]
    rows = zip(alone, model.predict(texts), beside, strict=True)
    return sum(not a == b == c for a, b, c in rows)


_REPLICA: Final = """
import json, resource, sys, time
start = time.perf_counter()
{body}
seconds = time.perf_counter() - start
pages = int(open("/proc/self/statm").read().split()[1])
print(json.dumps({{"s": seconds, "mb": pages * resource.getpagesize() / 1e6,
                  "torch": "torch" in sys.modules}}))
"""
_OURS: Final = """
from pathlib import Path
from serve_app.model.golden import TierModel
model = TierModel.load(Path({path!r}), {sha256!r}, 1)
model.predict(["Where is my card?"])
"""
_THEIRS: Final = """
from transformers import AutoTokenizer
from optimum.onnxruntime import ORTModelForSequenceClassification
model = ORTModelForSequenceClassification.from_pretrained({folder!r}, file_name={file!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
model(**tokenizer(["Where is my card?"], padding="max_length", max_length=256, return_tensors="pt"))
"""


def replica(body: str) -> dict[str, Any]:
    """A process of its own: seconds from its first import to its first answer, resident memory."""
    done = subprocess.run(
        [sys.executable, "-c", _REPLICA.format(body=body)],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(pair: Pair, published: Published, dataset: Dataset) -> Measured:
    """Every figure of one seed."""
    edge, cloud = pair.edge, pair.cloud
    texts, numbers = dataset.labelled("test")
    labels = np.array(numbers)
    small, large = OnnxClassifier.of(edge), OnnxClassifier.of(cloud)
    ours, fp32 = small.scorer.logits(texts), large.scorer.logits(texts)
    right = float((fp32.argmax(-1) == labels).mean())
    timed = about_24_tokens(texts, large.scorer)
    runs = [large.scorer.logits, small.scorer.logits, published.logits]
    cloud_ms, edge_ms, published_ms = p50s_ms(runs, timed)
    alternating = p50s_ms(runs[:2], timed, turn=1)
    mine = replica(_OURS.format(path=str(edge.path), sha256=edge.sha256))
    accuracy = float((ours.argmax(-1) == labels).mean())
    return Measured(
        ours={
            "smaller": 1 - edge.size_bytes / cloud.size_bytes,
            "accuracy": accuracy,
            "kept": accuracy / right,
            "latency": edge_ms / cloud_ms,
            "latency_alternating": alternating[1] / alternating[0],
            "p50_ms": edge_ms,
            "changed": changed_by_company(small, texts),
            "error": error_of(ours, labels, small.temperature),
            "start_s": mine["s"],
            "memory_mb": mine["mb"],
            "torch": float(mine["torch"]),
        },
        reference={
            **published.figures(dataset, labels, fp32),
            "latency": published_ms / cloud_ms,
            "p50_ms": published_ms,
            "cloud_accuracy": right,
            "cloud_p50_ms": cloud_ms,
            "timed": float(len(timed)),
        },
    )


def _folder(published: Published, cloud: ModelBundle) -> Path:
    """The published recipe's replica reads Hugging Face's layout: config and tokenizer too."""
    folder = published.file.parent
    for file in (cloud.path.parent / "cloud").iterdir():
        if file.suffix == ".json" or file.name == "vocab.txt":
            shutil.copyfile(file, folder / file.name)
    return folder


def table(name: str, seeds: Sequence[Measured]) -> Iterator[Row]:
    """The rows of the issue: medians over seeds."""

    def of(figure: str) -> tuple[list[float], list[float]]:
        return [s.ours[figure] for s in seeds], [s.reference[figure] for s in seeds]

    yield row(f"{name}: model + tokenizer smaller than fp32 cloud by", *of("smaller"), at_least=0.9)
    yield row(f"{name}: accuracy kept of fp32 cloud's", *of("kept"), at_least=0.991)
    yield row(f"{name}: p50 of {_TOKENS} tokens over fp32 cloud's", *of("latency"), at_most=1 / 6)
    alternating = [s.ours["latency_alternating"] for s in seeds]
    yield row(f"{name}: the same, its weights put out of the cache before each", alternating)
    yield row(f"{name}: answers changed by company", *of("changed"), at_most=0)
    yield row(f"{name}: calibration error, 15 bins", *of("error"), at_most=0.03)
    yield row(f"{name}: import to first answer, s", *of("start_s"), at_most=2)
    yield row(f"{name}: resident memory, MB", *of("memory_mb"), at_most=200)
    yield row(f"{name}: replicas with torch", *of("torch"), at_most=0)
    yield row(f"{name}: accuracy", *of("accuracy"))
    yield row(f"{name}: p50, ms", *of("p50_ms"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="any labelled file; none: sample messages")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--name", help="of the data in the table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=5000, help="of sample messages")
    parser.add_argument("--cpus-per-worker", type=int, help="for two runs side by side")
    parser.add_argument("--train-only", action="store_true", help="measure later, undisturbed")
    arguments = parser.parse_args()
    home = Path(".firstline").absolute()
    name = arguments.name or (arguments.data.parent.name if arguments.data else "samples")
    work = home / "bench" / f"edge-{name}"
    if arguments.data is None:
        from train_jobs.samples.generator import write_csv

        work.mkdir(parents=True, exist_ok=True)
        arguments.data = work / "samples.csv"
        write_csv(arguments.data, arguments.rows, seed=0)
    config = configure(
        data=arguments.data, text_column=arguments.text, label_column=arguments.label,
        test=arguments.test,
    )  # fmt: skip
    if arguments.cpus_per_worker:
        config = replace(config, compute=Compute(cpus_per_worker=arguments.cpus_per_worker))
    dataset, pairs = train(config, arguments.seeds, work)
    if arguments.train_only:
        return
    published = Published(pairs[0].cloud, work / "published")
    seeds = [measure(pair, published, dataset) for pair in pairs]
    notes = {"data": str(arguments.data), "seeds": [vars(seed) for seed in seeds]}
    rows = list(table(name, seeds))
    publish(f"edge-{name}", rows, notes, home)
    if not publish("edge", rows, notes, home):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""What adapting to the domain's language gives: cloud and edge, with and without it, by labels.

    make bench-dapt DATA=train.csv TEST=test.csv TEXT=text LABEL=category

The text of `train` is there in full in every arm, as it is where labels are what is scarce: DAPT
reads it, and the distillation takes the teacher's answers on it. The labels of `train` are cut to a
share, by content hash. Accuracy is of the fp32 models on `test`. The distillation is a short one,
the same in all arms: the arms are to be compared with each other, not with `make bench-edge`.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from transformers import AutoModelForMaskedLM

from cluster.bundles import TOKENIZER
from cluster.connect import connected
from cluster.files import read_json, write_json
from cluster.progress import stage
from cluster.settings import Settings, load_settings
from serve_app.model.tokenizer import TextTokenizer
from tests.bench.rows import Row, publish, row
from train_jobs import dapt, distill, finetune, recipe
from train_jobs.data import MANIFEST, DataConfig, Dataset, build, load_dataset
from train_jobs.distill import DistillConfig, logits_of
from train_jobs.training.candidates import FinetuneConfig
from train_jobs.training.encoders import load_classifier, max_tokens, resolve_base, save_tokenizer
from train_jobs.training.on_ray import Compute

ARMS: Final = ("with", "without")
SHARES: Final = (0.05, 0.2, 1.0)
SHORT: Final = DistillConfig(epochs=2, copies=0)


def with_labels(dataset: Dataset, share: float, folder: Path) -> Dataset:
    """The same dataset with a share of `train`'s rows, and its `dapt` text whole."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(dataset.path, folder)
    table = pq.read_table(folder / "train.parquet")
    kept = [int(key[16:24], 16) / 16**8 < share for key in table["key"].to_pylist()]
    pq.write_table(table.filter(kept), folder / "train.parquet")
    about = read_json(folder / MANIFEST)
    about["rows"] = {**about["rows"], "train": sum(kept)}
    about["fingerprint"] = f"{dataset.fingerprint}-{share:g}"
    write_json(folder / MANIFEST, {k: v for k, v in about.items() if k != "path"})
    return load_dataset(folder)


def accuracy_of(model: Path, dataset: Dataset) -> float:
    """Accuracy on `test` of a trained model, in fp32."""
    texts, labels = dataset.labelled("test")
    tokenizer = TextTokenizer.from_file(model / TOKENIZER, max_tokens(str(model)))
    loaded = load_classifier(str(model), dataset.labels)
    logits = logits_of(loaded, tokenizer.encode(texts))
    return float((logits.argmax(-1) == np.array(labels)).mean())


def encoders(dataset: Dataset, work: Path, settings: Settings, compute: Compute) -> dict[str, Path]:
    """The adapted encoder and the plain one."""
    plain, adapted = work / "plain", work / "dapt"
    if not adapted.is_dir():
        with stage("dapt") as report:
            forced = dapt.DaptConfig(epochs=2.0, probe=False)
            dapt.run(forced, dataset, adapted, settings=settings, compute=compute, report=report)
    if not plain.is_dir():
        source = resolve_base("minilm")
        AutoModelForMaskedLM.from_pretrained(source).save_pretrained(plain)
        save_tokenizer(source, plain)
    return {"with": adapted, "without": plain}


def one(
    name: str, part: Dataset, encoder: Path, share: float, work: Path, settings: Settings,
    compute: Compute,
) -> dict[str, float]:  # fmt: skip
    """Accuracies of the cloud model and its student."""
    how: dict[str, Any] = {"settings": settings, "compute": compute}
    with stage(name) as report:
        shutil.rmtree(work / "now", ignore_errors=True)
        config = FinetuneConfig()
        found = recipe.run(config, part, encoder, work / "now" / "recipe", report=report, **how)
        cloud = finetune.run(config, found, part, work / "now" / "cloud", report=report, **how)
        edge = distill.run(SHORT, part, cloud.path, work / "now" / "edge", report=report, **how)
        return {"cloud": accuracy_of(cloud.path, part), "edge": accuracy_of(edge.path, part)}


def table(found: Mapping[str, Mapping[str, float]], shares: Sequence[float]) -> Iterator[Row]:
    for share in shares:
        for side in ("cloud", "edge"):
            arms = [
                [made[side] for name, made in found.items() if name.startswith(f"{share:g} {arm} ")]
                for arm in ARMS
            ]
            seeds = len(arms[0])
            yield row(f"{share:.0%} of labels, {side} accuracy ({seeds} seeds)", arms[0], arms[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--cpus-per-worker", type=int, help="for two runs side by side")
    given = parser.parse_args()
    home = Path(".firstline").absolute()
    work = home / "bench" / f"dapt-{given.data.parent.name}"
    settings = load_settings(work)
    compute = Compute(cpus_per_worker=given.cpus_per_worker)
    config = DataConfig(
        data=given.data, text_column=given.text, label_column=given.label, test=given.test
    )
    dataset = build(config, settings)
    kept = work / "found.json"  # a run of an hour goes on where it was stopped
    found: dict[str, dict[str, float]] = read_json(kept) if kept.is_file() else {}
    with connected(settings):
        bases = encoders(dataset, work, settings, compute)
        for share in given.shares:
            part = with_labels(dataset, share, work / f"labels-{share:g}")
            for seed in range(given.seeds):
                seeded = settings.model_copy(update={"seed": seed})
                for arm in ARMS:
                    name = f"{share:g} {arm} {seed}"
                    if name not in found:
                        found[name] = one(name, part, bases[arm], share, work, seeded, compute)
                        write_json(kept, found)
    publish("dapt", list(table(found, given.shares)), {"found": found}, home)


if __name__ == "__main__":
    main()

"""Training throughput: real tokens per second, ours against padding to 128 and to 256.

    make bench-train DATA=train.csv TEXT=text LABEL=category

Each way fine-tunes the default encoder for a few steps on the same messages, in the same precision
and with the same optimizer, interleaved. Padding is not counted as tokens. Ours is what
train_jobs/finetune.py does: messages of like length together, padded to the longest of them, a last
layer that computes the position which is read, and word embeddings left as they are. Theirs is
Hugging Face's Trainer.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from cluster.settings import load_settings
from serve_app.model.tokenizer import TextTokenizer
from tests.bench.rows import publish, row
from train_jobs.data import DataConfig, build
from train_jobs.samples.generator import write_csv
from train_jobs.training.candidates import Candidate, label_loss, made_ready
from train_jobs.training.checkpoints import NoBoard, Stage
from train_jobs.training.encoders import resolve_base, save_tokenizer
from train_jobs.training.trainer import Fit, TokenRows, has_bf16, seed_everything, train

_BATCH: Final = {"ours": 64, "128": 32, "256": 32}  # the published batch is 32


def tokens_per_s(
    way: str, ids: Sequence[list[int]], labels: Sequence[int], names: Sequence[str], steps: int
) -> float:
    """Trains for `steps` steps from the same weights."""
    seed_everything(0)
    return (_ours if way == "ours" else _padded)(way, ids, labels, names, steps)


def _ours(
    way: str, ids: Sequence[list[int]], labels: Sequence[int], names: Sequence[str], steps: int
) -> float:
    candidate = Candidate(learning_rate=1e-4)
    model = made_ready(resolve_base("minilm"), names, candidate)
    fit = Fit(epochs=1, learning_rate=1e-4, batch_size=_BATCH[way])
    rows = TokenRows(ids, {"labels": np.array(labels)})
    few = rows.only(range(min(len(rows), steps * fit.batch_size)))
    start = time.perf_counter()
    loss = label_loss(model, candidate.smoothing)
    train(model, few, fit, loss, stage=Stage(NoBoard(), 1e9), seed=0,
          pad=model.config.pad_token_id)  # fmt: skip
    return sum(map(len, few.ids)) / (time.perf_counter() - start)


def _padded(
    way: str, ids: Sequence[list[int]], labels: Sequence[int], names: Sequence[str], steps: int
) -> float:
    source = resolve_base("minilm")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(names))
    padder = AutoTokenizer.from_pretrained(source)
    collator = DataCollatorWithPadding(padder, padding="max_length", max_length=int(way))
    seen: list[int] = []

    def counted(rows: list[dict[str, Any]]) -> Any:
        seen.append(sum(len(item["input_ids"]) for item in rows))
        return collator(rows)

    given = [
        {"input_ids": item, "attention_mask": [1] * len(item), "labels": label}
        for item, label in zip(ids, labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, max_steps=steps, per_device_train_batch_size=_BATCH[way], bf16=has_bf16(),
            use_cpu=not torch.cuda.is_available(), report_to=[], save_strategy="no",
            remove_unused_columns=False, optim="adamw_torch_fused", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=given, data_collator=counted)
        start = time.perf_counter()
        trainer.train()
        return sum(seen) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="any labelled file; none: sample messages")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    home = Path(".firstline").absolute()
    settings = load_settings(home / "bench" / "train")
    if given.data is None:
        given.data = settings.home / "samples.csv"
        settings.home.mkdir(parents=True, exist_ok=True)
        write_csv(given.data, 3000, seed=0)
    dataset = build(
        DataConfig(data=given.data, text_column=given.text, label_column=given.label), settings
    )
    save_tokenizer(resolve_base("minilm"), settings.home)
    texts, labels = dataset.labelled("train")
    ids = TextTokenizer.from_file(settings.home / "tokenizer.json").encode(texts)
    found: dict[str, list[float]] = {way: [] for way in _BATCH}
    for _ in range(given.repeats):
        for way, kept in found.items():
            kept.append(tokens_per_s(way, ids, labels, dataset.labels, given.steps))
    rows = [
        row(f"tokens/s against padding to {way}", found["ours"], found[way],
            at_least=3, judge_ratio=True)
        for way in ("128", "256")
    ]  # fmt: skip
    notes = {
        "data": str(given.data),
        "rows": len(ids),
        "tokens_per_message": sum(map(len, ids)) / len(ids),
        "tokens_per_s": found,
    }
    if not publish("train", rows, notes, home):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

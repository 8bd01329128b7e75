"""What `make bench-teacher` compares with: words alone, a plain recipe, and an earlier build."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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
    set_seed,
)

from cluster.bundles import TOKENIZER
from cluster.files import new_folder
from cluster.settings import PREFIX
from serve_app.model.tokenizer import TextTokenizer
from tests.bench import teacher_build
from train_jobs import words
from train_jobs.data import Dataset
from train_jobs.training.encoders import max_tokens, save_tokenizer

ROOT: Final = Path(__file__).parents[2]
_EPOCHS: Final = 3
_BATCH: Final = 32
_WARMUP_SHARE: Final = 0.1
_WEIGHT_DECAY: Final = 0.01


def words_alone(dataset: Dataset, seed: int) -> dict[str, float]:
    """TF-IDF of words and characters, and logistic regression on it."""
    texts, numbers = dataset.labelled("test")
    start = time.perf_counter()
    answers = words.answers(*dataset.labelled("train"), texts, seed=seed)
    spent = time.perf_counter() - start
    return {"accuracy": _share_of_equal(answers, numbers), "training_s": spent}


def plain(source: str, rate: float, dataset: Dataset, seed: int) -> dict[str, float]:
    """Fine-tunes the encoder as the textbook does, on all rows of `train`; fp32 throughout.

    The head is the one of the encoder's own class, the last weights are kept, and nothing is held
    out, because nothing is chosen.
    """
    set_seed(seed)
    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(source, Path(name))
        tokenizer = TextTokenizer.from_file(Path(name) / TOKENIZER, max_tokens(source))
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=len(dataset.labels)
            ),
            args=_arguments(rate, seed, name),
            train_dataset=_tokens(dataset, "train", tokenizer),
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(source)),
        )
        start = time.perf_counter()
        trainer.train()
        spent = time.perf_counter() - start
        logits = trainer.predict(_tokens(dataset, "test", tokenizer)).predictions
    answers = np.asarray(logits).argmax(-1).tolist()
    accuracy = _share_of_equal(answers, dataset.labelled("test")[1])
    return {"accuracy": accuracy, "training_s": spent}


def _arguments(rate: float, seed: int, scratch: str) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=_EPOCHS,
        learning_rate=rate,
        lr_scheduler_type="linear",
        warmup_ratio=_WARMUP_SHARE,
        weight_decay=_WEIGHT_DECAY,
        per_device_train_batch_size=_BATCH,
        per_device_eval_batch_size=128,
        optim="adamw_torch_fused",
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
        data_seed=seed,
        log_level="error",
    )


def _tokens(dataset: Dataset, split: str, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    texts, numbers = dataset.labelled(split)
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": number}
        for ids, number in zip(tokenizer.encode(texts), numbers, strict=True)
    ]


def _share_of_equal(answers: Any, numbers: list[int]) -> float:
    return float((np.asarray(answers) == np.asarray(numbers)).mean())


def tree_of(commit: str, folder: Path) -> Path:
    """The code of a commit, in a clone of its own, so that no branch of ours is touched."""
    tree = folder / commit
    if not tree.is_dir():
        with new_folder(tree) as scratch:
            for command in (
                ["clone", "--quiet", "--no-checkout", str(ROOT), str(scratch)],
                ["-C", str(scratch), "checkout", "--quiet", "--detach", commit],
            ):
                subprocess.run(["git", *command], check=True)
    return tree


def before(
    commit: str, how: Mapping[str, str | None], dataset: Dataset, seed: int, folder: Path
) -> dict[str, float]:
    """The whole pipeline of an earlier commit, on its own code, home and Ray.

    Args: how: see `teacher_build.config_of`.
    """
    tree = tree_of(commit, folder)
    out = folder / f"seed-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    given = {"how": dict(how), "seed": seed, "out": str(out),
             "fingerprint": dataset.fingerprint}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", Path(teacher_build.__file__).read_text(), json.dumps(given)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=tree,
        env=_environment(tree, folder / "home"),
    )  # fmt: skip
    shutil.rmtree(out, ignore_errors=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _environment(tree: Path, home: Path) -> dict[str, str]:
    """Ours without what would lead to other code: a cluster that is there, or other settings."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(PREFIX) and name != "RAY_ADDRESS"}  # fmt: skip
    return {**kept, "PYTHONPATH": str(tree), f"{PREFIX}HOME": str(home)}

"""Stage 5: the cloud classifier -> a small edge student (Ray Train).

The student takes layers of its teacher, evenly spaced from first to last, with the head (Sanh et
al. 2019, "DistilBERT"), the weightiest half of each layer's feed-forward neurons, and the pieces of
the vocabulary that the domain uses. It learns from the teacher's logits on the `dapt` text and on
varied copies of it (a transfer set that needs no label), and from the labels of `train`. What was
tried and what each gave: docs/edge-model.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - the field's own name for it
from transformers import AutoTokenizer

from cluster.bundles import TOKENIZER
from cluster.errors import ConfigError
from cluster.progress import Report, silent
from cluster.settings import Settings
from serve_app.text import TextTokenizer
from train_jobs.augment import varied
from train_jobs.data import Dataset, load_dataset
from train_jobs.encoders import (
    feed_forward_width,
    keep_layers,
    keep_neurons,
    layer_count,
    layers_of,
    load_classifier,
    max_tokens,
    neuron_weights,
    pool_mean,
    without_dropout,
)
from train_jobs.quantize import rounded
from train_jobs.training import (
    Batch,
    Compute,
    Fit,
    Loss,
    TokenRows,
    Trained,
    finish,
    fit_on_ray,
    forward,
    placed,
    predict,
    seed_everything,
    set_threads,
    train,
)
from train_jobs.vocabulary import cost, save, trim, trim_embedding

_NO_LABEL: Final = -100
_EPOCHS: Final = 12
_MOST_EPOCHS: Final = 40
_WEIGHED_MESSAGES: Final = 512  # that tell which neurons matter


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """`soft_share` weighs the teacher's logits against the labels.

    An epoch is as many messages as the transfer set has, before `copies` of each are added.
    `epochs` None: 12, or as many as `min_steps` take, 40 at most.
    """

    layers: int = 3
    feed_forward_share: float = 0.5  # of the teacher's neurons per layer
    vocabulary: int = 18_000  # pieces at the most
    embedding_bits: Literal[8, 4] = 4  # it is rounded before it is learned with, and then held
    copies: int = 2  # varied ones of each message
    epochs: float | None = None
    min_steps: int = 600
    learning_rate: float = 3e-4
    batch_size: int = 64
    temperature: float = 2.0
    soft_share: float = 0.7

    def fit(self, messages: int, workers: int = 1) -> Fit:
        """On so many messages, and their copies; its epochs are of both."""
        fit = Fit(epochs=1.0, learning_rate=self.learning_rate, batch_size=self.batch_size)
        enough = ceil(self.min_steps / fit.steps_of_epoch(messages, workers))
        epochs = self.epochs or max(_EPOCHS, min(enough, _MOST_EPOCHS))
        return replace(fit, epochs=epochs / (1 + self.copies))


def evenly_spaced(layers: int, of: int) -> list[int]:
    """Which of a teacher's layers a student takes: first and last included where it has two."""
    if not 1 <= layers <= of:
        raise ConfigError(f"A student of {layers} layers cannot be taken from a teacher of {of}.")
    if layers == 1:
        return [0]
    return [round(i * (of - 1) / (layers - 1)) for i in range(layers)]


def check_shape(config: DistillConfig, source: str) -> None:
    """Refuses a student that cannot be taken from this base, before any work is done.

    Raises:
        ConfigError: more layers than the base has, or no neuron left.
    """
    evenly_spaced(config.layers, layer_count(source))
    if not 0 < config.feed_forward_share <= 1:
        raise ConfigError(
            f"A student cannot keep {config.feed_forward_share:g} of its teacher's neurons; a "
            "share above 0, up to 1, is needed."
        )


def check_vocabulary(config: DistillConfig, source: str, dataset: Dataset) -> None:
    """Refuses a vocabulary that trims to nothing, before anything is trained.

    Raises:
        ConfigError: a tokenizer of another kind, or one that cannot read the data; too few pieces.
    """
    tokenizer = AutoTokenizer.from_pretrained(source).backend_tokenizer
    trim(tokenizer, dataset.texts("dapt"), config.vocabulary)


def loss_of(model: torch.nn.Module, distill: DistillConfig) -> Loss:
    """Hinton et al. 2015: KL to the teacher at a temperature, plus cross-entropy on the labels."""
    heat, soft_share = distill.temperature, distill.soft_share

    def loss(batch: Batch) -> torch.Tensor:
        logits = forward(model, batch).logits.float()
        teacher, labels = (batch[name].to(logits.device) for name in ("teacher", "labels"))
        soft = F.kl_div(
            F.log_softmax(logits / heat, -1), F.softmax(teacher / heat, -1), reduction="batchmean"
        )
        known = labels != _NO_LABEL
        hard = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0
        return soft_share * heat**2 * soft + (1 - soft_share) * hard

    return loss


def logits_of(model: Any, ids: Sequence[list[int]]) -> NDArray[np.float32]:
    """Logits (n, classes) of n token lists."""
    return predict(model, ids, model.config.pad_token_id, lambda output: output.logits)


def _transfer_set(dataset: Dataset) -> tuple[list[str], list[int]]:
    """Texts and labels: `train`, and what `dapt` has beyond it, unlabelled."""
    train = dataset.read("train")
    number: Mapping[str | None, int] = {label: i for i, label in enumerate(dataset.labels)}
    seen = {row.key for row in train}
    rows = train + [row for row in dataset.read("dapt") if row.key not in seen]
    return (
        [row.message.text for row in rows],
        [number.get(row.label, _NO_LABEL) for row in rows],
    )


def _student(source: str, labels: Sequence[str], distill: DistillConfig, ids: list[list[int]],
             teacher: Any) -> Any:  # fmt: skip
    """The teacher's layers and neurons that are kept, before its vocabulary is cut."""
    student = load_classifier(source, labels)
    kept = evenly_spaced(distill.layers, len(layers_of(student)))
    width = round(distill.feed_forward_share * feed_forward_width(source))
    step = max(1, len(ids) // _WEIGHED_MESSAGES)
    messages = [{"input_ids": torch.tensor([item]).to(teacher.device)} for item in ids[::step]]
    weights = neuron_weights(teacher, messages)
    keep_layers(student, kept)
    keep_neurons(student, [weights[layer] for layer in kept], width)
    pool_mean(student)  # in what is its last layer now
    without_dropout(student)
    return student


def _round_embeddings(student: Any, bits: Literal[8, 4]) -> None:
    """The layers learn with the embeddings as they will be shipped, so rounding costs nothing."""
    table = student.base_model.embeddings.word_embeddings
    table.weight.data = torch.from_numpy(rounded(table.weight.detach().numpy(), bits))
    table.weight.requires_grad = False


def loop(config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker."""
    set_threads()
    seed_everything(config["seed"])
    distill: DistillConfig = config["distill"]
    source = config["teacher"]
    dataset = load_dataset(Path(config["dataset"]))
    whole = TextTokenizer.from_file(Path(source) / TOKENIZER, max_tokens(source))
    texts, labels = _transfer_set(dataset)
    extra = varied(texts, distill.copies, config["seed"])
    read = whole.encode(texts + extra)
    teacher = load_classifier(source, dataset.labels)
    taught = logits_of(teacher, read)

    student = _student(source, dataset.labels, distill, read[: len(texts)], teacher)
    vocabulary = trim(whole.tokenizer, texts, distill.vocabulary)
    trim_embedding(student, vocabulary)
    _round_embeddings(student, distill.embedding_bits)
    scratch = Path.cwd() / "student"
    save(vocabulary, source, scratch)
    tokenizer = TextTokenizer.from_file(scratch / TOKENIZER, whole.max_tokens)
    columns = {"labels": np.array(labels + [_NO_LABEL] * len(extra)), "teacher": taught}
    rows = TokenRows(tokenizer.encode(texts + extra), columns)
    fit = distill.fit(len(texts), placed()[1])
    train(student, rows, fit, loss_of(student, distill), stage=config["stage"],
          seed=config["seed"], pad=student.config.pad_token_id)  # fmt: skip
    figures = {
        **_agreement(teacher, student, dataset.texts("tune"), whole, tokenizer),
        "transfer_rows": float(len(rows)),
        "vocabulary": float(len(vocabulary.kept)),
        "epochs": fit.epochs * (1 + distill.copies),
        **asdict(cost(whole.tokenizer, vocabulary, dataset.texts("calibration"))),
    }
    finish(config["stage"], student, str(scratch), figures)


def _agreement(
    teacher: Any, student: Any, texts: Sequence[str], whole: TextTokenizer, cut: TextTokenizer
) -> dict[str, float]:
    """On how many texts that neither learned from the student says what its teacher says."""
    theirs = logits_of(teacher, whole.encode(texts)).argmax(-1)
    ours = logits_of(student, cut.encode(texts)).argmax(-1)
    return {"teacher_agreement": float((ours == theirs).mean()), "judged_rows": float(len(texts))}


def run(
    config: DistillConfig,
    dataset: Dataset,
    teacher: Path,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report = silent,
) -> Trained:
    """Distils; `out` is a folder in Hugging Face's layout."""
    return fit_on_ray(
        loop, "distill", config, dataset, out, settings=settings, compute=compute, report=report,
        teacher=str(teacher)
    )  # fmt: skip

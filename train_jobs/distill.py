"""Stage 5: the cloud classifier -> a small edge student (Ray Train).

The student takes layers of its teacher, evenly spaced from first to last, with the head (Sanh et
al. 2019, "DistilBERT"), the weightiest half of each layer's feed-forward neurons, and the pieces of
the vocabulary that the domain uses. It learns from the teacher's logits alone, on the `dapt` text
and on varied copies of it, and from no label: noisy labels take it away from its teacher. What was
tried and what each gave: docs/edge-model.md.
"""

from collections.abc import Sequence
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
from serve_app.model.tokenizer import TextTokenizer
from train_jobs.data import Dataset, load_dataset
from train_jobs.student.augment import varied
from train_jobs.student.quantize import rounded
from train_jobs.student.vocabulary import cost, save, trim, trim_embedding
from train_jobs.training.dropout import without_dropout
from train_jobs.training.encoders import (
    feed_forward_width,
    keep_layers,
    keep_neurons,
    layer_count,
    layers_of,
    load_classifier,
    max_tokens,
    neuron_weights,
    pool_mean,
)
from train_jobs.training.on_ray import Compute, Trained, fit_on_ray
from train_jobs.training.trainer import (
    Batch,
    Fit,
    Loss,
    TokenRows,
    finish,
    forward,
    placed,
    predict,
    seed_everything,
    set_threads,
    train,
)

_EPOCHS: Final = 6
_MOST_EPOCHS: Final = 40
_WEIGHED_MESSAGES: Final = 512  # that tell which neurons matter


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """An epoch is as many messages as the transfer set has, before `copies` of each are added.

    `epochs` None: 6, or as many as `min_steps` take, 40 at most.
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


def teacher_loss(model: torch.nn.Module, temperature: float) -> Loss:
    """Hinton et al. 2015: Kullback-Leibler divergence from the teacher, both at a temperature."""

    def loss(batch: Batch) -> torch.Tensor:
        ours = F.log_softmax(forward(model, batch).logits.float() / temperature, -1)
        theirs = F.softmax(batch["teacher"].to(ours.device) / temperature, -1)
        return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean")

    return loss


def logits_of(model: Any, ids: Sequence[list[int]]) -> NDArray[np.float32]:
    """Logits (n, classes) of n token lists."""
    return predict(model, ids, model.config.pad_token_id, lambda output: output.logits)


def _transfer_set(dataset: Dataset) -> list[str]:
    """`train`, and what `dapt` has beyond it."""
    train = dataset.read("train")
    seen = {row.key for row in train}
    rows = train + [row for row in dataset.read("dapt") if row.key not in seen]
    return [row.message.text for row in rows]


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
    texts = _transfer_set(dataset)
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
    rows = TokenRows(tokenizer.encode(texts + extra), {"teacher": taught})
    fit = distill.fit(len(texts), placed()[1])
    loss = teacher_loss(student, distill.temperature)
    train(student, rows, fit, loss, stage=config["stage"], seed=config["seed"],
          pad=student.config.pad_token_id)  # fmt: skip
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

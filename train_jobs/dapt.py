"""Stage 2: the `dapt` text -> an encoder that knows the domain's language (Ray Train).

Masked-language-model pre-training of the base encoder (Gururangan et al. 2020, "Don't Stop
Pretraining"). A base without a language-model head gets one first, with the encoder frozen, so
that "perplexity before" is the encoder's and not a random head's. Perplexity is judged on the text
of `tune`, which is in no `dapt` split.
"""

from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the field's own name for it
from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling

from cluster.bundles import TOKENIZER
from cluster.progress import Report, silent
from cluster.settings import Settings
from serve_app.text import TextTokenizer
from train_jobs.data import Dataset, load_dataset
from train_jobs.encoders import max_tokens, resolve_base, save_tokenizer, vocabulary_logits
from train_jobs.training import (
    Compute,
    Fit,
    PlateauTrainer,
    TokenRows,
    Trained,
    arguments,
    finish,
    fit_on_ray,
    holdout,
    in_turn,
    seed_everything,
    set_threads,
)

_NOT_MASKED = -100


@dataclass(frozen=True, kw_only=True)
class DaptConfig:
    """The published share of masked tokens; a short schedule, because the corpus is small."""

    base: str = "minilm"
    epochs: float = 2.0
    head_epochs: float = 1.0
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    batch_size: int = 32
    masked_share: float = 0.15
    judged_rows: int = 500


class MaskedLm(torch.nn.Module):
    """A masked-language model that asks its head about the masked positions only.

    The head speaks 30,000 words and costs as much as the encoder. On every position it is half of
    a step; on the 15% that are masked, a tenth.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Labels (batch, tokens) are -100 where nothing was masked, as the collator makes them."""
        hidden = self.inner.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]
        masked = labels != _NOT_MASKED
        logits = vocabulary_logits(self.inner, hidden[masked]).float()
        # A batch of very short texts may have nothing masked: a loss of zero, not of NaN.
        loss = F.cross_entropy(logits, labels[masked], reduction="sum") / masked.sum().clamp(min=1)
        return {"loss": loss}


class _MlmTrainer(PlateauTrainer):
    """Judges on the same masks every time, so that two perplexities can be compared."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return dict(super().evaluate(*args, **kwargs))


def _freeze_encoder(model: Any, frozen: bool) -> None:
    # The word embeddings are tied to the head's output, so they train with the head.
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad = not frozen or "word_embeddings" in name


def loop(config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker."""
    set_threads()
    seed_everything(config["seed"])
    dapt: DaptConfig = config["dapt"]
    stage = config["stage"]
    source = resolve_base(dapt.base)
    dataset = load_dataset(Path(config["dataset"]))
    scratch = Path.cwd()
    save_tokenizer(source, scratch)
    tokenizer = TextTokenizer.from_file(scratch / TOKENIZER, max_tokens(source))
    model, info = AutoModelForMaskedLM.from_pretrained(source, output_loading_info=True)
    # Tied weights are listed as missing too; a bias of its own is not, unless the head is new.
    new_head = any("bias" in name for name in info["missing_keys"])

    rows = dataset.read("dapt")
    ids = tokenizer.encode([row.message.text for row in rows])
    fitted, validated = holdout([row.key for row in rows])
    judged = TokenRows(tokenizer.encode(dataset.texts("tune")[: dapt.judged_rows]))
    collator = DataCollatorForLanguageModeling(
        AutoTokenizer.from_pretrained(source), mlm_probability=dapt.masked_share
    )

    def trainer(fit: Fit) -> _MlmTrainer:
        return _MlmTrainer(
            model=MaskedLm(model),
            args=arguments(fit, scratch, config["seed"], loss_only=True),
            train_dataset=TokenRows([ids[i] for i in fitted]),
            eval_dataset=TokenRows([ids[i] for i in validated]),
            data_collator=collator,
            fit=fit,
            stage=stage,
        )

    head_fit, full_fit = in_turn(
        len(fitted),
        config["workers"],
        Fit(
            epochs=dapt.head_epochs if new_head else 0.0,
            learning_rate=dapt.head_learning_rate,
            batch_size=dapt.batch_size,
        ),
        Fit(epochs=dapt.epochs, learning_rate=dapt.learning_rate, batch_size=dapt.batch_size),
    )
    if new_head:
        head = trainer(head_fit)
        _freeze_encoder(model, True)
        head.train_to_best()
        _freeze_encoder(model, False)
    full = trainer(full_fit)

    def judge() -> float:
        return full.evaluate(judged, metric_key_prefix="judged")["judged_loss"]

    before = stage.measured("judged_loss_before", judge)
    full.train_to_best()
    after = judge()
    figures = {
        "perplexity_before": exp(before),
        "perplexity_after": exp(after),
        "judged_rows": float(len(judged)),
        "new_head": float(new_head),
    }
    finish(full, model, source, figures)


def run(
    config: DaptConfig,
    dataset: Dataset,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report = silent,
) -> Trained:
    """Adapts the encoder; `out` is a folder in Hugging Face's layout."""
    return fit_on_ray(
        loop, "dapt", config, dataset, out, settings=settings, compute=compute, report=report,
    )  # fmt: skip

"""Stage 2: the `dapt` text -> an encoder that knows the domain, if that helps (Ray Train).

Masked-language-model pre-training of the base encoder (Gururangan et al. 2020, "Don't Stop
Pretraining"). It pays for a base that was only pre-trained so. A base that comes without a
language-model head was taught something else since, such as embedding sentences, and predicting
words pulls it away from that: it is left as it is, unless `--dapt-epochs` asks for more. Then it
gets a head first, with the encoder frozen, so that "perplexity before" is the encoder's and not a
random head's.

A linear probe decides: the adapted encoder is kept if logistic regression on its features is no
worse, on a tenth of `train` that is held out, than on the base's. Perplexity is judged on the text
of `tune`, which is in no `dapt` split.
"""

from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the field's own name for it
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
)

from cluster.bundles import TOKENIZER
from cluster.files import new_folder, write_json
from cluster.progress import Report, silent
from cluster.settings import Settings
from cluster.tracking import log_stage
from serve_app.model.tokenizer import TextTokenizer
from train_jobs.data import Dataset, load_dataset
from train_jobs.recipe import judged
from train_jobs.training import probe
from train_jobs.training.candidates import token_rows
from train_jobs.training.checkpoints import HISTORY
from train_jobs.training.encoders import (
    load_classifier,
    max_tokens,
    parts_of,
    resolve_base,
    save_tokenizer,
    vocabulary_logits,
)
from train_jobs.training.on_ray import Compute, Trained, fit_on_ray
from train_jobs.training.trainer import (
    Batch,
    Fit,
    Loss,
    TokenRows,
    device,
    features_of,
    finish,
    has_bf16,
    holdout,
    in_turn,
    parts,
    placed,
    seed_everything,
    set_threads,
    tokens_at_once,
    train,
)

_NOT_MASKED: Final = -100
_EPOCHS: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class DaptConfig:
    """The published share of masked tokens; a short schedule, because the corpus is small.

    `epochs` None: 2 for a base with a language-model head, none for another.
    """

    base: str = "minilm"
    epochs: float | None = None
    head_epochs: float = 1.0
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    batch_size: int = 32
    masked_share: float = 0.15
    judged_rows: int = 500
    probe: bool = True  # decides; False keeps what was adapted


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


class Masking:
    """Masks tokens of a batch at random, and leaves their numbers as labels."""

    def __init__(self, source: str, share: float) -> None:
        tokenizer = AutoTokenizer.from_pretrained(source)
        self._special = torch.tensor(tokenizer.all_special_ids)
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)

    def __call__(self, batch: Batch) -> Batch:
        tokens = batch["input_ids"]
        special = torch.isin(tokens, self._special)
        masked, labels = self._collator.torch_mask_tokens(tokens.clone(), special)
        return {**batch, "input_ids": masked, "labels": labels}


def masked_loss(model: MaskedLm, masking: Masking) -> Loss:
    """Cross-entropy on masked positions."""

    def loss(batch: Batch) -> torch.Tensor:
        where = device()
        given = {name: value.to(where) for name, value in masking(batch).items()}
        with torch.autocast(where, torch.bfloat16, enabled=has_bf16()):
            return model(**given)["loss"]  # type: ignore[no-any-return]

    return loss


@torch.inference_mode()
def _judge(model: MaskedLm, rows: TokenRows, masking: Masking, pad: int) -> float:
    """The mean loss of rows, with the same masks every time, so that two can be compared."""
    model.eval()
    loss, lengths = masked_loss(model, masking), [len(item) for item in rows.ids]
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in parts(range(len(rows)), lengths, tokens_at_once()):
            total += float(loss(rows.batch(part, pad))) * len(part)
    return total / len(rows)


def _probed(source: str, dataset: Dataset) -> tuple[float, float]:
    """Accuracy and calibrated log-loss of a linear probe on the rows held out of `train`."""
    rows, keys = token_rows(dataset, source)
    model = load_classifier(source, dataset.labels)
    features, labels = features_of(model, rows.ids), rows.columns["labels"]
    fitted, held = holdout(keys)
    activation = parts_of(model, 1).pooled_activation
    made = probe.fit(features[fitted], labels[fitted], len(dataset.labels), activation)
    found = judged(made.logits(features[held]), np.asarray(labels[held]))
    return found["accuracy"], found["log_loss"]


def _freeze_encoder(model: Any, frozen: bool) -> None:
    for parameter in model.base_model.parameters():
        parameter.requires_grad = not frozen


def _masked_lm(source: str) -> tuple[Any, bool]:
    """The base with a language-model head, and whether that is a new one."""
    model, info = AutoModelForMaskedLM.from_pretrained(source, output_loading_info=True)
    # Tied weights are listed as missing too; a bias of its own is not, unless the head is new.
    return model, any("bias" in name for name in info["missing_keys"])


def loop(config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker."""
    set_threads()
    seed_everything(config["seed"])
    dapt: DaptConfig = config["dapt"]
    stage, seed = config["stage"], config["seed"]
    source = resolve_base(dapt.base)
    dataset = load_dataset(Path(config["dataset"]))
    scratch = Path.cwd() / "base"
    save_tokenizer(source, scratch)
    tokenizer = TextTokenizer.from_file(scratch / TOKENIZER, max_tokens(source))
    inner, new_head = _masked_lm(source)
    model, pad = MaskedLm(inner), int(inner.config.pad_token_id)
    masking = Masking(source, dapt.masked_share)
    rows = TokenRows(tokenizer.encode(dataset.texts("dapt")), {})
    judged_rows = TokenRows(tokenizer.encode(dataset.texts("tune")[: dapt.judged_rows]), {})
    head_fit, full_fit = in_turn(
        len(rows),
        placed()[1],
        Fit(
            epochs=dapt.head_epochs if new_head else 0.0,
            learning_rate=dapt.head_learning_rate,
            batch_size=dapt.batch_size,
        ),
        Fit(epochs=dapt.epochs or _EPOCHS, learning_rate=dapt.learning_rate,
            batch_size=dapt.batch_size),
    )  # fmt: skip
    common: dict[str, Any] = {"stage": stage, "seed": seed, "pad": pad}
    if new_head:
        _freeze_encoder(inner, True)
        train(model, rows, head_fit, masked_loss(model, masking), **common)
        _freeze_encoder(inner, False)

    before = stage.measured("loss", lambda: _judge(model, judged_rows, masking, pad))
    train(model, rows, full_fit, masked_loss(model, masking), **common)
    after = _judge(model, judged_rows, masking, pad)
    figures = {
        "perplexity_before": exp(before),
        "perplexity_after": exp(after),
        "judged_rows": float(len(judged_rows)),
        "new_head": float(new_head),
        "epochs": full_fit.epochs,
    }
    if placed()[0] == 0:
        inner.save_pretrained(scratch / "adapted")
        save_tokenizer(source, scratch / "adapted")
        adapted, base = _probed(str(scratch / "adapted"), dataset), _base_probe(scratch, source,
                                                                               dataset)  # fmt: skip
        kept = not dapt.probe or (adapted[0], -adapted[1]) >= (base[0], -base[1])
        figures |= {"probe_before": base[0], "probe_after": adapted[0], "adapted": float(kept)}
        if not kept:
            inner = AutoModel.from_pretrained(source)
    finish(stage, inner, source, figures)


def _base_probe(scratch: Path, source: str, dataset: Dataset) -> tuple[float, float]:
    """Of the base as it came; its tokenizer may be at a hub, without the file that ours reads."""
    AutoModel.from_pretrained(source).save_pretrained(scratch)
    return _probed(str(scratch), dataset)


def run(
    config: DaptConfig,
    dataset: Dataset,
    out: Path,
    *,
    settings: Settings,
    compute: Compute,
    report: Report = silent,
) -> Trained:
    """Adapts the encoder, or says that it does not; `out` is a folder in Hugging Face's layout."""
    source = resolve_base(config.base)
    if config.epochs is None and _masked_lm(source)[1]:
        return _as_it_is(config, source, dataset, out, settings)
    return fit_on_ray(
        loop, "dapt", config, dataset, out, settings=settings, compute=compute, report=report,
    )  # fmt: skip


def _as_it_is(
    config: DaptConfig, source: str, dataset: Dataset, out: Path, settings: Settings
) -> Trained:
    figures = {"adapted": 0.0, "epochs": 0.0}
    with new_folder(out) as folder:
        AutoModel.from_pretrained(source).save_pretrained(folder)
        save_tokenizer(source, folder)
        write_json(folder / HISTORY, {"figures": figures, "history": []})
    log_stage(settings, "dapt", params=asdict(config), metrics=figures,
              tags={"dataset": dataset.fingerprint})  # fmt: skip
    return Trained(out, figures, [])

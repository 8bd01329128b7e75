"""A tokenizer and its embedding, cut to what a domain uses.

Most bytes of a small student are its embedding: BERT's 30,522 pieces x 384 are 12 M weights, more
than six of its layers. Kept are the special tokens, what can spell any text, the pieces that the
domain's texts use, and the most frequent others up to a budget. A text all of whose pieces are kept
is read exactly as before; any other is spelled in smaller pieces, and none is lost:

- WordPiece reads a whole word as [UNK] for one unknown character. Here such a character becomes one
  stand-in piece, with the row of [UNK], and leaves the rest of the word readable.
- Byte-level BPE can spell everything with its 256 byte symbols.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cluster.bundles import TOKENIZER
from cluster.errors import ConfigError

STAND_IN: Final = "\ufffd"  # BERT's normaliser drops it from texts, so it stands for nothing else
_MAX_UNKNOWN_SHARE: Final = 0.8  # of the pieces of texts; beyond it there is nothing to choose from
_ENCODED_AT_ONCE: Final = 1024
_UNUSED: Final = re.compile(r"\[unused\d+\]")  # BERT's places for pieces of one's own
# BERT's normaliser removes accents and U+FFFD, so a text of nothing but marks would become empty.
_LONE: Final = r"\A\s*[\p{M}\x{FFFD}][\p{M}\x{FFFD}\s]*\z"


@dataclass(frozen=True)
class Vocabulary:
    """A trimmed tokenizer, and where its embedding comes from.

    `kept[new id]` is the old id whose row a piece takes. Old ids ascend, so special tokens keep
    their order; pieces that the old vocabulary lacked come last and share the row of another.
    """

    kept: tuple[int, ...]
    tokenizer: Tokenizer

    def new_id(self, old: int) -> int | None:
        """The new id of an old one; None if it was not kept."""
        return self.kept.index(old) if old in self.kept else None


@dataclass(frozen=True, kw_only=True)
class TrimCost:
    """What trimming does to texts that it was not fitted on.

    Unknown are [UNK] and the stand-in: the share is of pieces, `all_unknown` counts messages.
    """

    messages: int
    tokens_per_message_before: float
    tokens_per_message_after: float
    retokenised_share: float
    unknown_share_before: float
    unknown_share_after: float
    all_unknown_before: int
    all_unknown_after: int


@dataclass(frozen=True)
class _Plan:
    """What one kind of tokenizer needs to be cut.

    `rows` maps every piece to the old id of its row, in the order of new ids; `small` can spell any
    text; `frequent` has the most frequent pieces first; `parents` says what a piece is merged from.
    """

    data: dict[str, Any]
    rows: dict[str, int]
    small: set[str]
    frequent: list[str]
    parents: dict[str, set[str]]


def trim(tokenizer: Tokenizer, texts: Sequence[str], max_pieces: int) -> Vocabulary:
    """Chooses at most `max_pieces` pieces for prepared texts. The same inputs give the same bytes.

    Raises:
        ConfigError: neither WordPiece nor byte-level BPE, a budget too small to spell any text, or
            texts that the tokenizer cannot read.
    """
    plain = _plain(tokenizer)
    data = json.loads(plain.to_str())
    plan = _plan(data)
    _check_readable(plain, _unknown_id(data), texts)
    if max_pieces < len(plan.small):
        raise ConfigError(
            f"A vocabulary of {max_pieces:,} pieces is too small: the special tokens and single "
            f"characters alone are {len(plan.small):,}. Give more than that."
        )
    chosen = _choose(plan, _usage(plan, texts), max_pieces)
    pieces = [piece for piece in plan.rows if piece in chosen]
    return Vocabulary(tuple(plan.rows[piece] for piece in pieces), _build(plan.data, pieces))


def trim_embedding(model: Any, vocabulary: Vocabulary) -> None:
    """Cuts a model's word embedding to a vocabulary, in place, and tells the configuration.

    Raises:
        ConfigError: the model does not belong to the tokenizer, has a language-model head, or
            counts positions from a padding id that has moved (RoBERTa).
    """
    words, config = model.get_input_embeddings(), model.config
    if max(vocabulary.kept) >= words.num_embeddings:
        raise ConfigError(
            f"The model's embedding has {words.num_embeddings:,} rows, but the vocabulary was "
            f"trimmed from {max(vocabulary.kept) + 1:,} pieces or more. Trim the model's own."
        )
    if model.get_output_embeddings() is not None:
        raise ConfigError("A language-model head predicts old ids. Trim a classifier instead.")
    padding = None if words.padding_idx is None else vocabulary.new_id(words.padding_idx)
    if config.model_type == "roberta" and padding != words.padding_idx:
        raise ConfigError(
            f"RoBERTa counts positions from its padding id, which would go from "
            f"{words.padding_idx} to {padding}. Use a tokenizer whose special tokens come first."
        )
    rows = words.weight.detach()[torch.tensor(vocabulary.kept, device=words.weight.device)]
    words.weight = nn.Parameter(rows, requires_grad=words.weight.requires_grad)
    words.num_embeddings, words.padding_idx = len(vocabulary.kept), padding
    config.vocab_size = len(vocabulary.kept)
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, vocabulary.new_id(value))


def save(vocabulary: Vocabulary, source: str | Path, folder: Path) -> None:
    """Writes `tokenizer.json` and what `AutoTokenizer` needs; `source` has the untrimmed one."""
    base = AutoTokenizer.from_pretrained(str(source))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary.tokenizer,
        model_max_length=base.model_max_length,
        model_input_names=base.model_input_names,
        **base.special_tokens_map_extended,
    )
    fast.save_pretrained(str(folder))
    vocabulary.tokenizer.save(str(folder / TOKENIZER))


def cost(before: Tokenizer, after: Vocabulary, texts: Sequence[str]) -> TrimCost:
    """Reads held-out texts with both tokenizers and compares, piece by piece."""
    plain = _plain(before)
    unknown = _unknown_id(json.loads(plain.to_str()))
    old = list(_encode(plain, texts))
    new = [[after.kept[i] for i in ids] for ids in _encode(after.tokenizer, texts)]
    if not any(old):
        raise ConfigError(f"{len(texts)} texts hold no word. Give some that do.")
    tokens_before, tokens_after = sum(map(len, old)), sum(map(len, new))
    return TrimCost(
        messages=len(texts),
        tokens_per_message_before=tokens_before / len(texts),
        tokens_per_message_after=tokens_after / len(texts),
        retokenised_share=sum(a != b for a, b in zip(old, new, strict=True)) / len(texts),
        unknown_share_before=sum(ids.count(unknown) for ids in old) / tokens_before,
        unknown_share_after=sum(ids.count(unknown) for ids in new) / tokens_after,
        all_unknown_before=sum(set(ids) == {unknown} for ids in old),
        all_unknown_after=sum(set(ids) == {unknown} for ids in new),
    )


# ---- choosing ------------------------------------------------------------------------------------


def _choose(plan: _Plan, usage: Counter[str], max_pieces: int) -> set[str]:
    """The small pieces, then the most used, then the most frequent; each with its parents."""
    chosen = set(plan.small)
    used = sorted((piece for piece in plan.rows if usage[piece]), key=lambda p: -usage[p])
    for piece in (*used, *plan.frequent):
        missing = _with_parents(piece, plan.parents) - chosen
        if len(chosen) + len(missing) <= max_pieces:
            chosen |= missing
    return chosen


def _with_parents(piece: str, parents: dict[str, set[str]]) -> set[str]:
    """A piece and all that it can be merged from, down to single symbols."""
    found, todo = {piece}, [piece]
    while todo:
        new = parents.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def _usage(plan: _Plan, texts: Sequence[str]) -> Counter[str]:
    """How often texts use each piece, read with all pieces and nothing unknown."""
    pieces = list(plan.rows)
    counts = Counter(i for ids in _encode(_build(plan.data, pieces), texts) for i in ids)
    return Counter({pieces[i]: count for i, count in counts.items()})


def _check_readable(plain: Tokenizer, unknown: int, texts: Sequence[str]) -> None:
    counts = Counter(i for ids in _encode(plain, texts) for i in ids)
    pieces = counts.total()
    if not pieces:
        raise ConfigError(f"{len(texts)} texts hold no word to choose a vocabulary by.")
    if counts[unknown] > _MAX_UNKNOWN_SHARE * pieces:
        raise ConfigError(
            f"The tokenizer cannot read these texts: {counts[unknown]:,} of {pieces:,} words and "
            f"pieces in {len(texts):,} texts are unknown to it. Choose a base encoder that knows "
            "their language."
        )


# ---- the two kinds -------------------------------------------------------------------------------


def _plan(data: dict[str, Any]) -> _Plan:
    """Raises ConfigError for a kind of tokenizer that cannot be cut."""
    model, splitter = data["model"], (data["pre_tokenizer"] or {}).get("type")
    if model["type"] == "WordPiece" and splitter == "BertPreTokenizer":
        return _plan_word_piece(data)
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model["type"] == "BPE" and splitter == "ByteLevel" and not affixes:
        return _plan_byte_level(data)
    raise ConfigError(
        f"A tokenizer of kind {model['type']!r} with pre-tokenizer {splitter!r} cannot be trimmed; "
        "BERT's WordPiece and RoBERTa's byte-level BPE can. Keep its whole vocabulary, or choose "
        "another base encoder."
    )


def _plan_word_piece(data: dict[str, Any]) -> _Plan:
    """Every character of the vocabulary gets a piece for the start of a word and one for within."""
    model, rows, special = data["model"], _rows(data), _special(data)
    prefix, unknown = model["continuing_subword_prefix"], rows[model["unk_token"]]
    ordinary = [piece for piece in rows if piece not in special and not _UNUSED.fullmatch(piece)]
    alphabet = sorted({c for piece in ordinary for c in piece.removeprefix(prefix)})
    for character in alphabet:
        row = rows.get(character, rows.get(prefix + character, unknown))
        rows.setdefault(character, row)
        rows.setdefault(prefix + character, row)
    rows.setdefault(STAND_IN, unknown)
    small = special | set(alphabet) | {prefix + c for c in alphabet} | {STAND_IN}
    # BERT's vocabulary is in order of frequency.
    return _Plan(data | _readers(data, alphabet), rows, small, ordinary, {})


def _readers(data: dict[str, Any], alphabet: Sequence[str]) -> dict[str, Any]:
    """A normaliser and a pre-tokenizer that leave WordPiece nothing to call unknown."""
    normalizers = [
        _replace(_LONE, "\ufffc"),  # which survives it
        data["normalizer"],
        # The spaces set a stand-in apart from what it touched.
        _replace(rf"[^\s{_ranges(alphabet)}]+", f" {STAND_IN} "),
    ]
    longest = data["model"]["max_input_chars_per_word"]
    chunks = {"type": "Split", "pattern": {"Regex": f".{{{longest}}}"}, "behavior": "Isolated"}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [n for n in normalizers if n]},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [data["pre_tokenizer"], chunks | {"invert": False}],
        },
    }


def _replace(regex: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def _ranges(characters: Sequence[str]) -> str:
    """Sorted characters as the inside of a regular expression's class."""
    points = enumerate(map(ord, characters))
    runs = [[point for _, point in run] for _, run in groupby(points, lambda p: p[1] - p[0])]
    return "".join(rf"\x{{{run[0]:X}}}-\x{{{run[-1]:X}}}" for run in runs)


def _plan_byte_level(data: dict[str, Any]) -> _Plan:
    """A prefix of the merges is a smaller BPE, so their order is that of frequency."""
    rows, symbols = _rows(data), set(ByteLevel.alphabet())
    if lacking := len(symbols - rows.keys()):
        raise ConfigError(f"The tokenizer lacks {lacking} of the 256 byte symbols. Keep it whole.")
    parents: dict[str, set[str]] = {}
    for left, right in data["model"]["merges"]:
        parents.setdefault(left + right, set()).update((left, right))
    return _Plan(data, rows, symbols | _special(data), list(parents), parents)


# ---- a tokenizer's JSON --------------------------------------------------------------------------


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither pads nor truncates."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """The ids of each text, without the special tokens around it."""
    for start in range(0, len(texts), _ENCODED_AT_ONCE):
        some = list(texts[start : start + _ENCODED_AT_ONCE])
        for encoding in tokenizer.encode_batch_fast(some, add_special_tokens=False):
            yield encoding.ids


def _rows(data: dict[str, Any]) -> dict[str, int]:
    """Piece -> id of all pieces, the added tokens among them, in order of id."""
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    return dict(sorted((data["model"]["vocab"] | added).items(), key=lambda item: item[1]))


def _special(data: dict[str, Any]) -> set[str]:
    """The added tokens and [UNK], which some tokenizers have among the pieces alone."""
    added = {str(token["content"]) for token in data["added_tokens"]}
    return added | ({data["model"]["unk_token"]} & _rows(data).keys())


def _unknown_id(data: dict[str, Any]) -> int:
    """The id of [UNK], -1 where nothing is unknown."""
    return _rows(data).get(data["model"]["unk_token"], -1)


def _build(data: dict[str, Any], pieces: Iterable[str]) -> Tokenizer:
    """The tokenizer with these pieces alone, numbered in this order."""
    ids = {piece: number for number, piece in enumerate(pieces)}
    model = data["model"] | {"vocab": ids}
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= ids.keys()]
    added = [token | {"id": ids[token["content"]]} for token in data["added_tokens"]]
    post = _renumbered(data["post_processor"], ids)
    return Tokenizer.from_str(
        json.dumps(data | {"model": model, "added_tokens": added, "post_processor": post})
    )


def _renumbered(post: dict[str, Any] | None, ids: dict[str, int]) -> dict[str, Any] | None:
    """A post-processor that writes the new ids of its special tokens."""
    if post is None or post["type"] == "ByteLevel":
        return post
    if post["type"] == "Sequence":
        return post | {"processors": [_renumbered(part, ids) for part in post["processors"]]}
    if post["type"] == "TemplateProcessing":
        special = {
            name: token | {"ids": [ids[piece] for piece in token["tokens"]]}
            for name, token in post["special_tokens"].items()
        }
        return post | {"special_tokens": special}
    return post | {part: [post[part][0], ids[post[part][0]]] for part in ("sep", "cls")}

"""Random encoders of a few thousand weights, so that a test can go the whole way in a minute.

Each is a folder in Hugging Face's layout: a masked-language model and the tokenizer that goes with
it, whose vocabulary comes from the sample messages.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
)

from train_jobs.samples.generator import generate

_ROWS: Final = 1200
_PIECES: Final = 800
_WIDTH: Final = 32
_SHAPE: Final[dict[str, Any]] = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def make_tiny_bert(folder: Path) -> Path:
    tokenizer = _word_pieces(folder, BertTokenizerFast)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **_SHAPE)
    return _save(folder, tokenizer, lambda: BertForMaskedLM(config))


def make_tiny_distilbert(folder: Path) -> Path:
    """The other names of the same things, and no token types."""
    tokenizer = _word_pieces(folder, DistilBertTokenizerFast)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, dim=_WIDTH, n_layers=4, n_heads=2,
        hidden_dim=64,
    )  # fmt: skip
    return _save(folder, tokenizer, lambda: DistilBertForMaskedLM(config))


def make_tiny_roberta(folder: Path) -> Path:
    """Byte-level BPE, and positions that start at 2."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(_messages(), _PIECES, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast(
        vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt")
    )
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=130, type_vocab_size=1, **_SHAPE
    )
    return _save(folder, tokenizer, lambda: RobertaForMaskedLM(config))


def _messages() -> list[str]:
    return [sample.text for sample in generate(_ROWS, seed=1)]


def _word_pieces(folder: Path, kind: type[Any]) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(_messages(), vocab_size=_PIECES, show_progress=False)
    trained.save_model(str(folder))
    return kind(vocab_file=str(folder / "vocab.txt"), do_lower_case=True)


def _save(folder: Path, tokenizer: Any, make: Callable[[], Any]) -> Path:
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    make().save_pretrained(folder)
    return folder

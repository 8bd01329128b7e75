"""Prepared texts -> token ids: the only tokenising code, for training as for serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

MAX_TOKENS = 256  # of a message, special tokens included; MiniLM was trained up to 256


@dataclass(frozen=True)
class TextTokenizer:
    """A `tokenizer.json`: prepared texts -> token ids, truncated, never padded."""

    tokenizer: Tokenizer
    max_tokens: int

    @classmethod
    def from_file(cls, path: Path, max_tokens: int = MAX_TOKENS) -> "TextTokenizer":
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        return cls(tokenizer, max_tokens)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids per text, special tokens included, at most `max_tokens` long."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

"""More text to ask the teacher about: messages -> varied copies of them.

A small student learns its few thousand training messages by heart. Copies with words left out,
taken from other messages, moved, or with a part of another message beside them, are labelled by the
teacher alone (Jiao et al. 2020, "TinyBERT", augment for the same reason), so a copy may mean
something else than its source.
"""

import random
from collections.abc import Sequence
from typing import Final

_DROPPED: Final = 0.08  # share of words
_REPLACED: Final = 0.10
_TURNED: Final = 0.25  # share of messages
_JOINED: Final = 0.25


def varied(texts: Sequence[str], copies: int, seed: int) -> list[str]:
    """`copies` variations of every text, in order of copy and then of text; none is empty."""
    dice = random.Random(seed)  # noqa: S311 - no secret hangs on it
    words = [word for text in texts for word in text.split()]
    return [_vary(text, texts, words, dice) for _ in range(copies) for text in texts]


def _vary(text: str, texts: Sequence[str], words: Sequence[str], dice: random.Random) -> str:
    kept = [
        dice.choice(words) if dice.random() < _REPLACED else word
        for word in text.split()
        if dice.random() >= _DROPPED
    ]
    how = dice.random()
    if how < _TURNED and len(kept) > 1:
        at = dice.randrange(1, len(kept))
        kept = kept[at:] + kept[:at]
    elif how < _TURNED + _JOINED:
        other = dice.choice(texts).split()
        part = other[: dice.randint(1, max(1, len(other)))]
        kept = kept + part if dice.random() < 1 / 2 else part + kept
    return " ".join(kept) or text

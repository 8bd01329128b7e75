"""What a text alone says: its length, and the five published complexity factors, high if harder.

Source: "I Made My AI Model 84% Smaller and It Got Better, Not Worse" (Towards Data Science, 2025),
which names the factors: text length, sentence structure, uncertainty, emotional words and
escalation keywords. The article fixes no word lists; those below are ours.
"""

import re
from typing import Final

FACTORS: Final = ("length", "structure", "uncertainty", "emotion", "escalation")
TEXT_SIGNALS: Final = ("words", *FACTORS)

_WORD = re.compile(r"[\w']+")
_CLAUSE = re.compile(r"[.!?;:,]|\b(?:and|but|because|although|though|while|which|however|if)\b")
_UNCERTAIN = re.compile(
    r"\b(?:maybe|perhaps|possibly|might|unsure|not sure|confus\w+|unclear|i think|i guess|"
    r"don'?t know|wonder\w*|seems?|could be|somehow|mixed feelings)\b|\?\?+"
)
_EMOTION = re.compile(
    r"\b(?:angry|furious|hate|love|terribl\w+|horribl\w+|awful|amazing|disgust\w+|frustrat\w+|"
    r"annoy\w+|upset|thrilled|worst|best|ridiculous|unacceptable|disappoint\w+|delighted|"
    r"appalling|outrag\w+|fantastic|excellent|useless|pathetic|rude)\b|!!+"
)
_ESCALATE = re.compile(
    r"\b(?:lawyer|legal|sue|court|manager|supervisor|complain\w*|refund|cancel\w*|fraud\w*|"
    r"stolen|chargeback|lawsuit|regulator|ombudsman|escalat\w+|report you|police|attorney)\b"
)
# A message of this many words, clauses or hits counts as fully long, nested or loaded.
FULL_WORDS: Final = 60
_FULL_CLAUSES = 8
_FULL_HITS = 3


def text_signals(text: str) -> dict[str, float]:
    """A prepared text -> its numbers, in the order of `TEXT_SIGNALS`.

    The factors are in [0, 1]; `words` is `length` without the cap, so 1.0 is 60 words.
    """
    lower = text.lower()
    words = len(_WORD.findall(lower)) / FULL_WORDS
    return {
        "words": words,
        "length": min(1.0, words),
        "structure": _share(_CLAUSE, lower, _FULL_CLAUSES),
        "uncertainty": _share(_UNCERTAIN, lower, _FULL_HITS),
        "emotion": _share(_EMOTION, lower, _FULL_HITS),
        "escalation": _share(_ESCALATE, lower, _FULL_HITS),
    }


def _share(pattern: re.Pattern[str], lower: str, full: int) -> float:
    return min(1.0, len(pattern.findall(lower)) / full)

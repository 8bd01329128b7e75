"""The five published complexity factors of a message, each in [0, 1]; high means harder.

Source: "I Made My AI Model 84% Smaller and It Got Better, Not Worse" (Towards Data Science, 2025),
which names the factors: text length, sentence structure, uncertainty, emotional words and
escalation keywords. The article fixes no word lists; those below are ours.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

FACTORS = ("length", "structure", "uncertainty", "emotion", "escalation")

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
_FULL_WORDS = 60
_FULL_CLAUSES = 8
_FULL_HITS = 3


def factors(text: str) -> Mapping[str, float]:
    """The five factors of a prepared text, in the order of `FACTORS`."""
    lower = text.lower()

    def share(count: int, full: int) -> float:
        return min(1.0, count / full)

    return MappingProxyType(
        {
            "length": share(len(_WORD.findall(lower)), _FULL_WORDS),
            "structure": share(len(_CLAUSE.findall(lower)), _FULL_CLAUSES),
            "uncertainty": share(len(_UNCERTAIN.findall(lower)), _FULL_HITS),
            "emotion": share(len(_EMOTION.findall(lower)), _FULL_HITS),
            "escalation": share(len(_ESCALATE.findall(lower)), _FULL_HITS),
        }
    )

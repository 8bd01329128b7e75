"""What a rule may look at: a message and the edge's prediction -> numbers by name; `Evidence`.

Everything with a logarithm in it is a signal, made here once per message, in service and for a
table alike: a score that took logarithms of its own would get other last bits of a column than of
a number (NumPy's kernels are not the C library's).
"""

import hashlib
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serve_app.contracts import Message, Prediction
from serve_app.decide.factors import TEXT_SIGNALS, text_signals

# The edge's calibrated prediction, the text's own numbers, and a fair die.
SIGNALS: Final = (
    "confidence", "margin", "entropy", "log_odds", "logit_margin", "energy", "distance",
    "ngram_margin", *TEXT_SIGNALS, "random",
)  # fmt: skip
# A probability of 0 has no logarithm; a softmax in float64 still tells this from 1.
_LEAST: Final = 1e-12


def signals(message: Message, prediction: Prediction) -> dict[str, float]:
    """Everything a policy may look at, by name, in the order of `SIGNALS`."""
    return {
        "confidence": prediction.confidence,
        "margin": prediction.margin,
        "entropy": prediction.entropy,
        "log_odds": log_odds(prediction.confidence),
        "logit_margin": logit_margin(prediction.confidence, prediction.margin),
        "energy": prediction.energy,
        "distance": prediction.distance,
        "ngram_margin": prediction.ngram_margin,
        **text_signals(message.text),
        "random": random_signal(message.text),
    }


def log_odds(confidence: float) -> float:
    """log(p / (1 - p)): tells 0.999 from 0.9999, and is where a linear model is calibrated."""
    share = min(max(confidence, _LEAST), 1.0 - _LEAST)
    return math.log(share / (1.0 - share))


def logit_margin(confidence: float, margin: float) -> float:
    """The lead of the first logit over the second, both divided by the temperature."""
    second = max(confidence - margin, _LEAST)
    return math.log(max(confidence, _LEAST) / second)


def random_signal(text: str) -> float:
    """A uniform number in [0, 1) that is the same for the same text, on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a policy looks at, of one message (floats) or of a table (columns of length n).

    `label` is the edge's predicted class: its name for one message, and for a table a column of
    indices into `labels`.
    """

    signals: Mapping[str, Any]
    label: Any
    labels: tuple[str, ...] = ()

    @property
    def is_table(self) -> bool:
        return not isinstance(self.label, str)

    def per_class(self, numbers: Mapping[str, float]) -> Any:
        """The number of the predicted class, 0.0 where it has none."""
        if not self.is_table:
            return numbers.get(self.label, 0.0)
        return np.array([numbers.get(name, 0.0) for name in self.labels], np.float64)[self.label]

    def is_one_of(self, classes: Container[str]) -> Any:
        """Whether the predicted class is among these."""
        if not self.is_table:
            return self.label in classes
        return np.array([name in classes for name in self.labels], np.bool_)[self.label]

"""How far a confidence can be believed: reliability and expected calibration error. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Columns of one entry per bin that has rows; `error` is the expected calibration error."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]
    error: float


def reliability(
    confidences: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS
) -> Reliability:
    """Bins of equal width over [0, 1]: what was said against what was so (Guo et al., 2017)."""
    place = np.minimum((confidences * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    used = count > 0
    confidence = np.bincount(place, confidences, bins)[used] / count[used]
    accuracy = np.bincount(place, correct.astype(np.float64), bins)[used] / count[used]
    error = np.abs(confidence - accuracy) @ count[used] / max(1, confidences.size)
    return Reliability(confidence, accuracy, count[used], float(error))

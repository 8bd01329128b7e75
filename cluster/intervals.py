"""The 95% confidence interval of a share: the one that every figure of ours has."""

from statistics import NormalDist
from typing import Any, Final, TypeAlias, overload

import numpy as np
import numpy.typing as npt

Interval: TypeAlias = tuple[float, float]

Z95: Final = NormalDist().inv_cdf(0.975)  # two-sided


@overload
def wilson(hits: int, rows: int) -> Interval: ...
@overload
def wilson(
    hits: npt.NDArray[Any], rows: npt.NDArray[Any] | int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
def wilson(hits: Any, rows: Any) -> tuple[Any, Any]:
    """The score interval (low, high) of hits / rows, of numbers or columns; 0 to 1 of no rows.

    Wilson, JASA 22 (1927): holds about 95% even for few rows and shares near 0 or 1.
    """
    counted = np.maximum(1, rows)
    share, z2 = hits / counted, Z95 * Z95 / counted
    middle = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    # The bounds are clipped at the share itself, so that rounding never puts it outside.
    low = np.where(rows, np.clip(middle - half, 0.0, share), 0.0)
    high = np.where(rows, np.clip(middle + half, share, 1.0), 1.0)
    return (low, high) if low.ndim else (float(low), float(high))

"""Rows -> one figure each. Pure; None of nothing."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve_app.monitor.compare import Moments, ReleaseCounts, accuracy_of, share_of
from serve_app.monitor.ring_buffer import DIFFERENT, NO_LABEL, RIGHT, UNKNOWN, Rows
from serve_app.monitor.stats import (
    Agreement,
    AsCertified,
    Differing,
    Disagreement,
    FeedbackAccuracy,
    LatencyQuantiles,
    ReleaseStats,
    ShadowStats,
)

Floats = NDArray[np.float64]

_MAX_DIFFERING: Final = 10


def mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def latency(values_ms: Floats) -> LatencyQuantiles | None:
    if not len(values_ms):
        return None
    p50, p95, p99 = np.percentile(values_ms, (50, 95, 99)).tolist()
    return LatencyQuantiles(mean=float(np.mean(values_ms)), p50=p50, p95=p95, p99=p99)


def accuracy(verdicts: NDArray[Any]) -> FeedbackAccuracy:
    labelled = int(np.count_nonzero(verdicts != UNKNOWN))
    return accuracy_of(int(np.count_nonzero(verdicts == RIGHT)), labelled)


def disagreement(compared: NDArray[Any]) -> Disagreement:
    explored = int(np.count_nonzero(compared != UNKNOWN))
    differing = int(np.count_nonzero(compared == DIFFERENT))
    share, low, high = share_of(differing, explored)
    return Disagreement(explored=explored, differing=differing, share=share, low=low, high=high)


def as_certified(rows: Rows) -> AsCertified:
    return AsCertified(
        messages=len(rows),
        edge_share=mean(rows["kept"]),
        accuracy=accuracy(rows["verdict"][~rows["degraded"]]),
    )


def of_release(rows: Rows) -> ReleaseStats:
    return ReleaseStats(
        messages=len(rows),
        edge_share=mean(rows["edge"]),
        cost_per_message_usd=mean(rows["cost_usd"]),
        latency_ms=latency(rows["latency_ms"]),
        degraded_share=mean(rows["degraded"]),
        cached_share=mean(rows["cached"]),
        accuracy=accuracy(rows["verdict"]),
        disagreement=disagreement(rows["differs"]),
    )


def counts(name: str, rows: Rows) -> ReleaseCounts:
    fresh = rows[~rows["cached"]]  # the more a release answers, the more its cache holds
    seen = accuracy(rows["verdict"])
    return ReleaseCounts(
        release=name,
        messages=len(rows),
        kept=int(np.count_nonzero(rows["kept"])),
        degraded=int(np.count_nonzero(rows["degraded"])),
        labelled=seen.labelled,
        correct=seen.correct,
        cost_usd=_sample(fresh["cost_usd"]),
        latency_ms=_sample(fresh["latency_ms"]),
    )


def _sample(values: Floats) -> Moments:
    count = len(values)
    return Moments(
        count=count,
        mean=float(np.mean(values)) if count else 0.0,
        variance=float(np.var(values, ddof=1)) if count > 1 else 0.0,
    )


def of_shadow(rows: Rows, labels: Sequence[str]) -> ShadowStats:
    compared = rows[(rows["live"] != NO_LABEL) & ~rows["degraded"]]
    agreeing = int(np.count_nonzero(compared["live"] == compared["label"]))
    share, low, high = share_of(agreeing, len(compared))
    return ShadowStats(
        messages=len(rows),
        edge_share=mean(rows["edge"]),
        cost_per_message_usd=mean(rows["cost_usd"]),
        degraded_share=mean(rows["degraded"]),
        agreement=Agreement(
            compared=len(compared), agreeing=agreeing, share=share, low=low, high=high
        ),
        differing=_differing(compared, labels),
    )


def _differing(compared: Rows, labels: Sequence[str]) -> list[Differing]:
    rows = compared[compared["live"] != compared["label"]]
    pairs = Counter(zip(rows["live"].tolist(), rows["label"].tolist(), strict=True))
    found = [
        Differing(live=labels[live], shadow=labels[label], messages=count)
        for (live, label), count in pairs.items()
    ]
    found.sort(key=lambda item: (-item.messages, item.live, item.shadow))
    return found[:_MAX_DIFFERING]

"""Rows -> one figure each. Pure; None of nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.intervals import wilson
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
FRESH_S: Final = 45.0  # a cure has to show within a minute
_NEWEST: Final = 500
_AT_LEAST: Final = 100
_AT_LEAST_LATE: Final = 20
_STALE_S: Final = 600.0
_SENT_AT_LEAST: Final = 10
_RUN: Final = 100
_ONE_CLASS: Final = 0.95
_ONE_CLASS_RISE: Final = 0.05


# ---- of late ------------------------------------------------------------------------------------


class OneClass(NamedTuple):
    """A class that nearly all answers have by now, and what share of those before had it."""

    label: int
    share: float
    before: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recent:
    """What an alert is judged by: it holds of the `newest` rows and of the `fresh` ones.

    The first tell it from chance, and a good day before does not dilute them; the second end it as
    soon as it is over (the multiwindow alerts of Google's SRE workbook, chapter 5).
    """

    newest: Rows  # at most 500; none, if it is ten minutes since the last message
    fresh: Rows  # of the last 45 s, at least the newest 100
    late: Rows  # of the last 45 s; where there are none, the newest 20
    bad_outputs: int  # of the last 45 s
    one_class: OneClass | None

    @property
    def degraded_share(self) -> float:
        return min(mean(self.newest["degraded"]) or 0.0, mean(self.late["degraded"]) or 0.0)

    @property
    def unanswered_share(self) -> float:
        """Of the messages that the rule sent to the cloud, those that it did not answer.

        Where the edge is trusted with nearly all, few answers are degraded however dead the cloud.
        """
        newest, late = _sent(self.newest), _sent(self.late)
        if len(newest) < _SENT_AT_LEAST:
            return 0.0
        now = late if len(late) else _sent(self.fresh)
        return min(mean(newest["degraded"]) or 0.0, mean(now["degraded"]) or 0.0)


def _sent(rows: Rows) -> Rows:
    """What the rule wanted the cloud to answer."""
    sent: NDArray[np.bool_] = rows["degraded"] | ~(rows["edge"] | rows["kept"])
    return rows[sent]


def recent(rows: Rows, now_s: float, bad_outputs: int, alone_is_odd: bool) -> Recent:
    """Args: rows: by time; bad_outputs: without an answer; alone_is_odd: as of `one_class`."""
    stale = not len(rows) or rows["time_s"][-1] <= now_s - _STALE_S
    newest = rows[len(rows) if stale else -_NEWEST :]
    late = int(np.count_nonzero(rows["time_s"] > now_s - FRESH_S))
    bad = np.count_nonzero(~np.isfinite(rows["confidence"][len(rows) - late :]))
    fresh = rows[len(rows) if stale else -max(late, _AT_LEAST) :]
    return Recent(
        newest=newest,
        fresh=fresh,
        late=rows[len(rows) if stale else -(late or _AT_LEAST_LATE) :],
        bad_outputs=bad_outputs + int(bad),
        one_class=None if stale else one_class(rows, fresh, alone_is_odd),
    )


def one_class(rows: Rows, fresh: Rows, alone_is_odd: bool) -> OneClass | None:
    """The class of at least the 100 newest answers, if it was rarer before than chance allows.

    Answers from the cache tell nothing new. Either all answers since the last of another class are
    looked at, or as many as have it to 95%.

    Args:
        alone_is_odd: whether it is one too where there was no other class before; where nothing
            is known of the release, one class may be all there is.
    """
    labels = rows["label"][~rows["cached"]]
    if len(labels) < _RUN:
        return None
    label = int(np.argmax(np.bincount(labels[-_RUN:])))
    said = labels == label
    if not np.mean(fresh["label"] == label) >= _ONE_CLASS:
        return None
    shares = np.cumsum(said[::-1]) / np.arange(1, len(said) + 1)
    others = np.flatnonzero(~said)
    runs = {
        len(said) - 1 - int(others[-1]) if len(others) else len(said),
        int(np.flatnonzero(shares >= _ONE_CLASS)[-1]) + 1 if (shares >= _ONE_CLASS).any() else 0,
    }
    for run in runs:
        if run < _RUN:
            continue
        now, before = said[-run:], said[:-run]
        low = wilson(int(now.sum()), run)[0]
        most = wilson(int(before.sum()), len(before))[1] if len(before) else 1.0
        if low > most + _ONE_CLASS_RISE or (alone_is_odd and not len(before)):
            return OneClass(label, float(now.mean()), float(before.mean()) if len(before) else 0.0)
    return None


# ---- of the window ------------------------------------------------------------------------------


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

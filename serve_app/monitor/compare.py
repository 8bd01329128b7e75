"""Two releases on the same traffic -> differences with 95% intervals, and a sentence. Pure.

Shares: Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10), which holds
for few labels and for shares near 0 or 1. Means: Welch's interval, for unequal variances.

The intervals take messages to be independent. With sticky users that holds as far as a user's
messages are no more alike than anybody's: a few users who send most of the traffic make them too
narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from cluster.intervals import Z95, Interval, wilson
from serve_app.monitor.stats import Arm, Comparison, Difference, FeedbackAccuracy, Verdict

_POWER_80: Final = NormalDist().inv_cdf(0.80)
_MIN_FOR_MEANS: Final = 30
_SMALLEST_EFFECT: Final = 0.01  # what labels are counted for where less is seen
_UNKNOWN: Final = Difference(value=None, low=None, high=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """A quantity of many messages; `variance` is the unbiased one."""

    count: int
    mean: float
    variance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseCounts:
    """What a release did in the time that is compared."""

    release: str
    messages: int
    kept: int
    degraded: int
    labelled: int
    correct: int
    cost_usd: Moments
    latency_ms: Moments


def compare(
    champion: ReleaseCounts, challenger: ReleaseCounts, since_s: float, until_s: float
) -> Comparison:
    """What the challenger does otherwise than the champion, and whether that can be told yet."""
    accuracy = _shares(champion.correct, champion.labelled, challenger.correct, challenger.labelled)
    verdict = _verdict(accuracy)
    undecided = verdict is Verdict.UNDECIDED
    made = Comparison(
        since_s=since_s,
        until_s=until_s,
        champion=_arm(champion),
        challenger=_arm(challenger),
        accuracy=accuracy,
        edge_share=_of_messages(champion, challenger, champion.kept, challenger.kept),
        degraded_share=_of_messages(champion, challenger, champion.degraded, challenger.degraded),
        cost_usd=_means(champion.cost_usd, challenger.cost_usd),
        latency_ms=_means(champion.latency_ms, challenger.latency_ms),
        verdict=verdict,
        more_labels=_more_labels(champion, challenger, accuracy) if undecided else None,
        summary="",
    )
    return made.model_copy(update={"summary": _summary(made)})


def _arm(counts: ReleaseCounts) -> Arm:
    messages = counts.messages
    return Arm(
        release=counts.release,
        messages=messages,
        edge_share=counts.kept / messages if messages else None,
        degraded_share=counts.degraded / messages if messages else None,
        cost_per_message_usd=counts.cost_usd.mean if counts.cost_usd.count else None,
        latency_mean_ms=counts.latency_ms.mean if counts.latency_ms.count else None,
        accuracy=accuracy_of(counts.correct, counts.labelled),
    )


def accuracy_of(correct: int, labelled: int) -> FeedbackAccuracy:
    """With Wilson's interval."""
    share, low, high = share_of(correct, labelled)
    return FeedbackAccuracy(labelled=labelled, correct=correct, share=share, low=low, high=high)


def share_of(hits: int, total: int) -> tuple[float | None, float | None, float | None]:
    """The share and Wilson's interval; None of nothing."""
    return (hits / total, *wilson(hits, total)) if total else (None, None, None)


# ---- intervals ----------------------------------------------------------------------------------


def newcombe(hits: int, total: int, other_hits: int, other_total: int) -> Interval:
    """The 95% interval of hits / total - other_hits / other_total."""
    share, other = hits / total, other_hits / other_total
    (low, high), (other_low, other_high) = wilson(hits, total), wilson(other_hits, other_total)
    down = math.hypot(share - low, other_high - other)
    up = math.hypot(high - share, other - other_low)
    return share - other - down, share - other + up


def welch(sample: Moments, other: Moments) -> Interval:
    """The 95% interval of sample.mean - other.mean; two messages of each are needed."""
    parts = [one.variance / one.count for one in (sample, other)]
    error2 = sum(parts)
    if not error2:
        return sample.mean - other.mean, sample.mean - other.mean
    freedom = error2**2 / (parts[0] ** 2 / (sample.count - 1) + parts[1] ** 2 / (other.count - 1))
    half = t_quantile(freedom) * math.sqrt(error2)
    return sample.mean - other.mean - half, sample.mean - other.mean + half


def t_quantile(freedom: float) -> float:
    """Student's t at 0.975, by its expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5).

    Right to 0.1% from 8 degrees of freedom on. Serving has no scipy.
    """
    z, z3, z5, z7 = (Z95**power for power in (1, 3, 5, 7))
    terms = (
        (z3 + z) / 4,
        (5 * z5 + 16 * z3 + 3 * z) / 96,
        (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _shares(hits: int, total: int, other_hits: int, other_total: int) -> Difference:
    """The second share less the first."""
    if not total or not other_total:
        return _UNKNOWN
    low, high = newcombe(other_hits, other_total, hits, total)
    return Difference(value=other_hits / other_total - hits / total, low=low, high=high)


def _of_messages(
    champion: ReleaseCounts, challenger: ReleaseCounts, hits: int, other_hits: int
) -> Difference:
    return _shares(hits, champion.messages, other_hits, challenger.messages)


def _means(first: Moments, second: Moments) -> Difference:
    """The second mean less the first; of 30 messages each, for a mean to be near normal."""
    if min(first.count, second.count) < _MIN_FOR_MEANS:
        return _UNKNOWN
    low, high = welch(second, first)
    return Difference(value=second.mean - first.mean, low=low, high=high)


# ---- in words -----------------------------------------------------------------------------------


def _verdict(accuracy: Difference) -> Verdict:
    if not accuracy.stands_out or accuracy.value is None:
        return Verdict.UNDECIDED
    return Verdict.BETTER if accuracy.value > 0 else Verdict.WORSE


def _effect(accuracy: Difference) -> float:
    """The difference that labels are counted for: the one seen, if it is a point or more."""
    return max(_SMALLEST_EFFECT, abs(accuracy.value or 0.0))


def _more_labels(champion: ReleaseCounts, challenger: ReleaseCounts, accuracy: Difference) -> int:
    """Labels that are missing until 80% of such comparisons would tell.

    The usual size for two proportions, the shares taken a little towards one half, so that a
    release that was never wrong yet does not count as one that never is.
    """
    arms = (champion, challenger)
    shares = [(arm.correct + 1) / (arm.labelled + 2) for arm in arms]
    spread = sum(share * (1 - share) for share in shares)
    each = math.ceil((Z95 + _POWER_80) ** 2 * spread / _effect(accuracy) ** 2)
    return max(1, sum(max(0, each - arm.labelled) for arm in arms))


def _summary(made: Comparison) -> str:
    return " ".join([_on_accuracy(made), *_on_the_rest(made)])


def _on_accuracy(made: Comparison) -> str:
    names = made.challenger.release, made.champion.release
    found = made.accuracy
    if made.verdict is Verdict.UNDECIDED:
        labels = made.challenger.accuracy.labelled, made.champion.accuracy.labelled
        return (
            f"Whether {names[0]} is right more often than {names[1]} cannot be told from "
            f"{labels[0]} and {labels[1]} labels{_between(found)}: about {made.more_labels} more "
            f"would show a difference of {100 * _effect(found):.1f} points."
        )
    word = "more" if made.verdict is Verdict.BETTER else "less"
    assert found.value is not None
    return (
        f"{names[0]} is right {word} often than {names[1]}, by {100 * abs(found.value):.1f} "
        f"points{_between(found)}."
    )


def _between(found: Difference) -> str:
    if found.low is None or found.high is None:
        return ""
    return f" (95%: {100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _on_the_rest(made: Comparison) -> Sequence[str]:
    """What else stands out."""
    said = (
        (made.cost_usd, "It costs ${:.5f} {} per message.", 1.0, ("more", "less")),
        (made.latency_ms, "It takes {:.1f} ms {} on average.", 1.0, ("more", "less")),
        (made.edge_share, "Its rule keeps {:.1f} points {} at the edge.", 100.0, ("more", "less")),
        (made.degraded_share, "{:.1f} points {} of its answers are degraded.", 100.0,
         ("more", "less")),
    )  # fmt: skip
    return [
        text.format(unit * abs(found.value), words[found.value < 0])
        for found, text, unit, words in said
        if found.stands_out and found.value is not None
    ]

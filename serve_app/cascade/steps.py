"""The steps of the cascade: all that is done with messages between the calls to the two tiers.

    Work ─> edge ─> settle_edge ─> decide_all ─> admit ─> texts_for_cloud ─> cloud ─> settle_cloud

The online path (answerer.py) awaits its tiers, and the offline one (offline.py) calls its models.
Whatever decides, stays, is pinned or escalates is here, once for both. A step changes a list of
Work in place, and waits for nothing.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from serve_app.cascade.escalation import EscalationLimit
from serve_app.cascade.work import Work
from serve_app.contracts import Outcome, Prediction, Route, RouteReason
from serve_app.decide.policy import RouterPolicy

log = logging.getLogger(__name__)


def settle_edge(
    works: Sequence[Work], outcomes: Sequence[Outcome | None], latency_ms: float
) -> None:
    """Takes in what the edge said of each."""
    for work, answer in zip(works, _usable(outcomes, Route.EDGE), strict=True):
        work.edge = answer
        work.settle(answer, latency_ms)


def decide_all(works: Sequence[Work], policy: RouterPolicy) -> None:
    """Where the rule sends each."""
    for work in works:
        work.decide(policy)


def admit(
    works: Sequence[Work], seen: int, limit: EscalationLimit, latency_ms: float
) -> list[Work]:
    """Those that are to ask the cloud, and may; the others keep the edge's answer.

    A message that the edge failed on has no other answer, so no limit holds for it.

    Args:
        seen: messages of the request, whatever became of them.
    """
    wanted = [work for work in works if work.route is Route.CLOUD]
    must = [work for work in wanted if work.edge is None]
    may = [work for work in wanted if work.edge is not None]
    count, reason = limit.admit(seen, len(must), len(may))
    for work in may[count:]:
        work.stay(reason, latency_ms)
    return must + may[:count]


def texts_for_cloud(works: Sequence[Work]) -> list[str]:
    """The only list that the cloud is ever asked about. The rule pins; this is the last check."""
    if any(work.message.pinned for work in works):
        raise AssertionError("a pinned message was about to leave the edge")
    return [work.message.text for work in works]


def settle_cloud(
    works: Sequence[Work], outcomes: Sequence[Outcome | None], latency_ms: float
) -> None:
    """Takes in what the cloud said of each; where it failed, the edge's answer stands in."""
    for work, answer in zip(works, _usable(outcomes, Route.CLOUD), strict=True):
        if answer is not None:
            work.settle(answer, latency_ms)
        elif work.edge is not None:
            work.stay(RouteReason.CLOUD_FAILED, latency_ms)


def _usable(outcomes: Sequence[Outcome | None], tier: Route) -> list[Prediction | None]:
    """Failures become None, after they are logged, once per kind."""
    kinds = Counter(type(found).__name__ for found in outcomes if isinstance(found, Exception))
    for kind, count in kinds.items():
        # The kind alone: an error's text may quote what a customer wrote.
        log.warning("The %s failed on %d messages: %s.", tier, count, kind)
    return [outcome if isinstance(outcome, Prediction) else None for outcome in outcomes]

"""A certified policy -> the same with a risk certified of each predicted class. Pure.

Thresholds of a class are margins beyond the policy's own: a class that is answered wrongly more
often than others needs more trust. docs/certificates.md, e.
"""

from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serve_app.decide.policy import RouterPolicy
from tune.certificate import bounds
from tune.certificate.bounds import ClassBound, ClassBounds, allowed_failures, level
from tune.certificate.certify import fixed_sequence
from tune.certificate.counts import counts
from tune.objective import Shape
from tune.replay import Floats, Table

# So much more than the margin, of the numbers that are added up in a comparison, that rounding can
# only send a row at the very threshold away.
_ROUND_UP: Final = 1e-9


class PerClass(BaseModel):
    """What each predicted class needs beyond the threshold, so that its own risk is certified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margins: dict[str, float]
    escalated: tuple[str, ...] = Field(description="classes that go to the cloud")
    bounds: ClassBounds

    def applied(self, policy: RouterPolicy) -> RouterPolicy:
        """The policy with these margins, and these classes escalated."""
        always = sorted({*policy.rules.always_escalate, *self.escalated})
        rules = policy.rules.model_copy(update={"always_escalate": tuple(always)})
        return policy.model_copy(update={"class_margins": self.margins, "rules": rules})


def per_class(
    policy: RouterPolicy, thresholds: Floats, table: Table, risk: float, confidence: float,
    strict: bool,
) -> PerClass:  # fmt: skip
    """A fixed sequence of each class with enough rows, at level (1 - confidence) / classes.

    No class is tested beyond the policy's own threshold, so the result keeps a part of what the
    policy keeps, and a promise on the risk of all messages stays true. All classes' statements hold
    at once at `confidence` (Bonferroni), given how many rows each has.

    Args:
        thresholds: falling, fixed without a look at `table`; those above the policy's are tested.
        strict: classes of which nothing can be said go to the cloud.
    """
    everyone = bounds.class_counts(
        table.edge_label, np.ones(table.rows, np.bool_), table.differs, table.labels
    )
    tested, needed = bounds.testable(everyone, risk, level(confidence))
    at = level(confidence) / max(1, len(tested))
    above = np.append(thresholds[thresholds > policy.threshold], policy.threshold)
    found = {name: _one_class(policy, name, above, table, risk, at) for name in tested}
    few = tuple(name for name in table.labels if name not in found)
    failing = {name for name, (_, bound) in found.items() if not bound.certified}
    away = (failing | set(few) if strict else failing) - set(policy.rules.never_escalate)
    margins = {
        name: _margin(policy, name, start)
        for name, (start, bound) in found.items()
        if bound.certified and start > policy.threshold
    }
    return PerClass(
        margins={**policy.class_margins, **margins},
        escalated=tuple(sorted(away)),
        bounds=ClassBounds(
            risk, confidence, tuple(bound for _, bound in found.values()), few, needed
        ),
    )


def _one_class(
    policy: RouterPolicy, name: str, above: Floats, table: Table, risk: float, at: float
) -> tuple[float, ClassBound]:
    """The threshold that a class needs, and what is said of it then."""
    part = table.of(table.edge_label == table.labels.index(name))
    seen = counts(Shape.of(policy), above, part)
    last = fixed_sequence(seen.failures <= allowed_failures(part.rows, risk, 1 - at))
    failures = int(seen.failures[max(last, 0)])
    bound = risk if last >= 0 else bounds.upper_bound(failures, part.rows, 1 - at)
    return float(above[last]), ClassBound(name, failures, part.rows, last >= 0, bound)


def _margin(policy: RouterPolicy, name: str, start: float) -> float:
    """What a class needs beyond the policy's threshold, to be kept from `start` on."""
    now = policy.class_margins.get(name, 0.0)
    largest = max(1.0, abs(now), abs(start), abs(policy.threshold))
    return now + (start - policy.threshold) + _ROUND_UP * largest

"""The sweep's candidates + `tune` rows + `certify` rows -> the certified policy. Pure.

1. On `tune` alone: of all shapes (score, margins, floor, rules) the one to go with.
2. Its thresholds, from conservative to permissive, are the sequence. It is now fixed.
3. On `certify`: fixed-sequence testing names the last policy of it that passes.

Step 1 asks how much each shape would keep at the edge if the certify rows looked like those of
`tune`: of n rows, a risk of 1% at 95% confidence allows well under 1% of failures. n is known
without a look at the rows. A few failures decide that figure, and of hundreds of shapes some are
lucky. So among those within two standard errors of the best (after Breiman et al., CART, 1984,
who take one) the first in a fixed order is taken: learned scores by their held-out log-loss, which
every row speaks for, then the plain ones, then what the sweep put together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.errors import CertifyError, ConfigError
from serve_app.decide.cost import Prices
from serve_app.decide.explain import Alternative
from serve_app.decide.policy import RouterPolicy, Rules
from tune.certificate.bounds import level
from tune.certificate.certify import (
    Certificate,
    alternatives,
    certificate,
    certify,
    require_labels,
    require_rows,
    start_of,
)
from tune.certificate.classes import per_class
from tune.certificate.counts import Counter, PolicyCounts
from tune.certificate.limits import OPTION, Kind, Limits, observed, of_kind, passes
from tune.learned.pool import Scorer
from tune.objective import FrontPoint, Shape, curve
from tune.replay import Bools, Floats, Ints, Table

# Testing more thresholds costs nothing in confidence, only time and little edge share is left.
MAX_STEPS: Final = 2000
# What is also certified, each by itself, to be shown beside the release.
RISKS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
# Of the certify rows: larger ones are decided by more failures, and so are steadier.
_SIZES: Final = (1.0, 2.0, 4.0)
# The best of hundreds is about so many standard errors too good.
_ERRORS: Final = 2.0
_STEPS: Final = 300
_RESAMPLINGS: Final = 100


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the choice has to keep to."""

    limits: Limits
    confidence: float = 0.95
    prices: Prices
    rules: Rules = field(default_factory=Rules)
    per_class: bool = False
    strict: bool = False

    def check(self) -> None:
        """Raises ConfigError for what nothing can meet, and for what can only cost more."""
        self.limits.check(self.prices, self.confidence)
        check_prices(self.prices)
        others = [OPTION[kind] for kind in self.limits.stated if kind != "risk"]
        if self.per_class and (others or self.limits.risk is None):
            raise ConfigError(
                f"--per-class needs {OPTION['risk']} and no other limit"
                f"{f', and {others[0]} was given' if others else ''}: what a class escalates keeps "
                "the risk of all messages, and may break any other limit."
            )


class SequenceSummary(BaseModel):
    """The sequence that was fixed on `tune`, in a few figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Shape
    scorer: str
    length: int
    start: int
    first_threshold: float
    last_threshold: float
    tune_edge_share: float
    best: str
    best_tune_edge_share: float
    candidates: int


class Selection(BaseModel):
    """The policy to release, what is guaranteed of it, and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: RouterPolicy
    certificate: Certificate
    sequence: SequenceSummary
    alternatives: tuple[Alternative, ...] = ()


class PolicyCandidate:
    """A shape on `tune`, where a learned score's column is held out."""

    def __init__(self, name: str, shape: Shape, tune: Table, scorer: Scorer | None) -> None:
        self.name, self.shape = name, shape
        self._tune = tune
        self._trust = None if scorer is None else scorer.trust

    @cached_property
    def thresholds(self) -> Floats:
        """All that tell rows apart, or `MAX_STEPS` spread over them, ends included; falling."""
        found = curve(self.shape, self._tune, self._trust).thresholds
        return found[_spread(found.size, MAX_STEPS)]

    @cached_property
    def counts(self) -> PolicyCounts:
        """Of all thresholds."""
        return self._counter.of(self.thresholds)

    @cached_property
    def probed(self) -> PolicyCounts:
        """Of some, which is enough to compare shapes by."""
        return self._counter.of(self._some)

    @cached_property
    def _some(self) -> Floats:
        return self.thresholds[_spread(self.thresholds.size, _STEPS)]

    @cached_property
    def _counter(self) -> Counter:
        return Counter(self.shape, self._tune, self._trust)

    def reach(self, wanted: Wanted, rows: int, weights: Ints | None = None) -> float:
        """Edge share that would be certified on so many rows like these; averaged over `_SIZES`."""
        seen = self.probed if weights is None else self._counter.of(self._some, weights)
        return float(np.mean([_reach(seen, wanted, round(size * rows)) for size in _SIZES]))


def select(
    points: Sequence[FrontPoint],
    pool: Mapping[str, Scorer],
    tune: Table,
    certify_on: Table,
    wanted: Wanted,
    created_at: str,
) -> Selection:
    """Chooses on `tune`, certifies on `certify_on`.

    Args:
        points: `SweepResult.risk_front + SweepResult.front`; their shapes are taken, their
            thresholds are not.
        pool: the finished scorers; each is a candidate with the user's rules.
        created_at: the time, ISO 8601.

    Raises:
        ConfigError: limits that nothing can meet, or a rule about an unknown class.
        CertifyError: tables that do not belong together, too few rows, limits that contradict each
            other on `tune`, nothing to choose from, or no policy passes.
    """
    wanted.check()
    _check(tune, certify_on)
    check_classes(wanted.rules, tune.labels)
    require_rows(certify_on.rows, certify_on.split, wanted.limits, wanted.confidence)
    for table in (tune, certify_on):
        require_labels(wanted.limits, table)
    found = list(_candidates(points, pool, tune, wanted.rules))
    if not found:
        raise CertifyError("There is no policy to certify: no scorer, and an empty front. Sweep.")
    reach = np.array([one.reach(wanted, certify_on.rows) for one in found])
    _check_together(found, wanted, certify_on.rows)
    best = int(reach.argmax())
    place = _within_error(found, best, wanted, certify_on.rows)
    chosen = found[place]
    start = start_of(wanted.limits, chosen.counts, wanted.prices, wanted.confidence)
    policy, made, others = _certified(chosen, tune, certify_on, wanted, start, created_at)
    summary = SequenceSummary(
        shape=chosen.shape,
        scorer=chosen.name,
        length=chosen.thresholds.size,
        start=start,
        first_threshold=float(chosen.thresholds[0]),
        last_threshold=float(chosen.thresholds[-1]),
        tune_edge_share=float(reach[place]),
        best=found[best].name,
        best_tune_edge_share=float(reach[best]),
        candidates=len(found),
    )
    return Selection(policy=policy, certificate=made, sequence=summary, alternatives=others)


def _certified(
    chosen: PolicyCandidate, tune: Table, rows: Table, wanted: Wanted, start: int, created_at: str
) -> tuple[RouterPolicy, Certificate, tuple[Alternative, ...]]:
    shape, thresholds = chosen.shape, chosen.thresholds
    limits, confidence, prices = wanted.limits, wanted.confidence, wanted.prices
    last, tested = certify(shape, thresholds, rows, limits, confidence, prices, start)
    others = alternatives(RISKS, shape, thresholds, rows, confidence)
    policy = shape.policy(
        "-".join(["certified", *(f"{kind}-{limit:g}" for kind, limit in limits.stated.items())]),
        float(thresholds[last]),
        bundles=tune.pins,
        tuned_on=f"{tune.split}@{tune.fingerprint}",
        target_risk=limits.risk,
        created_at=created_at,
    )
    classes = None
    if wanted.per_class and limits.risk is not None:
        part = per_class(policy, thresholds, rows, limits.risk, confidence, wanted.strict)
        policy, classes = part.applied(policy), part.bounds
    made = certificate(
        policy, rows, limits, confidence, prices, created_at, position=last, tested=tested,
        sequence_length=thresholds.size, classes=classes,
    )  # fmt: skip
    return policy, made, others


# ---- which shape --------------------------------------------------------------------------------


def _candidates(
    points: Sequence[FrontPoint], pool: Mapping[str, Scorer], tune: Table, rules: Rules
) -> Iterator[PolicyCandidate]:
    """The pool in its order of preference, then the other distinct shapes of the sweep."""
    learned = [one for one in pool.values() if one.log_loss is not None]
    plain = [one for one in pool.values() if one.log_loss is None]
    seen = set()
    for one in [*sorted(learned, key=lambda item: item.log_loss or 0.0), *plain]:
        shape = Shape(score=one.score, class_margins=dict(one.class_margins), rules=rules)
        seen.add(shape.model_dump_json())
        yield PolicyCandidate(one.name, shape, tune, one)
    for point in points:
        shape = Shape.of(point.policy)
        key = shape.model_dump_json()
        if key not in seen:
            seen.add(key)
            scorer = pool[point.scorer] if point.scorer else None
            yield PolicyCandidate(point.scorer or "weighted", shape, tune, scorer)


def _within_error(found: Sequence[PolicyCandidate], best: int, wanted: Wanted, rows: int) -> int:
    """The first candidate whose reach is within the error of the best's; paired bootstrap of the
    `tune` rows (Efron, Annals of Statistics 7, 1979)."""
    n = found[best].counts.rows
    dice = np.random.default_rng(0)
    resamplings = dice.multinomial(n, np.full(n, 1 / n), _RESAMPLINGS)
    top = np.array([found[best].reach(wanted, rows, weights) for weights in resamplings])
    for place, one in enumerate(found[:best]):
        behind = top - [one.reach(wanted, rows, weights) for weights in resamplings]
        if found[best].reach(wanted, rows) - one.reach(wanted, rows) <= _ERRORS * behind.std(
            ddof=1
        ):
            return place
    return best


def _reach(seen: PolicyCounts, wanted: Wanted, rows: int) -> float:
    """The best edge share among the policies that would pass on so many rows; 0.0 if none would."""
    scaled = seen.scaled(rows)
    would = passes(wanted.limits, scaled, wanted.prices, wanted.confidence, exact=False)
    return float(seen.kept[would].max() / seen.rows) if would.any() else 0.0


def _spread(length: int, most: int) -> Ints:
    if length <= most:
        return np.arange(length)
    return np.linspace(0, length - 1, most).round().astype(np.int64)


# ---- refusals -----------------------------------------------------------------------------------


def _check(tune: Table, certify_on: Table) -> None:
    tune.require_rows()
    if tune.split == certify_on.split:
        raise CertifyError(
            f"The policy would be chosen and certified on the same split, {tune.split!r}; a "
            "certificate needs rows that nothing was chosen on. Replay two splits."
        )
    for name in ("fingerprint", "edge_sha256", "cloud_sha256", "edge_artifact", "labels"):
        left, right = getattr(tune, name), getattr(certify_on, name)
        if left != right:
            raise CertifyError(
                f"The tables of {tune.split!r} and {certify_on.split!r} differ in {name}: {left} "
                f"and {right}. Replay both splits of one dataset with one pair of bundles."
            )


def check_prices(prices: Prices) -> None:
    """Raises ConfigError where an edge cannot save anything, whatever it answers."""
    if prices.edge_usd >= prices.cloud_usd:
        raise ConfigError(
            f"An answer of the edge costs ${prices.edge_usd:g} and one of the cloud "
            f"${prices.cloud_usd:g}: every message pays the edge, so whatever is tuned is dearer "
            "than the cloud alone. Correct --edge-usd or --cloud-usd, or their prices per second."
        )


def check_rules(rules: Rules, labels: Sequence[str]) -> None:
    """Raises ConfigError for rules that name no class of the models, or leave the edge nothing."""
    check_classes(rules, labels)
    option = None
    if rules.max_words is not None and rules.max_words < 1:
        option = f"--max-words is {rules.max_words}: every message has a word"
    elif set(labels) <= set(rules.always_escalate):
        option = f"--always-escalate names all {len(labels)} classes"
    if option is not None:
        raise ConfigError(
            f"{option}, so all of them would go to the cloud, and the edge be paid for nothing. "
            "Correct the option, or leave it out."
        )


def check_classes(rules: Rules, labels: Sequence[str]) -> None:
    """Raises ConfigError for a rule about a class that the models never answer with."""
    named = {*rules.always_escalate, *rules.never_escalate}
    if unknown := sorted(named - set(labels)):
        raise ConfigError(
            f"The rules name the classes {unknown}, which the models never answer with; they know "
            f"{sorted(labels)[:20]}. Correct --always-escalate or --never-escalate."
        )


def _check_together(found: Sequence[PolicyCandidate], wanted: Wanted, rows: int) -> None:
    """Raises CertifyError, naming both, for two limits of which each can be met but not both."""
    at = level(wanted.confidence)
    met = [
        {
            kind: of_kind(kind, limit, seen, wanted.prices, wanted.confidence, exact=False) <= at
            for kind, limit in wanted.limits.stated.items()
        }
        for seen in (one.counts.scaled(rows) for one in found)
    ]
    for first, second in combinations(wanted.limits.stated, 2):
        alone = all(any(one[kind].any() for one in met) for kind in (first, second))
        if alone and not any((one[first] & one[second]).any() for one in met):
            raise CertifyError(_contradiction(found, met, (first, second), wanted))


def _contradiction(
    found: Sequence[PolicyCandidate], met: Sequence[Mapping[Kind, Bools]], both: tuple[Kind, Kind],
    wanted: Wanted,
) -> str:  # fmt: skip
    first, second = both
    limits = wanted.limits.stated
    seen = [observed(second, one.counts, wanted.prices)[met_by[first]]
            for one, met_by in zip(found, met, strict=True) if met_by[first].any()]  # fmt: skip
    best = max(map(np.max, seen)) if second == "agreement" else min(map(np.min, seen))
    return (
        f"{OPTION[first]} {limits[first]:g} and {OPTION[second]} {limits[second]:g} contradict "
        f"each other: by the split 'tune', none of {len(found)} shapes of policies is likely to be "
        f"certified for both. What meets the first comes to {best:.4g} of the second there at "
        "best, before any margin for chance. Loosen one of them."
    )

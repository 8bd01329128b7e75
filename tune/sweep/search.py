"""The sweep: a table and a pool of scorers -> the Pareto front, by Ray Tune with Optuna.

A trial is one point of the space (space.py): a scorer of the pool or a vector of weights, and hard
rules. It tries every floor and every threshold of it, thousands of policies, since all thresholds
together cost one sort; and it returns the policies that nothing in the trial dominates. The front
is the union of what the trials returned. No row judges a scorer that saw it (tune/learned/pool.py).

Optuna needs two numbers per trial, not a front. So each trial also draws a `cloud_share_budget`
and answers with the value and cost of its best policy within that budget (the cheapest of equals).
Optuna's multi-objective TPE thus learns which points serve which part of the front; the budget
steers the search only, and takes no policy away.

A sweep that was killed goes on where it was: its trials stand in a folder that is named by a hash
of the table, the pool and the config. Tune keeps its state there as pickles, so nobody else may be
able to write there.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
import ray
from pydantic import TypeAdapter
from ray.tune import (
    Callback,
    FailureConfig,
    ResultGrid,
    RunConfig,
    TuneConfig,
    Tuner,
    report,
    with_parameters,
    with_resources,
)
from ray.tune.search.optuna import OptunaSearch

from cluster.files import read_json, sha256_json, write_json
from cluster.progress import Report, silent
from cluster.ray_private.environment import tuning
from serve_app.decide.cost import Prices
from serve_app.decide.policy import Rules
from serve_app.decide.scores import Weighted
from tune.learned.pool import Scorer
from tune.objective import Curve, FrontPoint, Shape, curve, pareto
from tune.replay import COLUMNS, Floats, Ints, Table
from tune.sweep.space import BUDGET, FLOORS, SCORER, WEIGHTS, Point, Space, rules_of, simplicity
from tune.sweep.space import weights_of as weights_in

# A trial is pure: it only ever dies with its worker, so it is worth another try.
_RETRIES: Final = 2
_CHECKPOINT_S: Final = 0.5  # what a killed sweep may lose
_ENDED: ContextVar[Callable[[int], None]] = ContextVar("ended", default=lambda done: None)
_SHARED: Final = {"score", "class_margins"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How to search. `storage` is a folder or any fsspec URL that all nodes can write.

    `rules` are the user's own: they hold in every policy, and a trial may only add to them.

    With one trial at a time a seed gives the same front every time; and as a trial takes less time
    than Tune spends on starting it, more at once pays only for tables of a million rows.
    """

    storage: str
    trials: int = 80
    seed: int = 0
    concurrent_trials: int = 1
    prices: Prices = field(default_factory=Prices)
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class SweepResult:
    """`front`: not dominated in (cost, accuracy), or of a table without labels in (cost, risk).
    `risk_front`: not dominated in (cost, risk), where a certified choice starts from. Both cheapest
    first. `scorers`: the finished scores of the pool that they use, by name."""

    front: list[FrontPoint]
    risk_front: list[FrontPoint]
    scorers: dict[str, Shape]
    trials: int
    policies_evaluated: int
    seconds: float


def run(
    config: SweepConfig, table: Table, pool: Mapping[str, Scorer], progress: Report = silent
) -> SweepResult:
    """Searches on the connected cluster; the caller has called `cluster.connect.connect`.

    Args:
        pool: the scorers of this table, `tune.learned.pool.pool`.

    Raises:
        DataError: the table is empty.
    """
    table.require_rows()
    start = time.monotonic()
    results = _results(config, table, pool, progress)
    found = [_Found.of(result, table) for result in results]
    front = _merge(config, pool, found, "front")
    risk_front = _merge(config, pool, found, "risk_front")
    used = {point.scorer for point in front + risk_front}
    return SweepResult(
        front=front,
        risk_front=risk_front,
        scorers={name: _shape(pool[name]) for name in pool if name in used},
        trials=len(results),
        policies_evaluated=sum(result.metrics["policies"] for result in results),
        seconds=time.monotonic() - start,
    )


# ---- Ray Tune -----------------------------------------------------------------------------------


class Ticker(Callback):
    """Tells of each trial that ended. Tune makes it by its name, so it holds nothing itself."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended = {one.trial_id for one in trials if one.is_finished()} | {trial.trial_id}
        _ENDED.get()(len(ended))


@contextmanager
def _watched(progress: Report, total: int) -> Iterator[None]:
    token = _ENDED.set(lambda done: progress(done, total))
    try:
        with tuning(f"{__name__}.{Ticker.__name__}", checkpoint_s=_CHECKPOINT_S):
            yield
    finally:
        _ENDED.reset(token)


def _results(
    config: SweepConfig, table: Table, pool: Mapping[str, Scorer], progress: Report
) -> list[Any]:
    """Of all trials, in an order that does not depend on which came first: the simplest first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = Space.of(pool, table)
    name = f"sweep-{_key(config, table, pool, space)[:16]}"
    trainable = with_resources(
        with_parameters(
            _trial, table=table, pool=dict(pool), rules=config.rules, prices=config.prices
        ),
        {"cpu": 1},
    )
    with _watched(progress, config.trials):
        results = _resumed(config, f"{config.storage}/{name}", trainable)
        if results is None:
            results = _tuner(config, name, space, trainable).fit()
    if results.num_errors:
        raise results.errors[0]
    every = [results[i] for i in range(len(results))]
    return sorted(
        every, key=lambda r: (*simplicity(r.config), json.dumps(r.config, sort_keys=True))
    )


def _resumed(config: SweepConfig, path: str, trainable: Any) -> ResultGrid | None:
    """Goes on with what is in the folder; None if there is nothing, or nothing that can be read."""
    if not Tuner.can_restore(path):
        return None
    try:
        tuner = Tuner.restore(path, trainable, restart_errored=True)
        tuner.get_results()  # raises where the state was cut off: Tune itself would run one trial
        results = tuner.fit()
    except Exception as error:  # noqa: BLE001  whatever is wrong with old state, a new sweep is right
        logger.warning("The sweep in %s cannot go on (%s); it starts anew.", path, error)
        return None
    return results if len(results) == config.trials else None


def _tuner(config: SweepConfig, name: str, space: Space, trainable: Any) -> Tuner:
    search = OptunaSearch(
        space=space,
        metric=["value", "cost_usd"],
        mode=["max", "min"],
        points_to_evaluate=space.starts,
        seed=config.seed,
    )
    return Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=search,
            num_samples=config.trials,
            max_concurrent_trials=config.concurrent_trials,
            reuse_actors=True,
            # By default the name spells the whole point out, in a folder name.
            trial_dirname_creator=_folder_name,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=config.storage,
            verbose=0,
            failure_config=FailureConfig(max_failures=_RETRIES),
        ),
    )


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _key(config: SweepConfig, table: Table, pool: Mapping[str, Scorer], space: Space) -> str:
    """Of everything that a sweep's result depends on; another key is another sweep."""
    columns = [*(getattr(table, name) for name in COLUMNS), *table.signals.values()]
    rows = hashlib.sha256()
    for column in [*columns, *(scorer.trust for scorer in pool.values())]:
        rows.update(np.ascontiguousarray(column).data)
    return sha256_json(
        {
            "rows": rows.hexdigest(),
            "labels": table.labels,
            "signals": list(table.signals),
            "space": [space.scorers, {name: list(of) for name, of in space.rules.items()}],
            "weights": dict(WEIGHTS),
            "floors": FLOORS,
            "config": [config.trials, config.seed, config.concurrent_trials],
            "prices": config.prices.model_dump(),
            "rules": config.rules.model_dump(),
            "versions": [ray.__version__, optuna.__version__],  # which wrote the pickles
        }
    )


# ---- one trial ----------------------------------------------------------------------------------


def _trial(
    point: Point, *, table: Table, pool: Mapping[str, Scorer], rules: Rules, prices: Prices
) -> None:
    """One scorer and its rules with all floors and thresholds; runs on a Ray worker."""
    scorer = pool.get(point[SCORER])
    whole = _shape_at(point, scorer, rules)
    trust = None if scorer is None else scorer.trust
    shapes = [whole.model_copy(update={"min_confidence": floor}) for floor in FLOORS]
    curves = [curve(shape, table, trust) for shape in shapes]
    every = _joined(curves)
    floors = np.repeat(FLOORS, [one.thresholds.size for one in curves])
    cost, value = every.cost_usd(prices), every.value
    best = _best_within(cost, value, every.cloud_share, point[BUDGET])
    useful = np.union1d(pareto(cost, value), pareto(cost, -every.risk))
    columns = (floors, every.thresholds, every.edge, every.right, every.failures)
    report(
        {
            "value": float(value[best]),
            "cost_usd": float(cost[best]),
            "policies": int(every.thresholds.size),
            # As text: Tune flattens what it can look into.
            "found": json.dumps([column[useful].tolist() for column in columns]),
        }
    )


def _best_within(cost: Floats, value: Floats, cloud_share: Floats, budget: float) -> int:
    """The policy of the highest value within the budget, the cheapest of equals.

    Rules may leave none within it; then it is the cheapest of all.
    """
    allowed = np.flatnonzero(cloud_share <= max(budget, float(cloud_share.min())))
    return int(allowed[np.lexsort((cost[allowed], -value[allowed]))[0]])


def _joined(curves: Sequence[Curve]) -> Curve:
    """All policies of some curves of one table."""
    names = ("thresholds", "edge", "right", "failures")
    columns = {name: np.concatenate([getattr(one, name) for one in curves]) for name in names}
    return Curve(**columns, rows=curves[0].rows, known=curves[0].known)


def _shape_at(point: Point, scorer: Scorer | None, fixed: Rules) -> Shape:
    """What a point says, without a floor."""
    own = Shape(score=Weighted(weights=weights_in(point))) if scorer is None else _shape(scorer)
    return own.model_copy(update={"rules": rules_of(point, fixed)})


def _shape(scorer: Scorer) -> Shape:
    return Shape(score=scorer.score, class_margins=dict(scorer.class_margins))


# ---- what came back -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """The useful policies of one trial: their floors, and the rest as a curve."""

    point: Point
    floors: Floats
    curve: Curve

    @classmethod
    def of(cls, result: Any, table: Table) -> "_Found":
        floors, thresholds, *counts = json.loads(result.metrics["found"])
        edge, right, failures = (np.array(column, np.int64) for column in counts)
        known = int(table.known.sum())
        found = Curve(np.array(thresholds), edge, right, failures, table.rows, known)
        return cls(result.config, np.array(floors), found)


def _merge(
    config: SweepConfig, pool: Mapping[str, Scorer], found: Sequence[_Found], name: str
) -> list[FrontPoint]:
    """The front over all trials, in (cost, value) or, for the risk front, in (cost, risk)."""
    every = _joined([one.curve for one in found])
    owner, place = _places(one.floors.size for one in found)
    worth = every.value if name == "front" else -every.risk
    return [
        _point(f"{name}-{i:03d}", config, pool, found[owner[row]], int(place[row]))
        for i, row in enumerate(pareto(every.cost_usd(config.prices), worth))
    ]


def _places(sizes: Iterable[int]) -> tuple[Ints, Ints]:
    """Of every joined row: which part it came from, and where it stood in there."""
    counts = list(sizes)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.concatenate([np.arange(count) for count in counts])


def _point(
    name: str, config: SweepConfig, pool: Mapping[str, Scorer], found: _Found, i: int
) -> FrontPoint:
    scorer = pool.get(found.point[SCORER])
    shape = _shape_at(found.point, scorer, config.rules)
    shape = shape.model_copy(update={"min_confidence": float(found.floors[i])})
    return FrontPoint(
        policy=shape.policy(name, float(found.curve.thresholds[i])),
        outcome=found.curve.outcome(i, config.prices),
        scorer=None if scorer is None else scorer.name,
    )


# ---- files --------------------------------------------------------------------------------------


def save(result: SweepResult, path: Path) -> None:
    """Writes the result as JSON, a scorer of the pool once."""
    made = {name: getattr(result, name) for name in ("trials", "policies_evaluated", "seconds")}
    scorers = {
        name: shape.model_dump(mode="json", include=_SHARED)
        for name, shape in result.scorers.items()
    }
    fronts = {"front": _packed(result.front), "risk_front": _packed(result.risk_front)}
    write_json(path, {**made, "scorers": scorers, **fronts})


def _packed(points: Sequence[FrontPoint]) -> list[dict[str, Any]]:
    return [
        point.model_dump(mode="json", exclude={"policy": _SHARED} if point.scorer else None)
        for point in points
    ]


def load(path: Path) -> SweepResult:
    """Reads what `save` wrote."""
    made = read_json(path)
    for point in made["front"] + made["risk_front"]:
        if point["scorer"]:
            point["policy"] |= made["scorers"][point["scorer"]]
    return TypeAdapter(SweepResult).validate_python(made)

"""The sweep: a table -> the Pareto front of accuracy against cost, by Ray Tune with Optuna.

    python -m tune.search --table .firstline/tables/<pair>/tune.parquet --out .firstline/sweep

A trial is one weights vector. It tries every floor and every threshold of it, thousands of
policies, since all thresholds together cost one sort; and it returns the policies that nothing in
the trial dominates. The front is the union of what the trials returned.

Optuna needs two numbers per trial, not a front. So each trial also draws a `cloud_share_budget`
and answers with the accuracy and cost of its most accurate policy within that budget (the cheapest
of equals). Optuna's multi-objective TPE thus learns which weights serve which part of the front;
the budget steers the search only, and takes no policy away.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import optuna
from pydantic import TypeAdapter
from ray.tune import (
    Callback,
    FailureConfig,
    ResultGrid,
    RunConfig,
    TuneConfig,
    Tuner,
    quniform,
    report,
    with_parameters,
    with_resources,
)
from ray.tune.search.optuna import OptunaSearch

from cluster.errors import FirstlineError
from cluster.files import write_json
from cluster.progress import Report, silent, stage
from serve_app.cost import Prices
from serve_app.policy import RouterPolicy
from serve_app.scores import Weighted
from tune.objective import Curve, FrontPoint, Outcome, Shape, curve, pareto
from tune.replay import Floats, Table, load_table
from tune.space import BUDGET, FLOORS, SPACE, STARTS, weights_of

# One row per policy that a trial returns. Columns: floor, threshold, then those of Outcome.
Found: TypeAlias = Floats
_OUTCOME: Final = ("accuracy", "cost_usd", "edge_share", "cloud_share", "risk")
_ACCURACY, _COST, _CLOUD, _RISK = 2, 3, 5, 6
# A trial is pure: it only ever dies with its worker, so it is worth another try.
_RETRIES: Final = 2


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How to search. `storage` is a folder or any fsspec URL that all nodes can write.

    With one trial at a time a seed gives the same front every time; and as a trial takes less time
    than Tune spends on starting it, more at once pays only for tables of a million rows.
    """

    storage: str
    trials: int = 64
    seed: int = 0
    concurrent_trials: int = 1
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True)
class SweepResult:
    """`front`: not dominated in (cost, accuracy). `risk_front`: not dominated in (cost, risk),
    where a certified choice starts from. Both cheapest first."""

    front: list[FrontPoint]
    risk_front: list[FrontPoint]
    trials: int
    policies_evaluated: int
    seconds: float


class _Ticker(Callback):
    """Tells `progress` about each trial that ended."""

    def __init__(self, progress: Report, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._done += 1
        self._progress(self._done, self._total)


def run(config: SweepConfig, table: Table, progress: Report = silent) -> SweepResult:
    """Searches on the connected cluster; the caller has called `cluster.connect.connect`.

    Raises:
        DataError: the table is empty, or has no true labels.
    """
    table.require_labels()
    start = time.monotonic()
    results = _tuner(config, table, progress).fit()
    if results.num_errors:
        raise results.errors[0]
    found = [(weights_of(r.config), _unpack(r.metrics["found"])) for r in _ordered(results)]
    return SweepResult(
        front=_merge(found, _ACCURACY, 1.0, "front"),
        risk_front=_merge(found, _RISK, -1.0, "risk_front"),
        trials=len(results),
        policies_evaluated=sum(r.metrics["policies"] for r in _ordered(results)),
        seconds=time.monotonic() - start,
    )


def _tuner(config: SweepConfig, table: Table, progress: Report) -> Tuner:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = OptunaSearch(
        metric=["accuracy", "cost_usd"],
        mode=["max", "min"],
        points_to_evaluate=[dict(point) for point in STARTS],
        seed=config.seed,
    )
    trainable = with_parameters(_trial, table=table, prices=config.prices)
    return Tuner(
        with_resources(trainable, {"cpu": 1}),
        param_space={name: quniform(*limits) for name, limits in SPACE.items()},
        tune_config=TuneConfig(
            search_alg=search,
            num_samples=config.trials,
            max_concurrent_trials=config.concurrent_trials,
            reuse_actors=True,
            # By default the name spells the whole point out, in a folder name.
            trial_dirname_creator=_folder_name,
        ),
        run_config=RunConfig(
            name="sweep",
            storage_path=config.storage,
            verbose=0,
            callbacks=[_Ticker(progress, config.trials)],
            failure_config=FailureConfig(max_failures=_RETRIES),
        ),
    )


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _trial(point: Mapping[str, float], *, table: Table, prices: Prices) -> None:
    """One weights vector with all its floors and thresholds; runs on a Ray worker."""
    score = Weighted(weights=weights_of(point))
    shapes = [Shape(score=score, min_confidence=floor) for floor in FLOORS]
    everything = np.concatenate(
        [_rows(shape.min_confidence, curve(shape, table), prices) for shape in shapes]
    )
    best = _best_within(everything, point[BUDGET])
    useful = np.union1d(
        pareto(everything[:, _COST], everything[:, _ACCURACY]),
        pareto(everything[:, _COST], -everything[:, _RISK]),
    )
    # As text: Tune's loggers would make a TensorBoard histogram of every list.
    found = json.dumps(everything[useful].tolist())
    report(
        {
            "accuracy": float(best[_ACCURACY]),
            "cost_usd": float(best[_COST]),
            "policies": len(everything),
            "found": found,
        }
    )


def _rows(floor: float, found: Curve, prices: Prices) -> Found:
    columns = (
        np.full_like(found.thresholds, floor), found.thresholds,
        found.accuracy, found.cost_usd(prices), found.edge_share, found.cloud_share, found.risk,
    )  # fmt: skip
    return np.stack(columns, axis=1)


def _best_within(found: Found, budget: float) -> Floats:
    """The most accurate row whose cloud share is within the budget; the cheapest of equals.

    There is always one: without a floor, the lowest threshold keeps everything at the edge.
    """
    allowed = found[found[:, _CLOUD] <= budget]
    best: Floats = allowed[np.lexsort((allowed[:, _COST], -allowed[:, _ACCURACY]))[0]]
    return best


def _ordered(results: ResultGrid) -> list[Any]:
    return [results[i] for i in range(len(results))]


def _unpack(text: str) -> Found:
    return np.array(json.loads(text), np.float64)


def _merge(
    found: Sequence[tuple[dict[str, float], Found]], column: int, sign: float, name: str
) -> list[FrontPoint]:
    """The front over all trials, in (cost, one column of `Found`)."""
    rows = np.concatenate([rows for _, rows in found])
    owner = np.repeat(np.arange(len(found)), [len(rows) for _, rows in found])
    best = pareto(rows[:, _COST], sign * rows[:, column])
    return [
        _point(f"{name}-{place:03d}", found[owner[i]][0], rows[i]) for place, i in enumerate(best)
    ]


def _point(name: str, weights: dict[str, float], row: Floats) -> FrontPoint:
    floor, threshold, *outcome = (float(value) for value in row)
    policy = RouterPolicy(
        name=name, score=Weighted(weights=weights), threshold=threshold, min_confidence=floor
    )
    return FrontPoint(policy=policy, outcome=Outcome(**dict(zip(_OUTCOME, outcome, strict=True))))


def save(result: SweepResult, path: Path) -> None:
    """Writes the result as JSON."""
    write_json(path, TypeAdapter(SweepResult).dump_python(result, mode="json"))


def load(path: Path) -> SweepResult:
    """Reads what `save` wrote."""
    return TypeAdapter(SweepResult).validate_json(path.read_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m tune.search`."""
    parser = argparse.ArgumentParser(
        prog="python -m tune.search",
        description="Search escalation policies on a replayed table; write the Pareto front.",
    )
    parser.add_argument("--table", type=Path, required=True, help="a replayed Parquet table")
    parser.add_argument("--out", type=Path, required=True, help="folder for front.json, pareto.png")
    parser.add_argument("--trials", type=int, default=SweepConfig.trials)
    parser.add_argument("--seed", type=int, help="default: FIRSTLINE_SEED")
    options = parser.parse_args(arguments)
    try:
        _search(options)
    except FirstlineError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def _search(options: argparse.Namespace) -> None:
    from cluster.connect import connected
    from cluster.settings import load_settings
    from tune.report import draw_pareto

    table = load_table(options.table)
    settings = load_settings()
    out = options.out.absolute()
    config = SweepConfig(
        storage=str(out / "ray"),
        trials=options.trials,
        seed=settings.seed if options.seed is None else options.seed,
    )
    with connected(settings), stage("sweep") as progress:
        result = run(config, table, progress)
    save(result, out / "front.json")
    draw_pareto(out / "pareto.png", result.front, table, config.prices)
    for point in result.front:
        sys.stdout.write(
            f"accuracy {point.outcome.accuracy:.4f}  cost ${point.outcome.cost_usd:.5f}  "
            f"edge {point.outcome.edge_share:.1%}  risk {point.outcome.risk:.2%}  "
            f"{point.policy.score} >= {point.policy.threshold:.4f}\n"
        )
    sys.stdout.write(f"{result.policies_evaluated} policies in {result.seconds:.1f} s -> {out}\n")


if __name__ == "__main__":
    main()

"""The sweep on a real local Ray: what comes back is a front, and the same one for the same seed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.errors import DataError
from serve_app.decide.cost import Prices
from serve_app.decide.policy import ALWAYS_CLOUD, ALWAYS_EDGE, Rules
from tests import __file__ as tests_file
from tests.support.tables import LABELS, toy_table
from tune.learned.pool import Scorer, pool
from tune.objective import Shape, curve, evaluate, front
from tune.sweep.search import SweepConfig, SweepResult, load, run, save

ROOT = Path(tests_file).parents[1]

PRICES = Prices()
TABLE = toy_table(1000, seed=1)
EXTRA = toy_table(600, seed=3, split="calibration")
TRIALS = 30
# What a sweep of 2,000 rows may take on 2 free cores, Ray started included.
FULL_SWEEP_S = 60.0
# A driver of its own on the cluster at hand, to be killed.
# Half a second passes between two writings of the state, and a trial takes a twentieth of one: so
# that there is something to keep, the driver takes its time over each.
DRIVER = """
import sys
import time
import ray
from tests.integration.test_search import TABLE, TRIALS
from tune.learned.pool import singles
from tune.sweep.search import SweepConfig, run

ray.init(address=sys.argv[1], log_to_driver=False)
config = SweepConfig(storage=sys.argv[2], trials=TRIALS, seed=5)


def tell(done, total, note=""):
    print(done, flush=True)
    time.sleep(0.2)


run(config, TABLE, singles(TABLE), tell)
"""
# A whole sweep, Ray's start and the fits of the scorers in it.
WHOLE = """
import sys
from pathlib import Path
from cluster.connect import connected
from cluster.settings import load_settings
from tests.integration.test_search import EXTRA
from tests.support.tables import toy_table
from tune.learned.pool import pool
from tune.sweep.search import SweepConfig, run, save

out = Path(sys.argv[1])
table = toy_table(2000)
scorers = pool(table, EXTRA)
with connected(load_settings()):
    save(run(SweepConfig(storage=str(out / "ray")), table, scorers), out / "front.json")
"""


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def scorers() -> dict[str, Scorer]:
    return pool(TABLE, EXTRA)


@pytest.fixture(scope="module")
def swept(
    local_ray: None, scorers: dict[str, Scorer], tmp_path_factory: pytest.TempPathFactory
) -> SweepResult:
    ticks: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("sweep")
    result = run(
        SweepConfig(storage=str(folder), trials=TRIALS, seed=5),
        TABLE,
        scorers,
        lambda done, total, note="": ticks.append((done, total)),
    )
    assert ticks == [(done, TRIALS) for done in range(1, TRIALS + 1)]
    assert any(folder.iterdir())
    return result


def test_thousands_of_policies_per_trial(swept: SweepResult) -> None:
    assert swept.trials == TRIALS
    assert swept.policies_evaluated > 1000 * TRIALS


def test_nothing_in_the_front_is_dominated(swept: SweepResult) -> None:
    assert len(swept.front) > 5
    assert front(swept.front) == swept.front
    risks = [point.outcome.risk for point in swept.risk_front]
    costs = [point.outcome.cost_usd for point in swept.risk_front]
    assert costs == sorted(costs)
    assert risks == sorted(risks, reverse=True)


def test_the_front_states_what_its_policies_do_to_rows_that_did_not_teach_them(
    swept: SweepResult, scorers: dict[str, Scorer]
) -> None:
    for point in swept.front + swept.risk_front:
        if point.scorer is None:
            assert evaluate(point.policy, TABLE, PRICES) == point.outcome
            continue
        shape = Shape.of(point.policy)
        assert shape.score == scorers[point.scorer].score
        seen = curve(shape, TABLE, scorers[point.scorer].trust)
        (i,) = np.flatnonzero(seen.thresholds == point.policy.threshold)
        assert seen.outcome(int(i), PRICES) == point.outcome


def test_the_front_is_nowhere_below_the_random_mix(swept: SweepResult) -> None:
    edge = evaluate(ALWAYS_EDGE, TABLE, PRICES)
    cloud = evaluate(ALWAYS_CLOUD, TABLE, PRICES)
    cost = np.array([point.outcome.cost_usd for point in swept.front])
    accuracy = np.array([point.outcome.accuracy for point in swept.front])
    for share in np.linspace(0, 1, 21):
        paid = edge.cost_usd + share * (cloud.cost_usd - edge.cost_usd)
        mixed = edge.accuracy + share * (cloud.accuracy - edge.accuracy)
        assert accuracy[cost <= paid + 1e-12].max() >= mixed - 1e-12


def test_the_same_seed_finds_the_same_front(
    swept: SweepResult, scorers: dict[str, Scorer], tmp_path: Path
) -> None:
    again = run(SweepConfig(storage=str(tmp_path), trials=TRIALS, seed=5), TABLE, scorers)
    assert again.front == swept.front
    assert again.risk_front == swept.risk_front


def test_a_result_survives_the_disk(swept: SweepResult, tmp_path: Path) -> None:
    save(swept, tmp_path / "front.json")
    assert load(tmp_path / "front.json") == swept
    assert (tmp_path / "front.json").stat().st_size < 2e6


def test_a_users_rules_hold_in_every_policy_and_labels_are_not_needed(
    local_ray: None, scorers: dict[str, Scorer], tmp_path: Path
) -> None:
    """Traffic has no true labels; agreement with the cloud then stands for accuracy."""
    table = replace(TABLE, true_label=np.full(TABLE.rows, -1))
    rules = Rules(always_escalate=LABELS[:1], max_words=50)
    config = SweepConfig(storage=str(tmp_path), trials=26, rules=rules)
    result = run(config, table, {"margin": scorers["margin"]})
    assert [p.outcome.risk for p in result.front] == [p.outcome.risk for p in result.risk_front]
    stays = np.isin(table.edge_label, [1, 2]) | table.pinned
    for point in result.front:
        assert point.policy.rules.always_escalate == LABELS[:1]
        assert point.policy.rules.max_words is not None
        assert point.policy.rules.max_words <= 50
        assert point.outcome.edge_share <= stays.mean()
        assert np.isnan(point.outcome.accuracy)


def test_a_killed_sweep_goes_on_where_it_was(
    local_ray: None, scorers: dict[str, Scorer], tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, str(tmp_path / "killed")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert driver.stdout is not None
    assert any(line.strip() == str(TRIALS // 2) for line in driver.stdout)
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)

    plain = {name: scorer for name, scorer in scorers.items() if scorer.log_loss is None}
    ticks: list[int] = []
    config = SweepConfig(storage=str(tmp_path / "killed"), trials=TRIALS, seed=5)
    result = run(config, TABLE, plain, lambda done, total, note="": ticks.append(done))

    assert ticks[-1] == result.trials == TRIALS
    kept = TRIALS - len(ticks)  # a tick for each trial that had to run
    assert TRIALS // 6 <= kept <= TRIALS // 2
    whole = run(SweepConfig(storage=str(tmp_path / "whole"), trials=TRIALS, seed=5), TABLE, plain)
    assert result.front == whole.front
    assert result.risk_front == whole.risk_front

    other = replace(config, seed=6)
    run(other, TABLE, plain, lambda done, total, note="": ticks.append(done))
    assert ticks[-TRIALS:] == list(range(1, TRIALS + 1))


def test_a_state_that_was_cut_off_starts_anew(
    local_ray: None, scorers: dict[str, Scorer], tmp_path: Path
) -> None:
    config = SweepConfig(storage=str(tmp_path), trials=4)
    one = {"margin": scorers["margin"]}
    first = run(config, TABLE, one)
    for state in tmp_path.glob("*/experiment_state*.json"):
        state.write_text(state.read_text()[:300])
    ticks: list[int] = []
    again = run(config, TABLE, one, lambda done, total, note="": ticks.append(done))
    assert ticks == [1, 2, 3, 4]
    assert again.front == first.front


@pytest.mark.long
def test_2000_rows_are_swept_within_a_minute(tmp_path: Path) -> None:
    start = time.monotonic()
    # By default Ray's workers are at niceness 15, and whatever else runs here would be measured.
    subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path)], check=True, timeout=240,
        env={**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert time.monotonic() - start < FULL_SWEEP_S
    assert load(tmp_path / "front.json").policies_evaluated >= 50_000


def test_what_cannot_be_judged_is_refused_before_ray_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        run(SweepConfig(storage=str(tmp_path)), toy_table(0), {})

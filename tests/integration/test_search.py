"""The sweep on a real local Ray: what comes back is a front, and the same one for the same seed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.errors import DataError
from serve_app.cost import Prices
from serve_app.policy import ALWAYS_CLOUD, ALWAYS_EDGE
from tests.tables import toy_table
from tune.objective import evaluate, front
from tune.search import SweepConfig, SweepResult, load, run, save
from tune.select import select

PRICES = Prices()
TABLE = toy_table(1000, seed=1)
TRIALS = 12


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    ticks: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("sweep")
    result = run(
        SweepConfig(storage=str(folder), trials=TRIALS, seed=5),
        TABLE,
        lambda done, total, note="": ticks.append((done, total)),
    )
    assert ticks[-1] == (TRIALS, TRIALS)
    assert any(folder.iterdir())
    return result


def test_thousands_of_policies_per_trial(swept: SweepResult) -> None:
    assert swept.trials == TRIALS
    assert swept.policies_evaluated > 2000 * TRIALS


def test_nothing_in_the_front_is_dominated(swept: SweepResult) -> None:
    assert len(swept.front) > 5
    assert front(swept.front) == swept.front
    risks = [point.outcome.risk for point in swept.risk_front]
    costs = [point.outcome.cost_usd for point in swept.risk_front]
    assert costs == sorted(costs)
    assert risks == sorted(risks, reverse=True)


def test_the_front_states_what_its_policies_do(swept: SweepResult) -> None:
    for point in swept.front + swept.risk_front:
        assert evaluate(point.policy, TABLE, PRICES) == point.outcome


def test_the_front_is_nowhere_below_the_random_mix(swept: SweepResult) -> None:
    edge = evaluate(ALWAYS_EDGE, TABLE, PRICES)
    cloud = evaluate(ALWAYS_CLOUD, TABLE, PRICES)
    cost = np.array([point.outcome.cost_usd for point in swept.front])
    accuracy = np.array([point.outcome.accuracy for point in swept.front])
    for share in np.linspace(0, 1, 21):
        paid = edge.cost_usd + share * (cloud.cost_usd - edge.cost_usd)
        mixed = edge.accuracy + share * (cloud.accuracy - edge.accuracy)
        assert accuracy[cost <= paid + 1e-12].max() >= mixed - 1e-12


def test_a_choice_can_be_certified_from_the_fronts(swept: SweepResult) -> None:
    found = select(
        swept.risk_front + swept.front, TABLE, toy_table(1000, 2, "certify"), 0.08, 0.95, "now"
    )
    assert found.certificate.upper_bound <= 0.08
    assert found.certificate.edge_share > 0.3


def test_the_same_seed_finds_the_same_front(swept: SweepResult, tmp_path: Path) -> None:
    again = run(SweepConfig(storage=str(tmp_path), trials=TRIALS, seed=5), TABLE)
    assert again.front == swept.front
    assert again.risk_front == swept.risk_front


def test_a_result_survives_the_disk(swept: SweepResult, tmp_path: Path) -> None:
    save(swept, tmp_path / "front.json")
    assert load(tmp_path / "front.json") == swept


def test_a_table_without_labels_is_refused_before_ray_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="true label"):
        run(SweepConfig(storage=str(tmp_path)), toy_table(50, unknown_share=1.1))

"""From a pair and its splits to a release: what is scored once, what is kept, what a call costs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.bundles import Role
from cluster.errors import CertifyError, ConfigError
from cluster.settings import Settings
from serve_app.decide import signals as code
from serve_app.decide.cost import Prices
from serve_app.decide.policy import Rules
from serve_app.guard.prepare import prepare
from tests.support.serving import make_pair
from tests.support.tables import LABELS, toy_table
from tests.support.toys import make_bundle, traffic
from tune.certificate.limits import Limits
from tune.release import SPLITS, Pair, Pricing, Split, TuneConfig, table_path, tables
from tune.replay import save_table

TABLE = replace(toy_table(50), edge_s=0.002, cloud_s=0.05)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = make_pair(tmp_path / "made")
    return Pair(made.edge, made.cloud, "toy")


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def split(seed: int, rows: int = 40) -> Split:
    texts, labels = traffic(rows, seed)
    return Split([prepare(text) for text in texts], labels)


def splits(seed: int = 0, rows: int = 40) -> dict[str, Split]:
    return {name: split(10 * seed + place, rows) for place, name in enumerate(SPLITS)}


def written(settings: Settings) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in settings.home.rglob("*.parquet")}


# ---- tables -------------------------------------------------------------------------------------


def test_every_split_is_scored_once_and_then_read(pair: Pair, home: Settings) -> None:
    first = tables(pair, splits(), home)
    assert {name: table.split for name, table in first.items()} == {name: name for name in SPLITS}
    before = written(home)
    again = tables(pair, splits(), home)
    assert written(home) == before
    # Not measured again: it is the table that was kept.
    assert [again[name].edge_s for name in SPLITS] == [first[name].edge_s for name in SPLITS]


def test_progress_runs_over_all_splits(pair: Pair, home: Settings) -> None:
    ticks: list[tuple[int, int]] = []
    tables(pair, splits(), home, lambda done, total, note="": ticks.append((done, total)))
    assert ticks == [(40, 160), (80, 160), (120, 160), (160, 160)]


def test_another_pair_has_tables_of_its_own(pair: Pair, home: Settings, tmp_path: Path) -> None:
    tables(pair, splits(), home)
    other = replace(pair, edge=make_bundle(tmp_path / "other", "edge", known_share=0.2))
    made = tables(other, splits(), home)
    assert made["tune"].edge_sha256 == other.edge.sha256
    assert table_path(home, other, "tune") != table_path(home, pair, "tune")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda pair, parts: (replace(pair, fingerprint="new"), parts), "another dataset"),
        (lambda pair, parts: (pair, splits(rows=39)), "fewer rows"),
        (lambda pair, parts: (pair, splits(seed=1)), "other rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_of_other_rows_is_not_taken(
    pair: Pair, home: Settings, tmp_path: Path,
    change: Callable[..., tuple[Pair, dict[str, Split]]], what: str,
) -> None:  # fmt: skip
    tables(pair, splits(), home)
    before = written(home)
    made = tables(*change(pair, splits()), home)
    fresh = tables(*change(pair, splits()), Settings(home=tmp_path / "fresh"))
    assert all(before[name] != now for name, now in written(home).items()), what
    for name in SPLITS:
        assert made[name].fingerprint == fresh[name].fingerprint
        assert np.array_equal(made[name].true_label, fresh[name].true_label)


def test_a_table_that_older_code_made_is_not_taken(
    pair: Pair, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release was certified on the signals of a word list that serving no longer had."""
    tables(pair, splits(), home)
    monkeypatch.setattr("tune.replay.signals", lambda message, answer: {
        **code.signals(message, answer), "emotion": 0.75,
    })  # fmt: skip
    new = tables(pair, splits(), home)
    assert (new["tune"].signals["emotion"] == 0.75).all()


def test_a_broken_table_is_made_again(pair: Pair, home: Settings) -> None:
    tables(pair, splits(), home)
    table_path(home, pair, "test").write_bytes(b"PAR1")
    assert tables(pair, splits(), home)["test"].rows == 40


def test_a_table_of_another_artifact_is_not_taken(pair: Pair, home: Settings) -> None:
    """Two CPUs that share a home: each answers with the artifact that it computes exactly."""
    made = tables(pair, splits(), home)
    save_table(
        replace(made["tune"], edge_artifact="model.any.onnx"), table_path(home, pair, "tune")
    )
    assert tables(pair, splits(), home)["tune"].edge_artifact == made["tune"].edge_artifact


@pytest.mark.parametrize("role", ["edge", "cloud"])
def test_a_pair_of_another_dataset_is_refused(pair: Pair, role: Role) -> None:
    pair.check()
    with pytest.raises(CertifyError, match="trained on the dataset toy, not on other"):
        replace(pair, fingerprint="other").check()


# ---- prices -------------------------------------------------------------------------------------


def test_without_prices_the_published_ones_hold() -> None:
    assert Pricing().of(TABLE) == Prices()


def test_a_price_per_message_is_that_price() -> None:
    assert Pricing(edge_usd=0.5).of(TABLE) == Prices(edge_usd=0.5)
    assert Pricing(cloud_usd=0.5).of(TABLE) == Prices(cloud_usd=0.5)


def test_a_price_per_second_is_one_of_the_mean_time_of_a_message() -> None:
    found = Pricing(edge_usd_per_s=0.1, cloud_usd_per_s=2.0).of(TABLE)
    assert [found.edge_usd, found.cloud_usd] == pytest.approx([0.0002, 0.1])
    mixed = Pricing(edge_usd=0.003, cloud_usd_per_s=2.0).of(TABLE)
    assert [mixed.edge_usd, mixed.cloud_usd] == pytest.approx([0.003, 0.1])


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["edge_usd", "cloud_usd", "edge_usd_per_s", "cloud_usd_per_s"])
def test_a_price_has_to_be_above_zero_and_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is {value}"):
        Pricing(**{name: value})


@pytest.mark.parametrize("tier", ["edge", "cloud"])
def test_a_tier_has_one_price(tier: str) -> None:
    with pytest.raises(ConfigError, match=f"--{tier}-usd and --{tier}-usd-per-s are both given"):
        Pricing(**{f"{tier}_usd": 0.1, f"{tier}_usd_per_s": 0.1})


# ---- what is refused before a model runs --------------------------------------------------------


def test_a_cost_below_the_edges_price_is_refused_as_soon_as_that_is_known() -> None:
    limits = Limits(risk=0.01, cost_usd=0.0005)
    with pytest.raises(ConfigError, match=r"--max-cost-usd is 0\.0005, and --edge-usd 0\.001"):
        TuneConfig(limits=limits).check(LABELS)
    with pytest.raises(ConfigError, match=r"--edge-usd 0\.0006"):
        TuneConfig(limits=limits, pricing=Pricing(edge_usd=0.0006)).check(LABELS)
    TuneConfig(limits=limits, pricing=Pricing(edge_usd=0.0001)).check(LABELS)
    by_time = TuneConfig(limits=limits, pricing=Pricing(edge_usd_per_s=1.0))
    by_time.check(LABELS)
    with pytest.raises(ConfigError, match=r"--edge-usd 0\.002"):
        by_time.wanted(TABLE).check()


def test_a_rule_about_an_unknown_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['angry'\].*they know \['negative'"):
        TuneConfig(rules=Rules(always_escalate=("angry", "positive"))).check(LABELS)

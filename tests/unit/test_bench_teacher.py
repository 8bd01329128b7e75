"""`make bench-teacher` without training: the order, what a rerun skips, and the table's rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.files import read_json, write_json
from cluster.settings import Settings
from tests.bench.rows import Row
from tests.bench.teacher import Part, Piece, cut, go_on, pieces
from tests.bench.teacher_build import accuracy_of, peak, training_s
from tests.bench.teacher_rows import best_plain, intervals, points, table
from tests.support.toys import LABELS, make_bundle, message
from train_jobs.data import DataConfig, Dataset, build
from train_jobs.samples.generator import write_csv

ABOUT: Final = {"dataset": "f00d"}
BEFORE: Final = "189dff8"


def _pieces(*parts: Part, **options: Any) -> list[str]:
    defaults: dict[str, Any] = {"seeds": 2, "before_seeds": 1, "few": (), "few_seeds": 1}
    return [piece.name for piece in pieces(parts or tuple(Part), **{**defaults, **options})]


def _found(**changed: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """Figures that meet every row."""
    made: dict[str, Mapping[str, float]] = {
        "words 0": {"accuracy": 0.80},
        "plain 5e-05 0": {"accuracy": 0.88},
        "plain 0.0001 0": {"accuracy": 0.90},
        "plain 0.0003 0": {"accuracy": 0.89},
        "cloud 0": {"accuracy": 0.910, "training_s": 60.0, "peak_memory_mb": 900.0},
        "edge 0": {"accuracy": 0.906, "training_s": 40.0, "peak_memory_mb": 1200.0},
        "before 0": {"accuracy": 0.90, "edge_accuracy": 0.89, "training_s": 260.0},
        "cloud 1": {"accuracy": 0.912, "training_s": 61.0},
        "edge 1": {"accuracy": 0.907, "training_s": 41.0},
    }
    return made | changed


def _row(found: Mapping[str, Mapping[str, float]], what: str) -> Row:
    (only,) = [made for made in table("set", found, BEFORE) if what in made.figure]
    return only


# -- order and rerun ----------------------------------------------------------------------------


def test_pieces_come_in_turns_by_seed_and_few_rows_last() -> None:
    plain = ["plain 5e-05", "plain 0.0001", "plain 0.0003"]
    assert _pieces(few=(300,)) == [
        "words 0", *(f"{what} 0" for what in plain), "cloud 0", "edge 0", "before 0",
        "words 1", *(f"{what} 1" for what in plain), "cloud 1", "edge 1",
        "300 rows, words 0", *(f"300 rows, {what} 0" for what in plain), "300 rows, cloud 0",
    ]  # fmt: skip


def test_parts_are_measured_alone() -> None:
    assert _pieces(Part.OURS) == ["cloud 0", "edge 0", "cloud 1", "edge 1"]
    assert _pieces(Part.WORDS, few=(300,)) == ["words 0", "words 1"]
    assert _pieces(Part.BEFORE, before_seeds=0) == []


def test_a_rerun_skips_what_is_found(tmp_path: Path) -> None:
    kept = tmp_path / "found.json"
    asked: list[str] = []

    def measure(piece: Piece) -> dict[str, float]:
        if piece.name in {"edge 0"} and "edge 0" not in asked:
            asked.append(piece.name)
            raise KeyboardInterrupt
        asked.append(piece.name)
        return {"accuracy": float(piece.seed)}

    made = [Piece("cloud", 0), Piece("edge", 0), Piece("cloud", 1)]
    with pytest.raises(KeyboardInterrupt):
        go_on(made, measure, kept, ABOUT)
    assert read_json(kept)["found"] == {"cloud 0": {"accuracy": 0.0}}
    found = go_on(made, measure, kept, ABOUT)
    assert asked == ["cloud 0", "edge 0", "edge 0", "cloud 1"]
    assert list(found) == ["cloud 0", "edge 0", "cloud 1"]
    assert read_json(kept)["found"] == found


def test_figures_of_another_dataset_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "found.json", {"about": {"dataset": "beef"}, "found": {}})
    with pytest.raises(SystemExit, match=r"beef.*f00d.*another NAME"):
        go_on([], lambda _: {}, tmp_path / "found.json", ABOUT)


# -- rows ---------------------------------------------------------------------------------------


def test_best_plain_is_chosen_by_median() -> None:
    """A mean would choose 5e-05, and the best seed too."""
    shares = {"plain 5e-05": (0.95, 0.80, 0.81), "plain 0.0001": (0.82, 0.82, 0.10)}
    found = {
        f"{what} {seed}": {"accuracy": share}
        for what, by_seed in shares.items()
        for seed, share in enumerate(by_seed)
    }
    assert best_plain(found) == "plain 0.0001"
    assert best_plain({f"300 rows, {name}": made for name, made in found.items()}) is None
    assert (
        best_plain({f"300 rows, {name}": made for name, made in found.items()}, 300)
        == "plain 0.0001"
    )


def test_good_figures_meet_every_row() -> None:
    made = list(table("set", _found(), BEFORE))
    assert all(item.ok for item in made)
    musts = {item.figure: (round(item.ours, 4), item.must) for item in made if item.must}
    assert musts == {
        "set: cloud over the best plain recipe, plain 0.0001, points": (1.1, ">= 0"),
        "set: worst seed of the cloud below its median, points": (0.1, "<= 0.7"),
        "set: cloud over its edge, points": (0.45, ">= 0.3"),
        "set: the same, the smallest of the seeds": (0.4, ">= 0"),
        "set: edge accuracy kept of its cloud's": (0.9951, ">= 0.991"),
        "set: cloud over TF-IDF + logistic regression, points": (11.1, ">= 0"),
        "set: training time of 189dff8 over ours": (2.6, ">= 2.5"),
        "set: peak memory of a training worker, MB": (1200.0, "<= 1500"),
    }


def test_rows_without_a_must_state_their_reference() -> None:
    beside = {item.figure: item for item in table("set", _found(), BEFORE) if not item.must}
    assert len(beside) == 8
    assert all("beside" in figure and item.reference for figure, item in beside.items())
    assert beside["set: training, s, beside 189dff8"].ours == 100.0, "of the seed that both have"


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("over the best plain", {"plain 0.0001 0": {"accuracy": 0.92}}),
        ("worst seed", {"cloud 1": {"accuracy": 0.93}}),
        ("over its edge", {"edge 0": {"accuracy": 0.909}, "edge 1": {"accuracy": 0.911}}),
        ("smallest of the seeds", {"edge 0": {"accuracy": 0.911}}),
        ("kept of its cloud", {"edge 0": {"accuracy": 0.89}, "edge 1": {"accuracy": 0.89}}),
        ("over TF-IDF", {"words 0": {"accuracy": 0.92}}),
        ("training time", {"before 0": {"training_s": 249.0}}),
        ("peak memory", {"edge 1": {"accuracy": 0.907, "peak_memory_mb": 1501.0}}),
    ],
)  # fmt: skip
def test_a_bad_figure_misses(what: str, changed: dict[str, dict[str, float]]) -> None:
    assert not _row(_found(**changed), what).ok


def test_few_rows_have_limits_of_their_own() -> None:
    few = {
        "300 rows, words 0": {"accuracy": 0.50},
        "300 rows, plain 0.0001 0": {"accuracy": 0.505},
        "300 rows, cloud 0": {"accuracy": 0.50},
    }
    made = [item for item in table("set", few, BEFORE) if item.must]
    assert [(item.figure, item.ours, item.must, item.ok) for item in made] == [
        ("set, 300 rows: cloud over TF-IDF + logistic regression, points", 0.0, ">= 0", True),
        ("set, 300 rows: cloud over the best plain recipe, plain 0.0001, points", -0.5, ">= -0.5",
         True),
    ]  # fmt: skip


def test_the_table_shows_what_is_there() -> None:
    whole = _found()
    assert not list(table("set", {"words 0": whole["words 0"]}, BEFORE))
    ours = {name: made for name, made in whole.items() if name in {"cloud 0", "edge 0"}}
    for figures in ours.values():
        assert isinstance(figures, dict)
        figures.pop("peak_memory_mb")
    assert [item.figure for item in table("set", ours, BEFORE)] == [
        "set: cloud over its edge, points",
        "set: the same, the smallest of the seeds",
        "set: edge accuracy kept of its cloud's",
        "set: training, s",
        "set: edge accuracy, beside its cloud",
    ]


def test_points_are_not_spoilt_by_binary_fractions() -> None:
    assert 100 * (0.903 - 0.9) != points(0.903, 0.9) == 0.3


def test_every_accuracy_has_an_interval() -> None:
    found = {"before 0": {"accuracy": 0.9, "edge_accuracy": 0.8, "training_s": 1.0}}
    made = intervals(found, 1000)
    assert list(made) == ["before 0: accuracy", "before 0: edge_accuracy"]
    first = made["before 0: accuracy"]
    assert (first["split"], first["rows"], first["share"]) == ("test", 1000, 0.9)
    # Wilson 1927, worked by hand for 900 of 1000.
    assert (first["low"], first["high"]) == pytest.approx((0.8798, 0.9171), abs=1e-4)


# -- what is measured ---------------------------------------------------------------------------


def test_accuracy_is_of_the_shipped_bundle_on_test(tmp_path: Path) -> None:
    """Five messages, one of them labelled as what it is not."""
    named = ["negative", "neutral", "positive", "positive", "negative"]
    texts = [message(label) for label in (*named[:4], "neutral")]
    rows = {"text": texts, "pii": [[] for _ in named], "label": named, "key": texts}
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    dataset = Dataset(tmp_path, LABELS, "f00d", {"test": 5}, {})
    assert accuracy_of(make_bundle(tmp_path, "cloud"), dataset) == 0.8


def test_only_stages_that_train_count() -> None:
    spent = {"data": 1.0, "dapt": 2.0, "recipe": 4.0, "finetune": 8.0, "compress": 16.0,
             "calibrate": 32.0, "gate": 64.0}  # fmt: skip
    assert training_s(spent) == 14.0


def test_peak_memory_is_the_largest_that_is_reported() -> None:
    assert peak({"peak_memory_mb": 2.0}, {}, {"peak_memory_mb": 3.0}) == {"peak_memory_mb": 3.0}
    assert peak({}, {"perplexity_after": 3.0}) == {}


def test_few_rows_are_few_of_everything_that_is_trained_on(
    tmp_path: Path, settings: Settings
) -> None:
    write_csv(tmp_path / "messages.csv", 400, seed=0)
    whole = build(DataConfig(data=tmp_path / "messages.csv"), settings)
    few, fewer = cut(whole, 100, tmp_path / "few"), cut(whole, 50, tmp_path / "fewer")
    keys = [{row.key for row in made.read("train")} for made in (whole, few, fewer)]
    assert keys[2] < keys[1] < keys[0]
    assert {row.key for row in few.read("dapt")} == keys[1]
    assert (few.rows["train"], few.rows["dapt"]) == (100, 100)
    assert few.read("test") == whole.read("test")
    assert few.labels == whole.labels
    assert few.fingerprint != whole.fingerprint

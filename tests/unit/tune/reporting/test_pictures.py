"""The pictures: what is put on paper, for few classes and for many, whatever is promised."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy
from serve_app.decide.scores import MaxProbability
from tests.support.tables import toy_table
from tune.certificate.limits import Limits
from tune.objective import FrontPoint, Shape, curve, evaluate, kept
from tune.replay import Floats, Table
from tune.reporting import class_pictures, pictures
from tune.reporting.class_pictures import MAX_CLASSES, draw_class_coverage, draw_class_routes
from tune.reporting.metrics import oracle
from tune.reporting.models import Measured, PerTier, ReleaseReport
from tune.reporting.pictures import draw, draw_accuracy_cost, draw_risk_coverage
from tune.reporting.report import build_report
from tune.select import Selection, Wanted, select

NOW = "2026-01-01T00:00:00+00:00"
PRICES = Prices()
TUNE, CERTIFY, TEST = (
    toy_table(1500, seed, split) for seed, split in enumerate(("tune", "certify", "test"))
)
POLICY = RouterPolicy(name="one", score=MaxProbability(), threshold=0.9)
FRONT = [FrontPoint(policy=POLICY, outcome=evaluate(POLICY, TUNE, PRICES))]


def selected(**limits: float) -> Selection:
    return select(FRONT, {}, TUNE, CERTIFY, Wanted(limits=Limits(**limits), prices=PRICES), NOW)


def report_of(selection: Selection) -> ReleaseReport:
    measured = Measured(release="r", size_bytes=PerTier(edge=1, cloud=2), stages_s={})
    return build_report(
        tune=TUNE, test=TEST, selection=selection, prices=PRICES, measured=measured, created_at=NOW
    )


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of what is saved, in place of files."""
    seen: list[Axes] = []

    def keep(figure: Figure, axes: Axes, path: Path, *, columns: int = 1) -> None:
        seen.extend(figure.axes)

    monkeypatch.setattr(pictures, "save", keep)
    monkeypatch.setattr(class_pictures, "save", keep)
    return seen


def line(axes: Axes, label: str) -> Floats:
    """(n, 2): x and y of what the legend calls so."""
    found = [line for line in axes.lines if line.get_label() == label]
    return np.column_stack([found[0].get_xdata(), found[0].get_ydata()])


def widths_of(axes: Axes) -> list[float]:
    """Of the bars, in the order in which they were drawn."""
    return [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]


def many_classes(classes: int, each: int = 20) -> Table:
    """A table of classes of about equal size, each kept at the edge with another share."""
    base = toy_table(classes * each, 5, "test", pinned_share=0.0)
    labels = np.repeat(np.arange(classes), each)
    confidence = (np.tile(np.arange(each), classes) + 0.5) / each
    signals = {**base.signals, "confidence": np.clip(confidence + labels / classes, 0, 1)}
    return replace(
        base, labels=tuple(f"class_{i:03}" for i in range(classes)), signals=signals,
        edge_label=labels, cloud_label=labels, true_label=labels,
    )  # fmt: skip


@pytest.mark.parametrize(
    "limits",
    [{"risk": 0.05}, {"agreement": 0.9}, {"accuracy_loss": 0.08}, {"risk": 0.1, "cost_usd": 0.012}],
)
def test_every_picture_is_a_file_with_a_caption_of_its_own(
    tmp_path: Path, limits: dict[str, float]
) -> None:
    selection = selected(**limits)
    made = draw(
        tmp_path, tune=TUNE, certify=CERTIFY, test=TEST, front=FRONT, selection=selection,
        prices=PRICES, report=report_of(selection),
    )  # fmt: skip
    assert [path.stem for path in made.values()] == [
        "accuracy_cost", "risk_coverage", "coverage_per_class", "routes_per_class",
        "baselines", "reliability", "pareto",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made.values())
    guaranteed = [caption for caption in made if "guaranteed" in caption or "certified" in caption]
    assert sum("exchangeable" in caption for caption in guaranteed) == 2


def test_accuracy_lies_between_the_random_mix_and_hindsight(paper: list[Axes]) -> None:
    selection = selected(risk=0.05)
    draw_accuracy_cost(Path(), selection.policy, TEST, PRICES, report_of(selection))
    score = line(paper[0], "the certified policy's score")
    mix, best = line(paper[0], "random mix of edge and cloud"), line(paper[0], "hindsight bound")
    # Both ends of the mix pay the edge; the cloud pays itself on top, for all that may leave.
    free = 1 - TEST.pinned.mean()
    assert mix[:, 0] == pytest.approx([0.001, 0.001 + free * 0.0136])
    assert mix[0, 1] == TEST.edge_right.mean()
    assert (np.interp(score[:, 0], best[:, 0], best[:, 1]) >= score[:, 1] - 1e-12).all()
    assert np.mean(score[:, 1] > np.interp(score[:, 0], mix[:, 0], mix[:, 1])) > 0.9
    assert best[-1, 1] == oracle(TEST.edge_right, TEST.cloud_right, TEST.pinned, 1500).accuracy[-1]


def test_the_close_up_shows_the_certified_policy(paper: list[Axes]) -> None:
    selection = selected(risk=0.05)
    report = report_of(selection)
    draw_accuracy_cost(Path(), selection.policy, TEST, PRICES, report)
    low, high = paper[1].get_xlim()
    assert low < PRICES.edge_usd < report.cost.per_message_usd < high


def test_risks_that_matter_fill_the_picture(paper: list[Axes]) -> None:
    selection = selected(risk=0.02)
    draw_risk_coverage(Path(), (TUNE, CERTIFY, TEST), selection, report_of(selection))
    axes = paper[0]
    assert curve(Shape.of(selection.policy), TEST).risk.max() > axes.get_ylim()[1]
    assert axes.get_ylim()[1] == pytest.approx(4 * 0.02)
    assert axes.get_xlim()[0] < selection.certificate.edge_share


def test_an_agreement_allows_risk_in_proportion_to_what_is_kept(paper: list[Axes]) -> None:
    selection = selected(agreement=0.9)
    draw_risk_coverage(Path(), (TUNE, CERTIFY, TEST), selection, report_of(selection))
    limit = line(paper[0], "guaranteed below, if messages are exchangeable")
    np.testing.assert_allclose(limit, np.array([[0.0, 0.0], [1.0, 0.1]]))


def test_few_classes_are_all_shown_lowest_first(paper: list[Axes]) -> None:
    table = many_classes(5)
    policy = RouterPolicy(name="half", score=MaxProbability(), threshold=0.8)
    draw_class_coverage(Path(), policy, table)
    widths = widths_of(paper[0])
    at_edge = kept(policy, table)
    assert widths == pytest.approx([at_edge[table.edge_label == i].mean() for i in range(5)])
    assert widths == sorted(widths)
    assert paper[0].get_yticklabels()[0].get_text() == "class_000 (20)"


def test_of_many_classes_the_extremes_are_shown(paper: list[Axes]) -> None:
    draw_class_coverage(Path(), POLICY, many_classes(151))
    names = [label.get_text().split()[0] for label in paper[0].get_yticklabels()]
    assert len(names) == len(set(names)) == MAX_CLASSES
    assert names[0] == "class_000"
    widths = widths_of(paper[0])
    assert widths == sorted(widths)
    assert widths[-1] == 1.0
    assert "121 between not shown" in paper[0].get_title()


def test_routes_of_a_class_are_all_of_its_messages(paper: list[Axes]) -> None:
    draw_class_routes(Path(), POLICY, TEST)
    axes = paper[0]
    parts = np.array(widths_of(axes)).reshape(4, -1)
    assert parts.sum(axis=0) == pytest.approx(np.ones(4))
    stays, known = kept(POLICY, TEST), TEST.known
    assert parts[:, 0] * known.sum() == pytest.approx(
        [
            (stays & TEST.edge_right).sum(), (stays & ~TEST.edge_right).sum(),
            (~stays & ~TEST.cloud_right).sum(), (~stays & TEST.cloud_right).sum(),
        ]
    )  # fmt: skip


def test_many_classes_are_the_largest_and_all_others(paper: list[Axes]) -> None:
    draw_class_routes(Path(), POLICY, many_classes(77))
    names = [label.get_text() for label in paper[0].get_yticklabels()]
    assert len(names) == MAX_CLASSES + 2
    assert (names[0], names[-1]) == ("all classes (1540)", "the 47 other classes (940)")


def test_rows_without_a_label_are_in_no_class(paper: list[Axes]) -> None:
    table = toy_table(600, 7, "test", unknown_share=0.5)
    draw_class_routes(Path(), POLICY, table)
    name = paper[0].get_yticklabels()[0].get_text()
    assert name == f"all classes ({table.known.sum()})"

"""The report: every figure from the test split, with intervals, on one page that needs no other."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.cli.report import show
from cluster.errors import DataError
from serve_app.decide.cost import Prices
from serve_app.decide.policy import BASELINES, RouterPolicy, Rules
from serve_app.decide.scores import Logistic, MaxProbability, Weighted
from serve_app.model.reliability import reliability
from tests.support.tables import LABELS, toy_table
from tune.certificate.limits import Limits
from tune.objective import FrontPoint, Shape, curve, evaluate, kept, trusts
from tune.replay import UNKNOWN
from tune.reporting.metrics import hindsight_coverage
from tune.reporting.models import Latency, Measured, PerTier, ReleaseReport
from tune.reporting.page import disagreements, render_html, write
from tune.reporting.pictures import draw
from tune.reporting.report import build_report, max_probability, order, score_metrics
from tune.select import Selection, Wanted, select

NOW = "2026-01-01T00:00:00+00:00"
PRICES = Prices()
TUNE, TEST = toy_table(1500, 1), toy_table(1200, 3, "test")
CERTIFY = toy_table(1500, 2, "certify")
MEASURED = Measured(
    release="r-0123456789",
    size_bytes=PerTier(edge=12_345_678, cloud=90_000_000),
    latency_ms=Latency(p50=3.25, p95=8.5),
    stages_s={"data": 1.5, "<finetune>": 62.0},
)


@pytest.fixture(scope="module")
def front() -> list[FrontPoint]:
    policy = RouterPolicy(name="found", score=Weighted(weights={"confidence": 1.0}), threshold=0.9)
    return [FrontPoint(policy=policy, outcome=evaluate(policy, TUNE, PRICES))]


@pytest.fixture(scope="module")
def selection(front: list[FrontPoint]) -> Selection:
    return select(front, {}, TUNE, CERTIFY, Wanted(limits=Limits(risk=0.08), prices=PRICES), NOW)


@pytest.fixture(scope="module")
def report(selection: Selection) -> ReleaseReport:
    return build_report(
        tune=TUNE, test=TEST, selection=selection, prices=PRICES, measured=MEASURED, created_at=NOW
    )


def test_the_shape_that_others_read(report: ReleaseReport) -> None:
    data = report.model_dump(mode="json")
    assert set(data["accuracy"]) == {"edge", "cloud", "cascade"}
    assert {"promises", "confidence", "rows", "reference", "assumes"} <= set(data["certificate"])
    assert {"per_message_usd", "savings_vs_cloud_only"} <= set(data["cost"])
    assert data["size_bytes"] == {"edge": 12_345_678, "cloud": 90_000_000}
    assert data["latency_ms"] == {"p50": 3.25, "p95": 8.5}
    assert data["stages_s"]["data"] == 1.5
    assert 0 < data["edge_share"] < 1
    assert (data["split"], data["release"]) == ("test", "r-0123456789")
    assert set(data["intervals"]["accuracy"]) == set(data["accuracy"])
    assert set(data["baselines"]) == {policy.name for policy in BASELINES} | {"max_probability"}


def test_figures_are_those_of_the_test_split(report: ReleaseReport, selection: Selection) -> None:
    outcome = evaluate(selection.policy, TEST, PRICES)
    assert report.accuracy.cascade == outcome.accuracy
    assert report.accuracy.edge == TEST.edge_right.mean()
    assert report.accuracy.cloud == TEST.cloud_right.mean()
    assert report.risk == outcome.risk
    assert report.cost.per_message_usd == outcome.cost_usd
    assert report.cost.savings_vs_cloud_only == 1 - outcome.cost_usd / 0.0136
    assert report.baselines["always_edge"].accuracy == report.accuracy.edge
    assert report.baselines["always_cloud"].savings_vs_cloud_only < 0


def test_every_interval_contains_its_figure(report: ReleaseReport) -> None:
    for name in ("edge", "cloud", "cascade"):
        low, high = getattr(report.intervals.accuracy, name)
        assert 0 <= low < getattr(report.accuracy, name) < high <= 1
    for found in report.baselines.values():
        assert found.accuracy_interval[0] <= found.accuracy <= found.accuracy_interval[1]
        assert found.risk_interval[0] <= found.risk <= found.risk_interval[1]


def test_max_probability_is_compared_at_the_same_edge_share(selection: Selection) -> None:
    rival = max_probability(selection.policy, TUNE, PRICES)
    ours = evaluate(selection.policy, TUNE, PRICES).edge_share
    assert evaluate(rival, TUNE, PRICES).edge_share == pytest.approx(ours, abs=1 / TUNE.rows)
    assert rival.score == MaxProbability()


def test_reliability_bins() -> None:
    confidence = np.array([0.1, 0.12, 0.9, 1.0])
    found = reliability(confidence, np.array([False, True, True, True]), bins=5)
    np.testing.assert_allclose(found.confidence, [0.11, 0.95])
    np.testing.assert_allclose(found.accuracy, [0.5, 1.0])
    assert found.count.tolist() == [2, 2]
    assert found.error == pytest.approx(0.5 * 0.39 + 0.5 * 0.05)


def test_a_calibrated_edge_has_a_small_error(report: ReleaseReport) -> None:
    assert report.edge_calibration_error < 0.03


def test_files_hold_the_figures_and_the_page_needs_nothing_else(
    tmp_path: Path, report: ReleaseReport, selection: Selection, front: list[FrontPoint]
) -> None:
    pictures = draw(
        tmp_path, tune=TUNE, certify=CERTIFY, test=TEST, front=front, selection=selection,
        prices=PRICES, report=report,
    )  # fmt: skip
    data, page = write(tmp_path, report, pictures)
    assert ReleaseReport.model_validate(json.loads(data.read_text())) == report
    html = page.read_text()
    for figure in (
        f"{100 * report.accuracy.edge:.1f}%",
        f"{100 * report.accuracy.cascade:.1f}%",
        f"{100 * report.edge_share:.1f}%",
        f"{report.certificate.promises['risk'].failures} failures in 1500",
        "below 8.00%",
        "CPT(95%), as cost per message",
        "APGR",
        "3.2 ms p50, 8.5 ms p95",
        "12.3 MB",
        "messages exchangeable with the certified rows",
        "published_five_factor",
        "1.0 \u00d7 confidence",
    ):
        assert figure in html
    assert html.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"(src|href)=[\"'](?!data:)", html)
    assert not re.search(r"@import|<script|<link|url\(", html)
    for picture in pictures.values():
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_tells_every_part_of_the_rule(report: ReleaseReport) -> None:
    policy = RouterPolicy(
        name="strict",
        score=Logistic(weights={"log_odds": 2.5}, intercept=-0.5, classes={"<neutral>": 1.0}),
        threshold=0.25,
        class_margins={"positive": 0.125},
        rules=Rules(
            never_escalate=("negative",),
            always_escalate=("<neutral>",),
            escalation_words=True,
            max_distance=1.5,
            max_words=40,
        ),
    )
    html = render_html(report.model_copy(update={"policy": policy}), {})
    for said in (
        "-0.5 + 2.5 \u00d7 log_odds + an offset of the predicted class",
        "is at least 0.25",
        "positive +0.125",
        "Never escalated: negative.",
        "Always escalated: &lt;neutral&gt;.",
        "a distance above 1.5",
        "messages with escalation words",
        "more than 40 words",
    ):
        assert said in html
    assert "Never escalated" not in render_html(report, {})


def test_names_from_outside_are_escaped(report: ReleaseReport) -> None:
    html = render_html(report, {})
    assert "&lt;finetune&gt;" in html
    assert "<finetune>" not in html


def test_a_release_that_was_never_served_says_so(report: ReleaseReport) -> None:
    idle = report.model_copy(update={"latency_ms": Latency()})
    assert "not served yet" in render_html(idle, {})
    assert idle.model_dump(mode="json")["latency_ms"] == {"p50": None, "p95": None}


def test_a_report_lacks_nothing_and_holds_nothing_unknown(report: ReleaseReport) -> None:
    data = report.model_dump(mode="json")
    with pytest.raises(ValidationError, match="certificate"):
        ReleaseReport.model_validate(
            {name: part for name, part in data.items() if name != "certificate"}
        )
    with pytest.raises(ValidationError, match="surprise"):
        ReleaseReport.model_validate({**data, "surprise": 1})


def test_warnings_stand_at_the_top_and_old_reports_have_none(
    report: ReleaseReport, capsys: pytest.CaptureFixture[str]
) -> None:
    data = report.model_dump(mode="json")
    assert data.pop("warnings") == []
    assert ReleaseReport.model_validate(data) == report
    assert "a user accepted it" not in render_html(report, {})
    poor = report.model_copy(update={"warnings": ("It never finds '<b>'.", "Small.")})
    html = render_html(poor, {})
    assert html.index("It never finds &#39;&lt;b&gt;&#39;.") < html.index("answered at the edge")
    assert "<li>Small.</li>" in html
    show(poor)
    assert "  Warning: It never finds '<b>'.\n  Warning: Small.\n" in capsys.readouterr().out


def test_the_warnings_of_the_bundles_become_the_reports(selection: Selection) -> None:
    poor = MEASURED.model_copy(update={"warnings": ("Poor.",)})
    made = build_report(
        tune=TUNE, test=TEST, selection=selection, prices=PRICES, measured=poor, created_at=NOW
    )
    assert made.warnings == ("Poor.",)


def test_every_certified_number_says_what_it_assumes(report: ReleaseReport) -> None:
    """Tiles, the sentence, both tables and the glossary: one place more than there are headings."""
    html = " ".join(render_html(report, {}).split())
    for before in (
        "at 95% confidence, assuming",
        "certified, assuming",
        "the same score at another risk, assuming",
        "over the draw of the certified rows, and assuming",
    ):
        assert f"{before} messages exchangeable with the certified rows" in html


def test_promises_of_every_kind_are_told(report: ReleaseReport) -> None:
    promise = report.certificate.promises["risk"]
    kinds = ("agreement", "accuracy_loss", "cloud_share", "cost_usd")
    promises = {kind: promise.model_copy(update={"limit": 0.04321}) for kind in kinds}
    certificate = report.certificate.model_copy(update={"promises": promises})
    html = render_html(report.model_copy(update={"certificate": certificate}), {})
    assert "above 4.32%" in html
    assert "the accuracy lost is below 4.32%" in html
    assert "the cloud share is below 4.32%" in html
    assert "the cost is below $0.04321" in html
    assert "Fewer than" not in html


def test_agreement_and_accuracy_lost_are_those_of_the_kept_rows(
    report: ReleaseReport, selection: Selection
) -> None:
    stays = kept(selection.policy, TEST)
    assert report.agreement == (~TEST.differs)[stays].mean()
    assert report.accuracy_loss == pytest.approx(report.accuracy.cloud - report.accuracy.cascade)
    low, high = report.intervals.accuracy_loss
    assert low < report.accuracy_loss < high


def test_alternatives_are_judged_on_the_test_split(
    report: ReleaseReport, selection: Selection
) -> None:
    assert report.alternatives
    for point, said in zip(report.alternatives, selection.alternatives, strict=True):
        policy = selection.sequence.shape.policy("other", said.threshold)
        assert point.figures.accuracy == evaluate(policy, TEST, PRICES).accuracy


def test_scores_are_compared_at_the_certified_limits(
    report: ReleaseReport, selection: Selection
) -> None:
    ours, random = report.scores["certified"], report.scores["random"]
    assert set(report.scores) == {"certified", "max_probability", "random"}
    assert ours.aurc.value < random.aurc.value
    assert ours.apgr is not None
    assert random.apgr is not None
    assert ours.apgr.value > 0.6 > random.apgr.value > 0.4
    score = order(Shape.of(selection.policy), TEST)
    assert ours.hindsight_coverage.value == hindsight_coverage(score, TEST.differs, 0.08)
    assert report.of_hindsight == report.edge_share / ours.hindsight_coverage.value
    assert list(ours.cpt) == ["50%", "80%", "95%"]
    half = ours.cpt["50%"]
    assert half.cost_usd.value == PRICES.per_message(half.cloud_share.value)
    assert half.cost_usd.interval is not None
    assert half.cost_usd.interval[0] <= half.cost_usd.value <= half.cost_usd.interval[1]


def test_a_score_obeys_the_rules_of_its_policy() -> None:
    """What a rule keeps or sends away, no threshold moves; hindsight may not count on it."""
    rules = Rules(never_escalate=(LABELS[0],), always_escalate=(LABELS[1],))
    shape = Shape(score=MaxProbability(), rules=rules)
    score, found = order(shape, TEST), curve(shape, TEST)
    assert set(score[TEST.pinned]) == {np.inf}
    assert set(score[~TEST.pinned & (TEST.edge_label == 1)]) == {-np.inf}
    assert hindsight_coverage(score, TEST.differs, 1.0) == found.edge_share.max()


def test_no_gap_leaves_no_metric_of_the_gap() -> None:
    """A cloud that is no better than the edge: nothing to recover, and the page says so."""
    swapped = replace(TEST, edge_label=TEST.cloud_label, cloud_label=TEST.edge_label)
    found = score_metrics(order(Shape(score=MaxProbability()), swapped), swapped, {}, PRICES)
    assert (found.apgr, found.cpt) == (None, {})
    assert found.hindsight_coverage.value == 1.0


def test_oracle_is_above_every_threshold(report: ReleaseReport, selection: Selection) -> None:
    assert curve(Shape.of(selection.policy), TEST).accuracy.max() <= report.oracle.accuracy
    free = (TEST.cloud_right & ~TEST.edge_right & ~TEST.pinned).mean()
    assert report.oracle.cloud_share == pytest.approx(free)
    assert report.oracle.accuracy == pytest.approx(report.accuracy.edge + free)


# ---- the worst disagreements ----------------------------------------------------------------

TEXTS = [f"message <{i}> of jane.doe@example.com " + "x" * 200 for i in range(TEST.rows)]


def test_the_worst_disagreements_are_the_most_trusted(selection: Selection) -> None:
    found = disagreements(selection.policy, TEST, TEXTS, 5)
    trust = trusts(selection.policy, TEST)
    wrong = kept(selection.policy, TEST) & TEST.differs & ~TEST.pinned
    assert [one.trust for one in found] == sorted(trust[wrong], reverse=True)[:5]
    assert all(one.edge != one.cloud for one in found)
    with pytest.raises(DataError, match="1200 rows, but 3 texts"):
        disagreements(selection.policy, TEST, TEXTS[:3])


def test_messages_are_masked_cut_and_escaped(report: ReleaseReport, selection: Selection) -> None:
    found = disagreements(selection.policy, TEST, TEXTS)
    assert len(found) == 20
    assert all(len(one.text) == 160 for one in found)
    html = render_html(report, {}, found)
    assert "jane.doe" not in html
    assert "message &lt;" in html
    assert "message <" not in html
    assert "jane" not in repr(found)
    assert "message" not in repr(found)


def test_messages_with_personal_data_are_not_shown(selection: Selection) -> None:
    everything = replace(TEST, pinned=np.ones(TEST.rows, np.bool_))
    assert disagreements(selection.policy, everything, TEXTS) == []


def test_messages_stand_in_the_page_and_nowhere_else(
    tmp_path: Path, report: ReleaseReport, selection: Selection
) -> None:
    worst = disagreements(selection.policy, TEST, TEXTS)
    data, page = write(tmp_path, report, {}, worst)
    assert "message &lt;" in page.read_text()
    assert "message <" not in data.read_text()
    assert "Worst disagreements" not in render_html(report, {})


def test_a_test_split_without_labels_is_refused(selection: Selection) -> None:
    bare = replace(TEST, true_label=np.full(TEST.rows, UNKNOWN))
    with pytest.raises(DataError, match="true label"):
        build_report(
            tune=TUNE, test=bare, selection=selection, prices=PRICES, measured=MEASURED,
            created_at=NOW,
        )  # fmt: skip

"""The gate: a bad pair is refused with the whole table and leaves no trace; a good one is in."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bundles import DatasetRef, Finished, GoldenRow, Metric, ModelBundle, Role, write_bundle
from cluster.errors import ConfigError, GateError
from cluster.registry import fetch_bundle
from cluster.settings import Settings
from cluster.tracking import client
from serve_app.model.classifier import OnnxClassifier
from tests.support.toys import LABELS, WORDS, make_bundle
from train_jobs.card import CARD
from train_jobs.compress import ArtifactChoice, Compressed, Variant
from train_jobs.data import DataConfig, Dataset, build
from train_jobs.gate import (
    Check,
    GateLimits,
    Judged,
    check,
    latency_ratio,
    paired_interval,
    quality,
    read_limits,
    run,
)
from train_jobs.pipeline import parse

# Words alone answer every toy message rightly, and no toy can do better than that.
WIDE = GateLimits(max_size_ratio=1.5, max_latency_ratio=2.0, min_gain_over_words=-1)
# Every word says the first label: the toy answers it to any message of the dataset.
ONE_ANSWER = {
    LABELS[0]: tuple(word for group in WORDS.values() for word in group),
    LABELS[1]: ("never", "said"),
    LABELS[2]: ("nor", "these"),
}


def limits(**over: float) -> GateLimits:
    return GateLimits.model_validate({**WIDE.model_dump(), **over})


def messages(mark: str = "") -> list[tuple[str, str]]:
    """Two words of a label each: the toy edge knows half of them."""
    return [
        (f"{first} {second} {mark}{number}", label)
        for label in LABELS
        for first in WORDS[label]
        for second in WORDS[label]
        for number in range(6)
    ]


def made_of(rows: Sequence[tuple[str, str]], folder: Path, settings: Settings) -> Dataset:
    file = folder / "messages.csv"
    file.write_text("\n".join(["text,label", *map(",".join, rows)]))
    return build(DataConfig(data=file), settings)


@pytest.fixture
def dataset(settings: Settings, tmp_path: Path) -> Dataset:
    return made_of(messages(), tmp_path, settings)


def bundle(
    folder: Path,
    role: Role,
    *,
    known_share: float | None = None,
    error: float = 0.02,
    golden: list[GoldenRow] | None = None,
    padding: bytes = b"",
    anywhere: list[GoldenRow] | None = None,
    card: str | None = None,
) -> ModelBundle:
    """A toy bundle with the figures that a trained one states."""
    toy = make_bundle(folder / "toy", role, known_share=known_share)
    model = folder / f"{role}-{len(padding)}.onnx"
    model.write_bytes(toy.model_path.read_bytes())
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(toy.tokenizer_path.read_bytes() + padding)
    if card is not None:
        (folder / CARD).write_text(card)
    return write_bundle(
        folder / role, role=role, model=model, tokenizer=tokenizer, labels=LABELS,
        temperature=1.0, max_tokens=64, dataset=DatasetRef(fingerprint="toy", rows={}),
        metrics={"calibration_error": Metric(value=error, split="tune", rows=80)}, recipe={},
        golden=toy.golden() if golden is None else golden,
        needs=() if anywhere is None else ("vnni",),
        anywhere=None if anywhere is None else Finished(model, 1.0, anywhere),
        extras=[] if card is None else [folder / CARD],
    )  # fmt: skip


@pytest.fixture
def cloud(tmp_path: Path) -> ModelBundle:
    return bundle(tmp_path / "c", "cloud")


def registered(settings: Settings) -> list[str]:
    return [model.name for model in client(settings).search_registered_models()]


def failed(
    edge: ModelBundle, cloud: ModelBundle, dataset: Dataset, stated: GateLimits = WIDE,
    ratio: float = 0.5,
) -> list[str]:  # fmt: skip
    checks = check(edge, cloud, ratio, dataset, stated, seed=0)
    return [item.name.split(" (")[0] for item in checks if not item.ok]


def test_a_good_pair_is_registered(
    settings: Settings, dataset: Dataset, cloud: ModelBundle, tmp_path: Path
) -> None:
    edge = bundle(tmp_path / "e", "edge")
    passed = run(edge, cloud, 0.5, dataset, WIDE, settings=settings, accept=True)
    assert len(passed.checks) == 11
    assert all(item.ok for item in passed.checks)
    assert (passed.edge, passed.cloud) == (edge, cloud)
    assert OnnxClassifier.load(fetch_bundle(settings, "edge")).sha256 == edge.sha256
    assert OnnxClassifier.load(fetch_bundle(settings, "cloud")).sha256 == cloud.sha256


def test_a_bad_pair_is_refused_with_the_table_and_leaves_no_trace(
    settings: Settings, dataset: Dataset, cloud: ModelBundle, tmp_path: Path
) -> None:
    edge = bundle(tmp_path / "e", "edge", known_share=0.0, error=0.4)
    with pytest.raises(GateError, match="nothing was registered") as caught:
        run(edge, cloud, 0.9, dataset, limits(max_latency_ratio=0.6), settings=settings)
    table = str(caught.value).splitlines()
    assert [line.split()[0] for line in table[1:-1]].count("FAIL") == 2
    assert len(table[1:-1]) == 11
    assert table[-1].startswith("Train longer")
    assert any("FAIL calibration error" in line and "0.4000  limit 0.1" in line for line in table)
    assert any("FAIL latency" in line and "0.9000  limit 0.6" in line for line in table)
    assert registered(settings) == []
    assert not settings.bundles_dir.exists()


def test_accuracy_is_compared_with_the_clouds(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge that took its labels in another order is right by chance only."""
    cloud = bundle(tmp_path / "c", "cloud")
    monkeypatch.setattr(
        "tests.support.toys.WORDS", dict(zip(LABELS, [*WORDS.values()][::-1], strict=True))
    )
    edge = bundle(tmp_path / "e", "edge", golden=[])
    assert failed(edge, cloud, dataset) == ["accuracy kept", "classes never found"]


def test_size_counts_what_is_shipped(dataset: Dataset, cloud: ModelBundle, tmp_path: Path) -> None:
    edge = bundle(tmp_path / "e", "edge", padding=b" " * cloud.size_bytes)
    assert failed(edge, cloud, dataset) == ["size"]


def test_wrong_golden_outputs_are_counted(
    dataset: Dataset, cloud: ModelBundle, tmp_path: Path
) -> None:
    right = bundle(tmp_path / "e", "edge").golden()
    wrongs = {"label": "neutral", "energy": 20.0, "distance": 1.0, "ngram_margin": 1.0}
    for name, wrong in wrongs.items():
        golden = [right[0].model_copy(update={name: wrong})]
        edge = bundle(tmp_path / name, "edge", golden=golden)
        assert failed(edge, cloud, dataset) == ["bundles with wrong golden outputs"]


def test_golden_outputs_of_the_file_for_other_cpus_are_checked_too(
    dataset: Dataset, cloud: ModelBundle, tmp_path: Path
) -> None:
    """On this CPU nobody would run it, and on the others it would be too late."""
    right = bundle(tmp_path / "e", "edge").golden()
    good = bundle(tmp_path / "good", "edge", anywhere=right)
    assert failed(good, cloud, dataset) == []
    wrong = [row.model_copy(update={"label": "neutral"}) for row in right]
    bad = bundle(tmp_path / "bad", "edge", anywhere=wrong)
    assert failed(bad, cloud, dataset) == ["bundles with wrong golden outputs"]


def test_answers_that_depend_on_company_are_counted(
    dataset: Dataset, cloud: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dynamic int8 does when messages share a run; the toy is made to do it here."""
    edge = bundle(tmp_path / "e", "edge")
    real = OnnxClassifier.predict

    def shared(self: OnnxClassifier, texts: list[str]) -> object:
        made = real(self, texts)
        off = 1e-9 * (len(texts) > 1)
        return [item._replace(confidence=item.confidence - off) for item in made]

    monkeypatch.setattr(OnnxClassifier, "predict", shared)
    assert failed(edge, cloud, dataset) == ["answers changed by company"]


@pytest.mark.parametrize("name", ["max_size_ratio", "max_calibration_error", "max_latency_ratio"])
def test_a_limit_that_is_just_met_is_met(
    dataset: Dataset, cloud: ModelBundle, tmp_path: Path, name: str
) -> None:
    edge = bundle(tmp_path / "e", "edge")
    found = {
        "max_size_ratio": edge.size_bytes / cloud.size_bytes,
        "max_calibration_error": 0.02,
        "max_latency_ratio": 0.5,
    }
    assert failed(edge, cloud, dataset, limits(**found)) == []
    less = {**found, name: found[name] * 0.999}
    assert len(failed(edge, cloud, dataset, limits(**less))) == 1


def test_latency_is_that_of_the_chosen_variants() -> None:
    def side(chosen: str, **p50_ms: float) -> Compressed:
        known = {**dict.fromkeys(Variant.model_fields, 0), "split": "calibration", "needs": ()}
        variants = [
            Variant.model_validate({**known, "name": name, "p50_ms": ms})
            for name, ms in p50_ms.items()
        ]
        return Compressed(Path(), ArtifactChoice(chosen, None), tuple(variants), 64)

    assert side("int8", int8=1.0).model() == Path("int8.onnx")
    assert side("int8", int8=1.0).model("fp32") == Path("fp32.onnx")
    assert latency_ratio(side("int8", fp32=4.0, int8=1.0), side("fp32", fp32=5.0)) == 0.2


def test_limits_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    file.write_text('{"max_size_ratio": 0.5}')
    assert read_limits(file) == GateLimits(max_size_ratio=0.5)


@pytest.mark.parametrize("content", ["{", '{"max_sise_ratio": 1}', '{"max_size_ratio": "big"}'])
def test_limits_that_make_no_sense_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "limits.json"
    file.write_text(content)
    with pytest.raises(
        ConfigError, match=r"limits\.json cannot be used.*\n(.*\n)*Known limits: min_a"
    ):
        read_limits(file)
    with pytest.raises(ConfigError, match="There is no file"):
        read_limits(tmp_path / "gone.json")


# ---- quality ------------------------------------------------------------------------------------


def judged(
    truth: Sequence[int],
    *,
    edge: Sequence[int] | None = None,
    cloud: Sequence[int] | None = None,
    words: Sequence[int] | None = None,
    largest: int = 0,
) -> Judged:
    """Who says nothing is right about everything, but for words, which are always wrong."""
    right, wrong = list(truth), [-1] * len(truth)
    edge, cloud, words = edge or right, cloud or right, words or wrong
    answers = {"truth": truth, "edge": edge, "cloud": cloud, "words": words}
    return Judged(
        labels=LABELS, largest=largest,
        **{name: np.array(numbers, np.int64) for name, numbers in answers.items()},
    )  # fmt: skip


def found_wrong(case: Judged, **over: float) -> list[Check]:
    return [item for item in quality(case, GateLimits.model_validate(over)) if not item.ok]


TRUTH = [0] * 60 + [1] * 40


def test_a_good_pair_has_no_quality_to_accept() -> None:
    assert found_wrong(judged(TRUTH)) == []


def test_a_cloud_no_better_than_words_alone_is_named_with_both_figures() -> None:
    cloud = [0] * 50 + [1] * 50
    for words, said in ((cloud, "90.0%"), (TRUTH, "100.0%")):
        only = found_wrong(judged(TRUTH, cloud=cloud, edge=cloud, words=words))
        assert [item.warning for item in only] == [
            "The cloud model (90.0%) is not better than TF-IDF with logistic regression "
            f"({said}) on 100 rows of tune."
        ]
    better = [1] * 11 + TRUTH[11:]
    assert found_wrong(judged(TRUTH, cloud=cloud, edge=cloud, words=better)) == []
    only = found_wrong(
        judged(TRUTH, cloud=cloud, edge=cloud, words=better), min_gain_over_words=0.02
    )
    assert "regression (89.0%) by more than 2.0% on" in str(only[0].warning)


def test_a_pair_that_always_answers_the_largest_class_is_refused() -> None:
    """It is 79% right: 0 of 26 of the other class found, and six of six checks once passed."""
    truth, always = [0] * 98 + [1] * 26, [0] * 124
    found = found_wrong(judged(truth, edge=always, cloud=always))
    assert [item.name.split(" (")[0] for item in found] == [
        "accuracy over largest class", "classes never found", "classes never found"
    ]  # fmt: skip
    warnings = [str(item.warning) for item in found]
    assert "always answering 'negative' (79.0%)" in warnings[0]
    assert warnings[1] == "The cloud model never finds 'neutral' (0 of 26) on 124 rows of tune."
    assert warnings[2].startswith("The edge model never finds")


@pytest.mark.parametrize(("found", "refused"), [(3, True), (10, False)])
def test_the_largest_class_is_beaten_by_more_than_chance(found: int, refused: bool) -> None:
    """All of the first class is right, and some of the second."""
    cloud = [0] * 60 + [1] * found + [0] * (40 - found)
    assert bool(found_wrong(judged(TRUTH, cloud=cloud, edge=cloud))) == refused


def test_an_edge_is_better_than_its_cloud_only_beyond_chance() -> None:
    def pair(more: int) -> Judged:
        return judged(TRUTH, cloud=[1] * more + TRUTH[more:])

    assert found_wrong(pair(3)) == []
    (only,) = found_wrong(pair(10))
    assert only.name.startswith("accuracy over the cloud's")
    assert only.warning == (
        "The edge model (100.0%) is significantly better than its cloud model (90.0%) on 100 rows "
        "of tune (95% interval of the difference +3.7 to +15.9 points): its teacher was "
        "under-trained."
    )
    assert found_wrong(pair(10), max_edge_gain=0.05) == []


@pytest.mark.parametrize(("rows", "missed"), [(4, []), (5, [1, 1])])
def test_a_class_is_missed_only_if_it_has_rows_to_tell(rows: int, missed: list[int]) -> None:
    answers = [*TRUTH, *[0] * rows]
    case = judged([*TRUTH, *[2] * rows], cloud=answers, edge=answers)
    assert [item.found for item in found_wrong(case)] == missed
    assert found_wrong(case, max_classes_never_found=1) == []


def test_many_missed_classes_are_not_all_named() -> None:
    case = Judged(
        labels=[f"c{number}" for number in range(9)],
        truth=np.repeat(np.arange(9), 5), edge=np.repeat(np.arange(9), 5),
        cloud=np.repeat(np.array([0, 1, *[0] * 7]), 5), words=np.full(45, -1), largest=0,
    )  # fmt: skip
    said = [item.warning for item in quality(case, GateLimits()) if "never" in item.name]
    assert "'c6' (0 of 5) and 2 more on 45 rows" in str(said[0])


counts = st.integers(0, 10**6)


@given(first=counts, second=counts, both=counts)
def test_the_paired_interval_holds_the_difference_and_turns_with_its_sign(
    first: int, second: int, both: int
) -> None:
    rows = max(1, first + second + both)
    low, high = paired_interval(first, second, rows)
    assert -1 <= low <= (first - second) / rows <= high <= 1
    assert paired_interval(second, first, rows) == (-high, -low)


def test_the_paired_interval_by_hand() -> None:
    """Agresti and Min 2005: 12.5 and 2.5 of 102 rows."""
    low, high = paired_interval(12, 2, 100)
    spread = 1.959964 * ((12.5 + 2.5 - 10**2 / 102) ** 0.5) / 102
    assert (low, high) == pytest.approx((10 / 102 - spread, 10 / 102 + spread))


# ---- with models --------------------------------------------------------------------------------


@pytest.fixture
def one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelBundle, ModelBundle]:
    """An edge and a cloud that answer the first label to everything."""
    monkeypatch.setattr("tests.support.toys.WORDS", ONE_ANSWER)
    card = "# Model card\n\nA text classifier.\n\n## Data\n\nRows.\n"
    return (
        bundle(tmp_path / "one-e", "edge", card=card),
        bundle(tmp_path / "one-c", "cloud", card=card),
    )


QUALITY = [
    "accuracy over words alone", "accuracy over largest class", "classes never found",
    "classes never found",
]  # fmt: skip


def test_labels_that_are_pure_noise_are_refused(
    settings: Settings, cloud: ModelBundle, tmp_path: Path
) -> None:
    dice = random.Random(1)
    noise = [(text, dice.choice(LABELS)) for text, _ in messages()]
    dataset = made_of(noise, tmp_path, settings)
    edge = bundle(tmp_path / "e", "edge")
    assert "accuracy over largest class" in failed(edge, cloud, dataset)
    with pytest.raises(
        GateError, match=r"labels may not depend on the texts\.\n(.*\n)*.*better lab"
    ):
        run(edge, cloud, 0.5, dataset, WIDE, settings=settings)
    assert registered(settings) == []


def test_a_cloud_that_misses_what_words_tell_is_refused(
    settings: Settings, cloud: ModelBundle, tmp_path: Path
) -> None:
    """`not` turns a message into the next label; the toy does not know the word."""
    turned = {label: LABELS[(i + 1) % 3] for i, label in enumerate(LABELS)}
    rows = messages() + [(text, turned[label]) for text, label in messages("not ")]
    dataset = made_of(rows, tmp_path, settings)
    edge = bundle(tmp_path / "e", "edge")
    stated = limits(min_gain_over_words=0)
    assert failed(edge, cloud, dataset, stated) == ["accuracy over words alone"]


def test_an_edge_better_than_its_cloud_is_refused(
    dataset: Dataset, cloud: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = bundle(tmp_path / "e", "edge")
    monkeypatch.setattr(
        "tests.support.toys.WORDS", dict(zip(LABELS, [*WORDS.values()][::-1], strict=True))
    )
    poor = bundle(tmp_path / "poor", "cloud")
    stated = limits(max_classes_never_found=2, min_gain_over_largest_class=-1)
    assert failed(edge, poor, dataset, stated) == ["accuracy over the cloud's"]
    assert failed(edge, cloud, dataset, stated) == []


def test_one_answer_for_all_is_refused_and_says_what_to_do(
    settings: Settings, dataset: Dataset, one_answer: tuple[ModelBundle, ModelBundle]
) -> None:
    stated = limits(min_gain_over_words=0)
    assert failed(*one_answer, dataset, stated) == QUALITY
    with pytest.raises(GateError) as caught:
        run(*one_answer, 0.5, dataset, stated, settings=settings)
    said = str(caught.value).splitlines()
    assert "The cloud model never finds 'neutral' (0 of " in said[-3]
    assert "--accept" in said[-1]
    assert "--student-layers" not in str(caught.value)
    assert registered(settings) == []


def test_what_is_accepted_is_registered_with_its_warnings(
    settings: Settings, dataset: Dataset, one_answer: tuple[ModelBundle, ModelBundle]
) -> None:
    stated = limits(min_gain_over_words=0)
    passed = run(*one_answer, 0.5, dataset, stated, settings=settings, accept=True)
    warnings = tuple(item.warning for item in passed.checks if not item.ok)
    assert len(warnings) == 4
    for before, after in zip(one_answer, (passed.edge, passed.cloud), strict=True):
        assert before.manifest.warnings == ()
        assert after.manifest.warnings == warnings
        assert after.sha256 != before.sha256
        card = (after.path / CARD).read_text()
        assert card.index("## Warnings") < card.index("## Data")
        assert all(str(warning) in card for warning in warnings)
        kept = OnnxClassifier.load(fetch_bundle(settings, after.manifest.role))
        assert kept.sha256 == after.sha256


def test_what_is_no_matter_of_quality_cannot_be_accepted(
    settings: Settings, dataset: Dataset, one_answer: tuple[ModelBundle, ModelBundle],
    tmp_path: Path,
) -> None:  # fmt: skip
    edge, cloud = one_answer
    wrong = [edge.golden()[0].model_copy(update={"energy": 20.0})]
    broken = bundle(tmp_path / "broken", "edge", golden=wrong)
    with pytest.raises(GateError, match="nothing was registered") as caught:
        run(broken, cloud, 0.5, dataset, WIDE, settings=settings, accept=True)
    assert "FAIL bundles with wrong golden outputs" in str(caught.value)
    assert "--accept" not in str(caught.value)
    assert registered(settings) == []
    assert not cloud.path.with_name("cloud-accepted").exists()


def test_accepting_is_asked_for() -> None:
    words = ["--data", "messages.csv"]
    assert parse([*words, "--accept"]).accept
    assert not parse(words).accept

"""The classifier: alone or in company the same bits, and never a number that is none."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cluster.bundles import MODEL, MODEL_ANY, GoldenRow, ModelBundle
from cluster.errors import BundleError, ModelOutputError
from serve_app.model.classifier import (
    GOLDEN_TOLERANCE,
    OnnxClassifier,
    Outputs,
    softmax,
    to_predictions,
)
from serve_app.model.golden import TierModel
from tests.support.toys import LABELS, WORDS, make_bundle

VOCABULARY = [word for group in WORDS.values() for word in group] + ["unknown"]
OTHERS = ("distance", "ngram_margin")
LOGITS = arrays(np.float32, (3,), elements=st.floats(-50, 50, width=32))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> OnnxClassifier:
    return OnnxClassifier.of(make_bundle(tmp_path_factory.mktemp("toy"), "edge"))


@pytest.fixture
def double(tmp_path: Path) -> ModelBundle:
    """A bundle whose model.onnx needs a CPU flag, with a second artifact for CPUs without."""
    return make_bundle(tmp_path, "edge", needs=("vnni",), anywhere=True)


@given(st.lists(st.lists(st.sampled_from(VOCABULARY), max_size=12), min_size=1, max_size=6))
def test_alone_and_in_company_are_the_same_bits(
    classifier: OnnxClassifier, messages: list[list[str]]
) -> None:
    texts = [" ".join(words) for words in messages]
    together = classifier.predict(texts)
    assert together == [classifier.predict([text])[0] for text in texts]
    assert together == classifier.predict(texts[::-1])[::-1]


def test_every_message_is_a_run_of_its_own(
    classifier: OnnxClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy in fp32 would agree in batches too; an int8 model does not."""
    sizes = []
    outputs = type(classifier.scorer).outputs

    def counted(self: object, ids: list[list[int]]) -> object:
        sizes.append(len(ids))
        return outputs(self, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(type(classifier.scorer), "outputs", counted)
    classifier.predict(["great", "awful late", "order"])
    assert sizes == [1, 1, 1]


def test_nothing_in_nothing_out(classifier: OnnxClassifier) -> None:
    assert classifier.predict([]) == []


def test_padding_changes_nothing(classifier: OnnxClassifier) -> None:
    ids = classifier.scorer.tokenizer.encode(["great", "awful late angry broken"])
    together = classifier.scorer.run(ids)
    assert np.array_equal(together[0], classifier.scorer.run(ids[:1])[0])
    assert together.shape == (2, len(LABELS))
    assert together.dtype == np.float32


def test_a_feed_is_padded_and_masked_to_the_longest(classifier: OnnxClassifier) -> None:
    fed = classifier.scorer.feed([[5], [7, 8, 9]])
    assert set(fed) == {"input_ids", "attention_mask"}, "the toy takes no token types"
    assert fed["input_ids"].tolist() == [[5, 0, 0], [7, 8, 9]]
    assert fed["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert {value.dtype for value in fed.values()} == {np.dtype(np.int64)}


def test_a_model_that_takes_token_types_is_fed_zeros(classifier: OnnxClassifier) -> None:
    names = frozenset({"input_ids", "attention_mask", "token_type_ids"})
    fed = replace(classifier.scorer, input_names=names).feed([[5], [7, 8, 9]])
    assert set(fed) == names
    assert fed["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_what_a_prediction_says(classifier: OnnxClassifier) -> None:
    sure, unsure = classifier.predict(["great thanks", "unknown"])
    assert sure.label == "positive"
    assert sure.confidence == max(sure.probabilities) > 0.99
    assert sure.margin == pytest.approx(sure.confidence - sorted(sure.probabilities)[-2])
    assert unsure.probabilities == pytest.approx([1 / 3] * 3)
    assert unsure.margin == 0.0
    assert unsure.entropy == pytest.approx(1.0)
    # The toy's logits are 0 for a word that it does not know: log(3 * exp(0)).
    assert unsure.energy == pytest.approx(np.log(3))
    assert sure.energy > unsure.energy
    assert (sure.distance, unsure.distance) == (0.0, 0.0), "the toy measures none"
    assert (sure.ngram_margin, unsure.ngram_margin) == (0.0, 0.0), "nor this"


@pytest.mark.parametrize(
    "others", [OTHERS, OTHERS[::-1], OTHERS[:1], OTHERS[1:]], ids=lambda names: "-".join(names)
)
def test_a_model_may_tell_more_than_logits(tmp_path: Path, others: tuple[str, ...]) -> None:
    """Each is known by its name: an edge of an earlier version tells the distance alone."""
    measures = OnnxClassifier.of(make_bundle(tmp_path, "edge", others=others))
    texts = ["great thanks", "great unknown", "some unknown words"]
    together = measures.predict(texts)
    for name, expected in {"distance": [0.0, 1.0, 3.0], "ngram_margin": [0.0, -1.0, -3.0]}.items():
        known = expected if name in others else [0.0] * 3
        assert [getattr(made, name) for made in together] == known
    assert together == [measures.predict([text])[0] for text in texts]
    assert measures.scorer.logits(texts).shape == (3, 3)
    plain = OnnxClassifier.of(make_bundle(tmp_path / "plain", "edge")).predict(texts)
    assert [made._replace(distance=0.0, ngram_margin=0.0) for made in together] == plain


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("odd", "said"), [(np.array([np.nan]), "NaN"), (np.zeros((1, 1)), r"has shape \(1, 1\)")]
)
def test_what_else_it_tells_must_be_one_number(
    classifier: OnnxClassifier, monkeypatch: pytest.MonkeyPatch, name: str, odd: np.ndarray,
    said: str,
) -> None:  # fmt: skip
    one = np.zeros(1, np.float32)
    made = Outputs(np.zeros((1, 3), np.float32), one, one)._replace(**{name: odd})
    said = said if said == "NaN" else f"'{name}' {said}"
    monkeypatch.setattr(type(classifier.scorer), "outputs", lambda *_: made)
    with pytest.raises(ModelOutputError, match=said):
        classifier.predict(["great"])


def test_a_prediction_crosses_a_handle_whole(tmp_path: Path) -> None:
    (made,) = OnnxClassifier.of(make_bundle(tmp_path, "edge", others=OTHERS)).predict(["great you"])
    assert made.energy > 0
    assert (made.distance, made.ngram_margin) == (1.0, -1.0)
    assert pickle.loads(pickle.dumps(made, protocol=5)) == made


def test_a_model_that_answers_nan_raises(tmp_path: Path) -> None:
    broken = OnnxClassifier.of(make_bundle(tmp_path, "edge", nan_word="late"))
    assert broken.predict(["great"])[0].label == "positive"
    with pytest.raises(ModelOutputError, match="NaN"):
        broken.predict(["great", "late"])


def test_a_model_with_other_classes_raises(classifier: OnnxClassifier) -> None:
    with pytest.raises(ModelOutputError, match=r"shape \(1, 3\) to 1 texts and 2 labels"):
        replace(classifier, labels=("a", "b")).predict(["great"])


def test_a_model_that_does_not_load_raises(tmp_path: Path) -> None:
    """Every hash fits, and still it is no model."""
    bundle = make_bundle(tmp_path, "edge")
    bundle.model_path.write_bytes(b"not a model")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load"):
        OnnxClassifier.of(bundle)


def test_the_temperature_cools_and_keeps_the_label(classifier: OnnxClassifier) -> None:
    texts = ["late", "great", "order awful"]
    hot = replace(classifier, temperature=3.0).predict(texts)
    for cold, warm in zip(classifier.predict(texts), hot, strict=True):
        assert warm.label == cold.label
        assert warm.confidence < cold.confidence


def test_the_temperature_cools_the_energy(classifier: OnnxClassifier) -> None:
    logits = classifier.scorer.logits(["great thanks"])[0]
    (hot,) = replace(classifier, temperature=4.0).predict(["great thanks"])
    assert hot.energy == pytest.approx(np.log(np.exp(logits.astype(float) / 4).sum()))


# ---- artifacts ----------------------------------------------------------------------------------


def _cpu_with(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    for module in ("classifier", "golden"):
        monkeypatch.setattr(f"serve_app.model.{module}.cpu_flags", lambda: frozenset(flags))


@pytest.mark.parametrize(
    ("flags", "artifact"), [((), MODEL_ANY), (("vnni",), MODEL), (("vnni",), MODEL_ANY)]
)
def test_a_replica_runs_the_certified_artifact_with_golden_rows_of_its_own(
    double: ModelBundle, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], artifact: str
) -> None:
    """What needs no flag runs anywhere: a mixed cluster is served by what its oldest CPU can."""
    _cpu_with(monkeypatch, *flags)
    model = TierModel.load(double.path, double.sha256, 1, artifact)
    assert model.classifier.artifact == artifact
    assert list(model.golden) == double.golden(artifact)
    model.check()


def test_a_replica_that_would_run_another_artifact_refuses(
    double: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come out of one bundle with one hash, and the promise is of one of them."""
    _cpu_with(monkeypatch)
    said = f"certified with {MODEL} .* needs a CPU with vnni; .* no such flag .*firstline tune"
    with pytest.raises(BundleError, match=said):
        TierModel.load(double.path, double.sha256, 1, MODEL)


def test_a_replica_whose_bundle_lacks_the_certified_artifact_refuses(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "edge")
    assert TierModel.load(bundle.path, bundle.sha256, 1).classifier.artifact == MODEL
    with pytest.raises(BundleError, match=f"no artifact {MODEL_ANY}"):
        TierModel.load(bundle.path, bundle.sha256, 1, MODEL_ANY)


# ---- golden rows and figures --------------------------------------------------------------------


def golden(classifier: OnnxClassifier) -> list[GoldenRow]:
    return classifier.golden_rows(["great thanks", "late"])


def test_golden_rows_hold_within_the_tolerance(classifier: OnnxClassifier) -> None:
    rows = golden(classifier)
    classifier.check_golden(rows)
    moved = np.array(rows[1].probabilities) + np.array([0.9, -0.45, -0.45]) * GOLDEN_TOLERANCE
    near = rows[1].model_copy(update={"probabilities": tuple(moved)})
    classifier.check_golden([rows[0], near])


def test_an_energy_of_many_may_differ_by_as_large_a_share(tmp_path: Path) -> None:
    """The logits of a sure model are large, and so is what kernels disagree on."""
    measures = OnnxClassifier.of(make_bundle(tmp_path, "edge", others=OTHERS))
    (row,) = measures.golden_rows(["great thanks you are not known here"])
    for name in ("energy", *OTHERS):
        value = getattr(row, name)
        assert abs(value) > 3
        near = row.model_copy(update={name: value * (1 + 0.9 * GOLDEN_TOLERANCE)})
        measures.check_golden([near])
        with pytest.raises(BundleError, match=f"{name} off by 0.01"):
            measures.check_golden([row.model_copy(update={name: value * 1.02})])


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"label": "neutral"}, "neutral within"),
        ({"probabilities": (0.4, 0.3, 0.3)}, "probabilities off"),
        ({"energy": 0.0}, "energy off"),
        ({"distance": 0.02}, "distance off by 0.0200"),
        ({"ngram_margin": 0.02}, "ngram_margin off by 0.0200"),
    ],
    ids=["label", "probabilities", "energy", "distance", "ngram_margin"],
)
def test_a_golden_row_that_comes_out_otherwise_is_refused(
    classifier: OnnxClassifier, over: dict[str, object], said: str
) -> None:
    rows = golden(classifier)
    rows[1] = rows[1].model_copy(update=over)
    with pytest.raises(BundleError, match=f"Golden message 1 of bundle .* {said}") as caught:
        classifier.check_golden(rows)
    assert "late" not in str(caught.value)


@given(LOGITS, st.floats(0.05, 20))
def test_softmax_is_a_distribution_in_the_order_of_the_logits(
    logits: np.ndarray, temperature: float
) -> None:
    probabilities = softmax(logits, temperature)
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities >= 0).all()
    assert (np.diff(probabilities[np.argsort(logits, kind="stable")]) >= 0).all()


@given(LOGITS, st.floats(0.05, 20))
def test_energy_is_the_logarithm_of_what_softmax_divides_by(
    logits: np.ndarray, temperature: float
) -> None:
    scaled = logits.astype(np.float64) / temperature
    [made] = to_predictions(logits[None], LABELS, temperature)
    assert made.probabilities == tuple(softmax(logits, temperature))
    assert made.energy == pytest.approx(np.logaddexp.reduce(scaled))


def test_energy_does_not_overflow() -> None:
    [made] = to_predictions(np.array([[1e4, 0.0, -1e4]], np.float32), LABELS, 0.05)
    assert (made.energy, made.entropy) == (2e5, 0.0)


@given(st.lists(LOGITS, min_size=1, max_size=9), st.floats(0.05, 20))
def test_a_row_is_the_same_to_the_last_bit_in_any_company(
    rows: list[np.ndarray], temperature: float
) -> None:
    far = np.arange(len(rows)) / 3
    together = to_predictions(np.array(rows), LABELS, temperature, far, -far)
    alone = [
        to_predictions(row[None], LABELS, temperature, far[i : i + 1], -far[i : i + 1])
        for i, row in enumerate(rows)
    ]
    assert [[made] for made in together] == alone


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([1e4, 0.0, -1e4], np.float32), 0.05).tolist() == [1.0, 0.0, 0.0]


@given(LOGITS)
def test_what_a_policy_sees_is_in_its_range(logits: np.ndarray) -> None:
    [made] = to_predictions(logits[None], LABELS)
    assert 1 / 3 - 1e-12 <= made.confidence <= 1
    assert 0 <= made.margin <= made.confidence
    assert 0 <= made.entropy <= 1
    assert len(made.probabilities) == len(LABELS)
    assert made.label == LABELS[int(np.argmax(made.probabilities))]


def test_two_sure_classes_have_no_margin() -> None:
    [made] = to_predictions(np.array([[0.5, 0.5]]), ("a", "b"))
    assert (made.label, made.margin) == ("a", 0.0)
    assert made.entropy == pytest.approx(1.0)

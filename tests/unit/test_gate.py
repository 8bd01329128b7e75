"""The gate: a bad pair is refused with the whole table and leaves no trace; a good one is in."""

from pathlib import Path

import pytest

from cluster.bundles import (
    DatasetRef,
    Finished,
    GoldenRow,
    Metric,
    ModelBundle,
    Role,
    write_bundle,
)
from cluster.errors import ConfigError, GateError
from cluster.registry import fetch_bundle
from cluster.settings import Settings
from cluster.tracking import client
from serve_app.classifier import OnnxClassifier
from tests.toys import LABELS, WORDS, make_bundle
from train_jobs.compress import Choice, Compressed, Variant
from train_jobs.data import DataConfig, Dataset, build
from train_jobs.gate import GateLimits, check, latency_ratio, read_limits, run

WIDE = GateLimits(max_size_ratio=1.5, max_latency_ratio=2.0)


def limits(**over: float) -> GateLimits:
    return GateLimits.model_validate({**WIDE.model_dump(), **over})


@pytest.fixture
def dataset(settings: Settings, tmp_path: Path) -> Dataset:
    """Two words of a label each: the toy edge knows half of them."""
    rows = [
        f"{first} {second} {number},{label}"
        for label in LABELS
        for first in WORDS[label]
        for second in WORDS[label]
        for number in range(6)
    ]
    file = tmp_path / "messages.csv"
    file.write_text("\n".join(["text,label", *rows]))
    return build(DataConfig(data=file), settings)


def bundle(
    folder: Path,
    role: Role,
    *,
    known_share: float | None = None,
    error: float = 0.02,
    golden: list[GoldenRow] | None = None,
    padding: bytes = b"",
    anywhere: list[GoldenRow] | None = None,
) -> ModelBundle:
    """A toy bundle with the figures that a trained one states."""
    toy = make_bundle(folder / "toy", role, known_share=known_share)
    model = folder / f"{role}-{len(padding)}.onnx"
    model.write_bytes(toy.model_path.read_bytes())
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(toy.tokenizer_path.read_bytes() + padding)
    return write_bundle(
        folder / role, role=role, model=model, tokenizer=tokenizer, labels=LABELS,
        temperature=1.0, max_tokens=64, dataset=DatasetRef(fingerprint="toy", rows={}),
        metrics={"calibration_error": Metric(value=error, split="tune", rows=80)}, recipe={},
        golden=toy.golden() if golden is None else golden,
        needs=() if anywhere is None else ("vnni",),
        anywhere=None if anywhere is None else Finished(model, 1.0, anywhere),
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
    return [c.name.split(" (")[0] for c in check(edge, cloud, ratio, dataset, stated) if not c.ok]


def test_a_good_pair_is_registered(
    settings: Settings, dataset: Dataset, cloud: ModelBundle, tmp_path: Path
) -> None:
    edge = bundle(tmp_path / "e", "edge")
    checks = run(edge, cloud, 0.5, dataset, WIDE, settings=settings)
    assert len(checks) == 6
    assert all(item.ok for item in checks)
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
    assert len(table[1:-1]) == 6
    assert any("FAIL calibration error" in line and "0.4000  limit 0.1" in line for line in table)
    assert any("FAIL latency" in line and "0.9000  limit 0.6" in line for line in table)
    assert registered(settings) == []
    assert not settings.bundles_dir.exists()


def test_accuracy_is_compared_with_the_clouds(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge that took its labels in another order is right by chance only."""
    cloud = bundle(tmp_path / "c", "cloud")
    monkeypatch.setattr("tests.toys.WORDS", dict(zip(LABELS, [*WORDS.values()][::-1], strict=True)))
    edge = bundle(tmp_path / "e", "edge", golden=[])
    assert failed(edge, cloud, dataset) == ["accuracy kept"]


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
        return Compressed(Path(), Choice(chosen, None), tuple(variants), 64)

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

"""A bundle is loaded as it was written, byte for byte, or it is refused by what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.bundles import (
    GOLDEN,
    GOLDEN_ANY,
    MANIFEST,
    MODEL,
    MODEL_ANY,
    TOKENIZER,
    DatasetRef,
    Manifest,
    ModelBundle,
    load_bundle,
    warnings_of,
    with_warnings,
    write_bundle,
)
from cluster.errors import BundleError
from cluster.files import read_json, sha256_file, sha256_json
from serve_app.model.classifier import OnnxClassifier
from tests.support.toys import LABELS, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> ModelBundle:
    return make_bundle(tmp_path, "edge")


@pytest.fixture
def double(tmp_path: Path) -> ModelBundle:
    """A bundle whose model.onnx needs a CPU flag, with a second artifact for CPUs without."""
    return make_bundle(tmp_path, "edge", needs=("vnni",), anywhere=True)


def rewrite(bundle: ModelBundle, **over: Any) -> None:
    """Changes the manifest as somebody with an editor would."""
    file = bundle.path / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **over}))


def test_a_bundle_comes_back_as_it_was_written(bundle: ModelBundle) -> None:
    again = load_bundle(bundle.path, bundle.sha256)
    assert again == bundle
    assert again.manifest.labels == LABELS
    assert set(again.manifest.files) == {MODEL, TOKENIZER, GOLDEN}
    parts = (bundle.model_path, bundle.tokenizer_path)
    assert again.size_bytes == sum(len(part.read_bytes()) for part in parts)


def test_a_bundle_reproduces_its_golden_rows(bundle: ModelBundle) -> None:
    rows = bundle.golden()
    assert [row.label for row in rows] == list(LABELS)
    OnnxClassifier.load(bundle.path, bundle.sha256).check_golden(rows)


def test_golden_texts_are_in_no_repr(bundle: ModelBundle) -> None:
    assert "awful" not in repr(bundle.golden())


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit_is_found_wherever_it_is(bundle: ModelBundle, name: str, place: int) -> None:
    file = bundle.path / name
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=f"corrupted: {name} should have SHA-256.*Fetch it again"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
def test_a_missing_file_is_named(bundle: ModelBundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} .* and has nothing"):
        load_bundle(bundle.path)


def test_an_added_file_is_refused(bundle: ModelBundle) -> None:
    """ONNX can keep weights in a file beside the model, which no hash would cover."""
    (bundle.path / "weights.bin").write_bytes(b"anything")
    with pytest.raises(BundleError, match=r"holds weights\.bin"):
        load_bundle(bundle.path)


def test_another_bundle_than_promised_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path, "cloud")
    with pytest.raises(BundleError, match=f"is bundle {other.sha256[:12]}; bundle"):
        load_bundle(other.path, bundle.sha256)


def test_a_changed_manifest_is_another_bundle(bundle: ModelBundle) -> None:
    """A temperature is a part of the model, so it is a part of the identity."""
    rewrite(bundle, temperature=2.0)
    assert load_bundle(bundle.path).sha256 != bundle.sha256
    with pytest.raises(BundleError, match="was expected here"):
        load_bundle(bundle.path, bundle.sha256)


def test_a_folder_without_manifest_is_not_finished(bundle: ModelBundle) -> None:
    (bundle.path / MANIFEST).unlink()
    with pytest.raises(BundleError, match="not a finished model bundle"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    "over",
    [
        {"surprise": 1},
        {"version": 2},
        {"labels": ["one"]},
        {"labels": ["one", "one"]},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"metrics": {"accuracy": {"value": 0.9}}},
    ],
    ids=lambda over: next(iter(over)) if isinstance(over, dict) else None,
)
def test_a_manifest_that_makes_no_sense_is_refused(
    bundle: ModelBundle, over: dict[str, Any]
) -> None:
    rewrite(bundle, **over)
    with pytest.raises(BundleError, match="not a bundle manifest that this version reads"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_a_manifest_that_is_no_json_object_is_refused(bundle: ModelBundle, content: bytes) -> None:
    (bundle.path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match="not a bundle manifest"):
        load_bundle(bundle.path)


def test_a_manifest_without_the_model_is_refused(bundle: ModelBundle) -> None:
    files = {k: v for k, v in bundle.manifest.files.items() if k != MODEL}
    rewrite(bundle, files=files)
    with pytest.raises(BundleError, match=rf"lists no {MODEL}"):
        load_bundle(bundle.path)


def _write(bundle: ModelBundle, target: Path, **over: Any) -> ModelBundle:
    given: dict[str, Any] = {
        "role": "edge", "model": bundle.model_path, "tokenizer": bundle.tokenizer_path,
        "labels": LABELS, "temperature": 1.5, "max_tokens": 64,
        "dataset": DatasetRef(fingerprint="toy", rows={}), "metrics": {}, "recipe": {},
        "golden": bundle.golden(), **over,
    }  # fmt: skip
    return write_bundle(target, **given)


def test_the_manifest_is_written_last(bundle: ModelBundle, tmp_path: Path) -> None:
    """Seen from inside: when the manifest is made, every other file is there and hashed."""
    extra = tmp_path / "parity.json"
    extra.write_text("{}")
    made = _write(bundle, tmp_path / "made", extras=[extra])
    assert set(made.manifest.files) == {p.name for p in made.path.iterdir()} - {MANIFEST}
    assert "parity.json" in made.manifest.files


@pytest.mark.parametrize(
    "over", [{"temperature": -1.0}, {"labels": ("a",)}, {"model": Path("/no/such/model")}]
)
def test_what_cannot_be_finished_leaves_nothing(
    bundle: ModelBundle, tmp_path: Path, over: dict[str, Any]
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError)):
        _write(bundle, tmp_path / "made", **over)
    assert sorted(tmp_path.iterdir()) == before


def test_a_manifest_cannot_be_changed_in_memory(bundle: ModelBundle) -> None:
    with pytest.raises(ValueError, match="frozen"):
        bundle.manifest.temperature = 2.0  # type: ignore[misc]
    assert isinstance(bundle.manifest, Manifest)


# ---- two artifacts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "model", "golden", "temperature"),
    [
        (set(), MODEL_ANY, GOLDEN_ANY, 2.0),
        ({"another"}, MODEL_ANY, GOLDEN_ANY, 2.0),
        ({"vnni"}, MODEL, GOLDEN, 1.0),
        ({"vnni", "another"}, MODEL, GOLDEN, 1.0),
    ],
)
def test_the_flags_pick_the_artifact(
    double: ModelBundle, flags: set[str], model: str, golden: str, temperature: float
) -> None:
    picked = double.artifact(flags)
    assert (picked.model, picked.golden, picked.temperature) == (model, golden, temperature)
    assert double.named(model) == picked


def test_a_bundle_that_needs_nothing_has_one_artifact_for_every_cpu(bundle: ModelBundle) -> None:
    assert bundle.artifact(set()) == bundle.artifact({"vnni"}) == bundle.named(MODEL)
    with pytest.raises(BundleError, match=f"no artifact {MODEL_ANY}; it has {MODEL}"):
        bundle.named(MODEL_ANY)


@pytest.mark.parametrize(
    ("flags", "found"), [(set(), "no such flag"), ({"one", "two"}, "one, two")]
)
def test_a_cpu_that_no_artifact_fits_is_refused(
    tmp_path: Path, flags: set[str], found: str
) -> None:
    only = make_bundle(tmp_path, "edge", needs=("vnni",))
    assert only.artifact({"vnni"}).model == MODEL
    with pytest.raises(BundleError, match=f"needs a CPU with vnni; this one has {found}"):
        only.artifact(flags)


def test_every_artifact_reproduces_its_own_golden_rows(double: ModelBundle) -> None:
    assert set(double.manifest.files) == {MODEL, TOKENIZER, GOLDEN, MODEL_ANY, GOLDEN_ANY}
    for ours, theirs in ((MODEL, MODEL_ANY), (MODEL_ANY, MODEL)):
        model = OnnxClassifier.of(double, artifact=ours)
        model.check_golden(double.golden(ours))
        with pytest.raises(BundleError, match="Golden message 0"):
            model.check_golden(double.golden(theirs))


def test_golden_rows_of_another_version_are_refused(bundle: ModelBundle) -> None:
    """Rows that had no energy were compared with nothing."""
    file = bundle.path / GOLDEN
    file.write_text(json.dumps([{"text": "late", "label": "negative", "probabilities": [1, 0, 0]}]))
    rewrite(bundle, files={**bundle.manifest.files, GOLDEN: sha256_file(file)})
    with pytest.raises(BundleError, match=r"(?s)not hold the golden messages of this.*energy"):
        load_bundle(bundle.path).golden()


@pytest.mark.parametrize("name", [MODEL_ANY, GOLDEN_ANY])
def test_a_changed_second_artifact_is_found(double: ModelBundle, name: str) -> None:
    file = double.path / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BundleError, match=f"corrupted: {name} should have SHA-256"):
        load_bundle(double.path)
    file.unlink()
    with pytest.raises(BundleError, match=f"{name} .* and has nothing"):
        load_bundle(double.path)


@pytest.mark.parametrize("name", [MODEL_ANY, GOLDEN_ANY])
def test_a_second_artifact_that_no_hash_covers_is_refused(double: ModelBundle, name: str) -> None:
    rewrite(double, files={k: v for k, v in double.manifest.files.items() if k != name})
    with pytest.raises(BundleError, match=f"lists no {name}"):
        load_bundle(double.path)


def test_a_second_artifact_that_nobody_declared_is_refused(double: ModelBundle) -> None:
    """Dropped from the manifest with its hashes, the files themselves give it away."""
    names = {MODEL, TOKENIZER, GOLDEN}
    rewrite(double, anywhere=None, files={k: double.manifest.files[k] for k in names})
    with pytest.raises(BundleError, match=f"holds {GOLDEN_ANY}, {MODEL_ANY}"):
        load_bundle(double.path)


@pytest.mark.parametrize("over", [{"needs": []}, {"anywhere": None}], ids=["needs", "anywhere"])
def test_what_an_artifact_needs_is_part_of_the_identity(
    double: ModelBundle, over: dict[str, Any]
) -> None:
    rewrite(double, **over)
    with pytest.raises(BundleError, match="was expected here"):
        load_bundle(double.path, double.sha256)


def test_a_bundle_of_the_previous_version_keeps_its_identity(bundle: ModelBundle) -> None:
    """Releases pin it by the hash that it had before manifests knew of artifacts."""
    file = bundle.path / MANIFEST
    earlier = read_json(file)
    del earlier["needs"], earlier["anywhere"]
    file.write_text(json.dumps(earlier))
    again = load_bundle(bundle.path, sha256_json(earlier))
    assert again.artifact(set()) == bundle.artifact(set())
    OnnxClassifier.of(again).check_golden(again.golden())


# ---- warnings -----------------------------------------------------------------------------------


def test_a_bundle_without_warnings_is_as_it_was_before_there_were_any(bundle: ModelBundle) -> None:
    earlier = read_json(bundle.path / MANIFEST)
    assert "warnings" not in earlier
    assert bundle.sha256 == sha256_json(earlier)
    assert bundle.manifest.warnings == ()


def test_a_bundle_with_warnings_is_another_with_the_same_models(
    double: ModelBundle, tmp_path: Path
) -> None:
    made = with_warnings(double, tmp_path / "warned", ["Poor.", "Small."], texts={"CARD": "Poor."})
    assert made.manifest.warnings == ("Poor.", "Small.")
    assert made.sha256 != double.sha256
    assert load_bundle(made.path, made.sha256) == made
    assert (made.path / "CARD").read_text() == "Poor."
    assert made.manifest.files == {
        **double.manifest.files, "CARD": sha256_file(made.path / "CARD")
    }  # fmt: skip
    unlike = {"warnings", "files"}
    assert made.manifest.model_dump(exclude=unlike) == double.manifest.model_dump(exclude=unlike)
    assert load_bundle(double.path, double.sha256) == double


def test_a_warning_adds_nothing_else_to_an_earlier_manifest(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    """Fields that a manifest did not have are not put in by the way."""
    file = bundle.path / MANIFEST
    earlier = read_json(file)
    del earlier["needs"], earlier["anywhere"]
    file.write_text(json.dumps(earlier))
    made = with_warnings(load_bundle(bundle.path), tmp_path / "warned", ["Poor."])
    assert set(read_json(made.path / MANIFEST)) == {*earlier, "warnings"}


def test_a_sentence_of_both_bundles_is_said_once(bundle: ModelBundle, tmp_path: Path) -> None:
    one = with_warnings(bundle, tmp_path / "one", ["Poor.", "Small."]).manifest
    other = with_warnings(bundle, tmp_path / "other", ["Poor.", "Old."]).manifest
    assert warnings_of(one, other) == ("Poor.", "Small.", "Old.")
    assert warnings_of(bundle.manifest) == ()

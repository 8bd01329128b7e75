"""Replay: both models once over a split; the table holds what serving would see, and no text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.bundles import MODEL, MODEL_ANY
from cluster.errors import BundleError, DataError
from serve_app.contracts import Message, Prediction, packed
from serve_app.decide.signals import SIGNALS, signals
from tests.support.tables import toy_table
from tune.replay import UNKNOWN, load_table, replay, save_table

TEXTS = ["good day", "bad maybe", "my card is [CARD]", "so so"]
MESSAGES = [
    Message(TEXTS[0]),
    Message(TEXTS[1]),
    Message(TEXTS[2], ("card",)),
    Message(TEXTS[3], detector_failed=True),
]


@dataclass
class Echo:
    """Answers by the first word; remembers what it was asked."""

    labels: tuple[str, ...] = ("neg", "pos")
    sha256: str = "e" * 64
    flip: bool = False
    artifact: str = MODEL
    asked: list[str] = field(default_factory=list)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        self.asked += texts
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Prediction:
        label = "pos" if text.startswith("good") != self.flip else "neg"
        confidence = 0.5 + len(text) / 100
        shares = packed(confidence, 1 - confidence)
        return Prediction(
            label, confidence, 2 * confidence - 1, 0.3, shares, 5 * confidence, 1 - confidence,
            confidence - 2,
        )  # fmt: skip


def test_the_columns_are_what_serving_computes() -> None:
    edge, cloud = Echo(artifact=MODEL_ANY), Echo(("pos", "neg"), "c" * 64, flip=True)
    labels = ["pos", "neg", "neg", "pos"]
    table = replay(MESSAGES, labels, edge, cloud, "tune", "abc")
    for i, message in enumerate(MESSAGES):
        expected = signals(message, edge._one(message.text))
        assert {name: table.signals[name][i] for name in SIGNALS} == expected
        assert table.signals["energy"][i] == 5 * table.signals["confidence"][i]
        assert table.signals["distance"][i] == 1 - table.signals["confidence"][i]
        assert table.signals["ngram_margin"][i] == table.signals["confidence"][i] - 2
    assert table.labels == ("neg", "pos")
    assert table.edge_label.tolist() == [1, 0, 0, 0]
    assert table.cloud_label.tolist() == [0, 1, 1, 1]
    assert table.true_label.tolist() == [1, 0, 0, 1]
    assert table.pinned.tolist() == [False, False, True, True]
    assert (table.edge_sha256, table.cloud_sha256) == ("e" * 64, "c" * 64)
    assert table.edge_artifact == MODEL_ANY
    assert (table.split, table.fingerprint) == ("tune", "abc")


def test_every_message_is_scored_once_and_progress_reaches_the_end() -> None:
    edge, cloud = Echo(), Echo()
    seen: list[tuple[int, int]] = []

    def see(done: int, total: int, note: str = "") -> None:
        seen.append((done, total))

    many = [Message(f"text {i}") for i in range(150)]
    table = replay(many, None, edge, cloud, "tune", "abc", see)
    assert edge.asked == cloud.asked == [message.text for message in many]
    assert seen[-1] == (150, 150)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (table.true_label == UNKNOWN).all()
    assert not table.known.any()


def test_models_with_different_labels_are_no_pair() -> None:
    with pytest.raises(BundleError, match="must share its labels"):
        replay(MESSAGES, None, Echo(), Echo(("neg", "neutral")), "tune", "abc")


def test_a_label_that_no_model_knows_is_named() -> None:
    with pytest.raises(DataError, match="furious"):
        replay(MESSAGES, ["pos", "neg", "furious", "pos"], Echo(), Echo(), "tune", "abc")


def test_labels_must_be_as_many_as_messages() -> None:
    with pytest.raises(DataError, match="4 messages but 1 labels"):
        replay(MESSAGES, ["pos"], Echo(), Echo(), "tune", "abc")


def test_a_table_survives_the_disk_and_carries_no_text(tmp_path: Path) -> None:
    edge = Echo(artifact=MODEL_ANY)
    table = replay(MESSAGES, ["pos", "neg", "neg", "pos"], edge, Echo(), "tune", "abc")
    path = tmp_path / "deep" / "tune.parquet"
    save_table(table, path)
    again = load_table(path)
    for name in SIGNALS:
        np.testing.assert_array_equal(again.signals[name], table.signals[name])
    for name in ("pinned", "edge_label", "cloud_label", "true_label"):
        column = getattr(again, name)
        np.testing.assert_array_equal(column, getattr(table, name))
        assert column.dtype == getattr(table, name).dtype
    for name in ("labels", "split", "fingerprint", "pins"):
        assert getattr(again, name) == getattr(table, name)
    assert "string" not in {str(kind) for kind in pq.read_schema(path).types}
    assert not any(text.encode() in path.read_bytes() for text in TEXTS)
    assert [file.name for file in path.parent.iterdir()] == ["tune.parquet"]


def test_a_table_of_an_earlier_version_was_scored_by_the_only_artifact(tmp_path: Path) -> None:
    path = tmp_path / "tune.parquet"
    save_table(toy_table(5), path)
    data = pq.read_table(path)
    header = json.loads(data.schema.metadata[b"firstline_table"])
    del header["edge_artifact"]
    earlier = {b"firstline_table": json.dumps(header).encode()}
    pq.write_table(data.replace_schema_metadata(earlier), path)
    assert load_table(path).edge_artifact == "model.onnx"


def test_a_table_of_an_earlier_version_has_no_ngram_margin(tmp_path: Path) -> None:
    """Its bundle would answer 0.0 too, so the report of its release can still be made."""
    path = tmp_path / "tune.parquet"
    save_table(toy_table(5), path)
    pq.write_table(pq.read_table(path).drop_columns(["ngram_margin"]), path)
    assert load_table(path).signals["ngram_margin"].tolist() == [0.0] * 5
    pq.write_table(pq.read_table(path).drop_columns(["distance"]), path)
    with pytest.raises(DataError, match="not a table"):
        load_table(path)


def test_a_failed_write_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tune.parquet"
    save_table(toy_table(5), path)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="disk full"):
        save_table(toy_table(9), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tune.parquet"]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "x.parquet"
    garbage.write_bytes(b"nonsense")
    foreign = tmp_path / "y.parquet"
    pq.write_table(pa.table({"text": ["a"]}), foreign)
    for path in (garbage, foreign, tmp_path / "missing.parquet"):
        with pytest.raises(DataError, match="not a table that Firstline's replay wrote"):
            load_table(path)


def test_a_signal_that_cannot_be_compared_is_refused() -> None:
    table = toy_table(5)
    broken = {**table.signals, "margin": np.array([0.1, np.nan, 0.1, 0.1, 0.1])}
    with pytest.raises(DataError, match="NaN or infinity in \\['margin'\\]"):
        replace(table, signals=broken)


def test_columns_of_another_length_are_refused() -> None:
    table = toy_table(5)
    with pytest.raises(DataError, match="edge_label"):
        replace(table, edge_label=table.edge_label[:3])


def test_a_label_index_out_of_range_is_refused() -> None:
    table = toy_table(5)
    with pytest.raises(DataError, match="cloud_label"):
        replace(table, cloud_label=np.full(5, UNKNOWN))


def test_accuracy_without_labels_is_refused() -> None:
    table = replay(MESSAGES, None, Echo(), Echo(), "tune", "abc")
    with pytest.raises(DataError, match="None of the 4 rows"):
        table.require_labels()

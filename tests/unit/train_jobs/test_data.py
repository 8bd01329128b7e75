"""Files of messages: what is wrong is named with its place and its remedy; the rest is split."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from cluster.settings import Settings, load_settings
from serve_app.guard.config import GuardConfig, read_guard
from serve_app.guard.prepare import dedup_key, prepare
from train_jobs import data
from train_jobs.data import (
    MANIFEST,
    MIN_ROWS_PER_CLASS,
    SPLITS,
    DataConfig,
    Dataset,
    _place,
    build,
    content_key,
    load_dataset,
    read_messages,
)
from train_jobs.rows.read import read_rows
from train_jobs.samples.generator import generate

JUDGED = ("calibration", "tune", "certify", "test")
DISJOINT = ("train", *JUDGED)
Rows = Sequence[tuple[str, str]]


@pytest.fixture
def settings() -> Settings:
    return load_settings()


def samples(count: int = 400, seed: int = 1) -> list[tuple[str, str]]:
    return [(sample.text, sample.label.value) for sample in generate(count, seed)]


def csv_of(rows: Rows, header: str = "text,label") -> str:
    quoted = ['"{}",{}'.format(text.replace('"', '""'), label) for text, label in rows]
    return "\n".join([header, *quoted]) + "\n"


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return put(tmp_path / "messages.csv", csv_of(samples()))


def refused(settings: Settings, config: DataConfig, *said: str) -> None:
    """Building fails with all of these words, and leaves nothing."""
    with pytest.raises(DataError) as caught:
        build(config, settings)
    for words in said:
        assert words in str(caught.value)
    assert not settings.home.exists() or not any(settings.home.rglob("*"))


# -- bad input --------------------------------------------------------------------------------


def test_a_missing_file(settings: Settings, tmp_path: Path) -> None:
    config = DataConfig(data=tmp_path / "none.csv")
    refused(settings, config, "There is no file", "none.csv", "Give the path of a CSV, JSONL")


def test_a_folder_in_place_of_a_file(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    refused(settings, DataConfig(data=tmp_path / "folder.csv"), "There is no file")


@pytest.mark.parametrize("name", ["messages.xlsx", "messages"])
def test_an_unknown_kind_of_file(settings: Settings, tmp_path: Path, name: str) -> None:
    config = DataConfig(data=put(tmp_path / name, "text,label\n"))
    refused(settings, config, "ends in", ".csv, .jsonl, .ndjson, .parquet are understood")


@pytest.mark.parametrize("columns", [{"text_column": "body"}, {"label_column": "body"}])
def test_an_unknown_column(settings: Settings, file: Path, columns: dict[str, str]) -> None:
    config = DataConfig.model_validate({"data": file, **columns})
    refused(settings, config, "no column 'body'. Found: text, label", "--text-column")


def test_a_column_that_is_there_twice(settings: Settings, tmp_path: Path) -> None:
    """The last one used to win in silence."""
    file = put(tmp_path / "m.csv", "text,label,label\nhello,a,b\n")
    refused(settings, DataConfig(data=file), "the column 'label' more than once", "Rename")


@pytest.mark.parametrize(
    ("line", "what"),
    [('"",positive', "the text is empty"), ('" \t ",positive', "the text is empty"),
     ('"\u200b",positive', "the text is empty"), ("hello, ", "the label is empty")],
)  # fmt: skip
def test_an_empty_cell(settings: Settings, tmp_path: Path, line: str, what: str) -> None:
    file = put(tmp_path / "m.csv", csv_of(samples(30)) + line + "\n")
    refused(settings, DataConfig(data=file), what, "line 32", "Fill it in, or delete the row")


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_value_in_jsonl(settings: Settings, tmp_path: Path, value: str | None) -> None:
    file = put(tmp_path / "m.jsonl", json.dumps({"text": value, "label": "a"}))
    refused(settings, DataConfig(data=file), "line 1: the text is empty")


@pytest.mark.parametrize("value", [["a", "list"], {"an": "object"}])
def test_a_value_that_is_no_text(settings: Settings, tmp_path: Path, value: Any) -> None:
    """It used to be trained on as Python writes it down."""
    file = put(tmp_path / "m.jsonl", json.dumps({"text": value, "label": "a"}))
    refused(settings, DataConfig(data=file), "line 1, 'text'", type(value).__name__, "expected")


def test_one_class_only(settings: Settings, tmp_path: Path) -> None:
    file = put(tmp_path / "m.csv", csv_of([(f"message {i}", "same") for i in range(50)]))
    refused(settings, DataConfig(data=file), "one class only ('same', 50 rows)", "--label-column")


def test_a_class_with_too_few_rows(settings: Settings, tmp_path: Path) -> None:
    rows = [*samples(100), *((f"rare {i}", "rare") for i in range(MIN_ROWS_PER_CLASS - 1))]
    file = put(tmp_path / "m.csv", csv_of(rows))
    refused(settings, DataConfig(data=file), "1 of 4 classes have fewer than 10", "'rare' (9)",
            "merge")  # fmt: skip


def test_duplicates_do_not_fill_a_class(settings: Settings, tmp_path: Path) -> None:
    rows = [*samples(100), *(("Rare" + " " * i + "case", "rare") for i in range(50))]
    file = put(tmp_path / "m.csv", csv_of(rows))
    refused(settings, DataConfig(data=file), "'rare' (2)")


@pytest.mark.parametrize("line", ["one field", "a comma, unquoted,positive"])
def test_a_broken_row(settings: Settings, tmp_path: Path, line: str) -> None:
    file = put(tmp_path / "m.csv", csv_of(samples(30)) + line + "\n")
    refused(
        settings, DataConfig(data=file), "line 32", "2 expected. The columns are text, label. Quote"
    )


@pytest.mark.parametrize("line", ['"never closed,positive', '"quoted"twice,positive'])
def test_a_row_that_is_no_csv(settings: Settings, tmp_path: Path, line: str) -> None:
    file = put(tmp_path / "m.csv", csv_of(samples(30)) + line + "\n")
    refused(settings, DataConfig(data=file), "is not a CSV that can be read")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_wrong_encoding(settings: Settings, tmp_path: Path, encoding: str, suffix: str) -> None:
    row = {"text": "déjà vu", "label": "a"}
    kinds = {".csv": csv_of([("déjà vu", "a")]), ".jsonl": json.dumps(row, ensure_ascii=False)}
    file = put(tmp_path / f"m{suffix}", kinds[suffix].encode(encoding))
    refused(settings, DataConfig(data=file), "not UTF-8. Convert", "iconv -f latin1 -t utf-8")


@pytest.mark.parametrize("content", ["", "text,label\n", "\n\n"])
def test_an_empty_file(settings: Settings, tmp_path: Path, content: str) -> None:
    file = put(tmp_path / "m.csv", content)
    refused(settings, DataConfig(data=file), "has no rows. Expected columns: text, label")


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"text": ', "not JSON"), ("hello", "not JSON"), ("[1]", "a JSON list instead of"),
     ("3", "a JSON int instead of")],
)  # fmt: skip
def test_a_bad_line_of_json(settings: Settings, tmp_path: Path, line: str, said: str) -> None:
    file = put(tmp_path / "m.jsonl", '{"text": "a", "label": "b"}\n' + line + "\n")
    refused(settings, DataConfig(data=file), "line 2", said, "object")


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def _scratched(raw: bytes) -> bytes:
    """Damage in a page, behind a footer that is whole."""
    return raw[:100] + b"\xff" * 20 + raw[120:]


@pytest.mark.parametrize("damage", [_cut, _scratched, lambda _: b"", lambda _: b"text,label"])
def test_a_corrupt_parquet(
    settings: Settings, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "m.parquet"
    texts, labels = zip(*samples(400), strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), file)
    put(file, damage(file.read_bytes()))
    refused(settings, DataConfig(data=file), "m.parquet is not a Parquet file that can be read")


def test_a_test_label_that_was_never_trained(
    settings: Settings, file: Path, tmp_path: Path
) -> None:
    test = put(tmp_path / "test.csv", csv_of([("a message", "unheard of")]))
    refused(settings, DataConfig(data=file, test=test), "1 labels", "lacks: ['unheard of']")


def test_a_missing_test_or_unlabelled_file(settings: Settings, file: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    refused(settings, DataConfig(data=file, test=gone), "There is no file", "gone.csv")
    refused(settings, DataConfig(data=file, unlabelled=(gone,)), "There is no file", "gone.csv")


def test_a_test_file_that_is_the_data(settings: Settings, file: Path) -> None:
    """It used to end in a StopIteration."""
    config = DataConfig(data=file, test=file)
    refused(settings, config, "is left to train on", "test file")


def test_a_test_file_that_leaves_a_class_too_small(
    settings: Settings, file: Path, tmp_path: Path
) -> None:
    positive = [row for row in samples() if row[1] == "positive"]
    test = put(tmp_path / "test.csv", csv_of(positive[5:]))
    refused(settings, DataConfig(data=file, test=test), "fewer than 10", "'positive' (5)")


def test_too_few_rows_to_split(settings: Settings, tmp_path: Path) -> None:
    rows = [(f"{label} number {i}", label) for label in ("a", "b") for i in range(10)]
    file = put(tmp_path / "m.csv", csv_of(rows))
    refused(settings, DataConfig(data=file), "Too few rows", "few hundred")


def test_a_full_disk_leaves_nothing(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = data._write_split, [3]

    def failing(path: Path, rows: Any) -> None:
        left[0] -= 1
        if not left[0]:
            path.write_bytes(b"PAR1 half")
            raise OSError(28, "No space left on device")
        real(path, rows)

    monkeypatch.setattr(data, "_write_split", failing)
    with pytest.raises(OSError, match="No space left"):
        build(DataConfig(data=file), settings)
    assert list((settings.home / "datasets").iterdir()) == []


def test_a_dataset_that_is_not_finished_or_changed(settings: Settings, file: Path) -> None:
    made = build(DataConfig(data=file), settings)
    put(made.path / MANIFEST, "{")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(made.path)
    put(made.path / MANIFEST, '{"labels": ["a", "b"], "surprise": 1}')
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(made.path)
    (made.path / MANIFEST).unlink()
    with pytest.raises(DataError, match="not a finished dataset"):
        load_dataset(made.path)


# -- reading ----------------------------------------------------------------------------------


def test_the_same_rows_in_every_format_are_the_same_dataset(
    settings: Settings, tmp_path: Path, file: Path
) -> None:
    rows = samples()
    texts, labels = zip(*rows, strict=True)
    jsonl = "\n".join(json.dumps({"label": b, "text": a, "extra": [1]}) for a, b in rows)
    table = pa.table({"text": texts, "label": pa.array(labels).dictionary_encode()})
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=100)
    files = (
        file,
        put(tmp_path / "m.jsonl", jsonl + "\n\n"),
        put(tmp_path / "bom.csv", b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n")),
        tmp_path / "m.parquet",
    )
    assert len({build(DataConfig(data=f), settings).fingerprint for f in files}) == 1


def test_quoted_commas_and_line_breaks_are_text(tmp_path: Path) -> None:
    file = put(tmp_path / "m.csv", 'label,text\n1,"one, ""two""\nthree"\n\n2,four\n')
    assert list(read_rows(file, ("text", "label"))) == [
        (2, ['one, "two"\nthree', "1"]),
        (5, ["four", "2"]),
    ]


def test_labels_may_be_numbers(settings: Settings, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": len(label)}) for text, label in samples()]
    assert build(DataConfig(data=put(tmp_path / "m.jsonl", "\n".join(lines))), settings).labels == (
        "7",
        "8",
    )


def test_labels_that_look_alike_are_one(settings: Settings, tmp_path: Path) -> None:
    """A zero-width space or half a surrogate in a label made a class, or a traceback."""
    odd = {"positive": "positive\u200b", "negative": " negative\ud800", "neutral": "neutral"}
    lines = [json.dumps({"text": text, "label": odd[label]}) for text, label in samples()]
    made = build(DataConfig(data=put(tmp_path / "m.jsonl", "\n".join(lines))), settings)
    assert made.labels == ("negative", "neutral", "positive")


# -- splitting --------------------------------------------------------------------------------


@pytest.fixture
def dataset(settings: Settings, file: Path) -> Dataset:
    return build(DataConfig(data=file), settings)


def keys(dataset: Dataset, split: str) -> set[str]:
    return {row.key for row in dataset.read(split)}


def test_a_row_is_in_exactly_one_of_the_five_splits(dataset: Dataset) -> None:
    counts = Counter(key for split in DISJOINT for key in keys(dataset, split))
    assert set(counts.values()) == {1}
    assert set(counts) == {content_key(prepare(text).text) for text, _ in samples()}
    assert dict(dataset.rows) == {name: len(dataset.read(name)) for name in SPLITS}


@given(st.text(), st.booleans())
def test_a_split_is_a_matter_of_the_text_alone(text: str, with_test: bool) -> None:
    """Of no other row, no order, no seed: so a row stays where it is whatever comes to it."""
    split = _place(content_key(text), 0.15, with_test=with_test)
    assert split in (DISJOINT if with_test else DISJOINT[:-1])
    assert split == _place(content_key(f" {text}\t"), 0.15, with_test=with_test)


def test_adding_rows_moves_no_other_row(settings: Settings, dataset: Dataset) -> None:
    more = put(dataset.path.parent / "more.csv", csv_of([*samples(700, seed=9), *samples()]))
    larger = build(DataConfig(data=more), settings)
    assert larger.fingerprint != dataset.fingerprint
    for split in SPLITS:
        assert keys(dataset, split) <= keys(larger, split)


def test_the_order_of_rows_does_not_matter(settings: Settings, dataset: Dataset) -> None:
    again = put(dataset.path.parent / "again.csv", csv_of(samples()[::-1]))
    assert build(DataConfig(data=again), settings).fingerprint == dataset.fingerprint


def test_the_shares_are_as_stated() -> None:
    rows = Counter(_place(content_key(str(i)), 0.15, with_test=True) for i in range(20_000))
    stated = {"test": 0.15, "certify": 0.15 * 0.85, "tune": 0.12 * 0.85, "calibration": 0.08 * 0.85}
    for split, share in stated.items():
        assert rows[split] / 20_000 == pytest.approx(share, abs=0.01)
    assert "test" not in {_place(content_key(str(i)), 0.15, with_test=False) for i in range(1000)}


def test_a_test_file_is_respected_and_its_texts_are_nowhere_else(
    settings: Settings, file: Path, tmp_path: Path
) -> None:
    shared = [(f"  {text.upper()} ", label) for text, label in samples()[:50]]
    test = put(tmp_path / "test.csv", csv_of([*shared, *samples(40, seed=7)]))
    made = build(DataConfig(data=file, test=test, unlabelled=(test,)), settings)
    expected = {content_key(prepare(text).text) for text, _ in [*shared, *samples(40, 7)]}
    assert keys(made, "test") == expected
    for split in SPLITS:
        assert split == "test" or not keys(made, split) & expected
    assert made.notes["rows_dropped_for_being_in_the_test_file"] == 50


def test_equal_texts_are_one_row_and_the_first_label_stays(
    settings: Settings, tmp_path: Path
) -> None:
    twins = [("Where  is MY card?", "neutral"), ("where is my card?", "positive")]
    file = put(tmp_path / "m.csv", csv_of([*twins, *samples()]))
    made = build(DataConfig(data=file), settings)
    found = [
        row
        for split in DISJOINT
        for row in made.read(split)
        if dedup_key(row.message.text) == "where is my card?"
    ]
    assert [(row.message.text, row.label) for row in found] == [("Where is MY card?", "neutral")]
    assert made.notes["duplicates_dropped"] == 1
    assert made.notes["duplicates_with_another_label"] == 1


def test_messages_are_read_without_labels(tmp_path: Path) -> None:
    """As the splits are: scrubbed, each text once, and known by the same fingerprint."""
    lines = ["body,label", "Where  is MY card?,a", "where is my card?,b", "mail me: jo@x.org,"]
    notes = Counter[str]()
    rows = read_messages(put(tmp_path / "m.csv", "\n".join(lines)), "body", None, notes)
    assert rows[0].message.text == "Where is MY card?"
    assert "jo@x.org" not in rows[1].message.text
    assert rows[1].message.pinned is not None
    assert [row.label for row in rows] == [None, None]
    assert [row.key for row in rows] == [content_key(row.message.text) for row in rows]
    assert notes == {
        "rows_read": 3, "duplicates_dropped": 1, "duplicates_with_another_label": 0,
        "rows_with_personal_data_masked": 1,
    }  # fmt: skip


def test_messages_have_the_fingerprints_of_their_rows_in_the_splits(dataset: Dataset) -> None:
    """By these a certificate knows a row that made the release."""
    for split in DISJOINT:
        assert all(row.key == content_key(row.message.text) for row in dataset.read(split))


@pytest.mark.parametrize(
    ("content", "label_column", "said"),
    [("text\nhello\n \n", None, "line 3: the text is empty"),
     ("text,label\nhello,\n", "label", "line 2: the label is empty"),
     ("text\nhello\n", "label", "no column 'label'"),
     ("body\nhello\n", None, "no column 'text'")],
)  # fmt: skip
def test_messages_that_cannot_be_read(
    tmp_path: Path, content: str, label_column: str | None, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read_messages(put(tmp_path / "m.csv", content), "text", label_column, Counter())


def test_personal_data_is_in_no_file(settings: Settings, tmp_path: Path) -> None:
    card, email = "4111 1111 1111 1111", "jane.doe@example.com"
    rows = [(f"{text} {card} or {email}", label) for text, label in samples()]
    more = put(tmp_path / "more.csv", csv_of([(f"mail {email} about {i}", "") for i in range(9)]))
    file = put(tmp_path / "m.csv", csv_of(rows))
    made = build(DataConfig(data=file, unlabelled=(more,)), settings)
    for split in SPLITS:
        for row in made.read(split):
            assert "1111" not in row.message.text
            assert "jane" not in row.message.text
            assert "email" in row.message.pii
    assert made.notes["rows_with_personal_data_masked"] == len(rows)
    stored = b"".join(path.read_bytes() for path in made.path.iterdir())
    assert b"jane.doe" not in stored


def test_a_row_that_the_guard_cannot_read_is_left_out(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(raw: str, _: Any) -> Any:
        def redactor(text: str) -> tuple[str, tuple[str, ...]]:
            raise RuntimeError

        return prepare(raw, redactor) if "refund" in raw else prepare(raw)

    monkeypatch.setattr(data, "prepare", failing)
    made = build(DataConfig(data=file, unlabelled=(file,)), settings)
    dropped = sum("refund" in text for text, _ in samples())
    assert dropped > 0
    assert made.notes["rows_dropped_for_a_failed_detector"] == dropped
    assert not any("refund" in text for split in SPLITS for text in made.texts(split))


def test_dapt_holds_nothing_that_is_judged(settings: Settings, file: Path, tmp_path: Path) -> None:
    """Unlabelled text may repeat what is tested; a model must not read its exam."""
    unlabelled = put(tmp_path / "u.csv", csv_of([*samples(), *samples(60, seed=4), (" ", "")]))
    made = build(DataConfig(data=file, unlabelled=(unlabelled,)), settings)
    dapt = keys(made, "dapt")
    assert keys(made, "train") < dapt
    assert not any(dapt & keys(made, split) for split in JUDGED)
    assert len(dapt - keys(made, "train")) == 60
    assert {row.label for row in made.read("dapt")} == {None}


def test_a_dataset_comes_back_as_it_was_built(dataset: Dataset) -> None:
    again = load_dataset(dataset.path)
    assert again == dataset
    assert again.labels == ("negative", "neutral", "positive")
    texts, numbers = again.labelled("tune")
    rows = again.read("tune")
    assert texts == [row.message.text for row in rows]
    assert [again.labels[number] for number in numbers] == [row.label for row in rows]
    assert again.ref.fingerprint.startswith(dataset.path.name)


def test_building_twice_writes_once(settings: Settings, file: Path, dataset: Dataset) -> None:
    written = (dataset.path / MANIFEST).stat().st_mtime_ns
    assert build(DataConfig(data=file), settings) == dataset
    assert (dataset.path / MANIFEST).stat().st_mtime_ns == written


def test_another_label_is_another_dataset(
    settings: Settings, dataset: Dataset, tmp_path: Path
) -> None:
    text, label = samples()[0]
    other = "neutral" if label != "neutral" else "positive"
    file = put(tmp_path / "m2.csv", csv_of([(text, other), *samples()[1:]]))
    assert build(DataConfig(data=file), settings).fingerprint != dataset.fingerprint


def test_a_sites_guard_masks_what_is_trained_on_and_stays_with_the_dataset(
    settings: Settings, file: Path
) -> None:
    put(file, csv_of([(f"{text} mail help@acme.example", label) for text, label in samples()]))
    built_in = build(DataConfig(data=file), settings)
    own = GuardConfig(harmless_domains=("acme.example",))
    site = build(DataConfig(data=file, guard=own), settings)
    assert built_in.notes["rows_with_personal_data_masked"] == built_in.notes["rows_read"]
    assert site.notes["rows_with_personal_data_masked"] < site.notes["rows_read"] / 2
    assert any("help@acme.example" in text for text in site.texts("train"))
    assert built_in.guard is None
    assert site.guard is not None
    assert read_guard(site.guard) == own
    assert load_dataset(site.path).guard == site.guard


def test_the_same_rows_behind_another_guard_are_another_dataset(
    settings: Settings, file: Path
) -> None:
    """Its bundles have another guard.json, so the first dataset would be the wrong one."""
    plain = build(DataConfig(data=file), settings)
    guarded = build(DataConfig(data=file, guard=GuardConfig(harmless_values=("12345",))), settings)
    assert plain.fingerprint != guarded.fingerprint


@pytest.mark.parametrize("row", ["my card is 4111 1111 1111 1111,late", "where is it please?,late"])
def test_a_first_row_in_place_of_a_header_is_not_repeated(file: Path, row: str) -> None:
    put(file, f"{row}\nsecond,late\n")
    with pytest.raises(DataError, match="Add a line of names") as refused:
        read_messages(file, "text", "label", Counter())
    assert "4111" not in str(refused.value)
    assert "where" not in str(refused.value)

"""Training and scoring read the same rows of the same file."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.errors import DataError
from train_jobs.rows import text_files
from train_jobs.rows.read import read_rows
from train_jobs.scoring.chunks import Reader, hashes, plan
from train_jobs.scoring.columns import Columns

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
awkward = texts | st.sampled_from(['"', "\r", "\n", "\r\n", ",", "\ufeff", "\x00", "\u2028"])


def written(path: Path, rows: Sequence[Sequence[str]], end: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=end)
        writer.writerows([("text", "n"), *rows])
    return path


def scored(path: Path) -> list[list[str | None]]:
    columns = Columns(id="n")
    made = plan(path, columns, hashes(path))
    reader = Reader(made.root, columns)
    return [[row.text, row.id] for chunk in made.chunks for row in reader.rows(chunk)]


@hypothesis_settings(deadline=None)
@given(st.lists(st.tuples(awkward, awkward), min_size=1), st.sampled_from(["\n", "\r\n", "\r"]))
def test_both_read_what_was_written_however_its_lines_end(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], end: str
) -> None:
    path = written(tmp_path_factory.mktemp("rows") / "in.csv", rows, end)
    assert [cells for _, cells in read_rows(path, ("text", "n"))] == [list(row) for row in rows]
    assert scored(path) == [list(row) for row in rows]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_is_whole_wherever_the_block_that_it_is_read_in_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    lines = [b"n,text", *(b"%d,%s" % (i, b"x" * (i % 11)) for i in range(60))]
    path = tmp_path / "in.csv"
    path.write_bytes(end.join(lines))
    for size in range(16, 40):
        monkeypatch.setattr(text_files, "_MAX_LINE", size)
        found = [b",".join(map(str.encode, cells)) for _, cells in read_rows(path, ("n", "text"))]
        assert found == lines[1:]


def test_a_bad_row_is_named_by_the_line_on_which_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('text,n\n"two\nlines",1\n"two\nmore",2,3\n')
    with pytest.raises(DataError, match=r"in\.csv, line 4: 3 fields, 2 expected"):
        list(read_rows(path, ("text",)))


def test_a_column_of_parquet_may_have_any_name_and_any_number_of_others(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    rows = {"a.text": ["x", None], "a": [{"text": 1}, {"text": 2}], "n": [1, 2], "text": ["u", "v"]}
    pq.write_table(pa.table(rows), path)
    assert list(read_rows(path, ("a.text", "n"))) == [(1, ["x", "1"]), (2, ["", "2"])]
    assert list(read_rows(path, ("text",))) == [(1, ["u"]), (2, ["v"])]


def test_a_parquet_string_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": pa.array([b"good", b"\xff"]).view(pa.string())}), path)
    with pytest.raises(DataError, match="a string of text is not UTF-8"):
        list(read_rows(path, ("text",)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_that_is_too_long_takes_no_other_with_it(
    end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lines end in a carriage return alone, all that followed it was lost with it."""
    monkeypatch.setattr(text_files, "_MAX_LINE", 1 << 10)
    path = tmp_path / "data.jsonl"
    path.write_bytes(end.join([b'{"text": "a"}', b"x" * 3000, b'{"text": "b"}', b""]))
    found = list(text_files.lines_of(path, 0, None, 0))
    assert [record.line for record in found] == [1, 2, 3]
    assert [record.problem is None for record in found] == [True, False, True]
    assert found[2].data.strip() == '{"text": "b"}'
    (again,) = text_files.lines_of(path, found[2].start, None, 2)
    assert again.data == found[2].data

"""Reading: every writer's records by time, and what is torn or corrupt passed over."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.audit import days
from cluster.audit.compact import compact
from cluster.audit.read import ReadReport, parse_since, read
from cluster.errors import ConfigError
from tests.support.audit_log import DAY_S, NOON_S, TOMORROW, answer, write


def test_writers_are_merged_by_time(tmp_path: Path) -> None:
    write(tmp_path, [answer(i) for i in (0, 2, 4)], "r1")
    write(tmp_path, [answer(i) for i in (1, 3, 5)], "r2")
    assert [record.id for record in read(tmp_path)] == [f"id-{i}" for i in range(6)]


def test_a_missing_folder_holds_no_records(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none")) == []
    assert compact(tmp_path / "none", TOMORROW).files == ()


def test_a_torn_last_line_is_passed_over_then_cut(tmp_path: Path) -> None:
    path = write(tmp_path, [answer(0), answer(1)])
    path.write_bytes(path.read_bytes()[:-9])
    report = ReadReport()
    assert list(read(tmp_path, report=report)) == [answer(0)]
    assert report.corrupt == []
    write(tmp_path, [answer(2)])
    report = ReadReport()
    assert list(read(tmp_path, report=report)) == [answer(0), answer(2)]
    assert report.corrupt == []


def test_a_file_that_is_one_torn_line_is_emptied(tmp_path: Path) -> None:
    path = write(tmp_path, [answer(0)])
    path.write_bytes(b'{"kind":"ans')
    write(tmp_path, [answer(1)])
    assert list(read(tmp_path)) == [answer(1)]


@pytest.mark.parametrize("last", [None, 2])
def test_a_corrupt_line_is_named_by_file_and_number(tmp_path: Path, last: int | None) -> None:
    path = write(tmp_path, [answer(i) for i in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\x00\x00{]\n", lines[3]]))
    report = ReadReport()
    ids = [record.id for record in read(tmp_path, last=last, report=report)]
    assert ids == (["id-0", "id-1", "id-3"] if last is None else ["id-3"])
    [bad] = report.corrupt
    assert (bad.file, bad.line) == (path, 3)


def test_a_log_of_corrupt_lines_is_counted_and_not_logged_line_by_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, [answer(i) for i in range(2000)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(b"{}\n" if i % 2 else line for i, line in enumerate(lines)))
    report = ReadReport()
    assert len(list(read(tmp_path, report=report))) == 1000
    assert [bad.line for bad in report.corrupt] == list(range(2, 2001, 2))
    assert len(caplog.records) == 11


def test_day_files_before_since_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path, [answer(0)], at_s=NOON_S - DAY_S).write_bytes(b"garbage\n")
    write(tmp_path, [answer(0), answer(1)])
    report = ReadReport()
    assert list(read(tmp_path, NOON_S + 0.5, report=report)) == [answer(1)]
    assert report.corrupt == []


def test_since_reaches_back_into_the_day_it_falls_in(tmp_path: Path) -> None:
    yesterday = answer(0, NOON_S - DAY_S)
    write(tmp_path, [yesterday], at_s=NOON_S - DAY_S)
    assert list(read(tmp_path, NOON_S - DAY_S)) == [yesterday]


@given(count=st.integers(0, 12), last=st.integers(0, 14), block_bytes=st.integers(1, 900))
def test_the_last_records_are_found_from_the_end(count: int, last: int, block_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(days, "BLOCK_BYTES", block_bytes)
        with TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, [answer(i) for i in range(count)] or [answer(0)])
            expected = [answer(i) for i in range(max(count, 1))][-last or 99 :]
            assert list(read(folder, last=last)) == expected


@pytest.mark.parametrize(
    ("text", "since_s"),
    [
        ("90m", NOON_S - 5400),
        ("24h", NOON_S - DAY_S),
        ("7d", NOON_S - 7 * DAY_S),
        ("2w", NOON_S - 14 * DAY_S),
        ("2026-11-21", NOON_S - DAY_S / 2),
        ("2026-11-21T08:00", NOON_S - 4 * 3600),
        ("2026-11-21T08:00+02:00", NOON_S - 6 * 3600),
    ],
)
def test_a_time_to_begin_at(text: str, since_s: float) -> None:
    assert parse_since(text, NOON_S) == since_s


@pytest.mark.parametrize(
    "text", ["", "7", "7 d", "-7d", "7y", "yesterday", "2026-13-01", "\u0667d"]
)
def test_what_is_no_time_to_begin_at_is_told_what_is(text: str) -> None:
    with pytest.raises(ConfigError, match="7d"):
        parse_since(text, NOON_S)


def test_the_log_has_nothing_from_the_future() -> None:
    with pytest.raises(ConfigError, match="future"):
        parse_since("2026-11-22", NOON_S)

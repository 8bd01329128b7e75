"""Compaction: a day reads the same before, after and in the middle of it."""

import math
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from cluster.audit import compact as compaction
from cluster.audit.compact import Compacted, compact
from cluster.audit.read import ReadReport, read
from cluster.audit.records import FeedbackRecord, Record
from cluster.audit.write import AuditLog
from cluster.errors import AuditError
from tests.support.audit_log import DAY_S, NOON_S, answer, compact_closed, run_python, write


def both_kinds() -> list[Record]:
    return [
        answer(0, confidence=math.nan, signals={}),
        FeedbackRecord("id-0", NOON_S + 0.5, "positive"),
        answer(1, route="cloud", degraded=True, edge_label=None, propensity=0.1),
        answer(2, trust=-math.inf),
    ]


def test_a_compacted_day_reads_the_same(tmp_path: Path) -> None:
    write(tmp_path, both_kinds()[:2], "r1")
    write(tmp_path, both_kinds()[2:], "r2")
    before = repr(list(read(tmp_path)))
    done = compact_closed(tmp_path)
    assert (done.files, done.records, done.left) == ((tmp_path / "20261121.parquet",), 4, ())
    assert repr(list(read(tmp_path))) == before == repr(both_kinds())
    assert not list(tmp_path.glob("*.jsonl"))
    assert not list(tmp_path.glob("*.tmp"))


def test_compacting_twice_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, both_kinds())
    compact_closed(tmp_path)
    data = (tmp_path / "20261121.parquet").read_bytes()
    assert compact_closed(tmp_path) == Compacted((), 0, ())
    assert (tmp_path / "20261121.parquet").read_bytes() == data


def test_row_groups_and_the_last_rows_of_a_compacted_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An early version lost the record after each full row group."""
    monkeypatch.setattr(compaction, "_ROW_GROUP", 4)
    records = [answer(i) for i in range(11)]
    write(tmp_path, records)
    assert compact_closed(tmp_path).records == 11
    assert list(read(tmp_path)) == records
    for last in (1, 3, 4, 7, 11, 50):
        assert list(read(tmp_path, last=last)) == records[-last:]


def test_the_running_day_is_never_compacted(tmp_path: Path) -> None:
    write(tmp_path, [answer(0)])
    assert compact(tmp_path, date(2030, 1, 1), lambda: NOON_S).files == ()
    assert list(read(tmp_path)) == [answer(0)]


def crash(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["_delete", "sync"])
def test_a_crash_of_the_compaction_doubles_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write(tmp_path, [answer(0), answer(2)], "r1")
    write(tmp_path, [answer(1)], "r2")
    expected = [answer(i) for i in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(compaction, step, crash)
        with pytest.raises(KeyboardInterrupt):
            compact_closed(tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert list(read(tmp_path)) == expected
    compact_closed(tmp_path)
    assert not list(tmp_path.glob("*.jsonl"))
    assert not list(tmp_path.glob("*.tmp"))
    assert list(read(tmp_path)) == expected


def test_a_sigkill_half_way_through_the_deletions_doubles_nothing(tmp_path: Path) -> None:
    write(tmp_path, [answer(0)], "r1")
    write(tmp_path, [answer(1)], "r2")
    code = """
import os, signal, sys
from datetime import date
from pathlib import Path
from cluster.audit import compact
def half(paths):
    paths[0].unlink()
    os.kill(os.getpid(), signal.SIGKILL)
compact._delete = half
compact.compact(Path(sys.argv[1]), date(2026, 11, 22), lambda: float(sys.argv[2]))
"""
    assert run_python(code, tmp_path, NOON_S + 2 * DAY_S).returncode == -9
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert list(read(tmp_path)) == [answer(0), answer(1)]


def test_a_late_file_joins_the_compacted_day(tmp_path: Path) -> None:
    """A clock set back makes a file of a compacted name again: it holds new records."""
    write(tmp_path, [answer(0)], "r1")
    compact_closed(tmp_path)
    write(tmp_path, [answer(1)], "r1")
    assert list(read(tmp_path)) == [answer(0), answer(1)]
    assert compact_closed(tmp_path).records == 2
    assert list(read(tmp_path)) == [answer(0), answer(1)]


def test_a_file_with_a_corrupt_line_is_left_for_a_person(tmp_path: Path) -> None:
    broken = write(tmp_path, [answer(0)], "r1")
    broken.write_bytes(b"broken\n" + broken.read_bytes())
    write(tmp_path, [answer(1)], "r2")
    assert compact_closed(tmp_path).left == (broken,)
    report = ReadReport()
    assert list(read(tmp_path, report=report)) == [answer(0), answer(1)]
    assert [bad.file for bad in report.corrupt] == [broken]


def test_one_compaction_at_a_time(tmp_path: Path) -> None:
    write(tmp_path, [answer(0)])
    with (
        compaction._only_compaction(tmp_path),
        pytest.raises(AuditError, match="Another compaction"),
    ):
        compact_closed(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-40]])
def test_a_broken_compacted_day_is_an_error_not_silence(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    write(tmp_path, [answer(0)])
    compact_closed(tmp_path)
    path = tmp_path / "20261121.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AuditError, match="cannot be read"):
        list(read(tmp_path))


def test_a_writer_that_slept_over_midnight_does_not_write_to_a_compacted_day(
    tmp_path: Path,
) -> None:
    now_s = [NOON_S]
    log = AuditLog(tmp_path, "r1", lambda: now_s[0])
    log.append([answer(0)])
    now_s[0] += DAY_S
    compact_closed(tmp_path)
    log.append([answer(1, NOON_S + DAY_S)])
    assert [record.id for record in read(tmp_path)] == ["id-0", "id-1"]
    assert sorted(path.name for path in tmp_path.glob("2*")) == [
        "20261121.parquet",
        "20261122-r1.jsonl",
    ]

"""The decision log: what is written stays, what cannot be is refused, nothing counts twice."""

import json
import math
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cluster.audit import compact as compaction
from cluster.audit import days, keyed_hash
from cluster.audit.compact import Compacted, compact
from cluster.audit.keyed_hash import TextHasher, load_key
from cluster.audit.read import ReadReport, parse_since, read
from cluster.audit.records import AuditRecord, FeedbackRecord, Record, parse
from cluster.audit.write import AuditLog
from cluster.errors import AuditError, ConfigError

NOON_S = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
TOMORROW = date(2026, 11, 22)


def answer(number: int = 0, time_s: float = NOON_S, **changes: Any) -> AuditRecord:
    record = AuditRecord(
        id=f"id-{number}",
        time_s=time_s + number,
        text_hash="0123456789abcdef" * 2,
        route="edge",
        reason="trusted",
        label="negative",
        edge_label="negative",
        confidence=0.9312,
        signals={"confidence": 0.9312, "margin": 0.8},
        trust=0.9312,
        threshold=0.8,
        propensity=1.0,
        release="release-1",
        cost_usd=0.001,
        latency_ms=3.25,
        degraded=False,
    )
    return record._replace(**changes)


def write(
    folder: Path, records: Sequence[Record], writer: str = "r1", at_s: float = NOON_S
) -> Path:
    log = AuditLog(folder, writer, lambda: at_s)
    log.append(records)
    log.close()
    return folder / f"{datetime.fromtimestamp(at_s, UTC):%Y%m%d}-{writer}.jsonl"


def compact_closed(folder: Path) -> Compacted:
    """Compacts the 21st, as seen two days later."""
    return compact(folder, TOMORROW, lambda: NOON_S + 2 * DAY_S)


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# ---- the records


numbers = st.floats()
times = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec=None))  # lone surrogates too
answers = st.builds(
    AuditRecord,
    id=names,
    time_s=times,
    text_hash=names,
    route=names,
    reason=names,
    label=names,
    edge_label=st.none() | names,
    confidence=numbers,
    signals=st.dictionaries(names, numbers, max_size=4),
    trust=numbers,
    threshold=numbers,
    propensity=st.floats(0, 1, exclude_min=True),
    release=names,
    cost_usd=numbers,
    latency_ms=numbers,
    degraded=st.booleans(),
)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@given(answers)
def test_a_record_survives_as_one_line_of_strict_json(record: AuditRecord) -> None:
    line = record.to_json()
    json.loads(line, parse_constant=no_constant)
    assert b"\n" not in line
    # repr, because NaN differs from itself and -0.0 equals 0.0
    assert repr(AuditRecord.from_json(line)) == repr(record)


@given(st.builds(FeedbackRecord, id=names, time_s=times, label=names))
def test_feedback_survives(record: FeedbackRecord) -> None:
    assert FeedbackRecord.from_json(record.to_json()) == record


def test_no_field_can_hold_the_text() -> None:
    # Whoever adds a field must come past this list.
    assert set(json.loads(answer().to_json())) == {
        "kind", "id", "time_s", "text_hash", "route", "reason", "label", "edge_label", "confidence",
        "signals", "trust", "threshold", "propensity", "release", "cost_usd", "latency_ms",
        "degraded", "cached", "shadow_of", "offline",
    }  # fmt: skip


def test_keys_of_a_later_version_are_read_over_and_not_written() -> None:
    value = {**json.loads(answer().to_json()), "invented_later": [1, 2]}
    record = AuditRecord.from_json(json.dumps(value))
    assert record == answer()
    assert b"invented_later" not in record.to_json()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"7",
        b'{"kind": "answer"}',
        b'{"kind": "order", "id": "a"}',
        b'{"kind": "feedback", "id": 1, "time_s": 1.0, "label": "x"}',
        b'{"kind": "feedback", "id": "a", "time_s": true, "label": "x"}',
        b'{"kind": "feedback", "id": "a", "time_s": NaN, "label": "x"}',
        b'{"kind": "feedback", "id": "a", "time_s": 1' + b"0" * 400 + b', "label": "x"}',
        b"\xff\xfe",
        b"[" * 200_000,
    ],
)
def test_a_line_that_is_no_record_is_an_audit_error(line: bytes) -> None:
    with pytest.raises(AuditError, match="no audit record"):
        parse(line)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("propensity", 0.0),  # of what happened no chance is 0, and no weight 1 / 0
        ("propensity", 1.5),
        ("propensity", "nan"),
        ("propensity", None),
        ("edge_label", 3),
        ("edge_label", ...),
        ("propensity", ...),
    ],
)
def test_a_record_that_could_not_be_replayed_is_no_record(name: str, value: object) -> None:
    """... stands for a key that is missing."""
    found = {**json.loads(answer().to_json()), name: value}
    if value is ...:
        del found[name]
    with pytest.raises(AuditError, match="no audit record"):
        parse(json.dumps(found))


def test_the_kinds_are_not_taken_for_each_other() -> None:
    feedback = FeedbackRecord("id-0", NOON_S, "positive")
    with pytest.raises(AuditError, match="feedback record"):
        AuditRecord.from_json(feedback.to_json())
    with pytest.raises(AuditError, match="answer record"):
        FeedbackRecord.from_json(answer().to_json())


# ---- the keyed hash


def test_the_hash_depends_on_text_and_key() -> None:
    hasher = TextHasher(b"k" * 32)
    assert hasher("where is my parcel") == TextHasher(b"k" * 32)("where is my parcel")
    assert hasher("where is my parcel") != hasher("where is my parcel?")
    assert hasher("where is my parcel") != TextHasher(b"l" * 32)("where is my parcel")
    assert len(bytes.fromhex(hasher("\ud800 lone surrogate"))) == 16


def test_a_long_key_counts_to_its_last_byte() -> None:
    assert TextHasher(b"k" * 100 + b"a")("text") != TextHasher(b"k" * 100 + b"b")("text")


def test_a_short_key_is_refused() -> None:
    # blake2b takes an empty key for no key at all, and hashes anyone could make.
    with pytest.raises(ConfigError, match="at least 16"):
        TextHasher(b"")


def test_the_key_is_not_shown() -> None:
    assert "secretsecretsecret" not in repr(TextHasher(b"secretsecretsecret"))


def test_a_given_key_is_used_and_nothing_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert load_key(path, SecretStr("a key of one's own")) == b"a key of one's own"
    assert not path.exists()


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "key"
    key = load_key(path, SecretStr(""))
    assert load_key(path) == key
    assert len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    load_key(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(path)


def test_the_second_maker_of_a_key_takes_the_first_ones(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = load_key(path)
    keyed_hash._make_key(path)  # a process that saw no file a moment ago
    assert load_key(path) == key


def _race(path: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(load_key(path))


def test_processes_that_race_for_a_key_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    racers = [
        context.Process(target=_race, args=(tmp_path / "key", barrier, results)) for _ in range(6)
    ]
    for racer in racers:
        racer.start()
    keys = {results.get(timeout=30) for _ in racers}
    for racer in racers:
        racer.join()
    assert keys == {load_key(tmp_path / "key")}


# ---- writing


def test_batches_come_back_in_order(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, "r1", lambda: NOON_S)
    records: list[Record] = [answer(0), answer(1), FeedbackRecord("id-0", NOON_S + 2, "positive")]
    log.append(records[:2])
    log.append([])
    log.append(records[2:])
    assert list(read(tmp_path)) == records
    assert [path.name for path in tmp_path.iterdir()] == ["20261121-r1.jsonl"]
    assert stat.S_IMODE((tmp_path / "20261121-r1.jsonl").stat().st_mode) == 0o600


def test_a_new_day_gets_a_new_file(tmp_path: Path) -> None:
    now_s = [NOON_S]
    log = AuditLog(tmp_path, "r1", lambda: now_s[0])
    log.append([answer(0)])
    now_s[0] += DAY_S
    log.append([answer(1, NOON_S + DAY_S)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "20261121-r1.jsonl",
        "20261122-r1.jsonl",
    ]
    assert [record.id for record in read(tmp_path)] == ["id-0", "id-1"]


def test_midnight_between_choosing_and_locking_the_file(tmp_path: Path) -> None:
    """A write that waits for the lock past midnight must not land in a day being compacted."""
    ticks = iter([NOON_S, NOON_S + DAY_S, NOON_S + DAY_S, NOON_S + DAY_S])
    AuditLog(tmp_path, "r1", lambda: next(ticks)).append([answer()])
    assert not (tmp_path / "20261121-r1.jsonl").read_bytes()
    assert (tmp_path / "20261122-r1.jsonl").read_bytes()


def test_threads_and_writers_of_one_name_do_not_mix_their_lines(tmp_path: Path) -> None:
    logs = [AuditLog(tmp_path, "r1", lambda: NOON_S) for _ in range(2)]

    def work(thread: int) -> None:
        for i in range(50):
            logs[thread % 2].append([answer(1000 * thread + i), answer(1000 * thread + 500 + i)])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = ReadReport()
    ids = [record.id for record in read(tmp_path, report=report)]
    assert len(ids) == len(set(ids)) == 400
    assert (report.torn, report.corrupt) == (0, [])


def test_a_record_survives_a_sigkill_right_after(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from cluster.audit.records import FeedbackRecord
from cluster.audit.write import AuditLog
AuditLog(Path(sys.argv[1]), "r1").append([FeedbackRecord("last words", 1.0, "positive")])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, tmp_path).returncode == -9
    assert list(read(tmp_path)) == [FeedbackRecord("last words", 1.0, "positive")]


def test_a_full_disk_refuses_the_answer_and_leaves_no_half_record(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel write short, then fail, as a full disk does."""
    code = """
import json, resource, sys
from pathlib import Path
from cluster.audit.records import FeedbackRecord
from cluster.audit.write import AuditLog
from cluster.errors import AuditError
log = AuditLog(Path(sys.argv[1]), "r1")
log.append([FeedbackRecord("before", 1.0, "x")])
[path] = Path(sys.argv[1]).iterdir()
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
try:
    log.append([FeedbackRecord(f"lost-{i}", 2.0, "x") for i in range(50)])
except AuditError as error:
    print(json.dumps({"error": str(error), "grown": path.stat().st_size - size}))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
log.append([FeedbackRecord("after", 3.0, "x")])
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["grown"] == 0
    assert "no answer may leave" in found["error"]
    assert "File too large" in found["error"]
    assert [record.id for record in read(tmp_path)] == ["before", "after"]


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write(tmp_path, [answer(0), answer(1)])
    assert list(read(tmp_path)) == [answer(0), answer(1)]


def test_what_a_failed_rollback_leaves_is_cut_off_by_the_next_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path, "r1", lambda: NOON_S)
    log.append([answer(0)])
    real, calls = os.write, []

    def half_then_fail(descriptor: int, data: bytes) -> int:
        calls.append(data)
        return real(descriptor, data[:100]) if len(calls) == 1 else fail()

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half_then_fail)
        patched.setattr(os, "ftruncate", fail)
        with pytest.raises(AuditError, match="Input/output error"):
            log.append([answer(1)])
    report = ReadReport()
    assert list(read(tmp_path, report=report)) == [answer(0)]
    assert report.torn == 1
    log.append([answer(2)])
    assert list(read(tmp_path)) == [answer(0), answer(2)]


def test_a_file_deleted_behind_the_writer_is_made_again(tmp_path: Path) -> None:
    """An open descriptor would go on taking records into a file that nobody can read."""
    log = AuditLog(tmp_path, "r1", lambda: NOON_S)
    log.append([answer(0)])
    (tmp_path / "20261121-r1.jsonl").unlink()
    log.append([answer(1)])
    assert list(read(tmp_path)) == [answer(1)]


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, "r1")
    log.close()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.append([answer()])


def test_a_value_that_is_no_json_refuses_the_whole_batch(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, "r1")
    with pytest.raises(AuditError, match="JSON"):
        log.append([answer(0), answer(1, label=object())])
    assert list(read(tmp_path)) == []


def test_a_folder_that_cannot_be_made_is_an_audit_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit", "r1")


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "router#1", "x" * 101])
def test_a_writer_name_stays_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        AuditLog(tmp_path, name)


# ---- reading


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
    assert (report.records, report.torn, report.corrupt) == (1, 1, [])
    write(tmp_path, [answer(2)])
    report = ReadReport()
    assert list(read(tmp_path, report=report)) == [answer(0), answer(2)]
    assert (report.torn, report.corrupt) == (0, [])


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


# ---- compaction


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

"""The decision log: what is written stays, what cannot be is refused, nothing counts twice."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from cluster.audit.read import ReadReport, read
from cluster.audit.records import FeedbackRecord, Record
from cluster.audit.write import AuditLog
from cluster.errors import AuditError, ConfigError
from tests.support.audit_log import DAY_S, NOON_S, answer, run_python, write

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
    assert report.corrupt == []


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
    assert list(read(tmp_path)) == [answer(0)]
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


def test_a_folder_that_was_moved_takes_no_more_records(tmp_path: Path) -> None:
    """The open file went on growing where no reader looks."""
    folder = tmp_path / "audit"
    log = AuditLog(folder, "r1")
    log.append([answer(0)])
    folder.rename(tmp_path / "away")
    with pytest.raises(AuditError, match="No such file or directory"):
        log.append([answer(1)])
    folder.mkdir()
    log.append([answer(2)])
    assert [record.id for record in read(folder)] == ["id-2"]
    assert [record.id for record in read(tmp_path / "away")] == ["id-0"]

"""AuditWriter: one write for many, no answer without its record, and the event loop goes on."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.audit.read import read
from cluster.audit.records import FeedbackRecord, Record
from cluster.audit.write import AuditLog
from cluster.errors import AuditError
from serve_app.cascade.audit_writer import AuditState, AuditWriter

pytestmark = pytest.mark.anyio


def records(*names: str) -> list[Record]:
    return [FeedbackRecord(name, 1.0, "label") for name in names]


class FakeLog:
    """A disk that takes what it is given when it is told to."""

    def __init__(self) -> None:
        self.writes: list[list[str]] = []
        self.open = threading.Event()
        self.fails: Exception | None = None
        self.threads: set[str] = set()
        self.checks = 0

    def append(self, records: Sequence[Record]) -> None:
        self.threads.add(threading.current_thread().name)
        assert self.open.wait(10)
        if self.fails is not None:
            raise self.fails
        self.writes.append([record.id for record in records])

    def check(self) -> str | None:
        self.checks += 1
        return "some warning"


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_while_a_write_is_out_shares_the_next_one() -> None:
    disk = FakeLog()
    writer = AuditWriter(disk)
    tasks = [asyncio.create_task(writer.append(records(name))) for name in "abcd"]
    await settle()
    assert not any(task.done() for task in tasks)
    disk.open.set()
    await asyncio.gather(*tasks)
    assert disk.writes == [["a"], ["b", "c", "d"]]
    assert disk.threads == {"audit"}
    assert writer.pending == 0
    await writer.close()


async def test_what_returned_is_in_the_file(tmp_path: Path) -> None:
    writer = AuditWriter(AuditLog(tmp_path, "r1"))

    async def client(number: int) -> None:
        for turn in range(20):
            name = f"{number}-{turn}"
            await writer.append(records(name, f"{name}-b"))
            # Another process would see it now: nothing is buffered.
            assert f'"{name}"' in next(tmp_path.glob("*.jsonl")).read_text()

    await asyncio.gather(*(client(number) for number in range(8)))
    await writer.close()
    assert len({record.id for record in read(tmp_path)}) == 8 * 20 * 2


async def test_a_slow_disk_does_not_hold_up_the_event_loop() -> None:
    class Slow(FakeLog):
        def append(self, records: Sequence[Record]) -> None:
            time.sleep(0.2)

    writer = AuditWriter(Slow())
    write = asyncio.create_task(writer.append(records("a")))
    longest_s, last_s = 0.0, time.monotonic()
    while not write.done():
        await asyncio.sleep(0.001)
        now_s = time.monotonic()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    await write
    assert longest_s < 0.1
    await writer.close()


async def test_a_failed_write_reaches_all_its_requests_and_no_later_one() -> None:
    disk = FakeLog()
    writer = AuditWriter(disk)
    tasks = [asyncio.create_task(writer.append(records(name))) for name in "abc"]
    await settle()
    disk.fails = AuditError("The audit log cannot be written (No space left on device).")
    disk.open.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, AuditError) and "No space left" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 3
    disk.fails = None
    await writer.append(records("d"))
    assert disk.writes == [["d"]]
    await writer.close()


async def test_a_bug_in_the_log_is_an_audit_error_and_does_not_end_the_journal() -> None:
    disk = FakeLog()
    disk.open.set()
    disk.fails = RuntimeError("a bug")
    writer = AuditWriter(disk)
    with pytest.raises(AuditError, match="RuntimeError"):
        await writer.append(records("a"))
    disk.fails = None
    await writer.append(records("b"))
    await writer.close()


async def test_a_client_that_leaves_loses_nobody_elses_record() -> None:
    disk = FakeLog()
    writer = AuditWriter(disk)
    tasks = [asyncio.create_task(writer.append(records(name))) for name in "abc"]
    await settle()
    tasks[0].cancel()
    tasks[1].cancel()
    await settle()
    disk.open.set()
    await tasks[2]
    # Their answers did not leave; that they are written all the same is allowed
    # (cluster/audit/write.py).
    assert disk.writes == [["a"], ["b", "c"]]
    assert writer.pending == 0
    await writer.close()


async def test_a_disk_that_hangs_holds_a_bounded_number_of_records() -> None:
    disk = FakeLog()
    writer = AuditWriter(disk, max_waiting=3)
    held = [asyncio.create_task(writer.append(records(*names))) for names in ("a", "bc")]
    await settle()
    start_s = time.monotonic()
    with pytest.raises(AuditError, match="at most 3"):
        await writer.append(records("d"))
    assert time.monotonic() - start_s < 0.05
    disk.open.set()
    await asyncio.gather(*held)
    await writer.append(records("e"))
    assert disk.writes == [["a"], ["b", "c"], ["e"]]
    await writer.close()


async def test_a_request_does_not_wait_for_ever() -> None:
    disk = FakeLog()
    writer = AuditWriter(disk, timeout_s=0.05)
    with pytest.raises(AuditError, match=r"within 0\.05 s"):
        await writer.append(records("a"))
    disk.open.set()
    await writer.append(records("b"))
    await writer.close()


async def test_close_waits_for_what_is_held_and_takes_no_more() -> None:
    disk = FakeLog()
    writer = AuditWriter(disk)
    held = [asyncio.create_task(writer.append(records(name))) for name in "abc"]
    await settle()
    closing = asyncio.create_task(writer.close())
    await settle()
    with pytest.raises(AuditError, match="closed"):
        await writer.append(records("d"))
    assert not closing.done()
    disk.open.set()
    await asyncio.gather(closing, *held)
    assert disk.writes == [["a"], ["b", "c"]]
    await writer.close()


async def test_close_gives_up_on_a_disk_that_hangs() -> None:
    disk = FakeLog()
    writer = AuditWriter(disk)
    held = [asyncio.create_task(writer.append(records(name))) for name in "ab"]
    await settle()
    await writer.close(timeout_s=0.05)
    await settle()
    assert held[1].done()
    with pytest.raises(AuditError, match="hangs"):
        await held[1]
    held[0].cancel()
    disk.open.set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_on_a_full_disk_no_answer_leaves_and_none_that_left_is_lost(small_disk: Path) -> None:
    log = AuditLog(small_disk, "r1")
    writer = AuditWriter(log)
    left: set[str] = set()
    refusals: list[str] = []

    async def request(number: int) -> None:
        names = [f"{number}-{index}" for index in range(20)]
        try:
            await writer.append(records(*names))
            left.update(names)
        except AuditError as error:
            refusals.append(str(error))

    for first in range(0, 200, 8):
        await asyncio.gather(*(request(first + number) for number in range(8)))
    assert left
    assert refusals
    assert all("No space left" in why for why in refusals)
    assert {record.id for record in read(small_disk)} == left
    next(small_disk.glob("*.jsonl")).unlink()
    await writer.append(records("after"))  # there is room again, and nobody had to do anything
    await writer.close()
    log.close()


# ---- whether a record could be written now


async def test_a_log_that_can_be_written_has_no_problem_and_leaves_nothing(tmp_path: Path) -> None:
    writer = AuditWriter(AuditLog(tmp_path, "r1"))
    assert await writer.check() == AuditState(None, None)
    assert list(tmp_path.iterdir()) == []
    await writer.append(records("a"))
    assert (await writer.check()).problem is None
    assert len(list(tmp_path.iterdir())) == 1
    await writer.close()
    assert "closed" in ((await writer.check()).problem or "")


@pytest.mark.parametrize("used", [False, True])
async def test_a_folder_that_is_gone_is_told_without_its_path_and_until_it_is_back(
    tmp_path: Path, used: bool
) -> None:
    folder = tmp_path / "audit"
    writer = AuditWriter(AuditLog(folder, "r1"))
    if used:
        await writer.append(records("a"))
    folder.rename(tmp_path / "away")
    problem = (await writer.check()).problem
    assert problem == "the audit log cannot be written (No such file or directory)"
    folder.touch()
    assert "Not a directory" in ((await writer.check()).problem or "")
    folder.unlink()
    (tmp_path / "away").rename(folder)
    assert await writer.check() == AuditState(None, None)
    await writer.append(records("b"))
    assert {record.id for record in read(folder)} == ({"a", "b"} if used else {"b"})
    await writer.close()


async def test_a_full_disk_is_told_without_traffic_and_until_there_is_room(
    small_disk: Path,
) -> None:
    writer = AuditWriter(AuditLog(small_disk, "r1"))
    assert await writer.check() == AuditState(None, None)
    filler = small_disk / "filler"
    with suppress(OSError):
        filler.write_bytes(bytes(1 << 20))
    assert "No space left" in ((await writer.check()).problem or "")
    filler.unlink()
    assert await writer.check() == AuditState(None, None)
    await writer.close()


async def test_a_disk_that_hangs_is_told_in_time_and_asked_once(tmp_path: Path) -> None:
    disk = FakeLog()
    writer = AuditWriter(disk)
    held = asyncio.create_task(writer.append(records("a")))
    await settle()
    for _ in range(3):
        found = await writer.check(timeout_s=0.05)
        assert found.problem == "the audit log's disk does not answer within 0.05 s"
    assert disk.checks == 0
    disk.open.set()
    await held
    assert await writer.check() == AuditState(None, "some warning")
    assert 1 <= disk.checks <= 2, "the one that was late, and this one, unless they are the same"
    await writer.close()

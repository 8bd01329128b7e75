"""Following the log: every whole line once, whoever wrote it, and on from where another ended."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.audit import follow
from cluster.audit.follow import Follower
from tests.support.audit_log import DAY_S, NOON_S, answer, compact_closed, write


def ids(follower: Follower) -> list[str]:
    return [record.id for record in follower.new()]


def test_only_what_is_written_from_now_on_is_new(tmp_path: Path) -> None:
    write(tmp_path, [answer(0)])
    follower = Follower(tmp_path)
    assert ids(follower) == []
    write(tmp_path, [answer(1)])
    write(tmp_path, [answer(2)], writer="r2")
    write(tmp_path, [answer(3)], at_s=NOON_S + DAY_S)
    assert ids(follower) == ["id-1", "id-2", "id-3"]
    assert ids(follower) == []


def test_another_goes_on_where_one_ended(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "not there yet")
    assert ids(follower) == []
    follower = Follower(tmp_path, {})
    write(tmp_path, [answer(0), answer(1)])
    assert ids(follower) == ["id-0", "id-1"]
    write(tmp_path, [answer(2)])
    assert ids(Follower(tmp_path, follower.offsets)) == ["id-2"]


def test_a_torn_line_waits_and_a_corrupt_one_is_passed_over(tmp_path: Path) -> None:
    follower, path = Follower(tmp_path), write(tmp_path, [answer(0)])
    line = answer(1).to_json()
    with path.open("ab") as file:
        file.write(b"no record\n" + line[:40])
    assert ids(follower) == ["id-0"]
    with path.open("ab") as file:
        file.write(line[40:] + b"\n")
    assert ids(follower) == ["id-1"]


def test_the_rows_of_a_job_are_passed_over(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    write(tmp_path, [answer(0, offline=True), answer(1)])
    assert ids(follower) == ["id-1"]


def test_a_compacted_day_is_not_read_again(tmp_path: Path) -> None:
    write(tmp_path, [answer(0)])
    follower = Follower(tmp_path)
    compact_closed(tmp_path)
    assert ids(follower) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(sizes=st.lists(st.integers(1, 30), max_size=8), bound=st.integers(1, 4000))
def test_each_record_comes_once_however_little_is_read_at_once(
    tmp_path: Path, sizes: list[int], bound: int
) -> None:
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    follower, before = Follower(folder), follow._AT_ONCE_BYTES
    follow._AT_ONCE_BYTES = bound  # type: ignore[misc]
    try:
        found: list[str] = []
        wanted: list[str] = []
        for turn, size in enumerate(sizes):
            names = [f"{turn}-{i}" for i in range(size)]
            write(folder, [answer(id=name) for name in names], writer=f"r{turn % 3}")
            wanted += names
            while (now := ids(follower)) or follower.is_behind:
                found += now
        assert sorted(found) == sorted(wanted)
    finally:
        follow._AT_ONCE_BYTES = before  # type: ignore[misc]

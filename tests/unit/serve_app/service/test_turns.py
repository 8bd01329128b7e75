"""One lock per home: who starts, moves or stops holds everybody else off, and is seen by them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import ServiceError
from cluster.settings import Settings, load_settings
from serve_app.service import lifecycle, process, state
from serve_app.service.state import STATE, Task, holder, moving, read_info, turn, write_info
from tests.support.waiting import wait_for
from tests.unit.serve_app.service.test_process import info

STARTER = """
import sys, time
from pathlib import Path
from cluster.settings import Settings
from serve_app.service.process import ending
from serve_app.service.state import Task, turn
home = Path(sys.argv[1])
with turn(Settings(home=home), Task(sys.argv[2]), release="r-9") as held, ending():
    held.note(haproxy_dir=home / "haproxy", token_path=home / "ray.token")
    print("there", flush=True)
    try:
        time.sleep(60)
    finally:
        (home / "taken back").touch()
"""


@pytest.fixture
def settings(home: Path) -> Settings:
    home.mkdir()
    return load_settings()


@contextmanager
def another(settings: Settings, what: Task = Task.STARTING) -> Iterator["subprocess.Popen[str]"]:
    """Another process that is at it."""
    (settings.home / "haproxy").mkdir()
    (settings.home / "ray.token").touch()
    words = [sys.executable, "-c", STARTER, str(settings.home), what.value]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        try:
            yield child
        finally:
            child.kill()


def test_a_start_under_way_is_seen_by_status_and_by_another_start(settings: Settings) -> None:
    """The second start of one home deleted the first one's token."""
    with another(settings) as child:
        found = lifecycle.status(settings)
        assert (found.running, found.starting) == (False, True)
        assert f"r-9 is being started by process {child.pid}" in found.problems[0]
        for what in Task:
            with pytest.raises(ServiceError, match=rf"being started .*process {child.pid}"):
                turn(settings, what, wait_s=0).__enter__()
        with pytest.raises(ServiceError, match="being started"), moving(settings):
            pass
        assert (settings.home / "ray.token").exists()
    assert lifecycle.status(settings).problems == []


def test_stop_ends_a_start_that_is_under_way(settings: Settings) -> None:
    """It said that no service was running, and then one ran."""
    with another(settings) as child:
        reaper = threading.Thread(target=child.wait)
        reaper.start()
        assert lifecycle.stop(settings, wait_s=10)
        reaper.join()
        assert child.returncode == 128 + signal.SIGTERM
    assert (settings.home / "taken back").exists(), "by the start itself, in order"
    assert not (settings.home / "haproxy").exists()
    assert not (settings.home / "ray.token").exists()
    assert holder(settings) is None
    assert not lifecycle.stop(settings)


def test_what_a_killed_start_left_is_cleaned_up_by_the_next_one(settings: Settings) -> None:
    with another(settings) as child:
        child.kill()
        child.wait()
        assert holder(settings) is None
        assert not lifecycle.status(settings).starting
        with turn(settings, Task.STARTING) as held:
            assert held.before is not None
            assert held.before.pid == child.pid
            process.clean_up(held.before)
    assert not (settings.home / "haproxy").exists()
    assert not (settings.home / "ray.token").exists()


def test_what_lives_is_not_cleaned_up_by_a_copy_of_its_home(
    settings: Settings, tmp_path: Path
) -> None:
    with another(settings) as child:
        shutil.copytree(settings.home, tmp_path / "copy")
        copy = load_settings(tmp_path / "copy")
        assert not lifecycle.status(copy).starting
        assert not lifecycle.stop(copy)
        assert child.poll() is None
        assert (settings.home / "haproxy").exists()


def test_stop_waits_for_a_move_and_says_who_if_that_does_not_end(settings: Settings) -> None:
    write_info(settings, info())
    with another(settings, Task.MOVING) as child:
        with pytest.raises(ServiceError, match=rf"moved by another process \(process {child.pid}"):
            lifecycle.stop(settings, wait_s=0.2)
        assert read_info(settings) is not None
        threading.Timer(0.3, child.kill).start()
        with turn(settings, Task.STOPPING, wait_s=10):
            pass


def test_a_turn_goes_on_in_a_child_and_ends_with_it(settings: Settings) -> None:
    code = (
        "import sys, time; from serve_app.service.state import adopted\n"
        "held = adopted(int(sys.argv[1])); print('has it', flush=True); sys.stdin.readline()\n"
        "held.end(); print('let go', flush=True); sys.stdin.readline()"
    )
    with turn(settings, Task.STARTING, release="r-9") as held:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(held.descriptor)], pass_fds=(held.descriptor,),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "has it\n"
        held.hand_over()
    with child:
        now = holder(settings)
        assert now is not None
        assert (now.pid, now.release, now.is_alive) == (child.pid, "r-9", True)
        child.stdin.write("on\n")
        assert child.stdout.readline() == "let go\n"
        assert holder(settings) is None
        child.stdin.write("on\n")


def test_a_service_file_that_came_with_a_copy_is_not_ours(
    settings: Settings, tmp_path: Path
) -> None:
    """`firstline stop` in a copied home would have stopped the original's service."""
    write_info(settings, info(keeper_pid=os.getpid(), keeper_started=1))
    shutil.copytree(settings.home, tmp_path / "copy")
    copy = load_settings(tmp_path / "copy")
    assert read_info(copy) is None
    assert not lifecycle.stop(copy)
    settings.home.rename(tmp_path / "moved")
    assert read_info(load_settings(tmp_path / "moved")) is not None
    assert (tmp_path / "moved" / STATE).exists()


def test_nobody_holds_what_nobody_took(settings: Settings) -> None:
    assert holder(settings) is None
    with turn(settings, Task.MOVING):
        start_s = time.monotonic()
        assert wait_for(lambda: holder(settings) is not None, 1.0)
        assert time.monotonic() - start_s < 1
    assert holder(settings) is None
    assert state.holder(load_settings(settings.home / "none")) is None

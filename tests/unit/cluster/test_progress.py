"""Progress without a terminal: plain lines, few of them, and an end that is always said."""

import io

import pytest

from cluster.progress import Board, _Lines, silent, stage
from tests.support.waiting import Clock


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_says_how_far_how_long_and_how_much_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    lines = _Lines("finetune", clock)
    clock.now_s += 65
    lines(25, 100, "epoch 1.0")
    assert said(capsys) == ["  finetune: 25/100 (25%), 1:05 spent, about 3:15 left epoch 1.0"]


def test_a_line_at_most_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = _Lines("finetune", clock)
    for step in range(1, 101):
        clock.now_s += 1
        lines(step, 200)
    assert len(said(capsys)) == 10


@pytest.mark.parametrize(("done", "total"), [(0, 100), (100, 100), (0, 0), (7, 0)])
def test_the_ends_are_no_news_and_no_division_by_zero(
    capsys: pytest.CaptureFixture[str], done: int, total: int
) -> None:
    clock = Clock()
    lines = _Lines("finetune", clock)
    clock.now_s += 60
    lines(done, total)
    assert said(capsys) == []


def test_a_stage_without_a_terminal_is_two_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stage("compress") as report:
        report(1, 2, "int8")
    first, last = said(capsys)
    assert (first, last) == ("compress ...", "compress: done in 0:00")


def test_a_stage_that_fails_is_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), stage("compress"):
        raise ValueError("broken")
    assert said(capsys) == ["compress ..."]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_stage_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with stage("distill") as report:
        report(1, 4, "epoch 0.5")
    assert "distill:  25%" in screen.getvalue()
    assert "epoch 0.5" in screen.getvalue()
    assert "100%" in screen.getvalue()


def test_a_bar_of_an_unknown_length_does_not_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    with stage("certify") as report:
        report(0, 0)


def test_the_board_shows_the_latest() -> None:
    board = Board()
    assert board.get() == (0, 0, "")
    board.put(1, 9, "a")
    board.put(2, 9, "b")
    assert board.get() == (2, 9, "b")


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    silent(1, 2, "note")
    assert said(capsys) == []

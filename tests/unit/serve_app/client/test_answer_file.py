"""Rows of a file against a real socket: checked first, written as they come, gone on with."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, ServiceError
from serve_app.client.answer_file import AnswerFile, Row, answer_rows
from serve_app.client.client import Firstline
from serve_app.client.exchange import Retries, UnreachableError
from serve_app.contracts import Caller
from serve_app.decide.answered import Answered
from serve_app.errors import EmptyTextsError
from serve_app.http.routes import create_api
from tests.support.http_server import serving
from tests.support.http_service import StubService

OVER = {"file_sha256": "0" * 64, "explain": False}
QUICK = Retries(attempts=1)


class Limited(StubService):
    """Answers so many requests, and then none; a text that says so it refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 10**6
        self.texts: list[str] = []

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool, caller: Caller
    ) -> list[Answered]:
        if not self.left:
            raise ServiceError("gone")
        if strange := [at for at, text in enumerate(texts) if "strange" in text]:
            raise EmptyTextsError(strange)
        self.left -= 1
        answers = await super().answer(texts, explain=explain, route_only=route_only, caller=caller)
        self.texts += texts
        return [answer._replace(label=text) for answer, text in zip(answers, texts, strict=True)]


@pytest.fixture
def service() -> Limited:
    return Limited()


@pytest.fixture
def client(service: Limited) -> Iterator[Firstline]:
    with serving(create_api(service)) as url, Firstline(url, retries=QUICK) as made:
        yield made


def rows_of(*texts: str) -> list[Row]:
    """As of a CSV file: a header, and a line for each."""
    return [Row(at, at + 2, text) for at, text in enumerate(texts)]


def many(count: int, **changes: str) -> list[Row]:
    return rows_of(*(changes.get(f"at_{at}", f"text {at}") for at in range(count)))


def written(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(client: Firstline, rows: Sequence[Row], out: Path, **over: Any) -> list[Row]:
    return answer_rows(client, rows, AnswerFile(out, {**OVER, **over}))


def test_bad_rows_are_set_aside_by_line_and_all_others_answered(
    client: Firstline, service: Limited, tmp_path: Path
) -> None:
    """600 rows, row 400 blank, row 500 too long: 256 answers were paid, and none was kept."""
    out = tmp_path / "answers.jsonl"
    refused = ask(client, many(600, at_400=" ", at_500="x" * 12_000), out)
    assert [(row.number, row.line, row.problem) for row in refused] == [
        (400, 402, "no visible character"),
        (500, 502, "12,000 characters, of which 10,000 are the limit"),
    ]
    found = written(out)
    assert [one["row"] for one in found] == [at for at in range(600) if at not in {400, 500}]
    assert all(one["label"] == f"text {one['row']}" for one in found)
    assert all(one["line"] == one["row"] + 2 for one in found)
    assert [len(service.callers), len(service.texts)] == [3, 598]
    assert written(tmp_path / "answers.refused.jsonl") == [
        {"row": 400, "line": 402, "reason": "no visible character"},
        {"row": 500, "line": 502, "reason": "12,000 characters, of which 10,000 are the limit"},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.jsonl", "answers.refused.jsonl",
    ]  # fmt: skip


def test_a_file_without_one_good_row_is_refused_before_anything_is_asked(
    client: Firstline, service: Limited, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("of yesterday\n")
    for rows, said in (([], "0 rows"), (rows_of(" ", ""), "2 rows .* no visible character")):
        with pytest.raises(DataError, match=said):
            ask(client, rows, out)
    assert service.callers == []
    assert out.read_text() == "of yesterday\n"


def test_what_the_service_alone_knows_to_be_bad_is_set_aside_too(
    client: Firstline, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    refused = ask(client, many(300, at_3="a strange one", at_299="another strange one"), out)
    assert [(row.number, row.problem) for row in refused] == [
        (3, "no visible character"), (299, "no visible character"),
    ]  # fmt: skip
    assert len(written(out)) == 298
    assert [one["row"] for one in written(tmp_path / "answers.refused.jsonl")] == [3, 299]


def test_a_run_that_the_service_left_goes_on_and_pays_nothing_twice(
    client: Firstline, service: Limited, tmp_path: Path
) -> None:
    out, rows = tmp_path / "answers.jsonl", many(600, at_7=" ")
    service.left = 1
    with pytest.raises(ServiceError):
        ask(client, rows, out)
    assert len(written(out)) == 256, "what was paid is written"
    service.left = 10
    assert len(ask(client, rows, out)) == 1
    assert [one["row"] for one in written(out)] == [at for at in range(600) if at != 7]
    assert service.texts == [row.text for row in rows if row.number != 7]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("cut", [1, 40, 4000])
def test_what_a_kill_cut_off_is_asked_for_again(
    client: Firstline, service: Limited, tmp_path: Path, cut: int
) -> None:
    out, rows = tmp_path / "answers.jsonl", many(600)
    service.left = 2
    with pytest.raises(ServiceError):
        ask(client, rows, out)
    out.write_bytes(out.read_bytes()[:-cut])
    service.left = 10
    ask(client, rows, out)
    assert [(one["row"], one["label"]) for one in written(out)] == [
        (row.number, row.text) for row in rows
    ]


def test_a_batch_that_was_paid_and_not_written_is_not_paid_twice(
    client: Firstline, service: Limited, tmp_path: Path
) -> None:
    """Killed between the answer and the disk: the same Idempotency-Key asks for it again."""
    out, rows = tmp_path / "answers.jsonl", many(300)
    lost = AnswerFile(out, OVER)
    lost.begin()
    key = f"{lost.run}/0"
    paid = client.classify([row.text for row in rows[:256]], explain=False, idempotency_key=key)
    ask(client, rows, out)
    assert len(service.texts) == 300
    assert [one["id"] for one in written(out)[:256]] == [one["id"] for one in paid]


def test_the_same_again_after_it_was_finished_starts_anew(
    client: Firstline, service: Limited, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    ask(client, many(3), out)
    first = written(out)
    ask(client, many(2, at_0=" "), out)
    assert [one["row"] for one in written(out)] == [1]
    assert written(out)[0]["id"] not in {one["id"] for one in first}
    ask(client, many(2), out)
    assert not (tmp_path / "answers.refused.jsonl").exists()


def test_another_file_or_option_does_not_go_on_with_it(
    client: Firstline, service: Limited, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    service.left = 1
    with pytest.raises(ServiceError):
        ask(client, many(600), out)
    kept = out.read_bytes()
    with pytest.raises(DataError, match=r"not finished, and that differs in: file_sha256\. "):
        ask(client, many(600), out, file_sha256="1" * 64)
    next(tmp_path.glob(".*")).write_text("{")
    with pytest.raises(DataError, match="file_sha256, explain"):
        ask(client, many(600), out)
    assert out.read_bytes() == kept


def test_nothing_of_an_earlier_run_is_lost_for_a_service_that_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("of yesterday\n")
    with (
        Firstline("http://127.0.0.1:1", retries=QUICK) as client,
        pytest.raises(UnreachableError),
    ):
        ask(client, many(3), out)
    assert out.read_text() == "of yesterday\n"


def test_where_nothing_can_be_written_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder\. Name a file, such as .*/answers\.jsonl"):
        AnswerFile(tmp_path, OVER)
    with pytest.raises(DataError, match="is no file"):
        AnswerFile(Path("/dev/null"), OVER)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written: .*Name a file in a folder"):
        AnswerFile(tmp_path / "file" / "answers.jsonl", OVER)
    AnswerFile(tmp_path / "new" / "answers.jsonl", OVER)
    assert list((tmp_path / "new").iterdir()) == []


def test_without_a_file_the_answers_are_only_given_back(client: Firstline) -> None:
    into = AnswerFile(None, OVER)
    assert len(answer_rows(client, many(300, at_1=" "), into)) == 1
    assert len(into.answers) == 299

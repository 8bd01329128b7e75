"""The client against real sockets: order, retries, deadlines, and errors in the service's words."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cluster.errors import ConfigError, DataError, ServiceError
from cluster.jobs import submit
from cluster.settings import load_settings
from serve_app.access.admission import Admission
from serve_app.access.keys import Keys, Scope, new_key
from serve_app.client.client import AsyncFirstline, Firstline
from serve_app.client.exchange import (
    RateLimitedError,
    ResponseError,
    Retries,
    TimedOutError,
    Timeouts,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from serve_app.http.open_inference import add_v2
from serve_app.http.routes import create_api
from serve_app.request_limits import MAX_TEXTS
from tests.support.http_server import serving
from tests.support.http_service import StubService

pytestmark = pytest.mark.anyio

SECRET = "fl_0123456789ab_secret"
QUICK = Retries(base_s=0.001)

Step = Callable[["Script", Any], Any]


class Script:
    """An ASGI application that does the next thing it is told, and then answers; it keeps what it
    was sent."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.headers: list[dict[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.out = self.most_out = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        self.asked.append((scope["method"], scope["raw_path"].decode()))
        self.bodies.append(json.loads(body) if body else None)
        step = self.steps.pop(0) if self.steps else answered()
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            await step(self, send)
        finally:
            self.out -= 1


def says(status: int, body: Any, retry_after: str | None = None, *, pause_s: float = 0.0) -> Step:
    async def step(script: Script, send: Any) -> None:
        await asyncio.sleep(pause_s)
        extra = [] if retry_after is None else [(b"retry-after", retry_after.encode())]
        headers = [(b"content-type", b"application/json"), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        await send({"type": "http.response.body", "body": content})

    return step


def answered(pause_s: float = 0.0) -> Step:
    """Each text comes back as its label."""

    async def step(script: Script, send: Any) -> None:
        texts = script.bodies[-1]["texts"]
        body = {"answers": [{"label": text} for text in texts]}
        await says(200, body, pause_s=pause_s)(script, send)

    return step


async def cut(script: Script, send: Any) -> None:
    """The connection breaks in the middle of an answer."""
    headers = [(b"content-length", b"100")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"answers": ['})


async def trickle(script: Script, send: Any) -> None:
    """A byte now and then, each well within the read timeout."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(100):
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b" ", "more_body": True})


def refusal(message: str, code: str = "", details: Sequence[Any] = ()) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": list(details)}}


BUSY = refusal("Busy.", "overloaded")


# ---- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 256, 257, 600])
def test_answers_come_in_order_from_as_many_requests_as_it_takes(count: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    script = Script()
    with serving(script) as url, Firstline(url) as client:
        assert [answer["label"] for answer in client.classify(texts)] == texts
    assert len(script.asked) == -(-count // MAX_TEXTS)


BAD = {400: " ", 500: "x" * 12_000, 501: 7}


def test_a_list_of_several_requests_is_checked_before_the_first_is_paid() -> None:
    """Text 400 of 600 was refused after 256 answers were paid, and was called `texts[144]`."""
    texts: list[Any] = [BAD.get(at, "a") for at in range(600)]
    script = Script()
    with (
        serving(script) as url,
        Firstline(url) as client,
        pytest.raises(DataError, match="3 of the 600 texts cannot be answered") as refused,
    ):
        client.classify(texts)
    assert script.asked == []
    assert str(refused.value).splitlines()[1:] == [
        "  texts[400]: no visible character",
        "  texts[500]: 12,000 characters, of which 10,000 are the limit",
        "  texts[501]: a int, not a string",
    ]


async def test_the_async_client_checks_its_list_too() -> None:
    script = Script()
    with serving(script) as url:
        async with AsyncFirstline(url) as client:
            with pytest.raises(DataError, match=r"texts\[300\]"):
                await client.classify(["a"] * 300 + [" "])
    assert script.asked == []


@pytest.mark.parametrize("count", [1, 300])
def test_bytes_are_no_text(count: int) -> None:
    with Firstline("http://127.0.0.1:1") as client, pytest.raises(DataError, match="bytes"):
        client.classify(["a"] * (count - 1) + [b"a"])  # type: ignore[list-item]


def test_a_refusal_names_the_text_by_its_place_in_the_callers_list() -> None:
    bad = {"where": "texts[44]", "problem": "no visible character"}
    script = Script(answered(), says(422, refusal("Bad.", "empty_text", [bad])))
    with serving(script) as url, Firstline(url) as client:
        answers = client.classify_many(str(at) for at in range(600))
        assert [next(answers)["label"] for _ in range(256)] == [str(at) for at in range(256)]
        with pytest.raises(ResponseError, match=r"texts\[300\]: no visible") as refused:
            next(answers)
    assert refused.value.texts == {300: "no visible character"}


def test_the_same_list_with_the_same_key_asks_by_the_same_keys() -> None:
    """Each request of it by one of its own; another list by others."""
    script = Script()
    with serving(script) as url, Firstline(url) as client:
        for texts in (["a"] * 600, ["a"] * 600, ["b"] * 600):
            client.classify(texts, idempotency_key="run-1")
    keys = [sent["idempotency-key"] for sent in script.headers]
    assert keys[:3] == keys[3:6]
    assert len(set(keys)) == 6
    assert "idempotency_key" not in script.bodies[0]


def test_an_endless_iterable_is_read_a_request_at_a_time() -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield str(read)

    with serving(Script()) as url, Firstline(url) as client:
        answers = client.classify_many(endless())
        assert [next(answers)["label"] for _ in range(300)] == [str(i) for i in range(1, 301)]
    assert read == 2 * MAX_TEXTS


async def test_several_requests_are_out_at_once_and_the_order_stays() -> None:
    """The first of them is the slowest."""
    texts = [str(i) for i in range(6 * MAX_TEXTS)]
    script = Script(answered(0.3), *[answered(0.02)] * 5)
    with serving(script) as url:
        async with AsyncFirstline(url) as client:
            answers = await client.classify(texts, concurrency=3)
    assert [answer["label"] for answer in answers] == texts
    assert script.most_out == 3


async def test_one_failure_ends_the_other_requests() -> None:
    async def refuses_the_first(script: Script, send: Any) -> None:
        is_first = script.bodies[-1]["texts"][0] == "0"
        await (says(422, refusal("Bad.")) if is_first else answered(5.0))(script, send)

    with serving(Script(*[refuses_the_first] * 9)) as url:
        async with AsyncFirstline(url) as client:
            start = time.monotonic()
            with pytest.raises(ResponseError, match="Bad"):
                await client.classify([str(i) for i in range(1000)], concurrency=4)
            assert time.monotonic() - start < 2


async def test_who_stops_reading_leaves_no_request_behind() -> None:
    async def answers_the_first(script: Script, send: Any) -> None:
        await answered(0.0 if script.bodies[-1]["texts"][0] == "0" else 5.0)(script, send)

    with serving(Script(*[answers_the_first] * 9)) as url:
        async with AsyncFirstline(url) as client:
            before = asyncio.all_tasks()
            many = client.classify_many((str(i) for i in range(10_000)), concurrency=2)
            async with aclosing(many) as answers:  # type: ignore[type-var]
                first = await anext(aiter(answers))
            assert first["label"] == "0"
            assert asyncio.all_tasks() == before


def test_a_single_string_is_not_taken_for_a_list_of_letters() -> None:
    with Firstline("http://127.0.0.1:1") as client, pytest.raises(DataError, match=r"\[text\]"):
        client.classify("hello")


def test_half_a_character_is_refused_before_it_is_sent() -> None:
    with Firstline("http://127.0.0.1:1") as client, pytest.raises(DataError, match="surrogate"):
        client.classify(["\ud800"])


# ---- what is sent -------------------------------------------------------------------------------


def test_options_and_feedback_are_sent_and_only_what_is_asked() -> None:
    script = Script(answered(), answered(), says(200, {"accepted": True}))
    with serving(script) as url, Firstline(url) as client:
        client.classify(["a"], explain=True, user_id="u-1", deadline_ms=5000)
        client.classify(["é"])
        client.feedback("id-1", "positive")
        assert len(list(client.timed(["a", "b"]))) == 2
    assert script.bodies[:3] == [
        {"texts": ["a"], "explain": True, "user_id": "u-1"},
        {"texts": ["é"]},
        {"id": "id-1", "label": "positive"},
    ]
    assert 4000 < int(script.headers[0]["x-deadline-ms"]) <= 5000
    assert "x-deadline-ms" not in script.headers[1]


def test_an_explanation_is_that_of_a_preview() -> None:
    """Else `firstline explain` would pay the cloud."""
    script = Script(says(200, {"answers": [{"explanation": {"route": "edge"}}]}))
    with serving(script) as url, Firstline(url) as client:
        assert client.explain("a") == {"route": "edge"}
    assert script.bodies == [{"texts": ["a"], "explain": True, "route_only": True}]


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(says(200, {}), says(200, {}), says(401, refusal("No such key.")))
    with serving(script) as url:
        with Firstline(url, api_key=SECRET) as client:
            client.stats()
            shown = [repr(client), repr(client._http.headers)]
        monkeypatch.setenv("FIRSTLINE_API_KEY", SECRET)
        with Firstline(url) as client:
            client.stats()
            with pytest.raises(UnauthorizedError, match="No such key") as refused:
                client.stats()
    assert [sent["authorization"] for sent in script.headers] == [f"Bearer {SECRET}"] * 3
    assert SECRET not in "".join([*shown, str(refused.value), repr(refused.value)])


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://me:secret@host", "http://h:99999"]
)
def test_a_url_that_cannot_be_used_is_told_at_once_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="URL") as refused:
        Firstline(url)
    assert "secret" not in str(refused.value)


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(ConfigError, match="API key"):
        Firstline("http://host", api_key="fl_1\r\nX-Evil: 1")


# ---- trying again -------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [says(503, BUSY), says(429, BUSY), says(502, b"<html>"), cut])
def test_what_passes_is_tried_again_under_the_same_key(failure: Step) -> None:
    """So that a service which had answered before the connection broke does not answer twice."""
    script = Script(failure, failure)
    with serving(script) as url, Firstline(url, retries=QUICK) as client:
        assert client.classify(["a"])[0]["label"] == "a"
        client.classify(["a"])
    keys = [sent["idempotency-key"] for sent in script.headers]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] != keys[3]


@pytest.mark.parametrize("failure", [says(503, BUSY), cut])
async def test_the_async_client_tries_again_too(failure: Step) -> None:
    script = Script(failure)
    with serving(script) as url:
        async with AsyncFirstline(url, retries=QUICK) as client:
            assert [answer["label"] for answer in await client.classify(["a"])] == ["a"]
    assert len(script.asked) == 2


def test_it_comes_back_when_it_was_told_to() -> None:
    script = Script(says(503, BUSY, retry_after="1"))
    with serving(script) as url, Firstline(url, retries=QUICK) as client:
        start = time.monotonic()
        client.classify(["a"])
    assert 1.0 <= time.monotonic() - start < 2.0


def test_a_date_says_when_to_come_back_too() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    script = Script(says(429, BUSY, retry_after=then))
    with (
        serving(script) as url,
        Firstline(url) as client,
        pytest.raises(RateLimitedError) as refused,
    ):
        client.stats()
    assert refused.value.retry_after_s == pytest.approx(300, abs=5)
    assert len(script.asked) == 1  # it comes after the total of 60 s, so it is not waited for


@pytest.mark.parametrize("said", ["soon", "-1", "", "Wed, 99 Foo", "9" * 400])
def test_nonsense_in_retry_after_breaks_nothing(said: str) -> None:
    script = Script(says(503, BUSY, retry_after=said))
    with serving(script) as url, Firstline(url, retries=Retries(attempts=1)) as client:
        with pytest.raises(UnavailableError):
            client.stats()
        assert client.classify(["a"])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_what_would_fail_again_is_not_tried_again(status: int) -> None:
    script = Script(says(status, refusal("No.", "some_code")))
    with (
        serving(script) as url,
        Firstline(url, retries=QUICK) as client,
        pytest.raises(ResponseError, match=f"answered {status}: No.") as refused,
    ):
        client.classify(["a"])
    assert len(script.asked) == 1
    assert (refused.value.status, refused.value.code) == (status, "some_code")


def test_an_answer_still_in_work_is_waited_for() -> None:
    """The first attempt was cut, the service went on, and the second came while it did."""
    script = Script(cut, says(409, refusal("In work."), retry_after="0"))
    with serving(script) as url, Firstline(url, retries=QUICK) as client:
        assert client.classify(["a"])[0]["label"] == "a"


def test_it_gives_up_after_so_many_attempts_with_the_last_words() -> None:
    script = Script(*[says(503, BUSY)] * 9)
    with (
        serving(script) as url,
        Firstline(url, retries=Retries(attempts=3, base_s=0.001)) as client,
        pytest.raises(UnavailableError, match="answered 503: Busy"),
    ):
        client.classify(["a"])
    assert len(script.asked) == 3


def test_a_job_may_have_been_taken_when_the_connection_broke() -> None:
    """So it is not sent again: there would be two."""
    script = Script(cut)
    with (
        serving(script) as url,
        Firstline(url, retries=QUICK) as client,
        pytest.raises(UnreachableError),
    ):
        client.submit_job(["a"])
    assert len(script.asked) == 1


def test_a_refused_job_was_not_taken_and_is_sent_again() -> None:
    script = Script(says(503, BUSY), says(202, {"id": "j-1"}))
    with serving(script) as url, Firstline(url, retries=QUICK) as client:
        assert client.submit_job(["a"])["id"] == "j-1"


@given(failed=st.integers(1, 60), draw=st.floats(0, 1, exclude_max=True))
def test_pauses_are_random_capped_and_never_before_the_time_told(failed: int, draw: float) -> None:
    retries = Retries(base_s=0.1, cap_s=5.0)
    assert 0 <= retries.pause_s(failed, None, draw) <= min(5.0, 0.1 * 2 ** (failed - 1))
    assert 7.0 <= retries.pause_s(failed, 7.0, draw) <= 12.0


# ---- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [answered(3.0), trickle])
def test_the_total_ends_a_request_that_does_not_end(slow: Step) -> None:
    with serving(Script(slow)) as url:
        timeouts = Timeouts(read_s=0.5, total_s=0.5)
        with Firstline(url, timeouts=timeouts) as client:
            start = time.monotonic()
            with pytest.raises(TimedOutError, match="in time"):
                client.classify(["a"])
            assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("slow", [answered(3.0), trickle])
async def test_the_total_ends_it_for_the_async_client_too(slow: Step) -> None:
    with serving(Script(slow)) as url:
        async with AsyncFirstline(url, timeouts=Timeouts(total_s=0.5)) as client:
            start = time.monotonic()
            with pytest.raises(TimedOutError):
                await client.classify(["a"])
            assert time.monotonic() - start < 1.0


def test_a_slow_answer_is_not_asked_for_again() -> None:
    """The service is still at it; asking again would double its work."""
    script = Script(answered(1.0))
    with serving(script) as url:
        with (
            Firstline(url, retries=QUICK, timeouts=Timeouts(read_s=0.2)) as client,
            pytest.raises(TimedOutError),
        ):
            client.classify(["a"])
        assert len(script.asked) == 1


def test_each_attempt_tells_what_is_left_of_the_deadline() -> None:
    script = Script(says(503, BUSY, retry_after="1"))
    with serving(script) as url, Firstline(url, retries=QUICK) as client:
        client.classify(["a"], deadline_ms=5000)
    first, second = (int(sent["x-deadline-ms"]) for sent in script.headers)
    assert second <= first - 1000


def test_no_attempt_is_made_beyond_the_deadline() -> None:
    script = Script(says(503, BUSY, retry_after="1"))
    with serving(script) as url, Firstline(url) as client:
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            client.classify(["a"], deadline_ms=500)
        assert time.monotonic() - start < 0.5
    assert len(script.asked) == 1


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (422, refusal("Bad request.", details=[{"where": "texts", "problem": "too many"}]),
         r"answered 422: Bad request\.\n  texts: too many"),
        (504, b"<html>" + b"x" * 999, r"answered 504: <html>x{194}$"),
        (500, ["odd"], "answered 500"),
        (500, {"error": "a string"}, "answered 500"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_the_services_words(status: int, body: Any, said: str) -> None:
    with (
        serving(Script(says(status, body))) as url,
        Firstline(url) as client,
        pytest.raises(ServiceError, match=said),
    ):
        client.stats()


@pytest.mark.parametrize("body", [b"<html>", [], {"other": 1}, {"answers": [{}, {}]}])
def test_another_service_at_the_address_is_noticed(body: Any) -> None:
    with (
        serving(Script(says(200, body))) as url,
        Firstline(url) as client,
        pytest.raises(ServiceError, match=r"/v1/classify|answers came"),
    ):
        client.classify(["a"])


def test_no_service_is_an_error_that_says_what_to_do() -> None:
    with (
        Firstline("http://127.0.0.1:1", retries=QUICK) as client,
        pytest.raises(UnreachableError, match=r"http://127.0.0.1:1 .*firstline serve"),
    ):
        client.classify(["a"])


def test_ready_is_no_where_nobody_answers_and_is_asked_once() -> None:
    with Firstline("http://127.0.0.1:1") as client:
        start = time.monotonic()
        assert not client.ready()
        assert time.monotonic() - start < 0.5


# ---- jobs ---------------------------------------------------------------------------------------


def test_a_job_from_start_to_end() -> None:
    rows = b'{"row": 0, "label": "a"}\n{"row": 1, "label": "b"}\n'
    script = Script(
        says(202, {"id": "j/1"}), says(200, {"state": "running"}), says(200, rows), says(204, b"")
    )
    with serving(script) as url, Firstline(url) as client:
        assert client.submit_job(file="in.csv")["id"] == "j/1"
        assert client.job("j/1") == {"state": "running"}
        assert [row["label"] for row in client.job_results("j/1")] == ["a", "b"]
        client.cancel_job("j/1")
    assert script.asked == [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs/j%2F1"),
        ("GET", "/v1/jobs/j%2F1/results"),
        ("DELETE", "/v1/jobs/j%2F1"),
    ]
    assert script.bodies[0] == {"file": "in.csv"}


async def test_rows_of_a_job_come_as_they_are_sent() -> None:
    async def slowly(script: Script, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"row": 0}\n{"row"', "more_body": True})
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b": 1}\n"})

    with serving(Script(slowly)) as url:
        async with AsyncFirstline(url) as client:
            start = time.monotonic()
            rows: AsyncIterator[Any] = client.job_results("j-1")
            assert await anext(rows) == {"row": 0}
            assert time.monotonic() - start < 0.4
            assert [row async for row in rows] == [{"row": 1}]


def test_results_that_break_off_are_an_error_not_an_end() -> None:
    with (
        serving(Script(cut)) as url,
        Firstline(url) as client,
        pytest.raises(ServiceError),
    ):
        list(client.job_results("j-1"))


def test_a_job_has_texts_or_a_file() -> None:
    with Firstline("http://127.0.0.1:1") as client, pytest.raises(DataError, match="not both"):
        client.submit_job(["a"], file="in.csv")


# ---- with the service itself --------------------------------------------------------------------


def test_every_method_fits_the_real_routes() -> None:
    service = StubService()
    with serving(create_api(service)) as url, Firstline(url) as client:
        answers = client.classify(["a"] * 300, explain=True)
        assert len({answer["id"] for answer in answers}) == 300
        assert answers[0]["label"] == "yes"
        assert client.explain("a")["route"] == "edge"
        client.feedback(answers[0]["id"], "no")
        assert service.fed == [(answers[0]["id"], "no")]
        assert client.stats() == {"messages": 0}
        assert client.report() == {"alerts": []}
        assert client.release()["id"] == "r-1"
        assert client.ready()
        service.gaps = ["release r-1: a tier does not answer"]
        assert not client.ready()
        with pytest.raises(ResponseError, match="no visible character") as refused:
            client.classify(["a", " "])
        assert refused.value.code == "empty_text"


async def test_every_method_of_the_async_client_does_too() -> None:
    service = StubService()
    with serving(create_api(service)) as url:
        async with AsyncFirstline(url) as client:
            answers = await client.classify(["a"] * 300, route_only=True)
            assert [answer["label"] for answer in answers] == [None] * 300
            assert (await client.explain("a"))["route"] == "edge"
            await client.feedback(answers[0]["id"], "no")
            assert await client.stats() == {"messages": 0}
            assert await client.report() == {"alerts": []}
            assert (await client.release())["id"] == "r-1"
            assert await client.ready()


def test_a_key_lets_the_client_in_and_a_lost_answer_is_not_made_twice() -> None:
    """The whole way: the answer was made and audited, and the connection broke before it came."""
    token, entry = new_key("ours", [Scope.CLASSIFY], now=datetime.now(UTC))
    listed = SecretStr(json.dumps([entry.model_dump(mode="json")]))
    service = StubService()
    admission = Admission(Keys(Path("/nowhere/keys.json"), listed))
    app = LosesTheFirstAnswer(create_api(service, admission=admission))
    with serving(app) as url:
        with Firstline(url, api_key=token, retries=QUICK) as client:
            answers = client.classify(["a", "b"])
        with Firstline(url, api_key=token[:-1] + "x") as client, pytest.raises(UnauthorizedError):
            client.classify(["a"])
    assert app.sent == 2
    assert len(answers) == 2
    assert [caller.key for caller in service.callers] == [entry.id]


class LosesTheFirstAnswer:
    """Lets the application answer, and breaks the first connection in the middle of the body."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.sent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def losing(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self.sent += 1
            elif self.sent == 1:
                message = {**message, "body": message["body"][:10]}
            await send(message)

        await self._app(scope, receive, losing)


def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[4] / "docs" / "client.md"
    examples = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    service, admission = StubService(), Admission()
    app = create_api(service, admission=admission)
    add_v2(app, service, admission)
    with serving(app) as url:
        for example in examples:
            exec(example.replace("127.0.0.1:8000", url.removeprefix("http://")), {})
            assert "yes" in capsys.readouterr().out
    assert len(examples) == 4
    assert service.fed


def test_both_clients_have_the_same_methods() -> None:
    def public(client: type) -> set[str]:
        return {name for name in vars(client) if not name.startswith("_")}

    assert public(Firstline) - public(AsyncFirstline) == {"timed"}
    assert public(AsyncFirstline) <= public(Firstline)


def test_another_transport_can_be_given() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": request.url.path})

    with Firstline("http://host/prefix", transport=httpx.MockTransport(handler)) as client:
        assert client.release() == {"id": "/prefix/v1/release"}


def test_a_job_for_no_cluster_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(ServiceError, match=r"not taken by http://127.0.0.1:1.*ray start --head"):
        submit(["train"], load_settings())

"""A client of a Firstline service, sync and async: texts -> answers.

    with Firstline("http://127.0.0.1:8000", api_key="...") as client:
        for answer in client.classify(["Where is my card?"]):
            print(answer["label"], answer["confidence"])

Failed connections and 429, 502, 503 are tried again, as long as the request's total time lasts:
after the `Retry-After` that the service gave, and a random part (full jitter) on top. A list of
texts carries an `Idempotency-Key`, so that a repeated one is not answered twice. The errors are
those of `serve_app.client`.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Self, Unpack

import httpx

from serve_app.client.calls import (
    READY,
    Answer,
    ApiCall,
    Options,
    T,
    batches,
    cancel_call,
    classify_call,
    explain_call,
    feedback_call,
    get_call,
    job_path,
    listed,
    parsed,
    results_call,
    row_of,
    submit_call,
)
from serve_app.client.exchange import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUTS,
    Attempt,
    Call,
    Client,
    Pause,
    Reply,
    Retries,
    Send,
    Timeouts,
    UnavailableError,
    UnreachableError,
    in_time,
    request_of,
)

# ---- sync ---------------------------------------------------------------------------------------


class Firstline(Client):
    """Talks to one Firstline service; safe to share between threads.

    Args:
        api_key: empty or None: FIRSTLINE_API_KEY, or none at all.
        transport: another than TCP; for tests, and for TLS with certificates of one's own.

    Raises:
        ServiceError: it cannot be reached, or refused the request; see serve_app.client.exchange.
        DataError: what was given cannot be sent.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeouts, retries)
        self._http = httpx.Client(**self._options, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def classify(self, texts: Sequence[str], **options: Unpack[Options]) -> list[Answer]:
        """One answer per text, in order, from as many requests as it takes; none is sent if a list
        of several has a text that would be refused."""
        return list(self.classify_many(listed(texts), **options))

    def classify_many(self, texts: Iterable[str], **options: Unpack[Options]) -> Iterator[Answer]:
        """The same for any iterable, read and answered 256 texts at a time."""
        for first, batch in batches(texts):
            yield from self._do(classify_call(batch, first, **options))

    def explain(self, text: str) -> Mapping[str, Any]:
        """Why this text would go where, by a preview: the cloud is not paid."""
        return self._do(explain_call(text))

    def feedback(self, answer_id: str, label: str) -> None:
        """Tells the right label of an answer."""
        self._do(feedback_call(answer_id, label))

    def timed(self, texts: Sequence[str]) -> Iterator[float]:
        """End-to-end milliseconds of one text per request, one after another."""
        for text in texts:
            start = time.perf_counter()
            self.classify([text])
            yield (time.perf_counter() - start) * 1e3

    def stats(self) -> Mapping[str, Any]:
        """The monitor's figures."""
        return self._do(get_call("/v1/stats"))

    def report(self) -> Mapping[str, Any]:
        """Figures, alerts, trends, health."""
        return self._do(get_call("/v1/report"))

    def release(self) -> Mapping[str, Any]:
        """What answers, and its certificate."""
        return self._do(get_call("/v1/release"))

    def ready(self) -> bool:
        """Whether the service can answer now; asked once."""
        try:
            self._do(READY)
        except (UnreachableError, UnavailableError):
            return False
        return True

    def submit_job(
        self, texts: Iterable[str] | None = None, *, file: str | None = None
    ) -> Mapping[str, Any]:
        """Starts a job on texts, or on a file under the service's storage; its `id` and state."""
        return self._do(submit_call(texts, file))

    def job(self, job_id: str) -> Mapping[str, Any]:
        """How far a job is."""
        return self._do(get_call(job_path(job_id)))

    def job_results(self, job_id: str) -> Iterator[Mapping[str, Any]]:
        """A job's rows, one by one as they come."""
        call = results_call(job_id)
        with closing(self._run(call).response) as response:
            try:
                for line in response.iter_lines():
                    yield row_of(line, call.path)
            except httpx.RequestError as error:
                raise self.error(call, error) from None

    def cancel_job(self, job_id: str) -> None:
        """Stops a job, and forgets its results."""
        self._do(cancel_call(job_id))

    def _do(self, plan: ApiCall[T]) -> T:
        return parsed(plan, self._run(plan.call))

    def _run(self, call: Call) -> Reply:
        exchange = self.exchange(call)
        order = next(exchange)
        try:
            while True:
                order = exchange.send(self._follow(order))
        except StopIteration as done:
            reply: Reply = done.value
            return reply

    def _follow(self, order: Send | Pause) -> Attempt:
        if isinstance(order, Pause):
            time.sleep(order.seconds)
            return None
        try:
            return self._send(order)
        except httpx.RequestError as error:
            return error

    def _send(self, order: Send) -> Reply:
        end_s = time.monotonic() + order.left_s
        response = self._http.send(request_of(self._http, order), stream=True)
        if order.call.stream and not response.is_error:
            return Reply(response)
        with closing(response):
            return Reply(response, b"".join(in_time(response, end_s)))


# ---- async --------------------------------------------------------------------------------------


class AsyncFirstline(Client):
    """`Firstline` for asyncio: the same names, arguments and errors; several requests at once."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeouts, retries)
        self._http = httpx.AsyncClient(**self._options, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def classify(
        self, texts: Sequence[str], *, concurrency: int = 4, **options: Unpack[Options]
    ) -> list[Answer]:
        """One answer per text, in order, from as many requests as it takes."""
        many = self.classify_many(listed(texts), concurrency=concurrency, **options)
        return [answer async for answer in many]

    async def classify_many(
        self, texts: Iterable[str], *, concurrency: int = 4, **options: Unpack[Options]
    ) -> AsyncIterator[Answer]:
        """The same for any iterable; at most so many requests are out or wait to be read."""
        asked: deque[asyncio.Task[list[Answer]]] = deque()
        try:
            for first, batch in batches(texts):
                call = classify_call(batch, first, **options)
                asked.append(asyncio.create_task(self._do(call)))
                if len(asked) >= concurrency:
                    for answer in await asked.popleft():
                        yield answer
            while asked:
                for answer in await asked.popleft():
                    yield answer
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def explain(self, text: str) -> Mapping[str, Any]:
        """Why this text would go where, by a preview: the cloud is not paid."""
        return await self._do(explain_call(text))

    async def feedback(self, answer_id: str, label: str) -> None:
        """Tells the right label of an answer."""
        await self._do(feedback_call(answer_id, label))

    async def stats(self) -> Mapping[str, Any]:
        """The monitor's figures."""
        return await self._do(get_call("/v1/stats"))

    async def report(self) -> Mapping[str, Any]:
        """Figures, alerts, trends, health."""
        return await self._do(get_call("/v1/report"))

    async def release(self) -> Mapping[str, Any]:
        """What answers, and its certificate."""
        return await self._do(get_call("/v1/release"))

    async def ready(self) -> bool:
        """Whether the service can answer now; asked once."""
        try:
            await self._do(READY)
        except (UnreachableError, UnavailableError):
            return False
        return True

    async def submit_job(
        self, texts: Iterable[str] | None = None, *, file: str | None = None
    ) -> Mapping[str, Any]:
        """Starts a job on texts, or on a file under the service's storage; its `id` and state."""
        return await self._do(submit_call(texts, file))

    async def job(self, job_id: str) -> Mapping[str, Any]:
        """How far a job is."""
        return await self._do(get_call(job_path(job_id)))

    async def job_results(self, job_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """A job's rows, one by one as they come."""
        call = results_call(job_id)
        response = (await self._run(call)).response
        try:
            async for line in response.aiter_lines():
                yield row_of(line, call.path)
        except httpx.RequestError as error:
            raise self.error(call, error) from None
        finally:
            await response.aclose()

    async def cancel_job(self, job_id: str) -> None:
        """Stops a job, and forgets its results."""
        await self._do(cancel_call(job_id))

    async def _do(self, plan: ApiCall[T]) -> T:
        return parsed(plan, await self._run(plan.call))

    async def _run(self, call: Call) -> Reply:
        exchange = self.exchange(call)
        order = next(exchange)
        try:
            while True:
                order = exchange.send(await self._follow(order))
        except StopIteration as done:
            reply: Reply = done.value
            return reply

    async def _follow(self, order: Send | Pause) -> Attempt:
        if isinstance(order, Pause):
            await asyncio.sleep(order.seconds)
            return None
        try:
            async with asyncio.timeout(order.left_s):
                return await self._send(order)
        except TimeoutError:
            return httpx.ReadTimeout("The request took longer than it may.")
        except httpx.RequestError as error:
            return error

    async def _send(self, order: Send) -> Reply:
        response = await self._http.send(request_of(self._http, order), stream=True)
        if order.call.stream and not response.is_error:
            return Reply(response)
        try:
            return Reply(response, await response.aread())
        finally:
            await response.aclose()

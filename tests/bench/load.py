"""Load on a service, from a process of its own: wrk for throughput, a client of ours for the rest.

    python -m tests.bench.load URL --file texts.json --connections 32 --seconds 10
    python -m tests.bench.load URL --file texts.json --rate 2000 --records seen.jsonl

wrk takes a few percent of a core, so it is no bottleneck beside a server that shares two cores with
it; but it says only how many answers were good, and how late. Ours (`--records`, `--rate`) keeps
every exchange: when, what, how long, the answer's bytes. It takes about 80 microseconds of CPU for
one, uses a connection again as long as it is open, and never asks twice, so what it saw is what
happened.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 30.0
_FOR_EVER_S: Final = 86_400.0
_HEAD_ENDS: Final = b"\r\n\r\n"
# One thread: it drives more requests than two cores can answer.
_SCRIPT: Final = """
local bodies = {}
for line in io.lines(os.getenv("FIRSTLINE_BODIES")) do bodies[#bodies + 1] = line end
local made, turn = {}, 0
function init(args)
  local headers = {["content-type"] = "application/json"}
  for i, body in ipairs(bodies) do made[i] = wrk.format("POST", nil, headers, body) end
end
function request()
  turn = turn % #made + 1
  return made[turn]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "p50_ms": %f, "p95_ms": %f, ' ..
    '"p99_ms": %f, "failed": %d}', summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of it; `failed` are those without a good answer, in time, over the connection."""

    requests: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failed: int

    @property
    def per_s(self) -> float:
        return (self.requests - self.failed) / self.seconds


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what came of it.

    `body` is the number of the request body, `sent_s` the time of day, `late_s` how much later that
    was than an open loop meant it to be, `seconds` from then until the answer. `status` is 0 and
    `error` refused, cut or timeout where there is no answer.
    """

    body: int
    sent_s: float
    late_s: float
    seconds: float
    status: int
    error: str
    answer: str
    retry_after_s: float | None


def bodies_of(texts: Sequence[str], per_request: int = 1) -> list[bytes]:
    """Texts -> request bodies of so many texts each; the last takes up from the start."""
    lists = range(0, len(texts), per_request)
    cut = [[*texts[first : first + per_request], *texts][:per_request] for first in lists]
    return [json.dumps({"texts": some}).encode() for some in cut]


# -- wrk -----------------------------------------------------------------------------------------


def wrk(url: str, bodies: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """A closed loop over so many connections, the bodies in turn."""
    if shutil.which("wrk") is None:
        raise SystemExit(
            "The load comes from wrk, which is not on the PATH. On Debian: apt-get install wrk"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bodies").write_bytes(b"\n".join(bodies) + b"\n")
        (folder / "script.lua").write_text(_SCRIPT)
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration",
                   f"{max(1, round(seconds))}s", "--timeout", f"{TIMEOUT_S:g}s", "--script",
                   str(folder / "script.lua"), url]  # fmt: skip
        environment = {**os.environ, "FIRSTLINE_BODIES": str(folder / "bodies")}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return Load(**json.loads(done.stdout[done.stdout.rindex('{"requests"') :]))


# -- ours ----------------------------------------------------------------------------------------


class _CutError(Exception):
    """The connection ended before the answer did."""


class _Wire(asyncio.Protocol):
    """One connection: `await ask(request)` -> head, body. One request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._seen = bytearray()
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast(asyncio.Transport, transport), True

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_CutError())

    def data_received(self, data: bytes) -> None:
        self._seen += data
        end = self._seen.find(_HEAD_ENDS)
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._seen[:end]).lower()
        whole = end + len(_HEAD_ENDS) + int(_header(head, b"content-length") or 0)
        if len(self._seen) >= whole:
            if _header(head, b"connection") == b"close":
                self.close()
            self._answer.set_result((head, bytes(self._seen[end + len(_HEAD_ENDS) : whole])))

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Raises _CutError."""
        assert self._transport is not None
        self._seen.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()


def _header(head: bytes, name: bytes) -> bytes | None:
    """The value of a header in a head in lower case."""
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else None


class Client:
    """Sends request bodies to one URL over up to so many connections, and keeps each exchange."""

    def __init__(self, url: str, bodies: Sequence[bytes], timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s
        start = f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        self._requests = [
            f"{start}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]
        self._turn = 0
        self._free: list[_Wire] = []
        self.seen: list[Exchange] = []

    async def closed(self, connections: int, seconds: float, count: int | None = None) -> None:
        """Each connection asks again as soon as it was answered; `count` requests at most."""
        end = time.monotonic() + seconds

        async def keep_asking() -> None:
            while time.monotonic() < end and (count is None or self._turn < count):
                failed = (await self._exchange(time.time())).status == 0
                if failed:  # a closed door would be knocked at thousands of times a second
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(keep_asking() for _ in range(connections)))

    async def opened(self, rate: float, seconds: float) -> None:
        """So many requests a second, whatever becomes of those before; as many connections."""
        loop = asyncio.get_running_loop()
        start, first, tasks = loop.time(), time.time(), set[asyncio.Task[Exchange]]()
        for number in range(int(rate * seconds)):
            if (early := start + number / rate - loop.time()) > 0:
                await asyncio.sleep(early)
            task = loop.create_task(self._exchange(first + number / rate))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _exchange(self, due_s: float) -> Exchange:
        number = self._turn % len(self._requests)
        self._turn += 1
        sent_s, start = time.time(), time.perf_counter()
        head, answer, error = await self._ask(self._requests[number])
        seconds = time.perf_counter() - start
        wait = _header(head, b"retry-after")
        made = Exchange(
            body=number,
            sent_s=sent_s,
            late_s=sent_s - due_s,
            seconds=seconds,
            status=int(head.split(b" ", 2)[1]) if head else 0,
            error=error,
            answer=answer.decode(errors="replace"),
            retry_after_s=float(wait) if wait else None,
        )
        self.seen.append(made)
        return made

    async def _ask(self, request: bytes) -> tuple[bytes, bytes, str]:
        wire = None
        try:
            async with asyncio.timeout(self._timeout_s):
                wire = await self._wire()
                head, body = await wire.ask(request)
        except TimeoutError:
            error = "timeout"
        except _CutError:
            error = "cut"
        except OSError:
            error = "refused"
        else:
            if wire.open:
                self._free.append(wire)
            return head, body, ""
        if wire is not None:
            wire.close()
        return b"", b"", error

    async def _wire(self) -> _Wire:
        while self._free:
            if (wire := self._free.pop()).open:
                return wire
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(_Wire, self._host, self._port)
        return made

    def close(self) -> None:
        for wire in self._free:
            wire.close()


def summary(seen: Sequence[Exchange]) -> Load:
    """Latencies are of the good answers."""
    good = [one.seconds for one in seen if one.status == 200]
    took_s = max(one.sent_s + one.seconds for one in seen) - min(one.sent_s for one in seen)
    p50, p95, p99 = 1e3 * np.percentile(good, [50, 95, 99]) if good else (float("inf"),) * 3
    return Load(len(seen), took_s, float(p50), float(p95), float(p99), len(seen) - len(good))


def alone(url: str, bodies: Sequence[bytes], count: int) -> Load:
    """One request at a time over one connection; the first tenth warms up."""
    client = Client(url, bodies)

    async def send() -> None:
        await client.closed(1, seconds=600, count=count)
        client.close()

    uvloop.run(send())
    return summary(client.seen[count // 10 :])


def ask(url: str, bodies: Sequence[bytes]) -> list[Exchange]:
    """Each body once, in order."""
    client = Client(url, bodies)

    async def send() -> None:
        await client.closed(1, seconds=600, count=len(bodies))
        client.close()

    uvloop.run(send())
    return client.seen


# -- in another process --------------------------------------------------------------------------


@contextmanager
def clients(
    url: str,
    texts: Sequence[str],
    records: Path,
    *,
    connections: int = 20,
    per_request: int = 1,
    rate: float | None = None,
    seconds: float | None = None,
) -> Iterator[None]:
    """Clients in a process of their own, for as long as the block lasts or for so many seconds.

    Which is longer decides. What they saw is in `records` after the block (`read_records`).
    """
    file = records.with_suffix(".texts.json")
    file.write_text(json.dumps(list(texts)))
    options = {
        "--file": file,
        "--records": records,
        "--connections": connections,
        "--texts-per-request": per_request,
        "--seconds": seconds or _FOR_EVER_S,
        "--rate": rate,
    }
    given = [str(part) for option in options.items() if option[1] is not None for part in option]
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.load", url, *given], cwd=ROOT)
    try:
        yield
        if seconds is None:
            process.send_signal(signal.SIGINT)
        if process.wait((seconds or 0.0) + 3 * TIMEOUT_S):
            raise RuntimeError(f"The clients ended with code {process.returncode}.")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def read_records(file: Path) -> list[Exchange]:
    """What `--records` wrote."""
    return [Exchange(**json.loads(line)) for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url", help="the whole of it, http://127.0.0.1:8000/v1/classify")
    parser.add_argument("--file", type=Path, required=True, help="a JSON list of texts")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--texts-per-request", type=int, default=1)
    parser.add_argument("--rate", type=float, help="requests/s of an open loop; without: closed")
    parser.add_argument("--records", type=Path, help="each exchange as a line of JSON")
    arguments = parser.parse_args()
    bodies = bodies_of(json.loads(arguments.file.read_text()), arguments.texts_per_request)
    if not arguments.rate and not arguments.records:
        made = wrk(arguments.url, bodies, connections=arguments.connections,
                   seconds=arguments.seconds)  # fmt: skip
        print(json.dumps(_shown(made)))
        return
    client = Client(arguments.url, bodies)

    async def send() -> None:
        if arguments.rate:
            await client.opened(arguments.rate, arguments.seconds)
        else:
            await client.closed(arguments.connections, arguments.seconds)
        client.close()

    # Whoever is started behind a shell's back is born deaf to it, and it is how we are ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        uvloop.run(send())
    if arguments.records:
        arguments.records.write_text("".join(json.dumps(asdict(one)) + "\n" for one in client.seen))
    kinds = Counter(one.error or str(one.status) for one in client.seen)
    print(json.dumps({**_shown(summary(client.seen)), "kinds": kinds}))


def _shown(load: Load) -> dict[str, Any]:
    return {**asdict(load), "per_s": load.per_s}


if __name__ == "__main__":
    main()

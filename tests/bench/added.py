"""What audit, metrics, guard and cache add to a request: one process, tiers that answer at once.

    python -m tests.bench.added

Two Answerers over the same stub tiers take turns, message by message: one as it is served, and one
whose log, emitter and guard do nothing and that has no cache. The monitor behind the emitter is a
stub that pickles its batch, which is what the router's loop pays for the call.
"""

import asyncio
import pickle
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Final

from cluster.audit.keyed_hash import TextHasher
from cluster.audit.records import Record
from cluster.audit.write import AuditLog
from serve_app.cascade.answerer import Answerer, ServedRelease
from serve_app.cascade.audit_writer import AuditWriter
from serve_app.cascade.cache import Cache, CacheConfig, NoCache, ResponseCache
from serve_app.contracts import Message, Prediction, packed
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy
from serve_app.decide.scores import Weighted
from serve_app.monitor.emitter import MetricsEmitter, Send

_KEY: Final = b"k" * 32
_LABELS: Final = tuple(str(number) for number in range(77))
_WARM: Final = 50
_EXAMPLES: Final = (
    "How do I locate my card?",
    "I still have not received my new card, I ordered over a week ago. Is there anything I can do?",
    "My order 4711 from Tuesday was charged twice, please refund one of the payments.",
    "Please call me back at +49 30 901820 or write to jo@example.com about the invoice.",
)


class _Nothing:
    """A log and an emitter that keep nothing."""

    async def append(self, records: Sequence[Any]) -> None: ...

    def emit(self, records: Sequence[Any]) -> None: ...

    def bad_outputs(self, count: int) -> None: ...


class _Emitter(MetricsEmitter):
    """As the router's link to the monitor has it."""

    def bad_outputs(self, count: int) -> None: ...


def _resolve() -> Send:
    async def send(batch: list[Record]) -> None:
        pickle.dumps(batch)

    return send


def _release(cache: Cache) -> ServedRelease:
    rest = 0.1 / (len(_LABELS) - 1)
    shares = packed(0.9, *[rest] * (len(_LABELS) - 1))
    sure = Prediction("0", 0.9, 0.9 - rest, 0.1, shares)

    async def tier(texts: Sequence[str], timeout_s: float | None = None) -> list[Prediction]:
        return [sure] * len(texts)

    return ServedRelease(
        id="0" * 16,
        app="latest",
        policy=RouterPolicy(
            name="confidence", score=Weighted(weights={"confidence": 1.0}), threshold=0.5
        ),
        prices=Prices(),
        labels=_LABELS,
        edge=tier,
        cloud=tier,
        cache=cache,
    )


def _answerer(
    release: ServedRelease, audit: Any, emitter: Any, pool: ThreadPoolExecutor, **other: Any
) -> Answerer:
    return Answerer(
        release, audit=audit, emitter=emitter, new_id=lambda: uuid.uuid4().hex,
        clock=time.monotonic, now=time.time, pool=pool, **other,
    )  # fmt: skip


async def _timed(answerer: Answerer, text: str) -> float:
    start = time.perf_counter()
    await answerer.answer([text])
    return 1e3 * (time.perf_counter() - start)


async def _both(folder: Path, texts: Sequence[str], turns: int) -> tuple[list[float], list[float]]:
    emitter, journal = _Emitter(_resolve), AuditWriter(AuditLog(folder, "bench"))
    with ThreadPoolExecutor(2) as pool:
        full = _answerer(
            _release(ResponseCache(CacheConfig(), _KEY)),
            journal,
            emitter,
            pool,
            hash_text=TextHasher(_KEY),
        )
        bare = _answerer(
            _release(NoCache()),
            _Nothing(),
            _Nothing(),
            pool,
            hash_text=lambda text: "",
            prepare=Message,
        )
        times = []
        for turn in range(_WARM + turns):
            # Another text each time: a cache that answers would make the full one the quicker.
            text = f"{texts[turn % len(texts)]} {uuid.uuid4().hex[:8]}"
            times.append((await _timed(full, text), await _timed(bare, text)))
            await asyncio.sleep(0)
        await emitter.drain()
        await journal.close()
    with_all, without = zip(*times[_WARM:], strict=True)
    return list(with_all), list(without)


def added_ms(texts: Sequence[str] = _EXAMPLES, turns: int = 2000) -> float:
    """The p50 of a request with everything, less the p50 of one with nothing."""
    with tempfile.TemporaryDirectory() as name:
        with_all, without = asyncio.run(_both(Path(name), texts, turns))
    return median(with_all) - median(without)


if __name__ == "__main__":
    print(f"added, p50: {added_ms():.3f} ms")

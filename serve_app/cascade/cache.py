"""ResponseCache: an answer given again to the same prepared text, by the same release.

    key(release, caller, text) ─> in process ─> Redis, if there is one ─> Cached, or None
    answered ─> cacheable? ─> put_many ─> in process, and Redis behind the answer's back

What is kept is what it takes to answer and to audit again without a model: labels, numbers and
reasons, never text. Only what the rule itself said of a text that is not pinned is kept: the same
text then gets the same answer from the same release, whoever runs it.

The key is a keyed hash of its own purpose, so that a copy of Redis cannot be joined with the audit
log: whoever has both would otherwise see which answer stands behind which entry. The caller's id is
in it. Without it, a caller could learn from a free answer that another has sent this very text.

docs/cache.md says what is kept for how long, and what it costs. No Ray.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from cachetools import TTLCache
from pydantic import BaseModel, ConfigDict, Field

from cluster.audit.keyed_hash import TextHasher
from serve_app.contracts import Cached, Message, Route, RouteReason
from serve_app.decide.signals import SIGNALS
from serve_app.redis_store import SharedStore, derive_key

# A format's version: routers of two versions may share a Redis while one replaces the other.
_NAMESPACE: Final = "cache:1:"
_MAX_UNWRITTEN: Final = 4096  # answers on their way to Redis; more are left out, and cost a hit

# `random` is a hash of the text without a key, with which likely texts could be tried.
_UNKEPT: Final = "random"
_SIGNALS: Final = frozenset(SIGNALS) - {_UNKEPT}

# What the rule alone says, and the route it then takes. Not here: chance (explored), a state of the
# moment (a tier that failed), personal data, and every reason that is not known yet.
_BY_RULE: Final[Mapping[RouteReason, Route]] = {
    RouteReason.TRUSTED: Route.EDGE,
    RouteReason.CLASS_KEPT: Route.EDGE,
    RouteReason.ESCALATED: Route.CLOUD,
    RouteReason.CLASS_ESCALATED: Route.CLOUD,
    RouteReason.OUT_OF_DOMAIN: Route.CLOUD,
    RouteReason.ESCALATION_WORDS: Route.CLOUD,
    RouteReason.TOO_LONG: Route.CLOUD,
    RouteReason.UNCONFIDENT: Route.CLOUD,
}


class CacheConfig(BaseModel):
    """How much is kept, and for how long. On by default: see docs/cache.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(True, description="give an answer again without running a model")
    max_entries: int = Field(
        4096, ge=1, le=1_000_000, description="in each router; about 1 KB each"
    )
    ttl_s: float = Field(300.0, gt=0, le=86_400, description="an entry's life in each place")


def cacheable(
    message: Message,
    route: Route,
    reason: RouteReason,
    degraded: bool,
    signals: Container[str] = (),
) -> bool:
    """Whether the answer follows from the text and the release alone, and may be kept.

    `signals` are the names to be kept with it: a rule that looks at `random` is never cached.
    """
    if degraded or message.pinned is not None or _UNKEPT in signals:
        return False
    return _BY_RULE.get(reason) is route


def fits(cached: Cached, labels: Container[str]) -> bool:
    """Whether it could be an answer of a release with these labels. No name in it is free text."""
    return (
        cached.label in labels
        and cached.edge_label in labels
        and 0.0 <= cached.confidence <= 1.0
        and _BY_RULE.get(cached.reason) is cached.route
        and math.isfinite(cached.trust)
        and cached.signals.keys() <= _SIGNALS
        and all(map(math.isfinite, cached.signals.values()))
    )


def encode(cached: Cached) -> bytes:
    """Compact JSON, in the order of the fields."""
    values = [
        cached.label,
        cached.edge_label,
        float(cached.confidence),
        cached.route,
        cached.reason,
        float(cached.trust),
        {name: float(value) for name, value in cached.signals.items()},
    ]
    return json.dumps(values, separators=(",", ":")).encode()


def decode(data: bytes, labels: Container[str]) -> Cached | None:
    """None for whatever `encode` does not write, and for an answer that the release cannot give."""
    try:
        label, edge_label, confidence, route, reason, trust, signals = json.loads(data)
        cached = Cached(
            label=_str(label),
            edge_label=_str(edge_label),
            confidence=_float(confidence),
            route=Route(route),
            reason=RouteReason(reason),
            trust=_float(trust),
            signals={_str(name): _float(value) for name, value in signals.items()},
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return cached if fits(cached, labels) else None


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _float(value: Any) -> float:
    if not isinstance(value, float):  # JSON keeps 1.0 apart from 1, and `encode` writes the first
        raise TypeError
    return value


class Cache(Protocol):
    """What the router asks. None of it raises."""

    def key(self, release: str, caller: str, text: str) -> str: ...

    async def get_many(
        self, keys: Sequence[str], labels: Container[str]
    ) -> list[Cached | None]: ...

    def put_many(self, pairs: Iterable[tuple[str, Cached]], labels: Container[str]) -> None: ...

    async def close(self) -> None: ...


class NoCache:
    """Keeps nothing."""

    def key(self, release: str, caller: str, text: str) -> str:
        return ""

    async def get_many(self, keys: Sequence[str], labels: Container[str]) -> list[Cached | None]:
        return [None] * len(keys)

    def put_many(self, pairs: Iterable[tuple[str, Cached]], labels: Container[str]) -> None:
        return

    async def close(self) -> None:
        return


class ResponseCache:
    """The last `max_entries` answers in process, in front of Redis if a store is given.

    Without Redis, or while it is gone, each router has its own: fewer hits, the same answers.

    Args:
        key: the service's secret, the audit log's; another is derived from it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: CacheConfig,
        key: bytes,
        store: SharedStore | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hash = TextHasher(derive_key(key, "response cache"))
        self._local: TTLCache[str, Cached] = TTLCache(config.max_entries, config.ttl_s, clock)
        self._ttl_s = config.ttl_s
        self._store = store
        self._unwritten: dict[str, Cached] = {}
        self._writer: asyncio.Task[None] | None = None

    def key(self, release: str, caller: str, text: str) -> str:
        """32 hex characters for a prepared text. Release and caller have no NUL in them."""
        return self._hash(f"{release}\0{caller}\0{text}")

    async def get_many(self, keys: Sequence[str], labels: Container[str]) -> list[Cached | None]:
        """One per key, in order. Waits for nothing unless Redis has to be asked, and that once."""
        found = [self._local.get(key) for key in keys]
        gaps = [index for index, cached in enumerate(found) if cached is None]
        if gaps and self._store is not None:
            await self._from_store(self._store, keys, found, gaps, labels)
        return found

    def put_many(self, pairs: Iterable[tuple[str, Cached]], labels: Container[str]) -> None:
        """Keeps those that fit. Never waits: Redis is written to behind the answer's back."""
        kept = {key: cached for key, cached in pairs if fits(cached, labels)}
        self._local.update(kept)
        if self._store is not None and len(self._unwritten) < _MAX_UNWRITTEN:
            self._unwritten.update(kept)
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write_all(self._store))

    async def close(self) -> None:
        """Waits for what is on its way to Redis."""
        if self._writer is not None:
            await self._writer

    async def _write_all(self, store: SharedStore) -> None:
        """What comes while a write is out goes together in the next."""
        while self._unwritten:
            kept, self._unwritten = self._unwritten, {}
            values = {_NAMESPACE + key: encode(cached) for key, cached in kept.items()}
            await store.set_many(values, self._ttl_s)

    async def _from_store(
        self,
        store: SharedStore,
        keys: Sequence[str],
        found: list[Cached | None],
        gaps: Sequence[int],
        labels: Container[str],
    ) -> None:
        """Fills what gaps in `found` it can."""
        values = await store.get_many([_NAMESPACE + keys[index] for index in gaps])
        for index, data in zip(gaps, values, strict=True):
            if data is not None and (cached := decode(data, labels)) is not None:
                self._local[keys[index]] = found[index] = cached


def make_cache(config: CacheConfig, key: bytes, store: SharedStore | None) -> Cache:
    """The cache that the configuration asks for."""
    return ResponseCache(config, key, store) if config.enabled else NoCache()

"""Rate limits per API key: requests and texts per minute, over a sliding window.

    Rates.requests(key) / Rates.texts(key, count) -> Allowance

Counted in the process, or in Redis where one is given, so that several routers count together.

Decided once: a limit guards against one key taking all; it is no bill. When Redis is gone or slow,
each router counts for itself until it is back: open by at most a factor of the routers, and no
request fails, or waits for Redis longer than `TIMEOUT_S`. A refused request is not counted.

The window is an approximation by two fixed windows, with one number each per key and limit:
https://limits.readthedocs.io/en/stable/strategies.html#sliding-window-counter
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil
from typing import Any, Final

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cluster.errors import ConfigError
from serve_app.redis_store import TIMEOUT_S, Backoff

log = logging.getLogger(__name__)

_MINUTE_S: Final = 60.0
_WHOLE_REQUEST: Final = 256  # texts: a smaller limit would refuse a whole request for ever
_PREFIX: Final = "firstline:rate"
_CONNECTIONS: Final = 8
_BLOCKS: Final = 100  # in which a limit is handed out to routers
_REFUSED_S: Final = 1.0  # how long a refusal is believed


class RateConfig(BaseModel):
    """What one key may ask. The defaults are about what one router on two cores can answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_min: int = Field(12_000, ge=1)
    texts_per_min: int = Field(60_000, ge=_WHOLE_REQUEST)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key may still ask in the minute that ends now.

    `reset_s` is how long until there is more: for a refused request, enough for that request.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: float

    @property
    def retry_after_s(self) -> int:
        return max(1, ceil(self.reset_s))

    def headers(self) -> dict[str, str]:
        """The names are https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/'s
        forerunners, which clients know."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(ceil(self.reset_s)),
        }


@dataclass(slots=True)
class _Lease:
    """What was taken of a key's limit and is not given out yet."""

    left: int = 0
    remaining: int = 0  # of the limit, when it was asked last
    reset_at_s: float = 0.0
    until_s: float = 0.0
    refused_cost: int = 0  # as much as this was too much
    refused_until_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self, limit: int, cost: int, now_s: float) -> Allowance | None:
        """What can be said without asking."""
        reset_s = max(0.0, self.reset_at_s - now_s)
        if now_s < self.until_s and cost <= self.left:
            self.left -= cost
            return Allowance(True, limit, self.remaining + self.left, reset_s)
        if now_s < self.refused_until_s and cost - self.left >= self.refused_cost:
            return Allowance(False, limit, self.remaining + self.left, reset_s)
        return None

    def empty(self, now_s: float) -> int:
        """Takes all that is left, lest another take it while more is asked for."""
        held, self.left = (self.left if now_s < self.until_s else 0), 0
        return held

    def fill(self, made: Allowance, left: int, now_s: float) -> None:
        """A block came, and so much of it is left."""
        self.left += left
        self.until_s = now_s + _MINUTE_S
        self.remaining, self.reset_at_s = made.remaining, now_s + made.reset_s

    def refuse(self, made: Allowance, cost: int, now_s: float) -> None:
        """There is less than `cost` beside what is left."""
        self.remaining, self.reset_at_s = made.remaining, now_s + made.reset_s
        self.refused_cost = cost
        self.refused_until_s = now_s + min(made.reset_s, _REFUSED_S)


class _Counter:
    """Counts in Redis while there is one, else in the process."""

    def __init__(
        self, shared: SlidingWindowCounterRateLimiter | None, clock: Callable[[], float]
    ) -> None:
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = shared
        self._clock = clock
        self._pause = Backoff()

    async def take(self, item: RateLimitItem, of: tuple[str, str], cost: int) -> Allowance:
        if self._shared is not None:
            ticket = self._pause.begin(self._clock())
            if ticket is not None:
                made = await self._attempt(self._shared, ticket, item, of, cost)
                if made is not None:
                    return made
        return await _hit(self._local, item, of, cost)

    async def _attempt(
        self,
        shared: SlidingWindowCounterRateLimiter,
        ticket: int,
        item: RateLimitItem,
        of: tuple[str, str],
        cost: int,
    ) -> Allowance | None:
        """None where Redis did not say in time."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                made = await _hit(shared, item, of, cost)
        except Exception as error:  # noqa: BLE001 - whatever it was, we count here instead
            if self._pause.failed(ticket, self._clock()):
                kind = type(error).__name__  # the kind alone: an address may hold a password
                log.warning("Redis is gone (%s); each router counts rates for itself.", kind)
            return None
        if self._pause.succeeded(ticket, self._clock()):
            log.warning("Redis is back; rates are counted there.")
        return made


class Rates:
    """Counts what every key asks.

    A key's limit is taken in blocks of a hundredth and given out from there, since asking the
    library takes 15 us in the process and 350 us of CPU through Redis. So a key asks Redis a
    hundred times a minute at most, and what lies unused in each router is a hundredth.

    Args:
        config: for keys without limits of their own.
        redis_url: empty: counted in this process.
        clock: monotonic seconds. The windows are the library's, in seconds of the day.

    Raises:
        ConfigError: the URL is not of Redis.
    """

    def __init__(
        self,
        config: RateConfig | None = None,
        redis_url: SecretStr | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config or RateConfig()
        shared = redis_url and redis_url.get_secret_value()
        self._counter = _Counter(_limiter(shared) if shared else None, clock)
        self._clock = clock
        self._leases: dict[tuple[str, str, int], _Lease] = {}

    async def requests(self, key: str, config: RateConfig | None = None) -> Allowance:
        """Takes one request."""
        return await self._take("requests", key, (config or self._config).requests_per_min, 1)

    async def texts(self, key: str, count: int, config: RateConfig | None = None) -> Allowance:
        """Takes `count` texts, or none."""
        return await self._take("texts", key, (config or self._config).texts_per_min, count)

    def give_back_request(self, key: str, config: RateConfig | None = None) -> None:
        """One that was taken, and not given anything for."""
        self._give_back("requests", key, (config or self._config).requests_per_min, 1)

    def give_back_texts(self, key: str, count: int, config: RateConfig | None = None) -> None:
        """So many that were taken, and not answered."""
        self._give_back("texts", key, (config or self._config).texts_per_min, count)

    def _give_back(self, what: str, key: str, limit: int, count: int) -> None:
        """To this router's share of the limit, which it gives out before it asks for more."""
        lease = self._leases.get((what, key, limit))
        if lease is not None and self._clock() < lease.until_s:  # else its minute is over
            lease.left = min(lease.left + count, limit)

    async def _take(self, what: str, key: str, limit: int, cost: int) -> Allowance:
        lease = self._leases.setdefault((what, key, limit), _Lease())
        known = lease.take(limit, cost, self._clock())
        if known is not None:
            return known
        async with lease.lock:  # of many that find it empty, one fills it
            known = lease.take(limit, cost, self._clock())
            return known or await self._fill(lease, (what, key), limit, cost)

    async def _fill(self, lease: _Lease, of: tuple[str, str], limit: int, cost: int) -> Allowance:
        held = lease.empty(self._clock())
        short = cost - held
        block = max(short, limit // _BLOCKS)
        made = await self._counter.take(_item(limit), of, block)
        if not made.allowed and block > short:
            block = short
            made = await self._counter.take(_item(limit), of, block)
        if made.allowed:
            lease.fill(made, block - short, self._clock())
        else:
            lease.left += held
            lease.refuse(made, short, self._clock())
        return replace(made, remaining=made.remaining + lease.left)


@lru_cache(maxsize=1024)
def _item(limit: int) -> RateLimitItem:
    return RateLimitItemPerMinute(limit)


async def _hit(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, of: tuple[str, str], cost: int
) -> Allowance:
    allowed = await limiter.hit(item, *of, cost=cost)
    stats = await limiter.get_window_stats(item, *of)
    wait_s = max(0.0, stats.reset_time - time.time())
    if not allowed:
        # `reset_time` is when the next single text fits; a list needs that many of them.
        wait_s = max(wait_s, (cost - stats.remaining) * _MINUTE_S / item.amount)
    return Allowance(allowed, item.amount, max(0, stats.remaining), min(wait_s, _MINUTE_S))


def _limiter(address: str) -> SlidingWindowCounterRateLimiter:
    try:
        # Bounded: a burst that opens a connection for each request is slower than waiting for one.
        pool = BlockingConnectionPool.from_url(
            address,
            max_connections=_CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        options: dict[str, Any] = {"connection_pool": pool}
        storage = RedisStorage(
            f"async+{address}", implementation="redispy", key_prefix=_PREFIX, **options
        )
    except (ValueError, ConfigurationError):
        raise ConfigError(
            "FIRSTLINE_REDIS_URL is no address of a Redis. Give redis://host:6379/0, or rediss:// "
            "for TLS; it is not shown here because it may hold a password."
        ) from None
    return SlidingWindowCounterRateLimiter(storage)

"""SharedStore: what the routers of one service share through Redis: bytes by name, for a while.

    seal(name, value) ─> Redis ─> open(name, sealed) ─> value, or None

Decided once:
- Redis is a help, never a need: no method raises because of it. Each says "nothing there", or
  `Claim.UNKNOWN`, within `TIMEOUT_S`. After a failure it is left alone for a pause, of a second at
  first and 30 s at most; then one call tries it, and the others go on without it. One line in the
  log says that it went, one that it came back.
- What comes out of Redis is not trusted. A value carries a keyed hash of its name and itself, so
  what was not written under this name by a holder of the key reads as nothing.
- The URL may hold a password. It is in no log line, no error and no repr.

Reads that come while one is out wait for it, and go together in the next: at 32 connections a read
of its own for each took 0.6 ms of the event loop, and takes 0.04 ms together.

No Ray. One SharedStore per process, on one event loop.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final, TypeVar, cast

from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cluster.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_S: Final = 0.05
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
_CONNECTIONS: Final = 8
_MAX_NAMES: Final = 512  # read at once; opening their seals takes about a millisecond
_PREFIX: Final = "firstline:"
_SEAL_BYTES: Final = 16
_MAX_KEY_BYTES: Final = 64  # blake2b takes no longer key

# KEYS[1] the name, ARGV[1] the claim, ARGV[2] milliseconds, ARGV[3] the new value.
_RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0"""
_REPLACE: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
return 1"""
_DROP: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0"""


class Claim(Enum):
    """What became of an attempt to be the first under a name."""

    WON = auto()
    LOST = auto()  # there is a value already
    UNKNOWN = auto()  # Redis did not say


def derive_key(key: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose; hashes under two purposes cannot be joined."""
    short = key if len(key) <= _MAX_KEY_BYTES else blake2b(key).digest()
    return blake2b(purpose.encode(), digest_size=32, key=short, person=b"firstline.derive").digest()


class Backoff:
    """When something that failed may be tried again: pure, `now_s` is an argument.

    `begin` gives a ticket, or None during the pause; `succeeded` and `failed` take it back and say
    whether the state changed. Tickets from before the last change have no say: of 32 calls that
    fail together, one makes the pause.
    """

    def __init__(self) -> None:
        self.up = True
        self.pause_s = FIRST_PAUSE_S
        self._ticket = 0
        self._since_s = float("-inf")
        self._retry_s = 0.0

    def lasts(self, now_s: float) -> bool:
        return not self.up and now_s < self._retry_s

    def begin(self, now_s: float) -> int | None:
        if self.up:
            return self._ticket
        if self.lasts(now_s):
            return None
        self._ticket += 1
        self._retry_s = now_s + self.pause_s  # one tries, the others go on without
        return self._ticket

    def succeeded(self, ticket: int, now_s: float) -> bool:
        if self.up or ticket != self._ticket:
            return False
        self.up, self._since_s = True, now_s
        return True

    def failed(self, ticket: int, now_s: float) -> bool:
        if ticket != self._ticket:
            return False
        was_up, self.up = self.up, False
        # Up for less than its last pause is still down: it does not begin again at a second.
        lasted = was_up and now_s - self._since_s > self.pause_s
        self.pause_s = FIRST_PAUSE_S if lasted else min(2.0 * self.pause_s, LONGEST_PAUSE_S)
        self._ticket += 1
        self._retry_s = now_s + self.pause_s
        return was_up


@dataclass(slots=True, eq=False)
class _Read:
    """Somebody who waits for the values of these keys."""

    keys: list[str]
    future: "asyncio.Future[list[bytes | None]]"


class SharedStore:
    """Bytes by name in Redis.

    Args:
        url: redis://, rediss:// or unix://.
        key: of the seal; the same in all routers of a service.
        clock: monotonic seconds.

    Raises:
        ConfigError: the URL is not of Redis.
    """

    def __init__(
        self, url: SecretStr, key: bytes, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        options = _options(url)
        self._client = Redis.from_pool(_pool(options))
        self._where = _where(options)
        self._key = derive_key(key, "shared store")
        self._clock = clock
        self._pause = Backoff()
        self._reads: deque[_Read] = deque()
        self._reader: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"SharedStore({self._where}, available={self.available})"

    @property
    def available(self) -> bool:
        """Whether the last call that was tried went well. To be shown: calls need not ask it."""
        return self._pause.up

    async def get(self, name: str) -> bytes | None:
        return (await self.get_many([name]))[0]

    async def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """One value or None per name, in order, in one round trip."""
        if not names or self._pause.lasts(self._clock()):
            return [None] * len(names)
        future: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        self._reads.append(_Read([_PREFIX + name for name in names], future))
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_all())
        return await future

    async def set_many(self, values: Mapping[str, bytes], ttl_s: float) -> bool:
        """Whether all were written; one round trip."""

        async def write(redis: Redis) -> bool:
            async with redis.pipeline(transaction=False) as pipe:
                for name, value in values.items():
                    key = _PREFIX + name
                    pipe.set(key, self._seal(key, value), px=_ms(ttl_s))
                return all(await pipe.execute())

        return await self._ask(write, False) if values else True

    async def claim(self, name: str, value: bytes, ttl_s: float) -> Claim:
        """Writes the value where there is none."""
        key = _PREFIX + name
        sealed = self._seal(key, value)
        return await self._ask(lambda redis: _claim(redis, key, sealed, ttl_s), Claim.UNKNOWN)

    async def renew(self, name: str, claim: bytes, ttl_s: float) -> bool:
        """Lets a claim live on from now; False where it is not held any more."""
        return await self._run(_RENEW, name, claim, _ms(ttl_s))

    async def replace(self, name: str, claim: bytes, value: bytes, ttl_s: float) -> bool:
        """The value instead of the claim, or of nothing; False where there is another's."""
        sealed = self._seal(_PREFIX + name, value)
        return await self._run(_REPLACE, name, claim, _ms(ttl_s), sealed)

    async def drop(self, name: str, claim: bytes) -> bool:
        """Deletes a claim, and nothing else that may be under the name by now."""
        return await self._run(_DROP, name, claim)

    async def close(self) -> None:
        """Waits for reads that are out (they are short), then closes the connections."""
        if self._reader is not None:
            await self._reader
        await self._client.aclose(close_connection_pool=True)

    async def _read_all(self) -> None:
        while self._reads:
            batch = self._next_reads()
            keys = [key for read in batch for key in read.keys]
            values = iter(await self._mget(keys))
            for read in batch:
                opened = [self._open(key, next(values)) for key in read.keys]
                if not read.future.done():  # its client may have hung up
                    read.future.set_result(opened)

    async def _mget(self, keys: Sequence[str]) -> list[bytes | None]:
        nothing: list[bytes | None] = [None] * len(keys)
        return await self._ask(lambda redis: _mget(redis, keys), nothing)

    def _next_reads(self) -> list[_Read]:
        batch = [self._reads.popleft()]
        size = len(batch[0].keys)
        while self._reads and size + len(self._reads[0].keys) <= _MAX_NAMES:
            batch.append(self._reads.popleft())
            size += len(batch[-1].keys)
        return batch

    async def _run(self, script: str, name: str, claim: bytes, *args: int | bytes) -> bool:
        key = _PREFIX + name
        sealed = self._seal(key, claim)

        async def run(redis: Redis) -> bool:
            done: Any = redis.eval(script, 1, key, sealed, *args)
            return bool(await done)

        return await self._ask(run, False)

    async def _ask(self, call: Callable[[Redis], Awaitable[T]], otherwise: T) -> T:
        """What Redis says, or `otherwise`."""
        ticket = self._pause.begin(self._clock())
        if ticket is None:
            return otherwise
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await call(self._client)
        except Exception as error:  # noqa: BLE001 - whatever it was, the answer goes out without it
            if self._pause.failed(ticket, self._clock()):
                # The kind alone: what a server says may repeat what it was sent.
                kind = type(error).__name__
                log.warning("Redis at %s is gone (%s); going on without it.", self._where, kind)
            return otherwise
        if self._pause.succeeded(ticket, self._clock()):
            log.warning("Redis at %s is back.", self._where)
        return answer

    def _mark(self, key: str, value: bytes) -> bytes:
        data = key.encode() + b"\0" + value
        return blake2b(data, digest_size=_SEAL_BYTES, key=self._key).digest()

    def _seal(self, key: str, value: bytes) -> bytes:
        return self._mark(key, value) + value

    def _open(self, key: str, sealed: bytes | None) -> bytes | None:
        if sealed is None:
            return None
        value = sealed[_SEAL_BYTES:]
        return value if compare_digest(sealed[:_SEAL_BYTES], self._mark(key, value)) else None


async def _mget(redis: Redis, keys: Sequence[str]) -> list[bytes | None]:
    values: Any = await redis.mget(keys)
    if len(values) != len(keys):
        raise ValueError(f"{len(values)} values came for {len(keys)} keys")
    return list(values)


async def _claim(redis: Redis, key: str, sealed: bytes, ttl_s: float) -> Claim:
    won = await redis.set(key, sealed, px=_ms(ttl_s), nx=True)
    return Claim.WON if won else Claim.LOST


def _ms(ttl_s: float) -> int:
    return max(1, round(1000.0 * ttl_s))


def _options(url: SecretStr) -> dict[str, Any]:
    """The URL's own options, and over them ours: `?socket_timeout=60` must not hold up answers."""
    try:
        options = dict(parse_url(url.get_secret_value()))
    except ValueError:
        raise _no_address() from None
    options |= {
        "max_connections": _CONNECTIONS,
        "timeout": TIMEOUT_S,
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        "protocol": 2,  # one round trip less to connect, and nothing of version 3 is used
        "driver_info": None,
    }
    return options


def _pool(options: Mapping[str, Any]) -> BlockingConnectionPool:
    pool: Any = BlockingConnectionPool(**options)
    try:
        pool.make_connection()  # opens nothing, and refuses options that it does not know
    except (TypeError, ValueError):
        raise _no_address() from None
    return cast(BlockingConnectionPool, pool)


def _no_address() -> ConfigError:
    return ConfigError(
        "FIRSTLINE_REDIS_URL is no address of a Redis. Give redis://host:6379/0, rediss:// for "
        "TLS, or unix:///path/to/socket, with options that redis-py knows. It is not shown here "
        "because it may hold a password."
    )


def _where(options: Mapping[str, Any]) -> str:
    """For the log: without user, password and options."""
    if path := options.get("path"):
        return str(path)
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"

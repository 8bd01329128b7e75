"""The router's wiring: cards, handles and settings -> the parts of one process."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterator, Mapping
from random import Random
from typing import Any, Final, TypeVar

from ray.serve.handle import DeploymentHandle

from cluster.bundles import Role
from cluster.ray_private import serve_client
from cluster.settings import Settings
from serve_app.cascade.answerer import ServedRelease
from serve_app.deploy.config import TierConfig
from serve_app.deploy.names import CARD, release_app
from serve_app.redis_store import SharedStore
from serve_app.tiers.batching import Batcher
from serve_app.tiers.retry import RetryingCall, call_of
from serve_app.tiers.socket_client import pool_of

log = logging.getLogger(__name__)

T = TypeVar("T")
CARD_WAIT_S: Final = 120.0
_READY_WAIT_S: Final = 5.0
DRAW: Final = Random().random  # noqa: S311 - chance, and no secret
_IDS_AT_ONCE: Final = 1024


def ids() -> Iterator[str]:
    """32 hex digits each, that nobody can guess. The system gives many at once: asking it lets go
    of the GIL, and a busy process waits until it has it back."""
    while True:
        drawn = os.urandom(16 * _IDS_AT_ONCE).hex()
        yield from (drawn[at : at + 32] for at in range(0, len(drawn), 32))


async def missing_of(release: ServedRelease) -> list[str]:
    try:
        held = await within(_READY_WAIT_S, handle_of(release.app, CARD).ready.remote())
    except Exception as error:  # noqa: BLE001 - whatever keeps it from answering is the answer
        log.info("Not ready: %r", error)
        return [f"release {release.id}: a tier does not answer within {_READY_WAIT_S:g} s"]
    wanted = release.card["bundles"]
    return [
        f"release {release.id}: the {tier} holds another bundle than the policy's"
        for tier in wanted
        if held[tier] != wanted[tier]
    ]


def store_of(settings: Settings, key: bytes) -> SharedStore | None:
    return SharedStore(settings.redis_url, key) if settings.redis_url.get_secret_value() else None


def batcher_of(name: str, role: Role, card: Mapping[str, Any], config: TierConfig) -> Batcher:
    connections = pool_of(f"{release_app(name)}/{role}")
    return Batcher(
        RetryingCall(call_of(handle_of(name, role), connections, card["bundles"][role])),
        max_in_flight=config.max_in_flight,
        timeout_s=config.timeout_s,
    )


def handle_of(release: str, deployment: str) -> DeploymentHandle[Any]:
    return serve_client.handle_of(deployment, release_app(release))


async def within(timeout_s: float, response: Awaitable[T]) -> T:
    async with asyncio.timeout(timeout_s):
        return await response

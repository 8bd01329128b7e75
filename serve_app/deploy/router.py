"""The router's replica: what stands behind the HTTP routes.

    HTTP ─> routes ─> Router ─> Traffic: which release ─> its Answerer ─> out
                        └─> the shadows' Answerers, behind the answer's back

Thin: every part is a plain class of its own. `reconfigure` swaps what is routed in one assignment;
requests in flight finish on what they began with.
"""

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

from cluster.audit.keyed_hash import TextHasher, load_key
from cluster.audit.records import FeedbackRecord
from cluster.audit.write import AuditLog
from cluster.errors import ServiceError
from cluster.settings import load_settings
from serve_app.access import keys as api_keys
from serve_app.access.abuse import Abuse
from serve_app.access.admission import Admission
from serve_app.access.hosts import Hosts
from serve_app.access.rate_limits import Rates
from serve_app.cascade.answerer import Answerer, ServedRelease
from serve_app.cascade.audit_writer import AuditWriter
from serve_app.cascade.cache import make_cache
from serve_app.cascade.circuit_breaker import CircuitBreaker
from serve_app.cascade.escalation import EscalationLimit
from serve_app.cascade.traffic import Routed, Traffic
from serve_app.contracts import HURRIED, Caller
from serve_app.decide.answered import Answered
from serve_app.decide.cost import Prices
from serve_app.decide.explain import Alternative
from serve_app.decide.policy import RouterPolicy
from serve_app.deploy.config import RouterArgs
from serve_app.deploy.names import CARD
from serve_app.deploy.wiring import (
    CARD_WAIT_S,
    DRAW,
    batcher_of,
    handle_of,
    ids,
    missing_of,
    store_of,
    within,
)
from serve_app.http.endings import note
from serve_app.http.idempotency import Idempotency
from serve_app.http.open_inference import add_v2
from serve_app.http.routes import create_api
from serve_app.jobs.routes import Jobs, add_jobs
from serve_app.jobs.runner import RayRunner
from serve_app.monitor.client import MonitorClient
from serve_app.monitor.totals import Expected, RequestCounts, RouterReport
from serve_app.monitor.windows import Compared
from serve_app.tiers import gc_settings

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.5
_WATCH_EVERY_S: Final = 2.0
_MAX_SHADOWED: Final = 16  # requests that shadows work on; what comes then, they do not see


@dataclass(frozen=True)
class _Routing:
    """What is routed: by the name that the router's config gives a release."""

    traffic: Traffic
    answerers: Mapping[str, Answerer] = field(repr=False)

    def pick(self, caller: Caller) -> Answerer:
        return self.answerers[self.traffic.assign(caller.user, DRAW())]

    @property
    def champion(self) -> Answerer:
        return self.answerers[self.traffic.routed.champion]

    @property
    def shadows(self) -> Iterator[Answerer]:
        return (self.answerers[name] for name in self.traffic.routed.shadow)

    @property
    def weights(self) -> dict[str, float]:
        """By release id, which a name such as `latest` is not."""
        routed = self.traffic.routed.releases
        return {self.answerers[name].release.id: weight for name, weight in routed.items()}

    @property
    def compared(self) -> Compared:
        champion = self.champion.release.id
        return Compared(champion, tuple(name for name in self.weights if name != champion))


class Router:
    """An `routes.Service` over one Answerer per release that is routed or shadowed."""

    def __init__(self, args: RouterArgs) -> None:
        self._args = args
        self._settings = settings = load_settings(args.home)
        replica = serve.get_replica_context().replica_id.unique_id
        self._log = AuditLog(settings.audit_dir, f"router-{replica}")
        self._audit_writer = AuditWriter(self._log)
        self._key = load_key(settings.home / "audit.key", settings.audit_key)
        self._store = store_of(settings, self._key)
        self._cache = make_cache(args.cache, self._key, self._store)
        self._idempotency = Idempotency(self._key, self._store)
        self._monitor = MonitorClient(settings)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._routing: _Routing | None = None
        self._behind_tasks: set[asyncio.Task[None]] = set()
        self._circuits: dict[str, str] = {}
        self._looking, self._looked_s = asyncio.Lock(), -math.inf
        self._missing: list[str] = []
        self._warnings: list[str] = []
        self._requests = RequestCounts()
        self._started_s = time.time()
        self._watching: asyncio.Task[None] | None = None
        self._replica = replica
        runner = RayRunner(settings.home, args.jobs)
        self._jobs = Jobs(settings.home, self._champion_id, runner)

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings, args = self._settings, self._args
        keys = api_keys.Keys(settings.home / api_keys.FILE, settings.api_keys)
        admission = Admission(
            keys,
            Rates(args.rates, settings.redis_url),
            Abuse(self._monitor.abuse),
            hosts=Hosts(args.host, args.allowed_hosts),
        )
        api = create_api(
            self,
            admission=admission,
            idempotency=self._idempotency,
            on_end=lambda event: self._requests.add(event, time.time()),
        )
        add_jobs(api, self._jobs, admission)
        add_v2(api, self, admission)
        return api

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Called by Serve with the `user_config`, at the start and at every change of it."""
        routed = Routed.model_validate(user_config)
        known = self._routing.answerers if self._routing else {}
        made = {name: known.get(name) or await self._answerer(name) for name in routed.named}
        is_first, self._routing = not known, _Routing(Traffic(routed, self._key), made)
        self._looked_s = -math.inf
        if is_first:
            self._behind(self._jobs.resume())
            gc_settings.settle()
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        self._monitor.use(self._routing.champion.release.prices, self._routing.compared)

    async def __del__(self) -> None:
        """Called by Serve when this replica has drained: what is still on its way gets there."""
        if self._watching is not None:
            self._watching.cancel()
        await self._idempotency.close()
        await self._audit_writer.close()
        await self._monitor.close()
        await self._cache.close()
        if self._store is not None:
            await self._store.close()
        self._log.close()

    async def _answerer(self, name: str) -> Answerer:
        card = await within(CARD_WAIT_S, handle_of(name, CARD).describe.remote())
        return Answerer(
            self._served(name, card),
            audit=self._audit_writer,
            emitter=self._monitor,
            hash_text=TextHasher(self._key),
            new_id=ids().__next__,
            clock=time.monotonic,
            now=time.time,
            pool=self._pool,
            explore_share=self._args.explore_share,
            draw=DRAW,
        )

    def _served(self, name: str, card: Mapping[str, Any]) -> ServedRelease:
        args = self._args
        cloud_share = 1.0 - float(card["certificate"]["edge_share"]) + args.explore_share
        edge = batcher_of(name, "edge", card, args.edge)
        return ServedRelease(
            id=card["id"],
            app=name,
            policy=RouterPolicy.model_validate(card["policy"]),
            prices=Prices.model_validate(card["prices"]),
            labels=tuple(card["labels"]),
            alternatives=tuple(map(Alternative.model_validate, card["alternatives"])),
            edge=edge,
            cloud=batcher_of(name, "cloud", card, args.cloud),
            room=edge.check,
            escalation=EscalationLimit(
                CircuitBreaker(time.monotonic), args.budget.made(time.monotonic, cloud_share)
            ),
            cache=self._cache,
            card=card,
        )

    def _routed(self) -> _Routing:
        if self._routing is None:
            raise ServiceError("No release is routed yet. Wait for /readyz.")
        return self._routing

    def _champion_id(self) -> str:
        return self._routed().champion.release.id

    # -- routes.Service --

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool, caller: Caller
    ) -> list[Answered]:
        routing = self._routed()
        answerer = routing.pick(caller)
        tags = () if caller.deadline_s is None else (HURRIED,)
        note(release=answerer.release.id, tags=tags)
        answered = await answerer.answer(
            texts, caller=caller, explain=explain, route_only=route_only
        )
        self._tell_circuit(answerer.release)
        if not route_only:
            for shadow in routing.shadows:
                self._show(shadow, texts, answered)
        return answered

    def _show(self, shadow: Answerer, texts: Sequence[str], answered: Sequence[Answered]) -> None:
        """Behind the answer's back; a shadow that cannot follow misses messages."""
        if len(self._behind_tasks) >= _MAX_SHADOWED:
            return
        self._behind(_quietly(shadow, texts, answered))

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it behind the answers' back."""
        task = asyncio.get_running_loop().create_task(work)
        self._behind_tasks.add(task)
        task.add_done_callback(self._behind_tasks.discard)

    def _tell_circuit(self, release: ServedRelease) -> None:
        if release.escalation.breaker is None:
            return
        state = release.escalation.breaker.state.value
        if self._circuits.get(release.id, "closed") != state:
            log.warning("The circuit to the cloud of release %s is %s.", release.id, state)
            self._circuits[release.id] = state
            self._monitor.state(release.id, state)

    def labels(self) -> Sequence[str]:
        """Of all routed releases: feedback may be on an answer of any."""
        every = (answerer.release.labels for answerer in self._routed().answerers.values())
        return tuple(dict.fromkeys(label for labels in every for label in labels))

    async def feedback(self, answer_id: str, label: str) -> None:
        record = FeedbackRecord(answer_id, time.time(), label)
        await self._audit_writer.append([record])
        self._monitor.emit([record])

    async def missing(self) -> list[str]:
        """What keeps the service from being ready; empty if nothing does.

        A replica joins only after its golden messages came out right, so that each tier answers
        and that no replica is still coming up means that all of them have.
        """
        if self._routing is None:
            return ["no release is routed yet"]
        async with self._looking:  # whoever asks, and however often, the tiers are asked twice a s
            if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
                routing = self._routing
                names = routing.traffic.routed.releases
                routed = [routing.answerers[name].release for name in names]
                look = asyncio.gather(*map(missing_of, routed))
                audit, found = await asyncio.gather(self._audit_writer.check(), look)
                own = [audit.problem, self._requests.problem(time.time()), self._monitor.problem]
                self._missing = [problem for problem in own if problem]
                self._missing += [problem for problems in found for problem in problems]
                self._warnings = [audit.warning] if audit.warning else []
                if routing is self._routing:  # else it is an answer about what was routed before
                    self._looked_s = time.monotonic()
            return self._missing

    def warnings(self) -> list[str]:
        """Of the last look: what does not keep it from being ready."""
        away = self._monitor.warning
        return [*self._warnings, away] if away else self._warnings

    async def _watch(self) -> None:
        """Looks as whoever asks /readyz, and tells the monitor, which so hears without traffic."""
        while True:
            try:
                await self._monitor.report(await self._report())
            except Exception as error:  # noqa: BLE001 - whatever it was, the next look may go well
                log.warning("The monitor was not told how this router does: %r", error)
            await asyncio.sleep(_WATCH_EVERY_S)

    async def _report(self) -> RouterReport:
        problems = await self.missing()
        answerers = self._routed().answerers.values()
        return RouterReport(
            router=self._replica,
            started_s=self._started_s,
            events=dict(self._requests.events),
            problems=tuple(problems),
            warnings=tuple(self._warnings),
            expected={one.release.id: self._expected(one.release) for one in answerers},
        )

    def _expected(self, release: ServedRelease) -> Expected:
        return Expected(
            edge_share=float(release.card["certificate"]["edge_share"]),
            edge_usd=release.prices.edge_usd,
            cloud_usd=release.prices.cloud_usd,
            explore_share=self._args.explore_share,
        )

    def release(self) -> Mapping[str, Any]:
        """The champion's card, and what is routed beside it."""
        routing = self._routed()
        shadows = [shadow.release.id for shadow in routing.shadows]
        routed = {"weights": routing.weights, "shadow": shadows}
        return {**routing.champion.release.card, "routed": routed}

    async def stats(self) -> Mapping[str, Any]:
        return _json(await self._monitor.ask("snapshot"))

    async def report(self) -> Mapping[str, Any]:
        return _json(await self._monitor.ask("report"))

    async def metrics(self) -> bytes:
        return bytes(await self._monitor.ask("prometheus"))


async def _quietly(shadow: Answerer, texts: Sequence[str], answered: Sequence[Answered]) -> None:
    try:
        await shadow.shadow(texts, answered)
    except Exception as error:  # noqa: BLE001 - a shadow never troubles an answer
        log.warning("The shadow %s saw nothing: %s.", shadow.release.id, type(error).__name__)


def _json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")

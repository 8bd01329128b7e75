"""The wiring of Ray Serve: typed builders for the two kinds of application, and all their options.

    release-<id>        card (root, no route) ── edge, cloud       build_release(ReleaseArgs)
    firstline-router    router (route /)      ── handles by name   build_router(RouterArgs)

Which releases are routed is the router's `user_config`, {"releases": {"<id>": weight}}: an update
of it alone keeps every replica, and loads no model.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any, Final, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.audit import AuditLog, FeedbackRecord, Record, TextHasher, load_key
from cluster.bundles import MODEL, Role
from cluster.errors import ReleaseError, ServiceError
from cluster.placement import actor_options
from cluster.releases import Release, list_releases, load_release
from cluster.settings import Settings, load_settings
from serve_app.api import MAX_TEXTS, create_api
from serve_app.contracts import Prediction
from serve_app.cost import Prices
from serve_app.emitter import MetricsEmitter, Send
from serve_app.explain import Alternative, load_alternatives
from serve_app.gather import Gatherer, OverloadedError
from serve_app.monitor import get_or_create
from serve_app.policy import RouterPolicy, policy_of
from serve_app.router import Answered, Answerer, ServedRelease
from serve_app.tiers import Tier

log = logging.getLogger(__name__)

T = TypeVar("T")

ROUTER_APP: Final = "firstline-router"
ROUTER: Final = "router"
CARD: Final = "card"
LATEST: Final = "latest"
MAX_EXPLORE_SHARE: Final = 0.5
_CARD_WAIT_S: Final = 120.0
_READY_WAIT_S: Final = 5.0
_MONITOR_WAIT_S: Final = 5.0
_RETRY_PAUSE_S: Final = 0.1


# ---- configuration ------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TierConfig(_Model):
    """How one tier scales, and how much of it may be asked at once."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(2, ge=1)
    cpus: float = Field(0.5, gt=0, description="per replica, as Ray counts them")
    target_ongoing_requests: float = Field(1.0, gt=0, description="lists per replica to scale by")
    upscale_delay_s: float = Field(5.0, ge=0)
    downscale_delay_s: float = Field(120.0, ge=0)
    look_back_s: float = Field(5.0, gt=0, description="load is a mean over this long")
    calls_per_replica: int = Field(
        2, ge=1, description="lists a replica holds: one runs, one waits"
    )
    max_batch: int = Field(64, ge=1, description="messages per list")
    max_queued: int = Field(2048, ge=MAX_TEXTS, description="messages waiting in a router")
    timeout_s: float = Field(5.0, gt=0, description="for a message, its wait included")
    by_label: bool = Field(False, description="only on nodes started with --labels tier=<tier>")

    @model_validator(mode="after")
    def _in_order(self) -> "TierConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, less than min_replicas {self.min_replicas}"
            )
        return self

    @property
    def max_in_flight(self) -> int:
        """Lists a router has out at once: enough for as many replicas as there may be, so that
        autoscaling sees the load."""
        return self.calls_per_replica * self.max_replicas


def _cloud() -> TierConfig:
    return TierConfig(timeout_s=10.0)


class ReleaseArgs(_Model):
    """What `build_release` takes. `release` is an id, or `latest` on this machine."""

    release: str
    home: Path | None = Field(None, description="empty: FIRSTLINE_HOME")
    edge: TierConfig = TierConfig()
    cloud: TierConfig = Field(default_factory=_cloud)


class RouterArgs(_Model):
    """What `build_router` takes."""

    home: Path | None = Field(None, description="empty: FIRSTLINE_HOME")
    replicas: int = Field(1, ge=1)
    cpus: float = Field(0.5, gt=0)
    explore_share: float = Field(0.0, ge=0, le=MAX_EXPLORE_SHARE)
    edge: TierConfig = TierConfig()
    cloud: TierConfig = Field(default_factory=_cloud)


class Routed(_Model):
    """The router's `user_config`: the share of traffic per release."""

    releases: dict[str, float]

    @model_validator(mode="after")
    def _one_release(self) -> "Routed":
        if list(self.releases.values()) != [1.0]:
            raise ValueError(
                f"releases is {self.releases}; exactly one release with weight 1 was expected"
            )
        return self

    @property
    def release(self) -> str:
        return next(iter(self.releases))


class ServeConfig(_Model):
    """All that `firstline serve` lets a user set."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    routers: int = Field(1, ge=1)
    router_cpus: float = Field(0.5, gt=0)
    explore_share: float = Field(
        0.0,
        ge=0,
        le=MAX_EXPLORE_SHARE,
        description="of the trusted messages, sent to the cloud all the same",
    )
    edge: TierConfig = TierConfig()
    cloud: TierConfig = Field(default_factory=_cloud)

    def release_args(self, release: str, home: Path) -> ReleaseArgs:
        return ReleaseArgs(release=release, home=home, edge=self.edge, cloud=self.cloud)

    def router_args(self, home: Path) -> RouterArgs:
        return RouterArgs(
            home=home,
            replicas=self.routers,
            cpus=self.router_cpus,
            explore_share=self.explore_share,
            edge=self.edge,
            cloud=self.cloud,
        )

    @property
    def cpus_for_promotion(self) -> int:
        """Ray CPUs that hold the routers and two whole releases: the old one and its successor."""
        tiers = (self.edge, self.cloud)
        release = sum(tier.max_replicas * tier.cpus for tier in tiers)
        return ceil(self.routers * self.router_cpus + 2 * release)


def release_app(release_id: str) -> str:
    """The name of the application that serves a release."""
    return f"release-{release_id}"


# ---- a release ----------------------------------------------------------------------------------


class Card:
    """The root of a release's application: says what it is, and whether it can answer."""

    def __init__(
        self, card: dict[str, Any], edge: DeploymentHandle[Any], cloud: DeploymentHandle[Any]
    ) -> None:
        self._card = card
        self._tiers = {"edge": edge, "cloud": cloud}

    async def describe(self) -> dict[str, Any]:
        """The manifest, policy, certificate, prices, labels and hashes."""
        return self._card

    async def ready(self) -> dict[str, str]:
        """The hash each tier holds; waits for a replica of each that fits its golden messages."""
        hashes = await asyncio.gather(*(tier.ready.remote() for tier in self._tiers.values()))
        return dict(zip(self._tiers, hashes, strict=True))


def describe(release: Release) -> dict[str, Any]:
    """What a release's card says.

    The policy is checked here and not in the router, so that a release that cannot be used fails
    beside the one that answers.

    Raises:
        ReleaseError: the policy or the alternatives cannot be used.
    """
    policy_of(release)
    return {
        "id": release.id,
        "labels": list(release.manifest.labels),
        "bundles": {
            "edge": release.manifest.edge_sha256,
            "cloud": release.manifest.cloud_sha256,
        },
        "policy": dict(release.policy),
        "certificate": dict(release.certificate),
        "prices": dict(release.prices),
        "alternatives": [item.model_dump() for item in load_alternatives(release.path)],
        "manifest": release.manifest.model_dump(mode="json"),
    }


def _resolve(settings: Settings, release: str) -> Release:
    if release != LATEST:
        return load_release(settings, release)
    known = list_releases(settings)
    if not known:
        raise ReleaseError(
            f"There is no release in {settings.home}. Make one with `firstline tune`."
        )
    return load_release(settings, known[-1])


def _tier(
    role: Role, path: Path, sha256: str, config: TierConfig, artifact: str = MODEL
) -> serve.Application:
    deployed = serve.deployment(
        name=role,
        ray_actor_options=actor_options(role, cpus=config.cpus, by_label=config.by_label),
        # The gatherers bound what is out; these hold even if there are many routers.
        max_ongoing_requests=config.calls_per_replica,
        max_queued_requests=2 * config.max_in_flight,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
            "look_back_period_s": config.look_back_s,
            "metrics_interval_s": min(1.0, config.look_back_s / 2),
        },
    )(Tier)
    return deployed.bind(str(path), sha256, threads=ceil(config.cpus), artifact=artifact)


def build_release(args: ReleaseArgs) -> serve.Application:
    """ReleaseArgs -> the application of one release.

    Raises:
        ReleaseError: unknown, broken, or made of parts that do not fit.
    """
    release = _resolve(load_settings(args.home), args.release)
    card = serve.deployment(name=CARD, ray_actor_options={"num_cpus": 0})(Card)
    manifest = release.manifest
    return card.bind(
        describe(release),
        _tier("edge", release.edge_path, manifest.edge_sha256, args.edge, release.edge_artifact),
        _tier("cloud", release.cloud_path, manifest.cloud_sha256, args.cloud),
    )


# ---- the router ---------------------------------------------------------------------------------


class _Hop:
    """A handle as a TierCall: asks once more where a replica died under the call.

    Asking twice is safe, since a tier keeps nothing.
    """

    def __init__(self, handle: DeploymentHandle[Any], sha256: str) -> None:
        self._handle = handle
        self._sha256 = sha256

    async def __call__(self, texts: list[str]) -> Sequence[Prediction | None]:
        from ray.exceptions import RayActorError

        try:
            return await self._ask(texts)
        except (RayActorError, ConnectionError) as error:
            log.warning("A replica died under a call (%s); asking another.", type(error).__name__)
        await asyncio.sleep(_RETRY_PAUSE_S)
        return await self._ask(texts)

    async def _ask(self, texts: list[str]) -> Sequence[Prediction | None]:
        try:
            answers: Sequence[Prediction | None]
            answers = await self._handle.predict.remote(texts, self._sha256)
        except serve.exceptions.BackPressureError:
            raise OverloadedError(
                "Every replica of the tier is busy. Try again in a moment."
            ) from None
        return answers


class _MonitorLink:
    """The router's side of the monitor: nothing here waits on the request path, or raises."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prices = Prices()
        self._actor: Any = None
        self._emitter = MetricsEmitter(self._resolve)
        self._background: set[asyncio.Task[None]] = set()

    def use(self, prices: Prices) -> None:
        """The prices that savings are counted by."""
        self._prices = prices
        self._tell("use_prices", prices)

    def emit(self, records: Sequence[Record]) -> None:
        self._emitter.emit(records)

    def bad_outputs(self, count: int) -> None:
        self._tell("count_bad_outputs", count)

    async def ask(self, method: str) -> Any:
        """Raises ServiceError if the monitor does not answer."""
        try:
            async with asyncio.timeout(_MONITOR_WAIT_S):
                actor = await asyncio.to_thread(self._monitor)
                return await getattr(actor, method).remote()
        except Exception as error:
            log.warning("The monitor did not answer: %r", error)
            self._actor = None
            raise ServiceError(
                "The monitor does not answer. It restarts by itself and rebuilds its figures from "
                "the audit log; answers are not affected. Try again in a moment."
            ) from error

    def _monitor(self) -> Any:
        if self._actor is None:
            self._actor = get_or_create(self._settings.audit_dir, self._prices)
        return self._actor

    def _resolve(self) -> Send:
        self._actor = None
        actor = self._monitor()

        async def send(batch: list[Record]) -> None:
            await actor.ingest.remote(batch)

        return send

    def _tell(self, method: str, value: Any) -> None:
        """Calls the actor in the background."""
        task = asyncio.get_running_loop().create_task(self._call(method, value))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _call(self, method: str, value: Any) -> None:
        try:
            actor = await asyncio.to_thread(self._monitor)
            await getattr(actor, method).remote(value)
        except Exception as error:  # noqa: BLE001 - open on failure: metrics never stop an answer
            log.warning("The monitor did not take %s: %r", method, error)


class Router:
    """The replica behind the HTTP routes: an `api.Service` over one Answerer.

    `reconfigure` swaps the Answerer in one assignment; requests in flight finish on the old one.
    """

    def __init__(self, args: RouterArgs) -> None:
        self._args = args
        settings = load_settings(args.home)
        replica = serve.get_replica_context().replica_id.unique_id
        self._audit = AuditLog(settings.audit_dir, f"router-{replica}")
        self._hasher = TextHasher(load_key(settings.home / "audit.key", settings.audit_key))
        self._monitor = _MonitorLink(settings)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._answerer: Answerer | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Called by Serve with the `user_config`, at the start and at every change of it."""
        name = Routed.model_validate(user_config).release
        if self._answerer is not None and self._answerer.release.app == name:
            return
        card = await _within(_CARD_WAIT_S, _handle(name, CARD).describe.remote())
        served = self._served(name, card)
        self._monitor.use(served.prices)
        self._answerer = Answerer(
            served,
            audit=self._audit,
            emitter=self._monitor,
            hash_text=self._hasher,
            new_id=lambda: uuid.uuid4().hex,
            clock=time.monotonic,
            now=time.time,
            pool=self._pool,
            explore_share=self._args.explore_share,
        )

    def _served(self, name: str, card: Mapping[str, Any]) -> ServedRelease:
        return ServedRelease(
            id=card["id"],
            app=name,
            policy=RouterPolicy.model_validate(card["policy"]),
            prices=Prices.model_validate(card["prices"]),
            labels=tuple(card["labels"]),
            alternatives=tuple(map(Alternative.model_validate, card["alternatives"])),
            edge=self._gatherer(name, "edge", card, self._args.edge),
            cloud=self._gatherer(name, "cloud", card, self._args.cloud),
            card=card,
        )

    @staticmethod
    def _gatherer(name: str, role: Role, card: Mapping[str, Any], config: TierConfig) -> Gatherer:
        return Gatherer(
            _Hop(_handle(name, role), card["bundles"][role]),
            max_in_flight=config.max_in_flight,
            max_batch=config.max_batch,
            max_queued=config.max_queued,
            timeout_s=config.timeout_s,
        )

    def _current(self) -> Answerer:
        if self._answerer is None:
            raise ServiceError("No release is routed yet. Wait for /readyz.")
        return self._answerer

    # -- api.Service --

    async def answer(
        self, texts: Sequence[str], *, explain: bool, route_only: bool
    ) -> list[Answered]:
        return await self._current().answer(texts, explain=explain, route_only=route_only)

    def labels(self) -> Sequence[str]:
        return self._current().release.labels

    def feedback(self, answer_id: str, label: str) -> None:
        record = FeedbackRecord(answer_id, time.time(), label)
        self._audit.append([record])
        self._monitor.emit([record])

    async def missing(self) -> list[str]:
        """What keeps the service from being ready; empty if nothing does.

        A replica joins only after its golden messages came out right, so that each tier answers
        and that no replica is still coming up means that all of them have.
        """
        if self._answerer is None:
            return ["no release is routed yet"]
        release = self._answerer.release
        try:
            held = await _within(_READY_WAIT_S, _handle(release.app, CARD).ready.remote())
        except Exception as error:  # noqa: BLE001 - whatever keeps it from answering is the answer
            log.info("Not ready: %r", error)
            return [f"release {release.id}: a tier does not answer within {_READY_WAIT_S:g} s"]
        wanted = release.card["bundles"]
        return [
            f"release {release.id}: the {tier} holds another bundle than the policy's"
            for tier in wanted
            if held[tier] != wanted[tier]
        ]

    def release(self) -> Mapping[str, Any]:
        return self._current().release.card

    async def stats(self) -> Mapping[str, Any]:
        return _json(await self._monitor.ask("snapshot"))

    async def report(self) -> Mapping[str, Any]:
        return _json(await self._monitor.ask("report"))

    async def metrics(self) -> bytes:
        return bytes(await self._monitor.ask("prometheus"))


def _json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _handle(release: str, deployment: str) -> DeploymentHandle[Any]:
    # Unchecked: in `serve deploy` both applications start at once, and a call on a handle waits
    # until there is a replica.
    return serve.get_deployment_handle(
        deployment, app_name=release_app(release), _check_exists=False
    )


async def _within(timeout_s: float, response: Awaitable[T]) -> T:
    async with asyncio.timeout(timeout_s):
        return await response


def build_router(args: RouterArgs) -> serve.Application:
    """RouterArgs -> the router's application."""
    deployed = serve.deployment(
        name=ROUTER,
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus},
        # Serve would answer in a shape of its own beyond a bound; ours are the gatherers' queues
        # and the bytes held (api.py), which refuse in the one shape.
        max_ongoing_requests=4096,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
    )(serve.ingress()(Router))
    return deployed.bind(args)

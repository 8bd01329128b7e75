"""The wiring of Ray Serve: typed builders for the two kinds of application, and all their options.

    release-<id>        card (root, no route) ── edge, cloud       build_release(ReleaseArgs)
    firstline-router    router (route /)      ── handles by name   build_router(RouterArgs)

Which releases are routed is the router's `user_config` (traffic.Routed): an update of it alone
keeps every replica, and loads no model.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.bundles import MODEL, Role, read_manifest, warnings_of
from cluster.errors import ReleaseError
from cluster.releases import Release, list_releases, load_release
from cluster.settings import Settings, load_settings
from serve_app.decide.explain import load_alternatives
from serve_app.decide.policy import policy_of
from serve_app.deploy.config import ReleaseArgs, RouterArgs, TierConfig
from serve_app.deploy.names import CARD, LATEST, ROUTER, release_app
from serve_app.deploy.placement import actor_options
from serve_app.deploy.router import Router
from serve_app.tiers.autoscaling import by_lists
from serve_app.tiers.least_outstanding import LeastOutstanding
from serve_app.tiers.replica import Tier

_ROUTERS: Final = 8  # that may ask a tier at once
# An update starts as many new replicas as there are before it stops the old ones.
_SURGE_PERCENT: Final = 100
# How a tier scales. A replica works on one list at a time, so a second list on hand is one that
# waits; load has to last some seconds, because a replica takes as long to come up.
TARGET_LISTS: Final = 1.0  # on hand for each replica
_UPSCALE_DELAY_S: Final = 5.0
_LOOK_BACK_S: Final = 5.0  # load is a mean over this long
_METRICS_EVERY_S: Final = 1.0
POLICY: Final = f"{by_lists.__module__}:{by_lists.__name__}"
# A log line per request and per call costs a tenth of a router's time; the audit log has them all.
# Serve makes each line before it throws it away, unless the level says that nobody wants it.
_LOGGING: Final = {"enable_access_log": False, "log_level": "WARNING"}


class Card:
    """The root of a release's application: says what it is, and whether it can answer."""

    def __init__(
        self, card: dict[str, Any], edge: DeploymentHandle[Any], cloud: DeploymentHandle[Any]
    ) -> None:
        self._card = card
        self._tiers = {"edge": edge, "cloud": cloud}

    async def describe(self) -> dict[str, Any]:
        """The manifest, policy, certificate, prices, labels, warnings and hashes."""
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
    manifests = [read_manifest(path) for path in (release.edge_path, release.cloud_path)]
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
        "guard": None if release.guard is None else dict(release.guard),
        "alternatives": [item.model_dump() for item in load_alternatives(release.path)],
        "warnings": list(warnings_of(*manifests)),
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
    app: str, role: Role, path: Path, sha256: str, config: TierConfig, artifact: str = MODEL
) -> serve.Application:
    deployed = serve.deployment(
        name=role,
        ray_actor_options=actor_options(role, cpus=config.cpus, by_label=config.by_label),
        # The batchers bound what is out. A replica that refused a call, because it had its share,
        # would cost a pause and another call; these hold even if there are many routers.
        max_ongoing_requests=_ROUTERS * config.max_in_flight,
        max_queued_requests=_ROUTERS * config.max_in_flight,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        max_surge_percent=_SURGE_PERCENT,
        logging_config=_LOGGING,
        request_router_config={
            "request_router_class": LeastOutstanding,
            "request_router_kwargs": {"tier": f"{app}/{role}"},
        },
        autoscaling_config={
            "policy": {"policy_function": POLICY},
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": TARGET_LISTS,
            "upscale_delay_s": _UPSCALE_DELAY_S,
            "downscale_delay_s": config.downscale_delay_s,
            "look_back_period_s": _LOOK_BACK_S,
            "metrics_interval_s": _METRICS_EVERY_S,
        },
    )(Tier)
    return deployed.bind(str(path), sha256, threads=config.threads, artifact=artifact)


def build_release(args: ReleaseArgs) -> serve.Application:
    """ReleaseArgs -> the application of one release.

    Raises:
        ReleaseError: unknown, broken, or made of parts that do not fit.
    """
    release = _resolve(load_settings(args.home), args.release)
    card = serve.deployment(
        name=CARD, ray_actor_options={"num_cpus": 0}, max_surge_percent=_SURGE_PERCENT
    )(Card)
    manifest, app = release.manifest, release_app(args.release)
    edge, cloud = manifest.edge_sha256, manifest.cloud_sha256
    return card.bind(
        describe(release),
        _tier(app, "edge", release.edge_path, edge, args.edge, release.edge_artifact),
        _tier(app, "cloud", release.cloud_path, cloud, args.cloud),
    )


# ---- the router ---------------------------------------------------------------------------------


def build_router(args: RouterArgs) -> serve.Application:
    """RouterArgs -> the router's application."""
    deployed = serve.deployment(
        name=ROUTER,
        num_replicas=args.routers,
        # It sees messages before the guard has, so it stays where the edge may run.
        ray_actor_options=actor_options("edge", cpus=args.router_cpus, by_label=args.edge.by_label),
        # Serve would answer in a shape of its own beyond a bound; ours are the batchers' queues
        # and the bytes held (serve_app/http/routes.py), which refuse in the one shape.
        max_ongoing_requests=4096,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        max_surge_percent=_SURGE_PERCENT,
        logging_config=_LOGGING,
    )(serve.ingress()(Router))
    return deployed.bind(args)

"""Which release answers: promote, canary, shadow, rollback, and weights that adapt.

    promote, canary, shadow, rollback ─> route ─> release apps beside ─> one update of the router

One process at a time moves them, and what cannot come up leaves everything as it was.
"""

import contextlib
import logging
import time
from typing import Final

import numpy as np

from cluster.errors import ReleaseError, ServiceError
from cluster.releases import load_release
from cluster.settings import Settings
from serve_app.cascade import traffic
from serve_app.cascade.traffic import Routed
from serve_app.deploy.names import ROUTER_APP, release_app
from serve_app.service.adaptive import adapted
from serve_app.service.rollout import ask_monitor, connected, deploy, wait_ready, wait_running
from serve_app.service.state import WAIT_S, ServiceInfo, moving, write_info

log = logging.getLogger(__name__)

_LET_GO_S: Final = 5.0  # requests that began on a release end on it
_ADAPT_WAIT_S: Final = 15.0  # less than `stop` waits before it kills


def promote(settings: Settings, release_id: str, wait_s: float = WAIT_S) -> ServiceInfo:
    """All traffic to one release, without a refused request. Ends a canary; shadows stay.

    The champion before stays up, for an instant way back.

    Raises: as `route`.
    """
    load_release(settings, release_id)
    with moving(settings) as info:
        return _route(settings, info, traffic.only(release_id, info.routed), wait_s)


def canary(
    settings: Settings,
    release_id: str,
    share: float,
    *,
    adaptive: bool = False,
    wait_s: float = WAIT_S,
) -> ServiceInfo:
    """A share of the users to a release, the others to the champion; replaces another canary.

    Raises:
        ConfigError: not a share, or the release is the champion.
        ServiceError: as `route`; or `adaptive` where no keeper runs that would move the weights.
    """
    with moving(settings) as info:
        if adaptive and info.keeper_pid is None:
            raise ServiceError(
                "Weights are moved by the keeper that `firstline serve` starts; this service runs "
                f"on the cluster at {info.ray_address}, which has none. Leave --adaptive out."
            )
        routed = traffic.split(info.release, release_id, share, info.routed, adaptive)
        return _route(settings, info, routed, wait_s)


def shadow(settings: Settings, release_id: str | None, wait_s: float = WAIT_S) -> ServiceInfo:
    """A release sees every message and never answers; replaces another shadow. None: no shadow.

    Raises:
        ServiceError: as `route`; or the release answers already.
    """
    with moving(settings) as info:
        if release_id in info.routed.releases:
            raise ServiceError(
                f"{release_id} answers {info.routed.releases[release_id]:.0%} of the traffic; a "
                "shadow answers nothing. Take it out first, or choose another release."
            )
        wanted = () if release_id is None else (release_id,)
        routed = info.routed.model_copy(update={"shadow": wanted})
        return _route(settings, info, routed, wait_s)


def rollback(settings: Settings, wait_s: float = WAIT_S) -> ServiceInfo:
    """Takes the canary out; without one, all traffic goes to the champion before.

    Raises:
        ReleaseError: there is neither.
        ServiceError: as `route`.
    """
    with moving(settings) as info:
        target = info.release if len(info.routed.releases) > 1 else info.previous
        if target is None:
            raise ReleaseError(
                "There is nothing to roll back to: no release answered before the present one."
            )
        return _route(settings, info, traffic.only(target, info.routed), wait_s)


def route(settings: Settings, routed: Routed, wait_s: float = WAIT_S) -> ServiceInfo:
    """Makes the running service answer as `routed` says, without a refused request.

    The releases that are new come up beside those that run, and nothing is sent to one until its
    golden messages came out right on every replica. Then the router is told by one update. What is
    no longer named goes, except for the champion before.

    Raises:
        ReleaseError: a release cannot be served.
        ServiceError: no service is running, somebody else is moving it, or a release does not come
            up; then nothing moved.
    """
    with moving(settings) as info:
        return _route(settings, info, routed, wait_s)


def _route(settings: Settings, info: ServiceInfo, routed: Routed, wait_s: float) -> ServiceInfo:
    for release_id in routed.named:
        load_release(settings, release_id)
    previous = info.previous if routed.champion == info.release else info.release
    moved = info.model_copy(update={"routed": routed, "previous": previous})
    with connected(settings, info):
        _bring_up(settings, info, moved, wait_s)
        write_info(settings, moved)
        if set(info.up) - set(moved.up):
            time.sleep(_LET_GO_S)
        deploy(settings, moved.config, moved.up, routed)
    return moved


def _bring_up(settings: Settings, info: ServiceInfo, moved: ServiceInfo, wait_s: float) -> None:
    """Both the old and the new releases up, and the router on the new; or all as it was."""
    new = [name for name in moved.up if name not in info.up]
    both = [*info.up, *new]
    try:
        if new:
            deploy(settings, info.config, both, info.routed)
        for name in new:
            wait_running(release_app(name), wait_s)
        deploy(settings, info.config, both, moved.routed)
        wait_running(ROUTER_APP, wait_s)
        wait_ready(moved, wait_s)
    except BaseException:  # Ctrl-C too: what runs must be what service.json says
        with contextlib.suppress(Exception):  # the first cause is the one to tell
            deploy(settings, info.config, info.up, info.routed)
        raise


def adapt(
    settings: Settings, rng: np.random.Generator, wait_s: float = _ADAPT_WAIT_S
) -> ServiceInfo | None:
    """One step of an adaptive canary's weights after the feedback; None if they stay.

    Raises: as `route`; and what Ray raises for a monitor that does not answer.
    """
    with moving(settings) as info:
        if not info.routed.adaptive:
            return None
        with connected(settings, info):
            routed = adapted(info.routed, ask_monitor(), rng)
        return _route(settings, info, routed, wait_s) if routed else None


def try_adapt(settings: Settings, rng: np.random.Generator) -> None:
    try:
        if moved := adapt(settings, rng):
            log.info("The weights follow the feedback: %s", moved.routed.releases)
    except Exception as error:  # noqa: BLE001 - open on failure: they stay, and the service runs
        log.warning("The weights stay as they are: %r", error)

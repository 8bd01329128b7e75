"""The router's replica, without Serve: what it makes of what is routed."""

from types import SimpleNamespace
from typing import cast

from serve_app.cascade.answerer import Answerer
from serve_app.cascade.traffic import Traffic, split
from serve_app.deploy.router import Router, _Routing
from serve_app.monitor.windows import Compared


def answerer(release: str) -> Answerer:
    """As much of one as says which release it is."""
    made = SimpleNamespace(release=SimpleNamespace(id=release, card={"id": release}))
    return cast(Answerer, made)


def routing(share: float) -> _Routing:
    """The names are those of the router's config, of which `latest` is no id."""
    routed = split("latest", "r-2", share)
    answerers = {"latest": answerer("r-1"), "r-2": answerer("r-2")}
    return _Routing(Traffic(routed, b"k" * 32), answerers)


def test_a_canary_above_one_half_is_not_what_the_router_calls_the_champion() -> None:
    """It was the larger weight: jobs and `/v1/release` followed the canary."""
    made = routing(0.9)
    router = cast(Router, SimpleNamespace(_routed=lambda: made))
    assert Router._champion_id(router) == "r-1", "of new jobs"
    assert made.compared == Compared("r-1", ("r-2",)), "of the comparison"
    found = Router.release(router)
    assert found["id"] == "r-1"
    assert set(found["routed"]["weights"]) == {"r-1", "r-2"}

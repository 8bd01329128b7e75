"""Our service as the bench and the chaos tests start it: a home of its own, and what is let off.

Nothing is taken out of the path: keys, limits, abuse rules, guard, audit and metrics all run. What
a peer has not, the response cache, is off, and the limits stand where no load reaches them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cluster.settings import Settings
from serve_app.access.abuse import AbuseConfig, AbuseRule
from serve_app.access.rate_limits import RateConfig
from serve_app.cascade.cache import CacheConfig
from serve_app.deploy.config import ServeConfig
from serve_app.service import lifecycle
from serve_app.service.state import ServiceInfo
from tests.support.waiting import free_port

PATH: Final = "/v1/classify"
_NO_END: Final = 10**9
_NEVER: Final = AbuseRule(allowed_share=0.0, leak_per_s=1.0, slow_at=_NO_END, block_at=_NO_END)


def config(**changes: Any) -> ServeConfig:
    """The defaults on a free port, but for what is let off, and for `changes`."""
    let_off = {
        "cache": CacheConfig(enabled=False),
        "rates": RateConfig(requests_per_min=_NO_END, texts_per_min=_NO_END),
        "abuse": AbuseConfig(flood=_NEVER, sweep=_NEVER, garbage=_NEVER),
    }
    return ServeConfig.model_validate({"port": free_port(), **let_off, **changes})


@contextmanager
def serving(settings: Settings, release: str, config: ServeConfig) -> Iterator[ServiceInfo]:
    """The service while the block lasts; nothing of it is left after."""
    info = lifecycle.start(settings, release, config)
    try:
        yield info
    finally:
        lifecycle.stop(settings)

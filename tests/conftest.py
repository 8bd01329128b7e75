"""What every test may use."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings

# Tests run side by side, so how long an example takes says nothing of the code.
settings.register_profile(
    "side by side", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("side by side")

pytest_plugins = ["tests.support.redis_server"]


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, as the service does."""
    return "asyncio"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """With `--dist loadgroup`, whatever names no group is in one: services share their ports and
    their patience, so they run one after the other."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("one after the other"))

"""What every test may use."""

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

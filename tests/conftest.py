"""What every test may use."""

import pytest

pytest_plugins = ["tests.support.redis_server"]


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, as the service does."""
    return "asyncio"

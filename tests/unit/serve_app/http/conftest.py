"""What the tests of the HTTP surface share."""

import pytest

from tests.support.http_service import StubService


@pytest.fixture
def service() -> StubService:
    return StubService()

"""What holds for every module that starts Ray."""

import os
from collections.abc import Iterator

import pytest

from cluster.ray_private.auth import MODE, PATH
from cluster.ray_private.environment import kept


@pytest.fixture(scope="module", autouse=True)
def token_of_its_own() -> Iterator[None]:
    """`ray.init` leaves variables of its token, which a service would take for a user's."""
    with kept(MODE, PATH):
        for name in (MODE, PATH):
            os.environ.pop(name, None)
        yield

"""The token that this process shows to a Ray cluster.

Both variables are documented. Ray reads them when it is imported and keeps what it read, and has no
public way to be told of another token: public would be an argument of ray.init.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cluster.ray_private.environment import kept

MODE: Final = "RAY_AUTH_MODE"
PATH: Final = "RAY_AUTH_TOKEN_PATH"


def use_token(path: Path | None) -> None:
    """Lets this process, and those that it starts, speak with the cluster of that token."""
    if path is None:
        return
    os.environ[MODE] = "token"
    os.environ[PATH] = str(path)
    _read_again()


@contextmanager
def using_token(path: Path | None) -> Iterator[None]:
    """`use_token`, for as long as the block takes: what is started afterwards does not get it."""
    try:
        with kept(MODE, PATH):
            use_token(path)
            yield
    finally:
        if path is not None:
            _read_again()


def _read_again() -> None:
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    # ray.init refreshes both this way too, in this order.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()

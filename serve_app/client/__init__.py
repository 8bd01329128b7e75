"""The Python client, sync and async: `from serve_app.client import Firstline`. Every error that it
raises is one of those here, and the tree is in exchange.py.
"""

from serve_app.client.calls import Answer
from serve_app.client.client import AsyncFirstline, Firstline
from serve_app.client.exchange import (
    RateLimitedError,
    ResponseError,
    Retries,
    TimedOutError,
    Timeouts,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)

__all__ = [
    "Answer",
    "AsyncFirstline",
    "Firstline",
    "RateLimitedError",
    "ResponseError",
    "Retries",
    "TimedOutError",
    "Timeouts",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
]

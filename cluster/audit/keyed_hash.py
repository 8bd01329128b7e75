"""A text -> its keyed hash, all that is ever written of it; and the key, made once."""

import logging
import os
import secrets
import stat
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from cluster.errors import ConfigError

log = logging.getLogger(__name__)

_MIN_KEY_BYTES: Final = 16
_MAX_KEY_BYTES: Final = 64  # blake2b takes no longer key


class TextHasher:
    """text -> 32 hex characters, the same for the same text and key (blake2b, keyed).

    Keyed, because messages are short: without the key, a plain hash of every likely message could
    be compared with the log.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) < _MIN_KEY_BYTES:
            raise ConfigError(
                f"The key of the audit log has {len(key)} bytes, and needs at least "
                f"{_MIN_KEY_BYTES}: set FIRSTLINE_AUDIT_KEY to a longer one, or leave it empty to "
                "have one made."
            )
        self._key = key if len(key) <= _MAX_KEY_BYTES else blake2b(key).digest()

    def __call__(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        return blake2b(data, digest_size=16, key=self._key).hexdigest()

    def __repr__(self) -> str:
        return "TextHasher(key=**********)"


def load_key(path: Path, given: SecretStr | str = "") -> bytes:
    """The given key, or the one kept at `path`, made on the first call (mode 0600).

    Of several processes that make one at the same time, one wins and all return the winner's.

    Raises:
        ConfigError: the file can be read by other users, or cannot be read or made.
    """
    secret = given.get_secret_value() if isinstance(given, SecretStr) else given
    if secret:
        return secret.encode()
    try:
        if not path.exists():
            _make_key(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(
                f"The audit key {path} can be read by other users. Run: chmod 600 {path}"
            )
        return path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"The audit key {path} cannot be read or made ({error.strerror}). Make its folder "
            "writable, or set FIRSTLINE_AUDIT_KEY."
        ) from error


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: it fails where a key is, so the first of several processes wins.
        path.hardlink_to(name)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()

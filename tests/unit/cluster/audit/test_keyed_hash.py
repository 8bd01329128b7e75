"""The keyed hash of a text, and the key that is made once."""

import multiprocessing
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.audit import keyed_hash
from cluster.audit.keyed_hash import TextHasher, load_key
from cluster.errors import ConfigError


def test_the_hash_depends_on_text_and_key() -> None:
    hasher = TextHasher(b"k" * 32)
    assert hasher("where is my parcel") == TextHasher(b"k" * 32)("where is my parcel")
    assert hasher("where is my parcel") != hasher("where is my parcel?")
    assert hasher("where is my parcel") != TextHasher(b"l" * 32)("where is my parcel")
    assert len(bytes.fromhex(hasher("\ud800 lone surrogate"))) == 16


def test_a_long_key_counts_to_its_last_byte() -> None:
    assert TextHasher(b"k" * 100 + b"a")("text") != TextHasher(b"k" * 100 + b"b")("text")


def test_a_short_key_is_refused() -> None:
    # blake2b takes an empty key for no key at all, and hashes anyone could make.
    with pytest.raises(ConfigError, match="at least 16"):
        TextHasher(b"")


def test_the_key_is_not_shown() -> None:
    assert "secretsecretsecret" not in repr(TextHasher(b"secretsecretsecret"))


def test_a_given_key_is_used_and_nothing_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert load_key(path, SecretStr("a key of one's own")) == b"a key of one's own"
    assert not path.exists()


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "key"
    key = load_key(path, SecretStr(""))
    assert load_key(path) == key
    assert len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    load_key(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(path)


def test_the_second_maker_of_a_key_takes_the_first_ones(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = load_key(path)
    keyed_hash._make_key(path)  # a process that saw no file a moment ago
    assert load_key(path) == key


def _race(path: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(load_key(path))


def test_processes_that_race_for_a_key_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    racers = [
        context.Process(target=_race, args=(tmp_path / "key", barrier, results)) for _ in range(6)
    ]
    for racer in racers:
        racer.start()
    keys = {results.get(timeout=30) for _ in racers}
    for racer in racers:
        racer.join()
    assert keys == {load_key(tmp_path / "key")}

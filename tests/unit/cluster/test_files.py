"""Whole or nothing: whatever fails in between, a reader sees the old state or the new one."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.files import new_folder, read_json, sha256_file, sha256_json, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Unplugged(BaseException):
    """Stands for Ctrl-C and its like, which are no Exceptions."""


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(target.parent) == ["target"]


@pytest.mark.parametrize("failure", [RuntimeError, Unplugged])
def test_a_failure_inside_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "target") as folder:
            (folder / "a").write_text("half")
            raise failure

    with pytest.raises(failure):
        fill()
    assert names(tmp_path) == []


def test_a_failure_inside_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def fill(name: str, failure: BaseException | None = None) -> None:
        with new_folder(target) as folder:
            (folder / name).write_text(name)
            if failure is not None:
                raise failure

    fill("old")
    with pytest.raises(Unplugged):
        fill("new", Unplugged())
    assert names(target) == ["old"]
    assert names(tmp_path) == ["target"]


def test_a_folder_replaces_an_old_one_with_nothing_of_it_left(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for name in ("old", "new"):
        with new_folder(target) as folder:
            (folder / name).write_text(name)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["target"]


def test_an_old_folder_that_cannot_be_emptied_does_not_stop_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one used to be deleted in place, so a failure in the middle left half of it."""
    target = tmp_path / "target"
    with new_folder(target) as folder:
        (folder / "old").write_text("1")

    def stuck(*_: object, ignore_errors: bool = False, **__: object) -> None:
        if not ignore_errors:
            raise OSError("busy")

    with new_folder(target) as folder:
        (folder / "new").write_text("2")
        monkeypatch.setattr("cluster.files.shutil.rmtree", stuck)
    assert names(target) == ["new"]


def test_others_may_read_what_was_made(tmp_path: Path) -> None:
    """A scratch folder of mkdtemp is for its owner alone; a replica may run as another user."""
    with new_folder(tmp_path / "target"):
        pass
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755


def test_a_text_is_written_whole_in_place_of_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    write_text(file, "old")
    write_text(file, "naïve ☂\n")
    assert file.read_bytes() == "naïve ☂\n".encode()
    assert names(file.parent) == ["file"]


def test_a_text_that_cannot_be_encoded_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "new \ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_value_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert names(tmp_path) == []


FULL = """
    import resource, sys
    from pathlib import Path
    from cluster.files import new_folder, write_text

    root = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        if sys.argv[2] == "text":
            write_text(root / "file", "x" * 20_000)
        else:
            with new_folder(root / "folder") as folder:
                (folder / "small").write_text("fits")
                (folder / "large").write_bytes(b"x" * 20_000)
    except OSError as error:
        print(error.strerror)
        raise SystemExit(3)
"""


@pytest.mark.parametrize("kind", ["text", "folder"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, kind: str) -> None:
    """A limit on the size of files makes a real write fail in the middle, as a full disk does."""
    write_text(tmp_path / "file", "old")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "old").write_text("1")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path), kind],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (3, "File too large"), done.stderr
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "folder") == ["old"]


@given(JSON)
def test_json_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    file = tmp_path_factory.getbasetemp() / "value.json"
    write_json(file, value)
    assert read_json(file) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_a_hash_of_json_knows_no_order_of_keys(value: dict[str, int]) -> None:
    assert sha256_json(dict(reversed(value.items()))) == sha256_json(value)
    assert sha256_json({**value, "one more": 1}) != sha256_json(value) or "one more" in value


def test_a_hash_of_a_file_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")

"""The command line: what a user can get wrong is a paragraph and exit code 2, never a traceback.

Ray is not started here: `conftest` makes that fail, so each of these is refused before it would be.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cluster.bundles import MANIFEST as BUNDLE_MANIFEST
from cluster.bundles import ModelBundle, write_bundle
from cluster.cli import _submitted, _with_absolute_paths, app
from cluster.registry import champion, promote, register_bundle, register_release
from cluster.releases import MANIFEST, Release, store_bundle
from cluster.settings import Settings
from tests.serving import Pair, make_pair, make_release
from train_jobs.data import DataConfig, Dataset, build
from train_jobs.samples import write_csv


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, what it printed, and the paragraph on stderr."""

    code: int
    out: str
    error: str


def firstline(*words: str | Path) -> Said:
    result = CliRunner().invoke(app, [str(word) for word in words])
    unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
    assert not unexpected, repr(result.exception)
    return Said(result.exit_code, result.stdout, result.stderr)


def refused(said: Said, *words: str) -> None:
    assert said.code == 2, said
    assert said.out == ""
    assert "Traceback" not in said.error
    for word in words:
        assert word in said.error


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    write_csv(tmp_path / "messages.csv", 400, seed=1)
    return tmp_path / "messages.csv"


# -- help -----------------------------------------------------------------------------------------


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = sorted(commands(typer.main.get_command(app)))


def test_the_commands_are_those_that_were_promised() -> None:
    assert {" ".join(words) for words in COMMANDS} == {
        "train", "tune", "serve", "classify", "report", "status", "stop", "demo",
            "compact",
        "releases list", "releases show", "releases promote", "releases rollback",
    }  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...]) -> None:
    said = firstline(*words, "--help")
    assert said.code == 0
    assert f"Example: firstline {' '.join(words)}" in said.out


@pytest.mark.parametrize(
    "words",
    [["tarin"], ["train"], ["train", "--data"], ["tune", "--trials", "many"],
     ["serve", "--port", "99999"], ["train", "--data", "m.csv", "--num-workers", "0"],
     ["releases", "promote"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_word_is_a_usage_error(words: list[str]) -> None:
    refused(firstline(*words), "Error: ")


def test_a_wrong_environment_is_a_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLINE_SEDE", "1")
    for words in (["status"], ["releases", "list"], ["train", "--data", "m.csv"]):
        refused(firstline(*words), "firstline: The environment has FIRSTLINE_SEDE")


def test_the_installed_command_ends_with_2_and_no_traceback(home: Path) -> None:
    """As a shell sees it, imports and all."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "report"],
        env={**os.environ, "FIRSTLINE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("firstline: There is no release in")


# -- train ----------------------------------------------------------------------------------------


BAD_FILES = {
    "empty": (b"", "has no rows"),
    "no text": (b"text,label\n,positive\n", "line 2: the text is empty"),
    "one class": (b"text,label\n" + b"".join(b"m%d,a\n" % i for i in range(30)), "one class only"),
    "few rows": (
        b"text,label\n" + b"".join(b"m%d,a\nn%d,b\n" % (i, i) for i in range(9)),
        "fewer than 10 distinct rows",
    ),
    "broken row": (b"text,label\na,b,c\n", "line 2: 3 fields were found, 2 expected"),
    "encoding": ("text,label\ndéjà vu,a\n".encode("latin-1"), "is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_train_refuses_a_bad_file_and_leaves_nothing(name: str, tmp_path: Path, home: Path) -> None:
    content, said = BAD_FILES[name]
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    refused(firstline("train", "--data", file), f"firstline: {file}", said)
    assert not home.exists() or not any(home.rglob("*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text-column", "body"], "no column 'body'. Found: text, label"),
        (["--test", "gone.csv"], "There is no file gone.csv"),
        (["--unlabelled", "gone.csv"], "There is no file gone.csv"),
        (["--limits", "gone.json"], "There is no file gone.json"),
        (["--student-layers", "99"], "99 layers cannot be taken from a teacher of 6"),
        (["--epochs", "0"], "--epochs is 0.0; a number above zero"),
        (["--base", "."], "The base model '.' cannot be read"),
    ],
)
def test_train_refuses_a_bad_option_before_any_work(
    messages: Path, home: Path, options: list[str], said: str
) -> None:
    refused(firstline("train", "--data", messages, *options), said)
    assert not home.exists() or not any(home.rglob("*"))


def test_train_refuses_a_missing_file(tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    refused(firstline("train", "--data", gone), f"There is no file {gone}")


def test_a_home_that_cannot_be_written_is_a_paragraph(
    messages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FIRSTLINE_HOME", str(tmp_path / "file" / "home"))
    refused(firstline("train", "--data", messages), "Not a directory")


# -- tune -----------------------------------------------------------------------------------------


@pytest.fixture
def dataset(settings: Settings, messages: Path) -> Dataset:
    return build(DataConfig(data=messages), settings)


def _of(bundle: ModelBundle, dataset: Dataset) -> ModelBundle:
    """The toy bundle as one that was trained on this dataset."""
    card = bundle.manifest
    return write_bundle(
        bundle.path.with_name(f"{card.role}-trained"), role=card.role, model=bundle.model_path,
        tokenizer=bundle.tokenizer_path, labels=card.labels, temperature=1.0, max_tokens=64,
        dataset=dataset.ref, metrics=card.metrics, recipe={}, golden=bundle.golden(),
    )  # fmt: skip


@pytest.fixture
def trained(settings: Settings, dataset: Dataset, tmp_path: Path) -> Pair:
    """What `firstline train` leaves behind, of a toy pair."""
    made = make_pair(tmp_path / "made")
    made = Pair(_of(made.edge, dataset), _of(made.cloud, dataset))
    pair = Pair(store_bundle(settings, made.edge), store_bundle(settings, made.cloud))
    for bundle in (pair.edge, pair.cloud):
        register_bundle(settings, bundle)
    write_run(settings, pair, dataset)
    return pair


def write_run(settings: Settings, pair: Pair, dataset: Dataset) -> None:
    (settings.home / "run.json").write_text(json.dumps({
        "dataset": str(dataset.path), "stages_s": {},
        "edge": {"path": str(pair.edge.path), "sha256": pair.edge.sha256},
        "cloud": {"path": str(pair.cloud.path), "sha256": pair.cloud.sha256},
    }))  # fmt: skip


def test_tune_before_train_says_what_to_do() -> None:
    refused(firstline("tune"), "Nothing was trained", "Run `firstline train`")


def test_tune_says_how_many_rows_a_risk_needs(trained: Pair, dataset: Dataset) -> None:
    refused(
        firstline("tune", "--risk", "0.01"),
        f"'certify' has {dataset.rows['certify']} rows", "needs at least 299", "at best",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--risk", "2"], "The risk is 2.0; it has to lie between 0 and 1"),
        (["--risk", "nan"], "The risk is nan"),
        (["--confidence", "1"], "The confidence is 1.0"),
        (["--edge-usd", "0"], "Prices must be above zero and finite; --edge-usd is 0.0"),
        (["--cloud-usd", "nan"], "--cloud-usd nan"),
        (["--cloud-usd", "inf"], "--cloud-usd inf"),
    ],
)
def test_tune_refuses_a_target_that_makes_no_sense(
    trained: Pair, options: list[str], said: str
) -> None:
    refused(firstline("tune", *options), said)


def test_tune_refuses_a_corrupted_bundle(trained: Pair) -> None:
    trained.edge.model_path.write_bytes(trained.edge.model_path.read_bytes() + b"x")
    refused(firstline("tune", "--risk", "0.2"), "is corrupted: model.onnx")


def test_tune_refuses_a_pair_that_no_gate_has_passed(
    settings: Settings, dataset: Dataset, trained: Pair
) -> None:
    unknown = replace(trained, edge=replace(trained.edge, sha256="e" * 64))
    write_run(settings, unknown, dataset)
    refused(firstline("tune"), "No edge bundle eeeeeeeeeeee is registered", "firstline train")


def test_tune_refuses_a_pair_of_another_dataset(
    settings: Settings, dataset: Dataset, trained: Pair, tmp_path: Path
) -> None:
    """Rows to certify on could be rows that the pair was trained on."""
    other = replace(dataset, fingerprint="f" * 64, path=tmp_path / "other")
    shutil.copytree(dataset.path, other.path)
    manifest = json.loads((other.path / "dataset.json").read_text())
    (other.path / "dataset.json").write_text(json.dumps({**manifest, "fingerprint": "f" * 64}))
    write_run(settings, trained, other)
    refused(firstline("tune", "--risk", "0.2"), "was trained on the dataset", "not on ffffffffffff")


def test_tune_refuses_a_run_file_or_dataset_that_is_broken(
    settings: Settings, dataset: Dataset, trained: Pair
) -> None:
    (dataset.path / "dataset.json").unlink()
    refused(firstline("tune"), "is not a finished dataset")
    (settings.home / "run.json").write_text("{")
    refused(firstline("tune"), "run.json cannot be read", "firstline train")


# -- releases, report -----------------------------------------------------------------------------


@pytest.fixture
def released(settings: Settings, tmp_path: Path) -> list[Release]:
    """Two registered releases, the first promoted, then the second."""
    pair = make_pair(tmp_path / "made")
    for bundle in (pair.cloud, pair.edge):
        register_bundle(settings, store_bundle(settings, bundle))
    made = [make_release(settings, pair.edge, pair.cloud, threshold=t) for t in (0.9, 0.8)]
    for release in made:
        register_release(settings, release)
        promote(settings, release.id)
    return made


def test_releases_without_any(settings: Settings) -> None:
    assert firstline("releases", "list", "--json").out == "[]\n"
    assert "Run `firstline tune`" in firstline("releases", "list").error
    refused(firstline("releases", "rollback"), "nothing to roll back to")
    refused(firstline("report"), "There is no release in", "Run `firstline tune`")
    refused(firstline("serve"), "There is no release in")


@pytest.mark.parametrize("words", [["releases", "show"], ["releases", "promote"],
                                   ["report", "--release"], ["serve", "--release"]],
                         ids=" ".join)  # fmt: skip
def test_an_unknown_release_is_refused_and_the_known_are_named(
    released: list[Release], words: list[str]
) -> None:
    refused(firstline(*words, "r-unknown"), "no release 'r-unknown'", released[0].id)


def test_releases_are_listed_for_people_and_programs(released: list[Release]) -> None:
    first, second = firstline("releases", "list").out.splitlines()
    assert first.startswith(f"  {released[0].id}  risk 1.00% at 95%")
    assert second.startswith(f"* {released[1].id}")
    found = json.loads(firstline("releases", "list", "--json").out)
    assert [(item["id"], item["champion"]) for item in found] == [
        (released[0].id, False),
        (released[1].id, True),
    ]


def test_a_release_is_shown_whole(released: list[Release]) -> None:
    shown = json.loads(firstline("releases", "show", released[0].id).out)
    assert set(shown) == {"manifest", "policy", "certificate", "prices"}
    assert shown["policy"] == released[0].policy


def test_promote_and_rollback_move_the_champion(
    settings: Settings, released: list[Release]
) -> None:
    first, second = (release.id for release in released)
    assert firstline("releases", "rollback").code == 0
    assert champion(settings) == first
    assert firstline("releases", "promote", second).code == 0
    assert champion(settings) == second


def test_a_policy_of_another_release_is_refused_everywhere(
    settings: Settings, released: list[Release]
) -> None:
    """Swapped on the disk, hashes and all."""
    made = released[0]
    manifest = json.loads((made.path / MANIFEST).read_text())
    (made.path / MANIFEST).write_text(json.dumps({**manifest, "cloud_sha256": "f" * 64}))
    for words in (["releases", "promote"], ["serve", "--release"], ["report", "--release"]):
        refused(firstline(*words, made.id), "A policy runs only with the models it was certified")
    assert champion(settings) == released[1].id


def test_a_bundle_that_is_gone_is_refused_before_anything_starts(
    settings: Settings, released: list[Release]
) -> None:
    (released[1].edge_path / BUNDLE_MANIFEST).unlink()
    refused(firstline("serve"), "not a finished model bundle")


# -- serve, classify, status, stop ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be used"), ('{"surprise": 1}', "surprise"), ("[]", "cannot be used"),
     (None, "There is no file")],
)  # fmt: skip
def test_serve_refuses_options_that_it_does_not_know(
    released: list[Release], tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "serve.json"
    if content is not None:
        file.write_text(content)
    refused(firstline("serve", "--config", file), said, str(file))


def test_serve_refuses_a_port_that_is_taken(released: list[Release]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for detach in ((), ("--detach",)):
            said = firstline("serve", "--port", str(port), *detach)
            refused(said, f"Port {port} on 127.0.0.1 is taken")


def test_classify_wants_texts_or_a_file(messages: Path) -> None:
    refused(firstline("classify"), "Give texts, or a file with --file, and not both")
    refused(firstline("classify", "a text", "--file", messages), "not both")


def test_classify_refuses_a_bad_file_or_no_service(messages: Path, tmp_path: Path) -> None:
    refused(firstline("classify", "--file", tmp_path / "gone.csv"), "There is no file")
    refused(firstline("classify", "--file", messages, "--text-column", "x"), "no column 'x'")
    refused(firstline("classify", "a text"), "No service is running", "firstline serve")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[", "nonsense"])
def test_classify_refuses_a_url_without_a_service(url: str) -> None:
    refused(firstline("classify", "a text", "--url", url), f"No answer from {url}")


def test_nothing_runs_and_nothing_is_stopped() -> None:
    assert firstline("status").out == "No service is running.\n"
    assert json.loads(firstline("status", "--json").out)["running"] is False
    assert firstline("stop").error == "No service was running.\n"


# -- as a job -------------------------------------------------------------------------------------


def test_submit_sends_the_same_words_with_absolute_paths(
    settings: Settings, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[str]] = []
    monkeypatch.chdir(messages.parent)

    def taken(words: list[str], settings: Settings) -> int:
        sent.append(words)
        return 0

    monkeypatch.setattr("cluster.jobs.submit", taken)
    words = ["train", "--data", "messages.csv", "--submit", "--label-column", "label"]
    monkeypatch.setattr(sys, "argv", ["firstline", *words])
    with pytest.raises(typer.Exit) as ended:
        _submitted(settings)
    assert ended.value.exit_code == 0
    assert sent == [["train", "--data", str(messages), "--label-column", "label"]]


def test_only_the_values_of_path_options_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`firstline tune --submit` from our own root sent the path of the folder `tune`."""
    monkeypatch.chdir(tmp_path)
    for name in ("tune", "label", "data.csv"):
        (tmp_path / name).touch()
    assert _with_absolute_paths(["tune", "--risk", "0.01"]) == ["tune", "--risk", "0.01"]
    words = ["train", "--data=data.csv", "--label-column", "label", "--base", "some/hub-id"]
    assert _with_absolute_paths(words) == [
        "train", f"--data={tmp_path / 'data.csv'}", "--label-column", "label", "--base",
        "some/hub-id",
    ]  # fmt: skip


def test_submit_without_a_cluster_is_a_paragraph(
    messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["firstline", "train", "--data", str(messages), "--submit"])
    refused(firstline("train", "--data", messages, "--submit"), "ray start --head")

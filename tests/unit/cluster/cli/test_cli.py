"""The command line: what a user can get wrong is a paragraph and exit code 2, never a traceback.

Ray is not started here: `conftest` makes that fail, so each of these is refused before it would be.
"""

import asyncio
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cluster.audit.records import AuditRecord
from cluster.audit.write import AuditLog
from cluster.bundles import MANIFEST as BUNDLE_MANIFEST
from cluster.bundles import ModelBundle, load_bundle, write_bundle
from cluster.cli import app
from cluster.cli.terminal import submitted, with_absolute_paths
from cluster.registry import champion, promote, register_bundle, register_release
from cluster.releases import MANIFEST, Release, store_bundle
from cluster.settings import Settings
from serve_app.contracts import Route
from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy, decide, policy_of
from serve_app.decide.scores import MaxProbability
from serve_app.decide.signals import signals
from serve_app.guard.prepare import prepare
from serve_app.http.routes import create_api
from serve_app.model.classifier import OnnxClassifier
from tests.support.http_server import serving
from tests.support.http_service import StubService
from tests.support.serving import Pair, make_pair, make_release
from tests.support.toys import traffic
from tests.support.waiting import wait_for
from train_jobs.data import DataConfig, Dataset, build
from train_jobs.samples.generator import write_csv
from tune.certificate.recertify import USED
from tune.objective import FrontPoint, Shape, evaluate
from tune.release import TuneConfig
from tune.replay import Table
from tune.sweep.search import SweepResult


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
        "train", "tune", "certify", "replay", "report", "serve", "classify", "explain", "status",
        "stop", "compact", "demo",
        "releases list", "releases show", "releases promote", "releases rollback",
        "releases canary", "releases shadow", "keys add", "keys list", "keys revoke", "score",
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
     ["releases", "promote"], ["certify"], ["replay"], ["explain"]],
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
    "broken row": (b"text,label\na,b,c\n", "line 2: 3 fields, 2 expected"),
    "encoding": ("text,label\ndéjà vu,a\n".encode("latin-1"), "line 2: not UTF-8"),
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
    return as_trained(settings, dataset, tmp_path)


def as_trained(settings: Settings, dataset: Dataset, folder: Path) -> Pair:
    """Registers a toy pair as one that was trained on the dataset, and writes run.json."""
    made = make_pair(folder / "made")
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


def write_messages(path: Path, texts: Sequence[str], labels: Sequence[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(zip(texts, labels, strict=True))
    return path


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
        (["--max-risk", "nan"], "--max-risk is nan: "),
        (["--min-agreement", "1"], "The agreement is 1.0; it has to lie between 0 and 1"),
        (["--max-cloud-share", "0.1", "--max-accuracy-loss", "0"], "The accuracy loss is 0.0"),
        (["--max-cost-usd", "inf"], "--max-cost-usd is inf: "),
        (["--confidence", "1"], "The confidence is 1.0"),
        (["--edge-usd", "0"], "Prices must be above zero and finite; --edge-usd is 0.0"),
        (["--cloud-usd", "nan"], "--cloud-usd is nan"),
        (["--cloud-usd-per-s", "-1"], "--cloud-usd-per-s is -1.0"),
        (["--edge-usd", "1", "--edge-usd-per-s", "1"], "--edge-usd and --edge-usd-per-s are both"),
        (["--max-cost-usd", "0.0005"], "--max-cost-usd is 0.0005, and --edge-usd 0.001"),
        (["--max-words", "-1"], "--max-words is -1: "),
        (["--max-distance", "nan"], "--max-distance is nan: "),
        (["--always-escalate", "card_arrival", "--never-escalate", "card_arrival"],
         "never_escalate and always_escalate both name ['card_arrival']"),
        (["--always-escalate", "card_arival"], "the classes ['card_arival'], which the models"),
        (["--per-class", "--min-agreement", "0.9"], "--per-class needs --max-risk and no other"),
        (["--strict", "--max-cloud-share", "0.5"], "--per-class needs --max-risk and no other"),
    ],
)  # fmt: skip
def test_tune_refuses_what_nothing_can_meet_and_leaves_nothing(
    settings: Settings, trained: Pair, options: list[str], said: str
) -> None:
    before = sorted(settings.home.rglob("*"))
    refused(firstline("tune", *options), said)
    assert sorted(settings.home.rglob("*")) == before


def test_a_cost_by_the_second_is_refused_when_it_is_known_and_before_ray(
    settings: Settings, toys: Pair
) -> None:
    priced = ("--edge-usd-per-s", "1000", "--max-cost-usd", "0.001")
    said = firstline("tune", "--max-risk", "0.02", *priced)
    refused(said, "--max-cost-usd is 0.001, and --edge-usd ", "every message pays the edge")
    assert not (settings.home / "sweep").exists()


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


@pytest.fixture
def toys(settings: Settings, tmp_path: Path) -> Pair:
    """A toy pair, and a dataset of messages that it answers well: enough to certify 2% on."""
    texts, labels = traffic(1500)
    dataset = build(DataConfig(data=write_messages(tmp_path / "toys.csv", texts, labels)), settings)
    return as_trained(settings, dataset, tmp_path)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that tries confidence alone, in this process."""

    def swept(config: TuneConfig, table: Table, *_: object) -> SweepResult:
        shape = Shape(score=MaxProbability(), rules=config.rules)
        policy = shape.policy("found", 0.9)
        prices = config.pricing.of(table)
        point = FrontPoint(policy=policy, outcome=evaluate(policy, table, prices))
        return SweepResult([point], [point], {}, 1, 1, 0.1)

    monkeypatch.setattr("tune.learned.pool.pool", lambda *_: {})
    monkeypatch.setattr("tune.release.sweep", swept)
    monkeypatch.setattr("cluster.cli.tune.connected", lambda _: nullcontext())


def test_a_release_is_tuned_shown_certified_again_and_explained(
    toys: Pair, no_ray: None, tmp_path: Path
) -> None:
    """All of `tune` but its sweep, and what can be asked of a release without a service."""
    said = firstline("tune", "--max-risk", "0.02", "--max-words", "50", "--edge-usd", "0.002")
    assert said.code == 0, said.error
    assert "certified risk" in said.out
    release = said.error.split()[-1]
    assert f"firstline serve --release {release}" in said.error

    shown = json.loads(firstline("releases", "show", release).out)
    assert list(shown["certificates"]) == ["certificate.json"]
    assert shown["policy"]["rules"]["max_words"] == 50
    assert shown["prices"]["edge_usd"] == 0.002
    assert "risk 2.00% at 95%" in firstline("releases", "list").out
    assert json.loads(firstline("report", "--json").out)["release"] == release
    page = firstline("report", "--out", tmp_path / "report")
    assert "report.html" in page.error
    assert (tmp_path / "report" / "report.html").is_file()

    fresh = write_messages(tmp_path / "new.csv", *traffic(400, seed=1))
    again = firstline("certify", "--data", fresh)
    assert again.code == 0, again.error
    assert "risk           2.00% holds" in again.out
    both = write_messages(tmp_path / "old.csv", *traffic(900))
    refused(firstline("certify", "--data", both), "were used to make", "'train'", "--drop-used")

    near = firstline("explain", "awful broken thing")
    assert near.out.startswith("route")
    assert "looser" in near.out + "stricter"


# -- certify --------------------------------------------------------------------------------------


@pytest.fixture
def release(settings: Settings, tmp_path: Path) -> Release:
    """A champion that trusts the toy edge from 0.95 on; `traffic(seed=0)` made it."""
    pair = make_pair(tmp_path / "made")
    for bundle in (pair.edge, pair.cloud):
        register_bundle(settings, store_bundle(settings, bundle))
    texts, _ = traffic(50)
    made = make_release(settings, pair.edge, pair.cloud, threshold=0.95, trained_on=texts)
    register_release(settings, made)
    promote(settings, made.id)
    return made


def certificates(release: Release) -> list[str]:
    return sorted(file.name for file in release.path.glob("certificate*.json"))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return write_messages(tmp_path / "new.csv", *traffic(400, seed=1))


def test_certify_writes_a_certificate_beside_the_first(release: Release, fresh: Path) -> None:
    said = firstline("certify", "--data", fresh, "--max-risk", "0.02", "--max-cloud-share", "0.5")
    assert said.code == 0, said.error
    assert f"Release {release.id} on 400 rows of new.csv, at 95% confidence" in said.out
    assert "risk           2.00% holds; 0.00% seen" in said.out
    assert "cloud share    50.00% holds" in said.out
    first, second = sorted(certificates(release), key=len)
    assert first == "certificate.json"
    assert f"Wrote {release.path / second}." in said.error
    shown = json.loads(firstline("releases", "show", release.id).out)["certificates"]
    assert list(shown) == [first, second]
    assert shown[second]["promises"].keys() == {"risk", "cloud_share"}
    assert shown[first] == release.certificate


def test_certify_without_limits_asks_for_those_of_the_release(
    release: Release, fresh: Path
) -> None:
    made = json.loads(firstline("certify", "--data", fresh, "--json").out)
    assert {kind: promise["limit"] for kind, promise in made["promises"].items()} == {"risk": 0.01}
    assert made["rows"] == 400


def test_certify_with_labels_bounds_the_accuracy_lost(release: Release, fresh: Path) -> None:
    words = ("--label-column", "label", "--max-accuracy-loss", "0.02", "--json")
    made = json.loads(firstline("certify", "--data", fresh, *words).out)
    assert made["promises"]["accuracy_loss"]["rows"] == 400


def test_certify_tells_which_classes_it_could_not_speak_of(release: Release, fresh: Path) -> None:
    said = firstline("certify", "--data", fresh, "--max-risk", "0.03", "--per-class")
    assert said.code == 0, said.error
    lines = [line.split() for line in said.out.splitlines()]
    assert any(line[0] == "positive" and line[-1] == "certified" for line in lines)
    assert "too few rows (under 135): negative" in said.out


def test_certify_drops_what_it_has_seen_only_if_told(release: Release, tmp_path: Path) -> None:
    texts, labels = traffic(400, seed=1)
    used, right = traffic(50)
    file = write_messages(tmp_path / "mixed.csv", texts + used, labels + right)
    refused(firstline("certify", "--data", file), "50 of 450 rows", "--drop-used")
    said = firstline("certify", "--data", file, "--drop-used")
    assert said.code == 0, said.error
    assert "on 400 rows" in said.out
    assert "rows that made the release left out: 50" in said.error


BAD_ROWS: dict[str, Any] = {
    "too few": (traffic(200, seed=1), [], "'new.csv' has 200 rows", "needs at least 299"),
    "used": (traffic(400), [], "50 of 400 rows", "(50 in 'train')", "--drop-used"),
    "only used": (traffic(50), ["--drop-used"], "All 50 rows of", "Give new messages"),
    "no such column": (traffic(400, seed=1), ["--text-column", "body"], "no column 'body'"),
    "empty": (([], []), [], "has no rows"),
    "no labels": (traffic(400, seed=1), ["--max-accuracy-loss", "0.02"], "--label-column"),
    "wrong labels": ((traffic(400, seed=1)[0], ["odd"] * 400), ["--label-column", "label"],
                     "the labels ['odd'], which the models never answer with"),
    "strange risk": (traffic(400, seed=1), ["--max-risk", "2"], "The risk is 2.0"),
    "not kept": (traffic(900, seed=1, hard_share=0.5), ["--max-risk", "0.02", "--max-cloud-share",
                 "0.1"], "cannot be certified at 95%", "--max-cloud-share 0.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_certify_refuses_and_writes_nothing(name: str, release: Release, tmp_path: Path) -> None:
    (texts, labels), options, *said = BAD_ROWS[name]
    file = write_messages(tmp_path / "new.csv", texts, labels)
    refused(firstline("certify", "--data", file, *options), *said)
    assert certificates(release) == ["certificate.json"]


def test_certify_refuses_a_release_that_hides_its_rows(release: Release, fresh: Path) -> None:
    """Made before the rows were written down: nobody can tell, so nothing is promised."""
    manifest = json.loads((release.path / MANIFEST).read_text())
    del manifest["files"][USED]
    (release.path / MANIFEST).write_text(json.dumps(manifest))
    (release.path / USED).unlink()
    refused(firstline("certify", "--data", fresh), f"has no {USED}", "firstline tune")


# -- replay ---------------------------------------------------------------------------------------


@pytest.fixture
def answered(settings: Settings, release: Release) -> list[AuditRecord]:
    """The release's answers to 60 messages, as a router writes them down."""
    policy = policy_of(release)
    edge, cloud = (OnnxClassifier.of(load_bundle(path))
                   for path in (release.edge_path, release.cloud_path))  # fmt: skip
    messages = [prepare(text) for text in traffic(60, seed=2)[0]]
    texts = [message.text for message in messages]
    made = []
    answers = zip(messages, edge.predict(texts), cloud.predict(texts), strict=True)
    for number, (message, near, far) in enumerate(answers):
        chosen = decide(message, near, policy, signals(message, near))
        made.append(AuditRecord(
            id=f"{number:032x}", time_s=time.time(), text_hash="0" * 32, route=chosen.route,
            reason=chosen.reason, label=(near if chosen.route is Route.EDGE else far).label,
            edge_label=near.label, confidence=near.confidence, signals=chosen.signals,
            trust=chosen.trust, threshold=policy.threshold, propensity=1.0, release=release.id,
            cost_usd=Prices().of(chosen.route), latency_ms=1.0, degraded=False,
        ))  # fmt: skip
    log = AuditLog(settings.audit_dir, "toy")
    log.append(made)
    log.close()
    return made


def candidate(folder: Path, **over: Any) -> Path:
    policy = RouterPolicy(name="looser", score=MaxProbability(), threshold=0.5)
    file = folder / "candidate.json"
    file.write_text(json.dumps({**policy.model_dump(mode="json"), **over}))
    return file


def test_replay_says_what_another_policy_would_have_done(
    answered: list[AuditRecord], tmp_path: Path
) -> None:
    escalated = sum(record.route == Route.CLOUD for record in answered)
    assert 0 < escalated < 60
    found = json.loads(firstline("replay", "--policy", candidate(tmp_path), "--json").out)
    assert (found["used"], found["cells"]["newly_kept"]["messages"]) == (60, escalated)
    assert found["ran"]["edge_share"] == pytest.approx(1 - escalated / 60)
    assert found["candidate"]["edge_share"] == 1.0
    said = firstline("replay", "--policy", candidate(tmp_path), "--since", "1h")
    assert said.code == 0
    assert said.out.startswith("looser on 60 answers")
    assert "What this log cannot tell:" in said.out


def test_replay_takes_the_policy_of_a_release(
    answered: list[AuditRecord], release: Release
) -> None:
    found = json.loads(firstline("replay", "--policy", release.path / "policy.json", "--json").out)
    assert found["ran"]["edge_share"] == found["candidate"]["edge_share"]


def test_replay_refuses_what_it_cannot_use(release: Release, tmp_path: Path) -> None:
    """The log is empty, too: nothing was ever served here."""
    refused(firstline("replay", "--policy", tmp_path / "gone.json"), "gone.json cannot be read")
    odd = candidate(tmp_path, tresholds=1, colour="red")
    refused(firstline("replay", "--policy", odd), "unknown key 'tresholds'", "unknown key 'colour'")
    odd = candidate(tmp_path, class_margins={"angry": 1.0})
    refused(firstline("replay", "--policy", odd), "names the classes ['angry']")
    good = candidate(tmp_path)
    refused(firstline("replay", "--policy", good, "--since", "soon"), "'soon' is no time")
    refused(firstline("replay", "--policy", good), "No answer in the log can be replayed")


# -- explain --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "route"),
    [("awful broken parcel", "edge (trusted)"), ("angry useless parcel", "cloud (escalated)"),
     ("awful, call me at +44 20 7946 0958", "edge (pii_pinned)")],
)  # fmt: skip
def test_explain_says_where_a_message_goes_and_why(release: Release, text: str, route: str) -> None:
    said = firstline("explain", text)
    assert said.code == 0, said.error
    assert said.out.splitlines()[0].split(maxsplit=1) == ["route", route]
    assert "the edge answers from 0.9500 on" in said.out
    assert "7946" not in said.out


def test_explain_for_a_program(release: Release) -> None:
    made = json.loads(firstline("explain", "awful broken parcel", "--json").out)
    assert (made["route"], made["reason"], made["threshold"]) == ("edge", "trusted", 0.95)
    assert sum(made["breakdown"].values()) == pytest.approx(made["trust"])


def test_explain_refuses_nothing_to_explain(release: Release) -> None:
    for text in ("", "  ", "\u200b"):
        refused(firstline("explain", text), "has no visible character")
    refused(firstline("explain", "hello", "--url", "http://127.0.0.1:1"), "No answer from")
    refused(firstline("explain", "hello", "--release", "r-unknown"), "no release 'r-unknown'")


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
    for words in (["serve"], ["explain", "hello"], ["certify", "--data", "new.csv"]):
        refused(firstline(*words), "There is no release in")


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
    assert set(shown) == {"manifest", "policy", "certificates", "prices"}
    assert shown["policy"] == released[0].policy
    assert shown["certificates"] == {"certificate.json": released[0].certificate}


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


@pytest.fixture
def answering() -> Iterator[tuple[StubService, str]]:
    service = StubService()
    with serving(create_api(service)) as url:
        yield service, url


def test_classify_answers_a_file_and_sets_bad_rows_aside_by_line(
    answering: tuple[StubService, str], tmp_path: Path
) -> None:
    """600 rows, 400 blank, 500 too long: 256 were paid, exit 2, no output, `texts[143]`."""
    service, url = answering
    texts = [" " if at == 400 else "x" * 12_000 if at == 500 else f"text {at}" for at in range(600)]
    file = write_messages(tmp_path / "m.csv", texts, ["yes", "no"] * 300)
    out = tmp_path / "answers.jsonl"
    words = ("classify", "--url", url, "--file", file, "--out", out)
    said = firstline(*words, "--label-column", "label")
    assert said.code == 0, said.error
    assert "598 answers" in said.out
    assert "accuracy 49.83% (298 of 598)" in said.out
    assert "2 of 600 rows are set aside, in " in said.error
    assert "line 402: no visible character" in said.error
    assert "line 502: 12,000 characters, of which 10,000 are the limit" in said.error
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["line"] for one in found[399:402]] == [401, 403, 404]
    assert len(service.callers) == 3
    shown = firstline(*words, "--json")
    assert [one["row"] for one in json.loads(shown.out)] == [one["row"] for one in found]


def test_classify_refuses_where_it_cannot_write_before_anything_is_paid(
    answering: tuple[StubService, str], tmp_path: Path
) -> None:
    service, url = answering
    file = write_messages(tmp_path / "m.csv", ["a"], ["yes"])
    before = file.read_bytes()
    words = ("classify", "--url", url, "--file", file, "--out")
    refused(firstline(*words, tmp_path), f"--out {tmp_path} is a folder")
    refused(firstline(*words, file / "x"), f"--out {file / 'x'} cannot be written: ")
    refused(firstline(*words, file), "is the file to classify")
    refused(firstline("classify", "a", "--url", url, "--out", tmp_path), "is a folder")
    assert service.callers == []
    assert file.read_bytes() == before


def test_classify_says_what_is_kept_when_the_service_goes(
    answering: tuple[StubService, str], tmp_path: Path
) -> None:
    service, url = answering
    file = write_messages(tmp_path / "m.csv", [f"text {at}" for at in range(600)], ["yes"] * 600)
    out = tmp_path / "answers.jsonl"
    words = ("classify", "--url", url, "--file", file, "--out", out)
    answer, asked = service.answer, list[int]()

    async def goes(*args: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("gone")
        return await answer(*args, **options)

    service.answer = goes  # type: ignore[method-assign]
    said = firstline(*words)
    assert said.code == 2
    assert f"256 of 600 rows are answered; they are in {out}, and the same command" in said.error
    assert len(out.read_text().splitlines()) == 256
    again = firstline(*words)
    assert again.code == 0, again.error
    assert "Going on after 256 answers." in again.error
    assert len(out.read_text().splitlines()) == 600
    assert len(asked) == 4


def test_classify_goes_on_after_a_kill_and_pays_no_batch_twice(
    answering: tuple[StubService, str], tmp_path: Path
) -> None:
    """Killed while the second batch is answered: the next run waits for that very answer."""
    service, url = answering
    file = write_messages(tmp_path / "m.csv", [f"text {at}" for at in range(600)], ["yes"] * 600)
    out = tmp_path / "answers.jsonl"
    words = ["classify", "--url", url, "--file", str(file), "--out", str(out)]
    answer = service.answer

    async def slow(*args: Any, **options: Any) -> Any:
        made = await answer(*args, **options)
        await asyncio.sleep(2.0 if len(service.callers) == 2 else 0.0)
        return made

    service.answer = slow  # type: ignore[method-assign]
    process = subprocess.Popen([sys.executable, "-m", "cluster.cli", *words])
    try:
        assert wait_for(lambda: len(service.callers) == 2)
    finally:
        process.kill()
        process.wait()
    first = out.read_text().splitlines()
    assert len(first) == 256
    said = firstline(*words)
    assert said.code == 0, said.error
    found = out.read_text().splitlines()
    assert found[:256] == first
    assert [json.loads(line)["row"] for line in found] == list(range(600))
    assert len(service.callers) == 3


def test_classify_reads_what_score_reads(
    answering: tuple[StubService, str], tmp_path: Path
) -> None:
    """Rows that no JSON reader can read, and numbers, are rows to set aside like any other."""
    _, url = answering
    file = tmp_path / "m.jsonl"
    broken = [
        "{",
        "[1]",
        json.dumps({"text": 7}),
        json.dumps({"other": "a"}),
        '{"text": "\\ud83d"}',
    ]
    lines = [json.dumps({"text": "good"}), *broken, '{"text": "a", "n": ' + "9" * 5000 + "}"]
    file.write_text("\n".join(lines))
    said = firstline("classify", "--url", url, "--file", file)
    assert (said.code, said.out.split(",")[0]) == (0, "1 answers")
    for line in range(2, 8):
        assert f"line {line}: " in said.error
    refused(
        firstline("classify", "--url", url, "--file", tmp_path), "`firstline score` takes folders"
    )


def test_classify_refuses_a_url_without_a_service() -> None:
    url = "http://127.0.0.1:1"
    refused(firstline("classify", "a text", "--url", url), f"No answer from {url}")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "nonsense", "http://jo:secret@example.com"])
def test_classify_refuses_what_is_no_url(url: str) -> None:
    said = firstline("classify", "a text", "--url", url)
    refused(said, "should be like http://127.0.0.1:8000")
    assert "secret" not in said.error


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
        submitted(settings)
    assert ended.value.exit_code == 0
    assert sent == [["train", "--data", str(messages), "--label-column", "label"]]


def test_only_the_values_of_path_options_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`firstline tune --submit` from our own root sent the path of the folder `tune`."""
    monkeypatch.chdir(tmp_path)
    for name in ("tune", "label", "data.csv"):
        (tmp_path / name).touch()
    assert with_absolute_paths(["tune", "--risk", "0.01"]) == ["tune", "--risk", "0.01"]
    words = ["train", "--data=data.csv", "--label-column", "label", "--base", "some/hub-id"]
    assert with_absolute_paths(words) == [
        "train", f"--data={tmp_path / 'data.csv'}", "--label-column", "label", "--base",
        "some/hub-id",
    ]  # fmt: skip


def test_submit_without_a_cluster_is_a_paragraph(
    messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["firstline", "train", "--data", str(messages), "--submit"])
    refused(firstline("train", "--data", messages, "--submit"), "ray start --head")

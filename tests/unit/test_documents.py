"""Documents are executed: commands, options, trees, tables and links against the code they name.

Commands are parsed by the parsers that would run them, and then not run.
"""

import argparse
import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import pytest
import typer.main
from pydantic import BaseModel

from cluster.cli import app
from cluster.settings import PREFIX, Settings
from serve_app.contracts import Route, RouteReason
from serve_app.decide.policy import BASELINES, RouterPolicy
from serve_app.decide.signals import SIGNALS
from serve_app.deploy.config import ServeConfig, TierConfig
from serve_app.http.models import ClassifyIn, FeedbackIn
from serve_app.http.routes import Service, create_api
from tests import __file__ as tests_file
from tests.support.strategies import KINDS
from train_jobs.data import SPLITS
from tune.certificate.bounds import allowed_failures, min_rows
from tune.certificate.limits import KINDS as KINDS_OF_LIMITS
from tune.certificate.limits import OPTION
from tune.reporting.report import MAX_PROBABILITY

ROOT: Final = Path(tests_file).resolve().parent.parent
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted((ROOT / "docs").glob("*.md")))
FOLDERS: Final = ("cluster", "serve_app", "train_jobs", "tune")
# Pages that a reader reads from beginning to end.
SHORT: Final = ("README.md", "docs/performance.md")
MAX_WORDS: Final = 1500
_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_OPTION: Final = re.compile(r"--[a-z-]+")
_PATH: Final = re.compile(rf"`((?:{'|'.join(FOLDERS)}|tests|docs)/[\w./-]*)`")
_BODIES: Final[dict[str, type[BaseModel]]] = {
    "/v1/classify": ClassifyIn,
    "/v1/feedback": FeedbackIn,
}


# ---- reading the pages --------------------------------------------------------------------------


def _doc(name: str) -> Path:
    return ROOT / "docs" / f"{name}.md"


def _fences(page: Path, language: str) -> list[str]:
    return [text for kind, text in _FENCE.findall(page.read_text()) if kind == language]


def _commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in the page's `sh` blocks, redirections left out."""
    for block in _fences(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words[: words.index(">")] if ">" in words else words


def _all_commands() -> list[Any]:
    return [
        pytest.param(words, id=f"{page.name}: {' '.join(words)[:60]}")
        for page in PAGES
        for words in _commands(page)
    ]


def _table(page: Path, heading: str) -> list[list[str]]:
    """The cells of every table row whose table starts with `heading`, that row left out."""
    found: list[list[str]] = []
    inside = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == heading:
            inside = True
        elif inside and not set(cells[0]) <= {"-"}:
            found.append(cells)
    assert found, f"{page.name} has no table that starts with {heading!r}"
    return found


def _named(page: Path, heading: str) -> list[str]:
    return [cells[0].strip("`") for cells in _table(page, heading)]


# ---- the checkers, one per program --------------------------------------------------------------


class _ParsedError(Exception):
    """Raised in the place of the work that would follow."""


def _check_firstline(words: Sequence[str]) -> None:
    """Parses as the command line would; raises its usage error."""
    command: Any = typer.main.get_command(app)
    name, *rest = words
    while hasattr(command, "commands"):
        assert rest, f"{' '.join(words)}: a command is missing"
        name, *rest = rest
        assert name in command.commands, f"`firstline {name}` does not exist"
        command = command.commands[name]
    command.make_context(name, list(rest))


def _check_python(words: Sequence[str]) -> None:
    """`python -m module ...`, up to the point where its parser has parsed."""
    assert words[1] == "-m", f"{' '.join(words)}: only `python -m` is documented"
    module = importlib.import_module(words[2])
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{words[2]}.__main__")
    assert hasattr(module, "argparse"), f"{words[2]} has no parser that could be asked"

    def parse(self: argparse.ArgumentParser, *_: object) -> None:
        namespace, unknown = self.parse_known_args(list(words[3:]))
        assert not unknown, f"{words[2]} does not know {unknown}"
        raise _ParsedError(namespace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(_ParsedError):
            module.main()


def _check_make(words: Sequence[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = {word for word in words[1:] if "=" not in word}
    assert wanted <= targets, f"the Makefile has no {wanted - targets}"


def _check_ray(words: Sequence[str]) -> None:
    """Ray's own words, and ours after `--`."""
    from ray.scripts.scripts import cli

    ours = list(words[words.index("--") + 1 :]) if "--" in words else []
    command: Any = cli
    name, *rest = words
    while hasattr(command, "commands"):
        name, *rest = rest
        assert name in command.commands, f"`ray {name}` does not exist"
        command = command.commands[name]
    command.make_context(name, list(rest))
    if ours:
        check_command(ours)


def _check_serve(words: Sequence[str]) -> None:
    assert words[1] == "deploy"
    assert (ROOT / words[2]).is_file(), f"there is no {words[2]}"


def _check_curl(words: Sequence[str]) -> None:
    """The path exists, and the body is one that it takes."""
    path = next(urlsplit(word).path for word in words if word.startswith("http"))
    assert path in create_api(cast(Service, None)).openapi()["paths"]
    if "-d" in words:
        _BODIES[path].model_validate_json(words[words.index("-d") + 1])


def _check_export(words: Sequence[str]) -> None:
    assert all("=" in word for word in words[1:])


_CHECKS: Final[dict[str, Callable[[Sequence[str]], None]]] = {
    "firstline": _check_firstline,
    "python": _check_python,
    "make": _check_make,
    "ray": _check_ray,
    "serve": _check_serve,
    "curl": _check_curl,
    "export": _check_export,
}


def check_command(words: Sequence[str]) -> None:
    assert words[0] in _CHECKS, f"no check for {words[0]!r}; add one, or do not document it"
    _CHECKS[words[0]](words)


# ---- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", _all_commands())
def test_every_command_exists_with_its_options(words: list[str]) -> None:
    check_command(words)


@pytest.mark.parametrize(
    "line",
    [
        "firstline trian --data x.csv",
        "firstline train --data x.csv --epoch 3",
        "firstline train",
        "firstline releases",
        "python -m train_jobs.samples --rows many --out samples.csv",
        "python -m train_jobs.samples --rows 5 --out samples.csv --colour red",
        "python -m train_jobs.data --text-column text",
        "python -m tune.nothing --table t.parquet",
        "make dmeo",
        "ray job submit -- python -m train_jobs.pipeline",
        "serve deploy serve.yml",
        "curl http://127.0.0.1:8000/v1/clasify",
        """curl http://127.0.0.1:8000/v1/classify -d '{"text": "x"}'""",
        "rm -rf /",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    # SystemExit is argparse's refusal; that of typer is its own UsageError.
    with pytest.raises((Exception, SystemExit)) as caught:
        check_command(shlex.split(line))
    assert not isinstance(caught.value, _ParsedError)


@pytest.mark.parametrize(
    ("page", "programs"),
    [
        ("README.md", {"firstline", "make", "curl"}),
        ("docs/cluster.md", {"firstline", "ray", "serve", "export"}),
        ("docs/data.md", {"python"}),
    ],
)
def test_the_commands_of_a_page_are_found(page: str, programs: set[str]) -> None:
    assert {words[0] for words in _commands(ROOT / page)} >= programs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_inside_sentences_exist(page: Path) -> None:
    """`firstline tune --risk 0.01` in a sentence may leave out what is required, no more."""
    commands: dict[str, Any] = cast(Any, typer.main.get_command(app)).commands
    for text in re.findall(r"`firstline ([^`]+)`", page.read_text()):
        words = [word for word in shlex.split(text) if word != "--help"]
        command = commands.get(words[0])
        if words[0].startswith("-"):
            continue
        assert command is not None, f"{page.name}: `firstline {text}` does not exist"
        if len(words) > 1 and hasattr(command, "commands"):
            command = command.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        unknown = {word for word in words if word.startswith("--")} - known
        assert not unknown, f"{page.name}: `firstline {text}` has no {unknown}"


# ---- the tree and the links ---------------------------------------------------------------------


def _tree() -> dict[str, str]:
    """path -> comment, of the README's tree of packages. Two spaces are one folder deeper."""
    (block,) = [text for text in _fences(README, "") if text.startswith("cluster/")]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        name, _, comment = line.strip().partition(" ")
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        path = "".join([*folders, name])
        found[path] = comment.strip()
        folders.append(name)
    return found


def _packages() -> set[str]:
    """Folders with Python files; below `tests` the top ones alone: its `unit` repeats ours."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    files += [path for depth in ("*.py", "*/*.py") for path in (ROOT / "tests").glob(depth)]
    return {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in files}


def test_the_tree_is_the_tree() -> None:
    assert set(_tree()) - {"docs/"} == _packages()


def test_every_line_of_the_tree_is_a_folder_and_says_what_it_is_for() -> None:
    for path, comment in _tree().items():
        assert path.endswith("/"), f"the tree has {path}; it lists packages, not files"
        assert comment, f"the tree says nothing of {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = _PATH.findall(page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_an_example_imports_is_there(page: Path) -> None:
    for block in _fences(page, "python"):
        for line in ast.walk(ast.parse(block)):
            if isinstance(line, ast.ImportFrom) and str(line.module).split(".")[0] in FOLDERS:
                module = importlib.import_module(str(line.module))
                names = [alias.name for alias in line.names]
                assert [name for name in names if not hasattr(module, name)] == []


def _sections(page: Path, heading: str) -> Iterator[Any]:
    """The `###` sections below a `##` heading, each under its title."""
    (below,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", page.read_text(), re.DOTALL | re.M)
    for section in below.split("\n### ")[1:]:
        title, _, text = section.partition("\n")
        yield pytest.param(text, id=title)


@pytest.mark.parametrize("text", _sections(_doc("architecture"), "Where to change what"))
def test_a_name_that_is_to_be_changed_is_in_a_file_that_is_named_beside_it(text: str) -> None:
    files = [ROOT / path for path in _PATH.findall(text)]
    code = "\n".join(path.read_text() for path in files if path.is_file())
    names = [name.rstrip("()") for name in re.findall(r"`([A-Za-z_]+(?:\(\))?)`", text)]
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("page", SHORT)
def test_a_page_that_is_read_whole_is_short(page: str) -> None:
    assert len((ROOT / page).read_text().split()) <= MAX_WORDS


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if urlsplit(link).scheme:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in _anchors(target), f"{page.name}: no heading for {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_waits_for_a_figure(page: Path) -> None:
    assert "TODO" not in page.read_text()


def test_every_page_is_named_in_the_readme() -> None:
    text = README.read_text()
    assert [page.name for page in PAGES if f"docs/{page.name}" not in text and page != README] == []


# ---- tables -------------------------------------------------------------------------------------


def _name(requirement: str) -> str:
    return requirement.split("==")[0]


def _declared() -> dict[str, list[str]]:
    """Section of docs/dependencies.md -> the direct dependencies that it must explain."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = {
        "Build": project["build-system"]["requires"],
        "Serving": project["project"]["dependencies"],
        **{f"`{k}`": v for k, v in project["project"]["optional-dependencies"].items()},
    }
    return {
        name: sorted(_name(item) for item in items if not item.startswith("firstline["))
        for name, items in groups.items()
    }


def test_every_dependency_has_its_reason_and_no_reason_is_stale() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    explained = {
        section.splitlines()[0]: sorted(re.findall(r"^\| `([^`]+)` \| \S", section, re.MULTILINE))
        for section in text.split("\n## ")[1:]
        if not section.startswith("Written by hand\n")
    }
    assert explained == _declared()


def test_every_setting_is_documented_with_its_default() -> None:
    table = _table(_doc("cluster"), "variable")
    rows = {cells[0].strip("`"): cells[1].strip("`") for cells in table}
    assert rows.pop("MLFLOW_TRACKING_URI") == "empty"
    defaults = Settings.model_construct()
    assert rows == {
        f"{PREFIX}{name.upper()}": "empty" if name == "audit_key" else str(value) or "empty"
        for name, value in defaults
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_setting_that_does_not_exist(page: Path) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", page.read_text())) - known <= {PREFIX}


@pytest.mark.parametrize(
    ("heading", "model"), [("key", ServeConfig), ("key of a tier", TierConfig)]
)
def test_every_serving_option_is_documented_with_its_default(
    heading: str, model: type[BaseModel]
) -> None:
    rows = {cells[0].strip("`"): cells[1].strip("`") for cells in _table(_doc("serving"), heading)}
    assert rows == {name: _default(value) for name, value in _options(model)}


def test_every_option_of_a_part_is_documented_with_its_default() -> None:
    rows = {
        cells[0].strip("`"): cells[1].strip("`")
        for cells in _table(_doc("serving"), "key of a part")
    }
    parts = {name: part for name, part in _options(ServeConfig) if name not in {"edge", "cloud"}}
    assert rows == dict(
        _flat({name: part for name, part in parts.items() if isinstance(part, dict)})
    )


def _options(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """The options of a model and their defaults; a part's are a dict."""
    yield from model().model_dump(mode="json").items()


def _default(value: Any) -> str:
    return "" if isinstance(value, dict) else json.dumps(value).strip('"')


def _flat(parts: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in parts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", _default(value)


def test_the_documented_options_file_is_one_that_serve_takes() -> None:
    shape, options = _fences(_doc("serving"), "json")
    assert set(json.loads(shape)) == {"error"}
    ServeConfig.model_validate_json(options)


def test_every_route_is_documented() -> None:
    paths = create_api(cast(Service, None)).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, made in paths.items() for method in made}
    assert set(_named(_doc("serving"), "route")) == routes | {"GET /docs"}


def test_the_documented_policy_is_one_that_the_router_takes() -> None:
    (policy,) = _fences(_doc("router"), "json")
    RouterPolicy.model_validate_json(policy).check_classes(["complaint", "fraud", "greeting"])


def test_signals_scores_reasons_and_baselines_are_those_of_the_code() -> None:
    page = _doc("router")
    assert _named(page, "signal") == list(SIGNALS)
    assert _named(page, "score") == [kind.model_fields["kind"].default for kind in KINDS]
    reasons = {cells[0].strip("`"): cells[1] for cells in _table(page, "reason")}
    assert list(reasons) == [reason.value for reason in RouteReason]
    assert set(reasons.values()) == {route.value for route in Route}
    assert _named(page, "name") == [*(policy.name for policy in BASELINES), MAX_PROBABILITY]


def test_limits_are_those_of_the_code() -> None:
    rows = {cells[0].strip("`"): cells[2] for cells in _table(_doc("certificates"), "limit")}
    assert list(rows) == [OPTION[kind] for kind in KINDS_OF_LIMITS]
    assert [name for name, labels in rows.items() if labels == "yes"] == [OPTION["accuracy_loss"]]


def test_the_options_of_tune_are_all_documented() -> None:
    """The limits are in docs/certificates.md, and the rest in docs/router.md."""
    command = cast(Any, typer.main.get_command(app)).commands["tune"]
    options = {parameter.opts[0] for parameter in command.params} - set(OPTION.values())
    told = {
        name for cells in _table(_doc("router"), "option") for name in _OPTION.findall(cells[0])
    }
    assert told - set(OPTION.values()) == options - {"--submit", "--json"}


def test_splits_are_those_of_the_code() -> None:
    assert sorted(_named(_doc("data"), "split")) == sorted(SPLITS)


def test_the_rows_that_a_risk_takes_are_those_that_the_code_asks_for() -> None:
    for share, fewest, *allowed in _table(_doc("certificates"), "risk"):
        risk = float(share.rstrip("%")) / 100
        assert int(fewest) == min_rows(risk, 0.95)
        assert [int(cell) for cell in allowed] == [
            allowed_failures(rows, risk, 0.95) for rows in (600, 1500, 3000)
        ]

"""Private Ray is named in one package, and in one module of the tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster

ROOT = Path(cluster.__file__).resolve().parent.parent
PRODUCT = ("cluster", "serve_app", "train_jobs", "tune")
ROOMS = ("cluster/ray_private/", "tests/unit/cluster/ray_private/", "tests/support/ray_private.py")
VARIABLE = re.compile(r"RAY_\w+")
_MAY_USE_RAY = re.compile(r"\b(import|from) ray\b|RAY_")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_uses(source: str, variables: bool = True) -> list[str]:
    """What a file of ours uses of Ray that begins with an underscore, and Ray's variables.

    Of which object an attribute is, a file does not tell. So where Ray is imported, every attribute
    with an underscore counts, but those of `self`, `cls` and `super()`.
    """
    if not _MAY_USE_RAY.search(source):
        return []
    tree = ast.parse(source)
    imports_ray = any(map(list, map(_of_ray, ast.walk(tree))))
    return [
        f"line {node.lineno}: {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt | ast.expr | ast.keyword)
        for name in _private(node, imports_ray, variables)
    ]


def _of_ray(node: ast.AST) -> Iterator[str]:
    """Dotted names that a statement imports from Ray."""
    if isinstance(node, ast.Import):
        names = [one.name for one in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
        names = [f"{node.module}.{one.name}" for one in node.names]
    else:
        return
    yield from (name for name in names if name.split(".")[0] == "ray")


def _private(node: ast.AST, imports_ray: bool, variables: bool) -> Iterator[str]:
    yield from (name for name in _of_ray(node) if any(map(is_private, name.split("."))))
    if variables and isinstance(node, ast.Constant) and VARIABLE.fullmatch(str(node.value)):
        yield str(node.value)
    if not imports_ray:
        return
    if isinstance(node, ast.Attribute) and is_private(node.attr) and not _is_own(node.value):
        yield f".{node.attr}"
    if isinstance(node, ast.keyword) and node.arg is not None and is_private(node.arg):
        yield f"{node.arg}="


def _is_own(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        value = value.func
    return isinstance(value, ast.Name) and value.id in {"self", "cls", "super"}


def files() -> Iterator[Path]:
    for folder in (*PRODUCT, "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.relative_to(ROOT).as_posix().startswith(ROOMS):
                yield path


def test_private_ray_is_named_in_its_room_only() -> None:
    """Tests may set a variable, as users do, and look into our own objects."""
    found = {}
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        is_test = name.startswith("tests/")
        uses = private_uses(path.read_text(), variables=not is_test)
        found[name] = [use for use in uses if not (is_test and ": ." in use)]
    assert {name: uses for name, uses in found.items() if uses} == {}, "move it to a room"


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import services",
        "import ray._raylet",
        "from ray._raylet import Config",
        "from ray.serve._private.constants import SERVE_CONTROLLER_NAME",
        "from ray.tune._internal import x",
        "def late():\n    from ray.serve.context import _get_global_client",
        "from ray.serve import context\ncontext._set_global_client(None)",
        "import ray\nray._private.worker",
        "from ray import serve\nserve.get_deployment_handle('a', _check_exists=False)",
        "import os\nos.environ['RAY_event_stats'] = '0'",
        "{'RAY_SERVE_CONTROL_LOOP_INTERVAL_S': '1'}",
    ],
)
def test_a_private_use_is_noticed(source: str) -> None:
    assert private_uses(source)


@pytest.mark.parametrize(
    "source",
    [
        "from ray.serve.schema import ServeDeploySchema\nServeDeploySchema.model_validate({})",
        "import ray\nclass A:\n    def f(self):\n        return self._a, ray.__version__",
        "'Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token.'",
        "from raylike._private import x\nx._y",
    ],
)
def test_what_is_public_is_not(source: str) -> None:
    assert private_uses(source) == []


def test_haproxy_py_is_run_as_a_file_and_imports_nothing_of_ours_or_of_ray() -> None:
    """It stands between a killed HAProxy and the next one; Ray takes a second to import."""
    tree = ast.parse((ROOT / "cluster/ray_private/haproxy.py").read_text())
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [
            one.name for one in node.names
        ])
        if name is not None
    }  # fmt: skip
    assert not modules & {*PRODUCT, "ray"}

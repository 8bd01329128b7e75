"""The servers that ours is measured beside: the same edge model, the same messages, one file each.

    with running(PEERS[0], given, python) as url:   # POST {"texts": [...]} to url

LitServe and BentoML live in an environment of their own, made on first use. How each is set was
chosen by what answered most on two cores; what was tried stands in its file.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cluster.files import read_json, write_json
from tests.support.waiting import free_port

ROOT: Final = Path(__file__).parents[3]
PATH: Final = "/classify"
PINS: Final = ("litserve==0.2.19", "bentoml==1.4.39")
# In the version that we have, so that the model runs there as it does here.
SHARED: Final = ("onnxruntime", "tokenizers", "numpy")
_MARKER: Final = "FIRSTLINE_BENCH_PEER"
_START_S: Final = 90.0
_STOP_S: Final = 5.0


class PeerError(RuntimeError):
    """A peer cannot be installed, or does not start."""


@dataclass(frozen=True)
class Given:
    """What the peers serve.

    `artifact` is the edge bundle's model file for this CPU, `student` the same model as torch
    loads it, `published` the cloud model in dynamic int8.
    """

    edge: Path
    artifact: str
    cloud: Path
    student: Path | None
    published: Path


@dataclass(frozen=True)
class Peer:
    """A server: its module, what it is given, and whose interpreter runs it.

    `exact`: it runs the very file that we do, so that each label must be the same.
    """

    name: str
    module: str
    options: tuple[str, ...] = ()
    apart: bool = False
    exact: bool = True

    def command(self, given: Given, port: int, python: Path | None) -> list[str]:
        """Raises PeerError where something that it needs is missing."""
        interpreter = python if self.apart else Path(sys.executable)
        if interpreter is None:
            raise PeerError("its environment could not be made")
        made = [str(interpreter), "-m", f"{__name__}.{self.module}", "--port", str(port)]
        made += ["--edge", str(given.edge), "--artifact", given.artifact, *self.options]
        if self.module == "fastapi_torch":
            if given.student is None:
                raise PeerError("the student's torch folder is not beside its bundle")
            made += ["--student", str(given.student)]
        if self.module == "published":
            made += ["--cloud", str(given.cloud), "--int8", str(given.published)]
        return made


PEERS: Final = (
    Peer("FastAPI + ONNX Runtime on the loop", "fastapi_ort", ("--threads", "0")),
    Peer("FastAPI + ONNX Runtime in two threads", "fastapi_ort", ("--threads", "2")),
    Peer("FastAPI + torch", "fastapi_torch", exact=False),
    Peer("LitServe", "litserve_server", apart=True),
    Peer("BentoML", "bentoml_service", apart=True),
)
PUBLISHED: Final = Peer("the published router", "published", exact=False)


def environment(folder: Path) -> Path:
    """The interpreter of the peers' environment, made if it is not there or of other versions.

    Raises:
        PeerError: pip could not install them.
    """
    kept, pins = folder / "pins.json", [*PINS, *(f"{name}=={version(name)}" for name in SHARED)]
    python = folder / "bin" / "python"
    if kept.is_file() and read_json(kept) == pins:
        return python
    # A virtual environment knows its own path, so it is made in place, and its pins last.
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerError((errors or ["pip failed"])[-1])
    write_json(kept, pins)
    return python


@contextmanager
def running(peer: Peer, given: Given, python: Path | None) -> Iterator[str]:
    """The URL to post to, of a peer that runs as long as the block; none of it is left after.

    Raises:
        PeerError: it lacks something, or does not answer in time.
    """
    port, mark = free_port(), secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        variables = {**os.environ, _MARKER: mark, "BENTOML_HOME": name,
                     "BENTOML_DO_NOT_TRACK": "True", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(peer.command(given, port, python), cwd=ROOT, stdout=log,
                                       stderr=log, env=variables)  # fmt: skip
        try:
            _await(process, port, folder / "log")
            yield f"http://127.0.0.1:{port}{PATH}"
        finally:
            _sweep(mark)
            process.wait()


def _await(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    from tests.bench.load import ask, bodies_of

    body = bodies_of(["Where is my card?"])
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if ask(f"http://127.0.0.1:{port}{PATH}", body)[0].status == 200:
            return
        time.sleep(0.2)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise PeerError(f"it does not answer: {lines[-1] if lines else 'no output'}")


def _sweep(mark: str) -> None:
    """Ends every process that inherited the mark: workers may have left the group."""
    for step, wait_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
        for pid in _marked(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, step)
        deadline = time.monotonic() + wait_s
        while _marked(mark) and time.monotonic() < deadline:
            time.sleep(0.1)


def _marked(mark: str) -> list[int]:
    wanted, found = f"{_MARKER}={mark}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found

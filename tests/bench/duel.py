"""Versions of the service up at once, loaded in turns: what a change is worth.

    git worktree add /tmp/before HEAD~1
    python -m tests.bench.duel --edge BUNDLE --cloud BUNDLE --data test.csv --text text \\
        /tmp/before '. RAY_enable_metrics_collection=1 {"edge": {"max_replicas": 1}}'

A version is a checkout, then environment variables and options of the service that differ. The
speed of a machine changes within minutes, and by more than most changes are worth; so a ratio is
the median of those within a turn, the first version's figure being 1. In each turn every version
gets lone texts, lists of 64, and one text at a time, and the order alternates. All messages stay at
the edge. An idle version takes some percent of a core from the others, so figures are lower than
`make bench-serve`'s; nothing else should run on the machine.

Prints CPU per message by process, too, and writes `.firstline/bench/duel.json`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from cluster.settings import load_settings
from tests.bench.load import alone, bodies_of, wrk
from tests.bench.ours import PATH
from tests.bench.rows import Row, publish
from tests.bench.serve import CONNECTIONS, MANY, texts_of

# Lists in flight that no version refuses, beside another that idles.
_MANY_CONNECTIONS: Final = 6
_ALONE: Final = 60
_SETTLED_S: Final = 16.0  # of load, until autoscaling has added what it wants
_ENDED_S: Final = 240.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
# Run with the version's own code: it starts a service and waits for its standard input to end.
_SERVE: Final = """
import json, sys
from pathlib import Path
from cluster.bundles import load_bundle
from cluster.settings import Settings
from tests.bench.ours import config, serving
try:
    from serve_app.model.cpu import cpu_flags
    from tests.support.serving import make_release
except ImportError:  # a version from before there were packages
    from serve_app.cpu import cpu_flags
    from tests.serving import make_release
home, edge, cloud, options = sys.argv[1:]
settings, edge, cloud = Settings(home=Path(home)), load_bundle(Path(edge)), load_bundle(Path(cloud))
artifact = edge.artifact(cpu_flags()).model
release = make_release(settings, edge, cloud, threshold=0.0, edge_artifact=artifact)
with serving(settings, release.id, config(**json.loads(options))) as info:
    print(info.url, flush=True)
    sys.stdin.read()
"""


@dataclass
class Version:
    """One that is up: where, its processes, and its figures, one per turn."""

    name: str
    url: str
    pids: frozenset[int]
    figures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def loaded(self, bodies: Sequence[bytes], texts: int, connections: int, seconds: float) -> None:
        before = cpu_s(self.pids)
        load = wrk(self.url, bodies, connections=connections, seconds=seconds)
        after = cpu_s(self.pids)
        name = "lone texts" if texts == 1 else f"lists of {texts}"
        messages = texts * (load.requests - load.failed)
        self.figures[f"{name}, messages/s"].append(messages / load.seconds)
        self.figures[f"{name}, refused or failed"].append(load.failed)
        for part, spent_s in after.items():
            used_us = 1e6 * (spent_s - before.get(part, 0.0)) / max(messages, 1)
            self.figures[f"{name}, us of CPU a message, {part}"].append(used_us)

    def asked_alone(self, bodies: Sequence[bytes]) -> None:
        load = alone(self.url, bodies, _ALONE)
        self.figures["one text alone, p50, ms"].append(load.p50_ms)
        self.figures["one text alone, p95, ms"].append(load.p95_ms)


def pids() -> frozenset[int]:
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())


def cpu_s(of: frozenset[int]) -> Mapping[str, float]:
    """Seconds of CPU that these processes have used, by what they are."""
    spent_s: dict[str, float] = defaultdict(float)
    for pid in of:
        try:
            numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        spent_s[_part(command)] += (int(numbers[11]) + int(numbers[12])) / _TICKS_PER_S
    return spent_s


def _part(command: str) -> str:
    if command.startswith("ray::ServeReplica"):
        return next((part for part in ("edge", "router") if f":{part}" in command), "other")
    return "HAProxy" if "haproxy\0-" in command else "other"


@contextmanager
def up(name: str, given: argparse.Namespace) -> Iterator[Version]:
    """A version with a home of its own, ended with the block."""
    checkout, *changes = name.split(maxsplit=1)
    tree = str(Path(checkout).resolve())
    words, brace, options = "".join(changes).partition("{")
    variables = dict(word.split("=", 1) for word in words.split())
    environment = {**os.environ, "PYTHONPATH": tree, **variables}
    before = pids()
    with tempfile.TemporaryDirectory(prefix="fl-") as home:
        command = [sys.executable, "-c", _SERVE, home, str(given.edge.resolve()),
                   str(given.cloud.resolve()), brace + options or "{}"]  # fmt: skip
        process = subprocess.Popen(command, env=environment, cwd=tree, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = next((line for line in process.stdout if line.startswith("http")), "").strip()
            if not url:
                raise SystemExit(f"The version {name!r} did not start; see above.")
            version = Version(name, url + PATH, frozenset())
            wrk(version.url, bodies_of(given.texts), connections=CONNECTIONS, seconds=_SETTLED_S)
            version.pids = pids() - before
            yield version
        finally:
            process.stdin.close()
            process.wait(timeout=_ENDED_S)


@contextmanager
def all_up(names: Sequence[str], given: argparse.Namespace) -> Iterator[list[Version]]:
    if not names:
        yield []
        return
    with up(names[0], given) as first, all_up(names[1:], given) as others:
        yield [first, *others]


def compare(versions: Sequence[Version], given: argparse.Namespace) -> None:
    lone, lists = bodies_of(given.texts), bodies_of(given.texts, MANY)
    for turn in range(given.turns):
        for version in versions if turn % 2 else reversed(versions):
            version.loaded(lone, 1, CONNECTIONS, given.seconds)
            version.loaded(lists, MANY, _MANY_CONNECTIONS, given.seconds)
            version.asked_alone(lone)
        print(f"turn {turn + 1} of {given.turns}", file=sys.stderr, flush=True)


def table(versions: Sequence[Version]) -> Iterator[Row]:
    """Each version beside the first."""
    first, *others = versions
    for other in others:
        for figure, seen in other.figures.items():
            base = first.figures[figure]
            ratios = [mine / theirs for mine, theirs in zip(seen, base, strict=True) if theirs]
            ratio = median(ratios) if ratios else None
            yield Row(f"{other.name}: {figure}", median(seen), median(base), ratio, "", True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("versions", nargs="+", help="'CHECKOUT [NAME=VALUE ...] [{options}]'")
    parser.add_argument("--edge", type=Path, required=True, help="a bundle")
    parser.add_argument("--cloud", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a CSV of messages")
    parser.add_argument("--text", default="text", help="its column")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    given = parser.parse_args()
    if len(given.versions) < 2:
        parser.error("two versions at least")
    given.texts = texts_of(given.data, given.text)
    with all_up(given.versions, given) as versions:
        compare(versions, given)
    notes = {version.name: dict(version.figures) for version in versions}
    publish("duel", list(table(versions)), notes, load_settings().home)


if __name__ == "__main__":
    main()

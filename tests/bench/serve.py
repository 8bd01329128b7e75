"""What `firstline serve` reaches on one machine, beside other servers of the same edge model.

    make bench-serve                       the pair and the messages of `make bench-edge`
    python -m tests.bench.serve --edge BUNDLE --cloud BUNDLE --data test.csv --text text
    python -m tests.bench.serve --home .firstline/demo

One server runs at a time; in each round each of them is started, asked and ended once, and a figure
is the median of the rounds. Every server has the same edge model and is checked before it is timed:
its labels must be those of the bundle. The load is wrk's, one text a request unless it says so;
what a message costs alone is measured by a client of ours. Beside the peers all messages stay at
our edge, since a peer has no other model; `mixed` is the same traffic as the policy routes it.
docs/performance.md says what comes of it.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from cluster.bundles import ModelBundle, load_bundle
from cluster.files import read_json
from cluster.releases import Release, create_release, list_releases, load_release
from cluster.settings import Settings, load_settings
from serve_app.guard.prepare import prepare
from serve_app.model.classifier import OnnxClassifier
from serve_app.model.cpu import cpu_flags
from serve_app.service import releases
from tests.bench.added import added_ms
from tests.bench.load import ROOT, Exchange, alone, ask, bodies_of, wrk
from tests.bench.ours import PATH, config, serving
from tests.bench.peers import PEERS, PUBLISHED, Given, Peer, PeerError, environment, running
from tests.bench.rows import Row, publish, row
from tests.support.serving import make_release
from tune.certificate.recertify import USED

OURS: Final = "ours"
MIXED: Final = "mixed"
BARE: Final = "a bare ONNX Runtime loop"
TUNED: Final = "the loop with our graph"
# Whose figures are the reference for a message alone.
FASTAPI: Final = (PEERS[0].name, PEERS[1].name)
CONNECTIONS: Final = 32
MANY: Final = 64  # texts per request
MANY_CONNECTIONS: Final = 8
_TEXTS: Final = 1024
_CHECKED: Final = 100
_CHECKED_PUBLISHED: Final = 10
_AGREE: Final = 0.95  # of labels, where a peer runs another file of the same model
_WARM_S: Final = 3.0
# A replica that autoscaling adds takes both cores for some seconds while it starts; no peer scales.
_SETTLED_S: Final = 20.0

Figures = dict[str, dict[str, list[float]]]  # server -> figure -> one per round


@dataclass(frozen=True)
class Bench:
    """What is served and asked. `threshold` is of the mixed policy, where no release brings one."""

    edge: ModelBundle
    cloud: ModelBundle
    given: Given
    texts: Sequence[str]
    settings: Settings
    near: Release  # keeps every message at the edge
    mixed: Release
    seconds: float
    alone: int


@dataclass
class Seen:
    """What was measured, and what could not be, and why."""

    figures: Figures = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, server: str, **figures: float) -> None:
        for name, value in figures.items():
            self.figures[server][name].append(value)


# -- one server ----------------------------------------------------------------------------------


def answers_of(exchange: Exchange) -> list[dict[str, Any]]:
    """The answers of one exchange; raises where there are none."""
    if exchange.status != 200:
        raise RuntimeError(f"A server answered {exchange.status} {exchange.error} to the check.")
    answers: list[dict[str, Any]] = json.loads(exchange.answer)["answers"]
    return answers


def check(name: str, url: str, texts: Sequence[str], labels: Sequence[str], share: float) -> None:
    """Raises unless so large a share of the labels is the bundle's."""
    seen = ask(url, bodies_of(texts))
    same = sum(
        answers_of(one)[0]["label"] == label for one, label in zip(seen, labels, strict=True)
    )
    if same < share * len(texts):
        raise RuntimeError(f"{name} gave {same} of {len(texts)} labels as the bundle does.")


def measure(url: str, bench: Bench) -> dict[str, float]:
    """One text a request: requests/s, and the latency of a message alone."""
    bodies = bodies_of(bench.texts)
    wrk(url, bodies, connections=CONNECTIONS, seconds=_WARM_S)
    load = wrk(url, bodies, connections=CONNECTIONS, seconds=bench.seconds)
    single = alone(url, bodies, bench.alone)
    return {
        "per_s": load.per_s,
        "loaded_p50_ms": load.p50_ms,
        "loaded_p99_ms": load.p99_ms,
        "failed": float(load.failed + single.failed),
        "p50_ms": single.p50_ms,
        "p95_ms": single.p95_ms,
    }


def settle(url: str, bench: Bench) -> None:
    """Load until autoscaling has added what it wants."""
    wrk(url, bodies_of(bench.texts), connections=CONNECTIONS, seconds=_SETTLED_S)


def many(url: str, bench: Bench) -> dict[str, float]:
    """Messages/s at `MANY` texts a request."""
    bodies = bodies_of(bench.texts, MANY)
    wrk(url, bodies, connections=MANY_CONNECTIONS, seconds=_WARM_S)
    load = wrk(url, bodies, connections=MANY_CONNECTIONS, seconds=bench.seconds)
    return {"many_per_s": MANY * load.per_s, "many_failed": float(load.failed)}


def edge_share(url: str, bench: Bench) -> float:
    seen = [answer for one in ask(url, bodies_of(bench.texts, MANY)) for answer in answers_of(one)]
    return [answer["route"] for answer in seen].count("edge") / len(seen)


# -- a turn of each ------------------------------------------------------------------------------


def our_turn(bench: Bench, seen: Seen) -> None:
    """All at the edge, then as the policy routes it; both by one service."""
    texts = bench.texts[:_CHECKED]
    model = OnnxClassifier.of(bench.edge)
    labels = [one.label for one in model.predict([prepare(text).text for text in texts])]
    with serving(bench.settings, bench.near.id, config()) as info:
        url = info.url + PATH
        check(OURS, url, texts, labels, 1.0)
        settle(url, bench)
        seen.add(OURS, **measure(url, bench), **many(url, bench))
        releases.promote(bench.settings, bench.mixed.id)
        settle(url, bench)
        seen.add(MIXED, **measure(url, bench), edge_share=edge_share(url, bench))


def peer_turn(peer: Peer, bench: Bench, python: Path | None, seen: Seen) -> None:
    """A peer that cannot be installed or started is noted, and left out of later rounds."""
    if peer.name in seen.missing:
        return
    texts = bench.texts[:_CHECKED]
    labels = [one.label for one in OnnxClassifier.of(bench.edge).predict(texts)]
    try:
        with running(peer, bench.given, python) as url:
            check(peer.name, url, texts, labels, 1.0 if peer.exact else _AGREE)
            seen.add(peer.name, **measure(url, bench))
    except PeerError as error:
        seen.missing[peer.name] = str(error)


def published_turn(bench: Bench, seen: Seen) -> None:
    """Messages/s of the published router: 32 connections and one text each, as ours."""
    texts = bench.texts[:_CHECKED_PUBLISHED]
    with running(PUBLISHED, bench.given, None) as url:
        for one in ask(url, bodies_of(texts)):
            answers_of(one)
        load = wrk(url, bodies_of(bench.texts), connections=CONNECTIONS, seconds=bench.seconds)
    seen.add(PUBLISHED.name, per_s=load.per_s)


def bare_turn(bench: Bench, seen: Seen, *, plain: bool) -> None:
    """Messages/s of the loop, in a process for each core."""
    file = bench.settings.home / "texts.json"
    file.write_text(json.dumps(list(bench.texts)))
    command = [sys.executable, "-m", "tests.bench.peers.bare", "--edge", str(bench.given.edge),
               "--artifact", bench.given.artifact, "--file", str(file), "--seconds",
               str(bench.seconds), *(["--plain"] if plain else [])]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    seen.add(BARE if plain else TUNED, per_s=float(done.stdout))


def turns(bench: Bench, python: Path | None, seen: Seen) -> Iterator[Callable[[], None]]:
    """What a round is made of, ours in the middle of the others."""

    def of(peer: Peer) -> Callable[[], None]:
        return lambda: peer_turn(peer, bench, python, seen)

    before, after = PEERS[: len(PEERS) // 2], PEERS[len(PEERS) // 2 :]
    yield from map(of, before)
    yield lambda: our_turn(bench, seen)
    yield lambda: bare_turn(bench, seen, plain=True)
    yield lambda: bare_turn(bench, seen, plain=False)
    yield from map(of, after)
    yield lambda: published_turn(bench, seen)
    yield lambda: seen.add(OURS, added_ms=added_ms(bench.texts))


# -- the table -----------------------------------------------------------------------------------


def table(seen: Seen, score: Sequence[Row]) -> Iterator[Row]:
    """The rows of the issue, then what stands behind them."""
    figures = seen.figures
    ours, mixed = figures[OURS], figures[MIXED]
    peers = [peer.name for peer in PEERS if peer.name in figures]
    best = max(peers, key=lambda name: median(figures[name]["per_s"]))
    yield row(f"requests/s, {CONNECTIONS} connections, over the best peer's ({best})",
              ours["per_s"], figures[best]["per_s"], at_least=1.0, judge_ratio=True)  # fmt: skip
    yield from alone_rows(ours, [figures[name] for name in FASTAPI if name in figures])
    for loop in (BARE, TUNED):
        figure = f"messages/s, {MANY} texts a request, over {loop}"
        bare = figures[loop]["per_s"]
        yield row(figure, ours["many_per_s"], bare, at_least=0.85, judge_ratio=True)
    yield from score
    figure = "messages/s as the policy routes it, over the published router"
    published = figures[PUBLISHED.name]["per_s"]
    yield row(figure, mixed["per_s"], published, at_least=20, judge_ratio=True)
    yield row("added by audit, metrics, guard and cache, p50, ms", ours["added_ms"], at_most=0.5)
    for name in peers:
        yield row(f"requests/s, over {name}", ours["per_s"], figures[name]["per_s"])
    for name, why in seen.missing.items():
        yield Row(f"requests/s, over {name}: not measured, {why}", median(ours["per_s"]), None,
                  None, "", True)  # fmt: skip
    yield row("requests/s as the policy routes it, over all at the edge",
              mixed["per_s"], ours["per_s"])  # fmt: skip
    yield row("the edge's share of them", mixed["edge_share"])
    yield row("one text alone as the policy routes it, p50, ms", mixed["p50_ms"])
    yield row("one text alone as the policy routes it, p95, ms", mixed["p95_ms"])
    yield row("requests that failed", [*ours["failed"], *mixed["failed"]], at_most=0)
    yield row(f"requests of {MANY} texts that failed or were refused", ours["many_failed"],
              at_most=0)  # fmt: skip


def alone_rows(
    ours: Mapping[str, Sequence[float]], fastapi: Sequence[Mapping[str, Sequence[float]]]
) -> Iterator[Row]:
    """At most so many milliseconds, or so many times the quicker FastAPI's in the same run."""
    for figure, limit, times in (("p50_ms", 5.0, 2.5), ("p95_ms", 12.0, 4.0)):
        mine = median(ours[figure])
        theirs = min((median(one[figure]) for one in fastapi), default=None)
        ratio = mine / theirs if theirs else None
        yield Row(
            f"one text alone, {figure[:3]}, ms, over FastAPI's", mine, theirs, ratio,
            f"<= {limit:g}, or ratio <= {times:g}",
            mine <= limit or (ratio is not None and ratio <= times),
        )  # fmt: skip


def score_rows(file: Path) -> list[Row]:
    """Those of tests/bench/score.py, if it has run."""
    return [Row(**item) for item in read_json(file)] if file.is_file() else []


# -- what is served ------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--home", type=Path, help="its newest release: bundles and policy")
    parser.add_argument("--edge", type=Path, help="a bundle; with --cloud, instead of --home")
    parser.add_argument("--cloud", type=Path)
    parser.add_argument("--student", type=Path, help="the edge's torch folder; by default beside")
    parser.add_argument("--data", type=Path, help="a CSV of messages")
    parser.add_argument("--text", default="text", help="its column")
    parser.add_argument("--threshold", type=float, default=0.9,
                        help="confidence from which --edge is trusted")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--alone", type=int, default=500, help="messages, one at a time")
    return parser.parse_args()


def located(arguments: argparse.Namespace, home: Path) -> argparse.Namespace:
    """With the paths that were left out: those of bench-edge's samples, if they are there."""
    samples = home / "bench" / "edge-samples"
    if not (arguments.home or arguments.edge):
        arguments.edge = samples / "seed-0" / "edge-bundle"
        arguments.cloud = samples / "cloud-bundle"
    if arguments.data is None:
        arguments.data = (arguments.home or samples) / "samples.csv"
    wanted = (
        [arguments.data] if arguments.home else [arguments.edge, arguments.cloud, arguments.data]
    )
    if absent := [str(path) for path in wanted if path is None or not path.exists()]:
        raise SystemExit(
            f"There is nothing to serve or to ask: {', '.join(absent)} not found. Run "
            "`make bench-edge` or `make demo` first, or name --edge, --cloud and --data."
        )
    return arguments


def prepared(arguments: argparse.Namespace, home: Path, work: Path) -> Bench:
    """Both releases in a home of their own: one that keeps all at the edge, one that does not."""
    settings = Settings(home=work / "home")
    given = _release(arguments.home) if arguments.home else None
    edge = load_bundle(given.edge_path if given else arguments.edge)
    cloud = load_bundle(given.cloud_path if given else arguments.cloud)
    artifact = given.edge_artifact if given else edge.artifact(cpu_flags()).model
    near = make_release(settings, edge, cloud, threshold=0.0, edge_artifact=artifact)
    mixed = (
        _copied(given, settings, edge, cloud)
        if given
        else make_release(
            settings, edge, cloud, threshold=arguments.threshold, edge_artifact=artifact
        )
    )
    student = arguments.student or edge.path.parent / "edge"
    return Bench(
        edge=edge,
        cloud=cloud,
        given=Given(edge.path, artifact, cloud.path, student if student.is_dir() else None,
                    _published(cloud, home)),
        texts=texts_of(arguments.data, arguments.text),
        settings=settings,
        near=near,
        mixed=mixed,
        seconds=arguments.seconds,
        alone=arguments.alone,
    )  # fmt: skip


def _release(home: Path) -> Release:
    settings = load_settings(home)
    known = list_releases(settings)
    if not known:
        raise SystemExit(f"There is no release in {home}. Make one with `firstline tune`.")
    return load_release(settings, known[-1])


def _copied(given: Release, settings: Settings, edge: ModelBundle, cloud: ModelBundle) -> Release:
    """The same policy and certificate in the bench's home."""
    return create_release(
        settings, edge=edge, cloud=cloud, policy=given.policy, certificate=given.certificate,
        prices=given.prices, extras=[given.path / USED],
    )  # fmt: skip


def _published(cloud: ModelBundle, home: Path) -> Path:
    """The cloud model in dynamic int8, which is the published edge; kept for a rerun."""
    from onnxruntime.quantization import quantize_dynamic

    file = home / "bench" / "serve" / f"published-{cloud.sha256[:16]}.onnx"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        quantize_dynamic(cloud.model_path, file)
    return file


def texts_of(file: Path, column: str) -> list[str]:
    """Distinct texts without personal data, which a peer would not mask and so see otherwise."""
    with file.open(newline="") as opened:
        found = dict.fromkeys(line[column].strip() for line in csv.DictReader(opened))
    kept = [text for text in found if prepare(text).text == text]
    return kept[:_TEXTS]


def main() -> None:
    home = Path(".firstline").absolute()
    arguments = located(parse(), home)
    try:
        python: Path | None = environment(home / "bench" / "serve-peers-venv")
    except PeerError as error:
        python = None
        print(f"LitServe and BentoML are left out: {error}")
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as work:
        bench = prepared(arguments, home, Path(work))
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
            for turn in turns(bench, python, seen):
                turn()
    notes = {"data": str(arguments.data), "texts": len(bench.texts), "figures": seen.figures,
             "missing": seen.missing, "edge": bench.edge.sha256, "cloud": bench.cloud.sha256,
             "policy": bench.mixed.policy}  # fmt: skip
    score = score_rows(home / "bench" / "score.json")
    if not publish("serve", list(table(seen, score)), notes, home):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

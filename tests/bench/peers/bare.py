"""The ceiling: a bare ONNX Runtime loop over the messages, in one process for each core.

    python -m tests.bench.peers.bare --edge BUNDLE --file texts.json --seconds 5

Nothing else: tokens, a run, a label. Prints messages/s.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.peers.model import Model


def loop(
    bundle: Path, artifact: str, plain: bool, texts: Sequence[str], seconds: float, start: Any
) -> float:
    """Messages per second of one process, all of which start at the same time."""
    model = Model(bundle, artifact, plain=plain)
    model(texts[:64])
    start.wait()
    done, first = 0, time.perf_counter()
    while time.perf_counter() - first < seconds:
        done += len(model(texts[done % len(texts) :][:64]))
    return done / (time.perf_counter() - first)


def _child(kept: Any, *arguments: Any) -> None:
    kept.put(loop(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--edge", type=Path, required=True)
    parser.add_argument("--artifact", default="model.onnx")
    parser.add_argument("--plain", action="store_true", help="ONNX Runtime's own graph")
    parser.add_argument("--file", type=Path, required=True, help="a JSON list of texts")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    start, kept = spawn.Barrier(given.processes), spawn.Queue()
    texts = json.loads(given.file.read_text())
    arguments = (kept, given.edge, given.artifact, given.plain, texts, given.seconds, start)
    children = [spawn.Process(target=_child, args=arguments) for _ in range(given.processes)]
    for child in children:
        child.start()
    print(sum(kept.get(timeout=given.seconds + 60) for _ in children))
    for child in children:
        child.join()


if __name__ == "__main__":
    main()

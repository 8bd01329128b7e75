"""`firstline score` against a bare ONNX Runtime loop of the same edge model on the same cores.

    python -m tests.bench.score --edge BUNDLE --cloud BUNDLE --texts messages.parquet

The bare loop tokenises and runs each message, and nothing else: no file, no guard, no rule, no
Ray; one process per core, each with half of the messages. It comes with ONNX Runtime's default
graph, and with ours, which is faster (classifier.py). The release trusts the edge with everything,
so both do the same work. Runs are interleaved; rates are from the first message to the last, and
the whole command's time, Ray's start included, is told beside. Memory is the peak sum of the
resident sets of the driver and its actors.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.bundles import ModelBundle, load_bundle
from cluster.settings import Settings, load_settings
from serve_app.model.cpu import cpu_flags
from tests.bench.rows import publish, row
from tests.support.serving import make_release
from train_jobs.samples.generator import generate

ROOT: Final = Path(__file__).parents[2]
_LOOK_S: Final = 0.5
_MB: Final = 1e6
_ACTOR: Final = "MapWorker"

# Reads its share of the texts, says that it is ready, and starts when told.
_BARE: Final = """
import json, sys, time
import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
from tokenizers import Tokenizer

model, tokenizer, texts, share, shares, disabled = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = ort.InferenceSession(
    model, options, providers=["CPUExecutionProvider"], disabled_optimizers=json.loads(disabled)
)
tokenizer = Tokenizer.from_file(tokenizer)
tokenizer.no_padding()
tokenizer.enable_truncation(256)
names = {item.name for item in session.get_inputs()}
mine = pq.read_table(texts)["text"].to_pylist()[int(share) :: int(shares)]

def run(text):
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    feed = {"input_ids": ids}
    if "attention_mask" in names:
        feed["attention_mask"] = np.ones_like(ids)
    if "token_type_ids" in names:
        feed["token_type_ids"] = np.zeros_like(ids)
    return session.run(None, feed)[0].argmax()

for text in mine[:100]:
    run(text)
print("ready", flush=True)
sys.stdin.readline()
start = time.time()
for text in mine:
    run(text)
print(json.dumps([start, time.time()]))
"""


def write_texts(texts: Sequence[str], rows: int, folder: Path) -> Path:
    """So many rows, the texts again and again, in row groups as pyarrow makes them."""
    path = folder / f"texts-{rows}.parquet"
    schema = pa.schema([("text", pa.string())])
    again = cycle(texts)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 1 << 16):
            batch = list(islice(again, min(1 << 16, rows - start)))
            writer.write_table(pa.table({"text": batch}, schema=schema))
    return path


def bare(edge: ModelBundle, texts: Path, cpus: int, disabled: Sequence[str]) -> float:
    """Messages per second of the bare loop."""
    model = edge.path / edge.artifact(cpu_flags()).model
    given = [str(model), str(edge.tokenizer_path), str(texts)]
    loops = [
        subprocess.Popen(
            [sys.executable, "-c", _BARE, *given, str(share), str(cpus), json.dumps(disabled)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for share in range(cpus)
    ]  # fmt: skip
    for loop in loops:
        assert loop.stdout is not None
        assert loop.stdout.readline() == "ready\n"
    times = []
    for loop in loops:
        assert loop.stdin is not None
        loop.stdin.write("\n")
        loop.stdin.flush()
    for loop in loops:
        times.append(json.loads(loop.communicate()[0]))
    starts, ends = zip(*times, strict=True)
    return float(pq.read_metadata(texts).num_rows / (max(ends) - min(starts)))


class Scored:
    """One run of the command: its summary, its wall time, its peak memory."""

    def __init__(self, settings: Settings, release: str, texts: Path, cpus: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--release", release, "--out", folder, "--cpus", str(cpus), "--json"]
            start = time.monotonic()
            driver = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "score", *words, str(texts)],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
                env={**os.environ, **settings.worker_env(), "RAY_worker_niceness": "0"},
            )  # fmt: skip
            peak = _watched(driver.pid)
            told, _ = driver.communicate()
            self.wall_s = time.monotonic() - start
        self.peak_mb = peak()
        assert driver.returncode == 0, "firstline score failed"
        self.summary: dict[str, Any] = json.loads(told)

    @property
    def rate(self) -> float:
        return float(self.summary["rows"] / self.summary["scoring_s"])


def _watched(pid: int) -> Callable[[], float]:
    """Looks at a driver and its actors until told to stop; then the peak, in MB."""
    seen, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            seen.append(_resident_mb(pid))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()

    def stop() -> float:
        over.set()
        thread.join()
        return max(seen)

    return stop


def _resident_mb(pid: int) -> float:
    total = 0.0
    try:
        driver = psutil.Process(pid)
        for process in (driver, *driver.children(recursive=True)):
            if process.pid == pid or _ACTOR in " ".join(process.cmdline()):
                total += process.memory_info().rss / _MB
    except psutil.Error:  # one ended while it was looked at
        return 0.0
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    pair = load_settings().home / "bench" / "edge-samples"
    parser.add_argument("--edge", type=Path, default=pair / "seed-0" / "edge-bundle",
                        help="a bundle; default: of `make bench-edge`")  # fmt: skip
    parser.add_argument("--cloud", type=Path, default=pair / "cloud-bundle", help="a bundle")
    parser.add_argument("--texts", type=Path, help="Parquet with a column text; none: samples")
    parser.add_argument("--home", type=Path, help="where score.json goes")
    parser.add_argument("--rows", type=int, default=100_000, help="of a timed run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--sizes", default="10000,100000", help="whose memory is compared")
    parser.add_argument("--full", action="store_true", help="of 1,000,000 rows too")
    given = parser.parse_args()
    edge, cloud = load_bundle(given.edge), load_bundle(given.cloud)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = Settings(home=folder / "home")
        release = make_release(settings, edge, cloud, threshold=0.0).id
        texts = (
            pq.read_table(given.texts)["text"].to_pylist()
            if given.texts
            else [sample.text for sample in generate(5000, 0)]
        )
        timed = write_texts(texts, given.rows, folder)
        ours: list[Scored] = []
        plain, tuned = list[float](), list[float]()
        for _ in range(given.rounds):
            plain.append(bare(edge, timed, given.cpus, []))
            ours.append(Scored(settings, release, timed, given.cpus))
            tuned.append(bare(edge, timed, given.cpus, ["SkipLayerNormFusion"]))
        sizes = [*map(int, given.sizes.split(",")), *([1_000_000] if given.full else [])]
        peaks = [
            Scored(settings, release, write_texts(texts, size, folder), given.cpus).peak_mb
            for size in sizes
        ]
    rates = [one.rate for one in ours]
    whole = [given.rows / one.wall_s for one in ours]
    table = [
        row("score, messages/s, over a bare loop", rates, plain, at_least=0.9, judge_ratio=True),
        row("the same, the loop with our graph", rates, tuned, at_least=0.9, judge_ratio=True),
        row(f"the whole command of {given.rows} rows", whole, tuned),
        row(
            f"peak memory of {sizes[-1]} rows over {sizes[0]}, MB", peaks[-1:], peaks[:1],
            at_most=1.15, judge_ratio=True,
        ),
    ]  # fmt: skip
    notes = {
        "rows": given.rows, "rounds": given.rounds, "cpus": given.cpus,
        "peak_mb": dict(zip(map(str, sizes), peaks, strict=True)),
        "edge_share": ours[0].summary["edge_share"],
    }  # fmt: skip
    sys.exit(not publish("score", table, notes, load_settings(given.home).home))


if __name__ == "__main__":
    main()

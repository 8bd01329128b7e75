"""The cloud model against words alone, a plain recipe and an earlier build, from one split.

    make bench-teacher DATA=train.csv TEST=test.csv TEXT=text LABEL=category [FEW="300 1000 3000"]

Everything is trained in turns, one thing at a time: of each seed the references and ours, then of
the next, so that a slow minute of the machine hits all. Each result is kept at once in
`.firstline/bench/teacher-NAME/found.json`, and what stands there is not measured again: a run of
hours goes on where it was stopped. Take out what is to be measured anew, such as `cloud 0`.

Every accuracy is on `test`, on which nothing was fitted. The plain recipe comes with three rates,
and ours is compared with the best of them on `test`, which is in the plain recipe's favour.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from cluster.files import read_json, write_json
from cluster.settings import Settings, load_settings
from tests.bench import teacher_build, teacher_peers
from tests.bench.rows import publish
from tests.bench.teacher_rows import PLAIN, Found, intervals, of_rows, over_plain, table
from train_jobs.data import MANIFEST, Dataset, build, load_dataset
from train_jobs.pipeline import PipelineConfig
from train_jobs.samples.generator import write_csv
from train_jobs.training.encoders import resolve_base

FOUND: Final = "found.json"


class Part(StrEnum):
    """What can be measured by itself, in a run of its own."""

    WORDS = "words"
    PLAIN = "plain"
    OURS = "ours"
    BEFORE = "before"
    FEW = "few"


@dataclass(frozen=True)
class Piece:
    """One thing to train and to measure."""

    what: str
    seed: int
    rows: int | None = None  # of `train`; None: all

    @property
    def name(self) -> str:
        return f"{of_rows(self.what, self.rows)} {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every piece is measured with."""

    how: Mapping[str, str | None]  # files, columns and base: see teacher_build.config_of
    config: PipelineConfig
    settings: Settings
    dataset: Dataset
    work: Path
    before: str  # a commit


# -- what is measured -------------------------------------------------------------------------


def pieces(
    parts: Collection[Part],
    *,
    seeds: int,
    before_seeds: int,
    few: Sequence[int],
    few_seeds: int,
) -> list[Piece]:
    """In the order in which they are measured: in turns by seed, few rows last."""
    made = []
    for seed in range(seeds):
        turn = {
            Part.WORDS: ["words"],
            Part.PLAIN: [*PLAIN],
            Part.OURS: ["cloud", "edge"],
            Part.BEFORE: ["before"] if seed < before_seeds else [],
        }
        made += [Piece(what, seed) for part in turn if part in parts for what in turn[part]]
    for rows in few if Part.FEW in parts else ():
        for seed in range(few_seeds):
            made += [Piece(what, seed, rows) for what in ("words", *PLAIN, "cloud")]
    return made


def go_on(
    made: Sequence[Piece],
    measure: Callable[[Piece], Mapping[str, float]],
    kept: Path,
    about: Mapping[str, str],
) -> Found:
    """Measures what was not measured before. Each result is on disk before the next begins.

    Args: about: what all the figures are of; figures of something else are not mixed with them.
    """
    there: Any = read_json(kept) if kept.is_file() else {"about": dict(about), "found": {}}
    if there["about"] != about:
        raise SystemExit(
            f"{kept} holds figures of {there['about']}; {dict(about)} is asked for. Give another "
            "NAME, or delete that folder."
        )
    found: dict[str, Mapping[str, float]] = there["found"]
    for piece in made:
        if piece.name not in found:
            sys.stderr.write(f"-- {piece.name}\n")
            found[piece.name] = measure(piece)
            write_json(kept, {"about": dict(about), "found": found})
    return found


def cut(dataset: Dataset, rows: int, folder: Path) -> Dataset:
    """The same dataset with so many rows of `train`, by content hash, and of `dapt` no others."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(dataset.path, folder)
    keys = pq.read_table(folder / "train.parquet", columns=["key"])["key"].to_pylist()
    # Other digits than those that placed a row in its split, or that hold it out from training.
    kept = set(sorted(keys, key=lambda key: str(key[16:24]))[:rows])
    about = read_json(folder / MANIFEST)
    for split in ("train", "dapt"):
        table = pq.read_table(folder / f"{split}.parquet")
        there = [key in kept for key in table["key"].to_pylist()]
        pq.write_table(table.filter(there), folder / f"{split}.parquet")
        about["rows"][split] = sum(there)
    about["fingerprint"] = f"{dataset.fingerprint}-{rows}"
    write_json(folder / MANIFEST, about)
    return load_dataset(folder)


def measure(bench: Bench, piece: Piece) -> dict[str, float]:
    """The figures of one piece."""
    dataset, seed = bench.dataset, piece.seed
    if piece.rows is not None:
        dataset = cut(dataset, piece.rows, bench.work / f"rows-{piece.rows}")
    if piece.what == "words":
        return teacher_peers.words_alone(dataset, seed)
    if piece.what in PLAIN:
        source = resolve_base(str(bench.how["base"]))
        return teacher_peers.plain(source, PLAIN[piece.what], dataset, seed)
    if piece.what == "before":
        folder = bench.work / "before"
        return teacher_peers.before(bench.before, bench.how, dataset, seed, folder)
    return _ours(bench, piece, dataset)


def _ours(bench: Bench, piece: Piece, dataset: Dataset) -> dict[str, float]:
    """The cloud's folder stays until its edge model is measured too."""
    settings = bench.settings.model_copy(update={"seed": piece.seed})
    out = bench.work / f"ours-{piece.rows or 'all'}-rows" / f"seed-{piece.seed}"
    if piece.what == "cloud":
        shutil.rmtree(out, ignore_errors=True)
        made = teacher_build.cloud(bench.config, dataset, out, settings)
        if piece.rows is None:
            return made
    else:
        if not (out / teacher_build.CLOUD).is_dir():
            raise SystemExit(
                f"{out / teacher_build.CLOUD} is gone, for which the edge model is made. Take "
                f"'cloud {piece.seed}' out of {bench.work / FOUND}, so that it is trained again."
            )
        shutil.rmtree(out / "student", ignore_errors=True)
        made = teacher_build.edge(bench.config, dataset, out, settings)
    shutil.rmtree(out, ignore_errors=True)
    return made


# -- the command ------------------------------------------------------------------------------


def main() -> None:
    given = parse()
    home = Path(".firstline").absolute()
    name = given.name or (given.data.parent.name if given.data else "samples")
    work = home / "bench" / f"teacher-{name}"
    data = given.data.absolute() if given.data else work / "samples.csv"
    test = given.test.absolute() if given.test else None
    if given.data is None:
        work.mkdir(parents=True, exist_ok=True)
        write_csv(data, given.rows, seed=0)
    settings = load_settings(work)
    how = {"data": str(data), "test": str(test) if test else None, "text": given.text,
           "label": given.label, "base": given.base}  # fmt: skip
    config = teacher_build.config_of(how)
    dataset = build(config.data, settings)
    if few := [rows for rows in given.few if rows > dataset.rows["train"]]:
        raise SystemExit(f"--few asks for {few} rows; `train` has {dataset.rows['train']}.")
    bench = Bench(how=how, config=config, settings=settings, dataset=dataset, work=work,
                  before=given.before)  # fmt: skip
    about = {"dataset": dataset.fingerprint, "base": given.base, "before": given.before}
    found = go_on(
        pieces(
            set(given.parts) - ({Part.BEFORE} if given.without_before else set()),
            seeds=given.seeds, before_seeds=given.before_seeds, few=given.few,
            few_seeds=given.few_seeds,
        ),
        lambda piece: measure(bench, piece), work / FOUND, about,
    )  # fmt: skip
    show(name, found, bench, home)


def show(name: str, found: Found, bench: Bench, home: Path) -> None:
    """Prints and writes what was found; exits with 1 if a row misses."""
    shares = intervals(found, bench.dataset.rows["test"])
    notes: dict[str, object] = {
        "data": bench.how, "rows": dict(bench.dataset.rows), "before": bench.before,
        "accuracy": shares, "found": found,
    }  # fmt: skip
    for what, share in shares.items():
        print(f"{what} {share['share']:.4f} ({share['low']:.4f} to {share['high']:.4f}) "
              f"of {share['rows']} rows of test")  # fmt: skip
    rows = list(table(name, found, bench.before))
    if not rows:
        print("Ours was not measured yet, so there is nothing to compare.")
        return
    if plain := over_plain(found):
        notes["average"] = (
            f"{plain[1]:+.2f} points over {plain[0]} here; the average over data sets must be +0.5"
        )
        print(notes["average"])
    publish(f"teacher-{name}", rows, notes, home)
    if not publish("teacher", rows, notes, home):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="any labelled file; none: sample messages")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--name", help="of the data in the table")
    parser.add_argument("--base", default="minilm", help="the encoder of all but words")
    parser.add_argument("--rows", type=int, default=5000, help="of sample messages")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=Part, nargs="+", choices=list(Part), default=list(Part),
                        help="to be measured now")  # fmt: skip
    parser.add_argument("--before", default="189dff8", metavar="COMMIT")
    parser.add_argument("--before-seeds", type=int, default=1)
    parser.add_argument("--without-before", action="store_true")
    parser.add_argument("--few", type=int, nargs="+", default=[], metavar="ROWS",
                        help="of train; once more with so few")  # fmt: skip
    parser.add_argument("--few-seeds", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

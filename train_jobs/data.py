"""Stage 1: any CSV, JSONL or Parquet of labelled messages -> scrubbed, disjoint splits.

    python -m train_jobs.data --data messages.csv --text-column text --label-column label

In: files and the names of two columns. Out: a folder of `<split>.parquet` and `dataset.json`.
Every text goes through `serve_app.guard.prepare.prepare`, so personal data is masked before
anything is trained on it. A row's split is decided by the hash of its content: adding rows moves no
other row, and a row is in exactly one of train, calibration, tune, certify and test. `dapt` holds
the text of `train` and of unlabelled files, never a row that something is judged on.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from cluster.bundles import GUARD, DatasetRef
from cluster.errors import DataError, FirstlineError
from cluster.files import new_folder, read_json, write_json
from cluster.progress import Report, silent
from cluster.settings import Settings, load_settings
from serve_app.contracts import Message
from serve_app.guard.config import BUILT_IN, GuardConfig
from serve_app.guard.pii import Guard
from serve_app.guard.prepare import dedup_key, normalise, prepare
from train_jobs.rows.read import read_rows

SPLITS: Final = ("dapt", "train", "calibration", "tune", "certify", "test")
MIN_ROWS_PER_CLASS: Final = 10
MANIFEST: Final = "dataset.json"
_SALT: Final = b"firstline-split-1"
_TEST_SHARE: Final = 0.15  # of all rows, when no test file is given
_SHARES: Final = {"calibration": 0.08, "tune": 0.12}  # of the rest


class DataConfig(BaseModel):
    """Which files, which columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    text_column: str = "text"
    label_column: str = "label"
    test: Path | None = Field(None, description="a test file to respect; None: 15% of the data")
    unlabelled: tuple[Path, ...] = Field((), description="more text for domain adaptation")
    # More rows here certify more at the same risk, and leave fewer to train on.
    certify_share: float = Field(0.15, gt=0, le=0.5, description="of the rows not in `test`")
    guard: GuardConfig = BUILT_IN


@dataclass(frozen=True, slots=True)
class Row:
    """One prepared message; `label` is None in `dapt`."""

    message: Message
    label: str | None
    key: str


@dataclass(frozen=True)
class Dataset:
    """A finished dataset folder."""

    path: Path
    labels: tuple[str, ...]
    fingerprint: str
    rows: Mapping[str, int]
    notes: Mapping[str, int]

    @property
    def guard(self) -> Path | None:
        """The guard.json that its rows were masked with; None: by the built-in guard."""
        path = self.path / GUARD
        return path if path.is_file() else None

    @property
    def ref(self) -> DatasetRef:
        return DatasetRef(fingerprint=self.fingerprint, rows=dict(self.rows))

    def read(self, split: str) -> list[Row]:
        """The rows of a split, in a fixed order."""
        table = pq.read_table(self.path / f"{split}.parquet").to_pydict()
        columns = zip(table["text"], table["pii"], table["label"], table["key"], strict=True)
        return [Row(Message(text, tuple(pii)), label, key) for text, pii, label, key in columns]

    def texts(self, split: str) -> list[str]:
        return [row.message.text for row in self.read(split)]

    def labelled(self, split: str) -> tuple[list[str], list[int]]:
        """Texts and label numbers of a split, in step."""
        index = {label: number for number, label in enumerate(self.labels)}
        rows = [row for row in self.read(split) if row.label is not None]
        return [r.message.text for r in rows], [index[str(r.label)] for r in rows]


def load_dataset(path: Path) -> Dataset:
    """A dataset that `build` has finished."""
    if not (path / MANIFEST).is_file():
        raise DataError(f"{path} is not a finished dataset: it has no {MANIFEST}.")
    try:
        found = read_json(path / MANIFEST)
        return Dataset(path=path, **{**found, "labels": tuple(found["labels"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path / MANIFEST} cannot be read ({error}). Delete the folder and run "
            "`firstline train` again."
        ) from None


# -- cleaning and splitting -------------------------------------------------------------------


def content_key(text: str) -> str:
    """The fingerprint of a prepared text, by which a row is placed and known again."""
    return hashlib.sha256(_SALT + dedup_key(text).encode("utf-8", "replace")).hexdigest()


def _place(key: str, certify_share: float, *, with_test: bool) -> str:
    """The split of a content key: a uniform number from the hash against the shares."""
    number = int(key[:16], 16) / 16**16
    if with_test:
        if number < _TEST_SHARE:
            return "test"
        number = (number - _TEST_SHARE) / (1 - _TEST_SHARE)
    for split, share in {**_SHARES, "certify": certify_share}.items():
        if number < share:
            return split
        number -= share
    return "train"


def read_messages(
    path: Path, text_column: str, label_column: str | None, notes: Counter[str],
    report: Report = silent, guard: GuardConfig = BUILT_IN,
) -> list[Row]:  # fmt: skip
    """Prepared, deduplicated rows of one file; the first of two equal texts stays.

    Args:
        label_column: None: the rows have no labels.
        notes: what was dropped or masked is counted in it.
        guard: the release's, or that of the training to come.

    Raises:
        DataError: see `read_rows`; an empty text or label.
    """
    rows: dict[str, Row] = {}
    redactor = Guard(guard).redact
    columns = [text_column, *([label_column] if label_column else [])]
    for number, (raw, *cells) in read_rows(path, columns):
        message = prepare(raw, redactor)
        label = normalise(cells[0]) if cells else None
        if not message.text or label == "":
            raise DataError(
                f"{path}, line {number}: the {'text' if not message.text else 'label'} is empty. "
                "Fill it in, or delete the row."
            )
        notes["rows_read"] += 1
        if message.detector_failed:  # nobody knows what is in it, so nothing learns from it
            notes["rows_dropped_for_a_failed_detector"] += 1
            continue
        notes["rows_with_personal_data_masked"] += bool(message.pii)
        key = content_key(message.text)
        if key in rows:
            notes["duplicates_dropped"] += 1
            notes["duplicates_with_another_label"] += rows[key].label != label
            continue
        rows[key] = Row(message, label, key)
        if notes["rows_read"] % 1000 == 0:
            report(notes["rows_read"], notes["rows_read"] + 1000)
    return list(rows.values())


def _check_classes(rows: list[Row], path: Path) -> tuple[str, ...]:
    counts = Counter(str(row.label) for row in rows)
    if not counts:
        raise DataError(
            f"No row of {path} is left to train on: every text is in the test file too, or could "
            "not be searched for personal data. Give a test file of other messages."
        )
    if len(counts) < 2:
        raise DataError(
            f"{path} has one class only ({next(iter(counts))!r}, {len(rows)} rows). A classifier "
            "needs two at least: is --label-column the right column?"
        )
    few = {label: count for label, count in counts.items() if count < MIN_ROWS_PER_CLASS}
    if few:
        shown = ", ".join(f"{label!r} ({count})" for label, count in sorted(few.items())[:5])
        raise DataError(
            f"{path}: {len(few)} of {len(counts)} classes have fewer than {MIN_ROWS_PER_CLASS} "
            f"distinct rows: {shown}. Add rows, merge the classes, or leave them out."
        )
    return tuple(sorted(counts))


def _check_train(splits: Mapping[str, list[Row]], labels: tuple[str, ...]) -> None:
    there = {row.label for row in splits["train"]}
    if absent := [label for label in labels if label not in there]:
        raise DataError(f"No row of {absent[:5]} fell into the train split. Add rows to them.")
    if empty := [name for name in SPLITS if not splits[name]]:
        raise DataError(
            f"Too few rows: nothing fell into {', '.join(empty)}. A few hundred rows are needed."
        )


def _split(rows: list[Row], test: list[Row] | None, certify_share: float) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[_place(row.key, certify_share, with_test=test is None)].append(row)
    if test is not None:
        splits["test"] = test
    for name in SPLITS:
        splits[name].sort(key=lambda row: row.key)
    return splits


def _dapt(config: DataConfig, splits: Mapping[str, list[Row]]) -> list[Row]:
    judged = {row.key for name in SPLITS[2:] for row in splits[name]}
    kept = {row.key: Row(row.message, None, row.key) for row in splits["train"]}
    redactor = Guard(config.guard).redact
    for path in config.unlabelled:
        for _, (raw,) in read_rows(path, (config.text_column,)):
            message = prepare(raw, redactor)
            key = content_key(message.text)
            if message.text and not message.detector_failed and key not in judged:
                kept.setdefault(key, Row(message, None, key))
    return sorted(kept.values(), key=lambda row: row.key)


def _fingerprint(splits: Mapping[str, list[Row]], guard: GuardConfig) -> str:
    digest = hashlib.sha256()
    if guard != BUILT_IN:
        digest.update(guard.model_dump_json().encode())
    for name in SPLITS:
        for row in splits[name]:
            what = (name, row.message.text, row.message.pii, row.label)
            digest.update(json.dumps(what).encode())
    return digest.hexdigest()


def _write_split(path: Path, rows: list[Row]) -> None:
    schema = pa.schema(
        [("text", pa.string()), ("pii", pa.list_(pa.string())), ("label", pa.string()),
         ("key", pa.string())]
    )  # fmt: skip
    table = {
        "text": [row.message.text for row in rows],
        "pii": [list(row.message.pii) for row in rows],
        "label": [row.label for row in rows],
        "key": [row.key for row in rows],
    }
    pq.write_table(pa.table(table, schema), path)


def build(config: DataConfig, settings: Settings, report: Report = silent) -> Dataset:
    """Reads, cleans and splits; the folder is named by the fingerprint of what is in it.

    Raises:
        DataError: see `read_rows`; one class only, a class too small, a test label unknown.
    """
    notes: Counter[str] = Counter()
    columns = config.text_column, config.label_column
    rows = read_messages(config.data, *columns, notes, report, config.guard)
    labels = _check_classes(rows, config.data)
    test = None
    if config.test is not None:
        test = read_messages(config.test, *columns, notes, report, config.guard)
        if unknown := sorted({str(row.label) for row in test} - set(labels)):
            raise DataError(
                f"{config.test} has {len(unknown)} labels that {config.data} lacks: {unknown[:5]}."
            )
        held_out = {row.key for row in test}
        kept = [row for row in rows if row.key not in held_out]
        notes["rows_dropped_for_being_in_the_test_file"] = len(rows) - len(kept)
        rows = kept
        _check_classes(rows, config.data)
    splits = _split(rows, test, config.certify_share)
    splits["dapt"] = _dapt(config, splits)
    _check_train(splits, labels)
    fingerprint = _fingerprint(splits, config.guard)
    target = settings.home / "datasets" / fingerprint[:16]
    if not (target / MANIFEST).is_file():
        with new_folder(target) as folder:
            for name in SPLITS:
                _write_split(folder / f"{name}.parquet", splits[name])
            if config.guard != BUILT_IN:
                write_json(folder / GUARD, config.guard.model_dump(mode="json"))
            manifest = {
                "labels": labels,
                "fingerprint": fingerprint,
                "rows": {name: len(splits[name]) for name in SPLITS},
                "notes": dict(notes),
            }
            write_json(folder / MANIFEST, manifest)
    return load_dataset(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="A file of labelled messages -> splits.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[])
    parser.add_argument("--certify-share", type=float, default=0.15)
    try:
        dataset = build(DataConfig.model_validate(vars(parser.parse_args())), load_settings())
    except FirstlineError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    json.dump({"path": str(dataset.path), "rows": dict(dataset.rows),
               "notes": dict(dataset.notes)}, sys.stdout, indent=2)  # fmt: skip


if __name__ == "__main__":
    main()

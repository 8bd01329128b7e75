"""Both models over one split, once: messages -> Table, on which any policy is judged for free.

In: prepared messages, their labels where known, the edge and the cloud classifier.
Out: a `Table` of NumPy columns, saved as Parquet. It holds no text.

Both models run in this process and nothing leaves it, so pinned messages are scored by the cloud
model too: the risk of answering them at the edge belongs in the certificate.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.bundles import MODEL
from cluster.errors import BundleError, DataError
from cluster.progress import Report, silent
from serve_app.contracts import Message, Prediction
from serve_app.decide.policy import BundlePins
from serve_app.decide.signals import SIGNALS, Evidence, signals

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

UNKNOWN: Final = -1  # the true label of a row that nobody has labelled
_CHUNK = 64  # messages between two reports of progress
_METADATA: Final = b"firstline_table"
# A signal that tables from before lack; what scored them does not measure it, and so says 0.0.
_LATER: Final = "ngram_margin"
_HEADER: Final = (
    "labels", "split", "fingerprint", "edge_sha256", "cloud_sha256", "edge_artifact",
    "edge_s", "cloud_s",
)  # fmt: skip


class Classifier(Protocol):
    """What replay needs of a model; `serve_app.model.classifier.OnnxClassifier` is one."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def sha256(self) -> str: ...

    @property
    def artifact(self) -> str: ...

    def predict(self, texts: Sequence[str]) -> list[Prediction]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """One split as both models see it: n rows, labels as indices into `labels`.

    `signals` has every name of `serve_app.decide.signals.SIGNALS`. `fingerprint` is the dataset's.
    """

    signals: Mapping[str, Floats]
    pinned: Bools
    edge_label: Ints
    cloud_label: Ints
    true_label: Ints
    labels: tuple[str, ...]
    split: str
    fingerprint: str
    edge_sha256: str
    cloud_sha256: str
    edge_artifact: str = MODEL
    # Mean time of a message where it was replayed: what a price per second is multiplied by.
    edge_s: float = 0.0
    cloud_s: float = 0.0

    def __post_init__(self) -> None:
        """Raises DataError for missing or non-finite signals, and for columns that do not fit."""
        if missing := [name for name in SIGNALS if name not in self.signals]:
            raise DataError(f"The table of {self.split!r} lacks the signals {missing}. Replay it.")
        columns = {**self.signals, **{name: getattr(self, name) for name in COLUMNS}}
        if odd := [name for name, column in columns.items() if column.shape != (self.rows,)]:
            raise DataError(
                f"The table of {self.split!r} has {self.rows} rows, but {odd} differ. Replay it."
            )
        if bad := [name for name in SIGNALS if not np.isfinite(self.signals[name]).all()]:
            raise DataError(
                f"The table of {self.split!r} has NaN or infinity in {bad}; a policy cannot "
                "compare those. Check the edge bundle's outputs."
            )
        for name, lowest in (("edge_label", 0), ("cloud_label", 0), ("true_label", UNKNOWN)):
            column = getattr(self, name)
            if ((column < lowest) | (column >= len(self.labels))).any():
                raise DataError(
                    f"The table of {self.split!r} has a {name} outside its "
                    f"{len(self.labels)} labels. Replay it."
                )

    @property
    def rows(self) -> int:
        return int(self.pinned.shape[0])

    @property
    def pins(self) -> BundlePins:
        """What scored it, and so what a policy made of it may run with."""
        return BundlePins(
            edge=self.edge_sha256, cloud=self.cloud_sha256, edge_artifact=self.edge_artifact
        )

    @property
    def evidence(self) -> Evidence:
        """What a policy looks at, all rows at once."""
        return Evidence(self.signals, self.edge_label, self.labels)

    def of(self, rows: Bools | Ints) -> "Table":
        """Some of the rows."""
        return replace(
            self,
            signals={name: column[rows] for name, column in self.signals.items()},
            **{name: getattr(self, name)[rows] for name in COLUMNS},
        )

    @cached_property
    def known(self) -> Bools:
        """Rows whose true label is known."""
        return np.asarray(self.true_label != UNKNOWN)

    @cached_property
    def edge_right(self) -> Bools:
        return np.asarray(self.known & (self.edge_label == self.true_label))

    @cached_property
    def cloud_right(self) -> Bools:
        return np.asarray(self.known & (self.cloud_label == self.true_label))

    @cached_property
    def differs(self) -> Bools:
        """Rows where the edge does not say what the cloud says."""
        return np.asarray(self.edge_label != self.cloud_label)

    def require_rows(self) -> None:
        """Raises DataError if there is nothing to judge a policy on."""
        if not self.rows:
            raise DataError(
                f"The split {self.split!r} has no rows; a policy needs some to be judged on. "
                "Give the dataset more messages, or this split a larger share."
            )

    def require_labels(self) -> None:
        """Raises DataError if no row has a true label: accuracy would have no meaning."""
        self.require_rows()
        if not self.known.any():
            raise DataError(
                f"None of the {self.rows} rows of the split {self.split!r} has a true label, so "
                "accuracy cannot be measured. Replay it with labels."
            )


# Beside the signals: one value of each row.
COLUMNS: Final = ("pinned", "edge_label", "cloud_label", "true_label")


def replay(
    messages: Sequence[Message],
    labels: Sequence[str] | None,
    edge: Classifier,
    cloud: Classifier,
    split: str,
    fingerprint: str,
    progress: Report = silent,
) -> Table:
    """Scores every message with both models.

    Raises:
        BundleError: the two models answer with different labels.
        DataError: as many labels as messages are expected, all known to the models.
    """
    if set(edge.labels) != set(cloud.labels):
        raise BundleError(
            f"The edge answers with {sorted(edge.labels)}, the cloud with {sorted(cloud.labels)}. "
            "A pair must share its labels: train both on the same dataset."
        )
    index = {label: i for i, label in enumerate(edge.labels)}
    true_label = _true_labels(labels, len(messages), index, split)
    rows: list[dict[str, float]] = []
    edge_label: list[int] = []
    cloud_label: list[int] = []
    spent_s = [0.0, 0.0]
    for start in range(0, len(messages), _CHUNK):
        chunk = messages[start : start + _CHUNK]
        texts = [message.text for message in chunk]
        began = time.perf_counter()
        answers = edge.predict(texts)
        spent_s[0] += time.perf_counter() - began
        rows += [signals(message, a) for message, a in zip(chunk, answers, strict=True)]
        edge_label += [index[answer.label] for answer in answers]
        began = time.perf_counter()
        cloud_label += [index[answer.label] for answer in cloud.predict(texts)]
        spent_s[1] += time.perf_counter() - began
        progress(start + len(chunk), len(messages))
    return Table(
        signals={name: np.array([row[name] for row in rows], np.float64) for name in SIGNALS},
        pinned=np.array([message.pinned is not None for message in messages], np.bool_),
        edge_label=np.array(edge_label, np.int64),
        cloud_label=np.array(cloud_label, np.int64),
        true_label=true_label,
        labels=tuple(edge.labels),
        split=split,
        fingerprint=fingerprint,
        edge_sha256=edge.sha256,
        cloud_sha256=cloud.sha256,
        edge_artifact=edge.artifact,
        edge_s=spent_s[0] / max(1, len(messages)),
        cloud_s=spent_s[1] / max(1, len(messages)),
    )


def _true_labels(
    labels: Sequence[str] | None, rows: int, index: Mapping[str, int], split: str
) -> Ints:
    if labels is None:
        return np.full(rows, UNKNOWN, np.int64)
    if len(labels) != rows:
        raise DataError(f"The split {split!r} has {rows} messages but {len(labels)} labels.")
    if strange := sorted(set(labels) - set(index)):
        raise DataError(
            f"The split {split!r} has the labels {strange[:5]}, which the models never answer "
            f"with; they know {sorted(index)[:20]}. Use the dataset that the bundles came from."
        )
    return np.array([index[label] for label in labels], np.int64)


def save_table(table: Table, path: Path) -> None:
    """Writes the table as one Parquet file, whole or not at all."""
    header = {name: getattr(table, name) for name in _HEADER}
    columns = {name: getattr(table, name) for name in COLUMNS} | dict(table.signals)
    data = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(header).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        pq.write_table(data, name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_table(path: Path) -> Table:
    """Reads what `save_table` wrote.

    Raises:
        DataError: no such file, or not a table of ours.
    """
    try:
        data = pq.read_table(path)
        header = json.loads(data.schema.metadata[_METADATA])
        if _LATER not in data.schema.names:
            data = data.append_column(_LATER, pa.array(np.zeros(data.num_rows)))
        columns = {name: data[name].to_numpy() for name in (*COLUMNS, *SIGNALS)}
        header = {name: header[name] for name in _HEADER if name in header}
        labels = tuple(header.pop("labels"))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is not a table that Firstline's replay wrote ({type(error).__name__}). "
            "Give the Parquet file that `firstline tune` keeps beside its result."
        ) from error
    return Table(
        signals={name: columns[name] for name in SIGNALS},
        pinned=columns["pinned"],
        edge_label=columns["edge_label"],
        cloud_label=columns["cloud_label"],
        true_label=columns["true_label"],
        labels=labels,
        **header,
    )

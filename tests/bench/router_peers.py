"""Beside peers: the same traces, the same cloud labels, the same test rows; coverage at equal risk.

Called by tests/bench/router.py. A trace is a message with the label that the cloud gave it. On
traces a peer fits what it fits, and on the test rows it is judged by one rule: coverage is the
share of messages answered without the cloud, risk the share of all messages so answered otherwise
than by the cloud. All of them see the same MiniLM embedding, which is tracer-llm's default.

- tracer-llm (Rida 2026, arXiv:2604.14531) answers by a classifier of its own, and sets its own
  threshold. It wants numpy < 2.1, so it runs in an environment of its own.
- RouteLLM (Ong et al. 2024, arXiv:2406.18665) tells from the text alone whether the edge will do.
- semantic-router (Aurelio) takes the class of the nearest utterances, if they are near enough.

The scores of the last two, and tracer-llm's, get the best threshold in hindsight.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

from cluster.files import read_json, write_json
from tests.bench.rows import Row, row
from train_jobs.training.encoders import MINILM, resolve_base
from tune.reporting.metrics import (
    Bools,
    Floats,
    Ints,
    hindsight_coverage,
    hindsight_coverage_within,
)

TRACER: Final = "tracer-llm"
PINS: Final = (
    "tracer-llm==0.3.3", "numpy==2.0.2", "scikit-learn==1.9.1", "scipy==1.17.1", "joblib==1.6.0",
)  # fmt: skip
# Agreements to ask tracer-llm for, until it finds a rule for one: its own frontier, and 95% first.
TARGETS: Final = (0.95, 0.90, 0.85)
# Its command line leaves out trees by default; boosting alone would take hours at 150 classes.
SKIPPED: Final = ("dt", "et", "gbt", "rf")
# Its matrices are small, and a figure should not depend on how many cores add it up.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MUST: Final = 1.5
_NEAREST: Final = 5  # utterances that semantic-router looks at

Embedded = npt.NDArray[np.float32]  # (messages, 384), each of length 1


@dataclass(frozen=True)
class Seen:
    """Messages and what both models say of them, as label numbers; in step."""

    texts: Sequence[str]
    edge: Ints
    cloud: Ints

    @property
    def differs(self) -> Bools:
        return np.asarray(self.edge != self.cloud)


@dataclass(frozen=True)
class Ours:
    """What is compared: a score on the test rows, and what is certified of its thresholds.

    `certified`: wanted risk -> coverage on the test rows of the policy certified at that risk.
    """

    score: Floats
    certified: Callable[[float], float]


@dataclass(frozen=True)
class Peer:
    """A score on the test rows, and where the answer that it stands for is not the cloud's."""

    score: Floats
    differs: Bools


@dataclass(frozen=True)
class Tracer:
    """What tracer-llm does to the test rows at its own threshold, and its score for any other."""

    handled: Bools
    differs: Bools
    alone: Peer
    about: Mapping[str, object]

    @property
    def coverage(self) -> float:
        return float(self.handled.mean())

    @property
    def risk(self) -> float:
        return int((self.handled & self.differs).sum()) / self.handled.size

    @property
    def agreement(self) -> float:
        """Among the messages handled; 1 if there are none."""
        handled = int(self.handled.sum())
        return (handled - int((self.handled & self.differs).sum())) / handled if handled else 1.0


def peers(
    name: str, traces: Seen, test: Seen, ours: Ours, home: Path
) -> tuple[list[Row], dict[str, object]]:
    """The rows of one set of data, and notes on what tracer-llm made.

    Args:
        traces: rows that trained neither model; the router's own may be no other.
        home: where the peers' environment is kept, in `bench/peers-venv`.
    """
    near, far = embed(traces.texts), embed(test.texts)
    found = tracer(near, traces.cloud, far, test.cloud, environment(home / "bench" / "peers-venv"))
    others = {f"{TRACER}'s score": found.alone, **by_text(near, traces, far, test)}
    notes = {
        **found.about,
        "traces": len(traces.texts),
        "coverage": found.coverage,
        "risk": found.risk,
        "agreement": found.agreement,
    }
    return list(table(name, found, others, ours, test)), notes


def table(
    name: str, found: Tracer, others: Mapping[str, Peer], ours: Ours, test: Seen
) -> Iterator[Row]:
    """Ours over tracer-llm's at the risk that it reached; in hindsight, over every peer's score."""
    yield over_tracer(f"{name}: coverage certified at {found.risk:.2%} risk, over {TRACER}'s",
                      ours.certified(found.risk), found)  # fmt: skip
    best = hindsight_coverage(ours.score, test.differs, found.risk)
    for peer, made in others.items():
        theirs = hindsight_coverage(made.score, made.differs, found.risk)
        yield row(f"{name}: hindsight at that risk, over {peer}", [best], [theirs])
    best = _at_agreement(ours.score, test.differs, found.agreement)
    for peer, made in others.items():
        theirs = _at_agreement(made.score, made.differs, found.agreement)
        figure = f"{name}: hindsight at {found.agreement:.2%} agreement, over {peer}"
        yield row(figure, [best], [theirs])


def _at_agreement(score: Floats, differs: Bools, agreement: float) -> float:
    return hindsight_coverage_within(score, differs, differs, differs.size, agreement=agreement)


def over_tracer(figure: str, coverage: float, found: Tracer) -> Row:
    """The must. Over no coverage there is no ratio: any of ours is more."""
    if not found.handled.any():
        return Row(figure, coverage, 0.0, None, "> 0", coverage > 0)
    return row(figure, [coverage], [found.coverage], at_least=MUST, judge_ratio=True)


def embed(texts: Sequence[str]) -> Embedded:
    """Sentence embeddings of the encoder that both bundles start from, untrained."""
    encoder = SentenceTransformer(resolve_base(MINILM), device="cpu")
    return np.asarray(encoder.encode(list(texts), normalize_embeddings=True), np.float32)


# -- tracer-llm, in an environment of its own --------------------------------------------------


def environment(folder: Path) -> Path:
    """The interpreter of the peers' environment, made if it is not there or of other versions."""
    pins = folder / "pins.json"
    if not pins.is_file() or read_json(pins) != list(PINS):
        # A virtual environment knows its own path, so it is made in place, and its pins last.
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS]
        subprocess.run([str(folder / "bin" / "python"), *install], check=True)
        write_json(pins, list(PINS))
    return folder / "bin" / "python"


_CHILD: Final = """
import json, sys, time
from pathlib import Path
import numpy as np
from tracer.api import fit, load_router
from tracer.config import FitConfig
from tracer.fit.pipeline import apply_stage

folder = Path(sys.argv[1])
asked = json.loads((folder / "asked.json").read_text())
traces, test = np.load(folder / "traces.npy"), np.load(folder / "test.npy")
start = time.perf_counter()
for target in asked["targets"]:
    config = FitConfig(target_teacher_agreement=target, frontier_targets=(target,),
                       skip_candidates=tuple(asked["skipped"]), verbose=False)
    made = fit(folder / "traces.jsonl", folder / "made", embeddings=traces, config=config).manifest
    if made.selected_method:
        break
about = {"asked": target, "method": made.selected_method, "fit_s": time.perf_counter() - start,
         "coverage_promised": made.coverage_cal, "agreement_promised": made.teacher_agreement_cal}
found = {"about": about}
if made.selected_method:
    router = load_router(folder / "made")
    routed = router.predict_batch(test)
    first, _, score = apply_stage(router._stages[0], test)
    found |= {"labels": routed["labels"], "score": score.tolist(),
              "alone": [made.label_space[i] for i in first]}
    about["models"] = [stage["model_name"] for stage in router._stages]
(folder / "found.json").write_text(json.dumps(found))
"""


def tracer(traces: Embedded, labels: Ints, test: Embedded, cloud: Ints, python: Path) -> Tracer:
    """Fits tracer-llm on the traces and routes the test rows by it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "traces.npy", traces)
        np.save(folder / "test.npy", test)
        # It reads texts for its report alone: the rules are fitted on the embeddings.
        lines = [json.dumps({"input": str(i), "teacher": str(y)}) for i, y in enumerate(labels)]
        (folder / "traces.jsonl").write_text("\n".join(lines))
        write_json(folder / "asked.json", {"targets": TARGETS, "skipped": SKIPPED})
        command = [str(python), "-c", _CHILD, str(folder)]
        subprocess.run(command, check=True, env={**os.environ, **ONE_THREAD})
        return _tracer(read_json(folder / "found.json"), cloud)


def _tracer(found: Mapping[str, Any], cloud: Ints) -> Tracer:
    """Deferred messages have no label; without a rule for any target all are deferred."""
    none = [None] * cloud.size
    labels: Sequence[str | None] = found.get("labels", none)
    alone: Sequence[str | None] = found.get("alone", none)
    return Tracer(
        handled=np.array([label is not None for label in labels]),
        differs=_differs(labels, cloud),
        alone=Peer(np.array(found.get("score", np.zeros(cloud.size))), _differs(alone, cloud)),
        about=found["about"],
    )


def _differs(labels: Sequence[str | None], cloud: Ints) -> Bools:
    return np.array([label != str(y) for label, y in zip(labels, cloud, strict=True)])


# -- by the text alone -------------------------------------------------------------------------


def by_text(near: Embedded, traces: Seen, far: Embedded, test: Seen) -> dict[str, Peer]:
    """The routers that look at the text, not at what the edge makes of it.

    Args:
        near, far: embeddings of the traces and of the test rows.
    """
    label, similarity = nearest_class(near, traces.cloud, far)
    return {
        "RouteLLM-style factors": Peer(factorised(near, traces.differs, far), test.differs),
        "RouteLLM-style similarity": Peer(weighted(near, traces.differs, far), test.differs),
        "semantic-router-style score": Peer(similarity, test.differs),
        "semantic-router-style answers": Peer(similarity, np.asarray(label != test.cloud)),
        "a random score": Peer(np.random.default_rng(0).random(len(test.texts)), test.differs),
    }


def factorised(near: Embedded, differs: Bools, far: Embedded) -> Floats:
    """RouteLLM's matrix factorisation: of one pair of models it is linear in the embedding."""
    if differs.all() or not differs.any():
        return np.zeros(len(far))
    made = LogisticRegression(max_iter=1000).fit(near, differs)
    return np.asarray(-made.decision_function(far), np.float64)


def weighted(near: Embedded, differs: Bools, far: Embedded) -> Floats:
    """RouteLLM's similarity-weighted ranking: of one pair of models, a weighted share of wins."""
    similarity = (far @ near.T).astype(np.float64)
    weights = 10.0 ** (similarity / similarity.max(axis=1, keepdims=True))
    return np.asarray(-(weights @ differs) / weights.sum(axis=1))


def nearest_class(near: Embedded, labels: Ints, far: Embedded) -> tuple[Ints, Floats]:
    """semantic-router's defaults: of the 5 nearest utterances, the class with the highest mean.

    Out: the class, and the similarity of its nearest utterance, which the threshold is held to.
    """
    similarity = far @ near.T
    nearest = np.argpartition(-similarity, _NEAREST, axis=1)[:, :_NEAREST]
    near_by = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
    classes = labels[nearest]
    same = classes[:, :, None] == classes[:, None, :]
    mean = (same * near_by[:, None, :]).sum(-1) / same.sum(-1)
    best = mean.argmax(axis=1)[:, None]
    chosen = np.take_along_axis(classes, best, axis=1)
    return chosen[:, 0], np.where(classes == chosen, near_by, -1.0).max(axis=1)

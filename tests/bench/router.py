"""The router: what is certified, against hindsight and against maximum probability; and how fast.

    make bench-router DATA=train.csv TEST=test.csv TEXT=text LABEL=category

On the pairs of `make bench-edge`, trained first if they are not there. Shapes are chosen on `tune`
with `calibration` to learn from, thresholds are certified on `certify`, and coverage is counted on
`test`. One draw of `certify` says little of a method, so beside the figure of the release itself
stands the median of 200 redraws: `certify` and `test`, neither of which had a say in the choice,
are shuffled together and cut again at the same sizes.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from cluster.connect import connected
from cluster.errors import CertifyError
from cluster.progress import stage
from cluster.settings import load_settings
from serve_app.contracts import Message, Prediction
from serve_app.decide.cost import Prices
from serve_app.decide.policy import ALWAYS_CLOUD, RouterPolicy, decide
from serve_app.decide.scores import MaxProbability
from serve_app.model.classifier import OnnxClassifier
from tests.bench import certificates
from tests.bench.edge import train
from tests.bench.router_peers import Ours, Seen, peers
from tests.bench.rows import Row, publish, row
from train_jobs.data import Dataset
from train_jobs.pipeline import configure
from tune.certificate.bounds import allowed_failures
from tune.certificate.counts import Counter
from tune.certificate.limits import Limits
from tune.learned import pool as pools
from tune.learned.pool import Scorer
from tune.objective import Shape, curve, evaluate, trusts
from tune.replay import Table, load_table, replay, save_table
from tune.reporting.metrics import hindsight_coverage
from tune.select import PolicyCandidate, Wanted, select
from tune.sweep import search

# Wanted risk -> certified coverage over that of the best threshold in hindsight.
MUST: Final = {0.01: 0.92, 0.02: 0.94, 0.05: 0.96}
REDRAWS: Final = 200
SPLITS: Final = ("calibration", "tune", "certify", "test")
_PLAIN: Final = Shape(score=MaxProbability())
_DECISIONS: Final = 2000
_REPEATS: Final = 7


@dataclass(frozen=True)
class Tables:
    """One pair's tables, and the scorers of its tune table."""

    of: Mapping[str, Table]
    pool: Mapping[str, Scorer]

    def policy(self, risk: float) -> tuple[RouterPolicy, Shape, str]:
        """What `firstline tune` releases at a risk, its shape, and the scorer's name."""
        wanted = Wanted(limits=Limits(risk=risk), prices=Prices())
        found = select([], self.pool, self.of["tune"], self.of["certify"], wanted, "bench")
        return found.policy, found.sequence.shape, found.sequence.scorer


@dataclass(frozen=True)
class Coverage:
    """On rows that had no say: certified, and the best in hindsight with the same score."""

    ours: float
    hindsight: float
    plain: float
    risk: float


def tables(dataset: Dataset, pairs: Sequence[Any], work: Path) -> list[Tables]:
    """Every pair's splits, scored once and kept."""
    made = []
    for number, pair in enumerate(pairs):
        edge, cloud = OnnxClassifier.of(pair.edge), OnnxClassifier.of(pair.cloud)
        found = {}
        for name in SPLITS:
            file = work / "router" / f"{dataset.fingerprint[:16]}-{edge.sha256[:8]}-{name}.parquet"
            if not file.is_file():
                rows = dataset.read(name)
                messages = [one.message for one in rows]
                labels = [str(one.label) for one in rows]
                with stage(f"replay {number} {name}") as report:
                    save_table(
                        replay(messages, labels, edge, cloud, name, dataset.fingerprint, report),
                        file,
                    )
            found[name] = load_table(file)
        made.append(Tables(found, pools.pool(found["tune"], found["calibration"])))
    return made


# ---- coverage -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """What is released at a risk. No policy: none could be certified on so few rows."""

    policy: RouterPolicy | None
    shape: Shape
    scorer: str

    @classmethod
    def of(cls, made: Tables, risk: float) -> "Chosen":
        try:
            return cls(*made.policy(risk))
        except CertifyError as error:
            print(f"at {risk:.0%}: {error}")
            return cls(None, _PLAIN, "none certified")


def as_released(made: Tables, chosen: Chosen, risk: float) -> Coverage:
    """What the release does to `test`; without one, the cloud answers everything."""
    test = made.of["test"]
    seen = evaluate(chosen.policy or ALWAYS_CLOUD, test, Prices())
    thresholds = PolicyCandidate("", _PLAIN, made.of["tune"], None).thresholds
    return Coverage(
        ours=seen.edge_share if chosen.policy else 0.0,
        hindsight=_hindsight(chosen.shape, test, risk),
        plain=_certified(_PLAIN, thresholds, made.of["certify"], test, risk)[0],
        risk=seen.risk if chosen.policy else 0.0,
    )


def redrawn(made: Tables, chosen: Chosen, risk: float, dice: np.random.Generator) -> list[Coverage]:
    """The same on other draws of which rows certify and which are tested."""
    shape, scorer = chosen.shape, chosen.scorer
    tune, rows = made.of["tune"], made.of["certify"].rows
    ours = PolicyCandidate("", shape, tune, made.pool.get(scorer)).thresholds
    plain = PolicyCandidate("", _PLAIN, tune, None).thresholds
    both = _together(made.of["certify"], made.of["test"])
    found = []
    for _ in range(REDRAWS):
        order = dice.permutation(both.rows)
        certify, test = both.of(order[:rows]), both.of(order[rows:])
        share, seen = _certified(shape, ours, certify, test, risk)
        found.append(
            Coverage(
                ours=share,
                hindsight=_hindsight(shape, test, risk),
                plain=_certified(_PLAIN, plain, certify, test, risk)[0],
                risk=seen,
            )
        )
    return found


def _certified(
    shape: Shape, thresholds: Any, certify: Table, test: Table, risk: float
) -> tuple[float, float]:
    """(edge share, risk) on `test` at the last threshold that passes on `certify`; else nothing."""
    allowed = allowed_failures(certify.rows, risk, 0.95)
    passed = Counter(shape, certify).of(thresholds).failures <= allowed
    last = int(np.flatnonzero(~passed)[0]) - 1 if not passed.all() else passed.size - 1
    if last < 0:
        return 0.0, 0.0
    seen = Counter(shape, test).of(thresholds[last : last + 1])
    return int(seen.kept[0]) / test.rows, int(seen.failures[0]) / test.rows


def _hindsight(shape: Shape, test: Table, risk: float) -> float:
    """The best threshold on `test` itself, of our score or of maximum probability."""
    found = []
    for one in (shape, _PLAIN):
        score = trusts(one, test).copy()
        score[test.pinned] = np.inf
        found.append(hindsight_coverage(score, test.differs, risk))
    return max(found)


def _together(one: Table, other: Table) -> Table:
    return replace(
        one,
        signals={name: np.append(one.signals[name], other.signals[name]) for name in one.signals},
        pinned=np.append(one.pinned, other.pinned),
        edge_label=np.append(one.edge_label, other.edge_label),
        cloud_label=np.append(one.cloud_label, other.cloud_label),
        true_label=np.append(one.true_label, other.true_label),
    )


def coverage_rows(name: str, made: Sequence[Tables], notes: dict[str, object]) -> Iterator[Row]:
    dice = np.random.default_rng(0)
    for risk, must in MUST.items():
        chosen = [Chosen.of(one, risk) for one in made]
        both = list(zip(made, chosen, strict=True))
        here = [as_released(one, released, risk) for one, released in both]
        draws = [found for one, released in both for found in redrawn(one, released, risk, dice)]
        notes[f"{name} {risk:g}"] = {
            "scorers": [one.scorer for one in chosen],
            "released": [vars(one) for one in here],
            "redraws_over_hindsight_5_50_95": _spread(
                [d.ours / d.hindsight for d in draws if d.hindsight]
            ),
            "redraws_over_plain_5_50_95": _spread([d.ours / d.plain for d in draws if d.plain]),
            "redraws_over_plain_mean_and_error": _mean(draws),
            "redraws_that_broke_the_promise": sum(d.risk >= risk for d in draws) / len(draws),
        }
        for what, found in (("as released", here), (f"{REDRAWS} redraws", draws)):
            yield row(
                f"{name}: certified at {risk:.0%}, over hindsight, {what}",
                [one.ours for one in found], [one.hindsight for one in found],
                at_least=must, judge_ratio=True,
            )  # fmt: skip
        ratio = float(np.mean([d.ours for d in draws]) / np.mean([d.plain for d in draws]))
        yield Row(
            f"{name}: certified at {risk:.0%}, over max. probability, mean of redraws",
            float(np.mean([d.ours for d in draws])), float(np.mean([d.plain for d in draws])),
            ratio, "ratio > 1", ratio > 1,
        )  # fmt: skip


def _spread(values: Sequence[float]) -> list[float]:
    return [round(float(found), 4) for found in np.percentile(values, (5, 50, 95))]


def _mean(draws: Sequence[Coverage]) -> list[float]:
    gained = [one.ours - one.plain for one in draws]
    return [round(float(np.mean(gained)), 5), round(float(np.std(gained, ddof=1)), 5)]


# ---- speed -------------------------------------------------------------------------


def speed_rows(made: Tables) -> Iterator[Row]:
    """Policies per second, by a curve and one by one; and one decision."""
    table = made.of["tune"]
    table = table.of(np.random.default_rng(0).integers(0, table.rows, 2000))
    shape = Chosen.of(made, 0.02).shape
    fast, slow = [], []
    for _ in range(_REPEATS):
        fast.append(_per_second(lambda: curve(shape, table).thresholds.size))
        slow.append(_per_second(lambda: _one_by_one(shape, table)))
    yield row("policies a second on 2,000 rows, over one by one", fast, slow, at_least=1e5)
    for name in ("max_probability", "logistic-1", "boosted-40x2"):
        yield row(f"decide(), microseconds, {name}", _decisions(made, name), at_most=50)


def _per_second(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def _one_by_one(shape: Shape, table: Table, policies: int = 50) -> int:
    for threshold in np.linspace(0, 1, policies):
        evaluate(shape.policy("one", float(threshold)), table, Prices())
    return policies


def _decisions(made: Tables, name: str) -> list[float]:
    table, scorer = made.of["tune"], made.pool[name]
    shape = Shape(score=scorer.score, class_margins=dict(scorer.class_margins))
    policy = shape.policy("timed", float(np.median(scorer.trust)))
    messages = [Message("Where is my card?")] * table.rows
    rows = [
        (
            messages[i],
            Prediction(table.labels[table.edge_label[i]], 0.9, 0.8, 0.1, b""),
            {signal: float(column[i]) for signal, column in table.signals.items()},
        )
        for i in range(min(table.rows, _DECISIONS))
    ]
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for message, prediction, values in rows:
            decide(message, prediction, policy, values)
        found.append(1e6 * (time.perf_counter() - start) / len(rows))
    return found


def sweep_rows(made: Tables, home: Path) -> Iterator[Row]:
    """A full sweep, Ray started and stopped, scorers learned on the way."""
    start = time.perf_counter()
    settings = load_settings(home / "bench" / "router-sweep")
    with connected(settings), stage("sweep") as report:
        pool = pools.pool(made.of["tune"], made.of["calibration"])
        config = search.SweepConfig(storage=str(settings.home / "ray-tune"))
        found = search.run(config, made.of["tune"], pool, report)
    yield row("a full sweep, Ray started, s", [time.perf_counter() - start], at_most=60)
    yield row("policies of that sweep", [found.policies_evaluated], at_least=50_000)


# ---- peers --------------------------------------------------------------------------------------


def peer_rows(
    name: str, made: Tables, dataset: Dataset, home: Path, notes: dict[str, object]
) -> Iterator[Row]:
    """tracer-llm and others; their traces are the rows that ours learns and certifies on."""
    traces = [made.of[split] for split in SPLITS[:-1]]
    texts = [text for split in SPLITS[:-1] for text in dataset.texts(split)]
    test = made.of["test"]
    shape = Chosen.of(made, 0.02).shape
    seen = Seen(
        texts,
        np.concatenate([one.edge_label for one in traces]),
        np.concatenate([one.cloud_label for one in traces]),
    )
    score = trusts(shape, test).copy()
    score[test.pinned] = np.inf
    ours = Ours(
        score, lambda risk: as_released(made, Chosen.of(made, risk), risk).ours if risk else 0.0
    )
    rows, about = peers(
        name, seen, Seen(dataset.texts("test"), test.edge_label, test.cloud_label), ours, home
    )
    notes[f"{name} peers"] = about
    yield from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="any labelled file; none: sample messages")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--name", help="of the data in the table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=5000, help="of sample messages")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--coverage-only", action="store_true", help="of this data, nothing else")
    given = parser.parse_args()
    home = Path(".firstline").absolute()
    name = given.name or (given.data.parent.name if given.data else "samples")
    work = home / "bench" / f"edge-{name}"
    if given.data is None:
        from train_jobs.samples.generator import write_csv

        work.mkdir(parents=True, exist_ok=True)
        given.data = work / "samples.csv"
        write_csv(given.data, given.rows, seed=0)
    config = configure(
        data=given.data, text_column=given.text, label_column=given.label, test=given.test
    )
    dataset, pairs = train(config, given.seeds, work)
    made = tables(dataset, pairs, work)
    notes: dict[str, object] = {"data": str(given.data), "rows": dict(dataset.rows)}
    rows = list(coverage_rows(name, made, notes))
    if not given.without_peers:
        rows += peer_rows(name, made[0], dataset, home, notes)
    if not given.coverage_only:
        rows += speed_rows(made[0])
        rows += sweep_rows(made[0], home)
        broken, notes["certificates"] = certificates.measure(certificates.synthetic())
        rows += broken
    publish(f"router-{name}", rows, notes, home)
    if not publish("router", rows, notes, home):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""What clients saw while something broke: exchanges, the audit log, the models -> a verdict.

    right = answers_of_models(edge, cloud, texts)
    with clients(url, texts, file): ...                     # tests/bench/load.py
    seen = judge(read_records(file), texts, right, settings.audit_dir)

An answer is wrong if its label is not what the model of its route says of that text, offline and by
itself. A record is lost if a client holds an answer whose id is not in the log, or is there with
another label or route.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.audit.read import read
from cluster.audit.records import AuditRecord
from cluster.bundles import ModelBundle
from cluster.errors import ModelOutputError
from serve_app.guard.prepare import prepare
from serve_app.model.classifier import OnnxClassifier
from tests.bench.load import Exchange

# Of one text: route -> the label of that route's model; None where it has no finite answer.
Right = Mapping[str, Mapping[str, str | None]]


@dataclass(frozen=True)
class Failure:
    """A request without an answer. `kind` is a status, or refused, cut, timeout."""

    at_s: float  # when it ended, time of day
    seconds: float
    kind: str
    code: str  # of our error shape; empty if it had none
    retry_after_s: float | None


@dataclass(frozen=True)
class Seen:
    """All of it. Times are in seconds and of the day; latencies of the good answers.

    `late_s` is how late the clients themselves were, at worst.
    """

    requests: int
    good: int
    degraded: int
    wrong: tuple[str, ...]
    unaudited: tuple[str, ...]
    failures: tuple[Failure, ...]
    answered_at: tuple[float, ...]  # sorted
    latencies_s: tuple[float, ...]
    late_s: float

    @property
    def kinds(self) -> Counter[str]:
        return Counter(one.kind for one in self.failures)

    def percentile_ms(self, share: float) -> float:
        if not self.latencies_s:
            return float("inf")
        return 1e3 * float(np.percentile(self.latencies_s, 100 * share))

    def silence_s(self, since_s: float) -> float:
        """From a moment until the first answer after it."""
        later = [at for at in self.answered_at if at > since_s]
        return later[0] - since_s if later else float("inf")


def answers_of_models(edge: ModelBundle, cloud: ModelBundle, texts: Sequence[str]) -> Right:
    """What both models say of each text, computed here."""
    models = {"edge": OnnxClassifier.of(edge), "cloud": OnnxClassifier.of(cloud)}
    return {
        text: {route: _label(model, text) for route, model in models.items()} for text in set(texts)
    }


def _label(model: OnnxClassifier, text: str) -> str | None:
    try:
        return model.predict([prepare(text).text])[0].label
    except ModelOutputError:
        return None


def judge(seen: Sequence[Exchange], texts: Sequence[str], right: Right, audit_dir: Path) -> Seen:
    """Args: texts: as they were sent, one a request: exchange n asked for texts[n.body]."""
    good = [one for one in seen if one.status == 200]
    answers = [(texts[one.body], _answer(one)) for one in good]
    return Seen(
        requests=len(seen),
        good=len(good),
        degraded=sum(answer["degraded"] for _, answer in answers),
        wrong=_wrong(answers, right),
        unaudited=_unaudited([answer for _, answer in answers], audit_dir),
        failures=tuple(_failure(one) for one in seen if one.status != 200),
        answered_at=tuple(sorted(one.sent_s + one.seconds for one in good)),
        latencies_s=tuple(one.seconds for one in good),
        late_s=max((one.late_s for one in seen), default=0.0),
    )


def _answer(one: Exchange) -> dict[str, Any]:
    """The only answer of a good exchange; a body of another shape is a bug, and raises."""
    (answer,) = json.loads(one.answer)["answers"]
    return dict(answer)


def _wrong(answers: Sequence[tuple[str, Mapping[str, Any]]], right: Right) -> tuple[str, ...]:
    """Told by id, route and both labels, never by text."""
    return tuple(
        f"{answer['id']}: {answer['route']} {answer['label']}, not {right[text][answer['route']]}"
        for text, answer in answers
        if answer["label"] != right[text][answer["route"]]
    )


def _unaudited(answers: Sequence[Mapping[str, Any]], audit_dir: Path) -> tuple[str, ...]:
    """Also those whose id was given out twice."""
    kept = {one.id: one for one in read(audit_dir) if isinstance(one, AuditRecord)}
    given = Counter(str(answer["id"]) for answer in answers)

    def lost(answer: Mapping[str, Any]) -> bool:
        record = kept.get(answer["id"])
        if record is None or given[answer["id"]] > 1:
            return True
        return (record.label, record.route) != (answer["label"], answer["route"])

    return tuple(str(answer["id"]) for answer in answers if lost(answer))


def _failure(one: Exchange) -> Failure:
    try:
        code = str(json.loads(one.answer)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        code = ""
    return Failure(
        at_s=one.sent_s + one.seconds,
        seconds=one.seconds,
        kind=one.error or str(one.status),
        code=code,
        retry_after_s=one.retry_after_s,
    )

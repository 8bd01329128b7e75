"""What the client asks and what comes back: each call as a plan that both clients run."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic, NoReturn, NotRequired, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from cluster.errors import DataError, ServiceError
from serve_app.client.exchange import Call, Reply, json_call
from serve_app.request_limits import MAX_TEXTS, fault_of

_MOST_SHOWN: Final = 10
T = TypeVar("T")


class Answer(TypedDict):
    """What came of one text. `label` is None with `route_only`, and only then."""

    id: str
    label: str | None
    confidence: float
    route: str
    reason: str
    cost_usd: float
    latency_ms: float
    release: str
    degraded: bool
    cached: bool
    explanation: NotRequired[Mapping[str, Any]]


@dataclass(frozen=True)
class ApiCall(Generic[T]):
    """A request, and its answer's JSON -> what the caller gets."""

    call: Call
    parse: Callable[[Any], T]


class Options(TypedDict, total=False):
    """What may be asked of a classification, beside the texts."""

    explain: bool  # say why
    route_only: bool  # a preview: the cloud is not paid, there is no label
    user_id: str  # whose release stays the same while several are compared; never kept
    deadline_ms: float  # how long each request may take; the service is told
    # The same list asked again with the same one, within ten minutes: the first answers again.
    idempotency_key: str


def classify_call(
    texts: Sequence[str], first: int = 0, **options: Unpack[Options]
) -> ApiCall[list[Answer]]:
    """Args: first: where the texts begin in the caller's list."""
    deadline_ms, key = options.pop("deadline_ms", None), options.pop("idempotency_key", None)

    def parse(value: Any) -> list[Answer]:
        answers: list[Answer] = value["answers"]
        if len(answers) != len(texts):
            raise ServiceError(f"{len(answers)} answers came to {len(texts)} texts.")
        return answers

    body = {"texts": texts, **options}
    call = json_call("/v1/classify", body, key=key, first=first, deadline_ms=deadline_ms)
    return ApiCall(call, parse)


def explain_call(text: str) -> ApiCall[Mapping[str, Any]]:
    plan = classify_call([text], explain=True, route_only=True)
    return ApiCall(plan.call, lambda value: plan.parse(value)[0]["explanation"])


def feedback_call(answer_id: str, label: str) -> ApiCall[None]:
    # The newest label of an answer counts, so the same one twice is one.
    return ApiCall(json_call("/v1/feedback", {"id": answer_id, "label": label}), lambda _: None)


def get_call(path: str, **options: Any) -> ApiCall[Mapping[str, Any]]:
    return ApiCall(Call(method="GET", path=path, **options), dict)


def submit_call(texts: Iterable[str] | None, file: str | None) -> ApiCall[Mapping[str, Any]]:
    if (texts is None) == (file is None):
        raise DataError("Give a job either texts or a file, and not both.")
    body = {"file": file} if texts is None else {"texts": listed(texts)}
    return ApiCall(json_call("/v1/jobs", body, repeatable=False), dict)


def job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def cancel_call(job_id: str) -> ApiCall[None]:
    return ApiCall(Call(method="DELETE", path=job_path(job_id)), lambda _: None)


def results_call(job_id: str) -> Call:
    return Call(method="GET", path=f"{job_path(job_id)}/results", stream=True)


READY: Final = get_call("/readyz", patient=False)


def listed(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise DataError("One string was given where a list of texts was expected. Write [text].")
    return list(texts)


def _check(texts: Sequence[str]) -> None:
    """A list of more than one request, before the first of them is paid; one alone is answered by
    the service as a whole, or not at all.
    """
    if len(texts) <= MAX_TEXTS:
        return
    faults = [(at, fault) for at, text in enumerate(texts) if (fault := fault_of(text))]
    if faults:
        shown = "".join(f"\n  texts[{at}]: {fault}" for at, fault in faults[:_MOST_SHOWN])
        raise DataError(
            f"{len(faults)} of the {len(texts):,} texts cannot be answered, so none was sent. "
            f"Leave them out.{shown}"
        )


def batches(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """What goes into one request, and where it begins.

    Raises:
        DataError: texts of a list that the service would refuse, by their places.
    """
    if isinstance(texts, str):
        listed(texts)
    if isinstance(texts, Sequence):
        _check(texts)
    rest, first = iter(texts), 0
    while batch := list(islice(rest, MAX_TEXTS)):
        yield first, batch
        first += len(batch)


def parsed(plan: ApiCall[T], reply: Reply) -> T:
    try:
        return plan.parse(json.loads(reply.content) if reply.content else None)
    except (ValueError, KeyError, TypeError, IndexError):
        _not_ours(plan.call.path)


def row_of(line: str, path: str) -> Mapping[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        _not_ours(path)


def _not_ours(path: str) -> NoReturn:
    raise ServiceError(
        f"What came from {path} is not what Firstline sends. Is another service at this address?"
    ) from None

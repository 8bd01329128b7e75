"""Records: one line of strict JSON each, and nothing that could hold the text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.audit.records import AuditRecord, FeedbackRecord, parse
from cluster.errors import AuditError
from tests.support.audit_log import answer

numbers = st.floats()
times = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec=None))  # lone surrogates too
answers = st.builds(
    AuditRecord,
    id=names,
    time_s=times,
    text_hash=names,
    route=names,
    reason=names,
    label=names,
    edge_label=st.none() | names,
    confidence=numbers,
    signals=st.dictionaries(names, numbers, max_size=4),
    trust=numbers,
    threshold=numbers,
    propensity=st.floats(0, 1, exclude_min=True),
    release=names,
    cost_usd=numbers,
    latency_ms=numbers,
    degraded=st.booleans(),
    request_size=st.integers(1, 256),
)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@given(answers)
def test_a_record_survives_as_one_line_of_strict_json(record: AuditRecord) -> None:
    line = record.to_json()
    json.loads(line, parse_constant=no_constant)
    assert b"\n" not in line
    # repr, because NaN differs from itself and -0.0 equals 0.0
    assert repr(parse(line)) == repr(record)


@given(st.builds(FeedbackRecord, id=names, time_s=times, label=names))
def test_feedback_survives(record: FeedbackRecord) -> None:
    assert parse(record.to_json()) == record


def test_no_field_can_hold_the_text() -> None:
    # Whoever adds a field must come past this list.
    assert set(json.loads(answer(request_size=7).to_json())) == {
        "kind", "id", "time_s", "text_hash", "route", "reason", "label", "edge_label", "confidence",
        "signals", "trust", "threshold", "propensity", "release", "cost_usd", "latency_ms",
        "degraded", "cached", "shadow_of", "offline", "request_size",
    }  # fmt: skip


def test_a_record_from_before_the_size_of_a_request_was_kept_is_still_read() -> None:
    value = json.loads(answer(request_size=7).to_json())
    assert value.pop("request_size") == 7
    assert parse(json.dumps(value)) == answer()
    assert b"request_size" not in answer().to_json(), "most requests have one message"


def test_keys_of_a_later_version_are_read_over_and_not_written() -> None:
    value = {**json.loads(answer().to_json()), "invented_later": [1, 2]}
    record = parse(json.dumps(value))
    assert record == answer()
    assert b"invented_later" not in record.to_json()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"7",
        b'{"kind": "answer"}',
        b'{"kind": "order", "id": "a"}',
        b'{"kind": "feedback", "id": 1, "time_s": 1.0, "label": "x"}',
        b'{"kind": "feedback", "id": "a", "time_s": true, "label": "x"}',
        b'{"kind": "feedback", "id": "a", "time_s": NaN, "label": "x"}',
        b'{"kind": "feedback", "id": "a", "time_s": 1' + b"0" * 400 + b', "label": "x"}',
        b"\xff\xfe",
        b"[" * 200_000,
    ],
)
def test_a_line_that_is_no_record_is_an_audit_error(line: bytes) -> None:
    with pytest.raises(AuditError, match="no audit record"):
        parse(line)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("propensity", 0.0),  # of what happened no chance is 0, and no weight 1 / 0
        ("propensity", 1.5),
        ("propensity", "nan"),
        ("propensity", None),
        ("edge_label", 3),
        ("edge_label", ...),
        ("propensity", ...),
    ],
)
def test_a_record_that_could_not_be_replayed_is_no_record(name: str, value: object) -> None:
    """... stands for a key that is missing."""
    found = {**json.loads(answer().to_json()), name: value}
    if value is ...:
        del found[name]
    with pytest.raises(AuditError, match="no audit record"):
        parse(json.dumps(found))

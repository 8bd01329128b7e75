"""The steps that the online and the offline path share; test_offline.py compares the two."""

import pytest

from serve_app.cascade.steps import settle_edge, texts_for_cloud
from serve_app.cascade.work import Work
from serve_app.contracts import Message, Route


@pytest.mark.parametrize("pinned", [Message("a", ("card",)), Message("a", detector_failed=True)])
def test_no_list_for_the_cloud_has_a_pinned_message_in_it(pinned: Message) -> None:
    """Whatever had routed it there."""
    works = [Work(Message("b"), route=Route.CLOUD), Work(pinned, route=Route.CLOUD)]
    assert texts_for_cloud(works[:1]) == ["b"]
    with pytest.raises(AssertionError, match="about to leave the edge"):
        texts_for_cloud(works)


def test_failures_are_logged_once_per_kind_with_their_own_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each kind was told with the count of all."""
    failed = [ValueError("a"), ValueError("b"), TimeoutError("what a customer wrote")]
    settle_edge([Work(Message(text)) for text in "abc"], failed, 1.0)
    said = sorted(record.getMessage() for record in caplog.records)
    assert [line.partition("on ")[2] for line in said] == [
        "1 messages: TimeoutError.", "2 messages: ValueError.",
    ]  # fmt: skip

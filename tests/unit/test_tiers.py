"""The replica of a tier, without Ray: what it answers, refuses, and keeps off its event loop."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.bundles import MODEL, ModelBundle
from cluster.errors import BundleError
from serve_app.contracts import Prediction
from serve_app.tiers import Tier
from tests.toys import make_bundle, message


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return make_bundle(tmp_path_factory.mktemp("toy") / "edge", "edge")


def tier(bundle: ModelBundle, threads: int = 1) -> Tier:
    return Tier(str(bundle.path), bundle.sha256, threads, MODEL)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_message_is_answered_alike_alone_and_in_a_list(bundle: ModelBundle, threads: int) -> None:
    texts = [message(label) for label in bundle.manifest.labels] * 4
    made = tier(bundle, threads)

    async def story() -> tuple[Sequence[Any], list[Any]]:
        together = await made.predict(texts, bundle.sha256, 5.0)
        alone = [(await made.predict([text], bundle.sha256, 5.0))[0] for text in texts]
        return together, alone

    together, alone = asyncio.run(story())
    assert list(together) == alone
    assert all(isinstance(answer, Prediction) for answer in alone)


@pytest.mark.parametrize("count", [1, 9])
def test_the_wrong_bundle_and_a_list_that_is_late_are_refused(
    bundle: ModelBundle, count: int
) -> None:
    made, texts = tier(bundle), ["a text"] * count
    with pytest.raises(BundleError, match="Deploy the router again"):
        asyncio.run(made.predict(texts, "0" * 64, 5.0))
    with pytest.raises(TimeoutError, match="longer than its caller"):
        asyncio.run(made.predict(texts, bundle.sha256, -1.0))


@pytest.mark.parametrize(
    ("threads", "count", "on_loop"), [(1, 1, True), (1, 2, False), (2, 1, False), (2, 16, False)]
)
def test_only_one_message_of_a_tier_of_one_thread_runs_on_the_event_loop(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, threads: int, count: int, on_loop: bool
) -> None:
    """A list there would keep the replica's health checks waiting."""
    made, ran_in = tier(bundle, threads), set()
    scorer = type(made._model.classifier.scorer)
    answers = scorer.answers

    def noted(self: Any, texts: Sequence[str]) -> Any:
        ran_in.add(threading.current_thread())
        return answers(self, texts)

    monkeypatch.setattr(scorer, "answers", noted)
    asyncio.run(made.predict(["a text"] * count, bundle.sha256, 5.0))
    assert ran_in
    assert (threading.current_thread() in ran_in) is on_loop


def test_a_bundle_that_is_another_than_promised_does_not_start(bundle: ModelBundle) -> None:
    with pytest.raises(BundleError):
        Tier(str(bundle.path), "0" * 64, 1, MODEL)

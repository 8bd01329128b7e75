"""The online and the offline path give one answer, for one reason, at one cost."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.audit.records import AuditRecord
from cluster.errors import ModelOutputError
from serve_app.cascade.answerer import Answerer, ServedRelease
from serve_app.cascade.cache import Cache, CacheConfig, NoCache, ResponseCache
from serve_app.cascade.offline import OfflineCascade
from serve_app.cascade.work import RecordBuilder, Work
from serve_app.contracts import Message, Outcome, Prediction
from serve_app.decide.answered import Answered
from serve_app.decide.cost import Prices
from serve_app.decide.policy import PUBLISHED, RANDOM, RouterPolicy, Rules
from serve_app.decide.scores import Weighted
from serve_app.errors import UnansweredError
from serve_app.guard.pii import redact
from serve_app.guard.prepare import normalise, prepare
from serve_app.model.golden import TierModel
from tests.support.strategies import POLICIES
from tests.support.toys import LABELS, WORDS, make_bundle

PRICES: Final = Prices()
CONFIDENCE: Final = RouterPolicy(
    name="confidence", score=Weighted(weights={"confidence": 1.0}), threshold=0.9
)
RULED: Final = CONFIDENCE.model_copy(
    update={"rules": Rules(never_escalate=("neutral",), always_escalate=("positive",), max_words=3)}
)
# The toy edge has no finite answer to the first, the toy cloud to the second, the detector fails on
# the third.
EDGE_POISON, CLOUD_POISON, UNREADABLE = "rude", "friendly", "unreadable"
SENSITIVE: Final = ("jo@example.com", "4111 1111 1111 1111", "+49 30 901820")
PIECES: Final = st.sampled_from(
    [*(word for group in WORDS.values() for word in group), *SENSITIVE, UNREADABLE, "lawyer", "Ⅳ"]
) | st.text(max_size=4)
TEXTS: Final = st.lists(PIECES, min_size=1, max_size=5).map(" ".join).filter(normalise)
RULES: Final = st.sampled_from([CONFIDENCE, RULED, RANDOM, PUBLISHED]) | POLICIES


def guard(raw: str) -> Message:
    """The service's own, but for a detector that fails on one word."""

    def detector(text: str) -> tuple[str, tuple[str, ...]]:
        if UNREADABLE in text:
            raise ValueError(text)
        return redact(text)

    return prepare(raw, detector)


@dataclass
class Tier:
    """A toy model, called or awaited, that notes what it was asked. A dead one fails."""

    model: TierModel
    dead: bool = False
    seen: list[str] = field(default_factory=list)

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]:
        self.seen += texts
        if self.dead:
            raise RuntimeError("no memory")
        return self.model.predict(texts)

    async def ask(self, texts: Sequence[str], timeout_s: float | None = None) -> list[Outcome]:
        """As a Batcher gives it: failures are values."""
        try:
            answers = self.predict(texts)
        except RuntimeError as error:
            return [error] * len(texts)
        return [answer or ModelOutputError("no finite answer") for answer in answers]


@dataclass
class Log:
    """Audit and emitter in one."""

    records: list[AuditRecord] = field(default_factory=list)

    async def append(self, records: Sequence[AuditRecord]) -> None:
        self.records += records

    def emit(self, records: Sequence[AuditRecord]) -> None: ...

    def bad_outputs(self, count: int) -> None: ...


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TierModel, TierModel]:
    folder = tmp_path_factory.mktemp("pair")
    edge = make_bundle(folder, "edge", nan_word=EDGE_POISON)
    cloud = make_bundle(folder, "cloud", nan_word=CLOUD_POISON)
    return TierModel.load(edge.path, edge.sha256, 1), TierModel.load(cloud.path, cloud.sha256, 1)


def answerer_of(
    edge: Tier, cloud: Tier, policy: RouterPolicy, log: Log, pool: ThreadPoolExecutor, cache: Cache
) -> Answerer:
    release = ServedRelease(
        "r-1", "r-1", policy, PRICES, LABELS, edge.ask, cloud.ask, cache=cache
    )  # fmt: skip
    return Answerer(
        release, audit=log, emitter=log, hash_text=str.upper, new_id=lambda: "id",
        clock=time.monotonic, now=lambda: 0.0, pool=pool, prepare=guard,
    )  # fmt: skip


async def alone(answerer: Answerer, text: str) -> Answered | None:
    """None where no tier that may see it answers."""
    try:
        return (await answerer.answer([text]))[0]._replace(latency_ms=0.0)
    except UnansweredError:
        return None


def scored(work: Work) -> Answered | None:
    return work.answered("id", "r-1", PRICES, None) if work.known else None


@settings(deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), policy=RULES, dead=st.booleans())
def test_online_and_offline_give_one_answer_for_one_reason_at_one_cost(
    pair: tuple[TierModel, TierModel], texts: list[str], policy: RouterPolicy, dead: bool
) -> None:
    """Whatever the texts hold and whichever tier fails, in a list or one by one."""
    offline_cloud, online_cloud = Tier(pair[1], dead), Tier(pair[1], dead)
    cascade = OfflineCascade(Tier(pair[0]), offline_cloud, policy, PRICES)
    works = cascade.answer(list(map(guard, texts)))
    expected = [scored(work) for work in works]
    log = Log()

    async def check(pool: ThreadPoolExecutor) -> None:
        answerer = answerer_of(Tier(pair[0]), online_cloud, policy, log, pool, NoCache())
        assert [await alone(answerer, text) for text in texts] == expected
        assert sorted(online_cloud.seen) == sorted(offline_cloud.seen)
        pinned = {work.message.text for work in works if work.message.pinned}
        assert pinned.isdisjoint(online_cloud.seen)
        if None in expected:
            with pytest.raises(UnansweredError):
                await answerer.answer(texts)
        else:
            together = await answerer.answer(texts)
            assert [answer._replace(latency_ms=0.0) for answer in together] == expected

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(check(pool))
    builder = RecordBuilder.of(policy, str.upper, lambda: 0.0, offline=True)
    written = [builder.record(work, made) for work in works if (made := scored(work)) is not None]
    online = [record._replace(latency_ms=0.0, offline=True) for record in log.records]
    assert online[: len(written)] == written


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), policy=RULES)
def test_the_cache_changes_the_cost_of_an_answer_alone(
    pair: tuple[TierModel, TierModel], texts: list[str], policy: RouterPolicy
) -> None:
    cascade = OfflineCascade(Tier(pair[0]), Tier(pair[1]), policy, PRICES)
    works = cascade.answer(list(map(guard, texts)))

    async def check(pool: ThreadPoolExecutor) -> None:
        cache = ResponseCache(CacheConfig(), b"k" * 32)
        answerer = answerer_of(Tier(pair[0]), Tier(pair[1]), policy, Log(), pool, cache)
        for text, work in [*zip(texts, works, strict=True)] * 2:
            answer, expected = await alone(answerer, text), scored(work)
            if answer is not None and answer.cached:
                answer = answer._replace(cached=False, cost_usd=work.cost_usd(PRICES))
            assert answer == expected

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(check(pool))

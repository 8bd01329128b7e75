"""Answerer: who sees a message, what it costs, and what is written down before it leaves."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.audit.records import AuditRecord
from cluster.errors import AuditError, ModelOutputError
from serve_app.cascade.answerer import Answerer, ServedRelease
from serve_app.cascade.cache import Cache, CacheConfig, NoCache, ResponseCache
from serve_app.cascade.escalation import UNLIMITED, EscalationLimit
from serve_app.contracts import (
    Cached,
    Caller,
    Message,
    Outcome,
    Prediction,
    Route,
    RouteReason,
    packed,
)
from serve_app.decide.answered import Answered
from serve_app.decide.cost import Prices
from serve_app.decide.explain import Alternative
from serve_app.decide.policy import RANDOM, RouterPolicy, Rules
from serve_app.decide.scores import Logistic, MaxProbability, Weighted
from serve_app.decide.signals import log_odds, random_signal
from serve_app.errors import EmptyTextsError, OverloadedError, RefusedError, UnansweredError
from serve_app.guard.prepare import prepare
from serve_app.request_limits import MAX_REQUEST_CHARS

pytestmark = pytest.mark.anyio

LABELS = ("no", "yes")
PRICES = Prices()
POLICY = RouterPolicy(name="test", score=Weighted(weights={"confidence": 1.0}), threshold=0.9)
SURE = Prediction("yes", 0.95, 0.9, 0.1, packed(0.05, 0.95))
UNSURE = Prediction("no", 0.6, 0.2, 0.9, packed(0.6, 0.4))
CLOUD = Prediction("yes", 0.99, 0.98, 0.01, packed(0.01, 0.99))
EMAIL = "mail jo@example.com about it"


@dataclass
class FakeTier:
    """Answers by text; what is missing gets `default`."""

    default: Outcome
    special: dict[str, Outcome] = field(default_factory=dict)
    refuses: Exception | None = None
    seen: list[str] = field(default_factory=list)
    timeouts: list[float | None] = field(default_factory=list)

    async def __call__(self, texts: Sequence[str], timeout_s: float | None = None) -> list[Outcome]:
        self.timeouts.append(timeout_s)
        if self.refuses is not None:
            raise self.refuses
        self.seen += texts
        return [self.special.get(text, self.default) for text in texts]


@dataclass
class FakeLog:
    """Audit and emitter in one: remembers the order of what happened."""

    events: list[str] = field(default_factory=list)
    records: list[AuditRecord] = field(default_factory=list)
    bad: int = 0
    appends: int = 0
    fails: bool = False

    async def append(self, records: Sequence[AuditRecord]) -> None:
        self.appends += 1
        if self.fails:
            raise AuditError("the disk is full")
        self.events.append("audit")
        self.records += records

    def emit(self, records: Sequence[AuditRecord]) -> None:
        self.events.append("emit")

    def bad_outputs(self, count: int) -> None:
        self.bad += count


@dataclass
class Rig:
    edge: FakeTier
    cloud: FakeTier
    log: FakeLog
    answerer: Answerer

    async def one(self, text: str, **flags: Any) -> Answered:
        return (await self.answerer.answer([text], **flags))[0]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


Make = Callable[..., Rig]


def a_cache() -> ResponseCache:
    return ResponseCache(CacheConfig(), b"k" * 32)


@pytest.fixture
def make(pool: ThreadPoolExecutor) -> Make:
    def _make(
        edge: Outcome = SURE,
        cloud: Outcome = CLOUD,
        prepare: Callable[[str], Message] = prepare,
        policy: RouterPolicy = POLICY,
        explore_share: float = 0.0,
        draws: Sequence[float] = (),
        escalation: EscalationLimit = UNLIMITED,
        cache: Cache | None = None,
        room: Callable[[int, float | None], None] = lambda count, timeout_s: None,
    ) -> Rig:
        tiers, log, ids = (FakeTier(edge), FakeTier(cloud)), FakeLog(), itertools.count()
        release = ServedRelease(
            "r-1", "r-1", policy, PRICES, LABELS, *tiers, escalation, cache or NoCache(), room=room
        )
        ticks = itertools.count()
        answerer = Answerer(
            release,
            audit=log,
            emitter=log,
            hash_text=lambda text: f"hash of {len(text)}",
            new_id=lambda: f"id{next(ids)}",
            clock=lambda: next(ticks) / 1000,
            now=lambda: 1.0e9,
            pool=pool,
            prepare=prepare,
            explore_share=explore_share,
            draw=iter(draws).__next__,  # fails where more is drawn than was meant to be
        )
        return Rig(*tiers, log, answerer)

    return _make


async def test_a_sure_edge_answers_alone(make: Make) -> None:
    rig = make()
    answer = await rig.one("hello")
    assert (answer.label, answer.route, answer.reason) == ("yes", Route.EDGE, RouteReason.TRUSTED)
    assert answer.cost_usd == PRICES.edge_usd
    assert not answer.degraded
    assert rig.cloud.seen == []


async def test_an_unsure_edge_escalates_and_pays_both(make: Make) -> None:
    rig = make(edge=UNSURE)
    answer = await rig.one("hello")
    assert (answer.label, answer.confidence) == (CLOUD.label, CLOUD.confidence)
    assert (answer.route, answer.reason) == (Route.CLOUD, RouteReason.ESCALATED)
    assert answer.cost_usd == PRICES.edge_usd + PRICES.cloud_usd


async def test_only_what_is_escalated_is_sent_and_the_order_is_kept(make: Make) -> None:
    rig = make()
    rig.edge.special = {"b": UNSURE, "d": UNSURE}
    answers = await rig.answerer.answer(["a", "b", "c", "d"])
    assert rig.cloud.seen == ["b", "d"]
    assert [answer.route.value for answer in answers] == ["edge", "cloud", "edge", "cloud"]
    assert [record.id for record in rig.log.records] == [answer.id for answer in answers]


async def test_personal_data_pins_an_unsure_message_and_is_masked_for_the_edge(make: Make) -> None:
    rig = make(edge=UNSURE)
    answer = await rig.one(EMAIL)
    assert (answer.route, answer.reason) == (Route.EDGE, RouteReason.PII_PINNED)
    assert not answer.degraded
    assert rig.cloud.seen == []
    assert "jo@example.com" not in rig.edge.seen[0]


async def test_a_detector_that_fails_pins_too(make: Make) -> None:
    rig = make(edge=UNSURE, prepare=lambda raw: Message(raw, detector_failed=True))
    assert (await rig.one("anything")).reason is RouteReason.DETECTOR_FAILED
    assert rig.cloud.seen == []


async def test_a_failed_edge_hands_over_to_the_cloud_and_is_not_charged(make: Make) -> None:
    rig = make(edge=ModelOutputError("NaN"))
    answer = await rig.one("hello", explain=True)
    assert (answer.label, answer.reason) == (CLOUD.label, RouteReason.EDGE_FAILED)
    assert answer.cost_usd == PRICES.cloud_usd
    assert rig.log.bad == 1
    assert answer.explanation is not None
    assert (answer.explanation.route, answer.explanation.trust) == (None, None)
    assert answer.explanation.costs_usd == {Route.CLOUD: answer.cost_usd}


async def test_a_failed_edge_never_hands_over_a_pinned_message(make: Make) -> None:
    rig = make(edge=TimeoutError())
    with pytest.raises(UnansweredError) as caught:
        await rig.answerer.answer(["hello", EMAIL])
    assert caught.value.indices == (1,)
    assert rig.cloud.seen == [], "the request is lost, so its other messages are not paid for"
    assert rig.log.records == []


@pytest.mark.parametrize(
    "failure", [TimeoutError(), ModelOutputError("NaN"), OverloadedError("full"), OSError()]
)
async def test_a_failed_cloud_leaves_the_edges_answer_degraded(
    make: Make, failure: Exception
) -> None:
    rig = make(edge=UNSURE, cloud=failure)
    answer = await rig.one("hello")
    assert (answer.label, answer.route) == (UNSURE.label, Route.EDGE)
    assert (answer.degraded, answer.reason) == (True, RouteReason.CLOUD_FAILED)
    assert answer.cost_usd == PRICES.edge_usd
    assert rig.log.records[0].degraded


async def test_a_full_cloud_queue_degrades_and_a_full_edge_queue_refuses(make: Make) -> None:
    full = OverloadedError("full")
    rig = make(edge=UNSURE)
    rig.cloud.refuses = full
    assert (await rig.one("hello")).degraded
    rig.edge.refuses = full
    with pytest.raises(OverloadedError):
        await rig.one("hello")
    busy = make(edge=full)
    with pytest.raises(OverloadedError):
        await busy.one("hello")
    assert busy.cloud.seen == [], "the dearer tier must not take the overflow"


async def test_a_long_list_is_refused_before_it_is_prepared(make: Make) -> None:
    prepared: list[str] = []
    asked: list[tuple[int, float | None]] = []

    def spy(text: str) -> Message:
        prepared.append(text)
        return prepare(text)

    def full(count: int, timeout_s: float | None) -> None:
        asked.append((count, timeout_s))
        raise OverloadedError("full")

    rig = make(prepare=spy, room=full)
    with pytest.raises(OverloadedError):
        await rig.answerer.answer(["x" * 1000] * 5, caller=Caller(deadline_s=2.0))
    with pytest.raises(OverloadedError):
        await rig.answerer.shadow(["x" * 1000] * 5, [])
    assert (prepared, asked, rig.edge.seen) == ([], [(5, 2.0), (5, None)], [])


async def test_a_short_list_that_was_seen_before_is_answered_by_a_busy_service(make: Make) -> None:
    cache = a_cache()
    await make(cache=cache).one("hello")

    def full(count: int, timeout_s: float | None) -> None:
        raise OverloadedError("full")

    busy = make(edge=OverloadedError("full"), cache=cache, room=full)
    assert (await busy.one("hello")).cached


async def test_both_failed_is_no_answer(make: Make) -> None:
    rig = make(edge=TimeoutError(), cloud=TimeoutError())
    with pytest.raises(UnansweredError):
        await rig.one("hello")
    assert rig.log.records == []


async def test_one_append_for_the_request_before_anything_else_hears_of_it(make: Make) -> None:
    rig = make()
    await rig.answerer.answer(["a", "b", "c"])
    assert rig.log.events == ["audit", "emit"]
    assert rig.log.appends == 1
    assert len(rig.log.records) == 3


async def test_no_answer_leaves_that_is_not_written_down(make: Make) -> None:
    rig = make()
    rig.log.fails = True
    with pytest.raises(AuditError):
        await rig.one("hello")
    assert rig.log.events == []


async def test_the_record_has_the_decision_and_not_the_text(make: Make) -> None:
    rig = make(edge=UNSURE)
    answer = await rig.one("a secret word", explain=True)
    record = rig.log.records[0]
    assert (record.id, record.label, record.cost_usd) == (answer.id, "yes", answer.cost_usd)
    assert (record.trust, record.threshold) == (0.6, 0.9)
    assert record.signals["confidence"] == 0.6
    assert b"secret" not in record.to_json()


async def test_nothing_in_the_record_tells_the_text_without_the_key(make: Make) -> None:
    """`random` is a hash without a key: likely messages could be tried against it."""
    rig = make(edge=UNSURE)
    await rig.one("a secret word")
    assert "random" not in rig.log.records[0].signals
    assert str(random_signal("a secret word")).encode() not in rig.log.records[0].to_json()


async def test_a_rule_that_weighs_the_die_has_it_in_the_record(make: Make) -> None:
    """Else nobody could replay it."""
    rig = make(policy=RANDOM)
    await rig.one("a secret word")
    assert rig.log.records[0].signals["random"] == random_signal("a secret word")


async def test_route_only_decides_without_paying_or_recording(make: Make) -> None:
    rig = make(edge=UNSURE)
    preview = await rig.one("hello", route_only=True)
    assert (preview.route, preview.reason) == (Route.CLOUD, RouteReason.ESCALATED)
    assert preview.label is None
    assert preview.cost_usd == PRICES.edge_usd
    assert rig.cloud.seen == []
    assert rig.log.events == []


async def test_a_preview_explains_without_giving_the_answer_away(make: Make) -> None:
    """The label could be read off the probabilities, and nobody wrote it down."""
    rig = make(edge=UNSURE)
    preview = await rig.one("hello", route_only=True, explain=True)
    assert preview.explanation is not None
    assert preview.explanation.probabilities == {}
    assert preview.explanation.route is Route.CLOUD
    assert rig.log.events == []


@pytest.mark.parametrize("explain", [False, True])
async def test_a_preview_does_not_name_the_list_that_the_class_is_in(
    make: Make, explain: bool
) -> None:
    policy = POLICY.model_copy(update={"rules": Rules(never_escalate=("yes",))})
    by_rule = await make(policy=policy).one("hello", route_only=True, explain=explain)
    by_trust = await make(edge=SURE._replace(label="no"), policy=policy).one(
        "hello", route_only=True, explain=explain
    )
    assert by_rule == by_trust
    assert by_rule.reason is RouteReason.TRUSTED


async def test_a_degraded_answer_explains_what_the_rule_wanted(make: Make) -> None:
    answer = await make(edge=UNSURE, cloud=TimeoutError()).one("hello", explain=True)
    assert (answer.route, answer.reason) == (Route.EDGE, RouteReason.CLOUD_FAILED)
    assert answer.explanation is not None
    assert answer.explanation.route is Route.CLOUD
    assert answer.explanation.reason is RouteReason.ESCALATED


async def test_explain_adds_up(make: Make) -> None:
    explanation = (await make().one("hello", explain=True)).explanation
    assert explanation is not None
    assert explanation.trust is not None
    assert explanation.probabilities == {"no": 0.05, "yes": 0.95}
    assert math.isclose(sum(explanation.breakdown.values()), explanation.trust)
    assert explanation.costs_usd == {
        Route.EDGE: PRICES.edge_usd,
        Route.CLOUD: PRICES.edge_usd + PRICES.cloud_usd,
    }


async def test_explain_tells_the_nearest_certified_alternatives(make: Make) -> None:
    strict = Alternative(
        risk=0.005, threshold=0.97, edge_share=0.5, upper_bound=0.004, confidence=0.95
    )
    for route_only in (False, True):
        rig = make()
        rig.answerer.release = replace(rig.answerer.release, alternatives=(strict,))
        answer = await rig.one("hello", explain=True, route_only=route_only)
        assert answer.explanation is not None
        near = answer.explanation.alternatives
        assert near.looser is None
        assert near.stricter is not None
        assert (near.stricter.risk, near.stricter.route) == (0.005, Route.CLOUD)


async def test_explain_names_the_parts_of_a_learned_score_and_of_its_class(make: Make) -> None:
    policy = RouterPolicy(
        name="learned",
        score=Logistic(weights={"log_odds": 1.0}, intercept=-2.0, classes={"yes": 0.5, "no": 9.0}),
        threshold=0.0,
        class_margins={"yes": 0.25},
    )
    explanation = (await make(policy=policy).one("hello", explain=True)).explanation
    assert explanation is not None
    assert explanation.trust is not None
    parts = explanation.breakdown
    assert parts == {
        "intercept": -2.0, "class": 0.5, "log_odds": log_odds(0.95), "class_margin": -0.25,
    }  # fmt: skip
    assert math.isclose(sum(parts.values()), explanation.trust)


async def test_a_rule_that_fires_is_the_reason(make: Make) -> None:
    policy = RouterPolicy(
        name="strict", score=MaxProbability(), threshold=0.9, rules=Rules(escalation_words=True)
    )
    rig = make(policy=policy)
    answer = await rig.one("I will ask my lawyer")
    assert (answer.route, answer.reason) == (Route.CLOUD, RouteReason.ESCALATION_WORDS)
    assert rig.log.records[0].reason == "escalation_words"


# ---- exploration


async def test_a_share_of_the_trusted_is_explored_and_the_chances_are_written_down(
    make: Make,
) -> None:
    rig = make(explore_share=0.1, draws=(0.0999, 0.0, 0.1, 0.5))
    rig.edge.special = {"b": UNSURE}
    answers = await rig.answerer.answer(["a", "b", "c", "d"])
    assert rig.cloud.seen == ["a", "b"]
    assert [answer.reason.value for answer in answers] == [
        "explored", "escalated", "trusted", "trusted",
    ]  # fmt: skip
    assert [record.propensity for record in rig.log.records] == [0.1, 1.0, 0.9, 0.9]


async def test_an_explored_message_gets_the_clouds_answer_and_pays_both(make: Make) -> None:
    rig = make(cloud=UNSURE, explore_share=0.5, draws=[0.0])
    answer = await rig.one("hello")
    assert (answer.label, answer.route) == (UNSURE.label, Route.CLOUD)
    assert answer.cost_usd == PRICES.edge_usd + PRICES.cloud_usd
    record = rig.log.records[0]
    assert (record.edge_label, record.label) == (SURE.label, UNSURE.label)
    assert (record.reason, record.propensity) == ("explored", 0.5)


async def test_a_look_that_fails_leaves_the_rules_own_answer_which_is_not_degraded(
    make: Make,
) -> None:
    rig = make(cloud=TimeoutError(), explore_share=0.5, draws=[0.0])
    answer = await rig.one("hello")
    assert (answer.label, answer.route) == (SURE.label, Route.EDGE)
    assert (answer.reason, answer.degraded) == (RouteReason.EXPLORED, False)
    assert answer.cost_usd == PRICES.edge_usd


async def test_pinned_and_class_kept_messages_are_never_explored(make: Make) -> None:
    policy = RouterPolicy(
        name="kept", score=MaxProbability(), threshold=0.9, rules=Rules(never_escalate=("yes",))
    )
    rig = make(policy=policy, explore_share=0.5, draws=(0.0, 0.0))
    answers = await rig.answerer.answer(["hello", EMAIL])
    assert [answer.reason.value for answer in answers] == ["class_kept", "pii_pinned"]
    assert rig.cloud.seen == []
    assert [record.propensity for record in rig.log.records] == [1.0, 1.0]


async def test_a_preview_never_explores(make: Make) -> None:
    rig = make(explore_share=0.5, draws=())
    preview = await rig.one("hello", route_only=True)
    assert (preview.route, preview.reason) == (Route.EDGE, RouteReason.TRUSTED)


async def test_without_exploration_nothing_is_drawn(make: Make) -> None:
    rig = make(draws=())
    await rig.one("hello")
    assert rig.log.records[0].propensity == 1.0


async def test_the_record_has_what_the_edge_said_whoever_answers(make: Make) -> None:
    rig = make(edge=UNSURE)
    await rig.one("hello")
    rig.edge.default = ModelOutputError("NaN")
    await rig.one("hello")
    assert [(record.edge_label, record.label) for record in rig.log.records] == [
        (UNSURE.label, CLOUD.label), (None, CLOUD.label),
    ]  # fmt: skip


async def test_more_characters_than_a_router_prepares_in_two_seconds_are_refused(
    make: Make,
) -> None:
    rig = make()
    texts = ["x" * 1_000] * (MAX_REQUEST_CHARS // 1_000)
    assert len(await rig.answerer.answer(texts)) == len(texts)
    with pytest.raises(RefusedError, match="256,001 characters together") as refused:
        await rig.answerer.answer([*texts, "y"])
    assert (refused.value.status, refused.value.code) == (413, "too_large")


@pytest.mark.parametrize("blank", ["", "   ", "\u200b\u200e", "\ud800"])
async def test_texts_without_a_visible_character_are_named_by_index(make: Make, blank: str) -> None:
    rig = make()
    with pytest.raises(EmptyTextsError) as caught:
        await rig.answerer.answer(["hello", blank])
    assert caught.value.indices == (1,)
    assert rig.edge.seen == []


async def test_a_long_request_is_prepared_off_the_loop(make: Make) -> None:
    import threading

    threads: set[str] = set()

    def note(raw: str) -> Message:
        threads.add(threading.current_thread().name)
        return prepare(raw)

    rig = make(prepare=note)
    await rig.one("short")
    assert threads == {threading.main_thread().name}
    threads.clear()
    await rig.one("long " * 2000)
    assert threading.main_thread().name not in threads


OUTCOMES = st.sampled_from([SURE, UNSURE, TimeoutError(), ModelOutputError("NaN")])


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(st.booleans(), OUTCOMES, OUTCOMES), min_size=1, max_size=8))
def test_whatever_fails_a_pinned_message_stays_and_answers_are_all_or_none(
    rows: list[tuple[bool, Outcome, Outcome]],
) -> None:
    import asyncio

    async def check() -> None:
        edge, cloud, log = FakeTier(SURE), FakeTier(SURE), FakeLog()
        texts = [f"{'pin' if pinned else 'free'}{index}" for index, (pinned, *_) in enumerate(rows)]
        edge.special = {text: row[1] for text, row in zip(texts, rows, strict=True)}
        cloud.special = {text: row[2] for text, row in zip(texts, rows, strict=True)}
        answerer = Answerer(
            ServedRelease("r-1", "r-1", POLICY, PRICES, LABELS, edge, cloud),
            audit=log,
            emitter=log,
            hash_text=str,
            new_id=str,
            clock=lambda: 0.0,
            now=lambda: 0.0,
            pool=ThreadPoolExecutor(1),
            prepare=lambda raw: Message(raw, ("card",) if raw.startswith("pin") else ()),
        )
        try:
            answers = await answerer.answer(texts)
        except UnansweredError:
            assert log.records == []
        else:
            assert len(answers) == len(log.records) == len(texts)
            for (pinned, *_), answer in zip(rows, answers, strict=True):
                assert not pinned or answer.reason is RouteReason.PII_PINNED
        assert not any(text.startswith("pin") for text in cloud.seen)

    asyncio.run(check())


# ---- what was answered before -------------------------------------------------------------------


async def test_a_text_that_was_answered_costs_nothing_and_asks_nobody(make: Make) -> None:
    rig = make(edge=UNSURE, cache=a_cache())
    first, again = await rig.one("hello"), await rig.one("hello")
    assert (again.label, again.confidence, again.route, again.reason) == (
        first.label, first.confidence, first.route, first.reason,
    )  # fmt: skip
    assert (first.cached, again.cached, again.cost_usd) == (False, True, 0.0)
    assert again.id != first.id
    assert (rig.edge.seen, rig.cloud.seen) == (["hello"], ["hello"])
    assert [record.cached for record in rig.log.records] == [False, True]
    assert rig.log.records[1].signals == rig.log.records[0].signals
    assert rig.log.records[1].edge_label == UNSURE.label


async def test_personal_data_is_never_looked_up_nor_kept(make: Make) -> None:
    cache = a_cache()
    rig = make(cache=cache)
    key = cache.key("r-1", "anonymous", prepare(EMAIL).text)
    planted = Cached("no", "no", 0.5, Route.CLOUD, RouteReason.ESCALATED, 0.0, {})
    cache.put_many([(key, planted)], LABELS)
    answer = await rig.one(EMAIL)
    assert (answer.cached, answer.reason) == (False, RouteReason.PII_PINNED)
    assert await cache.get_many([key], LABELS) == [planted]


@pytest.mark.parametrize("failure", [TimeoutError(), ModelOutputError("NaN")])
async def test_a_degraded_answer_is_not_kept(make: Make, failure: Exception) -> None:
    cache = a_cache()
    await make(edge=UNSURE, cloud=failure, cache=cache).one("hello")
    assert not (await make(cache=cache).one("hello")).cached


async def test_a_caller_does_not_learn_what_another_has_sent(make: Make) -> None:
    """A free answer would tell."""
    rig = make(cache=a_cache())
    for key in ("a", "b"):
        assert not (await rig.one("hello", caller=Caller(key))).cached


async def test_chance_looks_at_a_kept_text_again(make: Make) -> None:
    """Or the first answer to a frequent text would be the only one that is ever explored."""
    rig = make(cache=a_cache(), explore_share=0.1, draws=[0.5, 0.5, 0.05])
    first, kept, explored = [await rig.one("hello") for _ in range(3)]
    assert [a.cached for a in (first, kept, explored)] == [False, True, False]
    assert (kept.reason, explored.reason) == (RouteReason.TRUSTED, RouteReason.EXPLORED)
    assert [record.propensity for record in rig.log.records] == [0.9, 0.9, 0.1]


async def test_an_explanation_and_a_preview_are_made_anew(make: Make) -> None:
    rig = make(cache=a_cache())
    await rig.one("hello")
    explained = await rig.one("hello", explain=True)
    assert explained.explanation is not None
    assert not explained.cached
    assert not (await rig.one("hello", route_only=True)).cached


# ---- the limit to the cloud ----------------------------------------------------------------------


class Shut(EscalationLimit):
    """Lets so many through, and gives a reason."""

    def __init__(self, allowed: int, reason: RouteReason) -> None:
        super().__init__()
        self.allowed, self.reason = allowed, reason
        self.asked: list[tuple[int, int, int]] = []
        self.judged: list[int] = []

    def admit(self, seen: int, must: int, wanted: int) -> tuple[int, RouteReason]:
        self.asked.append((seen, must, wanted))
        return min(self.allowed, wanted), self.reason

    def judge(self, outcomes: Sequence[Outcome]) -> None:
        self.judged.append(len(outcomes))


@pytest.mark.parametrize("reason", [RouteReason.CIRCUIT_OPEN, RouteReason.CLOUD_CAPPED])
async def test_what_the_door_keeps_out_is_answered_by_the_edge_and_degraded(
    make: Make, reason: RouteReason
) -> None:
    limit = Shut(1, reason)
    rig = make(edge=UNSURE, escalation=limit)
    rig.edge.special = {"easy": SURE}
    first, easy, second = await rig.answerer.answer(["a", "easy", "b"])
    assert limit.asked == [(3, 0, 2)]
    assert (first.reason, first.degraded) == (RouteReason.ESCALATED, False)
    assert (easy.reason, easy.degraded) == (RouteReason.TRUSTED, False)
    assert (second.reason, second.degraded, second.route) == (reason, True, Route.EDGE)
    assert second.cost_usd == PRICES.edge_usd
    assert rig.cloud.seen == ["a"]
    assert limit.judged == [1]


async def test_no_door_is_shut_on_a_message_without_an_answer(make: Make) -> None:
    rig = make(edge=ModelOutputError("NaN"), escalation=Shut(0, RouteReason.CIRCUIT_OPEN))
    assert (await rig.one("hello")).reason is RouteReason.EDGE_FAILED


async def test_an_explored_message_at_a_shut_door_is_not_degraded(make: Make) -> None:
    limit = Shut(0, RouteReason.CLOUD_CAPPED)
    answer = await make(escalation=limit, explore_share=0.5, draws=[0.1]).one("hello")
    assert (answer.route, answer.degraded) == (Route.EDGE, False)
    assert answer.reason is RouteReason.EXPLORED


# ---- deadlines and shadows ----------------------------------------------------------------------


async def test_a_deadline_goes_with_the_message_and_shrinks(make: Make) -> None:
    rig = make(edge=UNSURE)
    await rig.one("hello", caller=Caller(deadline_s=0.5))
    (edge_s,), (cloud_s,) = rig.edge.timeouts, rig.cloud.timeouts
    assert edge_s is not None
    assert cloud_s is not None
    assert 0 < cloud_s < edge_s < 0.5


async def test_a_shadow_is_written_down_and_never_answers(make: Make) -> None:
    live, shadow = make(), make(edge=UNSURE, cloud=CLOUD._replace(label="no"))
    answers = await live.answerer.answer(["hello", EMAIL])
    await shadow.answerer.shadow(["hello", EMAIL], answers)
    records = shadow.log.records
    assert [record.shadow_of for record in records] == [answer.id for answer in answers]
    assert [record.reason for record in records] == ["escalated", "pii_pinned"]
    assert shadow.cloud.seen == ["hello"], "a shadow's cloud sees no personal data either"
    assert [record.shadow_of for record in live.log.records] == [None, None]

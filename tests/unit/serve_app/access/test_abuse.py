"""Abuse rules: what has consequences, what has none, and that they end by themselves."""

import itertools
from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.abuse import MAX_KEYS, RULES, Abuse, AbuseRule, AbuseVerdict, Sweep
from serve_app.contracts import AbuseAction, AbuseEvent, AbuseKind

SEED_TEXTS = [
    "where is the parcel that I ordered for my mother last week",
    "my card was charged twice for the same purchase on Monday",
    "how do I change the address on my account before it ships",
    "the app closes as soon as I open the page with my invoices",
]
WORDS = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfg", "aeiou", "klmnr")]


def changed(text: str, draw: Random) -> str:
    """One word of it is another."""
    words = text.split()
    words[draw.randrange(len(words))] = draw.choice(WORDS)
    return " ".join(words)


def unlike(count: int, draw: Random) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=10)) for _ in range(count)]


class Watch:
    """Abuse with its events, and a clock that goes on by a tenth of a second with each event."""

    def __init__(self, rules: Mapping[AbuseKind, AbuseRule] = RULES) -> None:
        self.events: list[AbuseEvent] = []
        self.abuse = Abuse(self.events.append, rules=rules)
        self.now_s = 1000.0

    def asks(self, texts: Sequence[str], key: str = "a") -> None:
        for text in texts:
            self.now_s += 0.1
            self.abuse.asked(key, [text], self.now_s)

    def is_refused(self, count: int, key: str = "a") -> None:
        for _ in range(count):
            self.now_s += 0.1
            self.abuse.refused(key, self.now_s)

    def verdict(self, key: str = "a") -> AbuseVerdict:
        return self.abuse.verdict(key, self.now_s)

    @property
    def seen(self) -> list[tuple[AbuseKind, AbuseAction]]:
        return [(event.kind, event.action) for event in self.events]


@pytest.fixture
def watch() -> Watch:
    return Watch()


# ---- sweeps --------------------------------------------------------------------------------------


def test_a_sweep_is_slowed_and_then_blocked(watch: Watch) -> None:
    draw = Random(1)
    texts = [changed(draw.choice(SEED_TEXTS), draw) for _ in range(3000)]
    watch.asks(texts)
    assert watch.seen[:2] == [
        (AbuseKind.SWEEP, AbuseAction.SLOWED),
        (AbuseKind.SWEEP, AbuseAction.BLOCKED),
    ]


def test_a_sweep_hidden_in_as_much_other_traffic_is_found(watch: Watch) -> None:
    draw = Random(1)
    sweep = [changed(draw.choice(SEED_TEXTS), draw) for _ in range(3000)]
    watch.asks([text for pair in zip(sweep, unlike(3000, draw), strict=True) for text in pair])
    assert (AbuseKind.SWEEP, AbuseAction.BLOCKED) in watch.seen


def test_a_routine_is_no_sweep(watch: Watch) -> None:
    """The same few texts, and the same text with another order number, all day long."""
    for number in range(3000):
        watch.asks([SEED_TEXTS[number % 4], f"Where is my order A{number}-{number * 7}, please?"])
    assert watch.events == []


def test_different_texts_are_no_sweep(watch: Watch) -> None:
    watch.asks(unlike(5000, Random(1)))
    assert watch.events == []


def test_the_texts_of_one_key_say_nothing_of_another(watch: Watch) -> None:
    draw = Random(1)
    for at in range(3000):
        watch.asks([changed(draw.choice(SEED_TEXTS), draw)], key=f"k{at % 200}")
    assert watch.events == []


def test_of_a_large_request_a_few_texts_are_looked_at() -> None:
    """256 texts take the router no longer than 16."""
    looked_at: list[int] = []

    def sample(texts: Sequence[str], count: int) -> list[str]:
        looked_at.append(count)
        return list(texts[:count])

    Abuse(sample=sample).asked("a", unlike(256, Random(1)), 0.0)
    assert looked_at == [16]


def test_memory_is_bounded() -> None:
    sweep, draw = Sweep(), Random(1)
    for text in unlike(5000, draw):
        sweep.close(text)
    assert len(sweep._texts) <= 1024
    assert len(sweep._bands) <= 3 * 1024


@given(st.lists(st.text(max_size=600), max_size=20))
def test_any_text_can_be_looked_at(texts: list[str]) -> None:
    sweep = Sweep()
    assert not any(map(sweep.close, texts[:3]))
    for text in [*texts, "a a a a", "1 2 3 4", "\ud800 a b c d", "_ _ _ _"]:
        sweep.close(text)


# ---- floods and garbage --------------------------------------------------------------------------


def test_a_client_that_comes_back_when_told_is_no_flood(watch: Watch) -> None:
    for _ in range(1000):
        watch.now_s += 2.0
        watch.abuse.refused("a", watch.now_s)
    assert watch.events == []


def test_a_client_that_does_not_care_is_slowed_then_blocked(watch: Watch) -> None:
    watch.is_refused(70)
    assert watch.verdict() == AbuseVerdict(delay_s=0.5)
    watch.is_refused(700)
    assert watch.seen == [
        (AbuseKind.FLOOD, AbuseAction.SLOWED),
        (AbuseKind.FLOOD, AbuseAction.BLOCKED),
    ]
    assert 0 < watch.verdict().blocked_s <= 300


def test_garbage_is_what_most_of_it_is(watch: Watch) -> None:
    for _ in range(2000):
        watch.abuse.answered("mostly good", 4, 10, watch.now_s)
    assert watch.events == []
    for _ in range(100):
        watch.abuse.answered("mostly bad", 9, 10, watch.now_s)
    assert [event.key for event in watch.events] == ["mostly bad"] * 2
    for _ in range(700):
        watch.abuse.malformed("no requests at all", watch.now_s)
    assert watch.events[-1].kind is AbuseKind.GARBAGE
    assert watch.events[-1].action is AbuseAction.BLOCKED


# ---- how it ends ---------------------------------------------------------------------------------


def test_a_slowed_key_that_behaves_recovers(watch: Watch) -> None:
    watch.is_refused(70)
    (event,) = watch.events
    watch.now_s = event.until_s - 0.1
    assert watch.verdict().delay_s == 0.5
    watch.now_s = event.until_s + 10.0  # three more came after the event
    assert watch.verdict() == AbuseVerdict()


def test_a_block_ends_by_itself_and_the_key_starts_anew(watch: Watch) -> None:
    watch.is_refused(700)
    until_s = watch.events[-1].until_s
    watch.now_s = until_s - 1.0
    assert watch.verdict().blocked_s == pytest.approx(1.0)
    watch.now_s = until_s
    assert watch.verdict() == AbuseVerdict()
    watch.is_refused(30)
    assert watch.verdict() == AbuseVerdict()
    assert len(watch.events) == 2


def test_what_was_under_way_when_a_block_came_does_not_block_again(watch: Watch) -> None:
    watch.is_refused(700)
    events = len(watch.events)
    watch.is_refused(1000)
    assert len(watch.events) == events


def test_one_key_is_not_punished_for_another(watch: Watch) -> None:
    watch.is_refused(700, "a")
    assert watch.verdict("a").blocked_s > 0
    assert watch.verdict("b") == AbuseVerdict()


def test_a_slowed_key_is_told_of_once(watch: Watch) -> None:
    """At the edge it would be an event per request."""
    for _ in range(200):
        watch.is_refused(5)
        watch.now_s += 3.5
    assert len(watch.events) <= 1


def test_a_blocked_key_that_goes_on_asking_is_not_forgotten_for_others() -> None:
    watch = Watch()
    watch.is_refused(700, "bad")
    for at in range(2 * MAX_KEYS):
        assert watch.verdict("bad").blocked_s > 0
        watch.is_refused(1, f"k{at}")


def test_a_clock_that_goes_back_raises_nothing_and_forgets_nothing(watch: Watch) -> None:
    watch.is_refused(70)
    watch.now_s -= 3600
    assert watch.verdict().delay_s == 0.5


@given(
    st.floats(0, 0.9),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60),
)
def test_traffic_within_the_allowed_share_has_no_consequence(
    share: float, batches: list[tuple[int, int]]
) -> None:
    """Whatever its order within a request, evidence never grows past one request's own."""
    rule = AbuseRule(allowed_share=share, leak_per_s=1.0, slow_at=21, block_at=50)
    watch = Watch({**RULES, AbuseKind.GARBAGE: rule})
    for bad, good in batches:
        total = bad + good
        if bad <= share * total:
            watch.abuse.answered("a", bad, total, watch.now_s)
    assert watch.events == []


def test_every_kind_has_a_rule_and_slows_a_key_before_it_blocks_it() -> None:
    assert set(RULES) == set(AbuseKind)
    assert all(0 < rule.slow_at < rule.block_at for rule in RULES.values())

"""The values that travel along the answer path. Frozen, small, without behaviour.

What is made for every message is a NamedTuple, where it holds nothing that a repr must not show: a
frozen dataclass takes four times as long to make.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from struct import pack, unpack
from typing import NamedTuple


class Route(StrEnum):
    """Who answers. Roles, not models."""

    EDGE = "edge"
    CLOUD = "cloud"


class RouteReason(StrEnum):
    """Why. Every decision has exactly one."""

    TRUSTED = "trusted"  # the edge's trust score reached the policy's threshold
    EXPLORED = "explored"  # it did, and the cloud was asked all the same, to see what it says
    ESCALATED = "escalated"  # it did not, so the cloud answers
    CLASS_KEPT = "class_kept"  # the edge's class is one that is never escalated
    CLASS_ESCALATED = "class_escalated"  # it is one that always is
    OUT_OF_DOMAIN = "out_of_domain"  # too far from what the edge was trained on
    ESCALATION_WORDS = "escalation_words"  # the message has words such as "lawyer" or "fraud"
    TOO_LONG = "too_long"  # it has more words than the edge may answer
    UNCONFIDENT = "unconfident"  # the edge is less confident than the policy's floor
    PII_PINNED = "pii_pinned"  # personal data was found: the message stays at the edge
    DETECTOR_FAILED = "detector_failed"  # we cannot know whether there is any: it stays too
    EDGE_FAILED = "edge_failed"  # the edge had no usable answer, so the cloud was asked
    CLOUD_FAILED = "cloud_failed"  # the cloud had none, so the edge's answer goes out, degraded
    CIRCUIT_OPEN = "circuit_open"  # it failed so often that it was not asked: degraded too
    CLOUD_CAPPED = "cloud_capped"  # the budget of escalations was used up: degraded too


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as an answer may depend on it.

    `key` is the id of an API key, never the key. `user` decides which release answers, and is
    neither kept nor logged. `deadline_s` is how long the caller waits at most, from now.
    """

    key: str = "anonymous"
    user: str | None = field(default=None, repr=False)
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as every part after the guard sees it: normalised, personal data masked.

    `text` is not in the repr: a log line must not show what a customer wrote.
    """

    text: str = field(repr=False)
    pii: tuple[str, ...] = ()
    detector_failed: bool = False

    @property
    def pinned(self) -> RouteReason | None:
        """Why the message may not leave the edge, if so."""
        if self.detector_failed:
            return RouteReason.DETECTOR_FAILED
        return RouteReason.PII_PINNED if self.pii else None


class Prediction(NamedTuple):
    """One model's calibrated answer to one message.

    `shares` are the probabilities, packed: only explanations and golden messages look at them, and
    as floats they are most of what a prediction takes to cross that call. `margin` is the lead of
    the first over the second; `entropy` is divided by log(classes), so it is in [0, 1]. `energy` is
    the logsumexp of the tempered logits, high for the familiar. `distance` is from what the model
    was trained on: 1.0 is as far as its furthest 1% of calibration messages, and 0.0 is also what a
    model says that does not measure it. `ngram_margin` is by how much a classifier of n-grams
    prefers `label` to any other; 0.0 likewise.
    """

    label: str
    confidence: float
    margin: float
    entropy: float
    shares: bytes
    energy: float = 0.0
    distance: float = 0.0
    ngram_margin: float = 0.0

    @property
    def probabilities(self) -> tuple[float, ...]:
        """One per label, in the bundle's order, summing to 1."""
        return unpack(f"<{len(self.shares) // 8}d", self.shares)


def packed(*probabilities: float) -> bytes:
    """The `shares` of a Prediction."""
    return pack(f"<{len(probabilities)}d", *probabilities)


class Decision(NamedTuple):
    """Where a message goes, and what the rule saw.

    `trust` is the score less what the predicted class needs beyond the threshold; `signals` are the
    policy's inputs by name.
    """

    route: Route
    reason: RouteReason
    trust: float
    threshold: float
    signals: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Cached:
    """An answer that is given again.

    `route` and `reason` are how it was come by; `signals` are without `random`.
    """

    label: str
    edge_label: str
    confidence: float
    route: Route
    reason: RouteReason
    trust: float
    signals: Mapping[str, float]


# (texts, seconds left) -> what a tier says to each message: None where its model had no finite
# answer.
TierCall = Callable[[list[str], float], Awaitable[Sequence[Prediction | None]]]
# What a message's sender gets: the answer, or why there is none.
Outcome = Prediction | Exception


class RequestEvent(NamedTuple):
    """How one request ended, answered or not. Nothing in it is what a client has written.

    `route` is the path as our schema has it. `status` is 499 where the client was gone. `code` is
    the error's, empty for an answer; `release` is that which was asked, empty for none. `tags` are
    words of ours, such as HURRIED, and no label of a figure.
    """

    route: str
    status: int
    code: str
    release: str
    tags: tuple[str, ...] = ()

    @property
    def asks(self) -> bool:
        """It wanted an answer to messages."""
        return self.route == "/v1/classify" or self.route.endswith("/infer")

    @property
    def works(self) -> bool:
        """It wanted something done, and not only to look."""
        return self.asks or self.route.startswith(("/v1/feedback", "/v1/jobs"))

    @property
    def refused(self) -> bool:
        """By us, for a reason that is not the client's."""
        return self.status >= 500 or self.code == "overloaded"


HURRIED = "hurried"  # the tag of a request with a deadline of its own


class AbuseKind(StrEnum):
    """What a key does."""

    FLOOD = "flood"  # goes on asking when its rate refuses
    SWEEP = "sweep"  # asks small changes of the same texts, one after the other
    GARBAGE = "garbage"  # asks what is out of the domain, or sends what is no request


class AbuseAction(StrEnum):
    """What is done about it."""

    SLOWED = "slowed"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class AbuseEvent:
    """For the monitor and the log: `key` is the id of an API key."""

    key: str
    kind: AbuseKind
    action: AbuseAction
    until_s: float

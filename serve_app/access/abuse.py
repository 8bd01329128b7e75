"""Abuse rules: what a key does -> slowed, then blocked for a while. Pure; the time is an argument.

    refused by its rate        flood     ┐
    texts close to each other  sweep     ├─> evidence ─> slowed ─> blocked ─> forgiven
    junk, or no request at all garbage   ┘

Evidence is a one-sided CUSUM (Page, Biometrika 1954): each event adds one if it is bad, takes
`allowed_share` off, and time takes `leak_per_s` off. Traffic whose bad share stays below the
allowed one keeps it near zero for ever; above, it grows with every message. So there is no window
to fill, no rate to know, and a key that behaves again recovers by itself. After a block it starts
anew.

A sweep is what stealing a model by asking looks like: many different texts, each a small change of
another. The same text again and again is a routine and no sweep. Per message a sketch of three
hashes is looked up, so the work and the memory do not grow with what was seen (Broder, 1997:
resemblance by minima of hashed shingles). No text is kept, only hashes under a salt of the process.

Decided once: only API keys are watched, since without keys nobody can be told from anybody. Each
router judges what it sees itself. None of it is an option: a key that is wronged is not watched
(`"watched": false` in keys.json).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from random import SystemRandom
from typing import Final

from serve_app.contracts import AbuseAction, AbuseEvent, AbuseKind

_WORD: Final = re.compile(r"\w+")
_MAX_CHARS: Final = 512  # of a text, for the sketch
_MIN_WORDS: Final = 4  # fewer are close to each other by nature
_BANDS: Final = 3
_BAND_SHINGLES: Final = 4
_CLOSE_AFTER: Final = 3  # different texts with one of the hashes: then it is one too many
_SKETCHED: Final = 1024  # texts remembered per key
_SAMPLE: Final = 16  # texts of a request that are looked at
_DRAW: Final = SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class AbuseRule:
    """When evidence of one kind has consequences."""

    allowed_share: float  # of bad events, that is nobody's concern
    leak_per_s: float  # evidence forgotten per second
    slow_at: float  # evidence from which on requests wait
    block_at: float  # evidence at which the key is blocked


# The traffic that these figures were tried on is in docs/security.md.
RULES: Final[Mapping[AbuseKind, AbuseRule]] = {
    AbuseKind.FLOOD: AbuseRule(allowed_share=0.0, leak_per_s=1.0, slow_at=60, block_at=600),
    AbuseKind.SWEEP: AbuseRule(allowed_share=0.25, leak_per_s=0.05, slow_at=100, block_at=300),
    AbuseKind.GARBAGE: AbuseRule(allowed_share=0.5, leak_per_s=0.05, slow_at=100, block_at=300),
}
SLOW_S: Final = 0.5  # added to a slowed key's requests
BLOCK_S: Final = 300.0
MAX_KEYS: Final = 256  # watched at a time; 0.5 MB each at most


@dataclass(frozen=True, slots=True)
class AbuseVerdict:
    """What is to be done with a request: made to wait, or refused for so long."""

    delay_s: float = 0.0
    blocked_s: float = 0.0


_FINE: Final = AbuseVerdict()


@dataclass(slots=True)
class _Evidence:
    """CUSUM of one kind against one key."""

    score: float = 0.0
    at_s: float = 0.0
    slowed: bool = False

    def leak(self, rule: AbuseRule, now_s: float) -> None:
        self.score = max(0.0, self.score - rule.leak_per_s * max(0.0, now_s - self.at_s))
        self.at_s = now_s
        # Half-way down, not at the mark: a key at the edge would be slowed and freed all the time.
        self.slowed = self.slowed and self.score >= rule.slow_at / 2

    def add(self, rule: AbuseRule, bad: int, total: int, now_s: float) -> None:
        self.leak(rule, now_s)
        self.score = max(0.0, self.score + bad - rule.allowed_share * total)


class Sweep:
    """Finds texts that are close to several others seen before; remembers a bounded number."""

    def __init__(self) -> None:
        self._texts: dict[int, None] = {}
        self._bands: dict[int, int] = {}

    def close(self, text: str) -> bool:
        """Whether the text is new, and a small change of at least `_CLOSE_AFTER` others.

        Numbers are one and the same word, so that a routine with an order number is a routine.
        """
        found = _WORD.findall(text[:_MAX_CHARS].lower())
        words = [word if word.isalpha() else "0" for word in found]
        if len(words) < _MIN_WORDS or not self._is_new(hash(tuple(words))):
            return False
        return max([self._count(band) for band in _sketch(words)], default=0) > _CLOSE_AFTER

    def _is_new(self, text: int) -> bool:
        known = text in self._texts
        self._texts.pop(text, None)
        self._texts[text] = None
        if len(self._texts) > _SKETCHED:
            del self._texts[next(iter(self._texts))]
        return not known

    def _count(self, band: int) -> int:
        count = self._bands.pop(band, 0) + 1
        self._bands[band] = count
        if len(self._bands) > _SKETCHED * _BANDS:
            del self._bands[next(iter(self._bands))]
        return count


def _sketch(words: Sequence[str]) -> list[int]:
    """One hash per band, of its smallest hashed words and pairs of words.

    A change of one word moves few of the minima, so that at least one band mostly stays.
    """
    shingles = {*map(hash, words), *map(hash, zip(words, islice(words, 1, None), strict=False))}
    bands: list[list[int]] = [[] for _ in range(_BANDS)]
    for shingle in sorted(shingles):
        bands[shingle % _BANDS].append(shingle)
    return [hash((at, *band[:_BAND_SHINGLES])) for at, band in enumerate(bands) if len(band) > 1]


@dataclass(slots=True)
class _Watched:
    """One key."""

    blocked_until_s: float = -inf
    evidence: dict[AbuseKind, _Evidence] = field(
        default_factory=lambda: {kind: _Evidence() for kind in AbuseKind}
    )
    sweep: Sweep = field(default_factory=Sweep)


class Abuse:
    """Watches keys, in one process.

    Args:
        on_event: told of every key that is slowed or blocked; must not wait nor raise.
        rules: of every kind.
        sample: picks k of the texts of a large request.
    """

    def __init__(
        self,
        on_event: Callable[[AbuseEvent], None] = lambda event: None,
        *,
        rules: Mapping[AbuseKind, AbuseRule] = RULES,
        sample: Callable[[Sequence[str], int], list[str]] = _DRAW.sample,
    ) -> None:
        self._on_event = on_event
        self._rules = rules
        self._sample = sample
        self._keys: dict[str, _Watched] = {}

    def verdict(self, key: str, now_s: float) -> AbuseVerdict:
        """What is to be done with a request that comes now."""
        watched = self._keys.get(key)
        if watched is None:
            return _FINE
        if now_s < watched.blocked_until_s:
            self._watch(key)  # while it goes on asking, it is not forgotten
            return AbuseVerdict(blocked_s=watched.blocked_until_s - now_s)
        for kind, evidence in watched.evidence.items():
            if evidence.slowed:
                evidence.leak(self._rules[kind], now_s)
                if evidence.slowed:
                    return AbuseVerdict(delay_s=SLOW_S)
        return _FINE

    def refused(self, key: str, now_s: float) -> None:
        """Its rate refused a request."""
        self._add(key, AbuseKind.FLOOD, 1, 1, now_s)

    def malformed(self, key: str, now_s: float) -> None:
        """It sent what is no request."""
        self._add(key, AbuseKind.GARBAGE, 1, 1, now_s)

    def asked(self, key: str, texts: Sequence[str], now_s: float) -> None:
        """It asks for answers to texts."""
        close = self._watch(key).sweep.close
        looked_at = texts if len(texts) <= _SAMPLE else self._sample(texts, _SAMPLE)
        self._add(key, AbuseKind.SWEEP, sum(map(close, looked_at)), len(looked_at), now_s)

    def answered(self, key: str, garbage: int, total: int, now_s: float) -> None:
        """So many of its texts were garbage, by the models' own word."""
        self._add(key, AbuseKind.GARBAGE, garbage, total, now_s)

    def _watch(self, key: str) -> _Watched:
        watched = self._keys.pop(key, None) or _Watched()
        self._keys[key] = watched
        if len(self._keys) > MAX_KEYS:
            del self._keys[next(iter(self._keys))]  # the one that was quiet for longest
        return watched

    def _add(self, key: str, kind: AbuseKind, bad: int, total: int, now_s: float) -> None:
        watched, rule = self._watch(key), self._rules[kind]
        evidence = watched.evidence[kind]
        evidence.add(rule, bad, total, now_s)
        if now_s < watched.blocked_until_s:
            return  # requests that were under way when the block came
        if evidence.score >= rule.block_at:
            self._block(key, kind, watched, now_s)
        elif evidence.score >= rule.slow_at and not evidence.slowed:
            evidence.slowed = True
            until_s = now_s + (evidence.score - rule.slow_at / 2) / rule.leak_per_s
            self._on_event(AbuseEvent(key, kind, AbuseAction.SLOWED, until_s))

    def _block(self, key: str, kind: AbuseKind, watched: _Watched, now_s: float) -> None:
        """Until then the key is refused; after, it starts anew."""
        until_s = now_s + BLOCK_S
        self._keys[key] = _Watched(blocked_until_s=until_s)
        self._on_event(AbuseEvent(key, kind, AbuseAction.BLOCKED, until_s))

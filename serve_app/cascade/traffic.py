"""Which release answers: weights -> one release per message, the same one for the same user.

    Routed (the router's `user_config`) ─> Traffic.assign(user, draw) ─> a release's id
    Routed + Report ─> adapted() ─> Routed, its weights moved after the feedback

Pure: the key, the draw and the random source are arguments.

A user is assigned by weighted rendezvous hashing (Thaler and Ravishankar, 1998; the weights as in
Schindelhauer and Schomaker, 2005): every release draws an exponential time from a keyed hash of
itself and the user, divides it by its weight, and the first one answers. So the shares are those
of the weights, no state is kept, every replica agrees, also after a restart, and a release whose
weight rises against the others takes users in and gives none away.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from cluster.errors import ConfigError
from serve_app.monitor.stats import Report

MAX_ROUTED: Final = 4
MAX_SHADOWS: Final = 2  # each of them runs every message once more
ADAPT_EVERY_S: Final = 600.0

_SUM_TOLERANCE: Final = 1e-9
_PERSON: Final = b"firstline.users"  # apart from the audit log's hashes of texts by the same key
_MAX_KEY_BYTES: Final = 64  # blake2b takes no longer key
_FLOOR_SHARE: Final = 0.05
_MAX_STEP: Final = 0.1
_MIN_STEP: Final = 0.01
_MIN_LABELS: Final = 30
_DRAWS: Final = 10_000
_DIGITS: Final = 4


class Routed(BaseModel):
    """The router's `user_config`: the share of traffic per release, and who sees it in silence.

    `shadow` releases see the messages and never answer. `adaptive`: the keeper moves the weights
    after the feedback, every `ADAPT_EVERY_S`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: dict[str, float]
    shadow: tuple[str, ...] = ()
    adaptive: bool = False

    @field_validator("releases")
    @classmethod
    def _shares(cls, releases: dict[str, float]) -> dict[str, float]:
        if not 1 <= len(releases) <= MAX_ROUTED:
            raise ValueError(
                f"releases names {len(releases)} releases; 1 to {MAX_ROUTED} were expected"
            )
        for release, weight in releases.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"releases gives {release!r} the weight {weight}; more than 0 was expected: "
                    "leave out a release that is to answer nothing"
                )
        if abs(math.fsum(releases.values()) - 1) > _SUM_TOLERANCE:
            raise ValueError(
                f"the weights of {releases} sum to {math.fsum(releases.values()):.6g}; 1 was "
                "expected"
            )
        return releases

    @model_validator(mode="after")
    def _apart(self) -> "Routed":
        if len(self.shadow) > MAX_SHADOWS or len(set(self.shadow)) < len(self.shadow):
            raise ValueError(
                f"shadow is {list(self.shadow)}; at most {MAX_SHADOWS} different releases were "
                "expected"
            )
        if both := [release for release in self.shadow if release in self.releases]:
            raise ValueError(f"{both} are in releases and in shadow; either was expected")
        if self.adaptive and len(self.releases) < 2:
            raise ValueError(
                f"adaptive is true and releases is {self.releases}; two releases or more were "
                "expected, for weights to move between"
            )
        return self

    @property
    def champion(self) -> str:
        """The release of the largest weight, the first of several."""
        return max(self.releases, key=self.releases.__getitem__)

    @property
    def named(self) -> tuple[str, ...]:
        """Every release that has to be up."""
        return (*self.releases, *self.shadow)

    def user_config(self) -> dict[str, Any]:
        """As it stands in a Serve config file: nothing said that is a default."""
        return self.model_dump(mode="json", exclude_defaults=True)


def only(release: str, before: Routed | None = None) -> Routed:
    """All traffic to one release; the shadows of `before` stay."""
    return Routed(releases={release: 1.0}, shadow=_shadows(before, release))


def split(
    champion: str, canary: str, share: float, before: Routed | None = None, adaptive: bool = False
) -> Routed:
    """`share` of the traffic to the canary, the rest to the champion.

    Raises:
        ConfigError: not a share, or both are one release.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"The canary's share is {share:g}; more than 0 and less than 1 was expected, such as "
            "0.1. `firstline releases promote` gives it all."
        )
    if champion == canary:
        raise ConfigError(
            f"{canary} is the champion, which answers already. Choose another release as canary."
        )
    return Routed(
        releases={champion: 1 - share, canary: share},
        shadow=_shadows(before, champion, canary),
        adaptive=adaptive,
    )


def _shadows(before: Routed | None, *routed: str) -> tuple[str, ...]:
    return tuple(release for release in before.shadow if release not in routed) if before else ()


class Traffic:
    """Assigns messages to releases by their weights.

    Args:
        key: the service's, so that who knows the releases cannot choose one by a user's name.
    """

    __slots__ = ("_seeds", "_steps", "routed")

    def __init__(self, routed: Routed, key: bytes) -> None:
        self.routed = routed
        key = key if len(key) <= _MAX_KEY_BYTES else blake2b(key).digest()
        self._seeds = {
            release: blake2b(release.encode() + b"\0", digest_size=8, key=key, person=_PERSON)
            for release in routed.releases
        }
        self._steps = dict(zip(routed.releases, accumulate(routed.releases.values()), strict=True))

    def assign(self, user: str | None, draw: float) -> str:
        """The release that answers: the user's own, or without one as `draw` in [0, 1) falls."""
        if len(self._steps) == 1:
            return next(iter(self._steps))
        if user is None:
            found = (release for release, end in self._steps.items() if draw < end)
            return next(found, self.routed.champion)  # the steps may sum to a little under 1
        name = user.encode("utf-8", "surrogatepass")
        return min(self._steps, key=lambda release: self._time(release, name))

    def _time(self, release: str, user: bytes) -> float:
        seed = self._seeds[release].copy()
        seed.update(user)
        # The top 53 bits, so that the number is exact, and inside (0, 1).
        uniform = ((int.from_bytes(seed.digest(), "big") >> 11) + 0.5) / (1 << 53)
        return -math.log(uniform) / self.routed.releases[release]

    def __repr__(self) -> str:
        return f"Traffic({self.routed!r}, key=**********)"


# ---- weights that follow the feedback -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """What feedback has said of a release's answers."""

    correct: int
    wrong: int


def thompson_weights(
    seen: Mapping[str, Trial],
    weights: Mapping[str, float],
    *,
    rng: np.random.Generator,
    draws: int = _DRAWS,
    floor_share: float = _FLOOR_SHARE,
    max_step: float = _MAX_STEP,
) -> dict[str, float]:
    """One step towards the chance of each release of being the best (Thompson, 1933).

    Beta-Bernoulli with a uniform prior. Every release is to keep `floor_share`, so that it goes on
    being measured, and no weight moves further than `max_step`. Releases that are equally good end
    up with shares that mean nothing.
    """
    best = _chances_of_being_best([seen[release] for release in weights], draws, rng)
    now = np.array(list(weights.values()))
    floor = min(floor_share, 1 / len(now))
    wanted = floor + (1 - len(now) * floor) * best
    furthest = float(np.max(np.abs(wanted - now)))
    moved = now + min(1.0, max_step / furthest) * (wanted - now) if furthest else now
    return _rounded(dict(zip(weights, moved.tolist(), strict=True)))


def _chances_of_being_best(
    trials: list[Trial], draws: int, rng: np.random.Generator
) -> np.typing.NDArray[np.float64]:
    accuracies = [rng.beta(1 + one.correct, 1 + one.wrong, draws) for one in trials]
    return np.bincount(np.argmax(accuracies, axis=0), minlength=len(trials)) / draws


def _rounded(weights: dict[str, float]) -> dict[str, float]:
    """Weights that a person can read; the largest takes the rest."""
    made = {release: round(weight, _DIGITS) for release, weight in weights.items()}
    largest = max(made, key=made.__getitem__)
    rest = math.fsum(weight for release, weight in made.items() if release != largest)
    return {**made, largest: round(1 - rest, _DIGITS)}


def adapted(routed: Routed, report: Report, rng: np.random.Generator) -> Routed | None:
    """The weights after what `report` says; None where they are to stay.

    They stay unless `adaptive`, until every routed release has 30 labels from the time in which
    all of them answered, and where no weight would move by a hundredth: a move takes sticky users
    with it. Accuracy is of the answers as they went out, degraded ones too.
    """
    seen = _trials(report)
    if not routed.adaptive or seen.keys() < routed.releases.keys():
        return None
    if any(seen[name].correct + seen[name].wrong < _MIN_LABELS for name in routed.releases):
        return None
    weights = thompson_weights(seen, routed.releases, rng=rng)
    moves = (abs(weights[name] - weight) for name, weight in routed.releases.items())
    if max(moves) < _MIN_STEP:
        return None
    return Routed(releases=weights, shadow=routed.shadow, adaptive=True)


def _trials(report: Report) -> dict[str, Trial]:
    arms = [arm for pair in report.comparison for arm in (pair.champion, pair.challenger)]
    return {
        arm.release: Trial(arm.accuracy.correct, arm.accuracy.labelled - arm.accuracy.correct)
        for arm in arms
    }

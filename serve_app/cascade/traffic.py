"""Which release answers: weights -> one release per message, the same one for the same user.

    Routed (the router's `user_config`) ─> Traffic.assign(user, draw) ─> a release's id

Pure: the key and the draw are arguments.

A user is assigned by weighted rendezvous hashing (Thaler and Ravishankar, 1998; the weights as in
Schindelhauer and Schomaker, 2005): every release draws an exponential time from a keyed hash of
itself and the user, divides it by its weight, and the first one answers. So the shares are those
of the weights, no state is kept, every replica agrees, also after a restart, and a release whose
weight rises against the others takes users in and gives none away.
"""

import math
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.errors import ConfigError
from serve_app.request_limits import MAX_SHADOWS

MAX_ROUTED: Final = 4

_SUM_TOLERANCE: Final = 1e-9
_PERSON: Final = b"firstline.users"  # apart from the audit log's hashes of texts by the same key
_MAX_KEY_BYTES: Final = 64  # blake2b takes no longer key


def _largest(validated: dict[str, Any]) -> str:
    releases: dict[str, float] = validated["releases"]
    return max(releases, key=releases.__getitem__)


class Routed(BaseModel):
    """The router's `user_config`: the share of traffic per release, and who sees it in silence.

    `champion` is the release that the others are measured against, whatever its weight; jobs and
    `/v1/release` are of it. A config that names none has the largest weight, the first of several.
    `shadow` releases see the messages and never answer. `adaptive`: the keeper moves the weights
    after the feedback, every `ADAPT_EVERY_S`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: dict[str, float]
    champion: str = Field(default_factory=_largest)
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
        if self.champion not in self.releases:
            raise ValueError(
                f"champion is {self.champion!r}; one of the releases {list(self.releases)} was "
                "expected"
            )
        if self.adaptive and len(self.releases) < 2:
            raise ValueError(
                f"adaptive is true and releases is {self.releases}; two releases or more were "
                "expected, for weights to move between"
            )
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """Every release that has to be up."""
        return (*self.releases, *self.shadow)

    def user_config(self) -> dict[str, Any]:
        """As it stands in a Serve config file: nothing said that goes without saying."""
        alone = {"champion"} if len(self.releases) == 1 else None
        return self.model_dump(mode="json", exclude_defaults=True, exclude=alone)


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
        champion=champion,
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

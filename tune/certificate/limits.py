"""What a user states: limits -> a p-value of each, of each policy; all of them are tested as one.

In: what policies do to a table, as counts. Out: p-values, and whether a certificate could be had.
A policy that must keep several limits is tested by the largest of its p-values: if it breaks any of
them, that one's test alone lets it pass in at most a share 1 - confidence of all draws
(intersection-union test: Berger, Technometrics 24, 1982).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from cluster.errors import ConfigError
from serve_app.decide.cost import Prices
from tune.certificate import bounds
from tune.certificate.bounds import level
from tune.certificate.counts import PolicyCounts
from tune.replay import Bools, Floats, Ints

Kind: TypeAlias = Literal["risk", "agreement", "accuracy_loss", "cloud_share", "cost_usd"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
# One of these has to be stated: without any, the cheapest policy is to escalate nothing.
QUALITY: Final[tuple[Kind, ...]] = ("risk", "agreement", "accuracy_loss")
OPTION: Final[Mapping[Kind, str]] = {
    "risk": "--max-risk",
    "agreement": "--min-agreement",
    "accuracy_loss": "--max-accuracy-loss",
    "cloud_share": "--max-cloud-share",
    "cost_usd": "--max-cost-usd",
}


class Limits(BaseModel):
    """What a release may do at most, or must do at least. At least one of quality is stated."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    risk: float | None = Field(None, description="of all messages: answered otherwise at the edge")
    agreement: float | None = Field(None, description="with the cloud, of those kept at the edge")
    accuracy_loss: float | None = Field(None, description="against cloud-only, on human labels")
    cloud_share: float | None = Field(None, description="of all messages")
    cost_usd: float | None = Field(None, description="of a message, on average")

    @property
    def stated(self) -> dict[Kind, float]:
        found = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: limit for kind, limit in found.items() if limit is not None}

    def check(self, prices: Prices, confidence: float) -> None:
        """Raises ConfigError for limits that nothing can meet, or none of quality."""
        shares = {k: v for k, v in self.stated.items() if k != "cost_usd"} | {
            "confidence": confidence
        }
        for name, value in shares.items():
            if not 0.0 < value < 1.0:
                raise ConfigError(
                    f"The {name.replace('_', ' ')} is {value}; it has to lie between 0 and 1, such "
                    f"as {0.95 if name in ('agreement', 'confidence') else 0.01}."
                )
        if not any(kind in self.stated for kind in QUALITY):
            raise ConfigError(
                "No limit of quality is stated, and the cheapest policy escalates nothing. Give "
                f"one of {', '.join(OPTION[kind] for kind in QUALITY)}."
            )
        if self.cost_usd is not None and self.cost_usd <= prices.edge_usd:
            raise ConfigError(
                f"--max-cost-usd is {self.cost_usd:g}, and --edge-usd {prices.edge_usd:g}: every "
                "message pays the edge, so no policy costs less. Raise the one or lower the other."
            )


def p_values(
    limits: Limits, counts: PolicyCounts, prices: Prices, confidence: float, *, exact: bool = True
) -> Floats:
    """(m,) of H0: the policy breaks at least one of the limits.

    Args:
        exact: False: near enough to choose by, and fast; nothing may be certified by it.
    """
    found = [of_kind(kind, limit, counts, prices, confidence, exact=exact)
             for kind, limit in limits.stated.items()]  # fmt: skip
    return np.asarray(np.max(found, axis=0), np.float64)


def of_kind(
    kind: Kind, limit: float, counts: PolicyCounts, prices: Prices, confidence: float, *,
    exact: bool = True,
) -> Floats:  # fmt: skip
    """(m,) p-values of one limit; the proofs are in bounds.py."""
    n = counts.rows
    found: Any
    match kind:
        case "risk":
            found = stats.binom.cdf(counts.failures, n, limit)
        case "agreement":
            found = stats.binom.cdf(counts.failures, counts.kept, level(limit))
        case "accuracy_loss" if not exact:
            found = _by_score_test(counts.losses, counts.gains, counts.labelled, limit)
        case "accuracy_loss":
            pairs = zip(counts.losses.tolist(), counts.gains.tolist(), strict=True)
            found = [_loss(a, b, counts.labelled, limit, confidence) for a, b in pairs]
        case "cloud_share":
            found = stats.binom.cdf(counts.escalated, n, limit)
        case "cost_usd":
            share = (limit - prices.edge_usd) / prices.cloud_usd
            # Where no share costs so much, nothing has to be proven.
            found = stats.binom.cdf(counts.escalated, n, share) if share <= 1 else 0.0 * counts.kept
    return np.asarray(found, np.float64)


def observed(kind: Kind, counts: PolicyCounts, prices: Prices) -> Floats:
    """(m,) of what a limit is about, as seen. An agreement among no rows is 0, and so is a loss."""
    share = counts.escalated / counts.rows
    match kind:
        case "risk":
            found = counts.failures / counts.rows
        case "agreement":
            found = (counts.kept - counts.failures) / np.maximum(1, counts.kept)
        case "accuracy_loss":
            found = (counts.losses - counts.gains) / max(1, counts.labelled)
        case "cloud_share":
            found = share
        case "cost_usd":
            found = prices.edge_usd + share * prices.cloud_usd
    return np.asarray(found, np.float64)


def passes(
    limits: Limits, counts: PolicyCounts, prices: Prices, confidence: float, *, exact: bool = True
) -> Bools:
    """(m,) whether a policy with these counts would pass, all limits together."""
    found = p_values(limits, counts, prices, confidence, exact=exact)
    return np.asarray(found <= level(confidence))


@lru_cache(maxsize=65536)
def _loss(losses: int, gains: int, rows: int, limit: float, confidence: float) -> float:
    # Sequences have many policies and few different counts, and each takes 2 to 800 ms.
    return bounds.loss_p_value(losses, gains, rows, limit, confidence)


def _by_score_test(losses: Ints, gains: Ints, rows: int, loss: float) -> Floats:
    """The asymptotic p-values of the accuracy lost (Tango, Statistics in Medicine 17, 1998).

    `g` is the most likely chance of a gain if the accuracy lost is just `loss`.
    """
    n = max(1, rows)
    half = (losses + gains - loss * (2 * n - losses + gains)) / (4 * n)
    g = half + np.sqrt(half**2 + gains * loss * (1 - loss) / (2 * n))
    variance = n * (2 * g + loss * (1 - loss))
    return np.asarray(stats.norm.cdf((losses - gains - n * loss) / np.sqrt(variance)), np.float64)

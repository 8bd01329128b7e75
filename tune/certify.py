"""(a sequence of policies, untouched rows) -> the certificate of the last one that passes. Pure.

Risk is the share of all messages that the edge answers differently from the cloud, so it bounds
the accuracy given up against cloud-only, whatever the true labels are.

The promise, for a risk target t and a confidence 1 - d: in at most a share d of all draws of the
certify rows does the procedure name a policy whose risk on new messages is t or more. Why it
holds, if messages are exchangeable with the certified rows:

  - The failures of one fixed policy in n rows are Binomial(n, risk). The chance of so few failures
    under risk = t is a valid p-value for H0: risk >= t. It is at most d exactly when the one-sided
    upper bound of Clopper and Pearson (Biometrika 26, 1934) is at most t.
  - The policies are tested in an order fixed before the rows are seen, each at level d, and
    testing stops at the first that is not rejected. A false rejection requires that the first
    true hypothesis of the order be rejected, which happens with probability at most d: so the
    number of policies costs nothing (fixed-sequence testing; as a way to choose thresholds, Learn
    then Test: Angelopoulos, Bates, Candès, Jordan, Lei, arXiv:2110.01052, 2021).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from cluster.errors import CertifyError
from cluster.files import sha256_json
from serve_app.policy import BundlePins, RouterPolicy
from tune.objective import kept
from tune.replay import Table

REFERENCE: Final = "the cloud's answer"
ASSUMES: Final = "messages exchangeable with the certified rows"


class Certificate(BaseModel):
    """What is guaranteed, about which parts, on which rows.

    With probability `confidence` over the rows, fewer than `risk` of all messages are answered at
    the edge with another label than the reference. The other figures are what was seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = Field(1, ge=1, le=1, description="of this format")
    risk: float = Field(gt=0.0, lt=1.0, description="guaranteed")
    confidence: float = Field(gt=0.0, lt=1.0)
    rows: int = Field(gt=0)
    failures: int = Field(ge=0)
    observed_risk: float
    upper_bound: float = Field(description="Clopper-Pearson, one-sided, at `confidence`")
    edge_share: float = Field(description="on the certified rows")
    reference: str = REFERENCE
    assumes: str = ASSUMES
    split: str
    fingerprint: str = Field(description="of the dataset")
    bundles: BundlePins
    policy_sha256: str
    position: int = Field(ge=0, description="of the policy in the sequence, from 0")
    tested: int = Field(ge=1, description="policies of the sequence that were tested")
    sequence_length: int = Field(ge=1)
    created_at: str


def upper_bound(failures: int, rows: int, confidence: float) -> float:
    """Clopper-Pearson: the largest risk that `failures` in `rows` do not rule out."""
    if failures >= rows:
        return 1.0
    return float(stats.beta.ppf(confidence, failures + 1, rows - failures))


def p_value(failures: int, rows: int, risk: float) -> float:
    """Of H0: risk >= `risk`. The chance of at most so many failures if H0 only just holds."""
    return float(stats.binom.cdf(failures, rows, risk))


def min_rows(risk: float, confidence: float) -> int:
    """The fewest rows that can certify a risk at all, with no failure among them."""
    rows = max(1, math.ceil(math.log(1.0 - confidence) / math.log1p(-risk)))
    # The logarithms may be off by one unit in the last place; the test itself decides.
    while p_value(0, rows, risk) > _level(confidence):
        rows += 1
    while rows > 1 and p_value(0, rows - 1, risk) <= _level(confidence):
        rows -= 1
    return rows


def best_risk(rows: int, confidence: float) -> float:
    """The smallest risk that so many rows can certify, with no failure among them."""
    return upper_bound(0, rows, confidence) if rows else 1.0


def allowed_failures(rows: int, risk: float, confidence: float) -> int:
    """The most failures with which a policy passes; -1 if not even none will do."""
    guess = int(stats.binom.ppf(_level(confidence), rows, risk))
    return guess if p_value(guess, rows, risk) <= _level(confidence) else guess - 1


def fixed_sequence(failures: Iterable[int], rows: int, risk: float, confidence: float) -> int:
    """How many policies pass before the first that does not. `failures` in the fixed order."""
    passed = 0
    allowed = allowed_failures(rows, risk, confidence)
    for count in failures:
        if count > allowed:
            break
        passed += 1
    return passed


def policy_sha256(policy: RouterPolicy) -> str:
    """The hash by which a certificate names its policy."""
    return sha256_json(policy.model_dump(mode="json"))


def certify(
    policies: Sequence[RouterPolicy],
    table: Table,
    risk: float,
    confidence: float,
    created_at: str,
) -> Certificate:
    """Tests the policies in order and certifies the last one that passes.

    Args:
        policies: from the most conservative to the least, fixed without a look at `table`.
        table: rows that nothing was fitted or chosen on.
        risk: the target, in (0, 1).
        confidence: in (0, 1), of the promise over all draws of the rows.
        created_at: the time, ISO 8601.

    Raises:
        CertifyError: impossible targets, too few rows, a policy of other bundles, or already the
            most conservative policy fails too often.
    """
    _check(policies, table, risk, confidence)
    failures = _Failures(table)
    passed = fixed_sequence(map(failures.of, policies), table.rows, risk, confidence)
    if not passed:
        raise CertifyError(_refusal(failures.of(policies[0]), table, risk, confidence))
    chosen = policies[passed - 1]
    count = failures.of(chosen)
    return Certificate(
        risk=risk,
        confidence=confidence,
        rows=table.rows,
        failures=count,
        observed_risk=count / table.rows,
        upper_bound=upper_bound(count, table.rows, confidence),
        edge_share=float(kept(chosen, table).mean()),
        split=table.split,
        fingerprint=table.fingerprint,
        bundles=table.pins,
        policy_sha256=policy_sha256(chosen),
        position=passed - 1,
        tested=min(passed + 1, len(policies)),
        sequence_length=len(policies),
        created_at=created_at,
    )


class _Failures:
    """Counts the rows that a policy keeps at the edge though the cloud would say another label."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def of(self, policy: RouterPolicy) -> int:
        return int((kept(policy, self._table) & self._table.differs).sum())


def require_rows(rows: int, split: str, risk: float, confidence: float) -> None:
    """Raises CertifyError if targets are impossible, or the rows too few for them."""
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0.0 < value < 1.0:
            raise CertifyError(
                f"The {name} is {value}; it has to lie between 0 and 1, such as "
                f"{0.01 if name == 'risk' else 0.95}."
            )
    needed = min_rows(risk, confidence)
    if rows < needed:
        raise CertifyError(
            f"The split {split!r} has {rows} rows; certifying a risk of {risk:.2%} at "
            f"{confidence:.0%} confidence needs at least {needed}, and more if some of them fail. "
            f"The rows at hand could certify a risk of {best_risk(rows, confidence):.2%} at best: "
            "ask for that, or add messages."
        )


def _check(policies: Sequence[RouterPolicy], table: Table, risk: float, confidence: float) -> None:
    if not policies:
        raise CertifyError("There is no policy to certify: the sequence is empty.")
    require_rows(table.rows, table.split, risk, confidence)
    for policy in policies:
        pins = policy.bundles
        if pins and pins != table.pins:
            raise CertifyError(
                f"The policy {policy.name!r} is pinned to the bundles {pins}; the rows of "
                f"{table.split!r} were scored by {table.pins}. Replay the split with the policy's "
                "own bundles."
            )


def _refusal(failures: int, table: Table, risk: float, confidence: float) -> str:
    bound = upper_bound(failures, table.rows, confidence)
    pinned = int((table.pinned & table.differs).sum())
    return (
        f"No policy can be certified for a risk of {risk:.2%} at {confidence:.0%} confidence: "
        f"already the most conservative one fails on {failures} of {table.rows} rows of "
        f"{table.split!r}, where {allowed_failures(table.rows, risk, confidence)} are allowed "
        f"({pinned} of the failures are messages with personal data, which stay at the edge "
        f"whatever the policy). Ask for a risk of {bound:.2%} or more, or train a better edge."
    )


def _level(confidence: float) -> float:
    # 1 - 0.95 is a little more than 0.05 in floating point; a test must not gain from that.
    return round(1.0 - confidence, 12)

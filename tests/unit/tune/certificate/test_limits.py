"""Limits: each is tested as bounds.py says, all together by the largest p-value."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import ConfigError
from serve_app.decide.cost import Prices
from tests.support.bounds import allowed_losses
from tune.certificate import bounds
from tune.certificate.counts import PolicyCounts
from tune.certificate.limits import KINDS, Limits, observed, of_kind, p_values, passes

PRICES = Prices(edge_usd=0.001, cloud_usd=0.01)
CONFIDENCE = 0.95
unhurried = settings(deadline=None)


@st.composite
def counted(draw: Any) -> PolicyCounts:
    """Three policies on some rows, of which some are labelled."""
    rows = draw(st.integers(1, 400))
    labelled = draw(st.integers(1, rows))
    kept = [draw(st.integers(0, rows)) for _ in range(3)]
    failures = [draw(st.integers(0, most)) for most in kept]
    losses = [draw(st.integers(0, min(most, labelled))) for most in failures]
    gains = [draw(st.integers(0, labelled - lost)) for lost in losses]
    return made(kept, failures, losses, gains, rows, labelled)


def made(
    kept: list[int], failures: list[int], losses: list[int], gains: list[int],
    rows: int, labelled: int,
) -> PolicyCounts:  # fmt: skip
    a, b, c, d = (np.array(column) for column in (kept, failures, losses, gains))
    return PolicyCounts(a, b, c, d, rows, labelled)


SHARES = st.floats(0.01, 0.9)
LIMITS = st.fixed_dictionaries(
    {},
    optional={kind: SHARES for kind in KINDS if kind != "cost_usd"}
    | {"cost_usd": st.floats(0.0011, 0.02)},
).filter(bool)


@given(counted(), LIMITS)
@unhurried
def test_several_limits_are_tested_by_the_largest_of_their_p_values(
    seen: PolicyCounts, given_limits: dict[str, float]
) -> None:
    found = p_values(Limits(**given_limits), seen, PRICES, CONFIDENCE)
    alone = [
        p_values(Limits(**{kind: limit}), seen, PRICES, CONFIDENCE)
        for kind, limit in given_limits.items()
    ]
    np.testing.assert_array_equal(found, np.max(alone, axis=0))
    passed = passes(Limits(**given_limits), seen, PRICES, CONFIDENCE)
    np.testing.assert_array_equal(passed, found <= bounds.level(CONFIDENCE))


def cost_p_value(escalated: int, rows: int, cost_usd: float) -> float:
    """The mean cost is linear in the cloud share: of the share that would cost so much."""
    share = (cost_usd - PRICES.edge_usd) / PRICES.cloud_usd
    if share > 1.0:
        return 0.0
    return bounds.p_value(escalated, rows, share) if share > 0.0 else 1.0


@given(counted(), SHARES, st.floats(0.0011, 0.02))
@unhurried
def test_each_limit_has_the_p_value_that_its_proof_is_about(
    seen: PolicyCounts, limit: float, cost: float
) -> None:
    for i in range(3):
        kept, failures = int(seen.kept[i]), int(seen.failures[i])
        losses, gains, away = int(seen.losses[i]), int(seen.gains[i]), int(seen.escalated[i])
        expected = {
            "risk": bounds.p_value(failures, seen.rows, limit),
            "agreement": bounds.p_value(failures, kept, bounds.level(limit)),
            "accuracy_loss": bounds.loss_p_value(losses, gains, seen.labelled, limit, CONFIDENCE),
            "cloud_share": bounds.p_value(away, seen.rows, limit),
            "cost_usd": cost_p_value(away, seen.rows, cost),
        }
        for kind in KINDS:
            at = cost if kind == "cost_usd" else limit
            assert of_kind(kind, at, seen, PRICES, CONFIDENCE)[i] == pytest.approx(expected[kind])


def one(
    kept: int, failures: int, losses: int, gains: int, rows: int, labelled: int
) -> PolicyCounts:
    return made([kept], [failures], [losses], [gains], rows, labelled)


def test_what_is_seen_of_each_limit() -> None:
    seen = one(kept=80, failures=8, losses=5, gains=2, rows=100, labelled=50)
    assert observed("risk", seen, PRICES) == 0.08
    assert observed("agreement", seen, PRICES) == 0.9
    assert observed("accuracy_loss", seen, PRICES) == pytest.approx(3 / 50)
    assert observed("cloud_share", seen, PRICES) == 0.2
    assert observed("cost_usd", seen, PRICES) == pytest.approx(0.001 + 0.2 * 0.01)


def test_nothing_kept_proves_no_agreement_but_every_risk() -> None:
    nothing = one(kept=0, failures=0, losses=0, gains=0, rows=1000, labelled=0)
    assert of_kind("agreement", 0.5, nothing, PRICES, CONFIDENCE) == 1.0
    assert observed("agreement", nothing, PRICES) == 0.0
    assert of_kind("risk", 0.01, nothing, PRICES, CONFIDENCE) < 0.05


def test_a_cost_above_that_of_escalating_everything_needs_no_proof() -> None:
    everything = one(kept=0, failures=0, losses=0, gains=0, rows=5, labelled=0)
    assert of_kind("cost_usd", 0.0111, everything, PRICES, CONFIDENCE) == 0.0
    assert of_kind("cost_usd", 0.0109, everything, PRICES, CONFIDENCE) == 1.0


@pytest.mark.parametrize("rows", [600, 3000])
@pytest.mark.parametrize("gains", [0, 10, 30])
def test_the_fast_test_of_the_accuracy_lost_is_near_the_exact_one(rows: int, gains: int) -> None:
    """Near enough to compare shapes by: it lets three losses more pass at most."""
    losses = np.arange(rows // 4)
    zeros = np.zeros_like(losses)
    seen = PolicyCounts(zeros, zeros, losses, zeros + gains, rows, rows)
    fast = int(passes(Limits(accuracy_loss=0.02), seen, PRICES, CONFIDENCE, exact=False).sum()) - 1
    exact = allowed_losses(gains, rows, 0.02, CONFIDENCE)
    assert exact <= fast <= exact + 3


@pytest.mark.parametrize(
    ("given_limits", "confidence", "said"),
    [
        ({"risk": 0.0}, 0.95, "The risk is 0.0"),
        ({"risk": 1.0}, 0.95, "The risk is 1.0"),
        ({"agreement": 95.0}, 0.95, r"The agreement is 95.0; .* such as 0.95"),
        ({"risk": 0.01, "cloud_share": -1}, 0.95, "The cloud share is -1"),
        ({"accuracy_loss": 2}, 0.95, "The accuracy loss is 2"),
        ({"risk": 0.01}, 1.0, "The confidence is 1.0"),
        ({"cloud_share": 0.2}, 0.95, "--max-risk, --min-agreement, --max-accuracy-loss"),
        ({}, 0.95, "No limit of quality"),
        ({"risk": 0.01, "cost_usd": 0.001}, 0.95, r"--max-cost-usd is 0.001, and --edge-usd 0.001"),
        ({"risk": 0.01, "cost_usd": -1}, 0.95, "every message pays the edge"),
    ],
)
def test_limits_that_nothing_can_meet_are_refused(
    given_limits: dict[str, float], confidence: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Limits(**given_limits).check(PRICES, confidence)


def test_limits_that_can_be_met_are_not() -> None:
    Limits(risk=0.01, agreement=0.99, accuracy_loss=0.01, cloud_share=0.3, cost_usd=0.005).check(
        PRICES, 0.95
    )


@pytest.mark.parametrize("bad", [{"risk": float("nan")}, {"speed": 0.1}])
def test_what_is_no_limit_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Limits(**bad)

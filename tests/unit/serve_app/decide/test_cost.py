"""Prices: whoever is escalated has paid for both tiers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.contracts import Route
from serve_app.decide.cost import Prices

PRICE = st.floats(1e-6, 1e3)
PRICES = st.builds(Prices, edge_usd=PRICE, cloud_usd=PRICE)


def test_the_published_prices() -> None:
    assert (Prices().of(Route.EDGE), Prices().of(Route.CLOUD)) == (0.001, 0.001 + 0.0136)


def test_the_most_that_can_be_saved_at_the_published_prices() -> None:
    """93.5% was claimed; even with everything at the edge it is less (docs, and FACTS)."""
    assert Prices().savings(Prices().per_message(0.0)) == pytest.approx(0.9265, abs=1e-4)


@given(PRICES, st.integers(0, 50), st.integers(0, 50))
def test_the_mean_is_the_mean_of_the_messages(prices: Prices, edge: int, cloud: int) -> None:
    total = edge + cloud
    if total:
        paid = edge * prices.of(Route.EDGE) + cloud * prices.of(Route.CLOUD)
        assert prices.per_message(cloud / total) == pytest.approx(paid / total)


@given(PRICES)
def test_escalating_everything_costs_more_than_cloud_only(prices: Prices) -> None:
    assert prices.savings(prices.per_message(1.0)) < 0
    assert prices.savings(prices.cloud_usd) == 0


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf"), "free"])
@pytest.mark.parametrize("name", ["edge_usd", "cloud_usd"])
def test_a_price_that_is_none_is_refused(name: str, price: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Prices.model_validate({name: price})


def test_an_unknown_price_is_refused() -> None:
    with pytest.raises(ValidationError, match="gpu_usd"):
        Prices.model_validate({"gpu_usd": 1.0})

"""Prices: known ones are counted by part, unknown ones stay unknown."""

from __future__ import annotations

from localfirst.events import Usage
from localfirst.providers.catalog import CATALOG
from localfirst.providers.prices import Price, blended, price_of


def test_cached_tokens_cost_their_own_price() -> None:
    price = Price("p", "m", input=2.0, output=10.0, cached=0.5)
    usage = Usage(prompt_tokens=1_000_000, cached_tokens=400_000, completion_tokens=100_000)
    assert price.cost_usd(usage) == 0.6 * 2.0 + 0.4 * 0.5 + 0.1 * 10.0


def test_without_a_cached_price_cached_tokens_cost_as_any() -> None:
    usage = Usage(prompt_tokens=1_000_000, cached_tokens=1_000_000)
    assert Price("p", "m", input=2.0, output=10.0).cost_usd(usage) == 2.0


def test_a_price_nobody_knows_is_none_and_not_nothing() -> None:
    assert price_of("groq", "nobody/knows") is None


def test_every_row_speaks_of_a_provider_we_have_and_costs_no_less_than_nothing() -> None:
    routes = blended()
    assert len(routes) > 20
    assert {route.partition("/")[0] for route in routes} <= set(CATALOG)
    assert all(usd >= 0 for usd in routes.values())

"""
What an answer cost, as far as it is known: an estimate from dated list prices.

Unknown stays unknown and is never 0. Prices are USD per million tokens; the file names the
source and the date of each.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

from localfirst.events import Usage

# A typical chat reads three tokens for each it writes (OpenRouter's own ranking weighs so).
READ_SHARE = 0.75
MTOK = 1_000_000


class Price(msgspec.Struct, frozen=True):
    """One model's list price; `cached` is that of prompt tokens the provider had cached."""

    provider: str
    model: str
    input: float
    output: float
    cached: float | None = None

    def cost_usd(self, usage: Usage) -> float:
        """What *usage* costs."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        fresh = usage.prompt_tokens - cached
        cached_price = self.input if self.cached is None else self.cached
        return (
            fresh * self.input + cached * cached_price + usage.completion_tokens * self.output
        ) / MTOK

    @property
    def blended(self) -> float:
        """One figure to compare models by."""
        return READ_SHARE * self.input + (1 - READ_SHARE) * self.output


class _File(msgspec.Struct):
    models: tuple[Price, ...]


@cache
def _prices() -> dict[str, Price]:
    text = resources.files("localfirst.providers").joinpath("data/prices.json").read_bytes()
    found = msgspec.json.decode(text, type=_File).models
    return {f"{price.provider}/{price.model}": price for price in found}


def price_of(provider: str, model: str) -> Price | None:
    """The list price of a provider's model, or None."""
    return _prices().get(f"{provider}/{model}")


def blended() -> dict[str, float]:
    """USD per million tokens by `provider/model`, for the strategy `cheapest`."""
    return {route: price.blended for route, price in _prices().items()}

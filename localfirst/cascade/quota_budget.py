"""
The day's budget: how many requests may leave this machine, and what they may cost.

Counted where a request is sent, so that a crowd of requests cannot overrun it, and closed
when it cannot be told: with a limit in USD, a model without a known price is not asked.
Pure: time and prices come in.
"""

from __future__ import annotations

from collections.abc import Callable

from localfirst.events import Usage
from localfirst.settings import BudgetSettings
from localfirst.types import Target

DAY_S = 86400.0

Price = Callable[[Target, Usage], float | None]
"""USD of an answer, or None when the model's price is not known."""


class Budget:
    """
    One day's spending; days begin at midnight UTC.

    Args:
        settings: the limits; 0 is off.
        price: prices; without it a limit in USD closes every cloud.
    """

    def __init__(self, settings: BudgetSettings, *, price: Price | None = None) -> None:
        self._settings = settings
        self._price = price
        self._day = 0
        self.requests = 0
        self.usd = 0.0

    def restore(self, requests: int, usd: float, now_unix: float) -> None:
        """Take over what the ledger says of today."""
        self._turn(now_unix)
        self.requests = max(self.requests, requests)
        self.usd = max(self.usd, usd)

    def spent(self, now_unix: float) -> str:
        """Why nothing more may leave today, or ""."""
        limit, usd = self._settings.cloud_requests_per_day, self._settings.usd_per_day
        if not limit and not usd:
            return ""
        self._turn(now_unix)
        if limit and self.requests >= limit:
            return f"the budget of {limit} cloud requests a day is used up"
        if usd and self.usd >= usd:
            return f"the budget of {usd:g} USD a day is spent"
        return ""

    def refusal(self, target: Target, now_unix: float) -> str:
        """Why *target* may not be asked now, or ""; counts the request when it may."""
        no = self.spent(now_unix)
        if no:
            return no
        if self._settings.usd_per_day and self._cost(target, Usage(prompt_tokens=1)) is None:
            return "its price is not known, and `budget.usd_per_day` is set"
        self.requests += 1
        return ""

    def paid(self, target: Target, usage: Usage | None, now_unix: float) -> float | None:
        """Add what an answer cost; None when that is not known."""
        self._turn(now_unix)
        cost = self._cost(target, usage) if usage is not None else None
        self.usd += cost or 0.0
        return cost

    def _cost(self, target: Target, usage: Usage) -> float | None:
        return self._price(target, usage) if self._price is not None else None

    def _turn(self, now_unix: float) -> None:
        day = int(now_unix // DAY_S)
        # A clock set back does not open a new day's budget twice.
        if day > self._day:
            self._day, self.requests, self.usd = day, 0, 0.0

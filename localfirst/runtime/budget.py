"""
The day's budget on what leaves this machine, enforced where a request is sent.

What it counts in memory is what this process sent; the ledger adds what others did. A
limit on money fails closed: a model whose price is not known is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from localfirst.ledger import usage as ledger_usage
from localfirst.ledger.db import Ledger
from localfirst.providers.prices import price_of
from localfirst.settings import BudgetSettings
from localfirst.types import Clock, Target

DAY_S = 86400.0
REFRESH_S = 5.0
"""How long the sums of other processes are believed."""


class Budget:
    """Counts cloud requests since midnight UTC; `limited` where there is any limit at all."""

    def __init__(
        self, settings: BudgetSettings, ledger: Ledger, clock: Clock, *, own: Collection[str]
    ) -> None:
        self._settings = settings
        self.limited = bool(settings.cloud_requests_per_day or settings.usd_per_day)
        self._ledger = ledger
        self._clock = clock
        self._own = frozenset(own) | {"local", "pull"}
        self._day = 0.0
        self._requests = 0
        self._usd = 0.0
        self._read = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read what was spent today."""
        if self.limited:
            await self._refresh()

    def go_on_with(self, old: Budget) -> None:
        """Count what *old* has counted, of which the ledger may not know: what is under way."""
        self._turn_the_day()
        old._turn_the_day()
        self._requests = max(self._requests, old._requests)
        self._usd = max(self._usd, old._usd)

    def spent(self) -> str:
        """Why nothing more may be sent to any cloud today, or ""."""
        if not self.limited:
            return ""
        self._turn_the_day()
        self._renew()
        most = self._settings.cloud_requests_per_day
        if most and self._requests >= most:
            return f"the day's {most} cloud requests are used (`budget.cloud_requests_per_day`)"
        usd = self._settings.usd_per_day
        if usd and self._usd >= usd:
            return f"the day's {usd:g} USD are spent (`budget.usd_per_day`)"
        return ""

    def refusal(self, target: Target) -> str:
        """Why *target* may not be asked now, or ""; counts the request when it may."""
        if target.provider in self._own:
            return ""
        no = self.spent() or self._unpriced(target)
        if not no:
            self._requests += 1
        return no

    def paid(self, usd: float) -> None:
        """Count what an answer cost."""
        self._turn_the_day()
        self._usd += usd

    def _unpriced(self, target: Target) -> str:
        if not self._settings.usd_per_day or price_of(target.provider, target.model):
            return ""
        return f"the price of `{target.route}` is not known, and `budget.usd_per_day` is set"

    # --- inside ------------------------------------------------------------------------------

    def _turn_the_day(self) -> None:
        day = self._clock.unix() // DAY_S * DAY_S
        if day != self._day:
            self._day, self._requests, self._usd = day, 0, 0.0

    def _renew(self) -> None:
        idle = self._reading is None or self._reading.done()
        if idle and self._clock.monotonic() - self._read > REFRESH_S:
            self._reading = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> None:
        self._turn_the_day()
        day = self._day
        found = await self._ledger.run(lambda db: ledger_usage.spent(db, day))
        self._read = self._clock.monotonic()
        if found is not None and day == self._day:
            self._requests = max(self._requests, found[0])
            self._usd = max(self._usd, found[1])

    async def aclose(self) -> None:
        """End the background reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

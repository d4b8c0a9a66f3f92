"""Where the cascade's records go: the ledger, and what they tell of the network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from localfirst.cascade import quota
from localfirst.cascade.health import Cooldown, Place
from localfirst.events import Usage
from localfirst.ledger.db import Ledger
from localfirst.machine.connectivity import Connectivity
from localfirst.providers.prices import price_of
from localfirst.runtime.budget import Budget
from localfirst.runtime.clouds import Clouds
from localfirst.types import Attempt, Call, FailureClass, Target

REACHED = frozenset(FailureClass) - {
    FailureClass.NETWORK,
    FailureClass.TIMEOUT,
    FailureClass.CONFIG,
    FailureClass.UNKNOWN,
} | {"ok"}
"""Outcomes that only somebody outside can have caused: the network was there."""


class Records:
    """
    The cascade's recorder.

    Args:
        clouds: told of models that are gone, and asked where each provider is.
        budget: told what an answer cost.
    """

    def __init__(
        self, ledger: Ledger, connectivity: Connectivity, clouds: Clouds, budget: Budget
    ) -> None:
        self._ledger = ledger
        self._budget = budget
        self._connectivity = connectivity
        self._clouds = clouds

    def record_attempt(
        self,
        attempt: Attempt,
        *,
        call: Call | None = None,
        target: Target | None = None,
        usage: Usage | None = None,
        first_token_s: float = 0.0,
        breakage: str = "",
    ) -> None:
        """Remember an attempt, and what it shows of the network."""
        outcome = attempt.outcome
        if host := self._clouds.hosts.get(attempt.provider):
            if outcome in REACHED:
                self._connectivity.note_success()
            elif breakage:
                self._connectivity.note_failure(host, breakage=breakage)
        if outcome == FailureClass.MODEL_NOT_FOUND:
            self._clouds.gone(attempt.provider, attempt.model)
        usd = self._cost(attempt, usage)
        if usd:
            self._budget.paid(usd)
        self._ledger.record_attempt(
            attempt, call=call, target=target, usage=usage, first_token_s=first_token_s, usd=usd
        )

    def _cost(self, attempt: Attempt, usage: Usage | None) -> float | None:
        """An estimate by list price, 0 for what this machine did itself, None if unknown."""
        if attempt.provider in {"local", "pull"} or attempt.provider in self._clouds.own:
            return 0.0
        price = price_of(attempt.provider, attempt.model)
        return price.cost_usd(usage) if price and usage else None

    def save_cooldown(self, entry: Cooldown) -> asyncio.Future[None] | None:
        """Hand a cooldown on to the ledger."""
        return self._ledger.save_cooldown(entry)

    def save_windows(self, found: Mapping[quota.Place, quota.Window]) -> None:
        """Hand what was learnt of a key's limits on to the ledger."""
        self._ledger.save_windows(found)

    def drop_cooldowns(self, places: tuple[Place, ...]) -> None:
        """Hand the end of cooldowns on to the ledger."""
        self._ledger.drop_cooldowns(places)

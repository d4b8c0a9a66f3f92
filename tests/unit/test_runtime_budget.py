"""What is guarded: the day's limits on requests and money; an unknown price is too high."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from localfirst.ledger.db import Ledger
from localfirst.runtime.budget import DAY_S, REFRESH_S, Budget
from localfirst.settings import BudgetSettings
from localfirst.types import Attempt, Rung, Target

PRICED = Target(rung=Rung.CLOUD, provider="groq", model="openai/gpt-oss-20b")
UNPRICED = Target(rung=Rung.CLOUD, provider="groq", model="nobody/knows")
OWN = (
    Target(rung=Rung.LOCAL, provider="local", model="m"),
    Target(rung=Rung.PULL, provider="pull", model="m"),
    Target(rung=Rung.LOCAL, provider="box", model="m"),
)


class HandClock:
    """Half past eleven at night, in both of its times, until it is moved."""

    def __init__(self) -> None:
        self.now = 20_000 * DAY_S + DAY_S - 1800.0

    def monotonic(self) -> float:
        return self.now

    def unix(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Day:
    """Budgets of several processes over one ledger."""

    def __init__(self, ledger: Ledger, clock: HandClock, settings: BudgetSettings) -> None:
        self.ledger, self.clock, self._settings = ledger, clock, settings

    async def budget(self) -> Budget:
        made = Budget(self._settings, self.ledger, self.clock, own=("box",))
        await made.start()
        return made

    async def another_spent(self, usd: float) -> None:
        attempt = Attempt(
            provider="groq", model=PRICED.model, outcome="ok", started_unix=self.clock.unix()
        )
        self.ledger.record_attempt(attempt, target=PRICED, usd=usd)
        await self.ledger.flush()

    async def read_again(self, budget: Budget) -> None:
        """Have *budget* look into the ledger."""
        self.clock.now += REFRESH_S + 1.0
        budget.spent()
        await asyncio.gather(*[task for task in (budget._reading,) if task is not None])


def over(folder: Path, work: Callable[[Day], Awaitable[None]], **limits: float) -> None:
    async def main() -> None:
        clock = HandClock()
        ledger = Ledger(folder / "x.db", clock)
        ledger.open()
        try:
            await work(Day(ledger, clock, BudgetSettings(**limits)))  # type: ignore[arg-type]
        finally:
            await ledger.aclose()

    asyncio.run(main())


def test_without_a_limit_everybody_may_be_asked(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        budget = await day.budget()
        budget.paid(10**6)
        assert not budget.limited
        assert {budget.refusal(target) for target in (PRICED, UNPRICED, *OWN)} == {""}

    over(tmp_path, work)


def test_so_many_requests_leave_and_no_more(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        budget = await day.budget()
        assert [budget.refusal(PRICED) for _ in range(3)] == ["", "", ""]
        assert "3 cloud requests" in budget.refusal(UNPRICED) == budget.spent()
        assert {budget.refusal(target) for target in OWN} == {""}
        await budget.aclose()

    over(tmp_path, work, cloud_requests_per_day=3)


def test_what_stays_here_counts_for_nothing(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        budget = await day.budget()
        assert {budget.refusal(target) for target in OWN * 5} == {""}
        assert (budget.spent(), budget.refusal(PRICED)) == ("", "")
        await budget.aclose()

    over(tmp_path, work, cloud_requests_per_day=1)


def test_money_ends_with_the_cent_that_reaches_the_limit(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        budget = await day.budget()
        assert "price" in budget.refusal(UNPRICED)
        budget.paid(0.25)
        assert budget.refusal(PRICED) == ""
        budget.paid(0.25)
        assert "0.5 USD" in budget.refusal(PRICED)
        await budget.aclose()

    over(tmp_path, work, usd_per_day=0.5)


def test_midnight_begins_anew(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        budget = await day.budget()
        budget.paid(1.0)
        assert budget.refusal(PRICED)
        day.clock.now += 1799.0
        assert budget.refusal(PRICED)
        day.clock.now += 1.0
        assert budget.refusal(PRICED) == ""
        day.clock.now += DAY_S
        budget.paid(1.0)  # of an answer that was under way
        assert budget.refusal(PRICED)
        await budget.aclose()

    over(tmp_path, work, usd_per_day=0.5)


def test_what_others_spent_counts_at_the_start_and_a_moment_later(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        early = await day.budget()
        await day.another_spent(1.5)
        late = await day.budget()
        assert bool(early.spent()) < bool(late.spent())
        await day.read_again(early)
        assert early.spent() == late.spent()
        for budget in (early, late):
            await budget.aclose()

    for name, limit in (("money", {"usd_per_day": 1.0}), ("count", {"cloud_requests_per_day": 1})):
        (tmp_path / name).mkdir()
        over(tmp_path / name, work, **limit)


def test_what_the_ledger_does_not_know_yet_is_not_forgotten(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        budget = await day.budget()
        assert [budget.refusal(PRICED) for _ in range(2)] == ["", ""]
        await day.read_again(budget)
        assert budget.spent()
        heir = await day.budget()
        assert heir.spent() == ""
        heir.go_on_with(budget)
        assert heir.spent()
        for one in (budget, heir):
            await one.aclose()

    over(tmp_path, work, cloud_requests_per_day=2)


def test_an_heir_has_spent_what_it_inherits_on_the_same_day(tmp_path: Path) -> None:
    async def work(day: Day) -> None:
        for later_s, spent in ((0.0, True), (DAY_S, False)):
            old, heir = await day.budget(), await day.budget()
            old.paid(1.0)
            day.clock.now += later_s
            heir.go_on_with(old)
            assert bool(heir.spent()) is spent
            for one in (old, heir):
                await one.aclose()

    over(tmp_path, work, usd_per_day=1.0)

"""The watchdogs of a cascade: one timer for all of them, and each stopped in its own time."""

from __future__ import annotations

import asyncio

from localfirst.cascade.watch import Watches
from localfirst.errors import Breakage

BOUND_S = 5.0
EARLY_S = 0.002  # event loops round their timers to milliseconds


async def stopped(watches: Watches, limit_s: float, again_s: float = 0.0) -> tuple[float, Breakage]:
    """Wait for what never comes: seconds until the watch ended that, and what it called it."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    watch = watches.begin(limit_s)
    try:
        if again_s:
            watch.restart(again_s, Breakage.STALL_TIMEOUT)
        async with asyncio.timeout(BOUND_S):
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        broken = watch.verdict()
        assert broken is not None
        return loop.time() - began, broken.breakage
    finally:
        watch.close()
    raise AssertionError("nothing ends without a watch")


def test_a_later_watch_with_a_shorter_limit_is_stopped_first_and_the_other_in_its_turn() -> None:
    async def main() -> None:
        watches = Watches()
        (long_s, kind), (short_s, _) = await asyncio.gather(
            stopped(watches, 0.12), stopped(watches, 0.02)
        )
        assert 0.02 - EARLY_S <= short_s < long_s
        assert long_s >= 0.12 - EARLY_S
        assert kind is Breakage.FIRST_TOKEN_TIMEOUT

    asyncio.run(main())


def test_a_restart_with_a_shorter_limit_counts_from_then_on() -> None:
    async def main() -> None:
        seconds, kind = await stopped(Watches(), 60.0, again_s=0.02)
        assert 0.02 - EARLY_S <= seconds < BOUND_S
        assert kind is Breakage.STALL_TIMEOUT

    asyncio.run(main())


def test_a_reader_that_holds_an_event_is_never_stopped() -> None:
    async def main() -> None:
        watches = Watches()
        watch = watches.begin(0.01)
        watch.since = None
        await stopped(watches, 0.05)
        assert not watch.expired
        watch.close()

    asyncio.run(main())


def test_the_timer_works_again_on_another_loop() -> None:
    watches = Watches()
    for _ in range(2):
        seconds, _ = asyncio.run(stopped(watches, 0.02))
        assert seconds < BOUND_S

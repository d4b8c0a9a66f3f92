"""Quota windows on disk: kept over a restart, shared by processes, the latest one believed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from localfirst.cascade.quota import ACCOUNTS_MOST, WINDOWS_MOST, Quota, Window
from localfirst.ledger import windows
from localfirst.ledger.db import Ledger, connect
from localfirst.transport.clock import SystemClock
from localfirst.types import Rung, Target

TARGET = Target(rung=Rung.CLOUD, provider="groq", model="m", key_label="K")
PLACE = ("groq", "K", "m", "requests")
NOW = 1_800_000_000.0
SPENT = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "90s")]
PLENTY = [("x-ratelimit-remaining-requests", "70"), ("x-ratelimit-reset-requests", "90s")]


def window(remaining: float = 0.0, learnt_unix: float = NOW, lasts_s: float = 90.0) -> Window:
    return Window(
        unit="requests",
        remaining=remaining,
        reset_unix=learnt_unix + lasts_s,
        learnt_unix=learnt_unix,
    )


def ledger(folder: Path) -> Ledger:
    found = Ledger(folder / "localfirst.db", SystemClock())
    found.open()
    return found


def test_what_headers_say_is_what_is_remembered() -> None:
    quota = Quota()
    assert quota.learn(TARGET, SPENT, NOW) == {PLACE: window()}
    assert quota.learn(TARGET, [("content-type", "text/html")], NOW) == {}


def test_a_window_outlives_the_process_that_learnt_it(tmp_path: Path) -> None:
    later = time.time() + 3600.0
    kept = {PLACE: window(3.0, later), (*PLACE[:3], "tokens-day"): window(0.0, later)}

    async def main() -> None:
        first = ledger(tmp_path)
        first.save_windows(kept)
        await first.aclose()
        second = ledger(tmp_path)
        assert await second.load_windows() == kept
        await second.aclose()

    asyncio.run(main())


def test_a_cloud_that_names_another_limit_each_time_fills_no_memory() -> None:
    quota = Quota()
    for number in range(200):
        names = [f"x-ratelimit-remaining-requests-{number}-{one}" for one in range(40)]
        told = quota.learn(TARGET, [(name, "5") for name in names], NOW)
        assert len(told) == WINDOWS_MOST
        assert len(quota.windows(TARGET)) == WINDOWS_MOST
    other = Quota()
    other.restore({(*PLACE[:3], str(one)): window() for one in range(40)}, NOW)
    assert len(other.windows(TARGET)) == WINDOWS_MOST


@pytest.mark.parametrize("reset", ["9" * 400 + "s", "1e308", "9999-12-31T23:59:59Z", "1e18"])
def test_a_reset_that_nobody_lives_to_see_is_taken_for_one_that_was_not_stated(reset: str) -> None:
    said = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", reset)]
    assert Quota().learn(TARGET, said, NOW) == {PLACE: window(lasts_s=60.0)}


def test_a_window_that_was_learnt_under_a_wrong_clock_bars_nobody_for_years() -> None:
    quota = Quota()
    quota.restore({PLACE: window(0.0, NOW + 50 * 365 * 86400.0)}, NOW)
    assert quota.refusal(TARGET, 1, NOW) is None


def test_a_window_that_was_learnt_under_a_wrong_clock_is_forgotten(tmp_path: Path) -> None:
    db = connect(tmp_path / "localfirst.db")
    sound, wrong = window(0.0, NOW), window(0.0, NOW + 50 * 365 * 86400.0)
    windows.save(db, {PLACE: sound, (*PLACE[:3], "tokens"): wrong})
    windows.prune(db, NOW)
    assert windows.load(db) == {PLACE: sound}
    db.close()


def test_windows_that_are_over_are_forgotten_at_the_next_start(tmp_path: Path) -> None:
    async def main() -> None:
        first = ledger(tmp_path)
        first.save_windows({PLACE: window(0.0, time.time() - 3600.0)})
        await first.aclose()
        second = ledger(tmp_path)
        assert await second.load_windows() == {}
        await second.aclose()

    asyncio.run(main())


def test_another_process_is_told_at_once(tmp_path: Path) -> None:
    news = {PLACE: window(1.0, time.time())}

    async def main() -> None:
        mine, other = ledger(tmp_path), ledger(tmp_path)
        told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        other.watch_windows(lambda found: told.done() or found != news or told.set_result(found))
        await other.load_windows()
        mine.save_windows(news)
        assert await asyncio.wait_for(told, 5.0) == news
        await mine.aclose()
        await other.aclose()

    asyncio.run(main())


def test_what_was_learnt_later_stays_whoever_writes_last(tmp_path: Path) -> None:
    now = time.time()
    early, late = {PLACE: window(50.0, now)}, {PLACE: window(2.0, now + 1.0)}

    async def main() -> None:
        first, second = ledger(tmp_path), ledger(tmp_path)
        first.save_windows(late)
        await first.flush()
        second.save_windows(early)
        await second.flush()
        assert await first.load_windows() == late
        await first.aclose()
        await second.aclose()

    asyncio.run(main())


def test_a_restored_window_holds_a_request_back_until_its_reset() -> None:
    quota = Quota()
    quota.restore({PLACE: window()}, NOW + 10.0)
    refusal = quota.refusal(TARGET, 5, NOW + 10.0)
    assert refusal is not None
    assert refusal.ready_unix == NOW + 90.0
    assert quota.refusal(TARGET, 5, NOW + 91.0) is None


def test_news_from_disk_replace_only_what_is_older() -> None:
    quota = Quota()
    quota.learn(TARGET, PLENTY, NOW)
    quota.restore({PLACE: window(0.0, NOW - 5.0)}, NOW)
    assert quota.refusal(TARGET, 5, NOW) is None
    quota.restore({PLACE: window(0.0, NOW + 5.0)}, NOW + 5.0)
    assert quota.refusal(TARGET, 5, NOW + 5.0) is not None
    other = Quota()
    other.restore({PLACE: window(0.0, NOW - 500.0)}, NOW)
    assert not other.windows(TARGET)


def test_made_up_models_fill_no_memory() -> None:
    quota = Quota()
    for number in range(3 * ACCOUNTS_MOST):
        quota.learn(Target(rung=Rung.CLOUD, provider="groq", model=f"m{number}"), SPENT, NOW)
    kept = [
        number
        for number in range(3 * ACCOUNTS_MOST)
        if quota.windows(Target(rung=Rung.CLOUD, provider="groq", model=f"m{number}"))
    ]
    assert kept == list(range(2 * ACCOUNTS_MOST, 3 * ACCOUNTS_MOST))
    quota.learn(TARGET, SPENT, NOW + 1000.0)
    assert not quota.windows(Target(rung=Rung.CLOUD, provider="groq", model=f"m{kept[-1]}"))
    assert quota.windows(TARGET)

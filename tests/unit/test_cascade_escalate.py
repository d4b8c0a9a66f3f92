"""When people are told, what they are told, and when it is over by itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from localfirst.cascade import escalate
from localfirst.cascade.alarm import Alarm
from localfirst.cascade.escalate import Decision, Thresholds
from localfirst.cascade.health import NEVER, Cooldown, Health
from localfirst.ledger import history
from localfirst.ledger.db import Ledger
from localfirst.settings import EscalationSettings, Secret
from localfirst.transport.clock import SystemClock
from localfirst.types import Attempt, FailureClass

SETTINGS = EscalationSettings(same_error=3, failures=5, window_s=100.0)


def failure(provider: str = "groq", outcome: str = "timeout", at: float = 1000.0) -> Attempt:
    return Attempt(provider=provider, model="m", outcome=outcome, started_unix=at)


def test_the_same_error_often_enough_is_told_once() -> None:
    rules = Thresholds(SETTINGS)
    found = [rules.failed(failure(at=1000.0 + n), 1000.0 + n) for n in range(5)]
    assert [one.rule if one else None for one in found] == [
        None, None, "same_error", None, "failures",
    ]  # fmt: skip


def test_many_different_failures_are_told() -> None:
    rules = Thresholds(SETTINGS)
    found = [rules.failed(failure(f"p{n}"), 1000.0) for n in range(5)]
    assert found[:4] == [None] * 4
    assert found[4] is not None and found[4].rule == "failures"


def test_what_lies_outside_the_window_does_not_count() -> None:
    rules = Thresholds(SETTINGS)
    found = [rules.failed(failure(at=1000.0 + n * 60), 1000.0 + n * 60) for n in range(9)]
    assert found == [None] * 9


def test_different_errors_of_one_provider_are_not_the_same_error() -> None:
    rules = Thresholds(SETTINGS)
    outcomes = ("timeout", "network", "unavailable")
    assert [rules.failed(failure(outcome=one), 1000.0) for one in outcomes] == [None] * 3


def test_a_threshold_of_one_is_met_at_once() -> None:
    one = Thresholds(EscalationSettings(same_error=0, failures=1)).failed(failure(), 1000.0)
    assert one is not None and one.rule == "failures"
    one = Thresholds(EscalationSettings(same_error=1, failures=0)).failed(failure(), 1000.0)
    assert one is not None and one.rule == "same_error"


def test_an_endless_window_keeps_no_endless_list() -> None:
    rules = Thresholds(EscalationSettings(window_s=1e12))
    for n in range(5000):
        rules.failed(failure(at=1000.0 + n), 1000.0 + n)
    assert len(rules.recent) == 1000
    assert rules.recent[-1].started_unix == 5999.0


def test_a_threshold_of_zero_is_never_met() -> None:
    rules = Thresholds(EscalationSettings(same_error=0, failures=0))
    assert [rules.failed(failure(), 1000.0) for _ in range(50)] == [None] * 50


def test_many_failures_are_told_once_an_hour_whoever_fails() -> None:
    rules = Thresholds(msgspec.structs.replace(SETTINGS, same_error=0, window_s=1e6))
    found = [rules.failed(failure(f"p{n}", at=n), 1000.0 + n) for n in range(3604)]
    assert [n for n, one in enumerate(found) if one] == [4]
    again = rules.failed(failure("p"), 1004.0 + 3600.0)
    assert again is not None and again.rule == "failures"


def test_many_failures_are_over_when_all_answer_again() -> None:
    rules = Thresholds(msgspec.structs.replace(SETTINGS, failures=2))
    rules.failed(failure("groq"), 1000.0)
    decision = rules.failed(failure("gemini"), 1000.0)
    assert decision is not None and decision.providers == ("groq", "gemini")
    rules.succeeded("groq", 1001.0)
    assert not rules.is_over(decision)
    rules.succeeded("gemini", 1001.0)
    assert rules.is_over(decision)


def test_an_answer_from_before_the_trouble_is_no_recovery() -> None:
    rules = Thresholds(msgspec.structs.replace(SETTINGS, same_error=1))
    rules.succeeded("groq", 999.0)
    decision = rules.failed(failure(), 1000.0)
    assert decision is not None and not rules.is_over(decision)


@pytest.mark.parametrize("cls", sorted(set(FailureClass) - escalate.OWN_FAULT))
def test_whoever_is_woken_is_told_what_to_do(cls: FailureClass) -> None:
    decision = Thresholds(SETTINGS).exhausted([failure(outcome=cls)], 1000.0)
    assert decision is not None
    told = escalate.message(decision)
    assert decision.reason in told
    # Of what nobody knows, only a look around is left to propose.
    assert ("\nrun `localfirst doctor`" in told) == (cls in {"unknown", "config"})


def test_the_file_tells_everything_that_is_known() -> None:
    decision = Decision(
        rule="same_error", reason="why", providers=("groq",), cls="auth", at_unix=1_795_176_000.0
    )
    tried = Attempt(
        provider="groq", model="m", key_label="K", outcome="auth", status=401, message="no",
        started_unix=1_795_175_999.0,
    )  # fmt: skip
    cools = Cooldown(
        provider="groq", key_label="K", model="", cls=FailureClass.AUTH, message="no",
        since_unix=0.0, until_unix=NEVER, duration_s=NEVER,
    )  # fmt: skip
    soon = msgspec.structs.replace(cools, until_unix=1_795_176_060.0)
    found = escalate.document(
        decision, history=[tried] * 60, cooldowns=[cools, soon], context={"version": "1"},
        prompt="user: hi",
    )  # fmt: skip
    assert len(found.pop("history")) == 50  # type: ignore[arg-type]
    row = {"provider": "groq", "key": "K", "model": "", "class": "auth", "message": "no"}
    assert found == {
        "at": "2026-11-20T12:00:00Z",
        "rule": "same_error",
        "reason": "why",
        "providers": ["groq"],
        "context": {"version": "1"},
        "cooling": [row | {"until": None}, row | {"until": "2026-11-20T12:01:00Z"}],
        "proposal": "renew the key and restart, or run `localfirst config`",
        "prompt": "user: hi",
    }
    (one,) = escalate.document(decision, history=[tried], cooldowns=[], context={})["history"]  # type: ignore[misc,union-attr]
    assert one == {
        "at": "2026-11-20T11:59:59Z", "provider": "groq", "model": "m", "key": "K",
        "class": "auth", "status": 401, "message": "no",
    }  # fmt: skip


def test_an_exhausted_ladder_is_over_when_anybody_answers_again() -> None:
    rules = Thresholds(SETTINGS)
    decision = rules.exhausted([failure("groq"), failure("gemini")], 1000.0)
    assert decision is not None and not rules.is_over(decision)
    rules.succeeded("mistral", 1001.0)
    assert not rules.is_over(decision)
    rules.succeeded("gemini", 1001.0)
    assert rules.is_over(decision)
    assert rules.exhausted([failure("groq"), failure("gemini")], 1100.0) is None


def test_a_model_that_no_setting_names_is_its_callers_slip() -> None:
    rules = Thresholds(SETTINGS, frozenset({"m"}))
    gone = failure(outcome="model_not_found")
    slip = msgspec.structs.replace(gone, model="llama3.2:1q")
    assert [rules.failed(slip, 1000.0) for _ in range(9)] == [None] * 9
    assert rules.exhausted([slip, slip], 1000.0) is None
    told = rules.exhausted([gone, slip], 1000.0)
    assert told is not None and told.providers == ("groq",)
    assert [bool(rules.failed(gone, 1000.0)) for _ in range(3)] == [False, False, True]


class Post:
    def __init__(self, fails: bool = False) -> None:
        self.sent: list[tuple[str, Mapping[str, Any]]] = []
        self.fails = fails

    async def __call__(self, url: str, body: Mapping[str, Any]) -> None:
        self.sent.append((url, body))
        if self.fails:
            raise ConnectionError(url)


def raise_the_alarm(folder: Path, settings: EscalationSettings, post: Post) -> list[Any]:
    """Three like failures, then a success; the escalations before and after it."""

    async def main() -> list[Any]:
        clock = SystemClock()
        ledger = Ledger(folder / "x.db", clock)
        ledger.open()
        alarm = Alarm(settings, folder=folder / "escalations", clock=clock, health=Health(),
                      ledger=ledger, send=post, context=lambda: {"version": "1"})  # fmt: skip
        for _ in range(3):
            alarm.attempted(failure(at=clock.unix()))
        await alarm.aclose()
        before = await ledger.run(lambda db: history.escalations(db, only_open=True))
        alarm.attempted(failure(outcome="ok"))
        await alarm.aclose()
        after = await ledger.run(lambda db: history.escalations(db))
        await ledger.aclose()
        return [before, after]

    return asyncio.run(main())


def test_an_escalation_is_written_told_and_closed_by_recovery(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        SETTINGS, webhook="https://hooks.example/x", telegram=Secret("123:TOKEN@42", "T")
    )
    post = Post()
    (opened,), (closed,) = raise_the_alarm(tmp_path, settings, post)
    assert opened.resolved_unix is None
    assert closed.resolved_unix is not None
    (path,) = (tmp_path / "escalations").iterdir()
    said = json.loads(path.read_text())
    assert said["providers"] == ["groq"]
    assert len(said["history"]) == 3
    assert "prompt" not in said
    assert path.stat().st_mode & 0o777 == 0o600
    assert [url for url, _ in post.sent] == [
        "https://hooks.example/x",
        "https://api.telegram.org/bot123:TOKEN/sendMessage",
    ]
    assert post.sent[1][1]["chat_id"] == "42"
    assert "groq failed 3 times with timeout" in str(post.sent[1][1]["text"])
    assert "TOKEN" not in path.read_text()


def test_a_webhook_that_fails_shows_no_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = msgspec.structs.replace(SETTINGS, telegram=Secret("123:TOKEN@42", "T"))
    with caplog.at_level(logging.DEBUG):
        raise_the_alarm(tmp_path, settings, Post(fails=True))
    assert "could not be told" in caplog.text
    assert "TOKEN" not in caplog.text


def test_a_folder_that_cannot_be_written_costs_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "escalations").write_text("in the way")
    (opened,), _ = raise_the_alarm(tmp_path, SETTINGS, Post())
    assert opened.file == ""


class StandingClock(SystemClock):
    """A wall clock on which everything happens within one second."""

    def unix(self) -> float:
        return 1_795_000_000.0


def test_two_escalations_of_one_second_are_two_files(tmp_path: Path) -> None:
    async def main() -> None:
        clock = StandingClock()
        alarm = Alarm(SETTINGS, folder=tmp_path, clock=clock, health=Health())
        for _ in range(3):
            alarm.attempted(failure(at=clock.unix()))
        alarm.exhausted([failure()])
        await alarm.aclose()

    asyncio.run(main())
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["escalation_20261118_110640.json", "escalation_20261118_110640_2.json"]
    told = [json.loads(path.read_text())["rule"] for path in sorted(tmp_path.iterdir())]
    assert sorted(told) == ["exhausted", "same_error"]


def test_what_an_earlier_process_told_is_closed_by_recovery(tmp_path: Path) -> None:
    async def main() -> tuple[list[Any], list[Any]]:
        clock = SystemClock()
        found = []
        for outcome in ("timeout", "ok"):
            ledger = Ledger(tmp_path / "x.db", clock)
            ledger.open()
            alarm = Alarm(SETTINGS, folder=tmp_path / "e", clock=clock, health=Health(),
                          ledger=ledger)  # fmt: skip
            attempt = failure(outcome=outcome, at=clock.unix())
            alarm.attempted(attempt)
            if outcome != "ok":
                alarm.exhausted([attempt])
            await alarm.aclose()
            found.append(await ledger.run(lambda db: history.escalations(db, only_open=True)))
            await ledger.aclose()
        return found[0], found[1]

    before, after = asyncio.run(main())
    assert len(before) == 1 and after == []


@pytest.mark.parametrize("outcome", ["invalid_request", "content_filter", "context_length"])
def test_a_clients_mistakes_wake_nobody(outcome: str) -> None:
    rules = Thresholds(SETTINGS)
    found = [rules.failed(failure(outcome=outcome), 1000.0) for _ in range(20)]
    assert found == [None] * 20

"""
Random histories of faults, keys, clocks and requests against a small model of who may answer.

`LOCALFIRST_TORTURE` multiplies the number of histories; one is short by default.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from localfirst.cascade.health import Health
from localfirst.errors import Breakage, CascadeExhausted, DeadlineExceeded, UpstreamBroken
from localfirst.events import Opened
from localfirst.settings import Settings, TimeoutSettings
from tests.fakes.scripted_backend import HANG, House, ScriptedBackend, make_call, refuses, says
from tests.fakes.virtual_time import VirtualLoop

SCALE = max(1, int(os.environ.get("LOCALFIRST_TORTURE", "1")))
NAMES = ("local", "groq", "gemini", "mistral")
LONGEST_GUESS_S = 300.0
LOCAL_S = 30.0
SCRIPTS: dict[str, list[Any]] = {
    "up": says(),
    "limited": refuses(429, {"error": {"message": "Rate limit"}}, [("retry-after", "90")]),
    "broke": refuses(402),
    "locked": refuses(401),
    "sick": refuses(503),
    "gone": [UpstreamBroken(Breakage.CONNECT_REFUSED)],
    "hanging": [Opened(200), HANG],
    "empty": [Opened(200)],
}
# How long, after a fault of this kind, a healthy place may still be passed over.
SHADOW_S = {"limited": 90.0, "broke": 86400.0, "locked": float("inf"), "hanging": 30.0}


class Model:
    """Who may answer: the highest place that is up and in nobody's shadow."""

    def __init__(self) -> None:
        self.state = dict.fromkeys(NAMES, "up")
        self.shadow = dict.fromkeys(NAMES, 0.0)
        self.fact = dict.fromkeys(NAMES, 0.0)

    def tried(self, name: str, asked_at: float, now: float) -> None:
        """*name* was asked: a fault throws its shadow."""
        state = self.state[name]
        if state == "up":
            self.shadow[name] = self.fact[name] = 0.0
            return
        shadow_s = SHADOW_S.get(state, LONGEST_GUESS_S)
        if name == "local" and state not in {"limited", "broke", "locked"}:
            shadow_s = 5.0
        self.shadow[name] = max(self.shadow[name], now + shadow_s)
        if state == "limited":
            self.fact[name] = asked_at + 90.0

    def must_answer(self, now: float) -> str | None:
        """The first place that has no excuse."""
        sure = (n for n in NAMES if self.state[n] == "up" and self.shadow[n] <= now)
        return next(sure, None)


class Cascades(RuleBasedStateMachine):
    """Requests, faults, time and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        waits = Settings(timeouts=TimeoutSettings(local_first_token_s=LOCAL_S))
        backends = {name: ScriptedBackend() for name in NAMES}
        self.house = House(backends, loop=self.loop, settings=waits)
        self.model = Model()

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(sorted(SCRIPTS)))
    def fate(self, name: str, state: str) -> None:
        """Something happens to a provider."""
        self.model.state[name] = state
        self.house.backends[name].scripts = [SCRIPTS[state]]

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0, 61.0, 400.0, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.house.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-7200.0, 7200.0]))
    def wall_clock_jumps(self, seconds: float) -> None:
        self.house.clock.jump += seconds
        if seconds > 0:  # the later clock is believed, so shadows may end sooner
            self.model.fact = dict.fromkeys(NAMES, 0.0)

    @rule()
    def process_restarts(self) -> None:
        """Another process takes over what the ledger holds; refused keys are tried again."""
        kept = self.house.cascade.health.snapshot()
        self.house.cascade.health = Health()
        self.house.cascade.health.restore(kept, self.house.cascade.now_unix())

    @rule(stream=st.booleans())
    def request(self, stream: bool) -> None:
        before = {name: len(self.house.backends[name].asked) for name in NAMES}
        began = self.house.clock.monotonic()
        must = self.model.must_answer(began)
        facts = dict(self.model.fact)
        answered = self.loop.run_until_complete(self.ask(stream))
        took = self.house.clock.monotonic() - began
        assert took <= 120.0 + LOCAL_S + 1.0, f"a request took {took} s"
        sent = {n: len(self.house.backends[n].asked) - before[n] for n in NAMES}
        for name, times in sent.items():
            assert times <= 2
            # A float tells seconds since 1970 to 2e-7.
            early_s = facts[name] - (began + took)
            assert not (times and early_s > 1e-5), f"{name} was asked in its fact"
            if times:
                self.model.tried(name, self.house.backends[name].asked_at[-1], began + took)
        if answered is None:
            assert must is None, f"{must} could have answered"
            return
        assert self.model.state[answered] == "up"
        if must is not None:
            assert NAMES.index(answered) <= NAMES.index(must), f"{must} stands above {answered}"

    async def ask(self, stream: bool) -> str | None:
        try:
            answer = await self.house.cascade.open(make_call(stream=stream))
            return (await answer.reply()).route.partition("/")[0]
        except (CascadeExhausted, DeadlineExceeded):
            return None

    @invariant()
    def nothing_is_left_open(self) -> None:
        assert self.house.unanswered == 0
        assert not any(self.house.cascade.quota.in_flight.values())
        assert self.house.cascade.health.view().probing == {}


Cascades.TestCase.settings = bounds(
    max_examples=220 * SCALE,
    stateful_step_count=50,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink]
    if os.environ.get("LOCALFIRST_TORTURE")
    else [Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
TestCascades = Cascades.TestCase

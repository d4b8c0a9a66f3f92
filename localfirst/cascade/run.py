"""
The cascade: who answers a request.

    1. local    the model runs, or fits and starts, in the local engine
    2. clouds   providers in configured order that have a key and are healthy
    3. pull     the model is fetched, with progress, and then answers locally
    4. give up  CascadeExhausted, carrying every attempt and its reason

Moving down is allowed only before the first content has been handed to the caller. The
decision is `plan`'s, the way down is `climb`'s; this file wires them to what they act on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from localfirst.cascade import plan_strategy
from localfirst.cascade.answer import Answer
from localfirst.cascade.climb import Climb
from localfirst.cascade.health import Cooldown, Health, Place
from localfirst.cascade.ladder import Ladder
from localfirst.cascade.ongoing import Ongoing
from localfirst.cascade.plan import Plan, World, plan
from localfirst.cascade.quota import Quota
from localfirst.engines.base import Backend
from localfirst.errors import EngineUnavailable
from localfirst.events import Usage
from localfirst.settings import Settings
from localfirst.types import Attempt, Call, Clock, Failure, Target

__all__ = ["Answer", "Cascade", "Recorder"]

# Plans are kept for as many different kinds of request at once.
PLANS_KEPT = 64

Look = Callable[[Call], Awaitable[World]]


class Recorder(Protocol):
    """Where attempts and cooldowns go; `ledger.db.Ledger` is one. Nothing here may block."""

    def record_attempt(
        self,
        attempt: Attempt,
        *,
        call: Call | None = None,
        target: Target | None = None,
        usage: Usage | None = None,
        first_token_s: float = 0.0,
    ) -> None:
        """Remember one attempt, some time soon."""
        ...

    def save_cooldown(self, entry: Cooldown) -> asyncio.Future[None] | None:
        """Write a cooldown at once; the future is done when it is on disk."""
        ...

    def drop_cooldowns(self, places: tuple[Place, ...]) -> None:
        """Forget cooldowns that a success has ended."""
        ...


class Watcher(Protocol):
    """Who is told how it goes; `alarm.Alarm` is one. Nothing here may block."""

    def attempted(self, attempt: Attempt) -> None:
        """One attempt ended."""
        ...

    def exhausted(self, attempts: Sequence[Attempt], prompt: str = "") -> None:
        """Nobody answered."""
        ...


class NoRecorder:
    """A recorder that remembers nothing."""

    def record_attempt(
        self,
        attempt: Attempt,
        *,
        call: Call | None = None,
        target: Target | None = None,
        usage: Usage | None = None,
        first_token_s: float = 0.0,
    ) -> None:
        """Forget it."""

    def save_cooldown(self, entry: Cooldown) -> asyncio.Future[None] | None:
        """Forget it."""
        del entry
        return None

    def drop_cooldowns(self, places: tuple[Place, ...]) -> None:
        """Nothing to drop."""


class Cascade:
    """
    Answers calls by going down the ladder.

    Args:
        backends: by provider id; "local" and "pull" are this machine's rungs.
        look: builds the world of a call; the same object while nothing changed.
        clock: time.
        settings: limits, order of waits, strategies.
        health, quota: shared with whoever shows them; this is their only writer.
        recorder: the ledger, or None.
        alarm: told of every attempt, and of every ladder that ended without an answer.
        budget: asked before a request leaves the machine; "" or why it may not be spent.
    """

    def __init__(
        self,
        *,
        backends: Mapping[str, Backend],
        look: Look,
        clock: Clock,
        settings: Settings,
        health: Health | None = None,
        quota: Quota | None = None,
        recorder: Recorder | None = None,
        alarm: Watcher | None = None,
        budget: Callable[[Target], str] | None = None,
    ) -> None:
        self.backends = backends
        self.clock = clock
        self.settings = settings
        self.health = health or Health()
        self.quota = quota or Quota()
        self._look = look
        self._recorder: Recorder = recorder or NoRecorder()
        self._budget = budget
        self.alarm = alarm
        self._turn = 0
        self._plans: dict[tuple[object, ...], tuple[World, int, Plan]] = {}
        # Wall clocks jump; what is counted from here on does not, and the later one is
        # believed, so that no jump makes a cooldown longer.
        self._unix_offset = clock.unix() - clock.monotonic()

    async def open(self, call: Call, *, avoid: frozenset[tuple[str, str]] = frozenset()) -> Answer:
        """
        Find who answers, and return at the first content.

        With `call.stream`, a model that loads or is pulled returns at its first `Progress`.
        *avoid* names `(provider, model)`s that are not to be asked.

        Raises:
            CascadeExhausted: nobody could; `.attempts` says why.
            InvalidRequest: the request is wrong in itself (also `UnknownModel`,
                `ContextTooLong`, `ContentFiltered`).
            PrivacyRefused: only somebody outside could have answered.
            DeadlineExceeded: the time ran out first.
        """
        world = await self._look(call)
        found = self.plan(call, world)
        if found.error is not None:
            raise found.error
        self._turn += 1
        ladder = Ladder(
            found,
            health=self.health,
            quota=self.quota,
            settings=self.settings.cascade,
            tokens=call.needs.prompt_tokens,
            turn=self._turn,
            avoid=avoid,
        )
        return await Climb(self, call, ladder, local_only=world.local_only).open()

    async def explain(self, call: Call) -> Plan:
        """The plan that `open` would follow now."""
        return self.plan(call, await self._look(call))

    def plan(self, call: Call, world: World) -> Plan:
        """The plan for *call*, kept while world and health stay as they are."""
        needs = call.needs
        key = (call.model, call.local_only, call.fallback, needs.tools, needs.vision)
        kept = self._plans.get(key)
        if (
            kept is not None
            and kept[0] is world
            and kept[1] == self.health.revision
            and kept[2].fits_tokens >= needs.prompt_tokens
            and kept[2].until_unix > self.now_unix()
        ):
            return kept[2]
        found = plan(call, self._measured(world))
        self._keep(key, world, found, call)
        return found

    def now_unix(self) -> float:
        """Seconds since 1970 that never run backwards."""
        return max(self.clock.unix(), self.clock.monotonic() + self._unix_offset)

    # --- for the climb ----------------------------------------------------------------------

    def backend(self, target: Target) -> Backend:
        """Who speaks to the target's provider."""
        found = self.backends.get(target.provider)
        if found is None:
            raise EngineUnavailable(f"nothing here speaks to `{target.provider}`")
        return found

    def over_budget(self, target: Target) -> str:
        """Why nothing more may be spent on *target* now, or ""."""
        return self._budget(target) if self._budget is not None else ""

    def won(self, call: Call, attempt: Ongoing, record: Attempt) -> None:
        """Learn from an answer that came whole."""
        now_unix = self.now_unix()
        target = attempt.target
        healed = self.health.succeeded(target, now_unix)
        self.health.note_first_token(target.route, attempt.first_token_s)
        if attempt.headers:
            self.quota.learn(target, attempt.headers, now_unix)
        if healed:
            self._recorder.drop_cooldowns(healed)
        self._recorder.record_attempt(
            record,
            call=call,
            target=target,
            usage=attempt.usage,
            first_token_s=attempt.first_token_s,
        )
        if self.alarm is not None:
            self.alarm.attempted(record)

    def lost(
        self, call: Call, attempt: Ongoing, record: Attempt, failure: Failure
    ) -> asyncio.Future[None] | None:
        """Learn from a failure; a future when a cooldown is being written for it."""
        entry = self.health.failed(attempt.target, failure, self.now_unix())
        self._recorder.record_attempt(
            record,
            call=call,
            target=attempt.target,
            first_token_s=attempt.first_token_s,
        )
        if self.alarm is not None:
            self.alarm.attempted(record)
        return self._recorder.save_cooldown(entry) if entry is not None else None

    # --- inside -----------------------------------------------------------------------------

    def _measured(self, world: World) -> World:
        return msgspec.structs.replace(
            world,
            health=self.health.view(),
            quota=self.quota,
            in_flight=self.quota.in_flight,
            first_token_s=self.health.first_token_s,
            now_unix=self.now_unix(),
        )

    def _keep(self, key: tuple[object, ...], world: World, found: Plan, call: Call) -> None:
        route = world.routes.get(call.model)
        measured = route is not None and route.strategy in plan_strategy.MEASURED
        if found.error or measured or call.needs.prompt_tokens > found.fits_tokens:
            return
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        self._plans[key] = (world, self.health.revision, found)

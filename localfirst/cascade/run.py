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
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from localfirst.cascade import continued, direct, hedge, plan_strategy, quota
from localfirst.cascade.answer import Answer
from localfirst.cascade.cache import Cache
from localfirst.cascade.climb import Climb
from localfirst.cascade.direct import Asked, ShortWay, short_way
from localfirst.cascade.health import Cooldown, Health, Place
from localfirst.cascade.ladder import Ladder
from localfirst.cascade.ongoing import Ongoing
from localfirst.cascade.plan import Plan, World, plan
from localfirst.cascade.quota import Quota, Window
from localfirst.cascade.watch import Watches
from localfirst.engines.base import Backend, Replying
from localfirst.errors import EngineUnavailable
from localfirst.events import Event, Reply, Usage
from localfirst.settings import Settings
from localfirst.types import Attempt, Call, Clock, Failure, Rung, Target

__all__ = ["Answer", "Cascade", "Recorder"]

# Plans are kept for as many different kinds of request at once.
PLANS_KEPT = 64
# A wall clock that drifts this far from the steady one within a process was set.
JUMP_S = 2.0

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
        breakage: str = "",
    ) -> None:
        """Remember one attempt, some time soon; *breakage* says what broke below HTTP."""
        ...

    def save_cooldown(self, entry: Cooldown) -> asyncio.Future[None] | None:
        """Write a cooldown at once; the future is done when it is on disk."""
        ...

    def drop_cooldowns(self, places: tuple[Place, ...]) -> None:
        """Forget cooldowns that a success has ended."""
        ...

    def save_windows(self, found: Mapping[quota.Place, Window]) -> None:
        """Remember what was learnt of a key's limits, some time soon."""
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
        breakage: str = "",
    ) -> None:
        """Forget it."""

    def save_cooldown(self, entry: Cooldown) -> asyncio.Future[None] | None:
        """Forget it."""
        del entry
        return None

    def drop_cooldowns(self, places: tuple[Place, ...]) -> None:
        """Nothing to drop."""

    def save_windows(self, found: Mapping[quota.Place, Window]) -> None:
        """Forget them."""


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
        cache: answers given before, or None; used when `cascade.cache_ttl_s` is set.
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
        cache: Cache | None = None,
        budget: Callable[[Target], str] | None = None,
    ) -> None:
        self.backends = backends
        self.replying = {
            name: backend for name, backend in backends.items() if isinstance(backend, Replying)
        }
        self.clock = clock
        self.settings = settings
        self.health = health or Health()
        self.quota = quota or Quota()
        self.watches = Watches()
        self._look = look
        self._recorder: Recorder = recorder or NoRecorder()
        self._budget = budget
        self.alarm = alarm
        self._cache = cache
        # Without these, the first candidate's answer is all there is to it.
        self._plain = cache is None and settings.cascade.hedge_after_s <= 0
        self._plain_streams = self._plain and not settings.cascade.continue_cut_streams
        self._turn = 0
        self._plans: dict[tuple[object, ...], tuple[World, int, Plan, ShortWay | None]] = {}
        self._unix_offset = clock.unix() - clock.monotonic()

    async def open(self, call: Call, *, avoid: frozenset[tuple[str, str]] = frozenset()) -> Answer:
        """
        Find who answers, and return at the first content.

        With `call.stream`, a model that loads or is pulled returns at its first `Progress`.
        *avoid* names `(provider, model)`s that are not to be asked, "" for all of one's.

        Raises:
            CascadeExhausted: nobody could; `.attempts` says why.
            InvalidRequest: the request is wrong in itself (also `UnknownModel`,
                `ContextTooLong`, `ContentFiltered`).
            PrivacyRefused: only somebody outside could have answered.
            DeadlineExceeded: the time ran out first.
        """
        world = await self._look(call)
        now_unix = self.now_unix()
        found, way = self._planned(call, world, now_unix)
        if found.error is not None:
            raise found.error
        plain = self._plain_streams if call.stream else self._plain
        if way is None or not plain or avoid or call.deadline_s:
            return await self._open(call, found, world, avoid)
        if not direct.may_go(self, call, way, now_unix):
            return await self._climb(call, found, world).open()
        if call.stream:
            return await self._climb(call, found, world, way=way).open()
        climb = functools.partial(self._climb, call, found, world)
        return await direct.answer(self, call, way, now_unix, climb)

    async def _open(
        self, call: Call, found: Plan, world: World, avoid: frozenset[tuple[str, str]]
    ) -> Answer:
        """What the settings ask for beside the first answer: kept ones, races, continuations."""
        limits = self.settings.cascade
        if limits.continue_cut_streams and continued.possible(call):
            call.relay = False

        def start(without: frozenset[tuple[str, str]]) -> Climb:
            return self._climb(call, found, world, avoid | without)

        kept = self._cache.key(call, found) if self._cache is not None and not avoid else None
        if self._cache is not None and kept is not None:
            events = await self._cache.get(kept[0])
            if events:
                return start(frozenset()).replayed(kept[1], events)
        if limits.hedge_after_s > 0:
            never = frozenset(
                (step.target.provider, step.target.model)
                for step in found.steps
                if step.target.rung is Rung.PULL
            )
            answer = await hedge.open(start, limits.hedge_after_s, never=never)
        else:
            answer = await start(frozenset()).open()
        if limits.continue_cut_streams and not avoid and continued.possible(call):
            answer.wrap(self._continued)
        if self._cache is not None and kept is not None and answer.target.route == kept[1].route:
            answer.wrap(functools.partial(self._cache.keep, kept[0]))
        return answer

    async def explain(self, call: Call) -> Plan:
        """The plan that `open` would follow now."""
        return self.plan(call, await self._look(call))

    def plan(self, call: Call, world: World) -> Plan:
        """The plan for *call*, kept while world and health stay as they are."""
        return self._planned(call, world, self.now_unix())[0]

    def _planned(self, call: Call, world: World, now_unix: float) -> tuple[Plan, ShortWay | None]:
        """The plan for *call*, and its short way while there is one."""
        needs = call.needs
        key = (call.model, call.local_only, call.fallback, needs.tools, needs.vision)
        kept = self._plans.get(key)
        if (
            kept is not None
            and kept[0] is world
            and kept[1] == self.health.revision
            and kept[2].fits_tokens >= needs.prompt_tokens
            and kept[2].until_unix > now_unix
        ):
            return kept[2], kept[3]
        found = plan(call, self._measured(world))
        return found, self._keep(key, world, found, call)

    def now_unix(self) -> float:
        """Seconds since 1970, by the wall; cooldowns are moved when it is set back."""
        now_unix = self.clock.unix()
        jumped_s = now_unix - self.clock.monotonic() - self._unix_offset
        if abs(jumped_s) > JUMP_S:
            self._unix_offset += jumped_s
            if jumped_s < 0:
                # Nothing lasts longer because a clock was wrong. When it is set forward, or
                # after a suspend, waits end early instead, which costs a request at most.
                self.health.shift(jumped_s)
                self.quota.shift(jumped_s)
        return now_unix

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

    def began(self, target: Target) -> None:
        """Learn from a first content: whoever waited for *target* to recover may come."""
        if healed := self.health.began(target):
            self._recorder.drop_cooldowns(healed)

    def won(
        self,
        call: Call,
        target: Target,
        record: Attempt,
        *,
        usage: Usage | None,
        headers: tuple[tuple[str, str], ...],
        first_token_s: float,
    ) -> None:
        """Learn from an answer that came whole."""
        # By the steady clock: a jump of the other is looked for once a request.
        now_unix = record.started_unix + record.duration_s
        healed = self.health.succeeded(target)
        self.health.note_first_token(target.route, first_token_s)
        if limits := self.quota.learn(target, headers, now_unix):
            self._recorder.save_windows(limits)
        if healed:
            self._recorder.drop_cooldowns(healed)
        self._recorder.record_attempt(
            record, call=call, target=target, usage=usage, first_token_s=first_token_s
        )
        if self.alarm is not None:
            self.alarm.attempted(record)

    def judged(self, reply: Reply, *, fulfilled: bool) -> None:
        """Learn whether a whole answer was what its schema asked for."""
        provider = reply.route.partition("/")[0]
        target = Target(rung=reply.rung, provider=provider, model=reply.model)
        entry = self.health.judged(target, fulfilled=fulfilled, now_unix=self.now_unix())
        if entry is not None:
            self._recorder.save_cooldown(entry)

    def taught(self, call: Call, attempt: Ongoing, record: Attempt) -> None:
        """Remember a request that was refused for a field: sent and paid for, nobody's failure."""
        self.over_budget(attempt.target)
        self._recorder.record_attempt(record, call=call, target=attempt.target)

    def left(
        self, call: Call, target: Target, record: Attempt, usage: Usage | None, first_s: float
    ) -> None:
        """Remember a request that its caller left: sent, perhaps paid for, nobody's failure."""
        self.health.left(target)
        self._recorder.record_attempt(
            record, call=call, target=target, usage=usage, first_token_s=first_s
        )

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
            breakage=failure.breakage,
        )
        if self.alarm is not None:
            self.alarm.attempted(record)
        return self._recorder.save_cooldown(entry) if entry is not None else None

    # --- inside -----------------------------------------------------------------------------

    def _climb(
        self,
        call: Call,
        found: Plan,
        world: World,
        avoid: frozenset[tuple[str, str]] = frozenset(),
        way: ShortWay | None = None,
        asked: Asked | None = None,
    ) -> Climb:
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
        return Climb(self, call, ladder, local_only=world.local_only, way=way, asked=asked)

    def _continued(
        self, climb: Climb, rest: AsyncGenerator[Event, None]
    ) -> AsyncGenerator[Event, None]:
        return continued.events(climb, rest, lambda call, avoid: self.open(call, avoid=avoid))

    def _measured(self, world: World) -> World:
        return msgspec.structs.replace(
            world,
            health=self.health.view(),
            quota=self.quota,
            in_flight=self.quota.in_flight,
            first_token_s=self.health.first_token_s,
            now_unix=self.now_unix(),
        )

    def _keep(
        self, key: tuple[object, ...], world: World, found: Plan, call: Call
    ) -> ShortWay | None:
        route = world.routes.get(call.model)
        measured = route is not None and route.strategy in plan_strategy.MEASURED
        if found.error or measured or call.needs.prompt_tokens > found.fits_tokens:
            return None
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        way = None
        if not (world.local_only or call.local_only):
            view, now_unix = self.health.view(), self.now_unix()
            way = short_way(found, view, self.replying, self.settings, now_unix)
        self._plans[key] = (world, self.health.revision, found, way)
        return way

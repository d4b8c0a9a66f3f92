"""
Keeping `ollama serve` running: found, adopted, started, watched, restarted, stopped.

    STOPPED ──ensure──▶ STARTING ──answers──▶ READY ──exits, hangs──▶ BACKOFF ──▶ STARTING
                           │ fails                                       │ too often
                           └──────────▶ BACKOFF                          ▼
                READY ──stop──▶ STOPPING ──▶ STOPPED                 CRASH_LOOP

One run loop owns the child and alone changes the state. What a person or a service started is
adopted and never stopped; what a localfirst started is stopped by the last one that uses it.
Ready means that it answers as an Ollama, not that a port is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from localfirst.engines import launch
from localfirst.engines.joint import Joint
from localfirst.engines.launch import Seen
from localfirst.engines.life import Life, Pace
from localfirst.engines.record import Record, Started, contested
from localfirst.errors import EngineUnavailable
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Clock

log = logging.getLogger("localfirst.engines")


class ChildState(StrEnum):
    """Where the daemon is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    CRASH_LOOP = "crash_loop"


class Supervisor:
    """
    The one daemon of this machine, as far as localfirst is concerned.

    `state`, `endpoint`, `adopted`, `reason` and `starts` are written only by the run loop
    and by `stop`, and read by anyone. `places` are looked at beside PATH for the program.
    """

    def __init__(
        self,
        host: str,
        *,
        state_dir: Path | None,
        upstream: UpstreamClient,
        clock: Clock,
        environ: Mapping[str, str],
        models_dir: str = "",
        offline: bool = False,
        keep_alive_s: float = 300.0,
        may_start: bool = True,
        places: Sequence[str] = launch.PLACES,
        pace: Pace = Pace(),  # noqa: B008
    ) -> None:
        self.state = ChildState.STOPPED
        self.endpoint = launch.connectable(host)
        self.adopted = False
        self.reason = ""
        self.starts = 0
        self._wanted_endpoint = self.endpoint
        self._record = Record(state_dir)
        self._upstream = upstream
        self._clock = clock
        self._environ = environ
        self._models_dir = models_dir
        self._offline = offline
        self._keep_alive_s = keep_alive_s
        self.may_start = may_start and state_dir is not None
        self.places = places
        self._pace = pace
        self._by = launch.fingerprint(models_dir, offline, keep_alive_s)
        self._life: Life | None = None
        self._joint: Joint | None = None
        self._doubt = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: EngineUnavailable | None = None
        self._changed = asyncio.Event()
        self._failures: list[float] = []
        self._resting_until = 0.0
        self._stops = 0

    # --- asked -----------------------------------------------------------------------------

    @property
    def owned(self) -> bool:
        """Whether a daemon runs that we look after."""
        mine = self._joint.mine if self._joint is not None else not self.adopted
        return self.state is ChildState.READY and mine

    @property
    def at_work(self) -> bool:
        """Whether there is a daemon that a localfirst started, or will be."""
        return self._task is not None and not self._task.done()

    @property
    def pid(self) -> int | None:
        """The child's process, while it is our child."""
        child = self._life.child if self._life is not None else None
        return child.pid if child is not None else None

    async def ensure(self) -> str:
        """
        Have a daemon that answers, and return its endpoint.

        Raises:
            EngineUnavailable: not installed, not allowed, or it keeps failing; says why.
        """
        stops = self._stops
        while True:
            if self.state is ChildState.READY and await self._still_there():
                return self.endpoint
            await self._next_change()
            if self._stops != stops:
                raise EngineUnavailable("the engine was stopped", code="ollama-stopped")
            if self._error is not None and not self.at_work:
                raise self._error

    async def _next_change(self) -> None:
        """
        Wait for another state, with a run loop that works on it.

        A ready daemon that does not answer may answer again without any change, so it is
        looked at anew after a while.
        """
        changed = self._changed
        self._begin()
        ready = self.state is ChildState.READY
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace.try_s if ready else None):
                await changed.wait()

    def doubt(self) -> None:
        """
        Somebody was refused by a daemon that is held to be ready: `ensure` looks again.

        The doubt holds, for everybody who asks, until the daemon was seen to answer.
        """
        self._doubt.set()

    def met(self) -> bool:
        """Whether a daemon that answers may be used as it is; with False `ensure` comes first."""
        if not self.at_work and self.state is ChildState.STOPPED:
            started = self._record.read()
            if started is not None and started.endpoint == self.endpoint and started.alive:
                return False
            self._task = asyncio.ensure_future(self._run(met=True))
        return True

    async def stop(self) -> None:
        """Leave the daemon; returns once it is gone if nobody else uses ours. Idempotent."""
        self._stops += 1
        if self._task is not None and not self._task.done():
            self._become(ChildState.STOPPING)
            self._task.cancel()
            await asyncio.wait({self._task})
            if self.state is ChildState.STOPPING:  # it was cancelled before its first step
                self._become(ChildState.STOPPED)
        elif self.adopted:
            self.adopted = False
            self._become(ChildState.STOPPED)

    async def aclose(self) -> None:
        """As `stop`."""
        await self.stop()

    def ask_over(self, upstream: UpstreamClient) -> None:
        """Look at the daemon over *upstream* from now on."""
        self._upstream = upstream
        for asking in (self._life, self._joint):
            if asking is not None:
                asking.upstream = upstream

    def forgive(self) -> None:
        """Forget past failures: the configuration changed, or a person asks again."""
        self._failures.clear()
        self._resting_until = 0.0
        if self.state is ChildState.CRASH_LOOP:
            self._become(ChildState.STOPPED)

    async def _still_there(self) -> bool:
        if self.at_work:
            # A child's end is known a moment after its socket refuses: whoever was refused
            # waits for the state that tells of it.
            if self._doubt.is_set() and await self._look(self.endpoint) is Seen.OLLAMA:
                self._doubt.clear()
            return not self._doubt.is_set()
        if await self._look(self.endpoint) is Seen.OLLAMA:
            return True
        self.adopted = False
        self._become(ChildState.STOPPED, "the Ollama that was in use has stopped")
        return False

    def _begin(self) -> None:
        if self.at_work:
            return
        if self._resting_until > self._clock.monotonic():
            assert self._error is not None, "a rest has a reason"
            raise self._error
        self._error = None
        self._task = asyncio.ensure_future(self._run())

    def _become(self, state: ChildState, reason: str = "") -> None:
        if state is not self.state:
            log.info("ollama is %s%s", state, f": {reason}" if reason else "")
        self.state, self.reason = state, reason
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _look(self, endpoint: str) -> Seen:
        return await launch.look(endpoint, self._upstream, self._pace.try_s)

    # --- the run loop ------------------------------------------------------------------------

    async def _run(self, *, met: bool = False) -> None:
        """Adopt, or own a child until it is not wanted any more."""
        try:
            if not (met and await self._meet()) and not await self._adopt():
                await self._own()
        except EngineUnavailable as error:
            self._give_up(error)
        except asyncio.CancelledError:
            self.adopted = False
            self._become(ChildState.STOPPED)
        except Exception as error:
            log.exception("the supervisor failed")
            self._give_up(EngineUnavailable(f"cannot supervise Ollama: {error}"))
        finally:
            self._record.release()

    def _give_up(self, error: EngineUnavailable) -> None:
        self._error = error
        loop = error.code == "ollama-crash-loop"
        if loop:
            self._resting_until = self._clock.monotonic() + self._pace.rest_s
        self._become(ChildState.CRASH_LOOP if loop else ChildState.STOPPED, error.message)

    async def _adopt(self) -> bool:
        """True with a daemon that others made; False with the right to make one."""
        self._become(ChildState.STARTING)
        while True:
            if await self._adopted_one():
                return True
            if not self.may_start:
                raise EngineUnavailable(
                    f"no Ollama answers at {self._wanted_endpoint}", code="ollama-not-running"
                )
            if self._record.try_own():
                return False
            # Another localfirst starts one at this moment: use what it makes.
            await self._clock.sleep(self._pace.poll_s)

    async def _adopted_one(self) -> bool:
        """Use a daemon that answers: the configured one, or what another localfirst made."""
        # Held before the look: what answers then is ended by nobody else.
        if not self._record.use():
            return False
        started = self._record.read()
        ours = started if started is not None and started.alive else None
        for endpoint in dict.fromkeys([self._wanted_endpoint, *([ours.endpoint] if ours else [])]):
            seen = await launch.look(
                endpoint, self._upstream, self._pace.try_s, tries=self._pace.strikes
            )
            if seen is not Seen.OLLAMA:
                continue
            self.endpoint = endpoint
            if ours and ours.endpoint == endpoint:
                await self._share(self._record, ours)
                return True
            return await self._meet()
        self._record.leave()
        return False

    async def _share(self, record: Record, started: Started) -> None:
        """Use, with *record*'s leave, what another localfirst started."""
        joint = self._joint = Joint(
            record,
            started,
            upstream=self._upstream,
            clock=self._clock,
            pace=self._pace,
            doubt=self._doubt,
        )
        self.adopted = True
        self._doubt.clear()
        other = "it runs by the settings of another localfirst until nobody uses it"
        differs = started.by not in {"", self._by}
        self._become(ChildState.READY, other if differs else "")
        try:
            why = await joint.see_through()
        finally:
            self._joint, self.adopted = None, False
        self._become(ChildState.STOPPED, why)

    async def _meet(self) -> bool:
        """Use what answers, as one of ours if a localfirst started it; False if it is ended now."""
        self._record.leave()
        found = None
        if launch.startable_at(self.endpoint):
            found = await asyncio.to_thread(self._record.found_at, self.endpoint)
        if found is None:
            self.adopted = True
            self._become(ChildState.READY)
            return True
        record, started = found
        if not record.use() or not started.alive:
            record.leave()
            return False
        await self._share(record, started)
        return True

    async def _own(self) -> None:
        await self._use()
        self._record.end_orphans()
        while True:
            why = await self._one_life()
            delay_s = self._count_failure(why)
            self._become(ChildState.BACKOFF, why)
            await self._clock.sleep(delay_s)
            self._become(ChildState.STARTING)
            if await self._adopted_one():  # a person was quicker
                return

    def _count_failure(self, why: str) -> float:
        """Seconds to wait before the next start; raises when there were too many."""
        now = self._clock.monotonic()
        self._failures = [at for at in self._failures if now - at < self._pace.window_s] + [now]
        count = len(self._failures)
        if count >= self._pace.budget:
            self._failures.clear()
            raise EngineUnavailable(
                f"Ollama failed {count} times in a row: {why}",
                hint="read the log in the state folder, then run `localfirst serve` again",
                code="ollama-crash-loop",
            )
        grown_s: float = self._pace.backoff_s * 2 ** (count - 1)
        return min(self._pace.backoff_max_s, grown_s)

    async def _use(self) -> None:
        """Once nobody ends a daemon of ours any more, which takes no longer than the grace."""
        while not self._record.use():
            await self._clock.sleep(self._pace.poll_s)

    async def _one_life(self) -> str:
        """Start a child and see it through, or leave it to others; returns why it is no more."""
        await self._use()
        program = launch.find_program(self._environ, self.places)
        self.endpoint, elsewhere = await launch.free_endpoint(
            self._wanted_endpoint, self._upstream, self._pace.try_s
        )
        env = launch.daemon_environ(
            self._environ,
            port=launch.port_of(self.endpoint),
            marks=self._record.marks,
            models_dir=self._models_dir,
            offline=self._offline,
            keep_alive_s=self._keep_alive_s,
        )
        self._life = Life(
            self.endpoint, upstream=self._upstream, clock=self._clock, pace=self._pace
        )
        child = self._life.start(program, env, self._record.log())
        others = False
        try:
            self.starts += 1
            self._record.write(
                Started(pid=child.pid, birth=child.birth, endpoint=self.endpoint, by=self._by)
            )
            if why := await self._life.until_ready(contested):
                return why
            self.adopted = False
            self._doubt.clear()
            self._become(ChildState.READY, elsewhere)
            return await self._life.watch()
        except asyncio.CancelledError:
            others = not self._record.last()
            raise
        finally:
            if others:
                log.info("ollama is left to another localfirst, which uses it")
                self._life.leave()
            else:
                await self._life.end()
                self._record.forget()

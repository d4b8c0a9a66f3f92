"""
Keeping `ollama serve` running: found, adopted, started, watched, restarted, stopped.

    STOPPED ──ensure──▶ STARTING ──answers──▶ READY ──exits, hangs──▶ BACKOFF ──▶ STARTING
                           │ fails                                       │ too often
                           └──────────▶ BACKOFF                          ▼
                READY ──stop──▶ STOPPING ──▶ STOPPED                 CRASH_LOOP

One run loop owns the child and alone changes the state. What somebody else started is
adopted and never stopped. Ready means that it answers as an Ollama, not that a port is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from localfirst.engines import launch
from localfirst.engines.launch import Seen
from localfirst.engines.life import Life, Pace
from localfirst.engines.record import Record, Started
from localfirst.errors import EngineUnavailable
from localfirst.transport import process
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
        self._life: Life | None = None
        self._doubt = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: EngineUnavailable | None = None
        self._changed = asyncio.Event()
        self._failures: list[float] = []
        self._resting_until = 0.0
        self._elsewhere = ""
        self._stops = 0

    # --- asked -----------------------------------------------------------------------------

    @property
    def owned(self) -> bool:
        """Whether a daemon runs that is ours to stop."""
        return self.state is ChildState.READY and not self.adopted

    @property
    def at_work(self) -> bool:
        """Whether there is a daemon of ours, or will be."""
        return not self._idle

    @property
    def orphaned(self) -> bool:
        """Whether the daemon that answers is of a localfirst that is gone: `ensure` takes it on."""
        if self.state is not ChildState.STOPPED or not self.may_start:
            return False
        started = self._record.read()
        return started is not None and started.endpoint == self.endpoint and started.alive

    @property
    def pid(self) -> int | None:
        """The child's process, while it is our child."""
        child = self._life.child if self._life is not None else None
        return child.pid if child is not None else None

    @property
    def log_bytes(self) -> int:
        """How much that child has written in all."""
        return self._life.log.total_bytes if self._life is not None else 0

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
            if self._error is not None and self._idle:
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

    async def stop(self) -> None:
        """End the daemon if it is ours; returns once it is gone. Idempotent."""
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
        if self._life is not None:
            self._life.upstream = upstream

    def forgive(self) -> None:
        """Forget past failures: the configuration changed, or a person asks again."""
        self._failures.clear()
        self._resting_until = 0.0
        if self.state is ChildState.CRASH_LOOP:
            self._become(ChildState.STOPPED)

    @property
    def _idle(self) -> bool:
        return self._task is None or self._task.done()

    async def _still_there(self) -> bool:
        if not self.adopted:
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
        if not self._idle:
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

    async def _run(self) -> None:
        """Adopt, or own a child until it is not wanted any more."""
        self._become(ChildState.STARTING)
        try:
            if not await self._adopt():
                await self._own()
        except EngineUnavailable as error:
            self._give_up(error)
        except asyncio.CancelledError:
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
        started = self._record.read()
        ours = started if started is not None and started.alive else None
        for endpoint in dict.fromkeys([self._wanted_endpoint, *([ours.endpoint] if ours else [])]):
            if await self._patient_look(endpoint) is not Seen.OLLAMA:
                continue
            self.endpoint = endpoint
            if ours and ours.endpoint == endpoint and self._record.try_own():
                await self._inherit(ours)
                return True
            self.adopted = True
            self._become(ChildState.READY)
            return True
        return False

    async def _patient_look(self, endpoint: str) -> Seen:
        """Look again while it is silent: a daemon accepts before it answers."""
        seen = Seen.SILENT
        for _ in range(self._pace.strikes):
            seen = await self._look(endpoint)
            if seen is not Seen.SILENT:
                break
        return seen

    async def _inherit(self, started: Started) -> None:
        """Own the daemon of a localfirst that died: watch it, and stop it when we stop."""
        self.adopted = False
        self._doubt.clear()
        self._become(ChildState.READY, "taken over from a localfirst that ended")
        try:
            why = await self._watch_inherited(started)
        finally:
            await asyncio.shield(asyncio.ensure_future(self._end_inherited(started)))
        self._become(ChildState.STOPPED, why)

    async def _watch_inherited(self, started: Started) -> str:
        """Why it is no more; nobody but its own parent is told of its end, so it is looked at."""
        strikes = 0
        while started.alive:
            if strikes >= self._pace.strikes:
                return f"the daemon did not answer {strikes} times in a row"
            if self._doubt.is_set():
                await self._clock.sleep(self._pace.poll_s)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.health_s):
                        await self._doubt.wait()
            seen = await self._look(started.endpoint)
            strikes = 0 if seen is Seen.OLLAMA else strikes + 1
            if not strikes:
                self._doubt.clear()
        return "the daemon ended"

    async def _end_inherited(self, started: Started) -> None:
        process.end(started.pid, started.birth)
        deadline = self._clock.monotonic() + self._pace.grace_s
        while started.alive and self._clock.monotonic() < deadline:
            await self._clock.sleep(self._pace.poll_s)
        process.end(started.pid, started.birth, force=True)
        self._record.end_orphans()
        self._record.forget()

    async def _own(self) -> None:
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

    async def _one_life(self) -> str:
        """Start a child and see it through; returns why it is no more."""
        program = launch.find_program(self._environ, self.places)
        self.endpoint = await self._free_endpoint()
        env = launch.daemon_environ(
            self._environ,
            port=launch.port_of(self.endpoint),
            marker=self._record.marker,
            models_dir=self._models_dir,
            offline=self._offline,
            keep_alive_s=self._keep_alive_s,
        )
        self._life = Life(
            self.endpoint, upstream=self._upstream, clock=self._clock, pace=self._pace
        )
        child = self._life.start(program, env, self._record.log_file)
        try:
            self.starts += 1
            self._record.write(Started(pid=child.pid, birth=child.birth, endpoint=self.endpoint))
            if why := await self._life.until_ready():
                return why
            self.adopted = False
            self._doubt.clear()
            self._become(ChildState.READY, self._elsewhere)
            return await self._life.watch()
        finally:
            await self._life.end()
            self._record.forget()

    async def _free_endpoint(self) -> str:
        """The configured address if nobody has it, else another port, saying who has it."""
        wanted = self._wanted_endpoint
        self._elsewhere = ""
        if launch.startable_at(wanted):
            if await self._look(wanted) is Seen.NOTHING:
                return wanted
            port = launch.port_of(wanted)
            who = await asyncio.to_thread(launch.holder_of, port) or "another program"
            self._elsewhere = f"port {port} is taken by {who}, which is no Ollama"
            log.warning("%s", self._elsewhere)
        return f"http://127.0.0.1:{launch.free_port()}"

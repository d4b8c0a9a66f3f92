"""
The loaded models: one child each, loaded one at a time, unloaded when idle or in the way.

The pool owns every runner. It alone starts and stops them, remembers how they died, and
makes room in memory before it loads another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from localfirst.engines.experience import Experience, Loading
from localfirst.engines.llamacpp import room
from localfirst.engines.llamacpp.plan import MIN_CONTEXT_TOKENS, ChildPlan
from localfirst.engines.llamacpp.runner import STOP_GRACE_S, Runner
from localfirst.engines.queue import busy
from localfirst.errors import EngineUnavailable, LocalFirstError, Unavailable, UpstreamError
from localfirst.machine.fit import Fit, Hardware, ModelShape
from localfirst.transport.childlog import RotatedFile
from localfirst.types import Clock

log = logging.getLogger("localfirst.engines")

Key = tuple[str, bool]
"""A model's name, and whether it is loaded for embeddings."""

SWEEP_S = 2.0
PATIENCE = 3  # failures in a row before a model is given a rest
REST_FIRST_S, REST_MAX_S = 0.5, 30.0


CAREFUL_S = 600.0
"""How long a model stays smaller after memory ran out under it."""


class Trouble(msgspec.Struct):
    """How a model failed lately; a success wipes out the failures, time the caution."""

    failures: int = 0
    rest_until: float = 0.0
    largest_context: int = 0
    careful_until: float = 0.0


class Pool:
    """Runners by key. `load` is single-flight: callers who want the same model share it."""

    def __init__(
        self,
        *,
        clock: Clock,
        environ: Mapping[str, str],
        hardware: Callable[[], Hardware],
        log_dir: Path | None = None,
        experience: Experience | None = None,
    ) -> None:
        self._clock = clock
        self._environ = environ
        self._hardware = hardware
        self._log_dir = log_dir
        self._experience = experience or Experience(None)
        self._runners: dict[Key, Runner] = {}
        self._loads: dict[Key, asyncio.Task[Runner]] = {}
        self._ending: dict[Key, asyncio.Task[None]] = {}
        self._trouble: dict[Key, Trouble] = {}
        self._claims: Counter[Key] = Counter()
        self._one_load = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    # --- asking ------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self, key: Key) -> Iterator[None]:
        """Somebody wants *key* now: it is not taken for idle, loaded or still loading."""
        self._claims[key] += 1
        try:
            yield
        finally:
            self._claims[key] -= 1
            if (runner := self._runners.get(key)) is not None:
                runner.touch()

    def _idle(self, key: Key) -> bool:
        return not self._claims[key] and not self._runners[key].in_flight

    def runner(self, key: Key) -> Runner | None:
        """The live runner of *key*, if it is loaded."""
        runner = self._runners.get(key)
        return runner if runner is not None and runner.alive else None

    def loaded(self) -> list[tuple[Key, Runner]]:
        """Every live runner with its key."""
        return [(key, runner) for key, runner in self._runners.items() if runner.alive]

    def get(
        self, key: Key, plan: ChildPlan, shape: ModelShape, load_s: float, keep_alive_s: float
    ) -> asyncio.Task[Runner] | Runner:
        """
        The runner of *key* if it will do, else the task that is loading one.

        The task belongs to the pool: a caller that goes away does not stop a load that
        others wait for, and the next request finds the model warm. A runner whose context
        is shorter than asked for will do when it was as long as the memory allowed; one of
        other files, which had that name before, will not.

        Raises:
            EngineUnavailable: the pool is closed.
        """
        if self._closed:
            raise EngineUnavailable("the engine is closed")
        if (task := self._loads.get(key)) is not None:
            return task
        runner = self.runner(key)
        long_enough = runner is not None and runner.asked_tokens >= self._context(key, plan)
        if runner is not None and long_enough and runner.plan.files == plan.files:
            return runner
        task = asyncio.ensure_future(self._load(key, plan, shape, load_s, keep_alive_s))
        self._loads[key] = task
        task.add_done_callback(lambda done: self._loaded(key, done))
        return task

    def _context(self, key: Key, plan: ChildPlan) -> int:
        trouble = self._trouble.get(key)
        if trouble is None or trouble.careful_until < self._clock.monotonic():
            return plan.context_tokens
        return min(plan.context_tokens, trouble.largest_context)

    def _loaded(self, key: Key, task: asyncio.Task[Runner]) -> None:
        self._loads.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen; whoever waits gets it from the task itself

    # --- loading -------------------------------------------------------------------------

    async def _load(
        self, key: Key, plan: ChildPlan, shape: ModelShape, load_s: float, keep_alive_s: float
    ) -> Runner:
        self._refuse_while_resting(key)
        async with self._one_load:
            await self._retire(key)
            asked_tokens = self._context(key, plan)
            plan = msgspec.structs.replace(plan, context_tokens=asked_tokens)
            plan, tight = await self._make_room(plan, shape)
            runner = Runner(plan, self._clock, keep_alive_s, tight=tight)
            runner.asked_tokens = asked_tokens
            runner.predicted = room.predict(plan, shape, await asyncio.to_thread(self._hardware))
            self._runners[key] = runner
            try:
                await runner.start(self._environ, load_s, self._log_file(key))
            except (UpstreamError, Unavailable):
                self._runners.pop(key, None)
                self._mourn(key, runner, failed=True)
                raise
            except BaseException:
                self._runners.pop(key, None)
                raise
            self._sweep_soon()
            return runner

    def _refuse_while_resting(self, key: Key) -> None:
        trouble = self._trouble.get(key)
        left = trouble.rest_until - self._clock.monotonic() if trouble else 0.0
        if trouble is not None and left > 0:
            raise Unavailable(
                f"`{key[0]}` failed {trouble.failures} times in a row and rests for {left:.0f} s",
                retry_after_s=left,
                code="model-resting",
            )

    async def _retire(self, key: Key) -> None:
        """End the runner that the new one replaces, once its last answer is out."""
        if (ending := self._ending.get(key)) is not None:
            await asyncio.wait({ending})
        old = self._runners.get(key)
        if old is None:
            return
        while old.alive and old.in_flight:
            await self._clock.sleep(0.02)
        if not old.alive:
            self._mourn(key, old, failed=old.in_flight > 0)
        await self._end(key, old)

    async def _make_room(self, plan: ChildPlan, shape: ModelShape) -> tuple[ChildPlan, bool]:
        """
        Make the new model fit: fewer slots, then idle models unloaded, least lately used
        first, then a shorter context; or refuse. True when the result is tight.
        """
        hardware = await asyncio.to_thread(self._hardware)
        plan = room.arranged(plan, shape, hardware)
        while not room.fits(found := self._predict(plan, shape, hardware)):
            # Whatever is dead and not yet swept up is idle, too, and its memory is back.
            idle = [key for key in self._runners if self._idle(key)]
            if not idle:
                break
            oldest = min(idle, key=lambda key: self._runners[key].last_used)
            log.info("unloading %s to make room for %s", oldest[0], plan.alias)
            await self._end(oldest, self._runners[oldest])
            hardware = await asyncio.to_thread(self._hardware)
        if found is None or room.fits(found):
            return room.placed(plan, found), room.tight(found)
        if self._runners:
            raise busy(f"no memory for `{plan.alias}` while other models answer", 5.0)
        return self._shortened(plan, shape, hardware, found), True

    def _shortened(
        self, plan: ChildPlan, shape: ModelShape, hardware: Hardware, found: Fit
    ) -> ChildPlan:
        """*plan* with a context that fits, if only tightly; raises where no useful one does."""
        size = plan.context_tokens // 2
        while found.max_context_tokens < MIN_CONTEXT_TOKENS <= size:
            shorter = msgspec.structs.replace(plan, context_tokens=size, parallel=1)
            if room.fits(self._predict(shorter, shape, hardware)):
                return shorter
            size //= 2
        return room.shortened(plan, found)

    def _predict(self, plan: ChildPlan, shape: ModelShape, hardware: Hardware) -> Fit | None:
        """What loading *plan* will take, by formula and by what it took before."""
        found = room.predict(plan, shape, hardware)
        return found and self._experience.applied(found, _loading(plan))

    def _log_file(self, key: Key) -> RotatedFile | None:
        if self._log_dir is None:
            return None
        name = "".join(letter if letter.isalnum() else "_" for letter in key[0])
        return RotatedFile(self._log_dir / f"llamacpp-{name}.log")

    # --- trouble -------------------------------------------------------------------------

    def note_success(self, key: Key) -> None:
        """An answer came: what happened before no longer counts."""
        if (trouble := self._trouble.get(key)) is not None:
            trouble.failures = 0
        runner = self._runners.get(key)
        if runner is not None and runner.predicted is not None:
            loading = _loading(runner.plan)
            self._experience.note_resident(runner.predicted, loading, runner.resident_bytes())
            self._experience.note_speed(loading, *runner.spoke)
            runner.spoke = (0, 0.0)

    async def bury(self, key: Key, runner: Runner) -> None:
        """Take a dead runner out, so that the next request makes another."""
        self._mourn(key, runner, failed=True)
        await self._end(key, runner, grace_s=0)

    def _mourn(self, key: Key, runner: Runner, *, failed: bool) -> None:
        """Note a death once, whoever sees it first; *failed* when an answer or a load did."""
        if runner.mourned:
            return
        runner.mourned = True
        self._note_death(key, runner)
        if failed:
            self._note_failure(key)

    def _note_failure(self, key: Key) -> None:
        trouble = self._trouble.setdefault(key, Trouble())
        trouble.failures += 1
        if trouble.failures >= PATIENCE:
            rest_s = min(REST_MAX_S, REST_FIRST_S * 2 ** (trouble.failures - PATIENCE))
            trouble.rest_until = self._clock.monotonic() + rest_s

    def _note_death(self, key: Key, runner: Runner) -> None:
        """
        Try less the next time when the system took the memory back.

        A kill that we did not send is taken for that when the fit was tight, or when it
        happened twice: a single one may have been a person's.
        """
        if runner.child is None or not runner.child.killed:
            return
        trouble = self._trouble.setdefault(key, Trouble())
        if runner.tight or trouble.failures >= 1:
            trouble.largest_context = max(MIN_CONTEXT_TOKENS, runner.plan.context_tokens // 2)
            trouble.careful_until = self._clock.monotonic() + CAREFUL_S

    # --- unloading -----------------------------------------------------------------------

    async def unload(self, key: Key) -> bool:
        """Take a model out of memory once its answers are out; False when it was not there."""
        if self.runner(key) is None:
            return False
        # It may be replaced by one with a longer context while its answers are waited for.
        while (runner := self.runner(key)) is not None and runner.in_flight:
            await self._clock.sleep(0.02)
        if runner is not None:
            await self._end(key, runner)
        return True

    async def _end(self, key: Key, runner: Runner, grace_s: float = STOP_GRACE_S) -> None:
        """End a child; a load of the same model waits for it, so that there never are two."""
        if self._runners.get(key) is runner:
            del self._runners[key]
        ending = asyncio.ensure_future(runner.stop(grace_s))
        self._ending[key] = ending
        ending.add_done_callback(lambda done: self._ended(key, done))
        await asyncio.shield(ending)

    def _ended(self, key: Key, ending: asyncio.Task[None]) -> None:
        if self._ending.get(key) is ending:
            del self._ending[key]

    def _sweep_soon(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.ensure_future(self._sweep())

    async def _sweep(self) -> None:
        """Unload what is idle; ends by itself when nothing is loaded."""
        while self._runners and not self._closed:
            now = self._clock.monotonic()
            for key, runner in list(self._runners.items()):
                idle = not self._claims[key] and runner.idle_at <= now
                if runner.address and (idle or not runner.alive):
                    if not runner.alive:
                        self._mourn(key, runner, failed=runner.in_flight > 0)
                    await self._end(key, runner)
            await self._clock.sleep(SWEEP_S)

    async def aclose(self) -> None:
        """End every child; idempotent."""
        self._closed = True
        tasks: list[asyncio.Task[Runner] | asyncio.Task[None]] = [*self._loads.values()]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await _settled(tasks)
        runners = list(self._runners.values())
        self._runners.clear()
        await asyncio.gather(*(runner.stop() for runner in runners), *self._ending.values())


def _loading(plan: ChildPlan) -> Loading:
    return Loading(
        engine="llamacpp",
        model=Path(plan.model).name,
        parallel=plan.parallel,
        embedding=plan.embedding,
    )


async def _settled(tasks: list[asyncio.Task[Runner] | asyncio.Task[None]]) -> None:
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, UpstreamError, LocalFirstError):
            waiting: Awaitable[object] = task
            await waiting

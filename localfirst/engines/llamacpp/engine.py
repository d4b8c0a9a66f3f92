"""
The embedded engine: Ollama's models without Ollama.

llama.cpp, from the `xllamacpp` wheel, runs the GGUF files of the store in child processes,
one for each loaded model, each on a loopback port with a key of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import msgspec

from localfirst.engines import refusals
from localfirst.engines.base import EngineStatus, Limits, LocalModel
from localfirst.engines.experience import Experience
from localfirst.engines.gap import Gap
from localfirst.engines.llamacpp.about import About, Shelf
from localfirst.engines.llamacpp.exchange import answers, exchange
from localfirst.engines.llamacpp.plan import ChildPlan
from localfirst.engines.llamacpp.pool import Key, Pool
from localfirst.engines.llamacpp.runner import Runner
from localfirst.engines.llamacpp.vectors import Embedding
from localfirst.engines.llamacpp.wanted import chat_plan, embed_plan, longer_plan
from localfirst.engines.ollama.listing import full_name
from localfirst.engines.queue import Line
from localfirst.engines.wishes import said, seconds_of
from localfirst.errors import (
    Breakage,
    EngineUnavailable,
    UnknownModel,
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
)
from localfirst.events import Event, Progress, Vectors
from localfirst.machine.fit import Hardware
from localfirst.models.store import Store
from localfirst.settings import Settings
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, Clock, Json, Target

INSTALL = "pip install 'localfirst-runtime[embedded]'"
DEATH_SHOWS_S = 1.0
TELL_EVERY_S = 1.0


def installed() -> bool:
    """Whether the wheel is there; nothing native is loaded to find out."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCppEngine:
    """
    An `Engine` on llama.cpp; nothing is started before the first request.

    *hardware* measures the machine now; it may take its time and is called in a thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        upstream: UpstreamClient,
        clock: Clock,
        environ: Mapping[str, str],
        hardware: Callable[[], Hardware],
        experience: Experience | None = None,
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._clock = clock
        self._shelf = Shelf(store)
        self._lines: dict[Key, Line] = {}
        self._gap = Gap(clock)
        log_dir = Path(settings.state_dir) / "logs" if settings.state_dir else None
        self._pool = Pool(
            clock=clock,
            environ=environ,
            hardware=hardware,
            log_dir=log_dir,
            experience=experience,
        )
        self._handed_over = False
        self._status: EngineStatus | None = None
        self._status_at = -math.inf

    # --- asked by the cascade --------------------------------------------------------------

    async def answer(
        self, call: Call, target: Target, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        """As `Backend.answer`; a load is shared with everyone who waits for the same model."""
        about = await self._about(target.model)
        can = LocalModel(name=about.name, capabilities=about.embedded_capabilities)
        if word := refusals.missing(can, call.needs):
            raise refusals.refuse_capability(target.model, word)
        key = (about.name, False)
        async with self._line(key).place() as place:
            async with aclosing(place.turn()) as turns:
                async for queued in turns:
                    yield queued
            with self._pool.claim(key):
                async with aclosing(self._served(key, about, call, limits)) as events:
                    async for event in events:
                        yield event

    async def _served(
        self, key: Key, about: About, call: Call, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        """
        Load if need be, and ask. A child that died before it took the request, while nobody
        looked, is loaded again once; one whose context turns out too short is loaded with a
        longer one, once.
        """
        plan, keep_alive_s = self._plan(about, call), self._keep_alive(call)
        reloaded = grown = False
        while True:
            wanted = self._pool.get(key, plan, about.shape, limits.load_s, keep_alive_s)
            if not isinstance(wanted, Runner):
                while not wanted.done():
                    await asyncio.wait({wanted}, timeout=TELL_EVERY_S)
                    if not wanted.done():
                        yield Progress("loading", about.name)
            runner = wanted if isinstance(wanted, Runner) else _result(wanted)
            self._line(key).widen(runner.plan.parallel)
            began = False
            try:
                async with aclosing(self._asked(key, runner, call, about, limits)) as events:
                    async for event in events:
                        began = True
                        yield event
                return
            except UpstreamBroken:
                if began or reloaded or runner.alive:
                    raise
                reloaded = True
            except UpstreamRefused as error:
                longer = longer_plan(plan, about, call, refusals.overflow(error.body))
                if began or grown or longer is None:
                    raise
                plan, grown = longer, True

    async def _asked(
        self, key: Key, runner: Runner, call: Call, about: About, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        await self._trusted(key, runner)
        with _at_work(runner):
            runner.keep_alive_s = self._keep_alive(call)
            try:
                heard = exchange(self._upstream, runner, call, about, limits)
                async with aclosing(heard) as events:
                    async for event in events:
                        yield event
            except UpstreamBroken as error:
                raise await self._told(key, runner, error) from error
        self._pool.note_success(key)

    async def _trusted(self, key: Key, runner: Runner) -> None:
        """
        Look at a child whose last answer was given up: it may hang. While others are being
        answered it is let alone.

        Raises:
            UpstreamBroken: it is gone, or was thrown out now.
        """
        if runner.alive and runner.doubted and not runner.in_flight:
            runner.doubted = False
            if not await answers(self._upstream, runner):
                await self._pool.bury(key, runner)
        if not runner.alive:
            raise UpstreamBroken(Breakage.ENGINE_DIED, "the model was unloaded meanwhile")

    async def _told(self, key: Key, runner: Runner, error: UpstreamBroken) -> UpstreamError:
        """What broke: the child, which is buried then, or only the connection."""
        if not await runner.died_within(DEATH_SHOWS_S):
            return error
        await self._pool.bury(key, runner)
        return runner.death()

    async def embed(self, model: str, texts: list[str], options: dict[str, Json]) -> Vectors:
        """
        As `Engine.embed`; `options["dimensions"]` shortens and renormalises, `truncate` cuts
        a text that is too long. A child that died while nobody looked is loaded again once.
        """
        truncate = bool(options.get("truncate"))
        about = await self._about(model)
        key = (about.name, True)
        plan = embed_plan(about, texts)
        vectors = Vectors()
        async with self._line(key).place() as place:
            async for _ in place.turn():
                pass
            with self._pool.claim(key):
                for last in (False, True):
                    runner = await self._loaded(key, plan, about)
                    self._line(key).widen(runner.plan.parallel)
                    try:
                        if texts:
                            vectors = await self._embedded(key, runner, texts, truncate=truncate)
                        break
                    except UpstreamBroken:
                        if last or runner.alive:
                            raise
        rows = [_shortened(vector, options.get("dimensions")) for vector in vectors]
        return Vectors(rows, vectors.prompt_tokens)

    async def _embedded(
        self, key: Key, runner: Runner, texts: list[str], *, truncate: bool
    ) -> Vectors:
        await self._trusted(key, runner)
        with _at_work(runner):
            try:
                asked = Embedding(self._upstream, runner, self._limits())
                vectors = await asked.of(texts, truncate=truncate)
            except UpstreamBroken as error:
                raise await self._told(key, runner, error) from error
        self._pool.note_success(key)
        return vectors

    async def load(self, model: str) -> None:
        """As `Engine.load`."""
        about = await self._about(model)
        if about.capabilities == ("embedding",):
            await self._loaded((about.name, True), embed_plan(about, []), about)
        else:
            await self._loaded((about.name, False), self._plan(about, None), about)

    async def unload(self, model: str) -> bool:
        """As `Engine.unload`; waits for running answers. The model may be deleted meanwhile."""
        wanted = full_name(model)
        keys = [key for key, _ in self._pool.loaded() if full_name(key[0]) == wanted]
        return any([await self._pool.unload(key) for key in keys])

    def take_over(self, other: LlamaCppEngine) -> None:
        """Go on with the children of *other*, which still may answer what it began."""
        self._pool, other._handed_over = other._pool, True

    async def aclose(self) -> None:
        """End every child that was not handed over; idempotent."""
        if not self._handed_over:
            await self._pool.aclose()

    # --- what it has ---------------------------------------------------------------------------

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        """As `Engine.status`."""
        now = self._clock.monotonic()
        if self._status is None or now - self._status_at > max_age_s:
            self._status = await self._look()
            self._status_at = now
        return self._status

    async def _look(self) -> EngineStatus:
        if not installed():
            return EngineStatus(
                kind="none",
                state="absent",
                ready=False,
                reason=f"the embedded engine is not installed: `{INSTALL}`",
            )
        models = await asyncio.to_thread(self._shelf.listed, self._clock, embedded=True)
        reason = "" if models else "no model is installed"
        return EngineStatus(
            kind="llamacpp",
            state="ready",
            ready=True,
            can_start=True,
            reason=reason,
            models=tuple(self._with_load(model) for model in models),
        )

    def _with_load(self, model: LocalModel) -> LocalModel:
        runner = self._pool.runner((model.name, False)) or self._pool.runner((model.name, True))
        if runner is None or runner.plan.model != self._shelf.path(model.digest):
            return model  # what is loaded is what had that name before
        left_s = runner.idle_at - self._clock.monotonic()
        until = 0.0 if math.isinf(left_s) else self._clock.unix() + left_s
        return msgspec.structs.replace(
            model,
            loaded=True,
            loaded_bytes=runner.resident_bytes() or model.size_bytes,
            loaded_context_tokens=runner.plan.context_tokens,
            expires_unix=until,
        )

    # --- inside ------------------------------------------------------------------------------

    async def _about(self, model: str) -> About:
        if not installed():
            raise EngineUnavailable("the embedded engine is not installed", hint=INSTALL)
        if self._gap.passed():
            await self._look_again()
        try:
            return await asyncio.to_thread(self._shelf.get, model)
        except UnknownModel as error:
            body = msgspec.json.encode({"error": f"model '{model}' not found"})
            raise UpstreamRefused(404, body) from error

    async def _look_again(self) -> None:
        """After a suspend: throw out children that no longer answer."""
        for key, runner in self._pool.loaded():
            if not await answers(self._upstream, runner):
                await self._pool.bury(key, runner)

    async def _loaded(self, key: Key, plan: ChildPlan, about: About) -> Runner:
        keep_alive_s = self._settings.local.keep_alive_s
        load_s = self._settings.timeouts.load_s
        wanted = self._pool.get(key, plan, about.shape, load_s, keep_alive_s)
        if isinstance(wanted, Runner):
            return wanted
        await asyncio.wait({wanted})
        return _result(wanted)

    def _plan(self, about: About, call: Call | None) -> ChildPlan:
        return chat_plan(about, call, self._settings.local.num_ctx)

    def _keep_alive(self, call: Call) -> float:
        return seconds_of(said(call, "keep_alive"), self._settings.local.keep_alive_s)

    def _line(self, key: Key) -> Line:
        if key not in self._lines:
            local = self._settings.local
            self._lines[key] = Line(
                self._clock, width=1, limit=local.queue_limit, spill_s=local.queue_spill_s
            )
        return self._lines[key]

    def _limits(self) -> Limits:
        timeouts = self._settings.timeouts
        return Limits(
            connect_s=timeouts.connect_s,
            first_token_s=timeouts.local_first_token_s,
            stall_s=timeouts.stall_s,
            load_s=timeouts.load_s,
        )


@contextlib.contextmanager
def _at_work(runner: Runner) -> Iterator[None]:
    """*runner* has one request more; one that was not answered to its end leaves a doubt."""
    runner.in_flight += 1
    doubted = True
    try:
        yield
        doubted = False
    except UpstreamRefused:
        doubted = False
        raise
    finally:
        runner.doubted = runner.doubted or doubted
        runner.in_flight -= 1
        runner.touch()


def _result(load: asyncio.Task[Runner]) -> Runner:
    """What a load came to; raises as it did. That it was given up is no cancellation of ours."""
    if load.cancelled():
        raise EngineUnavailable("the engine was closed while the model loaded")
    return load.result()


def _shortened(vector: list[float], dimensions: Json) -> list[float]:
    if not isinstance(dimensions, int) or not 0 < dimensions < len(vector):
        return vector
    cut = vector[:dimensions]
    length = math.sqrt(sum(value * value for value in cut)) or 1.0
    return [value / length for value in cut]

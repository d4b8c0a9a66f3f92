"""
The local rung: whatever engine this machine has, behind one face.

    1. adopt    an Ollama that runs
    2. start    an Ollama that is installed, and keep it running
    3. embedded llama.cpp in child processes, on the same store

`settings.local.engine` forces one of them, or none.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

import msgspec

from localfirst.engines import launch
from localfirst.engines.base import Engine, EngineStatus, Limits
from localfirst.engines.experience import Experience
from localfirst.engines.judge import Judge
from localfirst.engines.life import Pace
from localfirst.engines.llamacpp import LlamaCppEngine, installed
from localfirst.engines.llamacpp.about import Shelf
from localfirst.engines.ollama import OllamaEngine, OllamaHosts
from localfirst.engines.ollama.listing import full_name
from localfirst.engines.reign import Reign
from localfirst.engines.supervisor import ChildState, Supervisor
from localfirst.errors import (
    Breakage,
    EngineUnavailable,
    LocalFirstError,
    UpstreamBroken,
)
from localfirst.events import Event, Progress, Vectors
from localfirst.machine.fit import Hardware, Measured
from localfirst.machine.hardware import measure as this_machine
from localfirst.models.store import Store
from localfirst.settings import Settings
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, Clock, Json, Target
from localfirst.wire.refusal import NotTranslatable, untranslated

STATUS_S = 1.9
TELL_EVERY_S = 1.0
CHOICE_S = 10.0
"""How long a choice holds; an engine that is gone is noticed at once and chosen anew."""
NONE = EngineStatus(
    kind="none", state="absent", ready=False, reason="the local engine is switched off"
)
LOOKING = EngineStatus(
    kind="none", state="starting", ready=False, can_start=True, reason="still looking"
)


class LocalEngine:
    """
    An `Engine` that picks one; the pick may change while it lives, requests do not notice.

    *hardware* gives the last measurement at once and is called on the loop; *measure* takes
    one now, in a thread, before a model is loaded: this machine's when None.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None,
        upstream: UpstreamClient,
        clock: Clock,
        environ: Mapping[str, str],
        hardware: Callable[[], Hardware],
        measure: Callable[[], Hardware] | None = None,
        places: Sequence[str] = launch.PLACES,
        pace: Pace = Pace(),  # noqa: B008
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._clock = clock
        self._environ = environ
        local = settings.local
        self._shelf = Shelf(store) if store is not None else None
        state_dir = Path(settings.state_dir) if settings.state_dir else None
        self.experience = Experience(state_dir / "measured.json" if state_dir else None)
        self._judge = Judge(
            self._shelf, hardware, self.experience, environ=environ, num_ctx=local.num_ctx
        )
        self._reign = Reign(
            settings, upstream=upstream, clock=clock, environ=environ, places=places, pace=pace
        )
        self._ollama = self._ollama_at(self.supervisor.endpoint)
        self._hosts = self._hosts_of(local.hosts)
        # What fits this machine says nothing of another one.
        self._far = not all(map(launch.startable_at, self._endpoints(local.hosts)))
        self._llamacpp = self._llamacpp_on(store, measure)
        self._chosen: Engine | None = None
        self._chosen_until = -math.inf
        self._status = NONE
        self._status_at = -math.inf

    @property
    def supervisor(self) -> Supervisor:
        """What starts an Ollama by these settings."""
        return self._reign.supervisor

    def _llamacpp_on(
        self, store: Store | None, measure: Callable[[], Hardware] | None
    ) -> LlamaCppEngine | None:
        if store is None or self._settings.local.engine not in {"auto", "llamacpp"}:
            return None
        return LlamaCppEngine(
            self._settings,
            store=store,
            upstream=self._upstream,
            clock=self._clock,
            environ=self._environ,
            hardware=measure or partial(this_machine, store=store.root, environ=self._environ),
            experience=self.experience,
        )

    def _ollama_at(self, endpoint: str) -> OllamaEngine:
        return OllamaEngine(
            endpoint,
            self._settings,
            upstream=self._upstream,
            clock=self._clock,
            expects_gpu=self._judge.expects_gpu,
        )

    def _hosts_of(self, hosts: tuple[str, ...]) -> OllamaHosts | None:
        if not hosts:
            return None
        engines = [self._ollama_at(endpoint) for endpoint in self._endpoints(hosts)]
        return OllamaHosts(engines, self._clock)

    def _endpoints(self, hosts: tuple[str, ...]) -> list[str]:
        every = (self._settings.local.host, *hosts)
        return list(dict.fromkeys(launch.connectable(host) for host in every))

    # --- asked -----------------------------------------------------------------------------

    async def answer(
        self, call: Call, target: Target, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        """
        As `Backend.answer`; starting an engine is told as `Progress("loading")`.

        An engine that was there a moment ago and refuses the connection is started, or
        another picked, once.
        """
        with self._reign.used():
            for last in (False, True):
                picking = asyncio.ensure_future(self._pick())
                try:
                    while not picking.done():
                        await asyncio.wait({picking}, timeout=TELL_EVERY_S)
                        if not picking.done():
                            yield Progress("loading", "the local engine starts")
                finally:
                    picking.cancel()
                began = False
                try:
                    heard = self._heard(picking.result(), call, target, limits)
                    async with aclosing(heard) as events:
                        async for event in events:
                            began = began or not isinstance(event, Progress)
                            yield event
                    return
                except NotTranslatable as error:
                    raise untranslated(error) from error
                except UpstreamBroken as error:
                    if began or last or error.breakage is not Breakage.CONNECT_REFUSED:
                        raise
                    self.forget()
                    self._reign.now.doubt()

    async def _heard(
        self, engine: Engine, call: Call, target: Target, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        """*engine*'s answer; how fast it came is remembered if it had the machine to itself."""
        alone = True
        async with aclosing(engine.answer(call, target, limits)) as events:
            async for event in events:
                alone = alone and self._reign.asked == 1
                if alone and engine is self._ollama:
                    self._judge.heard(target.model, event)
                yield event

    def forget(self) -> None:
        """Look again before the next request: what was known may be over."""
        self._status_at = self._chosen_until = -math.inf
        self._ollama.forget()

    async def embed(self, model: str, texts: list[str], options: dict[str, Json]) -> Vectors:
        """As `Engine.embed`."""
        with self._reign.used():
            return await (await self._pick()).embed(model, texts, options)

    async def load(self, model: str) -> None:
        """As `Engine.load`."""
        with self._reign.used():
            await (await self._pick()).load(model)

    async def unload(self, model: str) -> bool:
        """As `Engine.unload`; starts nothing to do it."""
        status = await self.status()
        if not status.ready:
            return False
        with self._reign.used():
            gone = await (await self._pick()).unload(model)
        self.forget()
        return gone

    async def delete(self, model: str) -> bool:
        """
        Have a running Ollama remove *model* from its store; False where none lists it.

        Raises:
            UpstreamError: it would not.
        """
        status = await self.status(max_age_s=0)
        listed = {full_name(one.name) for one in status.models}
        if not status.ready or full_name(model) not in listed:
            return False
        with self._reign.used():
            engine = await self._pick()
            if not isinstance(engine, OllamaEngine | OllamaHosts):
                return False
            await engine.delete(model)
        self.forget()
        return True

    def take_over(self, other: LocalEngine) -> None:
        """
        Go on with what *other* runs, as far as both would run the same.

        Models stay in memory while the configuration changes around them. *other* still
        answers what it began, and stops nothing that was taken over when it is closed. A
        daemon by other settings goes on until nobody is being answered.
        """
        if mine := self._daemon():
            self._reign.succeed(other._reign, self._upstream, same=mine == other._daemon())
            self._ollama = self._ollama_at(self._reign.now.endpoint)
        same = self._children() == other._children()
        if same and self._llamacpp is not None and other._llamacpp is not None:
            self._llamacpp.take_over(other._llamacpp)

    def _children(self) -> tuple[object, ...]:
        """All that decides how a model is loaded here."""
        local = self._settings.local
        return self._settings.state_dir, local.models_dir, local.num_ctx, self._environ

    def _daemon(self) -> tuple[object, ...]:
        """All that decides where an Ollama of ours is and how it runs; () for none."""
        local, settings = self._settings.local, self._settings
        if local.engine not in {"auto", "ollama"} or self._hosts is not None:
            return ()
        where = local.host, local.models_dir, settings.state_dir
        return (*where, local.start, local.keep_alive_s, settings.privacy, self._environ)

    async def aclose(self) -> None:
        """Stop what we started and did not hand over, and only that."""
        await self._ollama.aclose()
        if self._hosts is not None:
            await self._hosts.aclose()
        if self._llamacpp is not None:
            await self._llamacpp.aclose()
        await self._reign.aclose()
        await asyncio.to_thread(self.experience.save)

    async def _pick(self) -> Engine:
        """
        The engine that answers now, started if need be.

        Raises:
            EngineUnavailable: there is none, or it keeps failing.
        """
        if self._chosen is None or self._clock.monotonic() >= self._chosen_until:
            self._chosen = await self._choose()
            self._chosen_until = self._clock.monotonic() + CHOICE_S * self._reign.settled
        return self._chosen

    async def _choose(self) -> Engine:
        if self._hosts is not None:
            return self._hosts
        kind = self._settings.local.engine
        if kind == "none":
            raise EngineUnavailable(NONE.reason)
        if kind != "llamacpp":
            try:
                return await self._running_ollama()
            except EngineUnavailable:
                if self._llamacpp is None or not installed():
                    raise
        if self._llamacpp is None:
            raise EngineUnavailable("there is no model store for the embedded engine")
        return self._llamacpp

    async def _running_ollama(self) -> OllamaEngine:
        before = self._reign.now
        begun = await self._reign.begun()
        if before is not self._reign.now:
            self.forget()
        ready = begun and (await self._ollama.status()).ready
        if not ready or not self._reign.now.met():
            endpoint = await self._reign.now.ensure()
            if endpoint != self._ollama.daemon.endpoint:
                self._ollama = self._ollama_at(endpoint)
            await self._ollama.status(max_age_s=0)
        return self._ollama

    async def measured(self) -> dict[str, Measured]:
        """What this machine knows of its models by their loads and answers, by name."""
        status = await self.status()

        def known() -> dict[str, Measured]:
            seen = ((one.name, self._judge.measured(one, status.kind)) for one in status.models)
            return {name: found for name, found in seen if found is not None}

        return await asyncio.to_thread(known)

    # --- what there is ---------------------------------------------------------------------------

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        """As `Engine.status`; each model carries its verdict for this machine."""
        if self._clock.monotonic() - self._status_at <= max_age_s:
            return self._status
        try:
            async with asyncio.timeout(STATUS_S):
                status = await self._look(max_age_s)
                self._status = status if self._far else await self._judge.judged(status)
        except TimeoutError:
            return self._status if self._status is not NONE else LOOKING
        except (OSError, LocalFirstError) as error:
            return msgspec.structs.replace(NONE, state="stopped", reason=str(error))
        self._status_at = self._clock.monotonic()
        return self._status

    async def _look(self, max_age_s: float) -> EngineStatus:
        kind = self._settings.local.engine
        if kind == "none":
            return NONE
        if self._hosts is not None:
            return await self._hosts.status(max_age_s=max_age_s)
        if kind == "llamacpp":
            return await self._embedded(max_age_s)
        status = await self._ollama.status(max_age_s=max_age_s)
        if status.ready:
            return self._supervised(status)
        return await self._not_running(status, kind, max_age_s)

    def _supervised(self, status: EngineStatus) -> EngineStatus:
        keeper = self._reign.now
        reason = status.reason or keeper.reason
        return msgspec.structs.replace(status, adopted=not keeper.owned, reason=reason)

    async def _not_running(self, status: EngineStatus, kind: str, max_age_s: float) -> EngineStatus:
        startable, why = self._startable()
        if startable:
            models = await asyncio.to_thread(self._shelf.listed, self._clock) if self._shelf else ()
            state = self.supervisor.state
            word = "stopped" if state is ChildState.READY else str(state)
            reason = self.supervisor.reason or "installed; starts with the first request"
            return msgspec.structs.replace(
                status, state=word, can_start=True, adopted=False, reason=reason, models=models
            )
        if kind == "auto":
            embedded = await self._embedded(max_age_s)
            if embedded.ready:
                return embedded
            why = "; ".join(reason for reason in (why, embedded.reason) if reason)
        return msgspec.structs.replace(status, kind="none", state=self._absence(), reason=why)

    def _absence(self) -> str:
        """Whether an Ollama that cannot be started is none at all, or one that may come back."""
        if self.supervisor.state is ChildState.CRASH_LOOP:
            return str(ChildState.CRASH_LOOP)
        known = self._ollama.seen or not self.supervisor.may_start
        return "stopped" if known else "absent"

    def _startable(self) -> tuple[bool, str]:
        """Whether the supervisor would start an Ollama, and why not."""
        if not self.supervisor.may_start:
            return False, f"no Ollama answers at {self.supervisor.endpoint}"
        if self.supervisor.state is ChildState.CRASH_LOOP:
            return False, self.supervisor.reason
        try:
            launch.find_program(self._environ, self.supervisor.places)
        except EngineUnavailable as error:
            return False, error.message
        return True, ""

    async def _embedded(self, max_age_s: float) -> EngineStatus:
        if self._llamacpp is None:
            return NONE
        return await self._llamacpp.status(max_age_s=max_age_s)

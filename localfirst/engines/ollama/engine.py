"""
Ollama as a local engine: asked natively, watched, and kept from cutting prompts.

Its own `/v1` surface ignores `num_ctx` and swallows errors, so every request is written in
the native dialect. Nothing here starts or stops a daemon; that is the supervisor's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec

from localfirst.engines import forced, refusals
from localfirst.engines.base import EngineStatus, Limits, LocalModel
from localfirst.engines.gap import Gap
from localfirst.engines.ollama import guard
from localfirst.engines.ollama.contexts import Contexts
from localfirst.engines.ollama.daemon import Daemon
from localfirst.engines.ollama.exchange import Exchange
from localfirst.engines.ollama.gpu import GpuWatch
from localfirst.engines.ollama.library import delete
from localfirst.engines.ollama.listing import full_name, is_remote, models
from localfirst.engines.ollama.vectors import vectors
from localfirst.engines.queue import Line
from localfirst.errors import (
    Breakage,
    PrivacyRefused,
    UpstreamBroken,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.events import Event, Progress, Vectors
from localfirst.settings import Privacy, Settings
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, Clock, Dialect, Json, Needs, Target, Tool
from localfirst.wire.ollama import requests

log = logging.getLogger("localfirst.engines")

WIDTH = 16
"""Requests handed to the daemon at once for one model; it runs OLLAMA_NUM_PARALLEL of them."""

EMBED_FIELDS = frozenset({"dimensions", "options", "truncate", "keep_alive"})
STATUS_S = 1.8
GONE_S, GONE_POLL_S = 10.0, 0.05


_NO_NEEDS = Needs()


class OllamaEngine:
    """An `Engine` on the daemon at *endpoint*; whether it is ours to stop, its supervisor knows."""

    def __init__(
        self,
        endpoint: str,
        settings: Settings,
        *,
        upstream: UpstreamClient,
        clock: Clock,
        expects_gpu: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.daemon = Daemon(endpoint, upstream)
        self.seen = False
        """Whether it has answered once."""
        self._settings = settings
        self._upstream = upstream
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._contexts = Contexts(settings.local.num_ctx)
        self._moved_at: dict[str, float] = {}
        self._known: dict[str, LocalModel] = {}
        self._shown: dict[str, tuple[tuple[str, ...], int]] = {}
        self._gap = Gap(clock)
        self._gpus = GpuWatch(expects_gpu)
        self._status: EngineStatus | None = None
        self._status_at = -math.inf
        self._looking: asyncio.Task[EngineStatus] | None = None

    # --- asked by the cascade ------------------------------------------------------------------

    async def answer(
        self, call: Call, target: Target, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        """As `Backend.answer`."""
        name = target.model
        model = await self._model(name, call.needs)
        await self._refuse_what_cannot_be(call, name, model)
        await self._settle_context(model)
        async with self._line(name).place() as place:
            async with aclosing(place.turn()) as turns:
                async for queued in turns:
                    yield queued
            # Whoever is being answered keeps the model where it is.
            if self._line(name).load == 1 and self._gpus.take_reload(name):
                yield Progress("loading", f"{name} again, on the GPU")
                await self._take_out(name)
            try:
                async with aclosing(self._exchange(call, model, limits)) as events:
                    async for event in events:
                        yield event
                return
            except UpstreamRefused as error:
                if refusals.lost_its_file(error):
                    raise UpstreamRefused(404, error.body, error.headers) from error
                found = refusals.overflow(error.body)
                # A tool's schema that has no grammar: the model is asked, if not obliged.
                free = refusals.no_grammar(error) and bool(self._obliged(call, model))
                if error.in_band or not (free or self._contexts.grow(call, model, found)):
                    raise
            if not free:
                yield Progress("loading", f"{name} with a longer context")
            async with aclosing(self._exchange(call, model, limits, free=free)) as events:
                async for event in events:
                    yield event

    async def _refuse_what_cannot_be(self, call: Call, name: str, model: LocalModel) -> None:
        await self._refuse_remote(model, local_only=call.local_only)
        if word := refusals.missing(model, call.needs):
            raise refusals.refuse_capability(name, word)

    async def _refuse_remote(self, model: LocalModel, *, local_only: bool) -> None:
        """
        Refuse what would leave this machine.

        Raises:
            PrivacyRefused: the model runs in Ollama's cloud.
            UpstreamBroken: nothing is known of the model, and the daemon does not say.
        """
        if not local_only and self._settings.privacy is not Privacy.LOCAL_ONLY:
            return
        remote = model.remote
        if not remote and not model.digest:
            try:
                remote = bool((await self.daemon.show(model.name)).remote_host)
            except UpstreamRefused:  # it has none of that name, and will say so
                return
        if remote:
            raise PrivacyRefused(f"`{model.name}` runs in Ollama's cloud, not on this machine")

    async def _settle_context(self, model: LocalModel) -> None:
        """
        Begin with the size the model has, or says it wants: another one would reload it.

        What is loaded is known from `/api/ps`, the model's own `num_ctx` from `/api/show`.
        """
        name = model.name
        if self._contexts.known(name) or not model.digest or model.remote:
            return
        if not self._contexts.settle(name):
            try:
                own = (await self.daemon.show(name)).num_ctx
            except UpstreamError:
                return
            if not self._contexts.settle(name, own):
                self._contexts.keep_own(name)

    async def _exchange(
        self, call: Call, model: LocalModel, limits: Limits, *, free: bool = False
    ) -> AsyncGenerator[Event, None]:
        relay = call.relay and call.stream and call.dialect is Dialect.OLLAMA
        tools = () if relay or free else self._obliged(call, model)
        path, body = await self._request(call, model, tools, relay=relay)
        call_reader = forced.CallReader() if tools else None
        key = full_name(model.name)
        exchange = Exchange(
            self.daemon,
            self._upstream,
            self._clock,
            model=model.name,
            path=path,
            body=body,
            limits=limits,
            local_only=call.local_only,
            relay=relay,
            stops=lambda: call.chat.stop,
            others_moved_at=lambda: self._moved_at.get(key, -math.inf),
        )
        async with aclosing(exchange.events()) as events:
            async for event in events:
                if not isinstance(event, Progress):
                    self._moved_at[key] = self._clock.monotonic()
                for told in call_reader.feed(event) if call_reader else (event,):
                    yield told

    def _obliged(self, call: Call, model: LocalModel) -> tuple[Tool, ...]:
        """The tools of which one has to be called; what runs elsewhere is held to nothing."""
        return () if model.remote else forced.choices(call.chat)

    async def _request(
        self, call: Call, model: LocalModel, tools: tuple[Tool, ...], *, relay: bool
    ) -> tuple[str, bytes]:
        num_ctx = await self._context(call, model)
        if relay:
            body = call.body
            prompt = b'"messages"' not in body
        else:
            chat = call.chat
            prompt = requests.path_of(chat) == "/api/generate"
            if tools and not prompt:
                chat = forced.constrained(chat, tools, forced.PARAMETERS)
                chat = msgspec.structs.replace(chat, tools=tools, tool_choice="auto")
            body = requests.encode(chat, model.name)
        drop_think = bool(model.capabilities) and "thinking" not in model.capabilities
        body = guard.prepared(body, model=model.name, num_ctx=num_ctx, drop_think=drop_think)
        return "/api/generate" if prompt else "/api/chat", body

    async def _context(self, call: Call, model: LocalModel) -> int:
        if model.remote:
            return 0
        if self._contexts.grows(call, model):
            # It may have been loaded with more meanwhile: less would be a reload, too.
            await self.status(max_age_s=0)
        return self._contexts.take(call, model)

    async def embed(self, model: str, texts: list[str], options: dict[str, Json]) -> Vectors:
        """As `Engine.embed`; too long a text is an error, and cut only for who asked for that."""
        await self._refuse_remote(await self._model(model), local_only=False)
        body = {"model": model, "input": texts, "truncate": False} | {
            name: value for name, value in options.items() if name in EMBED_FIELDS
        }
        timeouts = self._settings.timeouts
        return await vectors(self.daemon, body, timeouts.load_s + timeouts.local_first_token_s)

    async def load(self, model: str) -> None:
        """As `Engine.load`."""
        size = self._contexts.of(model)
        options: dict[str, Json] = {"num_ctx": size} if size else {}
        await self.daemon.load(model, options, self._settings.timeouts.load_s)
        self.forget()

    async def unload(self, model: str) -> bool:
        """As `Engine.unload`; a list that a hanging runner holds back is not waited for."""
        try:
            loaded = {full_name(entry.name) for entry in await self.daemon.ps()}
        except UpstreamBroken as error:
            if error.breakage is not Breakage.FIRST_BYTE_TIMEOUT:
                raise
            loaded = {full_name(model)}
        if full_name(model) not in loaded:
            return False
        await self.daemon.unload(model)
        self.forget()
        return True

    async def _take_out(self, model: str) -> None:
        """Unload, and see it gone: a request that comes sooner joins the old runner."""
        await self.daemon.unload(model)
        deadline = self._clock.monotonic() + GONE_S
        while self._clock.monotonic() < deadline:
            loaded = {full_name(entry.name) for entry in await self.daemon.ps()}
            if full_name(model) not in loaded:
                return
            await self._clock.sleep(GONE_POLL_S)

    async def delete(self, model: str) -> None:
        """
        Have the daemon remove *model* from its store, which may not be ours to write.

        Raises:
            UpstreamRefused: it has no such model, or may not.
            UpstreamBroken: it does not answer.
        """
        await delete(self.daemon.endpoint, model)
        self.forget()

    async def aclose(self) -> None:
        """End a look that is under way; the upstream client is its owner's."""
        if self._looking is not None and not self._looking.done():
            self._looking.cancel()
            await asyncio.wait({self._looking})

    # --- what it has ------------------------------------------------------------------------------

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        """As `Engine.status`; callers at the same time share one look."""
        age_s = self._clock.monotonic() - self._status_at
        if self._status is not None and age_s <= max_age_s and not self._gap.passed():
            return self._status
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> EngineStatus:
        try:
            status = await self._asked()
            self.seen = True
        except UpstreamError as error:
            status = EngineStatus(
                kind="ollama",
                state="stopped",
                ready=False,
                endpoint=self.daemon.endpoint,
                adopted=True,
                reason=_why_not(error),
            )
        self._status, self._status_at = status, self._clock.monotonic()
        self._known = {full_name(model.name): model for model in status.models}
        listed = {model.digest for model in status.models}
        self._shown = {key: found for key, found in self._shown.items() if key in listed}
        return status

    async def _asked(self) -> EngineStatus:
        version, tags, loaded = await asyncio.gather(
            self.daemon.version(STATUS_S),
            self.daemon.tags(STATUS_S),
            self.daemon.ps(STATUS_S),
            return_exceptions=True,
        )
        if isinstance(version, BaseException):
            raise version
        if isinstance(tags, BaseException):
            raise tags
        hangs = isinstance(loaded, BaseException)
        running = [] if isinstance(loaded, BaseException) else loaded
        self._contexts.see(running)
        listed = models(tags, running)
        on_cpu = self._gpus.look(listed)
        return EngineStatus(
            kind="ollama",
            state="ready",
            ready=True,
            version=version,
            endpoint=self.daemon.endpoint,
            adopted=True,
            reason="a model's runner does not answer" if hangs else on_cpu,
            models=listed,
        )

    async def _model(self, name: str, needs: Needs = _NO_NEEDS) -> LocalModel:
        """
        What is known of a model; asks the daemon when the lists did not say enough.

        They leave out abilities that only the template in the model's own file shows.
        """
        await self.status(max_age_s=10.0)
        model = self._known.get(full_name(name)) or LocalModel(name=name, remote=is_remote(name))
        silent = not (model.capabilities and model.context_tokens)
        if model.digest and (silent or (model.partial and refusals.unsaid(model, needs))):
            model = await self._shown_whole(model)
        return msgspec.structs.replace(model, name=name)

    async def _shown_whole(self, model: LocalModel) -> LocalModel:
        """*model* with what `/api/show` says of it, which is asked once of each digest."""
        found = self._shown.get(model.digest)
        if found is None:
            try:
                shown = await self.daemon.show(model.name)
            except UpstreamError:
                return model
            found = self._shown[model.digest] = tuple(shown.capabilities), shown.context_tokens
        capabilities, context_tokens = found
        return msgspec.structs.replace(
            model,
            capabilities=capabilities or model.capabilities,
            context_tokens=context_tokens or model.context_tokens,
            partial=False,
        )

    # --- inside -----------------------------------------------------------------------------------

    @property
    def load_now(self) -> int:
        """Requests that are being answered or wait, over all models."""
        return sum(line.load for line in self._lines.values())

    def _line(self, name: str) -> Line:
        key = full_name(name)
        if key not in self._lines:
            local = self._settings.local
            self._lines[key] = Line(
                self._clock, width=WIDTH, limit=local.queue_limit, spill_s=local.queue_spill_s
            )
        return self._lines[key]

    def forget(self) -> None:
        """Look again before the next request."""
        self._status_at = -math.inf


def _why_not(error: UpstreamError) -> str:
    if isinstance(error, UpstreamNonsense | UpstreamRefused):
        return "the port is taken by a program that is not Ollama"
    if isinstance(error, UpstreamBroken):
        return f"not running ({error.breakage})"
    return str(error)

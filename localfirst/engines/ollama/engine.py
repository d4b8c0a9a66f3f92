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

from localfirst.engines import refusals
from localfirst.engines.base import EngineStatus, Limits, LocalModel
from localfirst.engines.gap import Gap
from localfirst.engines.ollama import guard
from localfirst.engines.ollama.daemon import Daemon
from localfirst.engines.ollama.exchange import Exchange
from localfirst.engines.ollama.gpu import GpuWatch
from localfirst.engines.ollama.library import delete
from localfirst.engines.ollama.listing import full_name, is_remote, models
from localfirst.engines.queue import Line
from localfirst.engines.wishes import said
from localfirst.errors import (
    PrivacyRefused,
    UpstreamBroken,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.events import Event, Progress
from localfirst.settings import Privacy, Settings
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, Clock, Dialect, Json, Target
from localfirst.wire.ollama import requests

log = logging.getLogger("localfirst.engines")

WIDTH = 16
"""Requests handed to the daemon at once for one model; it runs OLLAMA_NUM_PARALLEL of them."""

STATUS_S = 1.8


class OllamaEngine:
    """An `Engine` on the daemon at *endpoint*; *adopted* when somebody else started it."""

    def __init__(
        self,
        endpoint: str,
        settings: Settings,
        *,
        upstream: UpstreamClient,
        clock: Clock,
        adopted: bool = True,
        expects_gpu: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.daemon = Daemon(endpoint, upstream)
        self.adopted = adopted
        self._settings = settings
        self._upstream = upstream
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._contexts: dict[str, int] = {}
        self._loaded_contexts: dict[str, int] = {}
        self._known: dict[str, LocalModel] = {}
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
        model = await self._model(name)
        self._refuse_what_cannot_be(call, name, model)
        await self._settle_context(model)
        async with self._line(name).place() as place:
            async with aclosing(place.turn()) as turns:
                async for queued in turns:
                    yield queued
            if self._gpus.take_reload(full_name(name)):
                yield Progress("loading", f"{name} again, on the GPU")
                await self.daemon.unload(name)
            try:
                async with aclosing(self._exchange(call, model, limits)) as events:
                    async for event in events:
                        yield event
                return
            except UpstreamRefused as error:
                if not self._grow(call, model, error):
                    raise
            yield Progress("loading", f"{name} with a longer context")
            async with aclosing(self._exchange(call, model, limits)) as events:
                async for event in events:
                    yield event

    def _refuse_what_cannot_be(self, call: Call, name: str, model: LocalModel) -> None:
        self._refuse_remote(model, local_only=call.local_only)
        if word := refusals.missing(model, call.needs):
            raise refusals.refuse_capability(name, word)

    def _refuse_remote(self, model: LocalModel, *, local_only: bool) -> None:
        if model.remote and (local_only or self._settings.privacy is Privacy.LOCAL_ONLY):
            raise PrivacyRefused(f"`{model.name}` runs in Ollama's cloud, not on this machine")

    async def _settle_context(self, model: LocalModel) -> None:
        """
        Begin with the size the model has, or says it wants: another one would reload it.

        What is loaded is known from `/api/ps`, the model's own `num_ctx` from `/api/show`.
        """
        if model.name in self._contexts or not model.digest or model.remote:
            return
        size = max(
            self._settings.local.num_ctx, self._loaded_contexts.get(full_name(model.name), 0)
        )
        if not size:
            try:
                size = (await self.daemon.show(model.name)).num_ctx
            except UpstreamError:
                return
        self._contexts[model.name] = size

    async def _exchange(
        self, call: Call, model: LocalModel, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        path, body, relay = self._request(call, model)
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
        )
        async with aclosing(exchange.events()) as events:
            async for event in events:
                yield event

    def _request(self, call: Call, model: LocalModel) -> tuple[str, bytes, bool]:
        relay = call.relay and call.stream and call.dialect is Dialect.OLLAMA
        num_ctx = self._context(call, model)
        if relay:
            body = call.body
            prompt = b'"messages"' not in body
        else:
            body = requests.encode(call.chat, model.name)
            prompt = call.chat.prompt is not None
        drop_think = bool(model.capabilities) and "thinking" not in model.capabilities
        body = guard.prepared(body, model=model.name, num_ctx=num_ctx, drop_think=drop_think)
        return "/api/generate" if prompt else "/api/chat", body, relay

    def _context(self, call: Call, model: LocalModel) -> int:
        if model.remote:
            return 0
        asked = said(call, "num_ctx")
        size = guard.stable_context(
            settled=self._contexts.get(model.name, self._settings.local.num_ctx),
            asked=asked if isinstance(asked, int) else 0,
            prompt_tokens=call.needs.prompt_tokens,
            max_tokens=call.needs.max_tokens,
            window=model.context_tokens,
        )
        if size:
            self._contexts[model.name] = size
        return size

    def _grow(self, call: Call, model: LocalModel, error: UpstreamRefused) -> bool:
        """Settle on a larger context after an overflow; False when the model has none."""
        found = refusals.overflow(error.body)
        if found is None or not found.prompt_tokens or error.in_band:
            return False
        size = guard.stable_context(
            settled=max(found.context_tokens, self._contexts.get(model.name, 0)),
            asked=0,
            prompt_tokens=found.prompt_tokens,
            max_tokens=call.needs.max_tokens,
            window=model.context_tokens,
        )
        if size < found.prompt_tokens or size <= found.context_tokens:
            return False
        self._contexts[model.name] = size
        return True

    async def embed(
        self, model: str, texts: list[str], options: dict[str, Json]
    ) -> list[list[float]]:
        """As `Engine.embed`; too long a text is an error, never cut."""
        self._refuse_remote(await self._model(model), local_only=False)
        body = {"model": model, "input": texts, "truncate": False} | {
            name: value for name, value in options.items() if name in {"dimensions", "options"}
        }
        timeouts = self._settings.timeouts
        answer = await self.daemon.embed(body, timeouts.load_s + timeouts.local_first_token_s)
        try:
            vectors = msgspec.json.decode(answer, type=_Embeddings).embeddings
        except msgspec.DecodeError as error:
            raise UpstreamNonsense(f"no embeddings: {error}") from error
        if len(vectors) != len(texts):
            raise UpstreamNonsense(f"{len(vectors)} embeddings for {len(texts)} texts")
        return vectors

    async def load(self, model: str) -> None:
        """As `Engine.load`."""
        size = self._contexts.get(model, self._settings.local.num_ctx)
        options: dict[str, Json] = {"num_ctx": size} if size else {}
        await self.daemon.load(model, options, self._settings.timeouts.load_s)
        self.forget()

    async def unload(self, model: str) -> bool:
        """As `Engine.unload`."""
        loaded = {full_name(entry.name) for entry in await self.daemon.ps()}
        if full_name(model) not in loaded:
            return False
        await self.daemon.unload(model)
        self.forget()
        return True

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
        """Nothing of ours is open: the upstream client is its owner's."""

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
        except UpstreamError as error:
            status = EngineStatus(
                kind="ollama",
                state="stopped",
                ready=False,
                endpoint=self.daemon.endpoint,
                adopted=self.adopted,
                reason=_why_not(error),
            )
        self._status, self._status_at = status, self._clock.monotonic()
        self._known = {full_name(model.name): model for model in status.models}
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
        self._loaded_contexts = {full_name(entry.name): entry.context_length for entry in running}
        listed = models(tags, running)
        on_cpu = self._gpus.look(listed)
        return EngineStatus(
            kind="ollama",
            state="ready",
            ready=True,
            version=version,
            endpoint=self.daemon.endpoint,
            adopted=self.adopted,
            reason="a model's runner does not answer" if hangs else on_cpu,
            models=listed,
        )

    async def _model(self, name: str) -> LocalModel:
        """What is known of a model; asks the daemon when the lists did not say enough."""
        await self.status(max_age_s=10.0)
        model = self._known.get(full_name(name)) or LocalModel(name=name, remote=is_remote(name))
        if not model.digest or (model.capabilities and model.context_tokens):
            return msgspec.structs.replace(model, name=name)
        try:
            shown = await self.daemon.show(name)
        except UpstreamError:
            return msgspec.structs.replace(model, name=name)
        model = msgspec.structs.replace(
            model,
            name=name,
            capabilities=tuple(shown.capabilities) or model.capabilities,
            context_tokens=shown.context_tokens or model.context_tokens,
        )
        self._known[full_name(name)] = model
        return model

    # --- inside -----------------------------------------------------------------------------------

    @property
    def load_now(self) -> int:
        """Requests that are being answered or wait, over all models."""
        return sum(line.load for line in self._lines.values())

    def _line(self, name: str) -> Line:
        if name not in self._lines:
            local = self._settings.local
            self._lines[name] = Line(
                self._clock, width=WIDTH, limit=local.queue_limit, spill_s=local.queue_spill_s
            )
        return self._lines[name]

    def forget(self) -> None:
        """Look again before the next request."""
        self._status_at = -math.inf


class _Embeddings(msgspec.Struct):
    embeddings: list[list[float]]


def _why_not(error: UpstreamError) -> str:
    if isinstance(error, UpstreamNonsense | UpstreamRefused):
        return "the port is taken by a program that is not Ollama"
    if isinstance(error, UpstreamBroken):
        return f"not running ({error.breakage})"
    return str(error)

"""Several Ollama daemons as one engine: the least busy one that has the model answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from localfirst.engines.base import EngineStatus, Limits, LocalModel
from localfirst.engines.ollama.engine import OllamaEngine
from localfirst.engines.ollama.listing import full_name
from localfirst.errors import Breakage, UpstreamBroken, UpstreamRefused
from localfirst.events import Event, Opened, Vectors
from localfirst.types import Call, Clock, Json, Target

REST_S = 5.0
"""How long a host that broke is passed over while another can answer."""


class OllamaHosts:
    """An `Engine` over several; each keeps its own queue, contexts and health."""

    def __init__(self, engines: Sequence[OllamaEngine], clock: Clock) -> None:
        self._engines = tuple(engines)
        self._clock = clock
        self._resting: dict[str, float] = {}
        self._going: Counter[str] = Counter()

    async def answer(
        self, call: Call, target: Target, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        """
        As `Backend.answer`; a host that fails before it answered makes way for the next.

        Raises:
            UpstreamError: of the last host that was tried.
        """
        engines = await self._ranked(target.model)
        for engine in engines:
            opened = False
            self._going[engine.daemon.endpoint] += 1
            try:
                async with aclosing(engine.answer(call, target, limits)) as events:
                    async for event in events:
                        opened = opened or isinstance(event, Opened)
                        yield event
                return
            except (UpstreamBroken, UpstreamRefused) as error:
                if isinstance(error, UpstreamRefused) and error.status < 500:
                    raise  # the request's own fault is one everywhere
                self._resting[engine.daemon.endpoint] = self._clock.monotonic() + REST_S
                if opened or engine is engines[-1]:
                    raise
            finally:
                self._going[engine.daemon.endpoint] -= 1

    async def _ranked(self, model: str) -> list[OllamaEngine]:
        """
        Hosts in the order they are asked: the idle before the busy, loaded before not. Those
        without the model are asked only where nobody has it, so that one says so.

        Raises:
            UpstreamBroken: none of them answers.
        """
        statuses = await asyncio.gather(*(engine.status() for engine in self._engines))
        now = self._clock.monotonic()
        ranked = []
        for place, (engine, status) in enumerate(zip(self._engines, statuses, strict=True)):
            if not status.ready:
                continue
            found = _find(status, model)
            rests = self._resting.get(engine.daemon.endpoint, 0.0) > now
            loaded = found is not None and found.loaded
            going = self._going[engine.daemon.endpoint]
            order = (found is None, rests, going, not loaded, place)
            ranked.append((order, engine))
        if not ranked:
            raise UpstreamBroken(Breakage.CONNECT_REFUSED, "none of the Ollama hosts answers")
        ranked.sort(key=lambda pair: pair[0])
        lacks = ranked[0][0][0]
        return [engine for order, engine in ranked if order[0] is lacks]

    async def embed(self, model: str, texts: list[str], options: dict[str, Json]) -> Vectors:
        """As `Engine.embed`, at the first host."""
        return await (await self._ranked(model))[0].embed(model, texts, options)

    async def load(self, model: str) -> None:
        """As `Engine.load`, at the first host."""
        await (await self._ranked(model))[0].load(model)

    async def unload(self, model: str) -> bool:
        """As `Engine.unload`, at every host."""
        ready = await self._ranked(model)
        gone = await asyncio.gather(
            *(engine.unload(model) for engine in ready), return_exceptions=True
        )
        for found in gone:
            if isinstance(found, BaseException) and True not in gone:
                raise found
        return True in gone

    async def delete(self, model: str) -> None:
        """As `OllamaEngine.delete`, at every host that has it."""
        for engine in await self._ranked(model):
            await engine.delete(model)

    async def aclose(self) -> None:
        """Nothing of theirs is ours to stop."""
        await asyncio.gather(*(engine.aclose() for engine in self._engines))

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        """All hosts as one: ready when one is; a model is listed once."""
        statuses = await asyncio.gather(
            *(engine.status(max_age_s=max_age_s) for engine in self._engines)
        )
        ready = [status for status in statuses if status.ready]
        down = [status.endpoint for status in statuses if not status.ready]
        first = ready[0] if ready else statuses[0]
        models: dict[str, LocalModel] = {}
        for status in ready:
            for model in status.models:
                known = models.get(full_name(model.name))
                if known is None or (model.loaded and not known.loaded):
                    models[full_name(model.name)] = model
        return msgspec.structs.replace(
            first,
            reason=f"not answering: {', '.join(down)}" if down else first.reason,
            models=tuple(models.values()),
            partial=bool(down),
        )


def _find(status: EngineStatus, model: str) -> LocalModel | None:
    wanted = full_name(model)
    return next((m for m in status.models if full_name(m.name) == wanted), None)

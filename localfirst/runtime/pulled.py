"""
The last rung: download a model, then answer from the local engine.

The download belongs to the `Puller`, not to the request: a caller who leaves does not stop
it, and everybody who asks meanwhile follows the same one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec

from localfirst.engines.base import Engine, Limits
from localfirst.errors import Breakage, UpstreamBroken
from localfirst.events import Event, Progress
from localfirst.types import Call, Target
from localfirst.wire.refusal import NotTranslatable, untranslated


class Download(Protocol):
    """A running download, as `models.pull.PullJob` is one."""

    def watch(self) -> AsyncIterator[Progress]:
        """Progress until it is done; raises what it failed with."""
        ...


class PulledBackend:
    """
    A `Backend` whose first answer takes as long as a download does.

    Args:
        engine: answers once the model is there.
        start: begins a download, or joins the one that runs.
        reach: whether the registry of a name can be reached at all; quick.
        arrived: told when a model has come.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        start: Callable[[str], Download],
        reach: Callable[[str], Awaitable[bool]],
        arrived: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._start = start
        self._reach = reach
        self._arrived = arrived

    async def answer(
        self, call: Call, target: Target, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        """Yield the download's `Progress`, then the engine's own events."""
        # What no local engine has words for is no reason to fetch one a model.
        try:
            _ = call.chat
        except NotTranslatable as error:
            raise untranslated(error) from error
        # A download tries again for as long as a night; somebody who waits for an answer
        # wants to know at once that there is no network.
        if not await self._reach(target.model):
            raise UpstreamBroken(Breakage.OFFLINE, "the registry cannot be reached")
        async for progress in self._start(target.model).watch():
            yield progress
        self._arrived()
        local = msgspec.structs.replace(target, provider="local")
        async with aclosing(self._engine.answer(call, local, limits)) as events:
            async for event in events:
                yield event

    async def aclose(self) -> None:
        """Nothing of its own to close."""

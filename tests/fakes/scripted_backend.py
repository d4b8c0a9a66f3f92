"""A backend that does as its script says, and a cascade around a few of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from localfirst.cascade.health import Cooldown, Health, Place
from localfirst.cascade.plan import ProviderView, World
from localfirst.cascade.quota import Quota
from localfirst.cascade.run import Cascade
from localfirst.engines.base import EngineStatus, Limits, LocalModel
from localfirst.errors import UpstreamRefused
from localfirst.events import Event, Finished, Opened, TextDelta, Usage
from localfirst.settings import Settings
from localfirst.types import Call, ChatRequest, Dialect, Message, Needs, Target
from tests.fakes.virtual_time import VirtualClock, VirtualLoop

Move = Event | BaseException | float | Callable[[], Any]
"""Yield an event, raise an exception, wait so many seconds, or call."""

HANG = float("inf")
USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def says(text: str = "hello", *, headers: Sequence[tuple[str, str]] = ()) -> list[Move]:
    return [Opened(200, tuple(headers)), TextDelta(text), Finished(usage=USAGE)]


def refuses(
    status: int, body: object = None, headers: Sequence[tuple[str, str]] = ()
) -> list[Move]:
    return [UpstreamRefused(status, msgspec.json.encode(body) if body else b"", headers)]


class ScriptedBackend:
    """Plays one script per request, the last one for ever."""

    def __init__(self, *scripts: Sequence[Move]) -> None:
        self.scripts: list[Sequence[Move]] = list(scripts) or [says()]
        self.asked: list[Target] = []
        self.asked_at: list[float] = []
        self.calls: list[Call] = []
        self.limits: list[Limits] = []
        self.open = 0
        self.closed = 0

    async def answer(
        self, call: Call, target: Target, limits: Limits
    ) -> AsyncGenerator[Event, None]:
        self.asked.append(target)
        self.asked_at.append(asyncio.get_running_loop().time())
        self.calls.append(call)
        self.limits.append(limits)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.open += 1
        try:
            for move in script:
                await asyncio.sleep(0)
                if isinstance(move, BaseException):
                    raise move
                if isinstance(move, float | int):
                    await (asyncio.Event().wait() if move == HANG else asyncio.sleep(move))
                elif callable(move):
                    move()
                else:
                    yield move
        finally:
            self.open -= 1
            self.closed += 1

    async def aclose(self) -> None:
        """Nothing to close."""


class Records:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.attempts: list[Any] = []
        self.breakages: list[str] = []
        self.cooldowns: list[Cooldown] = []
        self.dropped: list[Place] = []
        self.windows: dict[Any, Any] = {}

    def record_attempt(self, attempt: Any, *, breakage: str = "", **_: Any) -> None:
        self.attempts.append(attempt)
        self.breakages.append(breakage)

    def save_cooldown(self, entry: Cooldown) -> None:
        self.cooldowns.append(entry)

    def save_windows(self, found: Mapping[Any, Any]) -> None:
        self.windows.update(found)

    def drop_cooldowns(self, places: tuple[Place, ...]) -> None:
        self.dropped.extend(places)


def view(id: str, *, keys: int = 1, **rest: Any) -> ProviderView:
    labels = tuple(f"{id.upper()}_API_KEY#{n}" if n > 1 else f"{id.upper()}_API_KEY"
                   for n in range(1, keys + 1))  # fmt: skip
    rest.setdefault("default_models", (f"{id}-model",))
    return ProviderView(id=id, key_labels=labels, **rest)


def engine(*models: LocalModel, ready: bool = True) -> EngineStatus:
    return EngineStatus(kind="ollama", state="ready", ready=ready, models=models)


TINY = LocalModel(name="tiny:latest", size_bytes=500_000, fit="fits", capabilities=("completion",))


class House:
    """A cascade over scripted backends on virtual time."""

    def __init__(
        self,
        backends: Mapping[str, ScriptedBackend],
        *,
        settings: Settings | None = None,
        loop: VirtualLoop | None = None,
        budget: Callable[[Target], str] | None = None,
        quota: Quota | None = None,
        **world: Any,
    ) -> None:
        self.backends = dict(backends)
        self.loop = loop or asyncio.get_running_loop()
        assert isinstance(self.loop, VirtualLoop)
        self.clock = VirtualClock(self.loop)
        self.records = Records()
        clouds = [name for name in backends if name not in {"local", "pull"}]
        world.setdefault("order", tuple(backends))
        world.setdefault("providers", {name: view(name) for name in clouds})
        if "local" in backends:
            world.setdefault("local", engine(TINY))
        self.world = World(**world)
        self.cascade = Cascade(
            backends=self.backends,
            look=self._look,
            clock=self.clock,
            settings=settings or Settings(),
            health=Health(),
            quota=quota or Quota(),
            recorder=self.records,
            budget=budget,
        )

    async def _look(self, call: Call) -> World:
        del call
        return self.world

    async def ask(self, **call: Any) -> Any:
        """The whole reply to one call."""
        return await (await self.cascade.open(make_call(**call))).reply()

    @property
    def unanswered(self) -> int:
        """Upstream generators that are still open."""
        return sum(backend.open for backend in self.backends.values())


def make_call(model: str = "auto", *, stream: bool = True, **rest: Any) -> Call:
    rest.setdefault("request", ChatRequest(messages=(Message(role="user", content="hi"),)))
    rest.setdefault("needs", Needs())
    return Call(model=model, stream=stream, dialect=Dialect.OPENAI, request_id="lf-1", **rest)

"""
The library: `AsyncClient`, the same cascade and the same state as the gateway.

It owns one `Runtime`, opened at the first call and closed by `aclose()` or `async with`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from localfirst.arguments import (
    Messages,
    asked,
    build_call,
    embed_options,
    read_texts,
)
from localfirst.errors import ConfigError, InvalidRequest, Unavailable
from localfirst.events import Event, Progress, Reply, TextDelta
from localfirst.settings import Settings
from localfirst.types import Attempt, Call, Json

if TYPE_CHECKING:
    from localfirst.cascade.plan import Plan
    from localfirst.cascade.run import Answer
    from localfirst.config import Loaded
    from localfirst.runtime import EmbedReply, ModelEntry, Runtime

T = TypeVar("T")
LEAVE_S = 5.0
"""Longest wait for those to leave whose client is closed."""


class AsyncStream:
    """
    One streamed answer: `async for event in stream`, or `async for text in stream.text()`.

    Events are `TextDelta`, `ReasoningDelta` and `ToolCallDelta`, last `Finished`, and before
    them `Progress` while a model loads or is downloaded.
    `route` and `attempts` are known once the first event came, `reply` after the last.
    Leaving it early (`break`, `aclose()`, `async with`, cancellation) closes the upstream at
    once.
    """

    def __init__(self, client: AsyncClient, call: Call) -> None:
        self._client = client
        self._call = call
        self._answer: Answer | None = None
        self._reply: Reply | None = None

    @property
    def route(self) -> str:
        """`provider/model` of who answers; empty before the first event."""
        return self._answer.target.route if self._answer else ""

    @property
    def headers(self) -> dict[str, str]:
        """The `x-localfirst-*` facts about this answer so far."""
        return dict(self._answer.headers()) if self._answer else {}

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every request that was sent for this answer so far, in order."""
        return tuple(self._answer.attempts) if self._answer else ()

    @property
    def reply(self) -> Reply:
        """The whole answer; raises `InvalidRequest` while the stream is unfinished."""
        if self._reply is None:
            raise InvalidRequest(
                "the stream is not finished", hint="read it to its end before asking for `reply`"
            )
        return self._reply

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self.events()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The answer's events, once; closing the generator closes the upstream."""
        answer = await self._client._until_closed(self.open())
        try:
            while (event := await self._client._until_closed(following(answer))) is not None:
                yield event
            self._reply = await answer.reply()
        finally:
            await answer.aclose()

    async def open(self) -> Answer:
        """Climb the ladder until somebody answers; idempotent."""
        if self._answer is None:
            runtime = await self._client.opened()
            self._answer = await runtime.open(self._call)
        return self._answer

    async def text(self) -> AsyncIterator[str]:
        """The visible text alone, piece by piece."""
        async for event in self:
            if isinstance(event, TextDelta) and event.text:
                yield event.text

    async def aclose(self) -> None:
        """Stop, and close the upstream connection."""
        if self._answer is not None:
            await self._answer.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncClient:
    """
    Answers from this machine first, then from the clouds whose keys are found.

    Args:
        settings: as `load_settings()` gives them; read from files and environment when None.
        overrides: single settings by path (`**{"cascade.deadline_s": 30}`) or by name with
            `__` for the dot (`cascade__deadline_s=30`), over what is read.

    Raises:
        ConfigError: both were given, or settings that are none.
    """

    _runtime: Runtime | None = None
    _pid = 0

    def __init__(self, settings: Settings | Loaded | None = None, **overrides: object) -> None:
        self._settings = chosen(settings, overrides)
        self._overrides = {name.replace("__", "."): value for name, value in overrides.items()}
        self._opening = asyncio.Lock()
        self._waits: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def opened(self) -> Runtime:
        """
        The runtime behind this client, started on first use.

        Raises:
            InvalidRequest: another event loop started it, with sockets that this one has not.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in {None, loop}:
            raise InvalidRequest(
                "this `AsyncClient` belongs to another event loop",
                hint="make one in each `asyncio.run`, or use `localfirst.Client`",
                code="other-loop",
            )
        self._loop = loop
        if self._runtime is not None:
            return self._runtime
        return await self._until_closed(self._open())

    async def _open(self) -> Runtime:
        async with self._opening:
            if self._runtime is not None:
                return self._runtime
            from localfirst import config
            from localfirst.runtime import Runtime

            settings = self._settings or config.load(overrides=self._overrides).settings
            if not settings.state_dir:  # made by hand; "" would be the working directory
                settings = replace(settings, state_dir=config.state_dir())
            runtime = Runtime(settings)
            try:
                await runtime.start()
            except BaseException:
                runtime.ledger.end()
                raise
            self._runtime, self._pid = runtime, os.getpid()
            return runtime

    async def chat(
        self, messages: Messages, *, model: str = "auto", schema: Any = None, **options: Any
    ) -> Reply:
        """
        Ask, and wait for the whole answer.

        Args:
            messages: a prompt, or a conversation.
            model: a name of the README's table; "auto" climbs the ladder.
            schema: a Pydantic model or a JSON schema; `Reply.parsed` is then the validated
                object. Streams are not validated.
            options: any field of `ChatRequest` (`temperature`, `max_tokens`, `tools`, …) and
                `local_only`, `fallback`, `deadline_s`.

        Raises:
            CascadeExhausted: nobody could answer; `.attempts` says why.
            DeadlineExceeded: not within `deadline_s`, or the settings' own.
            InvalidRequest: the request is wrong in itself.
            Unavailable: this client was closed meanwhile.
        """
        runtime = await self.opened()
        call = build_call(messages, schema=schema, **asked(options, model=model, stream=False))
        return await self._until_closed(runtime.reply(call, schema))

    def stream(self, messages: Messages, *, model: str = "auto", **options: Any) -> AsyncStream:
        """Ask, and read the answer as it comes; arguments as for `chat`."""
        return AsyncStream(self, build_call(messages, **asked(options, model=model, stream=True)))

    async def embed(
        self, texts: str | Sequence[str], *, model: str = "auto", **options: Any
    ) -> EmbedReply:
        """
        Vectors of *texts*, one each, by a local model or `provider/model`.

        Args:
            texts: one, or several.
            model: "auto" takes the installed model that embeds.
            options: `local_only`, and of the engine's `dimensions`, `truncate`, `keep_alive`
                and `options`.
        """
        wanted, local_only = read_texts(texts), embed_options(options)
        runtime = await self.opened()
        work = runtime.embed(model, wanted, options, local_only=local_only)
        return await self._until_closed(work)

    async def pull(self, name: str, *, insecure: bool = False) -> AsyncGenerator[Progress, None]:
        """
        Download *name* into Ollama's store; ends when it is verified and listed.

        Who leaves early ends the download, unless somebody else waits for it; the next one
        goes on where it stopped.
        """
        runtime = await self.opened()
        async with contextlib.aclosing(runtime.pull(name, insecure=insecure)) as progresses:
            async for progress in progresses:
                yield progress

    async def models(self) -> list[ModelEntry]:
        """Every name a request may use now: installed, clouds', routes'."""
        return await (await self.opened()).models()

    async def explain(self, model: str = "auto", **options: Any) -> Plan:
        """The plan for a request to *model*: each rung with its reason. Sends nothing."""
        runtime = await self.opened()
        call = build_call("", **asked(options, model=model, stream=False))
        return await runtime.explain(call)

    async def state(self) -> dict[str, Json]:
        """What the runtime knows of engine, providers, cooldowns and pulls; no secrets."""
        return await (await self.opened()).state()

    async def aclose(self) -> None:
        """Close every connection and stop what was started; idempotent."""
        # Who waits leaves first: a connection that is closed under them is nobody's failure.
        self._idle.clear()
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())
        if self._waits:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), LEAVE_S)
        runtime, self._runtime, self._loop = self._runtime, None, None
        if runtime is not None:
            await runtime.aclose()

    async def _until_closed(self, work: Awaitable[T]) -> T:
        """What *work* comes to, unless this client is closed before it does."""
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                return await work
        except TimeoutError:
            if wait.expired():
                raise closed() from None
            raise
        finally:
            self._waits.discard(wait)
            if not self._waits:
                self._idle.set()

    def __del__(self) -> None:
        # Without its loop nothing can be closed any more; what is not, Python warns of.
        if self._runtime is not None and self._pid == os.getpid():
            self._runtime.ledger.end()
            told = "`AsyncClient` was not closed: use `async with`"
            warnings.warn(told, ResourceWarning, 2, self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


async def following(answer: Answer) -> Event | None:
    """The next event, None after the last."""
    async for event in answer:
        return event
    return None


def closed() -> Unavailable:
    """What a call gets whose client was closed under it, or left behind by a fork."""
    return Unavailable(
        "the client of this call was closed, or is that of a parent process",
        hint="close it once everybody who uses it is done; each process asks for itself",
        code="client-closed",
    )


def chosen(given: Settings | Loaded | None, overrides: Mapping[str, object]) -> Settings | None:
    """The settings of a client's arguments; None has them read when they are needed."""
    settings = getattr(given, "settings", given)
    if settings is None:
        return None
    if not isinstance(settings, Settings):
        raise ConfigError(
            "a client's settings are `localfirst.Settings`",
            hint="`load_settings(overrides={…})` makes them; single ones are keyword arguments",
        )
    if overrides:
        # To ignore one of them could send a prompt where it must not go.
        named = ", ".join(f"`{name}`" for name in overrides)
        raise ConfigError(
            f"settings were given whole, and {named} besides",
            hint="give either; `load_settings(overrides={…})` makes one of both",
        )
    return settings

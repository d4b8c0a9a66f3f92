"""
The library without `await`: a thin facade over `AsyncClient` on one private loop thread.

The thread starts with the first call, is never inherited by a forked child, and ends with
`close()` or the process. Streams pull one event at a time, so a slow reader slows the
model and not the memory.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from localfirst.client import AsyncClient, AsyncStream, Messages
from localfirst.errors import InvalidRequest
from localfirst.events import Event, Progress, Reply, TextDelta
from localfirst.transport.hands import Hands

if TYPE_CHECKING:
    from localfirst.cascade.plan import Plan
    from localfirst.runtime import EmbedReply, ModelEntry
    from localfirst.settings import Settings
    from localfirst.types import Json

T = TypeVar("T")
CLOSE_S = 10.0
"""Longest wait for engines and connections to close."""


class LoopThread:
    """One event loop on one daemon thread, remembered with the process it belongs to."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.hands = Hands()
        self.loop.set_default_executor(self.hands)
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="localfirst", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run *work* on the loop and wait; an interrupt of the caller cancels it."""
        context = contextvars.copy_context()
        future = asyncio.run_coroutine_threadsafe(in_context(work, context), self.loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread; idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(CLOSE_S)
            self.hands.shutdown(wait=False)


async def in_context(work: Coroutine[Any, Any, T], context: contextvars.Context) -> T:
    """Run *work* with the caller's context variables."""
    return await asyncio.get_running_loop().create_task(work, context=context)


class Stream:
    """One streamed answer: iterate over events, or over `text()`; see `AsyncStream`."""

    def __init__(self, client: Client, inner: AsyncStream) -> None:
        self._client = client
        self._inner = inner

    def __iter__(self) -> Iterator[Event]:
        yield from self._client._iterate(self._inner.events())

    def text(self) -> Iterator[str]:
        """The visible text alone, piece by piece."""
        for event in self:
            if isinstance(event, TextDelta) and event.text:
                yield event.text

    @property
    def route(self) -> str:
        """`provider/model` of who answers; empty before the first event."""
        return self._inner.route

    @property
    def headers(self) -> dict[str, str]:
        """The `x-localfirst-*` facts about this answer so far."""
        return self._inner.headers

    @property
    def reply(self) -> Reply:
        """The whole answer, once the stream is read to its end."""
        return self._inner.reply

    def close(self) -> None:
        """Stop, and close the upstream connection."""
        self._client._run(self._inner.aclose())


class Client:
    """`AsyncClient` for code without an event loop; same methods, same arguments."""

    def __init__(self, settings: Settings | None = None, **overrides: object) -> None:
        self._arguments = (settings, overrides)
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._inner: AsyncClient | None = None

    def chat(
        self, messages: Messages, *, model: str = "auto", schema: Any = None, **options: Any
    ) -> Reply:
        """Ask, and wait for the whole answer; see `AsyncClient.chat`."""
        return self._run(self._client().chat(messages, model=model, schema=schema, **options))

    def stream(self, messages: Messages, *, model: str = "auto", **options: Any) -> Stream:
        """Ask, and read the answer as it comes; see `AsyncClient.stream`."""
        return Stream(self, self._client().stream(messages, model=model, **options))

    def embed(
        self, texts: str | Sequence[str], *, model: str = "auto", **options: Any
    ) -> EmbedReply:
        """Vectors of *texts*; see `AsyncClient.embed`."""
        return self._run(self._client().embed(texts, model=model, **options))

    def pull(self, name: str, *, insecure: bool = False) -> Iterator[Progress]:
        """Download *name* into Ollama's store, progress by progress."""
        yield from self._iterate(self._client().pull(name, insecure=insecure))

    def models(self) -> list[ModelEntry]:
        """Every name a request may use now."""
        return self._run(self._client().models())

    def explain(self, model: str = "auto", **options: Any) -> Plan:
        """The plan for a request to *model*; sends nothing."""
        return self._run(self._client().explain(model, **options))

    def state(self) -> dict[str, Json]:
        """What the runtime knows; no secrets."""
        return self._run(self._client().state())

    def close(self) -> None:
        """Close connections, stop what was started, end the thread; idempotent."""
        with self._lock:
            thread, inner = self._thread, self._inner
            self._thread = self._inner = None
        if thread is None or inner is None or thread.pid != os.getpid():
            return
        try:
            thread.call(inner.aclose(), CLOSE_S)
        finally:
            thread.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _client(self) -> AsyncClient:
        """The inner client, on a thread of this very process."""
        refuse_inside_a_loop()
        with self._lock:
            if self._inner is None or self._thread is None or self._thread.pid != os.getpid():
                self._thread = LoopThread()
                _open.add(self)
                self._inner = self._thread.call(self._build())
            return self._inner

    async def _build(self) -> AsyncClient:
        settings, overrides = self._arguments
        return AsyncClient(settings, **overrides)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._thread is not None, "`_client()` made the thread"
        return self._thread.call(work)

    def _iterate(self, source: AsyncGenerator[Any, None]) -> Iterator[Any]:
        """One item at a time from the loop; leaving early closes the source there."""
        try:
            while (item := self._run(following(source))) is not END:
                yield item
        finally:
            self._run(finished(source))


END = object()


async def following(source: AsyncGenerator[Any, None]) -> Any:
    """The next item, or END; a coroutine, as a thread-safe call needs one."""
    return await anext(source, END)


async def finished(source: AsyncGenerator[Any, None]) -> None:
    """Close *source* on its own loop."""
    await source.aclose()


def refuse_inside_a_loop() -> None:
    """A blocking call inside a running loop would freeze it; say what to use instead."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidRequest(
        "`Client` blocks, and an event loop is running here",
        hint="use `localfirst.AsyncClient` inside async code",
        code="sync-in-async",
    )


_open: weakref.WeakSet[Client] = weakref.WeakSet()
_shared: Client | None = None
_shared_lock = threading.Lock()


def shared() -> Client:
    """The client behind the module's functions."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Client()
        return _shared


@atexit.register
def close_the_open() -> None:
    """What nobody closed ends with the process: its history is written, its engine stopped."""
    for client in list(_open):
        client.close()


def chat(messages: Messages, *, model: str = "auto", schema: Any = None, **options: Any) -> Reply:
    """Ask, and wait for the whole answer; see `AsyncClient.chat`."""
    return shared().chat(messages, model=model, schema=schema, **options)


def stream(messages: Messages, *, model: str = "auto", **options: Any) -> Stream:
    """Ask, and read the answer as it comes; see `AsyncClient.stream`."""
    return shared().stream(messages, model=model, **options)


def embed(texts: str | Sequence[str], *, model: str = "auto", **options: Any) -> EmbedReply:
    """Vectors of *texts*; see `AsyncClient.embed`."""
    return shared().embed(texts, model=model, **options)


def pull(name: str, *, insecure: bool = False) -> Iterator[Progress]:
    """Download *name* into Ollama's store, progress by progress."""
    return shared().pull(name, insecure=insecure)

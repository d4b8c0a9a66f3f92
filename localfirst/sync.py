"""
The library without `await`: a thin facade over `AsyncClient` on one private loop thread.

The thread starts with the first call, is never inherited by a forked child, and ends with
`close()`, with the last use of its client, or with the process. Streams pull one event at a
time, so a slow reader slows the model and not the memory.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from localfirst.arguments import Messages
from localfirst.client import AsyncClient, AsyncStream, chosen, closed
from localfirst.errors import InvalidRequest, Unavailable
from localfirst.events import Event, Progress, Reply, TextDelta
from localfirst.transport.hands import Hands

if TYPE_CHECKING:
    from localfirst.cascade.plan import Plan
    from localfirst.config import Loaded
    from localfirst.runtime import EmbedReply, ModelEntry
    from localfirst.settings import Settings
    from localfirst.types import Attempt, Json

T = TypeVar("T")
CLOSE_S = 10.0
"""Longest wait for engines and connections to close."""


class LoopThread:
    """One event loop and the `AsyncClient` on it, on one daemon thread of one process."""

    def __init__(self, settings: Settings | Loaded | None, overrides: Mapping[str, object]) -> None:
        self.loop = asyncio.new_event_loop()
        self.hands = Hands()
        self.loop.set_default_executor(self.hands)
        self.pid = os.getpid()
        self.client = AsyncClient(settings, **overrides)
        self._ending = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="localfirst", daemon=True)
        self._thread.start()
        _open.add(self)

    @property
    def usable(self) -> bool:
        """Whether it takes calls: nobody closed it, and this process made it."""
        return not self._ending and self.pid == os.getpid()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()
        self.hands.shutdown(wait=False)
        _open.discard(self)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """
        Run *work* on the loop and wait; an interrupt of the caller cancels it.

        Raises:
            Unavailable: the client was closed, before or meanwhile.
        """
        try:
            return self._call(work)
        except Unavailable:
            if _leaving and threading.current_thread().daemon:
                threading.Event().wait()  # it ends with the process, which need not be told
            raise

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        context = contextvars.copy_context()
        with self._lock:
            if not self.usable:
                work.close()
                raise closed()
            future = asyncio.run_coroutine_threadsafe(self._ask(work, context), self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _ask(self, work: Coroutine[Any, Any, T], context: contextvars.Context) -> T:
        """Run *work* with the caller's context variables."""
        if self._ending:
            work.close()
            raise closed()
        return await self.loop.create_task(work, context=context)

    def end(self) -> None:
        """Have everything on the loop closed, and the thread end; returns at once, idempotent."""
        if self.pid != os.getpid():
            return
        with self._lock:
            if not self._ending:
                self._ending = True
                self.loop.call_soon_threadsafe(self._close)

    def join(self) -> None:
        """Wait for that end."""
        if self.pid == os.getpid():
            self._thread.join(CLOSE_S + 1.0)

    def _close(self) -> None:
        closing = self.loop.create_task(self._close_client())
        closing.add_done_callback(lambda _: self.loop.stop())

    async def _close_client(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.client.aclose()


class Stream:
    """One streamed answer: iterate over events, or over `text()`; see `AsyncStream`."""

    def __init__(self, client: Client, thread: LoopThread, inner: AsyncStream) -> None:
        self._client = client  # which lives as long as somebody reads
        self._thread = thread
        self._inner = inner

    def __iter__(self) -> Iterator[Event]:
        yield from each(self._thread, self._inner.events())

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
    def attempts(self) -> tuple[Attempt, ...]:
        """Every request that was sent for this answer so far, in order."""
        return self._inner.attempts

    @property
    def reply(self) -> Reply:
        """The whole answer, once the stream is read to its end."""
        return self._inner.reply

    def close(self) -> None:
        """Stop, and close the upstream connection; idempotent."""
        finish(self._thread, self._inner)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """`AsyncClient` for code without an event loop; same methods, same arguments."""

    def __init__(self, settings: Settings | Loaded | None = None, **overrides: object) -> None:
        chosen(settings, overrides)
        self._arguments = (settings, overrides)
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None

    def chat(
        self, messages: Messages, *, model: str = "auto", schema: Any = None, **options: Any
    ) -> Reply:
        """Ask, and wait for the whole answer; see `AsyncClient.chat`."""
        thread = self._loop()
        return thread.call(thread.client.chat(messages, model=model, schema=schema, **options))

    def stream(self, messages: Messages, *, model: str = "auto", **options: Any) -> Stream:
        """Ask, and read the answer as it comes; see `AsyncClient.stream`."""
        thread = self._loop()
        return Stream(self, thread, thread.client.stream(messages, model=model, **options))

    def embed(
        self, texts: str | Sequence[str], *, model: str = "auto", **options: Any
    ) -> EmbedReply:
        """Vectors of *texts*; see `AsyncClient.embed`."""
        thread = self._loop()
        return thread.call(thread.client.embed(texts, model=model, **options))

    def pull(self, name: str, *, insecure: bool = False) -> Iterator[Progress]:
        """Download *name* into Ollama's store, as the progress is read to its end."""
        thread = self._loop()
        yield from each(thread, thread.client.pull(name, insecure=insecure))

    def models(self) -> list[ModelEntry]:
        """Every name a request may use now."""
        thread = self._loop()
        return thread.call(thread.client.models())

    def explain(self, model: str = "auto", **options: Any) -> Plan:
        """The plan for a request to *model*; sends nothing."""
        thread = self._loop()
        return thread.call(thread.client.explain(model, **options))

    def state(self) -> dict[str, Json]:
        """What the runtime knows; no secrets."""
        thread = self._loop()
        return thread.call(thread.client.state())

    def close(self) -> None:
        """Close connections, stop what was started, end the thread; idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()
            thread.join()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _loop(self) -> LoopThread:
        """The inner client's thread, of this very process."""
        refuse_inside_a_loop()
        with self._lock:
            if self._thread is None or not self._thread.usable:
                self._thread = LoopThread(*self._arguments)
                # Who forgets a client has not closed it: its engine and history must not wait
                # for the end of the process.
                weakref.finalize(self, self._thread.end).atexit = False
            return self._thread


def each(thread: LoopThread, source: AsyncGenerator[T, None]) -> Iterator[T]:
    """One item at a time from the loop; leaving early closes the source there."""
    try:
        while (item := thread.call(following(source))) is not END:
            yield cast("T", item)
    finally:
        finish(thread, source)


def finish(thread: LoopThread, source: AsyncGenerator[Any, None] | AsyncStream) -> None:
    """Close *source* on its loop; with its client, or in its parent process, it is closed."""
    with contextlib.suppress(Unavailable):
        thread.call(finished(source))


END = object()


async def following(source: AsyncGenerator[Any, None]) -> Any:
    """The next item, or END; a coroutine, as a thread-safe call needs one."""
    return await anext(source, END)


async def finished(source: AsyncGenerator[Any, None] | AsyncStream) -> None:
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


_open: set[LoopThread] = set()
_leaving = False
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
    global _leaving
    _leaving = True
    for thread in list(_open):
        thread.end()
    for thread in list(_open):
        thread.join()


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
    """Download *name* into Ollama's store, as the progress is read to its end."""
    return shared().pull(name, insecure=insecure)

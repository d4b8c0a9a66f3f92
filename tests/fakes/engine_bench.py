"""What tests of the engines share: daemons as programs of their own, calls, collected events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from localfirst.engines.base import Engine, Limits
from localfirst.engines.launch import free_port
from localfirst.engines.ollama import OllamaEngine
from localfirst.engines.ollama.daemon import Daemon
from localfirst.events import Event, Finished, TextDelta
from localfirst.settings import LocalSettings, Privacy, Settings
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, ChatRequest, Dialect, Message, Rung, Target

ROOT = Path(__file__).parent.parent.parent
REAL = ROOT / ".cache" / "ollama" / "bin" / "ollama"
NO_REAL = "no real Ollama: run scripts/ollama"


class Served:
    """A daemon that runs: the program, and its endpoint."""

    def __init__(self, child: process.Child, endpoint: str) -> None:
        self.child = child
        self.endpoint = endpoint

    def runners(self) -> list[int]:
        """The pids of its inference programs."""
        import psutil

        children = psutil.Process(self.child.pid).children(recursive=True)
        return [child.pid for child in children if "llama-server" in " ".join(child.cmdline())]


class JumpyClock(SystemClock):
    """
    Real time, with a wall clock that can be made to jump as a suspend makes it, and both
    clocks that can be made later.
    """

    def __init__(self) -> None:
        self.jumped_s = 0.0
        self.later_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.later_s

    def unix(self) -> float:
        return super().unix() + self.jumped_s + self.later_s


@contextlib.asynccontextmanager
async def fake_daemon(script: dict[str, Any]) -> AsyncIterator[Served]:
    """`tests.fakes.ollama_daemon` with *script*."""
    said: list[bytes] = []
    child = process.spawn(
        [sys.executable, "-m", "tests.fakes.ollama_daemon", json.dumps(script)],
        env=process.child_environ(os.environ, {"PYTHONPATH": str(ROOT)}),
        on_stdout=said.append,
    )
    try:
        await until(lambda: b"\n" in b"".join(said) or not child.alive, "the fake's port")
        yield Served(child, f"http://127.0.0.1:{int(b''.join(said))}")
    finally:
        await child.stop()


class OllamaBench:
    """The Ollama engine on a fake daemon, with a clock that can be made to jump."""

    def __init__(self, served: Served, engine: OllamaEngine, clock: JumpyClock) -> None:
        self.served = served
        self.engine = engine
        self.clock = clock

    async def asked(self, path: str = "/api/chat") -> list[dict[str, Any]]:
        """The bodies that the daemon got at *path*."""
        found = await tell(self.served.endpoint)
        return [entry["body"] for entry in found["requests"] if entry["path"] == path]


@contextlib.asynccontextmanager
async def ollama_bench(
    models: dict[str, Any],
    *,
    local: LocalSettings | None = None,
    privacy: Privacy = Privacy.ALLOW_CLOUD,
    **script: Any,
) -> AsyncIterator[OllamaBench]:
    """A fake daemon with *models* and an engine on it; GPUs are expected for `big` alone."""
    upstream = UpstreamClient(SystemClock())
    settings = Settings(local=local or LocalSettings(), privacy=privacy)
    try:
        async with fake_daemon({"models": models} | script) as served:
            clock = JumpyClock()
            engine = OllamaEngine(
                served.endpoint,
                settings,
                upstream=upstream,
                clock=clock,
                expects_gpu=lambda name: "big" in name.lower(),
            )
            yield OllamaBench(served, engine, clock)
            await engine.aclose()
    finally:
        await upstream.aclose()


@contextlib.asynccontextmanager
async def real_daemon(folder: Path, store: Path, **extra: str) -> AsyncIterator[Served]:
    """The Ollama that `scripts/ollama` made, on *store*, with a home of its own."""
    port = free_port()
    own = {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(store),
        "HOME": str(folder),
        "OLLAMA_NO_CLOUD": "1",
    }
    child = process.spawn(
        [str(REAL), "serve"], env=process.child_environ({"PATH": os.environ["PATH"]}, own | extra)
    )
    upstream = UpstreamClient(SystemClock())
    try:
        daemon = Daemon(f"http://127.0.0.1:{port}", upstream)
        async with asyncio.timeout(20):
            while not await daemon.alive(0.5):
                assert child.alive, child.log.tail()
                await asyncio.sleep(0.02)
        yield Served(child, daemon.endpoint)
    finally:
        await upstream.aclose()
        await child.stop()


async def tell(endpoint: str, **script: Any) -> dict[str, Any]:
    """Change the fake's script, and get what it was asked so far."""
    upstream = UpstreamClient(SystemClock())
    try:
        response = await upstream.send(
            f"{endpoint}/fake", method="POST", body=json.dumps(script).encode()
        )
        found: dict[str, Any] = json.loads(await response.read())
        return found
    finally:
        await upstream.aclose()


async def until(condition: Callable[[], bool], what: str, seconds: float = 8.0) -> None:
    """Wait for *condition*, bounded."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None


def run(test: Callable[[], Awaitable[None]], seconds: float = 30) -> None:
    """Run a test on a loop of its own, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await test()

    asyncio.run(bounded())


def ask(text: str = "hi", *, max_tokens: int | None = 4, **fields: Any) -> Call:
    """A call as the library makes it."""
    request = ChatRequest(
        messages=(Message(role="user", content=text),),
        max_tokens=max_tokens,
        **{"temperature": 0.0, "seed": 1} | fields,
    )
    return call_of(request)


def call_of(request: ChatRequest, **fields: Any) -> Call:
    """A call around a request."""
    usual = {"model": "tiny", "stream": True, "dialect": Dialect.OPENAI, "request_id": "r"}
    return Call(**usual | fields, request=request)


def target(model: str = "tiny") -> Target:
    """The local rung's candidate for *model*."""
    return Target(rung=Rung.LOCAL, provider="local", model=model)


async def collect(
    engine: Engine, call: Call, model: str = "tiny", limits: Limits | None = None
) -> list[Event]:
    """Every event of an answer."""
    return [event async for event in engine.answer(call, target(model), limits or Limits())]


def text_of(events: list[Event]) -> str:
    """The text of an answer."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def finish_of(events: list[Event]) -> Finished:
    """The terminator, which must be there."""
    assert isinstance(events[-1], Finished), events
    return events[-1]

"""
The corpus of streams through real sockets: cut in a clean way and in a rude one, and dripped;
`tests/wire/test_stream_cases` does the same without sockets after every single byte.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from localfirst.engines.base import Limits
from localfirst.errors import UpstreamError
from localfirst.events import Event, Finished
from localfirst.providers.catalog import configured
from localfirst.runtime.clouds import BACKENDS
from localfirst.settings import ProviderSettings, Secret, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, ChatRequest, Dialect, Message, Rung, Target
from tests.wire.support import Heard
from tests.wire.test_stream_cases import CASES, check, whole_from

STEP = int(os.environ.get("LOCALFIRST_CUT_STEP", "61"))
"""Bytes between two cuts; 1 cuts after every byte."""

PROVIDERS = {"openai": "groq", "anthropic": "anthropic", "gemini": "gemini"}
CLOUD_CASES = [case for case in CASES if case["api"].partition(".")[0] in PROVIDERS]
KEYS = (Secret("key-number-one-0001", "A"),)

each_case = pytest.mark.parametrize("case", CLOUD_CASES, ids=lambda case: case["id"])


class Server:
    """Answers each connection's one request with the bytes it was told, in chunks."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.clean = True

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
            writer.write(b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in self.pieces:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
            if self.clean:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


def backend_of(case: dict[str, Any], port: int, upstream: UpstreamClient) -> Any:
    name = PROVIDERS[case["api"].partition(".")[0]]
    dialect = "gemini" if name == "gemini" else ""
    given = ProviderSettings(base_url=f"http://127.0.0.1:{port}/v1", keys=KEYS, dialect=dialect)
    provider = configured(Settings(providers={name: given}))[name]
    return BACKENDS[provider.dialect](provider, upstream, SystemClock())


async def heard(backend: Any) -> Heard:
    request = ChatRequest(messages=(Message(role="user", content="hi"),), stream=True)
    call = Call(model="auto", stream=True, dialect=Dialect.OLLAMA, request_id="r", request=request)
    target = Target(rung=Rung.CLOUD, provider=backend.provider.id, model="m")
    events: list[Event] = []
    try:
        async for event in backend.answer(call, target, Limits()):
            events.append(event)
    except UpstreamError as error:
        return Heard(events, error)
    return Heard(events, None)


async def through_sockets(case: dict[str, Any], work: Any) -> None:
    served = Server()
    server = await asyncio.start_server(served, "127.0.0.1", 0)
    upstream = UpstreamClient(SystemClock())
    try:
        await work(served, backend_of(case, server.sockets[0].getsockname()[1], upstream))
    finally:
        await upstream.aclose()
        server.close()
        await server.wait_closed()


@each_case
def test_a_stream_is_concluded_as_its_bytes_say_however_they_come(case: dict[str, Any]) -> None:
    raw = case["raw"].encode()

    async def work(served: Server, backend: Any) -> None:
        for size in (1, 100, len(raw)):
            served.pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
            check(case, await heard(backend))

    asyncio.run(through_sockets(case, work))


@each_case
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "rude"])
def test_a_stream_that_is_cut_never_seems_whole(case: dict[str, Any], clean: bool) -> None:
    raw, whole = case["raw"].encode(), whole_from(case)
    # Gemini's streams end with their bytes, so a body that breaks off is never whole.
    said = clean or not case["api"].startswith("gemini")

    async def work(served: Server, backend: Any) -> None:
        served.clean = clean
        for cut in {*range(1, len(raw), STEP), min(whole, len(raw)) - 1, min(whole, len(raw))}:
            served.pieces = [raw[:cut]]
            found = await heard(backend)
            assert found.complete is (said and cut >= whole), (cut, found.error)
            assert not any(isinstance(event, Finished) for event in found.events[:-1])

    asyncio.run(through_sockets(case, work))

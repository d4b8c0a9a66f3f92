"""A gateway on a real socket for one test, and a client that speaks raw bytes to it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec

from localfirst.gateway.hub import Limits
from localfirst.gateway.listener import listen
from localfirst.gateway.server import Server, loop_factory

PATIENCE_S = 5.0
"""How long a test waits for what must happen."""


Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run on the kind of loop that the gateway runs on."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


class Answer(msgspec.Struct):
    """One HTTP answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Host:
    """A running gateway; `port` is where, `at` its Host header."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.at = f"127.0.0.1:{port}"
        self.url = f"http://{self.at}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, and read until the gateway closes."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), PATIENCE_S)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One ordinary request on its own connection."""
        fields = {"host": self.at, "connection": "close", **(headers or {})}
        if body is not None:
            fields.setdefault("content-type", "application/json")
            fields["content-length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        data = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b"")
        return read_answer(await self.raw(data), method)


def read_answer(data: bytes, method: str = "GET") -> Answer:
    """The answer in *data*; an abrupt end leaves `complete` false."""
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first:
        return Answer(0, {}, b"", False)
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name] = value
    complete = True
    if "chunked" in headers.get("transfer-encoding", ""):
        complete = rest.endswith(b"0\r\n\r\n")
        rest = dechunk(rest)
    elif method != "HEAD" and "content-length" in headers:
        complete = len(rest) == int(headers["content-length"])
    return Answer(int(first.split()[1]), headers, rest, complete)


def dechunk(data: bytes) -> bytes:
    """The bytes inside chunks, as far as they came."""
    body = b""
    while match := re.match(rb"([0-9a-f]+)\r\n", data):
        size = int(match[1], 16)
        body += data[match.end() : match.end() + size]
        data = data[match.end() + size + 2 :]
    return body


@contextlib.asynccontextmanager
async def hosted(
    runtime: Any, *, limits: Limits | None = None, sweep_s: float = 0.02, drain_s: float = 0.0
) -> AsyncIterator[Host]:
    """A gateway over *runtime* on a free port."""
    sockets = listen(runtime.settings.gateway)
    server = Server(runtime, limits=limits, sweep_s=sweep_s)
    await server.start(sockets)
    try:
        yield Host(server, sockets[0].getsockname()[1])
    finally:
        await server.aclose(drain_s)


async def until(condition: Any, what: str = "the condition") -> None:
    """Wait until *condition()* holds; fails after `PATIENCE_S`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE_S
    while not condition():
        assert loop.time() < end, f"waited in vain for {what}"
        await asyncio.sleep(0.005)

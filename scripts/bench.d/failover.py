"""
What a dead first candidate costs: time added to an answer, over real loopback sockets.

The cascade stands in front of two clouds in another process. The first refuses the
connection, answers 429, or never answers; the second is well. Each round asks once with a
healthy first and once with a sick one, its health forgotten before; printed are the
medians of the difference. Last, a whole ladder of clouds is decided with the network off.

    python scripts/bench.d/failover.py [--rounds 200]

Exit code 1 when a budget is exceeded: 3 ms for a refusal or a 429, 10 ms beyond the limit
for a first candidate that hangs, 50 ms for the offline ladder.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import multiprocessing
import socket
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from localfirst.cascade.health import Health
from localfirst.cascade.plan import ProviderView, World
from localfirst.cascade.run import Cascade
from localfirst.errors import CascadeExhausted
from localfirst.providers import catalog
from localfirst.providers.openai import OpenAIBackend
from localfirst.settings import ORDER, ProviderSettings, Settings, TimeoutSettings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, ChatRequest, Dialect, Message

HANG_S = 0.2
CHUNK = b'{"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[%s]}'
ANSWER = (
    b"".join(
        b"data: %s\n\n" % (CHUNK % choice)
        for choice in (
            b'{"index":0,"delta":{"role":"assistant","content":"hello"},"finish_reason":null}',
            b'{"index":0,"delta":{},"finish_reason":"stop"}',
        )
    )
    + b"data: [DONE]\n\n"
)
LIMITED = b'{"error":{"message":"Rate limit reached","code":"rate_limit_exceeded"}}'


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str) -> None:
    status, sort, body = b"200 OK", b"text/event-stream", ANSWER
    if kind == "429":
        status, sort, body = b"429 Too Many Requests", b"application/json", LIMITED
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if kind == "hangs":
                await asyncio.sleep(3600)
            writer.write(
                b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
                % (status, sort, len(body), body)
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def clouds(out: Connection) -> None:
    """One port each for a cloud that is well, that limits, and that hangs."""

    async def serve() -> None:
        ports = {}
        for kind in ("well", "429", "hangs"):
            answer = functools.partial(converse, kind=kind)
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            ports[kind] = server.sockets[0].getsockname()[1]
        out.send(ports)
        await asyncio.sleep(3600)

    asyncio.run(serve())


def refusing_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Bench:
    """A cascade over clouds of every kind, asked by naming a route."""

    def __init__(self, ports: dict[str, int]) -> None:
        clock = SystemClock()
        names = {"well": "aa", "refuses": "bb", "429": "cc", "hangs": "dd"}
        self.names = names
        settings = Settings(
            providers={
                names[kind]: ProviderSettings(base_url=f"http://127.0.0.1:{port}/v1", model="m")
                for kind, port in ports.items()
            },
            timeouts=TimeoutSettings(first_token_s=HANG_S),
        )
        providers = catalog.configured(settings)
        self.upstream = UpstreamClient(clock)
        self.world = World(
            order=tuple(names.values()),
            providers={
                name: ProviderView(id=name, default_models=("m",), near=True)
                for name in names.values()
            },
        )
        self.cascade = Cascade(
            backends={
                name: OpenAIBackend(providers[name], self.upstream, clock)
                for name in names.values()
            },
            look=self.look,
            clock=clock,
            settings=settings,
        )

    async def look(self, call: Call) -> World:
        del call
        return self.world

    def set_first(self, kind: str) -> None:
        order = (self.names[kind], self.names["well"])
        self.world = World(order=order, providers=self.world.providers)

    async def ask(self) -> float:
        """Milliseconds until the whole answer is there."""
        self.cascade.health = Health()
        request = ChatRequest(messages=(Message(role="user", content="hi"),))
        call = Call(
            model="auto", stream=True, dialect=Dialect.OPENAI, request_id="b", request=request,
        )  # fmt: skip
        began = time.perf_counter()
        await (await self.cascade.open(call)).reply()
        return (time.perf_counter() - began) * 1000


async def measure(ports: dict[str, int], rounds: int) -> int:
    bench = Bench({**ports, "refuses": refusing_port()})
    over = 0
    for kind, allowed_ms in (("refuses", 3.0), ("429", 3.0), ("hangs", 10.0)):
        times = rounds if kind != "hangs" else max(5, rounds // 20)
        extra = HANG_S * 1000 if kind == "hangs" else 0.0
        added = sorted([await pair(bench, kind) - extra for _ in range(times)])
        middle = statistics.median(added)
        over += middle > allowed_ms
        print(
            f"first candidate {kind:<8} adds p50 {middle:7.2f} ms   p95 "
            f"{added[int(len(added) * 0.95)]:7.2f} ms   (budget {allowed_ms:g} ms"
            f"{' beyond its limit' if extra else ''})"
        )
    await bench.upstream.aclose()
    spent_ms = await offline()
    over += spent_ms > 50.0
    print(f"whole ladder offline  decided in {spent_ms:7.2f} ms   (budget 50 ms)")
    return 1 if over else 0


async def pair(bench: Bench, kind: str) -> float:
    """What a sick first candidate adds, against a healthy one a moment before."""
    bench.set_first("well")
    base = await bench.ask()
    bench.set_first(kind)
    return await bench.ask() - base


async def offline() -> float:
    """Milliseconds to say that nobody can be asked, every cloud configured and no network."""
    views = {
        name: ProviderView(id=name, key_labels=("K",), default_models=("m",))
        for name in ORDER
        if name not in {"local", "pull"}
    }
    world = World(providers=views, online=False)

    async def look(call: Call) -> World:
        del call
        return world

    cascade = Cascade(backends={}, look=look, clock=SystemClock(), settings=Settings())
    request = ChatRequest(messages=(Message(role="user", content="hi"),))
    call = Call(model="auto", stream=False, dialect=Dialect.OPENAI, request_id="b", request=request)
    began = time.perf_counter()
    try:
        await cascade.open(call)
    except CascadeExhausted:
        return (time.perf_counter() - began) * 1000
    raise AssertionError("somebody answered without a network")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[1])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=clouds, args=(theirs,), daemon=True)
    child.start()
    try:
        return asyncio.run(measure(ours.recv(), rounds))
    finally:
        child.terminate()
        child.join(5)


if __name__ == "__main__":
    sys.exit(main())

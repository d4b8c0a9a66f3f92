"""
Many clients of one gateway: talking and idle streams, those who do not read, those who leave.

`localfirst serve` in its own process between this one and a fake cloud; what it holds is
what the system says about it. `LOCALFIRST_LOAD` multiplies the sizes for a longer run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.cloud_answers import events
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.gateway_host import dechunk
from tests.fakes.house import House, house

SIZE = int(os.environ.get("LOCALFIRST_LOAD", "1"))
TALKING = 100 * SIZE
IDLE = 400 * SIZE
KB = 1024
MIB = 2**20
IDLE_KB = 30
"""What an idle stream may take of the gateway's memory."""
PATIENCE_S = 30.0

CONFIG = """
order = ["cloud"]
[providers.cloud]
base_url = "{url}"
model = "m"
keys = ["sk-4d1f7c9b2e6a8053"]
concurrency = 4096
"""

SAY = [{"role": "user", "content": "hi"}]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Gateway:
    """A running gateway as its operator sees it from outside."""

    def __init__(self, at: House) -> None:
        self.port = int(at.url.rpartition(":")[2])
        self.process = psutil.Process(at.child.pid)

    @property
    def rss_bytes(self) -> int:
        found: int = self.process.memory_info().rss
        return found

    def upstreams(self, cloud: FakeCloud) -> int:
        """Sockets that are open towards the cloud."""
        found = self.process.net_connections("tcp")
        return sum(1 for one in found if one.raddr and one.raddr.port == cloud.port)

    async def begin(self) -> Stream:
        """Ask for a stream."""
        data = json.dumps({"model": "auto", "stream": True, "messages": SAY}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + data)
        return reader, writer

    async def gauges(self) -> dict[str, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        text = (await reader.read()).decode()
        await closed(writer)
        return {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.e+]+)$", text, re.M)}

    async def left_alone(self) -> None:
        """Until nothing runs and nobody is connected but who asks."""
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            found = await self.gauges()
            alone = found["localfirst_connections"] == found["localfirst_requests_running"] == 1
            if alone:
                return
            assert asyncio.get_running_loop().time() < end, found
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: FakeCloud) -> FakeCloud:
    shared.reset()
    return shared


@pytest.fixture
def gateway(tmp_path: Path, cloud: FakeCloud) -> Iterator[Gateway]:
    config = CONFIG.format(url=cloud.base_url())
    with house(tmp_path, config=config, LOCALFIRST_LOCAL_ENGINE="none") as at:
        yield Gateway(at)


def bounded(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await work()

    return asyncio.run(main())


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def until(condition: Callable[[], bool], what: str) -> None:
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def streams(gateway: Gateway, count: int) -> AsyncIterator[list[Stream]]:
    """So many streams whose first content has come; hung up at the end."""
    opened: list[Stream] = []

    async def one() -> None:
        reader, writer = await gateway.begin()
        opened.append((reader, writer))
        await reader.readuntil(b'"content":"Hello"')

    try:
        for _ in range(0, count, 50):
            await asyncio.gather(*(one() for _ in range(50)))
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()
        await asyncio.gather(*(closed(writer) for _, writer in opened))


def test_a_hundred_talking_streams_each_get_their_own_bytes_in_order(
    gateway: Gateway, cloud: FakeCloud
) -> None:
    words = [f" {number}" for number in range(40)]
    steps = [{"do": "ok", "pause_s": 0.02, "chunks": [f"s{n}", *words]} for n in range(TALKING)]
    cloud.script(*steps)
    whole = {
        b"".join(events("openai", step, "m", usage=False)[:-1]).split(b'"s')[1]: step
        for step in steps
    }

    async def one() -> bytes:
        reader, writer = await gateway.begin()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        body = await reader.readuntil(b"0\r\n\r\n")
        await closed(writer)
        return dechunk(body)

    async def work() -> None:
        found = await asyncio.gather(*(one() for _ in range(TALKING)))
        for body in found:
            assert body.endswith(b"data: [DONE]\n\n")
            assert whole.pop(body.removesuffix(b"data: [DONE]\n\n").split(b'"s')[1])
        assert not whole
        await gateway.left_alone()

    bounded(work)


def test_idle_streams_take_little_and_give_everything_back(
    gateway: Gateway, cloud: FakeCloud
) -> None:
    cloud.script({"do": "stall", "events": 3, "times": -1})

    async def work() -> None:
        async with streams(gateway, 50):
            pass
        await gateway.left_alone()
        await until(lambda: gateway.upstreams(cloud) == 0, "the first upstreams' end")
        rss_bytes, descriptors = gateway.rss_bytes, gateway.process.num_fds()
        threads = gateway.process.num_threads()
        async with streams(gateway, IDLE):
            each = (gateway.rss_bytes - rss_bytes) / IDLE / KB
            assert gateway.upstreams(cloud) == IDLE
            assert (await gateway.gauges())["localfirst_requests_running"] == IDLE + 1
        assert each < IDLE_KB, f"{each:.1f} KB for an idle stream"
        await gateway.left_alone()
        await until(lambda: gateway.upstreams(cloud) == 0, "the end of the upstreams")
        assert gateway.process.num_fds() <= descriptors
        assert gateway.process.num_threads() <= threads
        after = gateway.rss_bytes
        async with streams(gateway, IDLE):
            pass
        await gateway.left_alone()
        # The second crowd lives in what the first one left.
        assert gateway.rss_bytes - after < 2 * MIB

    bounded(work)


def test_a_client_that_does_not_read_stops_its_cloud_and_costs_no_memory(
    gateway: Gateway, cloud: FakeCloud
) -> None:
    cloud.script({"do": "flood", "mib": 64}, {"do": "ok"})

    async def work() -> None:
        reader, writer = await gateway.begin()
        rss_bytes = peak = gateway.rss_bytes
        sent = gateway.process.io_counters().write_chars
        quiet = 0
        while quiet < 10:
            await asyncio.sleep(0.05)
            before, sent = sent, gateway.process.io_counters().write_chars
            quiet = quiet + 1 if sent == before else 0
            peak = max(peak, gateway.rss_bytes)
        assert cloud.requests()[-1]["ended"] == "", "the cloud has sent it all to nobody"
        size = 0
        while piece := await reader.read(MIB):
            size += len(piece)
            peak = max(peak, gateway.rss_bytes)
            if piece.endswith(b"0\r\n\r\n"):
                break
        await closed(writer)
        assert size > 64 * 64 * 16_000
        assert peak - rss_bytes < 16 * MIB

    bounded(work)


def test_a_client_that_sends_on_behind_its_request_is_left_unread(
    gateway: Gateway, cloud: FakeCloud
) -> None:
    cloud.script({"do": "ok", "pause_s": 0.05, "chunks": ["Hello", *["."] * 2000]})

    async def work() -> None:
        reader, writer = await gateway.begin()
        await reader.readuntil(b'"content":"Hello"')
        rss_bytes = gateway.rss_bytes
        for _ in range(64):
            writer.write(b"GET / HTTP/1.1\r\n" * (MIB // 16))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.5)
        assert gateway.rss_bytes - rss_bytes < 4 * MIB
        writer.transport.abort()
        await closed(writer)
        await gateway.left_alone()
        assert gateway.upstreams(cloud) == 0

    bounded(work)


def test_clients_who_hang_up_close_their_upstreams_at_once(
    gateway: Gateway, cloud: FakeCloud
) -> None:
    cloud.script({"do": "stall", "events": 3, "times": TALKING}, {"do": "hang", "times": TALKING})

    async def work() -> None:
        async with streams(gateway, TALKING):
            waiting = [await gateway.begin() for _ in range(TALKING)]
            await until(lambda: cloud.state()["open"] >= 2 * TALKING, "all to be asked")
            for _, writer in waiting:
                await closed(writer)
        await until(lambda: cloud.state()["open"] == 0, "the upstreams to be closed")
        assert cloud.state()["aborted"] == 2 * TALKING
        await gateway.left_alone()

    bounded(work)


def test_it_takes_the_descriptors_that_its_connections_need(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script({"do": "stall", "events": 3, "times": -1})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = CONFIG.format(url=cloud.base_url())
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        with house(tmp_path, config=config, LOCALFIRST_LOCAL_ENGINE="none") as at:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

            async def work() -> None:
                async with streams(Gateway(at), 150):
                    assert Gateway(at).process.num_fds() > 300

            bounded(work)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

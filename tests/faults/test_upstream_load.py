"""
Many at once: concurrent streams, clients who leave in a storm, a reader who does not read.

`LOCALFIRST_LOAD` multiplies the sizes for a longer run.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psutil
import pytest

from localfirst.engines.base import Limits
from localfirst.events import Finished, TextDelta
from localfirst.providers.catalog import configured
from localfirst.providers.openai import OpenAIBackend
from localfirst.settings import ProviderSettings, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, ChatRequest, Dialect, Message, Rung, Target
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.event_loops import RUNNERS, run

SIZE = int(os.environ.get("LOCALFIRST_LOAD", "1"))
STREAMS = 500 * SIZE
MIB = 2**20
TARGET = Target(rung=Rung.CLOUD, provider="mybox", model="m")
PATIENT = Limits(connect_s=20.0, first_token_s=30.0, stall_s=30.0)


LOOP = "asyncio"


@pytest.fixture(params=RUNNERS, autouse=True)
def loop_kind(request: pytest.FixtureRequest) -> None:
    """Every test here runs on both loops."""
    global LOOP
    LOOP = request.param


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: FakeCloud) -> FakeCloud:
    shared.reset()
    return shared


def call() -> Call:
    request = ChatRequest(messages=(Message(role="user", content="hi"),), stream=True)
    return Call(model="m", stream=True, dialect=Dialect.OPENAI, request_id="r", request=request)


def with_backend(
    cloud: FakeCloud, work: Callable[[OpenAIBackend, UpstreamClient], Awaitable[Any]]
) -> Any:
    async def main() -> Any:
        upstream = UpstreamClient(SystemClock())
        settings = Settings(providers={"mybox": ProviderSettings(base_url=cloud.base_url())})
        backend = OpenAIBackend(configured(settings)["mybox"], upstream, SystemClock())
        try:
            return await work(backend, upstream)
        finally:
            await upstream.aclose()

    return run(LOOP, main)


def test_five_hundred_streams_at_once_are_all_whole(cloud: FakeCloud) -> None:
    cloud.script({"do": "ok", "pause_s": 0.05, "times": -1})

    async def one(backend: OpenAIBackend) -> str:
        events = [event async for event in backend.answer(call(), TARGET, PATIENT)]
        assert isinstance(events[-1], Finished)
        return "".join(event.text for event in events if isinstance(event, TextDelta))

    async def work(backend: OpenAIBackend, upstream: UpstreamClient) -> list[str]:
        said = await asyncio.gather(*(one(backend) for _ in range(STREAMS)))
        busy, _ = upstream.open_sockets
        while busy:
            await asyncio.sleep(0.01)
            busy, _ = upstream.open_sockets
        return said

    assert with_backend(cloud, work) == ["Hello from the cloud."] * STREAMS


def test_a_storm_of_callers_who_leave_holds_nothing(cloud: FakeCloud) -> None:
    cloud.script({"do": "stall", "events": 3, "times": -1})

    async def leave(backend: OpenAIBackend, after: int) -> None:
        stream = backend.answer(call(), TARGET, PATIENT)
        try:
            for _ in range(after):
                await anext(stream)
        finally:
            await stream.aclose()

    async def storm(backend: OpenAIBackend, upstream: UpstreamClient) -> int:
        tasks = [asyncio.create_task(leave(backend, n % 3 + 1)) for n in range(STREAMS // 2)]
        waiting = [asyncio.create_task(leave(backend, 99)) for _ in range(STREAMS // 2)]
        await asyncio.gather(*tasks)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert upstream.open_sockets == (0, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(0)
        return psutil.Process().num_fds()

    async def work(backend: OpenAIBackend, upstream: UpstreamClient) -> None:
        before = await storm(backend, upstream)
        after = await storm(backend, upstream)
        assert after <= before

    with_backend(cloud, work)
    end = 200
    while cloud.state()["open"] > 0 and end:
        end -= 1
    assert cloud.state()["open"] == 0


def test_a_reader_who_does_not_read_stops_the_cloud_and_costs_no_memory(
    cloud: FakeCloud,
) -> None:
    cloud.script({"do": "flood", "mib": 24})

    async def work(backend: OpenAIBackend, upstream: UpstreamClient) -> tuple[int, int]:
        stream = backend.answer(call(), TARGET, PATIENT)
        received = 0
        async for event in stream:
            if isinstance(event, TextDelta):
                received += len(event.text)
                break
        process = psutil.Process()
        before = process.memory_info().rss
        (connection,) = upstream._busy
        while not connection._paused:
            await asyncio.sleep(0.005)
        queued = 0
        for _ in range(20):
            await asyncio.sleep(0.01)
            queued = max(queued, connection._queued_bytes)
        assert queued < MIB
        peak = process.memory_info().rss
        async for event in stream:
            if isinstance(event, TextDelta):
                received += len(event.text)
            peak = max(peak, process.memory_info().rss)
        return peak - before, received

    grown, received = with_backend(cloud, work)
    assert received == 24 * 64 * 16_000
    assert grown < 16 * MIB


def test_a_reader_who_pauses_longer_than_the_stall_limit_is_not_punished(
    cloud: FakeCloud,
) -> None:
    cloud.script({"do": "flood", "mib": 4})

    async def work(backend: OpenAIBackend, upstream: UpstreamClient) -> bool:
        limits = Limits(connect_s=5.0, first_token_s=5.0, stall_s=0.15)
        stream = backend.answer(call(), TARGET, limits)
        await anext(stream)
        await anext(stream)
        (connection,) = upstream._busy
        while not connection._paused:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.4)
        return isinstance([event async for event in stream][-1], Finished)

    assert with_backend(cloud, work)


def test_an_idle_stream_costs_little(cloud: FakeCloud) -> None:
    cloud.script({"do": "stall", "events": 3, "times": -1})

    async def work(backend: OpenAIBackend, upstream: UpstreamClient) -> float:
        streams = [backend.answer(call(), TARGET, PATIENT) for _ in range(STREAMS + 20)]
        for stream in streams[:20]:
            await anext(stream)
        gc.collect()
        before = psutil.Process().memory_info().rss
        for stream in streams[20:]:
            await anext(stream)
        gc.collect()
        each = (psutil.Process().memory_info().rss - before) / STREAMS
        for stream in streams:
            await stream.aclose()
        return each

    # The gateway's whole budget for an idle stream is 30 KB; this is its upstream half.
    assert with_backend(cloud, work) < 15_000

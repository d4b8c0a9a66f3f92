"""The line in front of a model, the gap in the clock, and the GPU that was lost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from localfirst.engines.base import LocalModel
from localfirst.engines.gap import Gap
from localfirst.engines.ollama.gpu import GpuWatch
from localfirst.engines.queue import Line
from localfirst.errors import UpstreamRefused
from localfirst.events import Progress


class HandClock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.wall = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def unix(self) -> float:
        return self.wall

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pass_by(self, seconds: float, *, suspended: bool = False) -> None:
        self.wall += seconds
        self.now += 0.0 if suspended else seconds


def line(clock: HandClock | None = None, **given: float) -> Line:
    usual = {"width": 1, "limit": 2}
    return Line(clock or HandClock(), **usual | given)  # type: ignore[arg-type]


def test_who_comes_first_is_served_first() -> None:
    served: list[int] = []

    async def request(queue: Line, number: int) -> None:
        async with queue.place() as place:
            async for _ in place.turn():
                pass
            served.append(number)
            await asyncio.sleep(0)

    async def test() -> None:
        queue = line(limit=10)
        await asyncio.gather(*(request(queue, number) for number in range(8)))
        assert queue.load == 0

    asyncio.run(test())
    assert served == list(range(8))


def test_no_more_are_served_at_once_than_the_line_is_wide() -> None:
    async def test() -> None:
        queue, at_once, most = line(limit=50, width=3), 0, 0

        async def request() -> None:
            nonlocal at_once, most
            async with queue.place() as place:
                async for _ in place.turn():
                    pass
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(0)
                at_once -= 1

        await asyncio.gather(*(request() for _ in range(20)))
        assert most == 3

    asyncio.run(test())


def test_a_full_line_refuses_with_a_time_to_come_back() -> None:
    async def test() -> None:
        queue = line()
        async with queue.place(), queue.place(), queue.place():
            with pytest.raises(UpstreamRefused) as caught:
                async with queue.place():
                    pass
        assert (caught.value.status, dict(caught.value.headers)) == (503, {"retry-after": "3"})
        assert b"1 running, 2 waiting" in caught.value.body
        assert queue.load == 0

    asyncio.run(test())


def test_the_time_to_come_back_follows_how_long_requests_take() -> None:
    async def test() -> None:
        clock = HandClock()
        queue = line(clock)
        for _ in range(20):
            async with queue.place():
                clock.pass_by(40)
        assert 35 <= queue.retry_after_s <= 40

    asyncio.run(test())


def test_the_time_to_come_back_does_not_count_the_waiting_twice() -> None:
    async def test() -> None:
        clock = HandClock()
        queue = line(clock)
        for _ in range(20):
            served, waits = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
            await served.enter_async_context(queue.place())
            await waits.enter_async_context(queue.place())
            clock.pass_by(10)
            await served.aclose()  # now the other one is served
            clock.pass_by(10)
            await waits.aclose()
        assert 9 <= queue.retry_after_s <= 10

    asyncio.run(test())


def test_a_place_that_is_given_up_while_waiting_lets_the_next_one_through() -> None:
    async def test() -> None:
        queue = line(limit=5)
        async with queue.place():
            left = queue.place()
            await left.__aenter__()
            async with queue.place() as third:
                await left.__aexit__(None, None, None)
                assert queue.load == 2
                told = third.turn()
                assert await anext(told) == Progress("queued", "1 ahead")
                await told.aclose()

    asyncio.run(test())


def test_a_line_that_is_widened_lets_those_who_wait_in() -> None:
    async def test() -> None:
        queue = line(limit=5)
        async with queue.place(), queue.place() as second:
            queue.widen(2)
            assert [event async for event in second.turn()] == []

    asyncio.run(test())


def test_a_gap_is_told_once_and_ordinary_time_is_none() -> None:
    clock = HandClock()
    gap = Gap(clock)
    clock.pass_by(3600)
    assert not gap.passed()
    clock.pass_by(3600, suspended=True)
    assert gap.passed()
    assert not gap.passed()


def model(*, vram: int, loaded: bool = True) -> LocalModel:
    return LocalModel(name="tiny:latest", loaded=loaded, loaded_vram_bytes=vram)


def test_a_model_that_lost_its_gpu_is_told_and_loaded_again_once() -> None:
    watch = GpuWatch(lambda name: name == "tiny:latest")
    assert watch.look([model(vram=5)]) == ""
    assert "tiny:latest" in watch.look([model(vram=0)])
    assert watch.take_reload("tiny:latest")
    assert not watch.take_reload("tiny:latest")
    watch.look([model(vram=0)])
    assert not watch.take_reload("tiny:latest")


def test_nothing_is_lost_where_no_gpu_is_expected_or_nothing_is_loaded() -> None:
    assert GpuWatch(lambda _: False).look([model(vram=0)]) == ""
    assert GpuWatch(lambda _: True).look([model(vram=0, loaded=False)]) == ""

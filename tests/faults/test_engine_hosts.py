"""Several Ollama hosts as one engine: who is asked, and what happens when one fails."""

from __future__ import annotations

import asyncio

import pytest

from localfirst.engines.ollama import OllamaHosts
from localfirst.errors import UpstreamBroken, UpstreamRefused
from localfirst.transport.clock import SystemClock
from tests.fakes.engine_bench import ask, collect, finish_of, ollama_bench, run, tell, text_of


def test_a_host_without_room_makes_way_for_one_that_has_some() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as one, ollama_bench({"tiny": {}}) as two:
            hosts = OllamaHosts([one.engine, two.engine], SystemClock())
            await tell(one.served.endpoint, busy=True)
            assert finish_of(await collect(hosts, ask()))
            assert (len(await one.asked()), len(await two.asked())) == (1, 1)
            # It is passed over for a while, and not asked in vain.
            assert finish_of(await collect(hosts, ask()))
            assert (len(await one.asked()), len(await two.asked())) == (1, 2)

    run(test)


def test_a_model_that_cannot_be_loaded_at_one_host_is_loaded_at_another() -> None:
    async def test() -> None:
        full = {"tiny": {"reply": "out_of_memory_chat_stream", "loaded": True}}
        async with ollama_bench(full) as one, ollama_bench({"tiny": {}}) as two:
            hosts = OllamaHosts([one.engine, two.engine], SystemClock())
            assert text_of(await collect(hosts, ask()))

    run(test)


def test_what_is_wrong_with_the_request_is_wrong_everywhere() -> None:
    async def test() -> None:
        small = {"tiny": {"window": 256, "context": 256}}
        async with ollama_bench(small) as one, ollama_bench(small) as two:
            hosts = OllamaHosts([one.engine, two.engine], SystemClock())
            with pytest.raises(UpstreamRefused, match="400"):
                await collect(hosts, ask("x" * 4000))
            assert (len(await one.asked()), len(await two.asked())) == (1, 0)

    run(test)


def test_a_host_without_the_model_does_not_cover_up_why_the_other_failed() -> None:
    async def test() -> None:
        broken = {"tiny": {"reply": "out_of_memory_chat_stream"}}
        async with ollama_bench(broken) as one, ollama_bench({"more": {}}) as two:
            hosts = OllamaHosts([one.engine, two.engine], SystemClock())
            with pytest.raises(UpstreamRefused) as caught:
                await collect(hosts, ask())
            assert (caught.value.status, b"insufficient memory" in caught.value.body) == (500, True)
            assert await two.asked() == []

    run(test)


def test_the_loaded_and_idle_host_is_asked_before_the_busy_one() -> None:
    async def test() -> None:
        warm = {"tiny": {"loaded": True, "word_delay_s": 0.1}}
        async with ollama_bench({"tiny": {}}) as cold, ollama_bench(warm) as hot:
            hosts = OllamaHosts([cold.engine, hot.engine], SystemClock())
            first = asyncio.ensure_future(collect(hosts, ask()))
            while not await hot.asked():
                await asyncio.sleep(0.01)
            await collect(hosts, ask())
            assert (len(await hot.asked()), len(await cold.asked())) == (1, 1)
            assert finish_of(await first)

    run(test)


def test_unloading_is_done_wherever_the_model_is_and_one_dead_host_does_not_stop_it() -> None:
    async def test() -> None:
        warm = {"tiny": {"loaded": True}}
        async with (
            ollama_bench(warm) as one,
            ollama_bench(warm) as two,
            ollama_bench(warm) as three,
        ):
            engines = [one.engine, two.engine, three.engine]
            hosts = OllamaHosts(engines, SystemClock())
            await hosts.status()
            await one.served.child.stop()
            assert await hosts.unload("tiny") is True
            for made in (two, three):
                assert len(await made.asked("/api/generate")) == 1
            for made in (two, three):
                await made.served.child.stop()
            for engine in engines:
                engine.forget()
            with pytest.raises(UpstreamBroken, match="none of the Ollama hosts"):
                await hosts.unload("tiny")

    run(test)


def test_a_host_that_is_down_may_have_more_models_than_are_listed() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as one, ollama_bench({"more": {}}) as two:
            hosts = OllamaHosts([one.engine, two.engine], SystemClock())
            assert not (await hosts.status()).partial
            await two.served.child.stop()
            status = await hosts.status(max_age_s=0)
            assert (status.ready, status.partial) == (True, True)

    run(test)

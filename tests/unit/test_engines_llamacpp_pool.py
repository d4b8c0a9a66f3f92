"""The embedded engine's children: never two of a model, none forgotten, less after trouble."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from localfirst.engines.base import Limits
from localfirst.engines.llamacpp import room
from localfirst.engines.llamacpp.about import Shelf
from localfirst.engines.llamacpp.wanted import chat_plan
from localfirst.errors import (
    Breakage,
    EngineUnavailable,
    InsufficientResources,
    UpstreamBroken,
    UpstreamRefused,
)
from localfirst.events import TextDelta
from localfirst.machine.fit import Hardware
from localfirst.models import toy
from localfirst.settings import LocalSettings
from localfirst.transport import process
from localfirst.types import Call, Needs
from tests.fakes.embedded_bench import ROOMY, Bench, freeze, run
from tests.fakes.engine_bench import ask, call_of, collect, finish_of, target, text_of, until


def pids(bench: Bench) -> list[int]:
    """The engine's children that live."""
    return [child.pid for child in bench.children() if process.birth(child.pid)]


def longer(tokens: int) -> Call:
    """A call that is estimated to need a context of *tokens*."""
    return call_of(ask().chat, needs=Needs(prompt_tokens=tokens))


@contextlib.asynccontextmanager
async def counted(bench: Bench) -> AsyncIterator[list[int]]:
    """How many children there were at once, as often as it could be seen."""
    seen: list[int] = []

    async def count() -> None:
        while True:
            seen.append(len(pids(bench)))
            await asyncio.sleep(0.01)

    counting = asyncio.ensure_future(count())
    try:
        yield seen
    finally:
        counting.cancel()


async def first_word(bench: Bench) -> None:
    """Ask, and leave after the first word."""
    stream = bench.engine.answer(ask(max_tokens=1900), target(), Limits())
    async for event in stream:
        if isinstance(event, TextDelta):
            break
    await stream.aclose()


# --- never two, none forgotten -------------------------------------------------------------


def test_a_model_that_is_pulled_anew_answers_with_its_new_file(tmp_path: Path) -> None:
    """For as long as requests came, the old one answered under the name of the new."""

    async def test(bench: Bench) -> None:
        before = text_of(await collect(bench.engine, ask(max_tokens=20)))
        (old,) = bench.children()
        stream = bench.engine.answer(ask(max_tokens=300), target(), Limits())
        await anext(stream)
        toy.publish(bench.store.root, seed=7)
        assert not (await bench.engine.status(max_age_s=0)).models[0].loaded, "the new one is not"
        async with counted(bench) as seen:
            asking = asyncio.ensure_future(collect(bench.engine, ask(max_tokens=20)))
            rest = [event async for event in stream]
            after = text_of(await asking)
        assert finish_of(rest).reason == "length", "what the old one began it ends"
        assert after != before
        assert not old.is_running() and max(seen) == 1
        assert (await bench.engine.status(max_age_s=0)).models[0].loaded

    run(tmp_path, test)


def test_a_model_that_is_asked_for_while_it_leaves_waits_for_its_own_end(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        (old,) = bench.children()
        freeze(old)  # so that it does not hear that it should end
        async with counted(bench) as seen:
            unloading = asyncio.ensure_future(bench.engine.unload("tiny"))
            await until(lambda: bench.engine._pool.loaded() == [], "it leaves")
            assert finish_of(await collect(bench.engine, ask()))
            assert await unloading is True
        assert max(seen) == 1
        assert pids(bench) != [old.pid]

    run(tmp_path, test)


def test_an_unload_beside_a_replacement_forgets_no_child(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        stream = bench.engine.answer(ask(max_tokens=400), target(), Limits())
        await anext(stream)
        unloading = asyncio.ensure_future(bench.engine.unload("tiny"))
        replacing = asyncio.ensure_future(collect(bench.engine, longer(1000)))
        async for _ in stream:
            pass
        assert await unloading is True
        assert finish_of(await replacing)
        await bench.engine.unload("tiny")
        assert pids(bench) == []

    run(tmp_path, test, local=LocalSettings(num_ctx=512))


def test_a_child_that_died_in_the_way_is_no_reason_to_wait(tmp_path: Path) -> None:
    """Its memory is back already; it is not to be unloaded for ever."""
    measured = 0

    async def test(bench: Bench) -> None:
        nonlocal measured
        await collect(bench.engine, ask())

        def tiny_machine() -> Hardware:
            nonlocal measured
            measured += 1
            return msgspec.structs.replace(ROOMY, ram_available_bytes=10**6)

        bench.engine._pool._hardware = tiny_machine
        (child,) = bench.engine._pool.loaded()
        assert child[1].child is not None
        bench.kill()
        await child[1].child.wait()
        with pytest.raises(InsufficientResources):
            await collect(bench.engine, ask(), "other")
        assert measured <= 3

    run(tmp_path, test, models={"other": {"seed": 7}})


def test_closing_while_a_model_loads_is_told_to_who_waits_for_it(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        asking = asyncio.ensure_future(collect(bench.engine, ask()))
        embedding = asyncio.ensure_future(bench.engine.embed("tiny", ["a"], {}))
        await until(lambda: bench.children() != [], "the child")
        await bench.engine.aclose()
        for waiting in (asking, embedding):
            with pytest.raises(EngineUnavailable, match="closed"):
                await waiting
        with pytest.raises(EngineUnavailable, match="is closed"):
            await collect(bench.engine, ask())

    run(tmp_path, test)


def test_a_model_that_was_deleted_can_still_be_unloaded_by_any_spelling(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        bench.store.remove("tiny")
        assert await bench.engine.unload("never-heard-of") is False
        assert await bench.engine.unload("TINY") is True
        assert pids(bench) == []

    run(tmp_path, test)


# --- context ---------------------------------------------------------------------------------


def room_for(bench: Bench, tokens: int) -> Hardware:
    """A machine that has room for a context of *tokens* and for no larger one."""
    about = Shelf(bench.store).get("tiny")
    plan = room.arranged(chat_plan(about, None, tokens), about.shape, ROOMY)
    plan = msgspec.structs.replace(plan, parallel=1, context_tokens=tokens)
    free = ROOMY.ram_available_bytes
    low, high = 0, free
    while high - low > 4096:
        middle = (low + high) // 2
        hardware = msgspec.structs.replace(ROOMY, ram_available_bytes=middle)
        if room.fits(room.predict(plan, about.shape, hardware)):
            high = middle
        else:
            low = middle
    return msgspec.structs.replace(ROOMY, ram_available_bytes=high + 4096)


def test_a_context_as_long_as_memory_allows_is_not_loaded_again_for_every_request(
    tmp_path: Path,
) -> None:
    async def test(bench: Bench) -> None:
        bench.hardware = room_for(bench, 800)
        assert finish_of(await collect(bench.engine, longer(1500)))
        (first,) = pids(bench)
        ((_, runner),) = bench.engine._pool.loaded()
        assert 512 <= runner.plan.context_tokens < 1500
        for _ in range(3):
            await collect(bench.engine, longer(1500))
        assert pids(bench) == [first]
        with pytest.raises(UpstreamRefused) as caught:
            await collect(bench.engine, ask("x" * 1500))
        assert b"exceed_context_size_error" in caught.value.body

    run(tmp_path, test)


def test_a_prompt_that_was_underestimated_gets_a_longer_context(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        events = await collect(bench.engine, ask("x" * 1200))
        usage = finish_of(events).usage
        assert usage is not None
        assert usage.prompt_tokens > 1200
        grown = pids(bench)
        await collect(bench.engine, ask())
        assert pids(bench) == grown

    run(tmp_path, test, local=LocalSettings(num_ctx=512))


# --- memory ran out ----------------------------------------------------------------------------


async def killed_as_for_memory(bench: Bench) -> UpstreamBroken:
    """SIGKILL while it answers, which is what the kernel does when memory runs out."""

    async def asked() -> None:
        async for event in bench.engine.answer(ask(max_tokens=1900), target(), Limits()):
            if isinstance(event, TextDelta):
                bench.kill()

    with pytest.raises(UpstreamBroken) as caught:
        await asked()
    return caught.value


def context(bench: Bench) -> int:
    ((_, runner),) = bench.engine._pool.loaded()
    return runner.plan.context_tokens


def test_after_two_kills_a_model_gets_half_the_context_and_says_what_no_longer_fits(
    tmp_path: Path,
) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        assert context(bench) == 2048
        for _ in range(2):
            error = await killed_as_for_memory(bench)
            assert (error.breakage, "perhaps out of memory" in error.detail) == (
                Breakage.ENGINE_DIED,
                True,
            )
        assert finish_of(await collect(bench.engine, ask()))
        assert context(bench) == 1024
        with pytest.raises(UpstreamRefused) as caught:
            await collect(bench.engine, ask("x" * 1500))
        assert (caught.value.status, b"exceed_context_size_error" in caught.value.body) == (
            400,
            True,
        )
        child = pids(bench)
        assert finish_of(await collect(bench.engine, longer(1500)))
        assert pids(bench) == child  # asking for more does not bring the old size back
        bench.clock.later_s = 3600
        assert finish_of(await collect(bench.engine, longer(1500)))
        assert context(bench) == 2048  # caution ends

    run(tmp_path, test)


def test_a_death_that_is_swept_up_before_its_answer_breaks_counts_all_the_same(
    tmp_path: Path,
) -> None:
    async def test(bench: Bench) -> None:
        stream = bench.engine.answer(ask(max_tokens=1900), target(), Limits())
        await anext(stream)
        (frozen,) = bench.children()
        freeze(frozen)  # so that there is an answer left to break
        bench.kill()
        await until(lambda: bench.engine._pool._runners == {}, "swept up")
        with pytest.raises(UpstreamBroken):
            async for _ in stream:
                pass
        await collect_after_another_kill(bench)
        assert context(bench) == 1024

    run(tmp_path, test)


async def collect_after_another_kill(bench: Bench) -> None:
    await killed_as_for_memory(bench)
    assert finish_of(await collect(bench.engine, ask()))


def test_one_kill_of_a_model_that_barely_fitted_is_enough(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        ((_, runner),) = bench.engine._pool.loaded()
        runner.tight = True
        await killed_as_for_memory(bench)
        await collect(bench.engine, ask())
        assert context(bench) == 1024

    run(tmp_path, test)


def test_one_kill_may_have_been_a_persons(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        await killed_as_for_memory(bench)
        await collect(bench.engine, ask())
        assert context(bench) == 2048
        await killed_as_for_memory(bench)  # an answer came between
        await collect(bench.engine, ask())
        assert context(bench) == 2048

    run(tmp_path, test)


def test_an_idle_model_makes_room_for_another_and_a_busy_one_does_not(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        bench.hardware = room_for(bench, 600)
        used = bench.hardware.ram_available_bytes
        stream = bench.engine.answer(ask(max_tokens=1900), target(), Limits())
        await anext(stream)
        bench.hardware = msgspec.structs.replace(bench.hardware, ram_available_bytes=10**6)
        with pytest.raises(UpstreamRefused) as caught:
            await collect(bench.engine, ask(), "other")
        assert (caught.value.status, dict(caught.value.headers)["retry-after"]) == (503, "5")
        await stream.aclose()
        (first,) = pids(bench)
        freed = msgspec.structs.replace(bench.hardware, ram_available_bytes=used)
        bench.engine._pool._hardware = lambda: freed if first not in pids(bench) else bench.hardware
        assert finish_of(await collect(bench.engine, ask(), "other"))
        assert first not in pids(bench)

    run(tmp_path, test, models={"other": {"seed": 7}})


# --- a child that hangs --------------------------------------------------------------------


def test_a_child_that_froze_in_the_middle_is_replaced_for_the_next_request(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        seen = 0

        async def asked() -> None:
            nonlocal seen
            limits = Limits(stall_s=0.5)
            async for event in bench.engine.answer(ask(max_tokens=1900), target(), limits):
                if isinstance(event, TextDelta):
                    seen += 1
                    if seen == 1:
                        freeze(bench.children()[0])

        with pytest.raises(UpstreamBroken) as caught:
            await asked()
        assert caught.value.breakage is Breakage.STALL_TIMEOUT
        (frozen,) = pids(bench)
        assert text_of(await collect(bench.engine, ask()))
        assert frozen not in pids(bench)
        assert len(pids(bench)) == 1

    run(tmp_path, test)


def test_a_child_whose_client_left_is_only_asked_how_it_is(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(3):
            await first_word(bench)
        assert finish_of(await collect(bench.engine, ask()))
        assert len(pids(bench)) == 1

    run(tmp_path, test)


# --- embeddings ------------------------------------------------------------------------------


def test_an_embedding_child_that_died_while_idle_costs_no_request(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        before = await bench.engine.embed("tiny", ["a"], {})
        bench.children()[0].send_signal(signal.SIGKILL)
        assert await bench.engine.embed("tiny", ["a"], {}) == before

    run(tmp_path, test)


def test_a_text_too_long_to_embed_is_an_overflow_and_never_cut(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(UpstreamRefused) as caught:
            await bench.engine.embed("tiny", ["short", "x" * 3000], {})
        error = msgspec.json.decode(caught.value.body)["error"]
        assert caught.value.status == 400
        assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == (
            "exceed_context_size_error",
            3001,
            2048,
        )

    run(tmp_path, test)


def test_no_texts_have_no_embeddings(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.engine.embed("tiny", [], {}) == []

    run(tmp_path, test)

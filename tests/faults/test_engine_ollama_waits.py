"""Waiting for an Ollama: who loads, who stands in line, who hangs; and names that are one."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from localfirst.engines.base import Limits
from localfirst.engines.ollama import OllamaEngine
from localfirst.errors import Breakage, PrivacyRefused, UpstreamBroken, UpstreamRefused
from localfirst.events import Progress
from localfirst.settings import LocalSettings, Privacy
from localfirst.types import Call, Dialect, Needs
from tests.fakes.engine_bench import (
    ask,
    call_of,
    collect,
    finish_of,
    ollama_bench,
    run,
    tell,
    text_of,
)

SOON = Limits(first_token_s=1.2, stall_s=5.0)


async def timed(engine: OllamaEngine, **given: Any) -> tuple[list[Any], float]:
    """The events of an answer, and how long it took in seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    return await collect(engine, ask(), **given), loop.time() - began


# --- loading, or in line, or dead -----------------------------------------------------------


def test_who_waits_behind_others_in_the_daemon_is_not_given_up() -> None:
    """It answers one at a time: while it speaks to somebody it is not dead."""

    async def test() -> None:
        async with ollama_bench({"tiny": {"parallel": 1, "word_delay_s": 0.07}}) as made:
            answers = await asyncio.gather(
                *(collect(made.engine, ask(), limits=SOON) for _ in range(5))
            )
            assert all(finish_of(events) for events in answers)
            told = [e for events in answers for e in events if isinstance(e, Progress)]
            assert "queued" in {event.stage for event in told}

    run(test)


def test_a_dead_runner_that_is_listed_until_it_is_needed_is_a_load() -> None:
    async def test() -> None:
        models = {"tiny": {"loaded": True, "dead_s": 1.5, "load_s": 2.0}}
        async with ollama_bench(models) as made:
            events = await collect(made.engine, ask(), limits=SOON)
            assert finish_of(events)
            assert any(isinstance(event, Progress) for event in events)

    run(test)


def test_an_answer_is_not_held_back_by_a_list_that_is() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"load_s": 1.3}}, ps="frozen") as made:
            await made.engine.status()
            events, took_s = await timed(made.engine)
            assert finish_of(events)
            assert took_s < 2.8  # a look at the list, and at the daemon, would take over three

    run(test)


def test_a_hanging_list_does_not_keep_a_model_from_being_unloaded() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"loaded": True}}, ps="frozen") as made:
            assert await made.engine.unload("tiny") is True
            assert [body["keep_alive"] for body in await made.asked("/api/generate")] == [0]

    run(test)


def test_closing_ends_a_look_that_is_under_way() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}, ps="frozen") as made:
            before = asyncio.all_tasks()
            looking = asyncio.ensure_future(made.engine.status())
            while len(asyncio.all_tasks() - before) < 3:
                await asyncio.sleep(0)
            looking.cancel()
            await asyncio.wait({looking})
            await made.engine.aclose()
            while left := asyncio.all_tasks() - before:
                await asyncio.wait(left, timeout=1.0)

    run(test, seconds=6)


# --- one model, many spellings -------------------------------------------------------------


def test_a_model_has_one_context_and_one_line_however_it_is_spelled() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"window": 65536}}) as made:
            for name, num_ctx in (("tiny", 16384), ("Tiny:latest", 4096), ("TINY", None)):
                await collect(made.engine, ask(num_ctx=num_ctx), name)
            sizes = [body["options"]["num_ctx"] for body in await made.asked()]
            assert sizes == [16384, 16384, 16384]
            assert len(made.engine._lines) == 1

    run(test)


def test_a_longer_prompt_does_not_make_a_large_context_smaller() -> None:
    """What the daemon chose by itself is known only after the load."""

    async def test() -> None:
        async with ollama_bench({"tiny": {"window": 65536, "context": 32768}}) as made:
            await collect(made.engine, ask())
            await collect(made.engine, call_of(ask().chat, needs=Needs(prompt_tokens=6000)))
            first, second = await made.asked()
            assert "num_ctx" not in first.get("options", {})
            assert second["options"]["num_ctx"] == 32768

    run(test)


@pytest.mark.parametrize("num_ctx", [0, -5])
def test_a_context_of_no_tokens_is_not_passed_on(num_ctx: int) -> None:
    """Ollama takes it for one of four tokens."""

    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as made:
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "hi"}],
                "options": {"num_ctx": num_ctx, "seed": 7},
            }
            call = Call(
                model="tiny",
                stream=True,
                dialect=Dialect.OLLAMA,
                request_id="r",
                body=msgspec.json.encode(body),
                relay=True,
                decode=lambda _: ask(num_ctx=num_ctx).chat,
            )
            await collect(made.engine, call)
            assert [sent["options"] for sent in await made.asked()] == [{"seed": 7}]

    run(test)


# --- back on the GPU ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["big", "hf.co/Some/Big-GGUF:Q4_K_M"])
def test_a_model_that_lost_its_gpu_is_gone_before_it_is_loaded_again(name: str) -> None:
    """An unload is answered at once and takes effect later; who asks too soon joins the old one."""

    async def test() -> None:
        models = {name: {"loaded": True, "vram": 0, "vram_next": 10**6, "unload_s": 0.4}}
        async with ollama_bench(models) as made:
            assert "on the CPU" in (await made.engine.status()).reason
            assert finish_of(await collect(made.engine, ask(), name))
            status = await made.engine.status(max_age_s=0)
            assert (status.models[0].loaded_vram_bytes, status.reason) == (10**6, "")

    run(test)


def test_a_model_that_answers_others_is_not_taken_from_them() -> None:
    async def test() -> None:
        fine = {"loaded": True, "vram": 10**6, "word_delay_s": 0.1}
        async with ollama_bench({"big": fine}) as made:
            first = asyncio.ensure_future(collect(made.engine, ask(), "big"))
            while not await made.asked():
                await asyncio.sleep(0.01)
            await tell(made.served.endpoint, models={"big": fine | {"vram": 0, "word_delay_s": 0}})
            assert "on the CPU" in (await made.engine.status(max_age_s=0)).reason
            await collect(made.engine, ask(), "big")
            assert not first.done()
            assert await made.asked("/api/generate") == []
            assert finish_of(await first)
            await collect(made.engine, ask(), "big")
            assert len(await made.asked("/api/generate")) == 1

    run(test)


# --- privacy -------------------------------------------------------------------------------


def test_a_model_of_which_nothing_is_known_is_asked_for_before_it_is_trusted() -> None:
    """Its name does not say that it runs in Ollama's cloud, and the list could not be had."""

    async def test() -> None:
        models = {"stub": {"remote": True}, "own": {}}
        async with ollama_bench(models, privacy=Privacy.LOCAL_ONLY, tags="broken") as made:
            with pytest.raises(PrivacyRefused):
                await collect(made.engine, ask(), "stub")
            with pytest.raises(PrivacyRefused):
                await made.engine.embed("stub", ["a"], {})
            assert text_of(await collect(made.engine, ask(), "own"))
            with pytest.raises(UpstreamRefused, match="404"):
                await collect(made.engine, ask(), "nope")
            assert [body["model"] for body in await made.asked()] == ["own", "nope"]
            await made.served.child.stop()
            with pytest.raises(UpstreamBroken) as caught:
                await collect(made.engine, ask(), "stub")
            assert caught.value.breakage is Breakage.CONNECT_REFUSED

    run(test)


# --- the line in front -------------------------------------------------------------------------


def test_a_short_patience_is_kept_to_the_point() -> None:
    async def test() -> None:
        local = LocalSettings(queue_spill_s=0.3)
        async with ollama_bench({"tiny": {"word_delay_s": 0.4}}, local=local) as made:
            busy = [asyncio.ensure_future(collect(made.engine, ask())) for _ in range(16)]
            await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
            with pytest.raises(UpstreamRefused) as caught:
                await collect(made.engine, ask())
            assert caught.value.status == 503
            assert asyncio.get_running_loop().time() - began < 0.9
            for asking in busy:
                asking.cancel()
            await asyncio.wait(busy)

    run(test)


def test_the_line_holds_its_bound_and_its_order() -> None:
    """Of forty at once sixteen are asked, the next in the order they came, one too many is not."""

    async def test() -> None:
        local = LocalSettings(queue_limit=23)
        async with ollama_bench({"tiny": {"word_delay_s": 0.03}}, local=local) as made:
            asking = [
                asyncio.ensure_future(collect(made.engine, ask(f"number {number}")))
                for number in range(40)
            ]
            answers = await asyncio.gather(*asking, return_exceptions=True)
            refused = [
                number for number, given in enumerate(answers) if isinstance(given, Exception)
            ]
            assert refused == [39]
            error = answers[39]
            assert isinstance(error, UpstreamRefused)
            assert (error.status, int(dict(error.headers)["retry-after"]) >= 1) == (503, True)
            sent = [body["messages"][0]["content"] for body in await made.asked()]
            assert sorted(sent[:16]) == sorted(f"number {number}" for number in range(16))
            # Those behind are let in one by one, as the ones before them leave.
            late = [int(text.removeprefix("number ")) for text in sent[16:]]
            assert late == sorted(late)
            assert len(sent) == 39

    run(test)

"""The Ollama engine against a scripted daemon that plays recordings of a real one."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from localfirst.engines.base import Limits
from localfirst.engines.ollama import OllamaEngine, OllamaHosts
from localfirst.errors import (
    Breakage,
    PrivacyRefused,
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
)
from localfirst.events import Opened, Progress, Relayed, TextDelta
from localfirst.settings import LocalSettings, Privacy, Settings
from localfirst.transport.clock import SystemClock
from localfirst.types import Call, Dialect, ImagePart, Message, Needs, TextPart, Tool
from tests.fakes.engine_bench import (
    ask,
    call_of,
    collect,
    finish_of,
    ollama_bench,
    run,
    target,
    tell,
    text_of,
    until,
)

TOOL = Tool(name="get_weather", parameters={"type": "object", "properties": {}})


async def refused(engine: OllamaEngine, call: Call, model: str = "tiny") -> UpstreamRefused:
    with pytest.raises(UpstreamRefused) as caught:
        await collect(engine, call, model)
    return caught.value


async def broken(engine: OllamaEngine, call: Call, limits: Limits | None = None) -> UpstreamBroken:
    with pytest.raises(UpstreamBroken) as caught:
        await collect(engine, call, limits=limits)
    return caught.value


# --- capabilities, privacy -----------------------------------------------------------------


def test_an_image_for_a_text_model_is_refused_before_it_is_sent() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as made:
            image = Message(role="user", content=(TextPart(text="?"), ImagePart(data="aGk=")))
            request = msgspec.structs.replace(ask().chat, messages=(image,))
            error = await refused(made.engine, call_of(request, needs=Needs(vision=True)))
            assert (error.status, error.body) == (400, b'{"error":"tiny does not support vision"}')
            assert await made.asked() == []

    run(test)


def test_tools_for_a_model_without_them_are_refused_before_they_are_sent() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as made:
            request = msgspec.structs.replace(ask().chat, tools=(TOOL,))
            error = await refused(made.engine, call_of(request, needs=Needs(tools=True)))
            assert b"does not support tools" in error.body
            assert await made.asked() == []

    run(test)


def test_thinking_is_left_out_for_a_model_that_does_not_think() -> None:
    async def test() -> None:
        async with ollama_bench(
            {"tiny": {}, "deep": {"capabilities": ["completion", "thinking"]}}
        ) as made:
            await collect(made.engine, ask(think=True))
            await collect(made.engine, ask(think=True), "deep")
            assert ["think" in body for body in await made.asked()] == [False, True]

    run(test)


@pytest.mark.parametrize("name", ["gpt-oss:20b-cloud", "stub"])
def test_ollamas_cloud_models_are_refused_when_nothing_may_leave(name: str) -> None:
    async def test() -> None:
        async with ollama_bench({name: {"remote": True}}) as made:
            status = await made.engine.status()
            assert status.models[0].remote
            with pytest.raises(PrivacyRefused):
                await collect(made.engine, call_of(ask().chat, local_only=True), name)
            assert await made.asked() == []

    run(test)


# --- context ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["error", "friendly", "cut"])
def test_a_prompt_is_never_cut_and_gets_a_longer_context_when_the_model_has_one(path: str) -> None:
    async def test() -> None:
        models = {"tiny": {"context": 256, "window": 8192, "overflow": path}}
        async with ollama_bench(models) as made:
            events = await collect(made.engine, ask("x" * 4000))
            assert finish_of(events)
            first, second = await made.asked()
            assert first["truncate"] is first["shift"] is False
            assert "num_ctx" not in first.get("options", {})
            assert second["options"]["num_ctx"] >= 1000 + 4

    run(test)


def test_a_prompt_beyond_the_window_is_an_overflow_with_its_numbers() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"context": 256, "window": 256}}) as made:
            error = await refused(made.engine, ask("x" * 4000))
            assert error.status == 400
            assert b"request (1000 tokens) exceeds the available context size (256" in error.body
            assert len(await made.asked()) == 1

    run(test)


def test_callers_with_different_wishes_do_not_reload_the_model_in_turn() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"window": 65536}}) as made:
            for num_ctx in (4096, 16384, 2048, 4096, None):
                await collect(made.engine, ask(num_ctx=num_ctx))
            sizes = [body["options"]["num_ctx"] for body in await made.asked()]
            assert sizes == [4096, 16384, 16384, 16384, 16384]

    run(test)


def test_a_model_that_is_loaded_keeps_its_context_when_a_prompt_is_longer_than_usual() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"window": 65536, "context": 32768}}) as made:
            await collect(made.engine, ask())
            await made.engine.status(max_age_s=0)
            fresh = OllamaEngine(
                made.served.endpoint,
                Settings(),
                upstream=made.engine._upstream,
                clock=made.clock,
            )
            await collect(fresh, call_of(ask().chat, needs=Needs(prompt_tokens=6000)))
            assert (await made.asked())[-1]["options"]["num_ctx"] == 32768

    run(test)


# --- loading, dead, frozen -----------------------------------------------------------------------


def test_loading_is_told_while_the_model_is_not_in_the_list() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"load_s": 2.5}}) as made:
            events = await collect(made.engine, ask(), limits=Limits(first_token_s=1.0))
            assert [type(event) for event in events[:2]] == [Progress, Progress]
            assert finish_of(events)

    run(test)


def test_a_load_that_takes_too_long_is_given_up() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"load_s": 60}}) as made:
            error = await broken(made.engine, ask(), Limits(load_s=1.5))
            assert error.breakage is Breakage.FIRST_BYTE_TIMEOUT
            assert "was not loaded" in error.detail

    run(test)


def test_a_daemon_that_dies_while_it_loads_is_dead_and_not_loading() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"load_s": 60}}) as made:
            asking = asyncio.ensure_future(collect(made.engine, ask()))
            while not await made.asked():
                await asyncio.sleep(0)
            os.kill(made.served.child.pid, signal.SIGKILL)
            with pytest.raises(UpstreamError):
                await asking
            status = await made.engine.status(max_age_s=0)
            assert (status.ready, status.state) == (False, "stopped")
            assert "connect_refused" in status.reason

    run(test)


def test_a_loaded_model_without_a_token_runs_into_the_first_token_limit() -> None:
    async def test() -> None:
        async with ollama_bench(
            {"tiny": {"reply": "runner_stopped_midstream", "silent_after": 0}}
        ) as made:
            error = await broken(made.engine, ask(), Limits(first_token_s=1.0, stall_s=2.0))
            assert error.breakage in {Breakage.FIRST_TOKEN_TIMEOUT, Breakage.STALL_TIMEOUT}

    run(test)


def test_a_runner_that_freezes_in_the_middle_is_a_stall() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"reply": "runner_stopped_midstream"}}) as made:
            error = await broken(made.engine, ask(), Limits(stall_s=0.5))
            assert error.breakage is Breakage.STALL_TIMEOUT

    run(test)


def test_a_list_that_a_frozen_runner_holds_back_does_not_hold_the_status_back() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}, ps="frozen") as made:
            async with asyncio.timeout(2.5):
                status = await made.engine.status()
            assert status.ready
            assert "does not answer" in status.reason
            assert [model.name for model in status.models] == ["tiny:latest"]

    run(test)


# --- replies that end badly -------------------------------------------------------------------


def test_a_runner_that_was_killed_is_an_error_inside_the_stream() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"reply": "runner_killed_chat"}}) as made:
            seen = []

            async def read() -> None:
                async for event in made.engine.answer(ask(), target(), Limits()):
                    seen.append(event)

            with pytest.raises(UpstreamRefused) as caught:
                await read()
            assert caught.value.in_band
            assert b"unexpected EOF" in caught.value.body
            assert sum(isinstance(event, TextDelta) for event in seen) == 4

    run(test)


def test_a_reply_without_done_is_cut_although_it_ended_cleanly() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"reply": "repeat_guard_chat"}}) as made:
            error = await broken(made.engine, ask())
            assert error.breakage is Breakage.CUT

    run(test)


def test_a_daemon_that_dies_in_the_middle_breaks_the_answer() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"die_after": 3}}) as made:
            error = await broken(made.engine, ask())
            assert error.breakage in {Breakage.RESET, Breakage.CUT}

    run(test)


@pytest.mark.parametrize(
    ("reply", "status", "text"),
    [
        ("out_of_memory_chat_stream", 500, b"insufficient memory"),
        ("blob_missing_chat", 404, b"try pulling it first"),
        ("blob_truncated_half_chat", 500, b"exceeds file size"),
    ],
)
def test_errors_of_the_model_reach_the_classifier_whole(
    reply: str, status: int, text: bytes
) -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"reply": reply}}) as made:
            error = await refused(made.engine, ask())
            assert (error.status, text in error.body) == (status, True)

    run(test)


def test_a_missing_model_and_a_full_daemon_are_told_as_they_are() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as made:
            missing = await refused(made.engine, ask(), "nope")
            assert (missing.status, missing.body) == (404, b'{"error":"model \'nope\' not found"}')
            await tell(made.served.endpoint, busy=True)
            full = await refused(made.engine, ask())
            assert (full.status, b"maximum pending requests" in full.body) == (503, True)

    run(test)


# --- lists, load, unload, embed ------------------------------------------------------------------


def test_load_and_unload_show_in_the_status() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as made:
            assert await made.engine.unload("tiny") is False
            await made.engine.load("tiny")
            loaded = await made.engine.status(max_age_s=0)
            assert [model.loaded for model in loaded.models] == [True]
            assert await made.engine.unload("TINY:latest") is True
            assert not (await made.engine.status(max_age_s=0)).models[0].loaded

    run(test)


def test_embeddings_of_a_cloud_model_are_refused_when_nothing_may_leave() -> None:
    async def test() -> None:
        async with ollama_bench({"far": {"remote": True, "embeds": True}}) as made:
            engine = OllamaEngine(
                made.served.endpoint,
                Settings(privacy=Privacy.LOCAL_ONLY),
                upstream=made.engine._upstream,
                clock=made.clock,
            )
            with pytest.raises(PrivacyRefused):
                await engine.embed("far", ["a"], {})
            assert await made.asked("/api/embed") == []

    run(test)


def test_embeddings_come_in_order_and_a_text_model_says_it_has_none() -> None:
    async def test() -> None:
        async with ollama_bench({"bert": {"embeds": True}, "tiny": {}}) as made:
            vectors = await made.engine.embed("bert", ["a", "b c", "a"], {})
            assert vectors[0] == vectors[2] != vectors[1]
            assert vectors.prompt_tokens > 0
            assert (await made.asked("/api/embed"))[0]["truncate"] is False
            with pytest.raises(UpstreamRefused) as caught:
                await made.engine.embed("tiny", ["a"], {})
            # Its 501 speaks of the model, and is no fault of the server's that would pass.
            assert caught.value.status == 400
            assert b"tiny does not support embeddings" in caught.value.body

    run(test)


def test_a_program_that_is_no_ollama_is_named_as_such() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}, version=None) as made:
            status = await made.engine.status()
            assert (status.ready, "is not Ollama" in status.reason) == (False, True)

    run(test)


def test_a_client_of_the_same_dialect_gets_the_lines_untouched() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as made:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
            call = Call(
                model="tiny",
                stream=True,
                dialect=Dialect.OLLAMA,
                request_id="r",
                body=msgspec.json.encode(body),
                relay=True,
                decode=lambda _: ask().chat,
            )
            events = await collect(made.engine, call)
            assert isinstance(events[0], Opened)
            relayed = [event for event in events if isinstance(event, Relayed)]
            assert relayed[-1].final
            lines = b"".join(event.data for event in relayed).splitlines()
            assert [msgspec.json.decode(line)["model"] for line in lines] == ["tiny"] * len(lines)

    run(test)


# --- the line in front ---------------------------------------------------------------------------


def test_a_full_line_is_refused_with_a_time_to_come_back() -> None:
    async def test() -> None:
        local = LocalSettings(queue_limit=2)
        async with ollama_bench({"tiny": {"word_delay_s": 0.05}}, local=local) as made:
            answers = await asyncio.gather(
                *(collect(made.engine, ask()) for _ in range(20)), return_exceptions=True
            )
            refusals = [answer for answer in answers if isinstance(answer, UpstreamRefused)]
            assert len(refusals) == 2
            assert {error.status for error in refusals} == {503}
            assert all(int(dict(error.headers)["retry-after"]) >= 1 for error in refusals)

    run(test)


def test_waiting_in_line_is_told_and_spills_when_it_may() -> None:
    async def test() -> None:
        local = LocalSettings(queue_limit=64, queue_spill_s=1.0)
        async with ollama_bench({"tiny": {"word_delay_s": 0.4}}, local=local) as made:
            busy = [asyncio.ensure_future(collect(made.engine, ask())) for _ in range(16)]
            await asyncio.sleep(0)
            error = await refused(made.engine, ask())
            assert (error.status, b"waited 1 s" in error.body) == (503, True)
            for asking in busy:
                asking.cancel()
            await asyncio.wait(busy)

    run(test)


def test_a_caller_that_leaves_takes_its_request_back_at_once() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {"word_delay_s": 0.1}}) as made:
            stream = made.engine.answer(ask(), target(), Limits())
            async for event in stream:
                if isinstance(event, TextDelta):
                    break
            await stream.aclose()
            assert made.engine.load_now == 0

    run(test)


# --- several hosts ----------------------------------------------------------------------------


def test_the_least_busy_host_that_has_the_model_answers() -> None:
    async def test() -> None:
        async with (
            ollama_bench({"tiny": {"word_delay_s": 0.05}}) as one,
            ollama_bench({"tiny": {}}) as two,
        ):
            hosts = OllamaHosts([one.engine, two.engine], SystemClock())
            await asyncio.gather(*(collect(hosts, ask()) for _ in range(4)))
            counts = [len(await made.asked()) for made in (one, two)]
            assert sum(counts) == 4
            assert min(counts) >= 1

    run(test)


def test_a_host_that_broke_is_passed_over_and_its_models_are_still_served() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as one, ollama_bench({"tiny": {}, "more": {}}) as two:
            hosts = OllamaHosts([one.engine, two.engine], SystemClock())
            listed = {model.name for model in (await hosts.status()).models}
            assert listed == {"tiny:latest", "more:latest"}
            await one.served.child.stop()
            assert finish_of(await collect(hosts, ask()))
            assert text_of(await collect(hosts, ask(), "more"))
            status = await hosts.status(max_age_s=0)
            assert (status.ready, one.served.endpoint in status.reason) == (True, True)

    run(test)


# --- suspends, GPUs -----------------------------------------------------------------------------


def test_after_a_suspend_the_daemon_is_looked_at_before_it_is_believed() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": {}}) as made:
            assert (await made.engine.status(max_age_s=3600)).ready
            await made.served.child.stop()
            assert (await made.engine.status(max_age_s=3600)).ready
            made.clock.jumped_s = 3600
            assert not (await made.engine.status(max_age_s=3600)).ready

    run(test)


def test_a_model_that_fell_back_to_the_cpu_is_told_and_reloaded_once() -> None:
    async def test() -> None:
        async with ollama_bench({"big": {"loaded": True, "vram": 0}}) as made:
            status = await made.engine.status()
            assert "on the CPU although the GPU has room: big:latest" in status.reason
            await collect(made.engine, ask(), "big")
            await made.engine.status(max_age_s=0)
            await collect(made.engine, ask(), "big")
            unloads = await made.asked("/api/generate")
            assert [body["keep_alive"] for body in unloads] == [0]

    run(test)


def test_until_is_bounded() -> None:
    with pytest.raises(AssertionError, match="never came true"):
        asyncio.run(until(lambda: False, "nothing", 0.01))

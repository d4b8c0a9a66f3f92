"""The embedded engine on a real llama.cpp and a toy model: what it answers, loads, unloads."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from localfirst.engines.base import Limits
from localfirst.errors import (
    Breakage,
    InsufficientResources,
    Unavailable,
    UpstreamBroken,
    UpstreamRefused,
)
from localfirst.events import Opened, Progress, Relayed, TextDelta
from localfirst.models import gguf, toy, toy_gguf
from localfirst.models.gguf_types import TensorType
from localfirst.settings import LocalSettings
from localfirst.transport import process
from localfirst.types import Call, Dialect, Needs
from tests.fakes.embedded_bench import ROOMY, Bench, freeze, install, put, run
from tests.fakes.engine_bench import (
    ask,
    call_of,
    collect,
    finish_of,
    target,
    text_of,
    until,
)


def test_a_model_of_the_store_answers_without_ollama(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        events = await collect(bench.engine, ask())
        opened = next(event for event in events if not isinstance(event, Progress))
        assert isinstance(opened, Opened)
        assert opened.status == 200
        finished = finish_of(events)
        assert finished.reason == "length"
        assert finished.usage is not None
        assert finished.usage.completion_tokens == 4
        assert text_of(events) != ""

    run(tmp_path, test)


def test_one_child_serves_every_request_for_its_model(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        answers = await asyncio.gather(*(collect(bench.engine, ask()) for _ in range(8)))
        assert len(bench.children()) == 1
        assert len({text_of(events) for events in answers}) == 1

    run(tmp_path, test)


def test_bytes_of_the_same_dialect_are_relayed_as_they_are(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": 3,
        }
        call = Call(
            model="tiny",
            stream=True,
            dialect=Dialect.OPENAI,
            request_id="r",
            body=msgspec.json.encode(body),
            relay=True,
        )
        events = [e for e in await collect(bench.engine, call, "bare") if isinstance(e, Relayed)]
        assert events[-1].final
        assert events[-1].usage is not None
        assert b"".join(event.data for event in events).endswith(b"data: [DONE]\n\n")

    run(tmp_path, test, models={"bare": {"params": {}}})


def test_the_status_lists_what_is_installed_and_what_is_loaded(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        before = await bench.engine.status()
        assert (before.kind, before.state, before.ready) == ("llamacpp", "ready", True)
        assert [(m.name, m.loaded, m.context_tokens) for m in before.models] == [
            ("tiny:latest", False, 2048)
        ]
        assert before.models[0].capabilities == ("completion",)
        await bench.engine.load("tiny")
        after = await bench.engine.status(max_age_s=0)
        assert [(m.loaded, m.expires_unix > 0) for m in after.models] == [(True, True)]

    run(tmp_path, test)


def test_unload_ends_the_child_and_says_whether_there_was_one(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.engine.unload("tiny") is False
        await bench.engine.load("tiny")
        assert len(bench.children()) == 1
        assert await bench.engine.unload("tiny") is True
        assert bench.children() == []

    run(tmp_path, test)


def test_a_model_that_is_idle_is_unloaded(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask(keep_alive=0))
        await until(lambda: bench.children() == [], "unloaded")

    run(tmp_path, test)


def test_a_missing_model_is_refused_as_ollama_refuses_it(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(UpstreamRefused) as caught:
            await collect(bench.engine, ask(), "nope")
        assert (caught.value.status, caught.value.body) == (
            404,
            b'{"error":"model \'nope\' not found"}',
        )

    run(tmp_path, test)


def test_a_prompt_longer_than_the_model_is_an_error_with_numbers(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(UpstreamRefused) as caught:
            await collect(bench.engine, ask("x" * 3000))
        assert caught.value.status == 400
        assert b"exceed_context_size_error" in caught.value.body

    run(tmp_path, test)


def test_a_longer_prompt_gets_a_longer_context_once(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        long = call_of(ask("x" * 900).chat, needs=Needs(prompt_tokens=910))
        assert finish_of(await collect(bench.engine, long)).reason == "length"
        child = bench.children()[0].pid
        await collect(bench.engine, ask())
        assert [process.pid for process in bench.children()] == [child]

    run(tmp_path, test, local=LocalSettings(num_ctx=512))


def test_the_manifests_parameters_hold_where_the_caller_said_nothing(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        request = msgspec.structs.replace(ask().chat, max_tokens=None)
        events = await collect(bench.engine, call_of(request), "brief")
        assert finish_of(events).usage is not None
        assert finish_of(events).usage.completion_tokens == 3  # type: ignore[union-attr]
        events = await collect(bench.engine, ask(max_tokens=5), "brief")
        assert finish_of(events).usage.completion_tokens == 5  # type: ignore[union-attr]

    run(tmp_path, test, models={"brief": {"params": {"num_predict": 3}}})


def test_the_manifests_system_prompt_stands_in(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        plain = finish_of(await collect(bench.engine, ask())).usage
        guided = finish_of(await collect(bench.engine, ask(), "guided")).usage
        assert plain is not None
        assert guided is not None
        assert guided.prompt_tokens >= plain.prompt_tokens + len("Be brief.")

    run(tmp_path, test, models={"guided": {"system": "Be brief."}})


def test_a_json_schema_is_enforced(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }

    async def test(bench: Bench) -> None:
        install(bench.store, "plain", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
        call = ask(max_tokens=200, schema=schema, schema_name="a")
        events = await collect(bench.engine, call, "plain")
        assert set(msgspec.json.decode(text_of(events))) == {"ok"}

    run(tmp_path, test)


def test_a_model_without_a_template_of_its_own_speaks_as_its_go_template_says(
    tmp_path: Path,
) -> None:
    go_template = "[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST]"

    async def test(bench: Bench) -> None:
        install(bench.store, "old", "", go_template)
        events = await collect(bench.engine, ask("hi"), "old")
        usage = finish_of(events).usage
        assert usage is not None
        # One token a byte, an unknown word's space is three; ChatML would be far longer.
        assert len("[INST] hi [/INST]") <= usage.prompt_tokens <= len("[INST] hi [/INST]") + 12

    run(tmp_path, test)


def test_embeddings_have_the_models_width_and_can_be_shortened(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        vectors = await bench.engine.embed("tiny", ["one", "two", "one"], {})
        assert [len(vector) for vector in vectors] == [64, 64, 64]
        assert vectors.prompt_tokens >= len("onetwoone")  # the toy's tokens are bytes
        assert vectors[0] == pytest.approx(vectors[2], abs=1e-4)
        assert vectors[0] != pytest.approx(vectors[1], abs=1e-4)
        short = await bench.engine.embed("tiny", ["one"], {"dimensions": 8})
        assert sum(value * value for value in short[0]) == pytest.approx(1.0)

    run(tmp_path, test)


def test_vectors_of_a_last_token_take_no_more_memory_than_was_counted_on(tmp_path: Path) -> None:
    """Logits of a whole text would be a gigabyte here, and none of them is wanted."""
    path = tmp_path / "model.gguf"
    shape = toy.Shape(vocab=60_000)
    toy.write(path, vocab=shape.vocab)
    tensors = [(one.name, one.shape, TensorType(one.type)) for one in gguf.read_file(path).tensors]
    pairs = toy.keys(shape) | {"llama.pooling_type": 3}
    toy_gguf.write(path, pairs, tensors, fill=toy_gguf.noise)

    async def test(bench: Bench) -> None:
        put(bench.store, "last", path)
        vectors = await bench.engine.embed("last", ["hello" * 380], {})
        assert vectors.prompt_tokens > 1800
        model = next(m for m in (await bench.engine.status()).models if m.name == "last:latest")
        assert 0 < model.loaded_bytes < 600 * 2**20

    run(tmp_path, test)


def test_a_child_that_dies_in_the_middle_is_told_and_replaced(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async def killed() -> None:
            async for event in bench.engine.answer(ask(max_tokens=1900), target(), Limits()):
                if isinstance(event, TextDelta):
                    bench.kill()

        with pytest.raises(UpstreamBroken) as caught:
            await killed()
        assert caught.value.breakage is Breakage.ENGINE_DIED
        assert "was killed, perhaps out of memory" in caught.value.detail
        assert finish_of(await collect(bench.engine, ask())).reason == "length"

    run(tmp_path, test)


def test_a_child_that_died_while_idle_costs_no_request(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        dead = bench.children()[0]
        bench.kill()
        assert finish_of(await collect(bench.engine, ask())).reason == "length"
        assert [process.pid for process in bench.children()] != [dead.pid]

    run(tmp_path, test)


def test_after_a_suspend_a_child_that_no_longer_talks_is_replaced_before_the_next_request(
    tmp_path: Path,
) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        frozen = bench.children()[0]
        freeze(frozen)
        bench.clock.jumped_s = 8 * 3600
        assert finish_of(await collect(bench.engine, ask())).reason == "length"
        assert [child.pid for child in bench.children()] != [frozen.pid]

    run(tmp_path, test)


def test_a_wall_clock_that_is_set_costs_nothing(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        child = bench.children()[0].pid
        for jump in (3600, -3600):
            bench.clock.jumped_s += jump
            await collect(bench.engine, ask())
        assert [each.pid for each in bench.children()] == [child]

    run(tmp_path, test)


def test_a_file_that_is_no_model_is_refused_with_llama_cpps_reason(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        path = bench.store.model_file("tiny")
        data = bytearray(path.read_bytes())
        data[data.index(b"token_embd.weight")] = ord("X")
        path.write_bytes(data)
        with pytest.raises(Unavailable, match="token_embd") as caught:
            await collect(bench.engine, ask())
        assert caught.value.code == "model-load-failed"
        for _ in range(2):
            with pytest.raises(Unavailable):
                await collect(bench.engine, ask())
        with pytest.raises(Unavailable) as resting:
            await collect(bench.engine, ask())
        assert resting.value.code == "model-resting"

    run(tmp_path, test)


def test_a_model_that_does_not_fit_evicts_the_idle_one_and_is_else_refused(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask())
        bench.hardware = msgspec.structs.replace(ROOMY, ram_available_bytes=10**6)
        with pytest.raises(InsufficientResources) as caught:
            await collect(bench.engine, ask(), "other")
        assert caught.value.needed_bytes > caught.value.available_bytes == 10**6
        assert bench.children() == []

    run(tmp_path, test, models={"other": {"seed": 7}})


def test_a_caller_that_leaves_frees_its_place(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        stream = bench.engine.answer(ask(max_tokens=1900), target(), Limits())
        async for event in stream:
            if isinstance(event, TextDelta):
                break
        await stream.aclose()
        assert finish_of(await collect(bench.engine, ask())).reason == "length"

    run(tmp_path, test, local=LocalSettings(queue_limit=0))


def test_no_prompt_and_no_key_gets_into_the_log_or_the_arguments(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await collect(bench.engine, ask("canary-prompt"))
        child = bench.children()[0]
        runner = bench.engine._pool.loaded()[0][1]
        shown = " ".join(child.cmdline()) + str(child.environ())
        for log in (tmp_path / "state" / "logs").iterdir():
            shown += log.read_text()
        assert runner.key not in shown
        assert "canary-prompt" not in shown

    run(tmp_path, test)


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Kill -9 of localfirst leaves no model in memory."""
    toy.publish(tmp_path / "store")
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from localfirst.engines.llamacpp import LlamaCppEngine\n"
        "from localfirst.machine.fit import Cpu, Hardware\n"
        "from localfirst.models.store import Store\n"
        "from localfirst.settings import Settings\n"
        "from localfirst.transport import process\n"
        "from localfirst.transport.clock import SystemClock\n"
        "from localfirst.transport.upstream import UpstreamClient\n"
        "async def main():\n"
        "    clock = SystemClock()\n"
        "    engine = LlamaCppEngine(Settings(), store=Store(Path(sys.argv[1])),\n"
        "        upstream=UpstreamClient(clock), clock=clock, environ=process.environ(),\n"
        "        hardware=Hardware)\n"
        "    await engine.load('tiny')\n"
        "    print(engine._pool.loaded()[0][1].child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )

    async def test() -> None:
        import sys

        path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        parent = process.spawn(
            [sys.executable, "-c", code, str(tmp_path / "store")],
            env=process.child_environ(os.environ, {"PYTHONPATH": path}),
        )
        await until(lambda: any(line.isdigit() for line in parent.log.tail()), "the child")
        child = int(next(line for line in parent.log.tail() if line.isdigit()))
        mark = process.birth(child)
        assert mark
        os.kill(parent.pid, signal.SIGKILL)
        await parent.wait()
        await until(lambda: not process.same(child, mark), "the child's end")
        parent.close()

    asyncio.run(test())

"""
What a real Ollama does when something dies, hangs, is cut or is too long, and what we make of it.

Each stages one of the recorded surprises; `tests/unit/test_engines_surprises.py` has the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from localfirst.engines.base import Limits
from localfirst.engines.launch import free_port
from localfirst.engines.local import LocalEngine
from localfirst.engines.ollama import OllamaEngine
from localfirst.errors import Breakage, UpstreamBroken, UpstreamRefused
from localfirst.events import Event, Finished, Progress, Relayed, TextDelta
from localfirst.machine.fit import Cpu, Hardware
from localfirst.models import gguf, toy
from localfirst.models.store import Store
from localfirst.settings import LocalSettings, Settings
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Dialect, Needs
from tests.fakes.engine_bench import (
    NO_REAL,
    REAL,
    JumpyClock,
    Served,
    ask,
    call_of,
    collect,
    finish_of,
    real_daemon,
    run,
    target,
    text_of,
    until,
)

pytestmark = [
    pytest.mark.real_ollama,
    pytest.mark.skipif(not REAL.exists(), reason=NO_REAL),
]
ROOMY = Hardware(ram_total_bytes=16 * 2**30, ram_available_bytes=8 * 2**30, cpu=Cpu(cores=2))
GO_TEMPLATE = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"
ENDLESS = 1900


class Bench:
    """A real daemon with `tiny` (its GGUF's template) and `tmpl` (a Go template of Ollama's)."""

    def __init__(
        self, served: Served, engine: OllamaEngine, store: Store, clock: JumpyClock
    ) -> None:
        self.served = served
        self.engine = engine
        self.store = store
        self.clock = clock

    def signal(self, number: signal.Signals) -> None:
        """Send it to every runner."""
        for pid in self.served.runners():
            os.kill(pid, number)

    async def listed(self) -> list[str]:
        """What `/api/ps` says is in memory."""
        return [entry.name for entry in await self.engine.daemon.ps(30.0)]

    async def list_hangs(self) -> bool:
        """Whether `/api/ps` is held back by a runner that does not answer."""
        try:
            await self.engine.daemon.ps(0.5)
        except UpstreamBroken as error:
            return error.breakage is Breakage.FIRST_BYTE_TIMEOUT
        return False


@contextlib.asynccontextmanager
async def bench(
    folder: Path, *, say: str = "", context: int = 0, **environ: str
) -> AsyncIterator[Bench]:
    """With *say* the models say that letter for ever."""
    params: dict[str, object] = {"num_ctx": context} if context else {}
    toy.publish(folder / "store", params=params)
    toy.publish(folder / "store", name="library/tmpl", params=params, template=GO_TEMPLATE)
    store = Store(folder / "store")
    if say:
        stick(store.model_file("tiny"), say)
    upstream = UpstreamClient(SystemClock())
    try:
        async with real_daemon(folder, store.root, **environ) as served:
            clock = JumpyClock()
            engine = OllamaEngine(served.endpoint, Settings(), upstream=upstream, clock=clock)
            made = Bench(served, engine, store, clock)
            try:
                yield made
            finally:
                with contextlib.suppress(psutil.NoSuchProcess):
                    made.signal(signal.SIGKILL)
                await engine.aclose()
    finally:
        await upstream.aclose()


def stick(path: Path, letter: str) -> None:
    """Rewrite a toy's weights so that it can say nothing but *letter*."""
    header = gguf.read_file(path)
    data = bytearray(path.read_bytes())
    start = len(data) - sum(_size(tensor.shape) for tensor in header.tensors)
    for tensor in header.tensors:
        count, at = _size(tensor.shape) // 4, start + tensor.offset
        values = [0.0] * count
        if tensor.name == "token_embd.weight":
            values = [1.0] * count
        elif tensor.name.startswith("output.weight"):
            width = tensor.shape[0]
            row = 3 + ord(letter)
            values[row * width : (row + 1) * width] = [1.0] * width
        elif "attn_output" not in tensor.name and "ffn_down" not in tensor.name:
            continue
        data[at : at + 4 * count] = struct.pack(f"<{count}f", *values)
    path.write_bytes(data)


def _size(shape: tuple[int, ...]) -> int:
    count = 4
    for length in shape:
        count *= length
    return count


async def heard(engine: OllamaEngine, model: str, tokens: int) -> tuple[list[Event], Exception]:
    """What came before an answer broke, and how it did."""
    events: list[Event] = []
    try:
        async for event in engine.answer(ask(max_tokens=tokens), target(model), Limits()):
            events.append(event)
    except (UpstreamBroken, UpstreamRefused) as error:
        return events, error
    raise AssertionError(f"it did not break: {events[-1]}")


# --- cut short, with status 200 and a clean end ---------------------------------------------------


@pytest.mark.parametrize("dialect", [Dialect.OPENAI, Dialect.OLLAMA])
def test_the_repeat_guard_is_a_cut_and_no_answer(tmp_path: Path, dialect: Dialect) -> None:
    """Surprise 1: the stream just ends, on the path of Ollama's own templates."""

    async def test() -> None:
        async with bench(tmp_path, say="a") as made:
            events, error = await heard(made.engine, "tmpl", 200)
            assert isinstance(error, UpstreamBroken)
            assert error.breakage is Breakage.CUT
            assert set(text_of(events)) == {"a"}
            assert not any(isinstance(event, Finished | Relayed) for event in events)

    run(test)


def test_a_template_of_the_files_own_has_no_repeat_guard(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path, say="a") as made:
            assert text_of(await collect(made.engine, ask(max_tokens=100))) == "a" * 100

    run(test)


# --- runners and daemons that die -----------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "tmpl"])
def test_a_runner_killed_in_the_middle_is_an_error_and_no_end(tmp_path: Path, model: str) -> None:
    """Surprise 3, on both template paths; and 5: the next request loads without an error."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            events: list[Event] = []

            async def killed() -> None:
                stream = made.engine.answer(ask(max_tokens=ENDLESS), target(model), Limits())
                async for event in stream:
                    events.append(event)
                    if sum(isinstance(each, TextDelta) for each in events) == 3:
                        made.signal(signal.SIGKILL)

            with pytest.raises((UpstreamBroken, UpstreamRefused)):
                await killed()
            assert not any(isinstance(event, Finished) for event in events)
            assert finish_of(await collect(made.engine, ask(), model)).reason == "length"

    run(test)


@pytest.mark.parametrize("model", ["tiny", "tmpl"])
def test_a_model_that_was_loaded_before_is_not_loaded_again_for_the_first_request(
    tmp_path: Path, model: str
) -> None:
    """The window's size and whether it may shift are flags of the runner."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            await made.engine.load(model)
            loaded = made.served.runners()
            for _ in range(2):
                await collect(made.engine, ask(), model)
            assert made.served.runners() == loaded

    run(test)


def test_a_dead_runner_is_still_listed_and_the_next_request_loads_it_again(tmp_path: Path) -> None:
    """Surprise 5: `/api/ps` knows nothing of its death."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            await made.engine.load("tiny")
            (pid,) = made.served.runners()
            mark = process.birth(pid)
            made.signal(signal.SIGKILL)
            await until(lambda: not process.same(pid, mark), "its death")
            assert await made.listed() == ["tiny:latest"]
            assert finish_of(await collect(made.engine, ask())).reason == "length"
            assert made.served.runners() != [pid]

    run(test)


def test_a_daemon_that_is_stopped_while_it_answers_breaks_the_answer(tmp_path: Path) -> None:
    """Surprise 4: closed without a terminator and without an error line."""

    async def test() -> None:
        async with bench(tmp_path) as made:

            async def stopped() -> None:
                seen = 0
                stream = made.engine.answer(ask(max_tokens=ENDLESS), target(), Limits())
                async for event in stream:
                    seen += isinstance(event, TextDelta)
                    if seen == 3:
                        os.kill(made.served.child.pid, signal.SIGTERM)

            with pytest.raises(UpstreamBroken) as caught:
                await stopped()
            assert caught.value.breakage in {Breakage.CUT, Breakage.RESET}
            assert await made.served.child.wait() == 0

    run(test)


# --- frozen runners -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_frozen_runner_is_waited_out_while_the_list_hangs_and_the_answer_comes(
    tmp_path: Path,
) -> None:
    """
    Surprise 5: with a request under way `/api/ps` blocks for two pings of ten seconds, while
    `/` answers at once; then the daemon replaces the runner by itself.
    """

    async def test() -> None:
        async with bench(tmp_path) as made:
            loop = asyncio.get_running_loop()
            await made.engine.load("tiny")
            (frozen,) = made.served.runners()
            os.kill(frozen, signal.SIGSTOP)
            began = loop.time()
            asking = asyncio.ensure_future(collect(made.engine, ask()))
            while not await made.list_hangs():
                assert not asking.done()
            assert await made.engine.daemon.alive()
            async with asyncio.timeout(6):
                assert (await made.engine.status(max_age_s=0)).ready
            assert finish_of(await asking).reason == "length"
            assert loop.time() - began > 8
            assert frozen not in made.served.runners()

    run(test, seconds=60)


def test_a_runner_frozen_in_the_middle_is_a_stall(tmp_path: Path) -> None:
    """Surprise 5: silence for ever; the client has to give up."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            events: list[Event] = []

            async def frozen() -> None:
                limits = Limits(stall_s=1.0)
                stream = made.engine.answer(ask(max_tokens=ENDLESS), target(), limits)
                async for event in stream:
                    events.append(event)
                    if sum(isinstance(each, TextDelta) for each in events) == 3:
                        made.signal(signal.SIGSTOP)

            with pytest.raises(UpstreamBroken) as caught:
                await frozen()
            assert caught.value.breakage is Breakage.STALL_TIMEOUT
            assert not any(isinstance(event, Finished) for event in events)

    run(test)


def test_a_runner_frozen_while_it_loads_is_loading_and_then_answers(tmp_path: Path) -> None:
    """A load and a hang look alike from the socket: told apart by a list that lacks the model."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            events: list[Event] = []

            async def asked() -> None:
                stream = made.engine.answer(ask(), target(), Limits(first_token_s=1.0))
                async for event in stream:
                    events.append(event)

            asking = asyncio.ensure_future(asked())
            await until(lambda: loading(made.served) != [], "the runner", 10)
            (runner,) = loading(made.served)
            os.kill(runner, signal.SIGSTOP)
            made.clock.later_s += 2.5  # longer than a first token may take
            told = len(events)
            await until(lambda: len(events) > told + 1 or asking.done(), "two more looks", 10)
            assert await made.listed() == []
            assert not asking.done()
            os.kill(runner, signal.SIGCONT)
            await asking
            assert finish_of(events).reason == "length"
            assert {e.stage for e in events if isinstance(e, Progress)} == {"loading"}

    run(test)


def loading(served: Served) -> list[int]:
    """Runners that hold a model, or will; not those that are only asked for their devices."""
    found = []
    for child in psutil.Process(served.child.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = child.cmdline()
            if "llama-server" in " ".join(words) and "--model" in words:
                found.append(child.pid)
    return found


# --- orphans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
@pytest.mark.parametrize("ours", [True, False])
def test_a_daemon_that_dies_leaves_its_runners_and_ours_are_ended(
    tmp_path: Path, number: signal.Signals, ours: bool
) -> None:
    """Surprise 6: they keep their memory, and a new daemon neither sees nor ends them."""

    async def test() -> None:
        toy.publish(tmp_path / "store")
        upstream = UpstreamClient(SystemClock())
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        if ours:
            environ["PATH"] = f"{REAL.parent}:{environ['PATH']}"
        engine = LocalEngine(
            Settings(
                state_dir=str(tmp_path / "state"),
                local=LocalSettings(
                    engine="ollama",
                    host=f"127.0.0.1:{free_port()}",
                    models_dir=str(tmp_path / "store"),
                ),
            ),
            store=Store(tmp_path / "store"),
            upstream=upstream,
            clock=SystemClock(),
            environ=environ,
            hardware=lambda: ROOMY,
        )
        try:
            if ours:
                await killed_under_us(engine, number)
            else:
                await killed_beside_us(tmp_path, number)
        finally:
            await engine.aclose()
            await upstream.aclose()

    run(test)


async def killed_under_us(engine: LocalEngine, number: signal.Signals) -> None:
    """Of a daemon that we started nothing is left, and the next request is answered."""
    assert finish_of(await collect(engine, ask())).reason == "length"
    daemon = engine.supervisor.pid
    assert daemon is not None
    runners = [child.pid for child in psutil.Process(daemon).children(recursive=True)]
    marks = {pid: process.birth(pid) for pid in runners}
    assert runners
    os.kill(daemon, number)
    await until(
        lambda: not any(process.same(pid, mark) for pid, mark in marks.items()), "their end"
    )
    assert finish_of(await collect(engine, ask())).reason == "length"
    assert engine.supervisor.starts == 2


async def killed_beside_us(folder: Path, number: signal.Signals) -> None:
    """What Ollama does by itself, which is why ours are ended."""
    async with real_daemon(folder, folder / "store") as served:
        daemon = OllamaEngine(
            served.endpoint,
            Settings(),
            upstream=(upstream := UpstreamClient(SystemClock())),
            clock=SystemClock(),
        )
        await daemon.load("tiny")
        (runner,) = served.runners()
        mark = process.birth(runner)
        # Its own group is ended with it by whoever started it here: let it see none of that.
        os.kill(served.child.pid, signal.SIGSTOP)
        parent = psutil.Process(runner).ppid()
        os.kill(served.child.pid, signal.SIGCONT)
        assert parent == served.child.pid
        os.kill(served.child.pid, number)
        await served.child.wait()
        await until(lambda: not process.same(runner, mark), "its end")
        await upstream.aclose()


# --- too long, on both template paths --------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "tmpl"])
def test_too_long_a_prompt_is_refused_on_both_template_paths(tmp_path: Path, model: str) -> None:
    """Surprise 13: by itself Ollama cuts the one and refuses the other."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            with pytest.raises(UpstreamRefused) as caught:
                await collect(made.engine, ask("x" * 6000), model)
            assert caught.value.status == 400
            assert b"exceed_context_size_error" in caught.value.body

    run(test)


@pytest.mark.parametrize("model", ["tiny", "tmpl"])
def test_a_prompt_that_fits_the_window_but_not_the_context_is_taken_whole(
    tmp_path: Path, model: str
) -> None:
    async def test() -> None:
        async with bench(tmp_path, context=512) as made:
            events = await collect(made.engine, ask("x" * 1500), model)
            usage = finish_of(events).usage
            assert usage is not None
            assert usage.prompt_tokens > 1500

    run(test)


@pytest.mark.parametrize("num_ctx", [0, -1, 2])
def test_a_context_of_four_tokens_is_never_asked_for(tmp_path: Path, num_ctx: int) -> None:
    """Surprise 10: that is what a tiny number means to Ollama."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            call = call_of(ask("y" * 300, num_ctx=num_ctx).chat, needs=Needs(prompt_tokens=310))
            usage = finish_of(await collect(made.engine, call)).usage
            assert usage is not None
            assert usage.prompt_tokens > 300

    run(test)


# --- unloading, deleting, damaged files ----------------------------------------------------------


def test_an_unload_waits_for_the_answer_that_runs(tmp_path: Path) -> None:
    """Surprise 7: it is answered at once, and does nothing until then."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            stream = made.engine.answer(ask(max_tokens=600), target(), Limits())
            await anext(stream)
            assert await made.engine.unload("tiny") is True
            events = [event async for event in stream]
            assert finish_of(events).reason == "length"
            async with asyncio.timeout(10):
                while await made.listed():
                    await asyncio.sleep(0.02)

    run(test)


def test_a_deleted_model_is_listed_as_loaded_and_yet_unknown(tmp_path: Path) -> None:
    """Surprise 9."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            await made.engine.load("tiny")
            await made.engine.delete("tiny")
            assert await made.listed() == ["tiny:latest"]
            status = await made.engine.status(max_age_s=0)
            assert [model.name for model in status.models] == ["tmpl:latest"]
            with pytest.raises(UpstreamRefused) as caught:
                await collect(made.engine, ask())
            assert caught.value.status == 404

    run(test)


DAMAGE = {
    "missing": (404, b"does not support chat"),
    "truncated": (500, b"exceeds file size"),
    "empty": (404, b"does not support chat"),
    "garbage": (500, b"invalid file magic"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_told_in_the_daemons_words(tmp_path: Path, how: str) -> None:
    """Surprise 11: without a file it is a request's fault to Ollama, and a missing model to us."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            blob = made.store.model_file("tiny")
            data = blob.read_bytes()
            blob.unlink()
            if how != "missing":
                damaged = {"truncated": data[: len(data) // 2], "empty": b""}
                blob.write_bytes(damaged.get(how, b"\x00garbage\x01" * 1000))
            with pytest.raises(UpstreamRefused) as caught:
                await collect(made.engine, ask())
            status, words = DAMAGE[how]
            assert (caught.value.status, words in caught.value.body) == (status, True)

    run(test)


def test_a_broken_manifest_takes_its_model_from_the_list_and_no_other(tmp_path: Path) -> None:
    """Surprise 11."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            manifest = made.store.root / "manifests/registry.ollama.ai/library/tiny/latest"
            manifest.write_text("{")
            status = await made.engine.status()
            assert (status.ready, [model.name for model in status.models]) == (
                True,
                ["tmpl:latest"],
            )
            with pytest.raises(UpstreamRefused):
                await collect(made.engine, ask())
            assert finish_of(await collect(made.engine, ask(), "tmpl")).reason == "length"

    run(test)


# --- its queue ---------------------------------------------------------------------------------


def test_a_full_daemon_says_so_and_a_waiting_one_answers_all(tmp_path: Path) -> None:
    """Only requests that have to load stand in its queue; the rest wait in the runner."""

    async def test() -> None:
        async with bench(tmp_path, OLLAMA_NUM_PARALLEL="1", OLLAMA_MAX_QUEUE="1") as made:
            given = await asyncio.gather(
                *(collect(made.engine, ask()) for _ in range(14)), return_exceptions=True
            )
            refusals = [each for each in given if isinstance(each, UpstreamRefused)]
            assert all(each.status == 503 for each in refusals)
            assert len(refusals) < len(given)
            assert not [
                each
                for each in given
                if isinstance(each, BaseException) and not isinstance(each, UpstreamRefused)
            ]
            warm = await asyncio.gather(*(collect(made.engine, ask()) for _ in range(14)))
            assert len({text_of(events) for events in warm}) == 1

    run(test)

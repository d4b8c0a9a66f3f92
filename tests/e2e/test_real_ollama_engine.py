"""
The Ollama engine on a real Ollama, and the same contract on the fake that stands in for it.

Whatever holds for both makes the fake's other stories believable; what only a real daemon
can show (its runner killed, frozen, the daemon killed, a damaged blob) follows below.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from localfirst.engines.base import Limits
from localfirst.engines.ollama import OllamaEngine
from localfirst.errors import UpstreamBroken, UpstreamError, UpstreamRefused
from localfirst.events import Opened, Progress, TextDelta
from localfirst.models import toy
from localfirst.models.store import Store
from localfirst.settings import LocalSettings, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Needs
from tests.fakes import stranger
from tests.fakes.backends import CALLER
from tests.fakes.embedded_bench import install
from tests.fakes.engine_bench import (
    NO_REAL,
    REAL,
    Served,
    ask,
    call_of,
    collect,
    fake_daemon,
    finish_of,
    real_daemon,
    run,
    target,
    tell,
    text_of,
)
from tests.fakes.house import house

real = [
    pytest.mark.real_ollama,
    pytest.mark.skipif(not REAL.exists(), reason=NO_REAL),
]
KINDS = [pytest.param("fake"), pytest.param("real", marks=real)]


class Bench:
    def __init__(self, served: Served, engine: OllamaEngine, store: Store) -> None:
        self.served = served
        self.engine = engine
        self.store = store


@contextlib.asynccontextmanager
async def bench(
    kind: str, folder: Path, *, context: int = 0, **environ: str
) -> AsyncIterator[Bench]:
    """The engine on a daemon that has `tiny`, a model of 2048 tokens."""
    store = folder / "store"
    toy.publish(store, params={"num_ctx": context} if context else {})
    script = {"models": {"tiny": {"context": context or 2048, "window": 2048}}}
    made = fake_daemon(script) if kind == "fake" else real_daemon(folder, store, **environ)
    upstream = UpstreamClient(SystemClock())
    try:
        async with made as served:
            settings = Settings(local=LocalSettings())
            engine = OllamaEngine(served.endpoint, settings, upstream=upstream, clock=SystemClock())
            yield Bench(served, engine, Store(store))
    finally:
        await upstream.aclose()


# --- the contract --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_adopted_and_lists_the_model(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            status = await made.engine.status()
            assert (status.kind, status.state, status.ready, status.adopted) == (
                "ollama",
                "ready",
                True,
                True,
            )
            assert status.version
            (model,) = status.models
            assert (model.name, model.family, model.context_tokens) == (
                "tiny:latest",
                "llama",
                2048,
            )
            assert model.capabilities == ("completion",)
            assert len(model.digest) == 64
            assert not model.loaded
            assert not model.remote

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_it_streams_an_answer_to_its_terminator(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            events = await collect(made.engine, ask(max_tokens=12))
            kinds = [type(event) for event in events if not isinstance(event, Progress)]
            assert kinds[0] is Opened
            assert kinds.count(TextDelta) >= 1
            finished = finish_of(events)
            assert finished.reason == "length"
            assert finished.usage is not None
            assert finished.usage.completion_tokens == 12
            assert finished.usage.prompt_tokens > 0
            assert text_of(events)
            assert (await made.engine.status(max_age_s=0)).models[0].loaded

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_load_and_unload(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            assert await made.engine.unload("tiny") is False
            await made.engine.load("tiny")
            (model,) = (await made.engine.status(max_age_s=0)).models
            assert model.loaded
            assert model.expires_unix > 0
            assert await made.engine.unload("tiny") is True
            async with asyncio.timeout(5):
                while (await made.engine.status(max_age_s=0)).models[0].loaded:
                    await asyncio.sleep(0)

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_model_is_a_404_that_names_it(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            with pytest.raises(UpstreamRefused) as caught:
                await collect(made.engine, ask(), "nope")
            assert caught.value.status == 404
            assert caught.value.body == b'{"error":"model \'nope\' not found"}'

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_model_has_no_embeddings(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            with pytest.raises(UpstreamRefused) as caught:
                await made.engine.embed("tiny", ["one"], {})
            assert caught.value.status == 400
            assert b"does not support embeddings" in caught.value.body

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_deleted_through_the_daemon(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            assert len((await made.engine.status()).models) == 1
            await made.engine.delete("tiny")
            assert (await made.engine.status()).models == ()
            with pytest.raises(UpstreamRefused) as caught:
                await made.engine.delete("tiny")
            assert (caught.value.status, b"not found" in caught.value.body) == (404, True)
            await made.served.child.stop()
            with pytest.raises(UpstreamBroken):
                await made.engine.delete("tiny")

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_tools_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            call = call_of(ask().chat, needs=Needs(tools=True))
            with pytest.raises(UpstreamRefused) as caught:
                await collect(made.engine, call)
            assert (caught.value.status, b"does not support tools" in caught.value.body) == (
                400,
                True,
            )

    run(test)


def test_tools_that_only_the_files_own_template_shows_are_no_reason_to_refuse(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bench("fake", tmp_path) as made:
            await tell(made.served.endpoint, models={"tiny": {"shows": ["completion", "tools"]}})
            call = call_of(ask().chat, needs=Needs(tools=True, thinking=True))
            assert text_of(await collect(made.engine, call))
            made.engine.forget()
            assert text_of(await collect(made.engine, call))
            asked = (await tell(made.served.endpoint))["requests"]
            shows = [one for one in asked if one["path"] == "/api/show"]
            assert len(shows) <= 2, "for its abilities once, and once for its own window"

    run(test)


@real[0]
@real[1]
def test_a_house_lets_a_real_ollama_call_tools_by_a_template_that_it_does_not_list(
    tmp_path: Path,
) -> None:
    toy.publish(tmp_path / "models")
    install(Store(tmp_path / "models"), "caller", CALLER)
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}

    async def test() -> None:
        async with real_daemon(tmp_path, tmp_path / "models") as served:
            local = {"LOCALFIRST_LOCAL_ENGINE": "ollama", "OLLAMA_HOST": served.endpoint}
            with house(tmp_path, config='order = ["local"]', **local) as at:
                asked = {"surface": "ollama", "tools": [tool], "options": {"num_predict": 3}}
                told = await stranger.ask(at.url, "caller", **asked)
                assert (told.status, told.finished) == (200, True), told.body
                told = await stranger.ask(at.url, "tiny", **asked)
                assert (told.status, "tools" in told.message) == (400, True)

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_beyond_the_window_is_refused_with_numbers(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path) as made:
            with pytest.raises(UpstreamRefused) as caught:
                await collect(made.engine, ask("x" * 12000))
            assert caught.value.status == 400
            assert b"exceed_context_size_error" in caught.value.body

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_beyond_the_context_but_within_the_window_is_answered(
    kind: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with bench(kind, tmp_path, context=256) as made:
            events = await collect(made.engine, ask("x" * 1400))
            finished = finish_of(events)
            assert finished.usage is not None

    run(test)


# --- only a real one shows ---------------------------------------------------------------------


@pytest.mark.real_ollama
@pytest.mark.skipif(not REAL.exists(), reason=NO_REAL)
class TestRealOllama:
    def test_a_runner_that_is_killed_in_the_middle_is_an_error_and_the_next_request_works(
        self, tmp_path: Path
    ) -> None:
        async def test() -> None:
            async with bench("real", tmp_path) as made:
                with pytest.raises(UpstreamError):
                    await killed_in_the_middle(made)
                assert (await made.engine.status(max_age_s=0)).ready
                assert finish_of(await collect(made.engine, ask()))

        run(test)

    def test_a_runner_that_died_while_idle_is_still_listed_and_costs_no_request(
        self, tmp_path: Path
    ) -> None:
        async def test() -> None:
            async with bench("real", tmp_path) as made:
                await made.engine.load("tiny")
                for pid in made.served.runners():
                    os.kill(pid, signal.SIGKILL)
                assert (await made.engine.status(max_age_s=0)).models[0].loaded
                assert finish_of(await collect(made.engine, ask()))

        run(test)

    def test_a_frozen_runner_neither_hides_the_engine_nor_hangs_a_request(
        self, tmp_path: Path
    ) -> None:
        async def test() -> None:
            async with bench("real", tmp_path) as made:
                await made.engine.load("tiny")
                for pid in made.served.runners():
                    os.kill(pid, signal.SIGSTOP)
                async with asyncio.timeout(3):
                    status = await made.engine.status(max_age_s=0)
                assert status.ready
                # The daemon may notice and replace it, or we give up: within the limits.
                limits = Limits(first_token_s=1.0, stall_s=2.0, load_s=3.0)
                async with asyncio.timeout(10):
                    with contextlib.suppress(UpstreamError):
                        assert finish_of(await collect(made.engine, ask(), limits=limits))
                for pid in made.served.runners():
                    os.kill(pid, signal.SIGKILL)

        run(test)

    def test_a_daemon_that_is_killed_breaks_the_answer_and_is_seen_as_stopped(
        self, tmp_path: Path
    ) -> None:
        async def test() -> None:
            async with bench("real", tmp_path) as made:
                with pytest.raises(UpstreamBroken):
                    await killed_in_the_middle(made, daemon=True)
                status = await made.engine.status(max_age_s=0)
                assert (status.ready, "not running" in status.reason) == (False, True)

        run(test)

    def test_a_damaged_blob_is_told_in_the_daemons_words(self, tmp_path: Path) -> None:
        async def test() -> None:
            async with bench("real", tmp_path) as made:
                blob = made.store.model_file("tiny")
                blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
                with pytest.raises(UpstreamRefused) as caught:
                    await collect(made.engine, ask())
                assert caught.value.status == 500
                assert b"exceeds file size" in caught.value.body

        run(test)

    def test_many_at_once_are_all_answered(self, tmp_path: Path) -> None:
        async def test() -> None:
            async with bench("real", tmp_path, OLLAMA_NUM_PARALLEL="2") as made:
                answers = await asyncio.gather(*(collect(made.engine, ask()) for _ in range(12)))
                assert len({text_of(events) for events in answers}) == 1
                assert len(made.served.runners()) == 1

        run(test)


async def killed_in_the_middle(made: Bench, *, daemon: bool = False) -> None:
    """Read an answer, killing the runner or the daemon after its first words."""
    seen = 0
    async for event in made.engine.answer(ask(max_tokens=1900), target(), Limits()):
        seen += isinstance(event, TextDelta)
        if seen == 3:
            seen += 1
            for pid in [made.served.child.pid] if daemon else made.served.runners():
                os.kill(pid, signal.SIGKILL)

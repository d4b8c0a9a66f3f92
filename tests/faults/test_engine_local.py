"""Which engine answers: adopted, started, embedded; and what the status says of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from localfirst.engines.base import Limits
from localfirst.engines.launch import find_program, free_port
from localfirst.engines.life import Pace
from localfirst.engines.local import LocalEngine
from localfirst.engines.record import Record, Started
from localfirst.errors import EngineUnavailable, UpstreamBroken, UpstreamRefused
from localfirst.events import Progress
from localfirst.machine.fit import Cpu, Gpu, Hardware
from localfirst.models import toy
from localfirst.models.store import Store
from localfirst.settings import LocalSettings, Settings
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from tests.fakes import ollama_binary
from tests.fakes.engine_bench import (
    ask,
    collect,
    fake_daemon,
    finish_of,
    run,
    target,
    text_of,
    until,
)

IMPATIENT = Pace(backoff_s=0.02, budget=2)
GPU = Gpu(index=0, vendor="nvidia", total_bytes=8 * 2**30, free_bytes=8 * 2**30)
ROOMY = Hardware(ram_total_bytes=16 * 2**30, ram_available_bytes=8 * 2**30, cpu=Cpu(cores=2))


class Bench:
    """A folder, a port, and a local engine on both."""

    def __init__(self, folder: Path, upstream: UpstreamClient, local: dict[str, Any]) -> None:
        self.bin = folder / "bin"
        self.port = free_port()
        self.store = folder / "store"
        self.upstream = upstream
        usual = {"host": f"127.0.0.1:{self.port}", "models_dir": str(self.store)}
        self.hardware = ROOMY
        self.engine = LocalEngine(
            Settings(
                state_dir=str(folder / "state"),
                local=LocalSettings(**usual | local),
            ),
            store=Store(self.store),
            upstream=upstream,
            clock=SystemClock(),
            environ={**os.environ, "PATH": str(self.bin), "HOME": str(folder)},
            hardware=lambda: self.hardware,
            measure=lambda: self.hardware,
            places=(),
            pace=IMPATIENT,
        )

    @property
    def starts(self) -> int:
        return len(ollama_binary.starts(self.bin))


@contextlib.asynccontextmanager
async def bench(folder: Path, **local: Any) -> AsyncIterator[Bench]:
    toy.publish(folder / "store")
    upstream = UpstreamClient(SystemClock())
    made = Bench(folder, upstream, local)
    try:
        yield made
    finally:
        await made.engine.aclose()
        await upstream.aclose()


def test_a_running_ollama_is_adopted(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            fake_daemon({"models": {"tiny": {}}}) as served,
            bench(tmp_path, host=served.endpoint) as made,
        ):
            ollama_binary.install(made.bin)
            status = await made.engine.status()
            assert (status.kind, status.ready, status.adopted) == ("ollama", True, True)
            assert [model.fit for model in status.models] == ["fits"]
            assert text_of(await collect(made.engine, ask()))
            assert made.starts == 0

    run(test)


def test_an_installed_ollama_is_started_by_the_first_request_and_stopped_at_the_end(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin, ready_after_s=1.2)
            before = await made.engine.status()
            assert (before.state, before.ready, before.can_start) == ("stopped", False, True)
            assert [model.name for model in before.models] == ["tiny:latest"]
            assert made.starts == 0
            events = await collect(made.engine, ask())
            assert isinstance(events[0], Progress)
            assert text_of(events) == "one two three"
            after = await made.engine.status(max_age_s=0)
            assert (after.state, after.ready, after.adopted) == ("ready", True, False)
        pid = ollama_binary.starts(made.bin)[0]["pid"]
        await until(lambda: not Path(f"/proc/{pid}").exists(), "its end")

    run(test)


def test_without_an_ollama_the_embedded_engine_answers(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            status = await made.engine.status()
            assert (status.kind, status.ready) == ("llamacpp", True)
            assert [(m.name, m.fit) for m in status.models] == [("tiny:latest", "fits")]
            assert text_of(await collect(made.engine, ask()))
            loaded = await made.engine.status(max_age_s=0)
            assert loaded.models[0].loaded_bytes > 10 * 2**20
            assert await made.engine.unload("tiny") is True

    run(test)


def test_an_ollama_that_keeps_crashing_gives_way_to_the_embedded_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin, exit_code=1, say="no")
            assert text_of(await collect(made.engine, ask()))
            status = await made.engine.status(max_age_s=0)
            assert (status.kind, status.ready) == ("llamacpp", True)

    run(test)


@pytest.mark.parametrize("engine", ["none", "ollama"])
def test_an_engine_that_is_switched_off_is_not_used(tmp_path: Path, engine: str) -> None:
    async def test() -> None:
        async with bench(tmp_path, engine=engine) as made:
            status = await made.engine.status()
            assert (status.kind, status.ready, status.can_start) == ("none", False, False)
            assert status.reason
            with pytest.raises(EngineUnavailable):
                await collect(made.engine, ask())

    run(test)


def test_an_ollama_that_was_there_is_not_taken_for_none_when_it_is_down(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path, engine="ollama") as alone:
            assert (await alone.engine.status()).state == "absent"
        async with (
            fake_daemon({"models": {"tiny": {}}}) as served,
            bench(tmp_path, engine="ollama", host=served.endpoint) as made,
        ):
            assert (await made.engine.status()).ready
            await served.child.stop()
            gone = await made.engine.status(max_age_s=0)
            assert (gone.ready, gone.can_start, gone.state) == (False, False, "stopped")

    run(test)


def test_starting_can_be_forbidden(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path, engine="ollama", start=False) as made:
            ollama_binary.install(made.bin)
            status = await made.engine.status()
            assert (status.ready, status.can_start) == (False, False)
            assert status.state == "stopped"
            with pytest.raises(EngineUnavailable, match="no Ollama answers"):
                await collect(made.engine, ask())
            assert made.starts == 0

    run(test)


def test_the_embedded_engine_can_be_forced_beside_a_running_ollama(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            fake_daemon({"models": {"tiny": {}}}) as served,
            bench(tmp_path, host=served.endpoint, engine="llamacpp") as made,
        ):
            assert (await made.engine.status()).kind == "llamacpp"
            assert finish_of(await collect(made.engine, ask()))

    run(test)


def test_a_daemon_that_died_since_is_started_again_within_the_request(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin)
            await collect(made.engine, ask())
            os.kill(ollama_binary.starts(made.bin)[-1]["pid"], signal.SIGKILL)
            await until(lambda: made.engine.supervisor.pid is None, "its end")
            assert text_of(await collect(made.engine, ask())) == "one two three"
            assert made.starts == 2

    run(test)


def test_a_daemon_that_refuses_before_it_ends_costs_no_request(tmp_path: Path) -> None:
    """The supervisor still holds it to be ready: only who was refused knows better."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin, deaf_s=0.7, first=1)
            await collect(made.engine, ask())
            os.kill(ollama_binary.starts(made.bin)[-1]["pid"], signal.SIGUSR1)
            await refusing(made.port)
            answers = await asyncio.gather(*(collect(made.engine, ask()) for _ in range(5)))
            assert {text_of(events) for events in answers} == {"one two three"}
            assert made.starts == 2

    run(test)


async def refusing(port: int) -> None:
    """Wait until nobody listens on *port*."""
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionError:  # it shut the door on us
                continue
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def test_a_daemon_that_a_killed_localfirst_left_behind_is_stopped_by_the_next_one(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            program = ollama_binary.install(made.bin)
            left = process.spawn(
                [str(program), "serve"], env={"OLLAMA_HOST": f"127.0.0.1:{made.port}"}
            )
            (tmp_path / "state").mkdir(mode=0o700)
            Record(tmp_path / "state").write(
                Started(pid=left.pid, birth=left.birth, endpoint=f"http://127.0.0.1:{made.port}")
            )
            await until(lambda: any("Listening" in line for line in left.log.tail()), "it")
            assert text_of(await collect(made.engine, ask())) == "one two three"
            assert (made.starts, made.engine.supervisor.owned) == (1, True)
        await until(lambda: not left.alive, "its end")
        left.close()

    run(test)


def test_a_user_s_daemon_that_stopped_makes_way_for_one_of_ours(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            fake_daemon({"models": {"tiny": {}}}) as served,
            bench(tmp_path, host=served.endpoint) as made,
        ):
            ollama_binary.install(made.bin)
            await collect(made.engine, ask())
            await served.child.stop()
            assert text_of(await collect(made.engine, ask())) == "one two three"
            status = await made.engine.status(max_age_s=0)
            assert (status.adopted, made.starts) == (False, 1)

    run(test)


def test_a_model_that_does_not_fit_is_listed_as_such(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            made.hardware = Hardware(ram_total_bytes=10**6, ram_available_bytes=10**5)
            assert [model.fit for model in (await made.engine.status()).models] == ["no"]

    run(test)


def test_a_crash_in_the_middle_of_an_answer_is_told_and_the_next_one_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin, die_after_requests=1, first=1)
            with pytest.raises(UpstreamBroken):
                await collect(made.engine, ask())
            assert text_of(await collect(made.engine, ask())) == "one two three"
            assert made.starts == 2

    run(test)


def test_a_program_called_ollama_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    for relative in ("", ".", "bin"):
        with pytest.raises(EngineUnavailable, match="not installed"):
            find_program({"PATH": relative}, ())


def test_several_hosts_are_one_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            fake_daemon({"models": {"tiny": {}}}) as one,
            fake_daemon({"models": {"more": {}}}) as two,
            bench(tmp_path, host=one.endpoint, hosts=(two.endpoint,)) as made,
        ):
            names = {model.name for model in (await made.engine.status()).models}
            assert names == {"tiny:latest", "more:latest"}
            assert text_of(await collect(made.engine, ask(), "more"))
            with pytest.raises(UpstreamRefused):
                await collect(made.engine, ask(), "nope")

    run(test)


def test_closing_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin, never_ready=True)
            asking = asyncio.ensure_future(collect(made.engine, ask()))
            await until(lambda: made.starts == 1, "the start")
            asking.cancel()
            await asyncio.wait({asking})
        pid = ollama_binary.starts(made.bin)[0]["pid"]
        await until(lambda: not Path(f"/proc/{pid}").exists(), "its end")

    run(test)


def test_what_fits_this_machine_says_nothing_of_another(tmp_path: Path) -> None:
    """A large model of a far host is not refused because this machine is small."""

    async def test() -> None:
        async with (
            fake_daemon({"models": {"tiny": {}}}) as near,
            bench(tmp_path, host=near.endpoint, hosts=("http://192.0.2.1:9",)) as made,
        ):
            made.hardware = Hardware(ram_total_bytes=10**6, ram_available_bytes=10**5)
            assert [model.fit for model in (await made.engine.status()).models] == ["unknown"]

    run(test)


@pytest.mark.parametrize(
    ("features", "gpus", "vram"),
    [(("avx2", "amx_int8"), (), 0), (("avx2",), (), 7), (("amx_int8",), (GPU,), 7)],
)
def test_memory_of_a_processor_is_not_taken_for_a_gpus(
    tmp_path: Path, features: tuple[str, ...], gpus: tuple[Gpu, ...], vram: int
) -> None:
    async def test() -> None:
        async with (
            fake_daemon({"models": {"tiny": {"loaded": True, "vram": 7}}}) as served,
            bench(tmp_path, host=served.endpoint) as made,
        ):
            cpu = Cpu(cores=2, features=features)
            made.hardware = msgspec.structs.replace(ROOMY, cpu=cpu, gpus=gpus)
            (model,) = (await made.engine.status()).models
            assert (model.loaded, model.loaded_vram_bytes) == (True, vram)

    run(test)


# --- the configuration is read again --------------------------------------------------------


@contextlib.asynccontextmanager
async def reloaded(folder: Path, made: Bench, **changed: Any) -> AsyncIterator[Bench]:
    """A second engine on the same folder, which goes on with what the first runs."""
    upstream = UpstreamClient(SystemClock())
    new = Bench(folder, upstream, {"host": f"127.0.0.1:{made.port}"} | changed)
    new.engine.take_over(made.engine)
    await made.engine.aclose()
    await made.upstream.aclose()
    try:
        yield new
    finally:
        await new.engine.aclose()
        await upstream.aclose()


def test_a_daemon_of_ours_lives_through_a_new_configuration(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin)
            await collect(made.engine, ask())
            async with reloaded(tmp_path, made) as new:
                assert text_of(await collect(new.engine, ask())) == "one two three"
                assert (new.starts, new.engine.supervisor.owned) == (1, True)
                os.kill(ollama_binary.starts(made.bin)[-1]["pid"], signal.SIGKILL)
                await until(lambda: new.engine.supervisor.pid is None, "its end")
                assert text_of(await collect(new.engine, ask())) == "one two three"
                assert new.starts == 2
            pid = ollama_binary.starts(made.bin)[-1]["pid"]
            await until(lambda: not Path(f"/proc/{pid}").exists(), "its end")

    run(test)


def test_a_model_stays_in_memory_through_a_new_configuration(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path, engine="llamacpp") as made:
            await collect(made.engine, ask())
            stream = made.engine.answer(ask(max_tokens=300), target(), Limits())
            await anext(stream)
            async with reloaded_while(tmp_path, made, engine="llamacpp") as new:
                before = psutil.Process().children(recursive=True)
                assert finish_of([event async for event in stream])  # begun by the old one
                assert finish_of(await collect(new.engine, ask())).reason == "length"
                assert psutil.Process().children(recursive=True) == before
                assert (await new.engine.status(max_age_s=0)).models[0].loaded
            assert psutil.Process().children(recursive=True) == []

    run(test)


@contextlib.asynccontextmanager
async def reloaded_while(folder: Path, made: Bench, **changed: Any) -> AsyncIterator[Bench]:
    """As `reloaded`, while the first still answers."""
    upstream = UpstreamClient(SystemClock())
    new = Bench(folder, upstream, {"host": f"127.0.0.1:{made.port}"} | changed)
    new.engine.take_over(made.engine)
    try:
        yield new
        await made.engine.aclose()
        assert (await new.engine.status(max_age_s=0)).models[0].loaded
    finally:
        await new.engine.aclose()
        await upstream.aclose()


def test_other_settings_of_the_engine_are_a_new_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin)
            await collect(made.engine, ask())
            async with reloaded(tmp_path, made, keep_alive_s=7.0) as new:
                assert new.engine.supervisor is not made.engine.supervisor
                assert text_of(await collect(new.engine, ask())) == "one two three"
                assert new.starts == 2

    run(test)


def test_a_daemon_by_other_settings_cuts_nobody_and_goes_once_nobody_is_answered(
    tmp_path: Path,
) -> None:
    """The configuration before ended it with its own last answer, in the middle of ours."""

    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin, word_s=0.15)
            await collect(made.engine, ask())
            begun = made.engine.answer(ask(), target(), Limits())
            await anext(begun)
            new = Bench(
                tmp_path, made.upstream, {"host": f"127.0.0.1:{made.port}", "keep_alive_s": 7.0}
            )
            new.engine.take_over(made.engine)
            try:
                beside = new.engine.answer(ask(), target(), Limits())
                await anext(beside)
                assert not (await new.engine.status(max_age_s=0)).adopted
                assert finish_of([event async for event in begun])
                await made.engine.aclose()
                assert finish_of([event async for event in beside])
                assert new.starts == 1
                assert text_of(await collect(new.engine, ask())) == "one two three"
                assert (new.starts, new.engine.supervisor.owned) == (2, True)
            finally:
                await new.engine.aclose()
            pids = [start["pid"] for start in ollama_binary.starts(made.bin)]
            assert not any(map(psutil.pid_exists, pids))

    run(test)


def test_what_the_daemon_does_not_run_by_leaves_it_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin)
            await collect(made.engine, ask())
            async with reloaded(tmp_path, made, model="tiny", queue_limit=3) as new:
                assert text_of(await collect(new.engine, ask())) == "one two three"
                assert new.starts == 1

    run(test)


def test_a_daemon_of_two_configurations_ago_ends_with_the_last(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as made:
            ollama_binary.install(made.bin)
            await collect(made.engine, ask())
            async with (
                reloaded(tmp_path, made, keep_alive_s=7.0) as next_one,
                reloaded(tmp_path, next_one, keep_alive_s=8.0) as last,
            ):
                assert last.starts == 1
            (start,) = ollama_binary.starts(made.bin)
            assert not psutil.pid_exists(start["pid"])

    run(test)

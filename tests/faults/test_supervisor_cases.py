"""
The supervisor against a real program that misbehaves.

After each case: there was one daemon at any time, no zombie, no process of the group, no file
left open, nobody listens on its ports, a truthful state and a state file that can be read.
Case 10, a crash in the middle of an answer, is in `test_engine_local`, where answers are.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from localfirst.engines import launch
from localfirst.engines.launch import free_port
from localfirst.engines.life import Pace
from localfirst.engines.supervisor import ChildState, Supervisor
from localfirst.errors import EngineUnavailable
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from tests.fakes import ollama_binary
from tests.fakes.engine_bench import JumpyClock

QUICK = Pace(
    start_s=5.0,
    poll_s=0.02,
    try_s=0.3,
    health_s=0.1,
    strikes=2,
    grace_s=1.0,
    backoff_s=0.02,
    backoff_max_s=0.1,
    budget=3,
    window_s=60.0,
    rest_s=60.0,
)


class Bench:
    """A folder with the stand-in, a port, and what is needed to make supervisors."""

    def __init__(self, folder: Path, upstream: UpstreamClient) -> None:
        self.bin = folder / "bin"
        self.state = folder / "state"
        self.port = free_port()
        self.upstream = upstream
        self.most = 0

    async def count(self) -> None:
        """Note how many daemons there were at once, as often as possible."""
        while True:
            alive = sum(bool(process.birth(pid)) for pid in self.starts)
            self.most = max(self.most, alive)
            await asyncio.sleep(0.005)

    def supervisor(
        self, *, pace: Pace = QUICK, may_start: bool = True, **faults: object
    ) -> Supervisor:
        """A supervisor whose `ollama` has *faults*."""
        ollama_binary.install(self.bin, **faults)
        return self.another(pace=pace, may_start=may_start)

    def another(
        self, *, pace: Pace = QUICK, may_start: bool = True, clock: SystemClock | None = None
    ) -> Supervisor:
        """One more supervisor on the same state, as another localfirst would have."""
        return Supervisor(
            f"127.0.0.1:{self.port}",
            state_dir=self.state,
            upstream=self.upstream,
            clock=clock or SystemClock(),
            environ={**os.environ, "PATH": str(self.bin), "GROQ_API_KEY": "canary"},
            places=(),
            may_start=may_start,
            pace=pace,
        )

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What every start of the stand-in noted."""
        return ollama_binary.starts(self.bin)

    @property
    def starts(self) -> list[int]:
        """The pids of every start of the stand-in."""
        return [start["pid"] for start in self.notes]

    def running(self) -> list[int]:
        """Processes that came from the stand-in's folder and still live."""
        found = []
        for candidate in psutil.process_iter(["pid", "cmdline"]):
            line = " ".join(candidate.info["cmdline"] or [])
            if str(self.bin) in line and process.birth(candidate.pid):
                found.append(candidate.pid)
        return found


@contextlib.asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    """A bench, and the invariants when it is left."""
    gc.collect()
    before = psutil.Process().num_fds()
    upstream = UpstreamClient(SystemClock())
    made = Bench(folder, upstream)
    counting = asyncio.ensure_future(made.count())
    try:
        yield made
        await until(lambda: made.running() == [], "nothing of ours runs")
        assert made.most <= 1, "there were two daemons at once"
        for port in {made.port, *(int(start["host"].rpartition(":")[2]) for start in made.notes)}:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1.0)
    finally:
        counting.cancel()
        for pid in made.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await upstream.aclose()
    zombies = [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() == psutil.STATUS_ZOMBIE
    ]
    assert zombies == []
    await until(lambda: psutil.Process().num_fds() <= before, "every file given back")
    record = folder / "state" / "ollama.json"
    if record.exists():
        json.loads(record.read_text())


async def until(condition: Callable[[], bool], what: str, seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


def run(folder: Path, test: Callable[[Bench], Awaitable[None]], seconds: float = 25) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds), bench(folder) as made:
            await test(made)

    asyncio.run(bounded())


async def fails(supervisor: Supervisor) -> EngineUnavailable:
    """The error of `ensure`, and a supervisor that is idle afterwards."""
    with pytest.raises(EngineUnavailable) as caught:
        await supervisor.ensure()
    await supervisor.aclose()
    return caught.value


@contextlib.contextmanager
def other_program(port: int, *, talks: bool) -> Iterator[None]:
    """Something that is no Ollama on *port*: it answers HTML, or accepts and is silent."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.setblocking(False)
    held: list[socket.socket] = []
    loop = asyncio.get_running_loop()

    def accept() -> None:
        connection, _ = listener.accept()
        if talks:
            body = b"<html>hello</html>"
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%s" % (len(body), body)
            )
            connection.close()
        else:
            held.append(connection)

    loop.add_reader(listener, accept)
    try:
        yield
    finally:
        loop.remove_reader(listener)
        for connection in (*held, listener):
            connection.close()


def test_01_not_installed_is_said_at_once(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.another()
        error = await fails(supervisor)
        assert error.code == "ollama-not-installed"
        assert supervisor.state is ChildState.STOPPED

    run(tmp_path, test)


def test_02_a_program_that_may_not_be_executed_is_named(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor()
        (bench.bin / "ollama").chmod(stat.S_IRUSR | stat.S_IWUSR)
        error = await fails(supervisor)
        assert error.code == "ollama-not-executable"
        assert str(bench.bin / "ollama") in error.message
        assert "chmod" in error.hint

    run(tmp_path, test)


@pytest.mark.parametrize(("code", "say"), [(0, "bye"), (1, "Error: permission denied")])
def test_03_and_04_an_exit_at_once_ends_in_a_crash_loop_with_its_last_words(
    tmp_path: Path, code: int, say: str
) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(exit_code=code, say=say)
        error = await fails(supervisor)
        assert error.code == "ollama-crash-loop"
        assert f"ended with status {code}: {say}" in error.message
        assert supervisor.state is ChildState.CRASH_LOOP
        assert len(bench.starts) == QUICK.budget

    run(tmp_path, test)


def test_05_an_ollama_that_runs_is_adopted_and_outlives_us(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        first = bench.supervisor()
        endpoint = await first.ensure()
        second = Supervisor(
            endpoint,
            state_dir=bench.state.with_name("other"),
            upstream=bench.upstream,
            clock=SystemClock(),
            environ={},
            pace=QUICK,
        )
        assert await second.ensure() == endpoint
        assert second.adopted
        assert not second.owned
        await second.aclose()
        assert second.state is ChildState.STOPPED
        assert await first.ensure() == endpoint
        assert len(bench.running()) == 1
        await first.aclose()

    run(tmp_path, test)


def test_06_a_port_taken_by_another_program_is_named_and_another_is_used(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor()
        with other_program(bench.port, talks=True):
            endpoint = await supervisor.ensure()
            assert not endpoint.endswith(f":{bench.port}")
            assert f"port {bench.port} is taken by" in supervisor.reason
            assert f"(pid {os.getpid()})" in supervisor.reason
            await supervisor.aclose()

    run(tmp_path, test)


def test_06b_a_port_that_accepts_and_is_silent_is_not_ours_either(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor()
        with other_program(bench.port, talks=False):
            endpoint = await supervisor.ensure()
            assert not endpoint.endswith(f":{bench.port}")
            await supervisor.aclose()

    run(tmp_path, test)


def test_07_one_that_accepts_and_never_answers_is_ended(tmp_path: Path) -> None:
    pace = Pace(**{**fields(QUICK), "start_s": 0.6, "budget": 2})

    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(pace=pace, never_ready=True)
        error = await fails(supervisor)
        assert "did not answer within 0.6 s" in error.message
        assert bench.running() == []

    run(tmp_path, test)


def test_08_a_slow_start_is_waited_for(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(ready_after_s=1.0)
        await supervisor.ensure()
        assert (supervisor.state, supervisor.starts) == (ChildState.READY, 1)
        await supervisor.aclose()

    run(tmp_path, test)


def test_09_a_crash_between_requests_is_mended(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor()
        await supervisor.ensure()
        os.kill(bench.starts[-1], signal.SIGKILL)
        await until(lambda: supervisor.starts == 2, "a second start")
        await supervisor.ensure()
        assert supervisor.state is ChildState.READY
        assert bench.running() == [bench.starts[-1]]
        await supervisor.aclose()

    run(tmp_path, test)


async def shut(bench: Bench, supervisor: Supervisor, how: signal.Signals = signal.SIGUSR1) -> None:
    """Have the daemon refuse connections (or listen again), and see it do so."""
    wanted = launch.Seen.NOTHING if how == signal.SIGUSR1 else launch.Seen.OLLAMA
    os.kill(bench.starts[-1], how)
    async with asyncio.timeout(5):
        while await launch.look(supervisor.endpoint, bench.upstream) is not wanted:
            await asyncio.sleep(0.005)


DEAF = Pace(**{**{name: getattr(QUICK, name) for name in QUICK.__struct_fields__}, "health_s": 60})
"""Nobody looks by himself: only who was refused makes the supervisor look."""


def test_09b_who_was_refused_waits_for_the_end_of_a_daemon_that_is_held_to_be_ready(
    tmp_path: Path,
) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(pace=DEAF, deaf_s=0.5, first=1)
        await supervisor.ensure()
        await shut(bench, supervisor)
        assert (supervisor.state, supervisor.starts) == (ChildState.READY, 1)
        supervisor.doubt()
        endpoints = await asyncio.gather(*(supervisor.ensure() for _ in range(3)))
        assert supervisor.starts == 2
        for endpoint in endpoints:
            assert await launch.look(endpoint, bench.upstream) is launch.Seen.OLLAMA
        await supervisor.aclose()

    run(tmp_path, test)


def test_09c_a_doubt_ends_when_the_daemon_answers_again(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(pace=DEAF, deaf_s=60)
        endpoint = await supervisor.ensure()
        await shut(bench, supervisor)
        supervisor.doubt()
        asking = [asyncio.ensure_future(supervisor.ensure()) for _ in range(2)]
        await shut(bench, supervisor, signal.SIGUSR2)
        assert await asyncio.gather(*asking) == [endpoint, endpoint]
        assert (supervisor.starts, bench.running()) == (1, bench.starts)
        await supervisor.aclose()

    run(tmp_path, test)


def test_11_a_crash_loop_rests_and_recovers_when_forgiven(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(exit_code=1, say="no")
        with pytest.raises(EngineUnavailable):
            await supervisor.ensure()
        again = await fails(supervisor)
        assert again.code == "ollama-crash-loop"
        assert len(bench.starts) == QUICK.budget
        ollama_binary.install(bench.bin)
        supervisor.forgive()
        await supervisor.ensure()
        assert supervisor.state is ChildState.READY
        await supervisor.aclose()

    run(tmp_path, test)


def test_12_one_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    pace = Pace(**{**fields(QUICK), "grace_s": 0.2})

    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(pace=pace, ignore_sigterm=True)
        await supervisor.ensure()
        await supervisor.aclose()
        assert bench.running() == []

    run(tmp_path, test)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_13_runners_go_with_their_daemon(tmp_path: Path, how: signal.Signals) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(grandchild="group")
        await supervisor.ensure()
        assert len(bench.running()) == 2
        os.kill(bench.starts[-1], how)
        await until(lambda: supervisor.starts == 2, "a second start")
        await supervisor.ensure()
        assert len(bench.running()) == 2
        await supervisor.aclose()

    run(tmp_path, test)


def test_13b_a_runner_that_left_the_group_is_found_by_its_mark(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(grandchild="session")
        await supervisor.ensure()
        await supervisor.aclose()
        assert len(bench.running()) == 1
        ollama_binary.install(bench.bin)
        again = bench.another()
        await again.ensure()
        assert bench.running() == [bench.starts[-1]]
        await again.aclose()

    run(tmp_path, test)


def test_14_a_flood_on_stderr_neither_blocks_nor_piles_up(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(noise_bytes=100 * 2**20)
        before = psutil.Process().memory_info().rss
        await supervisor.ensure()
        await until((bench.bin / "noised").exists, "the flood", 15)
        await until(lambda: sizes(bench.state / "logs") <= 7 * 2**20, "short logs")
        assert await supervisor.ensure()
        assert psutil.Process().memory_info().rss - before < 32 * 2**20
        await supervisor.aclose()

    run(tmp_path, test)


def sizes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.exists())


def test_15_stop_during_start(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(never_ready=True)
        asking = asyncio.ensure_future(supervisor.ensure())
        await until(lambda: len(bench.starts) == 1, "the start")
        await supervisor.stop()
        assert supervisor.state is ChildState.STOPPED
        assert bench.running() == []
        with pytest.raises(EngineUnavailable, match="was stopped"):
            await asking

    run(tmp_path, test)


def test_16_start_during_stop_ends_with_one_daemon(tmp_path: Path) -> None:
    pace = Pace(**{**fields(QUICK), "grace_s": 0.5})

    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(pace=pace, ignore_sigterm=True)
        await supervisor.ensure()
        stopping = asyncio.ensure_future(supervisor.stop())
        await until(lambda: supervisor.state is ChildState.STOPPING, "the stop")
        await supervisor.ensure()
        await stopping
        assert supervisor.state is ChildState.READY
        assert bench.running() == [bench.starts[-1]]
        assert len(bench.starts) == 2
        await supervisor.aclose()

    run(tmp_path, test)


def test_17_two_that_start_at_once_make_one_daemon(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        first, second = bench.supervisor(ready_after_s=0.3), bench.another()
        one, two = await asyncio.gather(first.ensure(), second.ensure())
        assert one == two
        assert sorted([first.owned, second.owned]) == [False, True]
        assert len(bench.starts) == 1
        for supervisor in (first, second):
            await supervisor.aclose()

    run(tmp_path, test)


def test_18_the_daemon_of_a_localfirst_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        ollama_binary.install(bench.bin, grandchild="group")
        await left_behind(bench)
        assert len(bench.running()) == 2
        supervisor = bench.another()
        await supervisor.ensure()
        assert (supervisor.owned, len(bench.starts)) == (True, 1)
        await supervisor.aclose()
        assert bench.running() == []

    run(tmp_path, test)


def test_17b_whoever_is_left_looks_after_the_daemon_of_the_one_that_went(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        first, second = bench.supervisor(), bench.another()
        await first.ensure()
        await second.ensure()
        await first.aclose()
        assert bench.running() == bench.starts
        await until(lambda: second.owned, "it looks after it")
        third = bench.another()
        await third.ensure()
        assert (second.owned, third.owned, len(bench.starts)) == (True, False, 1)
        os.kill(bench.starts[-1], signal.SIGSTOP)
        await until(lambda: second.state is ChildState.STOPPED, "that it hangs")
        assert await second.ensure() == await third.ensure()
        assert len(bench.starts) == 2
        for supervisor in (second, third):
            await supervisor.aclose()

    run(tmp_path, test)


def test_17c_one_that_is_stopped_can_begin_again_beside_the_daemon_that_it_left(
    tmp_path: Path,
) -> None:
    async def test(bench: Bench) -> None:
        first, second = bench.supervisor(), bench.another()
        endpoint = await first.ensure()
        await second.ensure()
        await first.stop()
        assert await first.ensure() == endpoint
        await second.aclose()
        await until(lambda: first.owned, "it looks after it")
        assert await first.ensure() == endpoint
        assert len(bench.starts) == 1
        await first.aclose()

    run(tmp_path, test)


@pytest.mark.parametrize("fault", ["freezes", "ends", "refuses"])
def test_18b_a_daemon_that_was_taken_over_is_watched_like_one_of_ours(
    tmp_path: Path, fault: str
) -> None:
    async def test(bench: Bench) -> None:
        ollama_binary.install(bench.bin, grandchild="group", deaf_s=60)
        await left_behind(bench)
        supervisor = bench.another(pace=DEAF if fault == "refuses" else QUICK)
        await supervisor.ensure()
        (old,) = bench.starts
        if fault == "refuses":
            await shut(bench, supervisor)
            supervisor.doubt()
        else:
            os.kill(old, signal.SIGSTOP if fault == "freezes" else signal.SIGKILL)
            await until(lambda: supervisor.state is ChildState.STOPPED, "its end was seen")
        await supervisor.ensure()
        assert (len(bench.starts), supervisor.starts) == (2, 1)
        assert len(bench.running()) == 2
        assert not process.birth(old)
        await supervisor.aclose()

    run(tmp_path, test)


async def left_behind(bench: Bench) -> None:
    """A daemon whose localfirst was killed."""
    owner = process.spawn(
        [*python_line(), str(bench.port), str(bench.state), str(bench.bin)],
        env=process.child_environ(os.environ, {"PYTHONPATH": str(Path.cwd())}),
    )
    await until(lambda: "ready" in owner.log.tail(), "the other localfirst")
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()
    owner.close()


OWNER = """
import asyncio, os, sys
from pathlib import Path
from localfirst.engines.supervisor import Supervisor
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient

async def main(port, state, bin):
    clock = SystemClock()
    supervisor = Supervisor(f"127.0.0.1:{port}", state_dir=Path(state),
        upstream=UpstreamClient(clock), clock=clock, environ={**os.environ, "PATH": bin})
    await supervisor.ensure()
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


def python_line() -> list[str]:
    import sys

    return [sys.executable, "-c", OWNER]


def test_19_a_recycled_pid_is_left_alone(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        stranger = process.spawn(["/bin/sleep", "60"], env={})
        bench.state.mkdir(mode=0o700)
        record = {"pid": stranger.pid, "birth": "long:ago", "endpoint": "http://127.0.0.1:1"}
        (bench.state / "ollama.json").write_text(json.dumps(record))
        supervisor = bench.supervisor()
        await supervisor.ensure()
        await supervisor.aclose()
        assert stranger.alive
        await stranger.stop()

    run(tmp_path, test)


def test_20_a_frozen_daemon_is_noticed_and_replaced(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor()
        await supervisor.ensure()
        os.kill(bench.starts[-1], signal.SIGSTOP)
        await until(lambda: supervisor.starts == 2, "a second start")
        await supervisor.ensure()
        assert bench.running() == [bench.starts[-1]]
        await supervisor.aclose()

    run(tmp_path, test)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_21_and_22_a_jump_of_the_clock_or_a_suspend_does_not_end_a_healthy_daemon(
    tmp_path: Path, jump_s: float
) -> None:
    async def test(bench: Bench) -> None:
        ollama_binary.install(bench.bin)
        clock = JumpyClock()
        supervisor = bench.another(clock=clock)
        await supervisor.ensure()
        clock.jumped_s = jump_s
        assert await supervisor.ensure()
        assert await launch.look(supervisor.endpoint, bench.upstream) is launch.Seen.OLLAMA
        assert (supervisor.starts, supervisor.state) == (1, ChildState.READY)
        assert bench.running() == bench.starts
        await supervisor.aclose()

    run(tmp_path, test)


def test_23_a_foreign_daemon_that_stops_is_not_restarted_unless_allowed(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        theirs = process.spawn(
            [str(ollama_binary.install(bench.bin)), "serve"],
            env={"OLLAMA_HOST": f"127.0.0.1:{bench.port}"},
        )
        await until(lambda: any("Listening" in line for line in theirs.log.tail()), "theirs")
        supervisor = bench.another(may_start=False)
        await supervisor.ensure()
        assert supervisor.adopted
        await theirs.stop()
        error = await fails(supervisor)
        assert error.code == "ollama-not-running"
        assert len(bench.starts) == 1

    run(tmp_path, test)


def test_24_a_kill_from_outside_is_told_as_perhaps_no_memory(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor(die_after_s=0.2)
        await supervisor.ensure()
        await until(lambda: supervisor.state is ChildState.CRASH_LOOP, "too many deaths")
        assert "was killed, perhaps out of memory" in supervisor.reason
        await supervisor.aclose()

    run(tmp_path, test)


def test_the_child_hears_only_loopback_and_sees_no_key(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        supervisor = bench.supervisor()
        await supervisor.ensure()
        start = ollama_binary.starts(bench.bin)[0]
        assert start["host"] == f"127.0.0.1:{bench.port}"
        assert [name for name in start["names"] if "KEY" in name or "TOKEN" in name] == []
        await supervisor.aclose()

    run(tmp_path, test)


def fields(pace: Pace) -> dict[str, float]:
    return {name: getattr(pace, name) for name in pace.__struct_fields__}

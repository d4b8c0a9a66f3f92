"""
One daemon and several localfirsts: whoever ends leaves it to the others, the last one ends it.

Each user is a process of its own. The stand-in for Ollama writes a line for each request, and
dies of a log that nobody reads, as a Go program does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from localfirst.engines import launch
from localfirst.engines.launch import free_port
from localfirst.engines.life import Pace
from localfirst.engines.record import Record
from localfirst.engines.supervisor import Supervisor
from localfirst.models import toy
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from tests.fakes import ollama_binary
from tests.fakes.engine_bench import NO_REAL, REAL
from tests.fakes.engine_user import User, user

ANSWER = "one two three"
ROUNDS = int(os.environ.get("LOCALFIRST_SHARES", "8"))
SEED = int(os.environ.get("LOCALFIRST_SEED", "20261121"))


class Home:
    """A store, a port and a program, on which users are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.programs = folder / "bin"
        self.users = contextlib.ExitStack()
        toy.publish(folder / "models")
        ollama_binary.install(self.programs, chatter=True)

    def user(self, **settings: object) -> User:
        return self.users.enter_context(
            user(self.folder, self.port, programs=self.programs, **settings)
        )

    @property
    def starts(self) -> list[int]:
        return [start["pid"] for start in ollama_binary.starts(self.programs)]

    def alive(self) -> list[int]:
        return [pid for pid in self.starts if process.birth(pid)]

    def gone(self) -> None:
        """Wait until no daemon of these starts is left."""
        end = time.monotonic() + 15
        while self.alive():
            assert time.monotonic() < end, "a daemon is left"
            time.sleep(0.01)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    try:
        with made.users:
            yield made
    finally:
        for pid in made.alive():
            os.kill(pid, signal.SIGKILL)


def slow(home: Home) -> None:
    ollama_binary.install(home.programs, chatter=True, word_s=0.3)


@pytest.mark.parametrize("states", [("state", "state"), ("state", "other")])
def test_whoever_started_the_daemon_ends_and_the_other_s_answer_goes_on(
    home: Home, states: tuple[str, str]
) -> None:
    slow(home)
    first, second = (home.user(state=state) for state in states)
    assert first.ask() == ANSWER
    second.tell("ask")
    assert second.hear() == {"began": True}
    first.close()
    assert second.hear() == {"text": ANSWER}
    assert second.ask() == ANSWER
    assert len(home.starts) == 1
    second.close()
    home.gone()


@pytest.mark.parametrize("states", [("state", "state"), ("state", "other")])
def test_a_daemon_outlives_the_kill_of_its_starter_and_is_ended_by_the_other(
    home: Home, states: tuple[str, str]
) -> None:
    first, second = (home.user(state=state) for state in states)
    assert first.ask() == second.ask() == ANSWER
    first.kill()
    assert [second.ask() for _ in range(3)] == [ANSWER] * 3
    assert len(home.starts) == 1
    second.close()
    home.gone()


@pytest.mark.parametrize("state", ["state", "other"])
def test_a_daemon_that_all_its_users_left_by_a_kill_is_ended_by_the_next_one_that_uses_it(
    home: Home, state: str
) -> None:
    first, second = home.user(), home.user()
    assert first.ask() == second.ask() == ANSWER
    second.kill()
    first.kill()
    assert len(home.alive()) == 1
    third = home.user(state=state)
    assert third.ask() == ANSWER
    third.close()
    home.gone()
    assert len(home.starts) == 1


def test_a_kill_before_the_start_was_noted_leaves_nothing_for_ever(home: Home) -> None:
    first = home.user()
    assert first.ask() == ANSWER
    first.kill()
    (home.folder / "state" / "ollama.json").unlink()
    second = home.user()
    assert second.ask() == ANSWER
    second.close()
    home.gone()
    assert len(home.starts) == 1


def test_a_guest_that_was_killed_does_not_keep_the_daemon(home: Home) -> None:
    first, second = home.user(), home.user()
    assert first.ask() == second.ask() == ANSWER
    second.kill()
    first.close()
    home.gone()


def test_a_guest_that_ends_leaves_the_daemon_to_its_starter(home: Home) -> None:
    first, second = home.user(), home.user(start=False)
    assert first.ask() == second.ask() == ANSWER
    assert [one.state()["owned"] for one in (first, second)] == [True, False]
    second.close()
    assert first.ask() == ANSWER
    assert len(home.starts) == 1
    first.close()
    home.gone()


def test_one_that_may_start_nothing_ends_what_it_used_last(home: Home) -> None:
    first, second = home.user(), home.user(start=False)
    assert first.ask() == second.ask() == ANSWER
    first.close()
    assert second.ask() == ANSWER
    second.close()
    home.gone()


def test_a_daemon_by_other_settings_is_used_as_it_is_and_said_so(home: Home) -> None:
    first, second = home.user(), home.user(keep_alive_s=7.0)
    assert first.ask() == second.ask() == ANSWER
    assert first.state()["reason"] == ""
    assert "by the settings of another localfirst" in second.state()["reason"]
    first.close()
    assert second.ask() == ANSWER
    assert len(home.starts) == 1
    second.close()
    home.gone()


def test_a_new_configuration_cuts_no_answer_of_another_localfirst(home: Home) -> None:
    slow(home)
    first, second = home.user(), home.user()
    assert first.ask() == ANSWER
    second.tell("ask")
    assert second.hear() == {"began": True}
    first.reload()
    first.tell("ask")
    assert second.hear() == {"text": ANSWER}
    assert [first.hear(), first.hear()] == [{"began": True}, {"text": ANSWER}]
    assert "by the settings of another localfirst" in first.state()["reason"]
    assert len(home.starts) == 1
    second.close()
    assert first.ask() == ANSWER
    assert len(home.starts) == 1
    first.reload()
    assert first.ask() == ANSWER
    first.close()
    home.gone()


@pytest.mark.parametrize("kill", [False, True])
def test_a_person_s_daemon_is_ended_by_nobody(home: Home, kill: bool) -> None:
    program = home.programs / "ollama"
    with (
        (home.folder / "theirs").open("w") as said,
        subprocess.Popen(
            [program, "serve"], env={"OLLAMA_HOST": f"127.0.0.1:{home.port}"}, stderr=said
        ) as theirs,
    ):
        first, second = home.user(), home.user(state="other")
        end = time.monotonic() + 10
        while "Listening" not in (home.folder / "theirs").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert first.ask() == second.ask() == ANSWER
        assert not any(one.state()["owned"] for one in (first, second))
        if kill:
            first.kill()
        else:
            first.close()
        second.close()
        assert theirs.poll() is None
        assert home.alive() == home.starts == [theirs.pid]
        theirs.kill()


@pytest.mark.real_ollama
@pytest.mark.skipif(not REAL.exists(), reason=NO_REAL)
def test_a_real_daemon_outlives_the_kill_of_its_starter_and_is_ended_by_the_other(
    home: Home,
) -> None:
    home.programs = REAL.parent
    first, second = home.user(), home.user()
    assert first.ask() and second.ask()
    pid = json.loads((home.folder / "state" / "ollama.json").read_text())["pid"]
    daemon = psutil.Process(pid)
    try:
        first.kill()
        assert all(second.ask() for _ in range(3))
        assert daemon.is_running()
        second.close()
        assert not process.birth(pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon.kill()


# Who comes second to an address often enough is no crash loop here.
QUICK = Pace(poll_s=0.01, health_s=0.05, grace_s=2.0, backoff_s=0.02, budget=1000)


@pytest.mark.parametrize("states", [["state"] * 3, ["state", "other"]])
def test_whoever_comes_and_goes_at_any_moment_has_a_daemon_while_it_is_there(
    home: Home, states: list[str]
) -> None:
    """Each supervisor has locks of its own, as a process has."""
    chance = random.Random(SEED)

    async def one(upstream: UpstreamClient, state: str) -> None:
        for _ in range(ROUNDS):
            supervisor = Supervisor(
                f"127.0.0.1:{home.port}",
                state_dir=home.folder / state,
                upstream=upstream,
                clock=SystemClock(),
                environ={**os.environ, "PATH": str(home.programs)},
                places=(),
                pace=QUICK,
            )
            endpoint = await supervisor.ensure()
            pids = home.alive()
            for _ in range(chance.randrange(6)):
                assert await launch.look(endpoint, upstream, 5.0) is launch.Seen.OLLAMA
            assert set(pids) & set(home.alive()), "it was ended under its user"
            await supervisor.aclose()
            await asyncio.sleep(chance.uniform(0.0, 0.05))

    async def test() -> None:
        async with asyncio.timeout(60):
            upstream = UpstreamClient(SystemClock())
            await asyncio.gather(*(one(upstream, state) for state in states))
            await upstream.aclose()

    asyncio.run(test())
    home.gone()
    assert Record(home.folder / "state").read() is None

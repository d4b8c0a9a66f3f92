"""Start, signals, workers, log: the gateway as a process that somebody operates."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from localfirst.errors import Unavailable
from localfirst.gateway.listener import close_all, listen
from localfirst.gateway.server import serve
from localfirst.settings import GatewaySettings, Settings

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 10.0
CHAT = "/v1/chat/completions"
SLOW = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "stream": True}


class Running:
    """A gateway process: its URL, its lines, its log."""

    def __init__(self, child: subprocess.Popen[str], keys: Path) -> None:
        self.child = child
        self.keys = keys
        self.first = self.line()
        self.url = self.first.split(" ")[3] if self.first else ""
        self.rest = ""

    def line(self) -> str:
        assert self.child.stdout
        return self.child.stdout.readline().strip()

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def end(self) -> tuple[int, str]:
        self.rest, log = self.child.communicate(timeout=PATIENCE_S)
        return self.child.returncode, log


@contextmanager
def gateway(folder: Path, *, workers: int = 1, drain_s: float = 5.0) -> Iterator[Running]:
    keys = folder / "keys"
    keys.write_text("")
    argv = [sys.executable, "-m", "tests.fakes.gateway_process", str(workers), str(drain_s)]
    child = subprocess.Popen(
        [*argv, str(keys)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Running(child, keys)
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def ask(url: str, model: str = "auto", *, stream: bool = False, **headers: str) -> httpx.Response:
    messages = [{"role": "user", "content": "secret-prompt"}]
    body = {"model": model, "messages": messages, "stream": stream}
    return httpx.post(f"{url}{CHAT}?beta=secret-query", json=body, headers=headers, timeout=10)


def until(true: Callable[[], bool]) -> None:
    """Wait for something; a test fails when it does not come."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end


def listens(url: str) -> bool:
    """Whether anybody takes a connection there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", httpx.URL(url).port or 0)) == 0


def read_on(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What still comes, up to an abrupt end."""
    try:
        yield from pieces
    except httpx.RemoteProtocolError:
        return


def test_it_starts_answers_logs_and_ends_in_order(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        assert running.first.startswith("localfirst listens on http://127.0.0.1:")
        assert httpx.get(running.url + "/localfirst/health").json() == {"status": "ok"}
        assert ask(running.url).status_code == 200
        running.signal(signal.SIGTERM)
        code, log = running.end()
    assert code == 0
    (line,) = [line for line in log.splitlines() if "openai.chat" in line]
    assert " POST openai.chat llama3.2:3b local/local 200 ok " in line
    assert "secret" not in log


def test_a_running_stream_may_finish_or_ends_with_an_error(tmp_path: Path) -> None:
    with gateway(tmp_path, drain_s=0.2) as running:
        with httpx.stream("POST", running.url + CHAT, json=SLOW, timeout=10) as answer:
            pieces = answer.iter_raw()
            got = [next(pieces)]
            running.signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                got.extend(pieces)
        code, _ = running.end()
    assert code == 0
    seen = b"".join(got)
    assert b'"code":"stream-interrupted"' in seen and b"[DONE]" not in seen


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, drain_s=60) as running,
        httpx.stream("POST", running.url + CHAT, json=SLOW, timeout=10) as answer,
    ):
        pieces = answer.iter_raw()
        next(pieces)
        began = time.monotonic()
        running.signal(signal.SIGINT)
        assert running.line().startswith("stopping")
        running.signal(signal.SIGINT)
        assert b"stream-interrupted" in b"".join(read_on(pieces))
        code, log = running.end()
    assert code == 0, log
    assert time.monotonic() - began < 5


def test_hangup_reads_the_configuration_again_and_a_broken_one_changes_nothing(
    tmp_path: Path,
) -> None:
    with gateway(tmp_path) as running:
        assert ask(running.url).status_code == 200
        running.keys.write_text("opensesame")
        running.signal(signal.SIGHUP)
        assert running.line() == "the configuration was read again"
        assert ask(running.url).status_code == 401
        running.keys.write_text("broken")
        running.signal(signal.SIGHUP)
        assert running.line().startswith("the configuration was not taken over: ")
        assert ask(running.url, authorization="Bearer opensesame").status_code == 200
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_of_two_hangups_the_later_configuration_stays(tmp_path: Path) -> None:
    """The first took longer to start, and replaced the one that was read after it."""
    with gateway(tmp_path) as running:
        running.keys.write_text("gated")
        running.signal(signal.SIGHUP)
        until((tmp_path / "reading").exists)
        running.keys.write_text("later")
        running.signal(signal.SIGHUP)
        (tmp_path / "gate").touch()
        assert running.line() == running.line() == "the configuration was read again"
        assert ask(running.url, authorization="Bearer later").status_code == 200
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hangup_while_it_starts_is_heard_once_it_has_started(
    tmp_path: Path, workers: int
) -> None:
    """It ended the process, or a worker: ten of them, and workers died too often."""
    (tmp_path / "hangup").touch()
    with gateway(tmp_path, workers=workers) as running:
        if workers == 1:
            assert running.line() == "the configuration was read again"
        until(lambda: not (tmp_path / "hangup").exists() and ask(running.url).status_code == 200)
        running.signal(signal.SIGTERM)
        code, log = running.end()
    assert (code, running.rest.strip()) == (0, "stopping: running answers may finish"), log


def test_a_hangup_that_the_end_overtakes_changes_nothing(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        running.keys.write_text("gated")
        running.signal(signal.SIGHUP)
        until((tmp_path / "reading").exists)
        running.signal(signal.SIGTERM)
        code, log = running.end()
    assert (code, running.rest.strip(), log) == (0, "stopping: running answers may finish", "")


@pytest.mark.skipif(sys.platform == "win32", reason="workers need fork")
def test_a_worker_that_is_replaced_begins_with_what_was_read_again(tmp_path: Path) -> None:
    """It began with the configuration of the start: a door that was closed since stood open."""
    with gateway(tmp_path, workers=2) as running:
        members = psutil.Process(running.child.pid).children()
        for member in members:  # ready: else the signal would end it
            until(lambda member=member: bool(member.net_connections()))
        until(lambda: ask(running.url).status_code == 200)
        running.keys.write_text("opensesame")
        running.signal(signal.SIGHUP)
        assert running.line() == "the configuration was read again"
        until(lambda: ask(running.url).status_code == 401)
        for member in members:
            os.kill(member.pid, signal.SIGKILL)
            assert running.line().startswith("a worker ended with")
        assert [ask(running.url).status_code for _ in range(6)] == [401] * 6
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert "read again" not in running.rest, "the house says it, and not each worker"


@pytest.mark.skipif(sys.platform == "win32", reason="workers need fork")
def test_deaths_of_workers_are_counted_for_a_minute_and_not_for_ever(tmp_path: Path) -> None:
    """A house of months ended at its sixth."""
    work = """
import itertools, os, pathlib, signal, sys
from localfirst.gateway.workers import RESTARTS_PER_WORKER, Crew
deaths = pathlib.Path(sys.argv[1])
def work():
    with deaths.open("a") as file:
        file.write("x")
    if len(deaths.read_text()) > 2 * RESTARTS_PER_WORKER:
        os.kill(os.getppid(), signal.SIGTERM)
        return 0
    return 7
now = itertools.count(0, float(sys.argv[2]))
sys.exit(Crew(1, work, print, now=lambda: next(now)).run())
"""
    for between_s, code, lives in ((20.0, 0, 11), (1.0, 1, 6)):
        deaths = tmp_path / f"deaths-{between_s}"
        argv = [sys.executable, "-c", work, str(deaths), str(between_s)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT)
        assert (ran.returncode, len(deaths.read_text())) == (code, lives), ran


@pytest.mark.skipif(sys.platform == "win32", reason="workers need fork")
def test_workers_share_the_port_are_replaced_and_end_together(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2) as running:
        assert running.first.endswith(" with 2 workers")
        parent = psutil.Process(running.child.pid)
        seen: list[str] = []
        while len({one[:20] for one in seen}) < 2 and len(seen) < 400:
            seen.append(ask(running.url).headers["x-localfirst-request-id"])
        assert len({one[:20] for one in seen}) == 2, "each worker has ids of its own"
        assert len(set(seen)) == len(seen)
        first, second = parent.children()
        os.kill(first.pid, signal.SIGKILL)
        assert running.line().startswith("a worker ended with")
        assert ask(running.url).status_code == 200
        members = parent.children()
        assert len(members) == 2 and second in members
        running.signal(signal.SIGTERM)
        code, _ = running.end()
        assert code == 0
        assert running.rest.count("stopping") == 1, "the house says it, and not each worker"
        assert not any(member.is_running() for member in members)


@pytest.mark.skipif(sys.platform == "win32", reason="workers need fork")
def test_ctrl_c_lets_the_answers_of_workers_finish_and_a_second_one_does_not_wait(
    tmp_path: Path,
) -> None:
    """A terminal sends it to the whole group: to the workers, and to the parent that tells them."""
    with gateway(tmp_path, workers=2, drain_s=60) as running:
        with httpx.stream("POST", running.url + CHAT, json=SLOW, timeout=10) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            os.killpg(running.child.pid, signal.SIGINT)
            assert running.line().startswith("stopping")
            until(lambda: not listens(running.url))
            assert running.child.poll() is None, "a stream is still running"
            os.killpg(running.child.pid, signal.SIGINT)
            assert b"stream-interrupted" in b"".join(read_on(pieces))
        code, log = running.end()
    assert code == 0, log


@pytest.mark.skipif(sys.platform == "win32", reason="workers need fork")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2) as running:
        parent = psutil.Process(running.child.pid)
        until(lambda: len(parent.children()) == 2)
        members = parent.children()
        assert ask(running.url).status_code == 200
        running.signal(signal.SIGKILL)
        _, left = psutil.wait_procs(members, timeout=PATIENCE_S)
        assert not left
        assert not listens(running.url)


def test_a_taken_port_is_named_with_what_to_do() -> None:
    taken = listen(GatewaySettings(port=0))
    try:
        port = taken[0].getsockname()[1]
        with pytest.raises(Unavailable) as caught:
            serve(Settings(gateway=GatewaySettings(port=port)))
        assert caught.value.code == "port-in-use"
        assert str(port) in caught.value.message
    finally:
        close_all(taken)

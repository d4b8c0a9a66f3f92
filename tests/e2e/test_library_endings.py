"""How programs end that use the library, and what they leave: run as programs of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import psutil
import pytest

import localfirst
from localfirst.errors import InvalidRequest
from localfirst.models import toy
from localfirst.transport.hands import MOST, Hands
from tests.e2e.test_library import settings_at
from tests.fakes.terminal import LONGEST_S, Ran, finished, run


def program(folder: Path, text: str) -> Ran:
    """A script on a machine with a toy model, warnings and all."""
    toy.publish(folder / "models")
    return finished(folder, [sys.executable, "-W", "default", "-c", f"import localfirst\n{text}"])


def requests_in(folder: Path) -> int:
    """How many requests the history has."""
    told = json.loads(run(folder, "stats", "--json").out)
    return sum(row["requests"] for row in told["usage"])


ASK = "print(bool(localfirst.chat('x', max_tokens=3).text))"


FORGET = (
    "import asyncio\nprint(bool(asyncio.run(localfirst.AsyncClient().chat('x', max_tokens=3))))"
)


@pytest.mark.parametrize(
    "text",
    [
        ASK,
        "print(bool(localfirst.Client().chat('x', max_tokens=3).text))",
        "client = localfirst.Client()\nprint(bool(client.chat('x', max_tokens=3).text))",
        "for event in localfirst.stream('x', max_tokens=300):\n    print(True)\n    break",
        f"{ASK}\nimport threading\n"
        "go = threading.Event()\n"
        "def talk():\n    for event in localfirst.stream('x', max_tokens=100_000): go.set()\n"
        "threading.Thread(target=talk, daemon=True).start()\ngo.wait()",
        f"{ASK}\nimport threading, time\n"
        f"threading.Thread(target=lambda: (time.sleep(0.2), {ASK})).start()",
    ],
    ids=[
        "function",
        "client-of-one-line",
        "client",
        "stream",
        "daemon",
        "thread-after-the-main-one",
    ],
)
def test_a_program_that_closes_nothing_ends_in_silence_and_keeps_its_history(
    tmp_path: Path, text: str
) -> None:
    before = {process.pid for process in psutil.process_iter()}
    ran = program(tmp_path, text)
    assert (ran.code, ran.err) == (0, "")
    assert set(ran.out.split()) == {"True"}
    if "break" not in text:  # an answer that was left is nobody's
        assert requests_in(tmp_path) == len(ran.out.split())
    left = [p for p in psutil.process_iter() if p.pid not in before and of(p, tmp_path)]
    _, alive = psutil.wait_procs(left, timeout=LONGEST_S)
    assert not alive


def of(process: psutil.Process, folder: Path) -> bool:
    """Whether a process is one that a program in *folder* started."""
    try:
        return process.environ().get("HOME") == str(folder)
    except psutil.Error:
        return False


def test_a_client_says_that_it_belongs_to_another_loop(tmp_path: Path) -> None:
    """Otherwise its sockets fail one by one, and who is asked gets the blame."""
    toy.publish(tmp_path / "models")
    client = localfirst.AsyncClient(settings_at(tmp_path))

    async def ask() -> str:
        return (await client.chat("x", max_tokens=3)).text

    async def again() -> None:
        with pytest.raises(InvalidRequest, match="another event loop"):
            await ask()

    with asyncio.Runner() as runner:
        assert runner.run(ask())
        with asyncio.Runner() as other:
            other.run(again())
        runner.run(client.aclose())
        assert runner.run(ask()), "closed, it may begin anew"
        runner.run(client.aclose())


def test_hands_do_all_that_is_asked_with_few_threads() -> None:
    hands = Hands()
    futures = [hands.submit(pow, number, 2) for number in range(500)]
    assert [future.result(LONGEST_S) for future in futures] == [n * n for n in range(500)]
    assert len(hands._hands) <= MOST
    with pytest.raises(ZeroDivisionError):
        hands.submit(lambda: 1 / 0).result(LONGEST_S)
    hands.shutdown()
    assert not any(hand.is_alive() for hand in hands._hands)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_asks_for_itself(tmp_path: Path) -> None:
    text = (
        "import os\nclient = localfirst.Client()\nclient.chat('x', max_tokens=3)\n"
        "pid = os.fork()\nprint(bool(client.chat('x', max_tokens=3).text))\n"
        "if pid: raise SystemExit(os.waitpid(pid, 0)[1])"
    )
    ran = program(tmp_path, text)
    assert (ran.code, ran.out.split(), "Traceback" in ran.err) == (0, ["True", "True"], False), ran


def test_an_async_client_that_is_not_closed_is_warned_of_and_keeps_its_history(
    tmp_path: Path,
) -> None:
    ran = program(tmp_path, FORGET)
    assert (ran.code, ran.out) == (0, "True\n")
    assert ran.err.count("ResourceWarning: `AsyncClient` was not closed") == 1
    assert requests_in(tmp_path) == 1

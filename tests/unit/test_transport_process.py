"""Children: what they inherit, how they end, what they leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from localfirst.transport import process
from localfirst.transport.childlog import LogRing, OutlivingFile, RotatedFile


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *test* on a loop of its own, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for *condition* at most 5 s."""
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never came true: {what}")


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def env() -> dict[str, str]:
    return process.child_environ(process.environ())


def open_files() -> int:
    return psutil.Process().num_fds()


def test_a_child_never_inherits_a_key_a_token_or_what_it_does_not_need() -> None:
    seen = process.child_environ(
        {
            "PATH": "/bin",
            "HOME": "/home/u",
            "GROQ_API_KEY": "a",
            "HF_TOKEN": "b",
            "OLLAMA_API_KEY": "c",
            "OLLAMA_AUTH": "d",
            "LLAMA_ARG_API_KEY": "e",
            "AWS_SECRET_ACCESS_KEY": "f",
            "LOCALFIRST_GATEWAY_KEYS": "g",
            "DATABASE_URL": "h",
            "OLLAMA_MODELS": "/models",
            "CUDA_VISIBLE_DEVICES": "1",
            "HTTPS_PROXY": "http://proxy",
        },
        {"OLLAMA_HOST": "127.0.0.1:1"},
    )
    assert seen == {
        "PATH": "/bin",
        "HOME": "/home/u",
        "OLLAMA_MODELS": "/models",
        "CUDA_VISIBLE_DEVICES": "1",
        "HTTPS_PROXY": "http://proxy",
        "OLLAMA_HOST": "127.0.0.1:1",
    }


def test_run_gives_output_and_status() -> None:
    done = process.run(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), 10
    )
    assert (done.returncode, done.stdout, done.stderr, done.timed_out) == (
        3,
        b"out\n",
        b"err\n",
        False,
    )


def test_run_ends_a_program_that_takes_too_long_with_its_children() -> None:
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(p.pid, flush=True); time.sleep(60)"
    )
    done = process.run(python(code), 1.0)
    assert done.timed_out
    grandchild = int(done.stdout)
    asyncio.run(until(lambda: process.birth(grandchild) == "", "the grandchild's end"))


def test_run_of_a_missing_program_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        process.run(["/nowhere/ollama"], 1)


def test_a_childs_exit_status_and_last_words_are_known() -> None:
    async def test() -> None:
        child = process.spawn(
            python("import sys; sys.stderr.write('no room\\n'); sys.exit(7)"), env=env()
        )
        assert await child.wait() == 7
        await child.drained()
        assert (child.alive, child.returncode, child.log.tail()) == (False, 7, ["no room"])

    run(test)


def test_stop_takes_the_grandchildren_along_and_leaves_no_file_open() -> None:
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(p.pid, flush=True); time.sleep(60)"
    )

    async def test() -> None:
        before = open_files()
        child = process.spawn(python(code), env=env())
        await until(lambda: bool(child.log.tail()), "the grandchild's pid")
        grandchild = int(child.log.tail()[0])
        assert await child.stop(grace_s=5) == -signal.SIGTERM
        await until(lambda: process.birth(grandchild) == "", "the grandchild's end")
        await until(lambda: open_files() == before, "files given back")

    run(test)


def test_a_leader_that_dies_takes_its_group_with_it() -> None:
    """What `kill -9` of a daemon leaves behind holds memory and must not live on."""
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(p.pid, flush=True); time.sleep(60)"
    )

    async def test() -> None:
        child = process.spawn(python(code), env=env())
        await until(lambda: bool(child.log.tail()), "the grandchild's pid")
        grandchild = int(child.log.tail()[0])
        os.kill(child.pid, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        await until(lambda: process.birth(grandchild) == "", "the grandchild's end")
        child.close()

    run(test)


def test_a_child_that_ignores_sigterm_is_made_to_end() -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(60)"
    )

    async def test() -> None:
        child = process.spawn(python(code), env=env())
        await until(lambda: child.log.tail() == ["deaf"], "its handler")
        assert await child.stop(grace_s=0.1) == -signal.SIGKILL

    run(test)


def test_a_stranger_that_holds_the_pipes_does_not_keep_the_end_from_being_seen() -> None:
    """A grandchild in a session of its own survives; the exit is known all the same."""
    code = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True); print(p.pid, flush=True)"
    )

    async def test() -> None:
        before = open_files()
        child = process.spawn(python(code), env=env())
        assert await child.wait() == 0
        await until(lambda: bool(child.log.tail()), "the stranger's pid")
        stranger = int(child.log.tail()[0])
        child.close()
        await until(lambda: open_files() == before, "files given back")
        assert process.end(stranger, process.birth(stranger), force=True)

    run(test)


def test_a_hundred_megabytes_on_stderr_neither_block_nor_pile_up() -> None:
    code = (
        "import sys; block = b'x' * 999 + b'\\n'\n"
        "for _ in range(100): sys.stderr.buffer.write(block * 1000)\n"
        "sys.stderr.buffer.write(b'the end\\n')"
    )

    async def test() -> None:
        before = psutil.Process().memory_info().rss
        child = process.spawn(python(code), env=env())
        assert await child.wait() == 0
        await child.drained(5)
        assert child.log.total_bytes == 100_000_008
        assert child.log.tail(1) == ["the end"]
        assert psutil.Process().memory_info().rss - before < 16 * 2**20

    run(test)


def test_a_child_reads_its_input_and_sees_our_end_as_end_of_input() -> None:
    code = "import sys; print(sys.stdin.readline().strip(), flush=True); sys.stdin.read()"

    async def test() -> None:
        child = process.spawn(python(code), env=env(), stdin=b"settings\n")
        await until(lambda: child.log.tail() == ["settings"], "its first line")
        assert child.alive
        child.close()
        assert await child.wait() == 0

    run(test)


def test_standard_output_can_be_taken_apart_from_the_log() -> None:
    async def test() -> None:
        said: list[bytes] = []
        child = process.spawn(
            python("import sys; print('said'); print('logged', file=sys.stderr)"),
            env=env(),
            on_stdout=said.append,
        )
        await child.wait()
        await child.drained()
        assert (b"".join(said), child.log.tail()) == (b"said\n", ["logged"])

    run(test)


def test_a_pid_is_known_again_only_with_its_birth() -> None:
    async def test() -> None:
        child = process.spawn(python("import time; time.sleep(60)"), env=env())
        mark = child.birth
        assert process.same(child.pid, mark)
        assert not process.same(child.pid, mark + "0")
        assert not process.end(child.pid, mark + "0", force=True)
        assert child.alive
        await child.stop()
        assert not process.same(child.pid, mark)

    run(test)


def test_the_ring_keeps_the_last_lines_and_one_line_stays_one_line() -> None:
    ring = LogRing(limit_bytes=64)
    for number in range(1000):
        ring.feed(b"line %d\n" % number)
    ring.feed("nasty \x1b[2J \x9b \u202e end".encode())
    assert ring.tail(3) == ["line 998", "line 999", "nasty  [2J     end"]
    assert len("\n".join(ring.tail(1000))) < 128


def test_a_log_that_outlives_us_goes_on_behind_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "engine.log"
    file = OutlivingFile(path, limit_bytes=10, keep=2)
    with file.opened() as descriptor:
        for number in range(5):
            os.write(descriptor, b"much that was before, entry %d\n" % number)
            assert file.words().endswith(b"entry %d\n" % number)
            file.shorten()
        os.write(descriptor, b"end\n")
    assert {path.name: path.read_text() for path in path.parent.iterdir()} == {
        "engine.log": "end\n",
        "engine.log.1": ", entry 4\n",
        "engine.log.2": ", entry 3\n",
    }
    with OutlivingFile(path).opened() as descriptor, OutlivingFile(path).opened() as other:
        os.write(descriptor, b"one\n")
        os.write(other, b"two\n")
    assert path.read_bytes() == b"end\none\ntwo\n"


def test_a_log_that_cannot_be_written_costs_no_child(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "engine.log").symlink_to(tmp_path / "elsewhere")
    with OutlivingFile(tmp_path / "logs" / "engine.log").opened() as descriptor:
        os.write(descriptor, b"words")
    assert not (tmp_path / "elsewhere").exists()


def test_a_child_s_last_words_are_those_of_its_own_life(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"

    async def test() -> None:
        for words in ("first", ""):
            child = process.spawn(
                python(f"print({words!r}, end='')"), env=env(), file=OutlivingFile(path)
            )
            await child.wait()
            await child.drained()
            assert child.ending == "ended with status 0" + (f": {words}" if words else "")

    asyncio.run(test())


def test_a_full_log_file_moves_aside_and_old_ones_fall_off(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "engine.log", limit_bytes=10, keep=2)
    for number in range(5):
        file.write(b"entry %d\n" % number)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "engine.log": "entry 4\n",
        "engine.log.1": "entry 3\n",
        "engine.log.2": "entry 2\n",
    }
    assert (tmp_path / "engine.log").stat().st_mode & 0o777 == 0o600

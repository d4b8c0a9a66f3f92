"""Guards the first milliseconds: what help and import do not load, open or start."""

from __future__ import annotations

import subprocess
import sys

import pytest

THIRD_PARTY = {
    "anthropic",
    "anyio",
    "dotenv",
    "httptools",
    "httpx",
    "msgspec",
    "ollama",
    "openai",
    "platformdirs",
    "psutil",
    "pydantic",
    "pynvml",
    "tqdm",
    "uvicorn",
    "uvloop",
    "xllamacpp",
}
HEAVY = THIRD_PARTY | {"argparse", "asyncio", "json", "logging", "socket", "ssl", "tomllib"}


def loaded_by(program: str) -> set[str]:
    """The top-level modules that *program* leaves loaded, beyond those of bare Python."""
    told = f"import sys; before = set(sys.modules)\n{program}\n"
    told += "print('|' + ' '.join(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=30, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.rpartition("|")[2].split()}


@pytest.mark.parametrize("words", [["--help"], ["nope"]])
def test_help_and_mistakes_load_nothing_heavy(words: list[str]) -> None:
    program = f"from localfirst.cli import main; main({words!r})"
    assert loaded_by(program) & HEAVY == set()


@pytest.mark.parametrize("command", ["pull", "chat", "serve", "doctor", "selftest"])
def test_a_commands_own_help_loads_no_client_and_no_server(command: str) -> None:
    program = f"from localfirst.cli import main; main([{command!r}, '--help'])"
    slow = THIRD_PARTY - {"msgspec"}
    assert loaded_by(program) & slow == set()


def test_import_loads_no_third_party_package() -> None:
    assert loaded_by("import localfirst") & THIRD_PARTY == set()


def test_import_starts_no_thread_and_opens_no_socket() -> None:
    program = """
import sys, threading
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)
import localfirst
localfirst.Client, localfirst.AsyncClient, localfirst.Settings
assert threading.active_count() == 1, threading.enumerate()
assert opened == [], opened
"""
    subprocess.run([sys.executable, "-c", program], timeout=30, check=True)


def test_every_public_name_is_there_and_no_other_is_promised() -> None:
    import localfirst

    for name in localfirst.__all__:
        assert getattr(localfirst, name) is not None
    assert sorted(localfirst.__all__) == list(localfirst.__all__)

"""Guards the frame of every command: exit codes, errors, what goes to which stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from localfirst import cli
from localfirst.cli import render
from tests.fakes import terminal


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_on_stdout(tmp_path: Path, words: list[str]) -> None:
    ran = terminal.run(tmp_path, *words)
    assert (ran.code, ran.err) == (0, "")
    assert all(f"  {name} " in ran.out for name in cli.COMMANDS)


def test_no_command_at_all_is_a_usage_error_with_the_help_on_stderr(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "usage: localfirst COMMAND" in ran.err


def test_a_misspelt_command_is_told_the_nearest(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "explan")
    assert ran == (
        2,
        "",
        "error: `explan` is not a command [usage]\n\nhint: did you mean `localfirst explain`?\n",
    )


@pytest.mark.parametrize(
    ("name", "meant"), [("models", "list"), ("status", "doctor"), ("run", "chat"), ("ls", "list")]
)
def test_a_command_that_others_have_is_told_its_name_here(name: str, meant: str) -> None:
    """By its letters alone `models` was told to be `providers`, and `status` `stats`."""
    assert cli.unknown(name).endswith(f"did you mean `localfirst {meant}`?")


def test_every_name_that_is_guessed_is_a_command() -> None:
    assert set(cli.MEANT.values()) <= set(cli.COMMANDS)
    assert not set(cli.MEANT) & set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, name: str) -> None:
    ran = terminal.run(tmp_path, name, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"usage: localfirst {name}")
    assert cli.COMMANDS[name][1] in ran.out


def test_wrong_arguments_end_with_two_and_the_next_step(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "list", "--bogus")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: unrecognized arguments: --bogus [usage]\n\nhint: run `localfirst list --help`\n"
    )


def test_a_wrong_setting_is_named_with_its_source(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "list", LOCALFIRST_GATEWAY_PORT="eighty")
    assert (ran.code, ran.out) == (2, "")
    assert "`gateway.port` from env LOCALFIRST_GATEWAY_PORT" in ran.err
    assert "[config-invalid]" in ran.err
    assert "\n\nhint: " in ran.err


def test_set_goes_before_the_environment(tmp_path: Path) -> None:
    ran = terminal.run(
        tmp_path, "config", "gateway.port", "--json", "--set", "gateway.port=1", OLLAMA_HOST="x"
    )
    assert json.loads(ran.out)["gateway.port"] == {"value": "1", "source": "argument"}


def test_nobody_to_ask_ends_with_three_and_a_line_for_every_rung(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "chat", "hello", LOCALFIRST_ORDER="local,groq,pull")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: nobody could be asked [cascade-exhausted]\n")
    assert [line.split(":")[0] for line in ran.err.splitlines() if line.startswith("  - ")] == [
        "  - local",
        "  - groq",
        "  - pull",
    ]


def test_a_traceback_is_shown_on_request_only(tmp_path: Path) -> None:
    quiet = terminal.run(tmp_path, "show", "nothing")
    loud = terminal.run(tmp_path, "show", "nothing", LOCALFIRST_DEBUG="1")
    assert quiet.code == loud.code == 2
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "localfirst", "config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=terminal.environ(tmp_path),
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    told = child.stderr.read()
    child.stderr.close()
    assert child.wait(terminal.LONGEST_S) == 141
    assert b"Traceback" not in told and b"Exception" not in told


# --- what is printed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mred\x1b[0m", "a[31mred[0m"),
        ("bell\x07 back\x08 return\r", "bell back return"),
        ("\x9b2J wiped", "2J wiped"),
        ("left\u202eright", "leftright"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("Grüße 你好 🙂", "Grüße 你好 🙂"),
    ],
)
def test_nothing_that_steers_a_terminal_is_shown(text: str, expected: str) -> None:
    assert render.plain(text) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (469_785, "470 KB"), (3_825_819_519, "3.8 GB")],
)
def test_sizes_are_written_as_ollama_writes_them(amount: int, expected: str) -> None:
    assert render.size(amount) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0123, "12 ms"), (1.26, "1.3 s"), (59, "59 s"), (600, "10 min"), (7200, "2 h")],
)
def test_times_are_written_in_their_largest_unit(seconds: float, expected: str) -> None:
    assert render.span(seconds) == expected

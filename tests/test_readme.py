"""Guards the README: its tables are the code's, and every block of it runs."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localfirst import cli, config
from localfirst.models import toy
from tests.fakes import registry, terminal
from tests.fakes.house import house

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PORT = "11435"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE_MODEL = ("library/llama3.2", "1b")


def blocks(kind: str) -> list[str]:
    return [body for found, body in BLOCK.findall(README.read_text()) if found == kind]


def shell_lines() -> list[str]:
    """Every command of every shell block, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [bare for line in lines if (bare := re.sub(r"\s+# .*", "", line).strip())]


# --- what it says --------------------------------------------------------------------------


def test_its_tables_are_what_the_code_says_now() -> None:
    text = README.read_text()
    filled = runpy.run_path(str(ROOT / "scripts" / "readme"))["filled"]
    assert filled(text) == text, "run scripts/readme"


def test_it_opens_with_the_two_commands_and_stays_short() -> None:
    first = shell_lines()[:2]
    assert first == ["scripts/run", "scripts/test"]
    assert len(README.read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", ["setup", "run", "test", "check", "bench", "readme"])
def test_the_scripts_it_names_are_there_and_may_be_run(name: str) -> None:
    script = ROOT / "scripts" / name
    assert os.access(script, os.X_OK)
    if script.read_text().startswith("#!/bin/sh"):
        subprocess.run(["sh", "-n", str(script)], check=True)


def test_every_command_it_shows_exists() -> None:
    shown = re.findall(r"`?localfirst ([a-z]+)", "\n".join([*shell_lines(), *prose()]))
    assert set(shown) - set(cli.COMMANDS) == set()


def prose() -> list[str]:
    return re.findall(r"`(localfirst [^`]+)`", README.read_text())


def test_its_configuration_is_accepted(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "config.toml").write_text(block)
    loaded = config.load(environ={"LOCALFIRST_CONFIG": str(tmp_path / "config.toml")})
    assert loaded.settings.routes["fast"].targets[0] == "local/llama3.2:1b"


def test_the_ladder_it_draws_is_the_default_order() -> None:
    drawn = re.search(r"^2  clouds   (.*?):", README.read_text(), re.MULTILINE)
    assert drawn is not None
    assert (
        tuple(drawn[1].split(", "))
        == config.load(environ={"LOCALFIRST_CONFIG": os.devnull}).settings.order[1:-1]
    )


# --- what it shows runs ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of a machine whose registry has a toy under the names of the README."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    folder = tmp_path_factory.mktemp("readme")
    name, tag = EXAMPLE_MODEL
    toy.publish(folder / "shop", name=name, tag=tag)
    toy.publish(folder / "models", name=name, tag=tag)
    (folder / "bin").mkdir()
    (folder / "bin" / "localfirst").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m localfirst "$@"\n'
    )
    (folder / "bin" / "localfirst").chmod(0o755)
    with registry.running(folder / "shop") as shop:
        mirrors = f"registry.ollama.ai=http://127.0.0.1:{shop.port}"
        variables = terminal.environ(folder, LOCALFIRST_PULL_MIRRORS=mirrors)
        yield {**variables, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def executed(argv: list[str], variables: dict[str, str]) -> None:
    done = subprocess.run(
        argv,
        env=variables,
        cwd=variables["HOME"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"


def served_elsewhere(line: str) -> bool:
    """Lines that set this very checkout up, or never end; tried in other ways."""
    return line.startswith("scripts/") or line == "localfirst serve"


def test_every_shell_line_runs_in_its_order(machine: dict[str, str]) -> None:
    for line in shell_lines():
        if not served_elsewhere(line):
            executed(["sh", "-c", line.replace(".venv/bin/", "")], machine)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_python_block_runs(machine: dict[str, str], number: int, tmp_path: Path) -> None:
    block = blocks("python")[number]
    if PORT not in block:
        executed([sys.executable, "-c", block], machine)
        return
    pytest.importorskip("openai")
    shutil.copytree(machine["OLLAMA_MODELS"], tmp_path / "models")
    variables = {"LOCALFIRST_LOCAL_ENGINE": "llamacpp", "LOCALFIRST_ORDER": "local"}
    with house(tmp_path, **variables) as served:
        port = served.url.rpartition(":")[2]
        executed([sys.executable, "-c", block.replace(PORT, port)], machine)

"""Coding agents, each running a tool of its own and telling what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.backends import CloudBackend

HERE = Path(__file__).parent
SHELL = "hello from the shell"
SAID = {"do": "ok", "text": "It says hello."}
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a program in a folder and a home of its own; what it wrote."""

    def start(name: str, *words: str, **variables: str) -> str:
        program = shutil.which(name)
        if program is None:
            pytest.skip(f"`{name}` is not on the PATH")
        (tmp_path / "work").mkdir()
        done = subprocess.run(
            [program, *words],
            cwd=tmp_path / "work",
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return start


def tool(name: str, **arguments: Any) -> dict[str, Any]:
    return {"do": "ok", "tool": {"name": name, "arguments": arguments}}


def results(cloud: CloudBackend) -> list[str]:
    """What the model was told of the tools that ran."""
    messages = cloud.cloud.requests()[-1]["body"]["messages"]
    return [str(message["content"]) for message in messages if message["role"] == "tool"]


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        ("m", [tool("mcp__clock__tell_hour", zone="Oslo")]),
        (
            "gpt-5.5",
            [tool("tool_search", query="hour"), tool("mcp__clock__tell_hour", zone="Oslo")],
        ),
    ],
)
def test_codex_runs_commands_and_a_servers_tools(
    run: Run, cloud: CloudBackend, play: Any, tmp_path: Path, model: str, steps: list[Any]
) -> None:
    (tmp_path / "config.toml").write_text(
        f'model = "{model}"\nmodel_provider = "here"\n'
        f'[model_providers.here]\nname = "here"\nbase_url = "{cloud.house.url}/v1"\n'
        'wire_api = "responses"\n'
        f"[mcp_servers.clock]\ncommand = {json.dumps(sys.executable)}\n"
        f"args = {json.dumps([str(HERE / 'mcp_clock.py')])}\n"
    )
    play(tool("exec_command", cmd=f"echo {SHELL}"), *steps, SAID)
    freely = "--dangerously-bypass-approvals-and-sandbox"
    told = run("codex", "exec", "--skip-git-repo-check", freely, "go", CODEX_HOME=str(tmp_path))
    assert "It says hello." in told
    ran = results(cloud)
    assert SHELL in ran[0] and "noon" in ran[-1] and "Oslo" in ran[-1]


def test_codex_writes_a_file_by_a_tool_that_takes_text(
    run: Run, cloud: CloudBackend, play: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(
        'model = "gpt-5.5"\nmodel_provider = "here"\n'
        f'[model_providers.here]\nname = "here"\nbase_url = "{cloud.house.url}/v1"\n'
        'wire_api = "responses"\n'
    )
    patch = "*** Begin Patch\n*** Add File: hi.txt\n+hello\n*** End Patch\n"
    play(tool("apply_patch", input=patch), SAID)
    freely = "--dangerously-bypass-approvals-and-sandbox"
    run("codex", "exec", "--skip-git-repo-check", freely, "go", CODEX_HOME=str(tmp_path))
    assert (tmp_path / "work" / "hi.txt").read_text() == "hello\n"


def test_claude_code_runs_commands(run: Run, cloud: CloudBackend, play: Any) -> None:
    play(tool("Bash", command=f"echo {SHELL}", description="say"), {**SAID, "times": -1})
    told = run(
        "claude", "-p", "go", "--allowedTools", "Bash",
        ANTHROPIC_BASE_URL=cloud.house.url, ANTHROPIC_API_KEY="none", IS_SANDBOX="1",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_AUTOUPDATER="1",
    )  # fmt: skip
    assert "It says hello." in told
    assert any(SHELL in one for one in results(cloud))


def test_opencode_runs_commands(run: Run, cloud: CloudBackend, play: Any, tmp_path: Path) -> None:
    here = {
        "npm": "@ai-sdk/openai-compatible", "name": "here", "models": {"auto": {"name": "auto"}},
        "options": {"baseURL": f"{cloud.house.url}/v1", "apiKey": "none"},
    }  # fmt: skip
    config = {"model": "here/auto", "small_model": "here/auto", "provider": {"here": here}}
    play(tool("bash", command=f"echo {SHELL}", description="say"), {**SAID, "times": -1})
    told = run("opencode", "run", "go", OPENCODE_CONFIG_CONTENT=json.dumps(config))
    assert "It says hello." in told

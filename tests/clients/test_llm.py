"""`llm`, the command and the library, with the gateway as one of its OpenAI-like models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import WORDS
from tests.fakes.backends import CloudBackend

pytest.importorskip("llm", reason="llm is not installed: run scripts/test-clients")


@pytest.fixture
def llm(cloud: CloudBackend, tmp_path: Path, play: Any) -> Any:
    """The command, with a home of its own that knows the gateway."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        "- model_id: here\n  model_name: auto\n"
        f"  api_base: {cloud.house.url}/v1\n  supports_tools: true\n  can_stream: true\n"
    )

    def ask(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *words],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "LLM_USER_PATH": str(tmp_path),
                "OPENAI_API_KEY": "none",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return ask


def test_answers_as_a_stream(llm: Any) -> None:
    assert llm("-m", "here", "hi").strip() == WORDS


def test_answers_at_once(llm: Any) -> None:
    assert llm("-m", "here", "--no-stream", "hi").strip() == WORDS


def test_runs_a_function(llm: Any, cloud: CloudBackend, play: Any) -> None:
    play({"do": "ok", "tool": {"name": "weather", "arguments": {"city": "Bern"}}})
    function = "def weather(city: str) -> str:\n    'The weather.'\n    return 'sunny in ' + city\n"
    assert llm("-m", "here", "--functions", function, "hi").strip() == WORDS
    assert cloud.asked()[-1]["messages"][-1]["content"] == "sunny in Bern"

"""An installation without extras, and no Ollama here: each command says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What `find_spec` takes for a module that is not there.
BARE = "import sys; sys.modules['xllamacpp'] = None; from localfirst.cli import main; main()"


def said(folder: Path, *words: str) -> str:
    environ = {
        "HOME": str(folder),
        "PATH": str(folder),
        "LOCALFIRST_STATE_DIR": str(folder / "state"),
        "LOCALFIRST_OFFLINE": "1",
        "OLLAMA_HOST": "http://127.0.0.1:9",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words],
        env=environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("command", [("chat", "hi"), ("explain",), ("doctor",)])
def test_what_could_answer_here_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    told = said(tmp_path, *command)
    assert "Ollama is not installed" in told
    assert "pip install 'localfirst-runtime[embedded]'" in told


def test_the_proof_without_a_network_is_not_given(tmp_path: Path) -> None:
    told = said(tmp_path, "doctor", "--offline")
    assert "not proven" in told


def test_selftest_says_which_extra_it_needs(tmp_path: Path) -> None:
    assert "pip install 'localfirst-runtime[embedded]'" in said(tmp_path, "selftest")

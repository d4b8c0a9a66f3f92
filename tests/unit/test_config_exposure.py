"""Files with keys that others can read: said, with the command that closes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localfirst.config import load

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")

KEY = "gsk_1f6b0a9c2e7d4835b1c0d9e8f7a6b5c4"


def told(folder: Path, text: str, mode: int, *, name: str = "config.toml") -> tuple[str, ...]:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    explicit = {"LOCALFIRST_CONFIG": str(path)} if name == "config.toml" else {}
    home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "none")}
    environ = home | explicit | {"GROQ_API_KEY": KEY, "LOCALFIRST_STATE_DIR": str(folder)}
    return load(environ=environ, cwd=folder).warnings


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
@pytest.mark.parametrize(
    "text",
    [
        f'[providers.groq]\nkeys = ["{KEY}"]',
        f'[providers.groq]\nkeys = "{KEY}"',
        f'[gateway]\nkeys = ["{KEY}"]',
        f'[escalation]\ntelegram = "{KEY}@1"',
    ],
)
def test_a_key_that_others_can_read_is_told_of(tmp_path: Path, text: str, mode: int) -> None:
    (line,) = told(tmp_path, text, mode)
    assert f"chmod 600 {tmp_path / 'config.toml'}" in line
    assert KEY not in line


def test_nothing_is_said_where_there_is_nothing_to_hide(tmp_path: Path) -> None:
    assert not told(tmp_path, f'[providers.groq]\nkeys = ["{KEY}"]', 0o600)
    assert not told(tmp_path, '[providers.groq]\nkeys = ["env:GROQ_API_KEY"]', 0o644)
    assert not told(tmp_path, 'privacy = "local-only"', 0o644)
    assert not told(tmp_path, "COLOUR=blue", 0o644, name=".env")


@pytest.mark.parametrize(
    "name",
    ["GROQ_API_KEY", "GROQ_API_KEY_2", "HF_TOKEN", "groq_api_key", "LOCALFIRST_GATEWAY_KEYS",
     "LOCALFIRST_ESCALATION_TELEGRAM"],
)  # fmt: skip
def test_a_dotenv_with_keys_is_told_of_too(tmp_path: Path, name: str) -> None:
    (line,) = told(tmp_path, f"{name}={KEY}@1", 0o644, name=".env")
    assert f"chmod 600 {tmp_path / '.env'}" in line


def test_a_command_says_it_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[providers.groq]\nkeys = ["{KEY}"]')
    path.chmod(0o644)
    environ = {**os.environ, "LOCALFIRST_CONFIG": str(path), "LOCALFIRST_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "localfirst", "config"],
        env=environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert f"chmod 600 {path}" in done.stderr
    assert KEY not in done.stdout + done.stderr

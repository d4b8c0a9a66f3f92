"""`serve --install-service`: a file that systemd takes, and nothing started behind one's back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.terminal import run


def test_print_shows_the_unit_and_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--print", "--port", "8123")
    assert done.code == 0
    assert "--port 8123" in done.out or "<string>8123</string>" in done.out
    assert not list(tmp_path.rglob("*.service"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is Linux's")
def test_install_writes_a_user_unit_and_tells_how_to_start_it(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--install-service")
    assert done.code == 0
    (unit,) = tmp_path.rglob("*.service")
    text = unit.read_text()
    assert f"{sys.executable} -m localfirst serve" in text
    assert "systemctl --user enable" in done.out
    assert "KEY" not in text
    if analyze := shutil.which("systemd-analyze"):
        said = subprocess.run(
            [analyze, "--user", "verify", str(unit)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert "Unknown" not in said.stderr

"""The measurements themselves still run; what they find is not judged here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent.parent / "scripts" / "bench.d"


@pytest.mark.skipif(shutil.which("cc") is None, reason="the model server is written in C")
@pytest.mark.skipif(sys.platform != "linux", reason="it listens by epoll")
def test_a_small_crowd_of_streams_is_measured_whole() -> None:
    words = ["--streams", "8", "--seconds", "0.2", "--rounds", "1", "--idle", "40"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "streams.py"), *words],
        capture_output=True,
        text=True,
        timeout=50,
    )
    rows = {
        line.split()[0]: line.split() for line in done.stdout.splitlines() if line[:1].isalpha()
    }
    assert done.stderr == ""
    assert done.returncode in {0, 1}, done.stdout
    assert rows["direct"][-1] == "0", "a torn stream without anything between"
    assert {"added", "budget"} <= set(rows)
    assert "8 streams of 50 tokens/s" in done.stdout
    assert "40 streams that have begun" in done.stdout

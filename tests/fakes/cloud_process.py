"""The fake cloud as a child process, and the words to script it: for tests."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


class FakeCloud:
    """Speaks to a running `tests.fakes.cloud`."""

    def __init__(self, port: int, context: Any = None) -> None:
        self.port = port
        self.context = context
        self.scheme = "https" if context else "http"
        self.url = f"{self.scheme}://127.0.0.1:{port}"

    def base_url(self, part: str = "cloud") -> str:
        return f"{self.url}/{part}/v1"

    def script(self, *steps: dict[str, Any] | str, part: str = "") -> None:
        """Queue steps; a bare word is a step without parameters."""
        made = [{"do": step} if isinstance(step, str) else step for step in steps]
        self._ask("POST", "/_script", {"part": part, "steps": made})

    def models(self, *ids: str, part: str = "cloud") -> None:
        self._ask("POST", "/_models", {"part": part, "ids": list(ids)})

    def requests(self, part: str = "") -> list[dict[str, Any]]:
        """What came, all of it or what came for one part."""
        found: list[dict[str, Any]] = self._ask("GET", f"/_requests/{part}")
        return found

    def state(self) -> dict[str, int]:
        found: dict[str, int] = self._ask("GET", "/_state")
        return found

    def reset(self) -> None:
        self._ask("POST", "/_reset", {})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        if self.context:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "localhost", self.port, timeout=5, context=self.context
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def fake_cloud(*arguments: str, context: Any = None) -> Iterator[FakeCloud]:
    """A fake cloud in its own process, ended with the block."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.cloud", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        yield FakeCloud(int(child.stdout.readline()), context)
    finally:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


def with_cloud(folder: Path, cloud: FakeCloud) -> Path:
    """A configuration in *folder* whose ladder is that cloud alone."""
    (folder / "config.toml").write_text(
        f'order = ["scripted"]\n[providers.scripted]\nbase_url = "{cloud.base_url()}"\n'
        'model = "m"\n'
    )
    return folder

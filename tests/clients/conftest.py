"""A house over a scripted cloud, for clients that speak OpenAI's, Anthropic's or Ollama's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.backends import CloudBackend, backend

WORDS = "Hello from the cloud."
TOOL = {"do": "ok", "tool": {"name": "weather", "arguments": {"city": "Bern"}}}
PERSON = {"do": "ok", "chunks": ['{"name": "Ada",', ' "age": 36}']}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudBackend]:
    with backend("openai", tmp_path_factory.mktemp("cloud")) as running:
        assert isinstance(running, CloudBackend)
        yield running


@pytest.fixture
def play(cloud: CloudBackend) -> Any:
    """Queue what the cloud says next."""
    cloud.cloud.reset()

    def queue(*steps: dict[str, Any]) -> None:
        cloud.cloud.script(*steps, part="cloud")

    return queue

"""What an Ollama does not list of its models' abilities is found out before anybody is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import stranger
from tests.fakes.engine_bench import fake_daemon
from tests.fakes.house import house
from tests.fakes.stranger import SURFACES, Told

TOOL = {"name": "now", "description": "d"}
NONE: dict[str, Any] = {"type": "object", "properties": {}}


def asked(surface: str, shows: list[str], folder: Path) -> Told:
    """A request with a tool, of a model whose file cannot be read here."""
    function = {"type": "function", "function": TOOL | {"parameters": NONE}}
    tools = [TOOL | {"input_schema": NONE} if surface == "anthropic" else function]

    async def main() -> Told:
        async with fake_daemon({"models": {"tiny": {"shows": shows}}}) as served:
            local = {"LOCALFIRST_LOCAL_ENGINE": "ollama", "OLLAMA_HOST": served.endpoint}
            with house(folder, config='order = ["local"]', **local) as at:
                return await stranger.ask(at.url, surface=surface, tools=tools)

    return asyncio.run(main())


@pytest.mark.parametrize("surface", SURFACES)
def test_tools_that_only_a_look_at_the_model_shows_are_used(surface: str, tmp_path: Path) -> None:
    told = asked(surface, ["completion", "tools"], tmp_path)
    assert (told.status, told.finished, told.route) == (200, True, "local/tiny:latest"), told.body


@pytest.mark.parametrize("surface", SURFACES)
def test_tools_that_it_does_not_have_are_the_requests_fault(surface: str, tmp_path: Path) -> None:
    told = asked(surface, ["completion"], tmp_path)
    assert told.status == 400, told.body
    assert "does not support tools" in told.message


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
def test_vectors_of_a_model_that_makes_none_are_the_requests_fault(
    path: str, tmp_path: Path
) -> None:
    """An Ollama says 501, which clients would take for trouble that passes."""

    async def main() -> list[Told]:
        async with fake_daemon({"models": {"tiny": {}}}) as served:
            local = {"LOCALFIRST_LOCAL_ENGINE": "ollama", "OLLAMA_HOST": served.endpoint}
            with house(tmp_path, config='order = ["local"]', **local) as at:
                body = {"model": "tiny", "input": "a"}
                return [await stranger.ask(at.url, path=path, body=body) for _ in range(4)]

    for told in asyncio.run(main()):
        assert told.status == 400, told.body
        assert b"does not support embeddings" in told.body

"""LiteLLM as a client, by each of the three surfaces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.clients.conftest import TOOL, WORDS
from tests.fakes.backends import CloudBackend

pytest.importorskip("litellm", reason="LiteLLM is not installed: run scripts/test-clients")
ASKED: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def litellm() -> Any:
    import litellm as package

    package.telemetry = False
    return package


@pytest.fixture(params=["openai/auto", "anthropic/auto", "ollama_chat/auto"])
def asked(request: pytest.FixtureRequest, cloud: CloudBackend, litellm: Any) -> dict[str, Any]:
    at = cloud.house.url
    base = f"{at}/v1" if request.param.startswith("openai/") else at
    return {"model": request.param, "api_base": base, "api_key": "none", "messages": ASKED}


def test_answers_and_counts(litellm: Any, asked: dict[str, Any], play: Any) -> None:
    found = litellm.completion(**asked)
    assert found.choices[0].message.content == WORDS
    assert found.usage.prompt_tokens == 7


def test_streams(litellm: Any, asked: dict[str, Any], play: Any) -> None:
    pieces = [
        one.choices[0].delta.content or "" for one in litellm.completion(**asked, stream=True)
    ]
    assert "".join(pieces) == WORDS


def test_answers_and_streams_asynchronously(litellm: Any, asked: dict[str, Any], play: Any) -> None:
    async def main() -> tuple[str, str]:
        whole = await litellm.acompletion(**asked)
        stream = await litellm.acompletion(**asked, stream=True)
        pieces = [one.choices[0].delta.content or "" async for one in stream]
        return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(main()) == (WORDS, WORDS)


def test_calls_tools(litellm: Any, asked: dict[str, Any], play: Any) -> None:
    play(TOOL)
    found = litellm.completion(**asked, tools=[WEATHER])
    call = found.choices[0].message.tool_calls[0].function
    assert (call.name, "Bern" in call.arguments) == ("weather", True)


def test_errors_are_its_own_classes(litellm: Any, cloud: CloudBackend, play: Any) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(
            model="openai/absent",
            api_base=f"{cloud.house.url}/v1",
            api_key="none",
            messages=ASKED,
            num_retries=0,
        )

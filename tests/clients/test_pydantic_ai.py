"""pydantic-ai's agents over OpenAI's and Anthropic's surfaces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.conftest import TOOL, WORDS
from tests.fakes.backends import CloudBackend

pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed: run scripts/test-clients")


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(params=["chat", "responses", "anthropic"])
def model(request: pytest.FixtureRequest, cloud: CloudBackend) -> Any:
    at = cloud.house.url
    if request.param == "anthropic":
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        return AnthropicModel("auto", provider=AnthropicProvider(api_key="none", base_url=at))
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{at}/v1", api_key="none")
    kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
    return kind("auto", provider=provider)


def agent_of(model: Any, **given: Any) -> Any:
    from pydantic_ai import Agent

    return Agent(model, **given)


def run(main: Any) -> Any:
    """Run, and let the clients that the agent keeps close with the loop."""
    return asyncio.run(main)


def test_answers(model: Any, play: Any) -> None:
    async def main() -> Any:
        return await agent_of(model).run("hi")

    found = run(main())
    assert found.output == WORDS
    assert found.usage().output_tokens == 5 if callable(found.usage) else True


def test_streams(model: Any, play: Any) -> None:
    async def main() -> list[str]:
        async with agent_of(model).run_stream("hi") as stream:
            return [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]

    assert "".join(run(main())) == WORDS


def test_runs_a_tool_and_asks_again(model: Any, cloud: CloudBackend, play: Any) -> None:
    play(TOOL)
    asked: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    async def main() -> Any:
        return await agent_of(model, tools=[weather]).run("hi")

    assert run(main()).output == WORDS
    assert asked == ["Bern"]
    last = cloud.asked()[-1]["messages"][-1]
    assert (last["role"], last["content"]) == ("tool", "sunny")


def test_answers_with_an_object(model: Any, play: Any) -> None:
    play({"do": "ok", "tool": {"name": "final_result", "arguments": {"name": "Ada", "age": 36}}})

    async def main() -> Any:
        return await agent_of(model, output_type=Person).run("hi")

    assert run(main()).output == Person(name="Ada", age=36)

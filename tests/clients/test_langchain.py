"""LangChain's chat models for OpenAI and for Ollama."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.conftest import PERSON, TOOL, WORDS
from tests.fakes.backends import CloudBackend

pytest.importorskip(
    "langchain_openai", reason="LangChain is not installed: run scripts/test-clients"
)


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def weather(city: str) -> str:
    """The weather of a city."""
    return city


@pytest.fixture(params=["openai", "ollama"])
def model(request: pytest.FixtureRequest, cloud: CloudBackend) -> Any:
    if request.param == "openai":
        from langchain_openai import ChatOpenAI

        url = f"{cloud.house.url}/v1"
        return ChatOpenAI(model="auto", base_url=url, api_key="none", max_retries=0)
    from langchain_ollama import ChatOllama

    return ChatOllama(model="auto", base_url=cloud.house.url)


def test_answers_and_counts(model: Any, play: Any) -> None:
    found = model.invoke("hi")
    assert found.content == WORDS
    assert found.usage_metadata["total_tokens"] == 12


def test_streams(model: Any, play: Any) -> None:
    assert "".join(piece.content for piece in model.stream("hi")) == WORDS


def test_answers_and_streams_asynchronously(model: Any, play: Any) -> None:
    async def main() -> tuple[str, str]:
        whole = await model.ainvoke("hi")
        return whole.content, "".join([piece.content async for piece in model.astream("hi")])

    assert asyncio.run(main()) == (WORDS, WORDS)


def test_calls_tools_whole_and_streamed(model: Any, play: Any) -> None:
    play(TOOL, TOOL)
    bound = model.bind_tools([weather])
    whole = bound.invoke("hi")
    pieces = list(bound.stream("hi"))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed += piece
    for found in (whole, streamed):
        assert [(one["name"], one["args"]) for one in found.tool_calls] == [
            ("weather", {"city": "Bern"})
        ]


def test_takes_a_tools_result_back(model: Any, cloud: CloudBackend, play: Any) -> None:
    from langchain_core import messages

    play(TOOL)
    bound = model.bind_tools([weather])
    called = bound.invoke("hi")
    result = messages.ToolMessage("sunny", tool_call_id=called.tool_calls[0]["id"])
    found = bound.invoke([messages.HumanMessage("hi"), called, result])
    assert found.content == WORDS
    sent = cloud.asked()[-1]["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"]


def test_answers_with_an_object(model: Any, play: Any) -> None:
    play(PERSON)
    bound = model.with_structured_output(Person, method="json_schema")
    assert bound.invoke("hi") == Person(name="Ada", age=36)


def test_speaks_the_responses_surface(cloud: CloudBackend, play: Any) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="auto",
        base_url=f"{cloud.house.url}/v1",
        api_key="none",
        max_retries=0,
        use_responses_api=True,
    )
    assert model.invoke("hi").text == WORDS
    assert "".join(piece.text for piece in model.stream("hi")) == WORDS
    play(TOOL)
    called = model.bind_tools([weather]).invoke("hi")
    assert called.tool_calls[0]["args"] == {"city": "Bern"}


def test_embeds(cloud: CloudBackend, play: Any) -> None:
    from langchain_openai import OpenAIEmbeddings

    embedder = OpenAIEmbeddings(
        model="scripted/e",
        base_url=f"{cloud.house.url}/v1",
        api_key="none",
        check_embedding_ctx_length=False,
    )
    assert embedder.embed_documents(["a", "b"]) == [[0.0, 0.5], [1.0, 0.5]]

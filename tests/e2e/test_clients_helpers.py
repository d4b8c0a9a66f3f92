"""
What the three clients do beyond a plain question, over `localfirst serve` as a process:
objects parsed from answers, tools as functions, helpers for streams; sync and async.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any

import anthropic
import ollama
import openai
import pytest
from pydantic import BaseModel

from localfirst.models import toy
from tests.fakes import registry
from tests.fakes.backends import CloudBackend, OllamaBackend, backend
from tests.fakes.house import House, house

ASKED: Any = [{"role": "user", "content": "hi"}]
PERSON = {"do": "ok", "chunks": ['{"name": "Ada",', ' "age": 36}']}
CALLED = {"do": "ok", "tool": {"name": "Person", "arguments": {"name": "Ada", "age": 36}}}
THOUGHT = {"do": "ok", "reasoning": "hm", "tools": [{"name": "now", "arguments": {"zone": "utc"}}]}
NOW: Any = {"name": "now", "description": "the time", "input_schema": {"type": "object"}}


class Person(BaseModel):
    name: str
    age: int


ADA = Person(name="Ada", age=36)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudBackend]:
    with backend("openai", tmp_path_factory.mktemp("cloud")) as running:
        assert isinstance(running, CloudBackend)
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaBackend]:
    with backend("ollama", tmp_path_factory.mktemp("local")) as running:
        assert isinstance(running, OllamaBackend)
        yield running


@pytest.fixture(scope="module")
def pulling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house without an engine, with a registry that has one model to pull."""
    folder = tmp_path_factory.mktemp("pulling")
    toy.publish(folder / "shop", name="library/fresh")
    with registry.running(folder / "shop") as shop:
        mirror = f'[pull.mirrors]\n"registry.ollama.ai" = "http://127.0.0.1:{shop.port}"\n'
        with house(folder, config=mirror, LOCALFIRST_LOCAL_ENGINE="none") as at:
            yield at


def play(cloud: CloudBackend, *steps: dict[str, Any]) -> None:
    cloud.cloud.reset()
    cloud.cloud.script(*steps, part="cloud")


# --- openai --------------------------------------------------------------------------------


def openai_at(cloud: CloudBackend) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cloud.house.url}/v1", api_key="none", max_retries=0)


def with_openai(cloud: CloudBackend, use: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        url = f"{cloud.house.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await use(client)

    return asyncio.run(main())


def test_openai_parses_an_object(cloud: CloudBackend) -> None:
    play(cloud, PERSON)
    with openai_at(cloud) as client:
        found = client.chat.completions.parse(model="auto", messages=ASKED, response_format=Person)
    assert found.choices[0].message.parsed == ADA


def test_openai_parses_an_object_from_a_stream(cloud: CloudBackend) -> None:
    play(cloud, PERSON)
    with (
        openai_at(cloud) as client,
        client.chat.completions.stream(
            model="auto", messages=ASKED, response_format=Person
        ) as stream,
    ):
        kinds = {event.type for event in stream}
        found = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    assert found.choices[0].message.parsed == ADA


def test_openai_parses_the_arguments_of_a_tool(cloud: CloudBackend) -> None:
    play(cloud, CALLED)
    with openai_at(cloud) as client:
        found = client.chat.completions.parse(
            model="auto", messages=ASKED, tools=[openai.pydantic_function_tool(Person)]
        )
    calls = found.choices[0].message.tool_calls
    assert calls is not None and calls[0].function.parsed_arguments == ADA


def test_openai_async_parses_too(cloud: CloudBackend) -> None:
    play(cloud, PERSON, PERSON)

    async def use(client: openai.AsyncOpenAI) -> Any:
        whole = await client.chat.completions.parse(
            model="auto", messages=ASKED, response_format=Person
        )
        async with client.chat.completions.stream(
            model="auto", messages=ASKED, response_format=Person
        ) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_completion()
        return [one.choices[0].message.parsed for one in (whole, streamed)]

    assert with_openai(cloud, use) == [ADA, ADA]


def test_openai_responses_parse_and_stream_an_object(cloud: CloudBackend) -> None:
    play(cloud, PERSON, PERSON)
    with openai_at(cloud) as client:
        whole = client.responses.parse(model="auto", input="hi", text_format=Person)
        with client.responses.stream(model="auto", input="hi", text_format=Person) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
    assert whole.output_parsed == streamed.output_parsed == ADA
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"


def test_openai_responses_hand_over_parsed_calls(cloud: CloudBackend) -> None:
    play(cloud, CALLED, CALLED)
    tool: Any = openai.pydantic_function_tool(Person)["function"]

    async def use(client: openai.AsyncOpenAI) -> Any:
        tools: Any = [{"type": "function", **tool}]
        whole = await client.responses.parse(model="auto", input="hi", tools=tools)
        async with client.responses.stream(model="auto", input="hi", tools=tools) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_response()
        return [json.loads(one.output[0].arguments) for one in (whole, streamed)]

    assert with_openai(cloud, use) == [ADA.model_dump(), ADA.model_dump()]


def test_openai_raw_answers_tell_who_answered(cloud: CloudBackend) -> None:
    play(cloud)
    with openai_at(cloud) as client:
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASKED)
        assert raw.headers["x-localfirst-route"] == "scripted/m"
        assert raw.parse().choices[0].message.content == "Hello from the cloud."
        with client.chat.completions.with_streaming_response.create(
            model="auto", messages=ASKED
        ) as streamed:
            assert json.loads(streamed.read())["object"] == "chat.completion"


def test_openai_embeddings_come_as_base64_unless_told_otherwise(cloud: CloudBackend) -> None:
    play(cloud)
    with openai_at(cloud) as client:
        found = client.embeddings.create(model="scripted/e", input=["a", "b"])
    assert [item.embedding for item in found.data] == [[0.0, 0.5], [1.0, 0.5]]


# --- anthropic -----------------------------------------------------------------------------


def anthropic_at(cloud: CloudBackend) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=cloud.house.url, api_key="none", max_retries=0)


def test_anthropic_streams_thinking_and_tools_through_its_helper(cloud: CloudBackend) -> None:
    play(cloud, THOUGHT)
    with (
        anthropic_at(cloud) as client,
        client.messages.stream(
            model="auto",
            max_tokens=2000,
            messages=ASKED,
            tools=[NOW],
            thinking={"type": "adaptive"},
        ) as stream,
    ):
        kinds = [event.type for event in stream]
        found = stream.get_final_message()
    assert {"thinking", "input_json", "content_block_stop", "message_stop"} <= set(kinds)
    assert [block.type for block in found.content] == ["thinking", "tool_use"]
    assert found.content[1].input == {"zone": "utc"} and found.stop_reason == "tool_use"


def test_anthropic_parses_an_object(cloud: CloudBackend) -> None:
    play(cloud, PERSON)
    with anthropic_at(cloud) as client:
        found = client.messages.parse(
            model="auto", max_tokens=99, messages=ASKED, output_format=Person
        )
    assert found.parsed_output == ADA


def test_anthropic_beta_messages_and_streams(cloud: CloudBackend) -> None:
    play(cloud)
    with anthropic_at(cloud) as client:
        whole = client.beta.messages.create(
            model="auto", max_tokens=9, messages=ASKED, betas=["context-1m-2025-08-07"]
        )
        with client.beta.messages.stream(model="auto", max_tokens=9, messages=ASKED) as stream:
            text = stream.get_final_text()
        count = client.beta.messages.count_tokens(model="auto", messages=ASKED, tools=[NOW])
    assert whole.content[0].text == text == "Hello from the cloud."
    assert count.input_tokens > 9


def test_anthropic_runs_a_tool_and_asks_again(cloud: CloudBackend) -> None:
    play(cloud, {"do": "ok", "tool": {"name": "now", "arguments": {"zone": "utc"}}})
    asked: list[str] = []

    @anthropic.beta_tool
    def now(zone: str) -> str:
        """The time in a zone."""
        asked.append(zone)
        return "noon"

    with anthropic_at(cloud) as client:
        runner = client.beta.messages.tool_runner(
            model="auto", max_tokens=9, messages=ASKED, tools=[now]
        )
        last = runner.until_done()
    assert asked == ["utc"]
    assert last.content[0].text == "Hello from the cloud."
    sent = cloud.asked()[-1]["messages"]
    assert sent[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "noon"}


def test_anthropic_async_counts_and_answers(cloud: CloudBackend) -> None:
    play(cloud)

    async def main() -> Any:
        async with anthropic.AsyncAnthropic(
            base_url=cloud.house.url, api_key="none", max_retries=0
        ) as client:
            whole = await client.messages.create(model="auto", max_tokens=9, messages=ASKED)
            count = await client.messages.count_tokens(model="auto", messages=ASKED)
            async with client.messages.stream(model="auto", max_tokens=9, messages=ASKED) as stream:
                return whole.content[0].text, count.input_tokens, await stream.get_final_text()

    text, count, streamed = asyncio.run(main())
    assert text == streamed == "Hello from the cloud." and count > 0


def test_anthropic_knows_the_request_of_an_error(cloud: CloudBackend) -> None:
    play(cloud)
    with anthropic_at(cloud) as client, pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="absent", max_tokens=9, messages=ASKED)
    assert caught.value.request_id is not None and caught.value.request_id.startswith("req_")


# --- ollama --------------------------------------------------------------------------------


def with_ollama(at: House, use: Callable[[ollama.AsyncClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        client = ollama.AsyncClient(at.url)
        try:
            return await use(client)
        finally:
            await client.close()

    return asyncio.run(main())


def test_ollama_holds_an_answer_to_a_schema(local: OllamaBackend) -> None:
    model = local.prepare("schema")
    with closing(ollama.Client(local.house.url)) as client:
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        found = client.chat(model, messages=ASKED, format=schema)
        pieces = client.chat(model, messages=ASKED, format=schema, stream=True)
        streamed = "".join(piece.message.content or "" for piece in pieces)
    assert json.loads(found.message.content or "") == json.loads(streamed) == {"a": True}


def test_ollama_takes_a_function_as_a_tool(local: OllamaBackend) -> None:
    model = local.prepare("tools")

    def weather(city: str) -> str:
        """
        The weather of a city.

        Args:
            city: its name
        """
        return city

    async def use(client: ollama.AsyncClient) -> Any:
        first = await client.chat(model, messages=ASKED, tools=[weather])
        calls = first.message.tool_calls or []
        result = {"role": "tool", "tool_name": "weather", "content": "sunny"}
        turns = [*ASKED, first.message, result, result]
        second = await client.chat(model, messages=turns, tools=[weather])
        return [dict(call.function.arguments) for call in calls], second.done_reason

    assert with_ollama(local.house, use) == ([{"city": "Bern"}, {"zone": "utc"}], "stop")
    sent = local.asked()[-1]["messages"]
    calls = [call["id"] for call in sent[1]["tool_calls"]]
    assert [turn["tool_call_id"] for turn in sent[2:]] == calls and len(set(calls)) == 2


def test_ollama_thinks_aloud(local: OllamaBackend) -> None:
    model = local.prepare("think")
    with closing(ollama.Client(local.house.url)) as client:
        found = client.chat(model, messages=ASKED, think=True)
        generated = client.generate(model, "hi", think=True)
    assert (found.message.thinking, found.message.content) == ("hm", "Hello")
    assert (generated.thinking, generated.response) == ("hm", "Hello")


def test_ollama_lists_shows_embeds_loads_and_unloads(local: OllamaBackend) -> None:
    model = local.prepare("embed")

    async def use(client: ollama.AsyncClient) -> Any:
        await client.generate(model, keep_alive="5m")
        there = [one.model for one in (await client.ps()).models]
        await client.generate(model, keep_alive=0)
        gone = [one.model for one in (await client.ps()).models]
        shown = await client.show(model)
        embedded = await client.embed(model, ["a", "b"])
        listed = [one.model for one in (await client.list()).models]
        return there, gone, shown.capabilities, len(embedded.embeddings), listed

    there, gone, capabilities, count, listed = with_ollama(local.house, use)
    assert (there, gone, listed) == (["tiny:latest"], [], ["tiny:latest"])
    assert capabilities is not None and "completion" in capabilities
    assert count == 2


def test_ollama_pulls_with_progress_and_hears_of_what_is_not_there(pulling: House) -> None:
    with closing(ollama.Client(pulling.url)) as client:
        seen = list(client.pull("fresh", stream=True))
        with pytest.raises(ollama.ResponseError, match="does not exist") as caught:
            client.pull("no-such-model")
    assert seen[0].status == "pulling manifest" and seen[-1].status == "success"
    assert any(one.completed == one.total for one in seen if one.total)
    assert caught.value.status_code == 404
    assert list((pulling.folder / "models" / "manifests").rglob("fresh/latest"))


def test_ollama_async_pulls_and_streams(pulling: House, local: OllamaBackend) -> None:
    async def pull(client: ollama.AsyncClient) -> Any:
        return [line.status async for line in await client.pull("fresh", stream=True)][-1]

    async def generate(client: ollama.AsyncClient) -> Any:
        pieces = [one async for one in await client.generate(model, "hi", stream=True)]
        return pieces[-1].done, "".join(one.response for one in pieces)

    model = local.prepare("stream")
    assert with_ollama(pulling, pull) == "success"
    assert with_ollama(local.house, generate) == (True, "@Y^-Flw_rQ}A")

"""The clients people already have, unchanged, over a real socket: sync, async, streaming, not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from localfirst.errors import CascadeExhausted, StreamInterrupted, UnknownModel
from localfirst.events import (
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from tests.fakes.gateway_host import hosted, run
from tests.fakes.scripted_runtime import ScriptedRuntime, Step

ASKED: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "now", "description": "", "parameters": {"type": "object"}},
}
CALLS: list[Step] = [
    ToolCallDelta(0, "call_1", "now", '{"zone":'),
    ToolCallDelta(0, arguments='"utc"}'),
    ToolCallDelta(1, "call_2", "now", "{}"),
    Finished(FinishReason.TOOL_CALLS, Usage(prompt_tokens=1, completion_tokens=9)),
]
CUT: list[Step] = [TextDelta("Hel"), StreamInterrupted("the upstream was cut")]
NOBODY = CascadeExhausted("nobody could answer")


def with_gateway(
    use: Callable[[str], Any], runtime: ScriptedRuntime | None = None, *, blocking: bool = True
) -> Any:
    """What *use* returns of a gateway's URL; a blocking client runs in a thread of its own."""

    async def main() -> Any:
        async with hosted(runtime or ScriptedRuntime()) as host:
            if blocking:
                return await asyncio.to_thread(use, host.url)
            return await use(host.url)

    return run(main())


def with_async(use: Callable[[str], Awaitable[Any]], runtime: ScriptedRuntime | None = None) -> Any:
    return with_gateway(use, runtime, blocking=False)


# --- openai --------------------------------------------------------------------------------


def openai_at(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def openai_async(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_openai_chat() -> None:
    def use(url: str) -> Any:
        with openai_at(url) as client:
            return client.chat.completions.create(model="auto", messages=ASKED)

    found = with_gateway(use)
    assert found.choices[0].message.content == "Hello"
    assert found.usage.total_tokens == 5


def test_openai_chat_stream_with_usage() -> None:
    def use(url: str) -> Any:
        with openai_at(url) as client:
            stream = client.chat.completions.create(
                model="auto",
                messages=ASKED,
                stream=True,
                stream_options={"include_usage": True},
            )
            return list(stream)

    chunks = with_gateway(use)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert chunks[-1].usage.prompt_tokens == 3


def test_openai_async_chat_and_stream() -> None:
    async def use(url: str) -> Any:
        async with openai_async(url) as client:
            whole = await client.chat.completions.create(model="auto", messages=ASKED)
            stream = await client.chat.completions.create(model="auto", messages=ASKED, stream=True)
            return whole, [chunk async for chunk in stream]

    whole, chunks = with_async(use)
    assert whole.choices[0].message.content == "Hello"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello"


def test_openai_parallel_tools_streamed() -> None:
    def use(url: str) -> Any:
        with (
            openai_at(url) as client,
            client.chat.completions.stream(model="auto", messages=ASKED, tools=[TOOL]) as stream,
        ):
            return stream.get_final_completion()

    calls = with_gateway(use, ScriptedRuntime(CALLS)).choices[0].message.tool_calls
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
        ("call_1", "now", '{"zone":"utc"}'),
        ("call_2", "now", "{}"),
    ]


def test_openai_sees_a_cut_stream_as_an_error() -> None:
    def use(url: str) -> Any:
        texts = []
        with openai_at(url) as client:
            stream = client.chat.completions.create(model="auto", messages=ASKED, stream=True)
            with pytest.raises(openai.APIError) as caught:
                texts.extend(chunk.choices[0].delta.content for chunk in stream)
        return texts, caught.value

    texts, error = with_gateway(use, ScriptedRuntime(CUT))
    assert texts == ["Hel"]
    assert error.code == "stream-interrupted"


def test_openai_errors_are_its_own_classes() -> None:
    def use(url: str) -> Any:
        with openai_at(url) as client:
            with pytest.raises(openai.NotFoundError) as caught:
                client.chat.completions.create(model="nope", messages=ASKED)
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="auto", messages=[])
            return caught.value.code

    runtime = ScriptedRuntime(refusal=UnknownModel("model `nope` is not known"))
    assert with_gateway(use, runtime) == "model_not_found"


def test_openai_completions() -> None:
    def use(url: str) -> Any:
        with openai_at(url) as client:
            whole = client.completions.create(model="auto", prompt="Once")
            stream = client.completions.create(model="auto", prompt="Once", stream=True)
            return whole.choices[0].text, "".join(c.choices[0].text for c in stream)

    assert with_gateway(use) == ("Hello", "Hello")


def test_openai_responses() -> None:
    def use(url: str) -> Any:
        with openai_at(url) as client:
            whole = client.responses.create(model="auto", input="hi")
            kinds, text = [], ""
            with client.responses.stream(model="auto", input="hi") as stream:
                for event in stream:
                    kinds.append(event.type)
                text = stream.get_final_response().output_text
            return whole.output_text, text, kinds

    whole, text, kinds = with_gateway(use)
    assert (whole, text) == ("Hello", "Hello")
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 2


def test_openai_responses_sees_a_cut_stream() -> None:
    def use(url: str) -> Any:
        with openai_at(url) as client, pytest.raises(openai.APIError):
            for _ in client.responses.create(model="auto", input="hi", stream=True):
                pass
        return True

    assert with_gateway(use, ScriptedRuntime(CUT))


def test_openai_embeddings_and_models() -> None:
    def use(url: str) -> Any:
        with openai_at(url) as client:
            vectors = client.embeddings.create(model="auto", input=["a", "bcd"])
            listed = [model.id for model in client.models.list()]
            one = client.models.retrieve("groq/openai/gpt-oss-20b")
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("nope")
            return [item.embedding for item in vectors.data], listed, one.owned_by

    vectors, listed, owner = with_gateway(use)
    assert vectors == [[1.0, 0.5], [3.0, 0.5]]
    assert listed == ["auto", "llama3.2:3b", "groq/openai/gpt-oss-20b"]
    assert owner == "groq"


# --- anthropic -----------------------------------------------------------------------------

THOUGHT: list[Step] = [
    ReasoningDelta("hm"),
    ReasoningDelta("", signature="proof"),
    TextDelta("Hello"),
    *CALLS,
]


def anthropic_at(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


def test_anthropic_messages() -> None:
    def use(url: str) -> Any:
        with anthropic_at(url) as client:
            return client.messages.create(model="auto", max_tokens=9, messages=ASKED)

    found = with_gateway(use)
    assert [block.text for block in found.content] == ["Hello"]
    assert (found.stop_reason, found.usage.input_tokens) == ("end_turn", 3)


def test_anthropic_stream_with_thinking_and_tools() -> None:
    def use(url: str) -> Any:
        with (
            anthropic_at(url) as client,
            client.messages.stream(model="auto", max_tokens=9, messages=ASKED) as stream,
        ):
            return [event.type for event in stream], stream.get_final_message()

    kinds, message = with_gateway(use, ScriptedRuntime(THOUGHT))
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert [block.type for block in message.content] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    assert message.content[2].input == {"zone": "utc"}
    assert message.stop_reason == "tool_use"


def test_anthropic_async_stream() -> None:
    async def use(url: str) -> Any:
        async with (
            anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client,
            client.messages.stream(model="auto", max_tokens=9, messages=ASKED) as stream,
        ):
            return [text async for text in stream.text_stream]

    assert with_async(use) == ["Hel", "lo"]


def test_anthropic_errors_and_cuts() -> None:
    def use(url: str) -> Any:
        with anthropic_at(url) as client, pytest.raises(anthropic.APIError) as caught:
            for _ in client.messages.create(
                model="auto", max_tokens=9, messages=ASKED, stream=True
            ):
                pass
        return caught.value

    assert "cut" in str(with_gateway(use, ScriptedRuntime(CUT)))
    refused = with_gateway(use, ScriptedRuntime(refusal=NOBODY))
    assert isinstance(refused, anthropic.APIStatusError) and refused.status_code == 503


def test_anthropic_counts_and_lists() -> None:
    def use(url: str) -> Any:
        with anthropic_at(url) as client:
            count = client.messages.count_tokens(model="auto", messages=ASKED)
            return count.input_tokens, [model.id for model in client.models.list()]

    count, listed = with_gateway(use)
    assert count > 0
    assert listed[0] == "auto"


# --- ollama --------------------------------------------------------------------------------


def test_ollama_chat_and_generate() -> None:
    def use(url: str) -> Any:
        with closing(ollama.Client(url)) as client:
            return (
                client.chat("llama3.2", messages=ASKED),
                list(client.chat("llama3.2", messages=ASKED, stream=True)),
                client.generate("llama3.2", prompt="hi"),
                list(client.generate("llama3.2", prompt="hi", stream=True)),
            )

    chat, chunks, generated, pieces = with_gateway(use)
    assert chat.message.content == "Hello" and chat.done and chat.eval_count == 2
    assert "".join(c.message.content or "" for c in chunks) == "Hello" and chunks[-1].done
    assert generated.response == "Hello" and generated.done_reason == "stop"
    assert "".join(piece.response for piece in pieces) == "Hello"
    assert chat.model == "llama3.2", "the name is echoed as it was given"


def test_ollama_async_chat_with_tools() -> None:
    async def use(url: str) -> Any:
        client = ollama.AsyncClient(url)
        try:
            stream = await client.chat("llama3.2", messages=ASKED, tools=[TOOL], stream=True)
            return [part async for part in stream]
        finally:
            await client.close()

    parts = with_async(use, ScriptedRuntime(CALLS))
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [dict(call.function.arguments) for call in calls] == [{"zone": "utc"}, {}]


def test_ollama_sees_errors_and_cuts() -> None:
    def use(url: str) -> Any:
        with (
            closing(ollama.Client(url)) as client,
            pytest.raises(ollama.ResponseError) as caught,
        ):
            list(client.chat("llama3.2", messages=ASKED, stream=True))
        return caught.value

    assert "cut" in with_gateway(use, ScriptedRuntime(CUT)).error
    assert with_gateway(use, ScriptedRuntime(refusal=NOBODY)).status_code == 503


def test_ollama_lists_shows_and_embeds() -> None:
    def use(url: str) -> Any:
        with closing(ollama.Client(url)) as client:
            return (
                client.list().models[0],
                client.ps().models[0],
                client.show("llama3.2:3b"),
                client.embed("nomic-embed-text", ["a", "bcd"]),
                client.embeddings("nomic-embed-text", "a"),
            )

    listed, loaded, shown, embedded, legacy = with_gateway(use)
    assert (listed.model, listed.size) == ("llama3.2:3b", 2_019_393_189)
    assert listed.details.parameter_size == "3.2B"
    assert (loaded.model, loaded.size_vram) == ("llama3.2:3b", 0)
    assert loaded.context_length == 4096, "what it was loaded with, not what it could have"
    assert shown.modelinfo == {"general.architecture": "llama", "llama.context_length": 131_072}
    assert shown.details.quantization_level == "Q4_K_M"
    assert shown.capabilities == ["completion", "tools"]
    assert embedded.embeddings == [[1.0, 0.5], [3.0, 0.5]]
    assert legacy.embedding == [1.0, 0.5]


def test_embedding_nothing_loads_the_model_as_it_does_at_an_ollama() -> None:
    runtime = ScriptedRuntime()

    def use(url: str) -> Any:
        with closing(ollama.Client(url)) as client:
            found = client.embed("llama3.2:3b", "").embeddings
            with pytest.raises(ollama.ResponseError) as caught:
                client.embed("absent", [])
            return found, client.embeddings("llama3.2:3b", "").embedding, caught.value.status_code

    assert with_gateway(use, runtime) == ([], [], 404)
    assert runtime.engine.loaded == ["llama3.2:3b", "llama3.2:3b"]


def test_ollama_pull_shows_progress() -> None:
    runtime = ScriptedRuntime()

    def use(url: str) -> Any:
        with closing(ollama.Client(url)) as client:
            lines = [line.status for line in client.pull("llama3.2:3b", stream=True)]
            return lines, client.pull("llama3.2:3b").status

    assert with_gateway(use, runtime) == (["pulling manifest", "success"], "success")
    assert [job.name for job in runtime.puller.jobs()] == ["llama3.2:3b"]


def test_ollama_loads_and_unloads_without_a_prompt() -> None:
    runtime = ScriptedRuntime()

    def use(url: str) -> Any:
        with closing(ollama.Client(url)) as client:
            with pytest.raises(ollama.ResponseError) as caught:
                client.generate("nope", prompt="")
            return (
                client.generate("llama3.2:3b").done_reason,
                client.chat("llama3.2:3b", messages=[], keep_alive=0).done_reason,
                caught.value.status_code,
            )

    assert with_gateway(use, runtime) == ("load", "unload", 404)
    assert runtime.engine.loaded == runtime.engine.unloaded == ["llama3.2:3b"]
    assert runtime.calls == []


# --- what these clients probe --------------------------------------------------------------


def test_signs_of_life() -> None:
    def use(url: str) -> Any:
        with httpx.Client(base_url=url) as client:
            head = client.head("/")
            html = client.get("/", headers={"accept": "text/html,*/*"})
            return (
                client.get("/").text,
                (head.status_code, head.content, head.headers["content-length"]),
                html.headers["content-type"],
                client.head("/api/version").status_code,
                client.head("/api/tags").status_code,
                client.get("/api/version").json(),
            )

    plain, head, kind, version, tags, told = with_gateway(use)
    assert plain == "Ollama is running"
    assert head == (200, b"", "17")
    assert kind == "text/html; charset=utf-8"
    assert (version, tags, told) == (200, 200, {"version": "0.33.0"})


@pytest.mark.parametrize("kind", ["image", "json_mode", "schema"])
def test_parts_of_a_request_reach_the_cascade_from_every_surface(kind: str) -> None:
    image = "iVBORw0KGgo="
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    runtime = ScriptedRuntime()

    def use(url: str) -> None:
        ask = httpx.Client(base_url=url)
        with ask:
            if kind == "image":
                uri = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
                source = {"type": "base64", "media_type": "image/png", "data": image}
                ask.post("/v1/chat/completions", json={"messages": turn([uri])})
                block = {"type": "image", "source": source}
                ask.post("/v1/messages", json={"max_tokens": 9, "messages": turn([block])})
                native = [{"role": "user", "content": "x", "images": [image]}]
                ask.post("/api/chat", json={"model": "m", "messages": native})
            elif kind == "json_mode":
                wanted = {"response_format": {"type": "json_object"}}
                ask.post("/v1/chat/completions", json={"messages": ASKED, **wanted})
                ask.post("/api/chat", json={"model": "m", "messages": ASKED, "format": "json"})
            else:
                shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
                ask.post("/v1/chat/completions", json={"messages": ASKED, "response_format": shape})
                ask.post("/api/chat", json={"model": "m", "messages": ASKED, "format": schema})

    with_gateway(use, runtime)
    assert len(runtime.calls) >= 2
    for call in runtime.calls:
        request = call.chat
        if kind == "image":
            assert request.messages[0].images[0].data == image and call.needs.vision
        elif kind == "json_mode":
            assert request.json_mode
        else:
            assert request.schema == schema and call.needs.schema


def turn(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def test_num_ctx_and_keep_alive_survive_the_ollama_surface() -> None:
    runtime = ScriptedRuntime()

    def use(url: str) -> None:
        with closing(ollama.Client(url)) as client:
            wishes = {"num_ctx": 8192}
            client.chat("m", messages=ASKED, options=wishes, keep_alive="10m", think=True)

    with_gateway(use, runtime)
    request = runtime.calls[0].chat
    assert (request.num_ctx, request.keep_alive, request.think) == (8192, "10m", True)


def test_bodies_of_errors_have_each_surfaces_shape() -> None:
    def use(url: str) -> Any:
        with httpx.Client(base_url=url) as client:
            paths = ("/v1/chat/completions", "/v1/messages", "/api/chat")
            return [json.loads(client.post(path, content=b"{").content) for path in paths]

    chat, message, native = with_gateway(use)
    assert chat["error"]["type"] == "invalid_request_error"
    assert (message["type"], message["error"]["type"]) == ("error", "invalid_request_error")
    assert isinstance(native["error"], str)

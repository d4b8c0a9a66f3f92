"""
Three surfaces over Gemini's native dialect: `localfirst serve`, real SDKs, and a scripted
Gemini that refuses what the real one would.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.fakes.cloud_gemini import FakeGemini, fake_gemini
from tests.fakes.house import House, house

KEY = "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"
MODEL = "gemini-3.5-flash-lite"
HELLO = "Hello from the cloud."
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = {"name": "weather", "arguments": {"city": "Bern"}}
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "ollama": "/api/chat"}
ENDS = {"openai": b"[DONE]", "anthropic": b"message_stop", "ollama": b'"done":true'}
ERRORS = {"openai": b'data: {"error"', "anthropic": b"event: error", "ollama": b'{"error"'}
HI = [{"role": "user", "content": "hi"}]
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}


class Told:
    """What an SDK made of an answer: its text, its call as (id, name, arguments), its tokens."""

    def __init__(self, text: str, call: tuple[str, str, Any] | None, tokens: int) -> None:
        self.text = text
        self.call = call
        self.tokens = tokens


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeGemini]:
    with fake_gemini() as running:
        yield running


@pytest.fixture(scope="module")
def at(cloud: FakeGemini, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    config = 'order = ["gemini"]\n[cascade]\nbackoff_s = [0.01]\n'
    variables = {
        "LOCALFIRST_LOCAL_ENGINE": "none",
        "GEMINI_API_KEY": KEY,
        "GEMINI_BASE_URL": cloud.base_url("gemini"),
    }
    with house(tmp_path_factory.mktemp("house"), config=config, **variables) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(cloud: FakeGemini) -> None:
    cloud.reset()


def asked(cloud: FakeGemini) -> dict[str, Any]:
    found: dict[str, Any] = cloud.requests()[-1]["body"]
    return found


# --- the three SDKs ------------------------------------------------------------------------


def by_openai(at: House, *, stream: bool, messages: list[Any], **more: Any) -> Told:
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        given = {"model": "auto", "messages": messages, "max_tokens": 50, **more}
        if not stream:
            answer = client.chat.completions.create(**given)
            message = answer.choices[0].message
            call = message.tool_calls[0] if message.tool_calls else None
            made = (
                (call.id, call.function.name, json.loads(call.function.arguments)) if call else None
            )
            assert answer.choices[0].finish_reason == ("tool_calls" if call else "stop")
            return Told(message.content or "", made, answer.usage.total_tokens)
        text, pieces, tokens, reason = "", [], 0, ""
        options = {"include_usage": True}
        for chunk in client.chat.completions.create(stream=True, stream_options=options, **given):
            tokens = chunk.usage.total_tokens if chunk.usage else tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                pieces += choice.delta.tool_calls or []
                reason = choice.finish_reason or reason
        arguments = "".join(piece.function.arguments or "" for piece in pieces)
        made = (pieces[0].id, pieces[0].function.name, json.loads(arguments)) if pieces else None
        assert reason == ("tool_calls" if pieces else "stop")
        return Told(text, made, tokens)


def by_anthropic(at: House, *, stream: bool, messages: list[Any], **more: Any) -> Told:
    with anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as client:
        given = {"model": "auto", "messages": messages, "max_tokens": 50, **more}
        if stream:
            with client.messages.stream(**given) as events:
                answer = events.get_final_message()
        else:
            answer = client.messages.create(**given)
        texts = [block.text for block in answer.content if block.type == "text"]
        calls = [block for block in answer.content if block.type == "tool_use"]
        assert answer.stop_reason == ("tool_use" if calls else "end_turn")
        made = (calls[0].id, calls[0].name, calls[0].input) if calls else None
        return Told("".join(texts), made, answer.usage.input_tokens + answer.usage.output_tokens)


def by_ollama(at: House, *, stream: bool, messages: list[Any], **more: Any) -> Told:
    client = ollama.Client(host=at.url)
    answers = client.chat(model="auto", messages=messages, stream=stream, **more)
    text, call, last = "", None, None
    for answer in answers if stream else [answers]:
        text += answer.message.content or ""
        call = answer.message.tool_calls[0] if answer.message.tool_calls else call
        last = answer
    client._client.close()
    assert last is not None and last.done
    made = ("", call.function.name, dict(call.function.arguments)) if call else None
    return Told(text, made, (last.prompt_eval_count or 0) + (last.eval_count or 0))


SDKS = {"openai": by_openai, "anthropic": by_anthropic, "ollama": by_ollama}
every_surface = pytest.mark.parametrize("surface", SDKS)
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


def tools_of(surface: str) -> list[Any]:
    return [{"name": "weather", "input_schema": PLACE}] if surface == "anthropic" else [FUNCTION]


def turn_with_result(surface: str, call: tuple[str, str, Any]) -> list[Any]:
    """The assistant's call and the tool's result, as a client of *surface* sends them back."""
    identifier, name, arguments = call
    if surface == "anthropic":
        used = {"type": "tool_use", "id": identifier, "name": name, "input": arguments}
        result = {"type": "tool_result", "tool_use_id": identifier, "content": "sunny"}
        return [{"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    if surface == "ollama":
        function = {"function": {"name": name, "arguments": arguments}}
        called = {"role": "assistant", "content": "", "tool_calls": [function]}
        return [called, {"role": "tool", "content": "sunny", "tool_name": name}]
    function = {"name": name, "arguments": json.dumps(arguments)}
    called = {"id": identifier, "type": "function", "function": function}
    return [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": identifier, "content": "sunny"},
    ]


@every_surface
@both_ways
def test_text_and_usage_arrive(at: House, cloud: FakeGemini, surface: str, stream: bool) -> None:
    told = SDKS[surface](at, stream=stream, messages=HI)
    assert (told.text, told.call, told.tokens) == (HELLO, None, 12)
    (record,) = cloud.requests()
    assert record["path"].startswith(f"/gemini/v1beta/models/{MODEL}:")
    assert record["headers"]["x-goog-api-key"] == KEY and KEY not in record["path"]
    assert asked(cloud)["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]


@every_surface
@both_ways
def test_a_tool_is_called_and_its_result_understood(
    at: House, cloud: FakeGemini, surface: str, stream: bool
) -> None:
    cloud.script({"do": "ok", "tool": CALL})
    tools = tools_of(surface)
    first = SDKS[surface](at, stream=stream, messages=HI, tools=tools)
    assert first.call is not None and first.call[1:] == ("weather", {"city": "Bern"})
    talk = [*HI, *turn_with_result(surface, first.call)]
    second = SDKS[surface](at, stream=stream, messages=talk, tools=tools)
    assert second.text == HELLO
    _, model, user = asked(cloud)["contents"]
    assert model["parts"][0]["functionCall"] == {"name": "weather", "args": {"city": "Bern"}}
    assert model["parts"][0]["thoughtSignature"]
    answered = {"name": "weather", "response": {"output": "sunny"}}
    assert user["parts"] == [{"functionResponse": answered}]
    declared = asked(cloud)["tools"][0]["functionDeclarations"][0]
    assert (declared["name"], declared["parametersJsonSchema"]) == ("weather", PLACE)


@every_surface
def test_an_image_goes_inside(at: House, cloud: FakeGemini, surface: str) -> None:
    message: dict[str, Any] = {"role": "user", "content": "look"}
    text = {"type": "text", "text": "look"}
    if surface == "ollama":
        message["images"] = [PIXEL]
    elif surface == "openai":
        url = {"url": f"data:image/png;base64,{PIXEL}"}
        message["content"] = [text, {"type": "image_url", "image_url": url}]
    else:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        message["content"] = [text, {"type": "image", "source": source}]
    assert SDKS[surface](at, stream=False, messages=[message]).text == HELLO
    parts = asked(cloud)["contents"][0]["parts"]
    assert {"text": "look"} in parts
    assert {"inlineData": {"mimeType": "image/png", "data": PIXEL}} in parts


@every_surface
def test_a_schema_is_native(at: House, cloud: FakeGemini, surface: str) -> None:
    cloud.script({"do": "ok", "chunks": ['{"city":', '"Bern"}']})
    named = {"name": "a", "schema": PLACE}
    wishes: dict[str, dict[str, Any]] = {
        "openai": {"response_format": {"type": "json_schema", "json_schema": named}},
        "anthropic": {"extra_body": {"output_config": {"format": {"type": "json_schema",
                                                                  "schema": PLACE}}}},
        "ollama": {"format": PLACE},
    }  # fmt: skip
    told = SDKS[surface](at, stream=False, messages=HI, **wishes[surface])
    assert json.loads(told.text) == {"city": "Bern"}
    config = asked(cloud)["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"] == PLACE


OTHERS: dict[str, tuple[dict[str, Any], bytes]] = {
    "/v1/responses": ({"input": "hi"}, b"response.completed"),
    "/v1/completions": ({"prompt": "hi"}, b"[DONE]"),
    "/api/generate": ({"prompt": "hi"}, b'"done":true'),
}


@pytest.mark.parametrize("path", OTHERS)
@both_ways
def test_the_other_surfaces_work_too(at: House, cloud: FakeGemini, path: str, stream: bool) -> None:
    more, end = OTHERS[path]
    status, data, whole = post(at, path, {"model": "auto", "stream": stream, **more})
    assert (status, whole) == (200, True)
    assert b"from" in data and (end in data or not stream)
    assert asked(cloud)["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]


def test_embeddings_are_native(at: House, cloud: FakeGemini) -> None:
    body = {"model": "gemini/gemini-embedding-001", "input": ["a", "b"]}
    status, data, _ = post(at, "/v1/embeddings", body)
    assert status == 200
    assert [one["embedding"] for one in json.loads(data)["data"]] == [[0.0, 0.5], [1.0, 0.5]]
    assert cloud.requests()[-1]["path"].endswith("gemini-embedding-001:batchEmbedContents")


THOUGHT = {
    "openai": ({"reasoning_effort": "low"}, b'"reasoning_content":"hm"'),
    "anthropic": ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
                  b'"thinking":"hm"'),
    "ollama": ({"think": "low"}, b'"thinking":"hm"'),
}  # fmt: skip


@every_surface
def test_thoughts_are_asked_for_and_shown_as_such(
    at: House, cloud: FakeGemini, surface: str
) -> None:
    more, shown = THOUGHT[surface]
    cloud.script({"do": "ok", "reasoning": "hm"})
    status, data, whole = ask(at, surface, stream=True, **more)
    assert (status, whole) == (200, True)
    assert shown in data and ENDS[surface] in data
    thinking = asked(cloud)["generationConfig"]["thinkingConfig"]
    assert thinking == {"thinkingLevel": "low", "includeThoughts": True}


# --- what goes wrong -----------------------------------------------------------------------


def ask(at: House, surface: str, *, stream: bool, **more: Any) -> tuple[int, bytes, bool]:
    """Status, bytes, and whether the body came whole."""
    body = {"model": "auto", "messages": HI, "stream": stream, **more}
    if surface != "ollama":
        body["max_tokens"] = 50
    return post(at, PATHS[surface], body)


def post(at: House, path: str, body: dict[str, Any]) -> tuple[int, bytes, bool]:
    connection = http.client.HTTPConnection(at.url.removeprefix("http://"), timeout=20)
    try:
        headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read(), True
        except http.client.IncompleteRead as cut:
            return answer.status, cut.partial, False
    finally:
        connection.close()


@every_surface
@both_ways
def test_an_error_keeps_its_sense_in_the_surfaces_own_shape(
    at: House, cloud: FakeGemini, surface: str, stream: bool
) -> None:
    said = "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575)."
    cloud.script({"do": "status", "status": 400, "message": said, "times": -1})
    status, data, _ = ask(at, surface, stream=stream)
    assert status == 413 and KEY.encode() not in data
    error = json.loads(data)["error"]
    assert "context" in (error if surface == "ollama" else error["message"])


@every_surface
@both_ways
def test_a_filtered_answer_is_a_content_filter_and_nobody_elses_turn(
    at: House, cloud: FakeGemini, surface: str, stream: bool
) -> None:
    cloud.script({"do": "ok", "chunks": [], "finish": "SAFETY", "times": -1})
    status, data, _ = ask(at, surface, stream=stream)
    assert status == 400 and b"filter" in data
    assert len(cloud.requests()) == 1


@every_surface
def test_a_call_that_the_model_broke_is_asked_again(
    at: House, cloud: FakeGemini, surface: str
) -> None:
    cloud.script({"do": "ok", "chunks": [], "finish": "MALFORMED_FUNCTION_CALL"})
    assert SDKS[surface](at, stream=False, messages=HI).text == HELLO
    assert len(cloud.requests()) == 2


@every_surface
@pytest.mark.parametrize(
    "step",
    [
        {"do": "cut", "events": 3},
        {"do": "cut", "events": 3, "clean": True},
        {"do": "error_event", "events": 2},
    ],
    ids=["reset", "clean", "error inside"],
)
def test_a_stream_that_breaks_ends_in_an_error_and_never_falsely(
    at: House, cloud: FakeGemini, surface: str, step: dict[str, Any]
) -> None:
    cloud.script(step)
    status, data, _ = ask(at, surface, stream=True)
    assert status == 200
    assert b"Hello" in data and ERRORS[surface] in data
    assert ENDS[surface] not in data


@every_surface
def test_what_breaks_before_the_first_word_is_asked_again(
    at: House, cloud: FakeGemini, surface: str
) -> None:
    cloud.script("empty")
    told = SDKS[surface](at, stream=True, messages=HI)
    assert told.text == HELLO and len(cloud.requests()) == 2


def test_the_key_is_in_no_log_and_no_state(at: House) -> None:
    connection = http.client.HTTPConnection(at.url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", "/localfirst/state")
        state = connection.getresponse().read()
    finally:
        connection.close()
    assert KEY.encode() not in state and KEY not in "".join(at.said)

"""Chat completion requests: looked at, decoded, encoded, passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.cascade import classify
from localfirst.errors import InvalidRequest, UpstreamRefused
from localfirst.types import ChatRequest, ImagePart, Json, Message, TextPart, Tool, ToolCall
from localfirst.wire.anthropic import requests as anthropic
from localfirst.wire.ollama import requests as ollama
from localfirst.wire.openai import requests
from localfirst.wire.quirks import Quirks
from localfirst.wire.refusal import NotTranslatable
from tests.wire.support import dumps

PIXEL = "iVBORw0KGgo="
HI = [{"role": "user", "content": "hi"}]


def body(**fields: Json) -> bytes:
    return dumps({"model": "m", "messages": HI, **fields})


def decode(**fields: Json) -> ChatRequest:
    return requests.decode(body(**fields))


def test_a_look_finds_what_routing_needs() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    found = requests.peek(
        body(
            messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, image]}],
            stream=True,
            tools=[{"type": "function", "function": {"name": "f"}}],
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
            reasoning_effort="low",
            max_completion_tokens=7,
        )
    )
    assert (found.model, found.stream) == ("m", True)
    needs = found.needs
    assert (needs.tools, needs.vision, needs.schema, needs.thinking) == (True, True, True, True)
    assert needs.max_tokens == 7
    assert needs.prompt_tokens > 1000


def test_a_look_needs_nothing_that_was_not_asked_for() -> None:
    found = requests.peek(body(tools=[], reasoning_effort="none", response_format={"type": "text"}))
    needs = found.needs
    assert (needs.tools, needs.vision, needs.schema, needs.thinking) == (False, False, False, False)


def test_a_tool_that_takes_an_image_url_needs_no_vision() -> None:
    tool = {"name": "f", "parameters": {"properties": {"image_url": {}}}}
    assert not requests.peek(body(tools=[{"type": "function", "function": tool}])).needs.vision


def test_a_large_image_is_not_counted_as_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    needs = requests.peek(body(messages=[{"role": "user", "content": [image]}])).needs
    assert 1000 < needs.prompt_tokens < 2000


def test_no_model_means_the_ladder() -> None:
    assert requests.peek(dumps({"messages": HI})).model == "auto"
    assert requests.decode(dumps({"messages": HI})).model == "auto"


WRONG: dict[str, tuple[dict[str, Json], str]] = {
    "messages-missing": ({"messages": None}, "messages"),
    "messages-empty": ({"messages": []}, "messages"),
    "messages-text": ({"messages": "hi"}, "messages"),
    "messages-of-text": ({"messages": ["hi"]}, "messages[0]"),
    "messages-too-many": ({"messages": HI * 10_000}, "messages"),
    "role-unknown": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    "role-missing": ({"messages": [{"content": "x"}]}, "messages[0].role"),
    "content-number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "model-number": ({"model": 5}, "model"),
    "stream-text": ({"stream": "yes"}, "stream"),
    "stream-number": ({"stream": 1}, "stream"),
    "n-huge": ({"n": 10**9}, "n"),
    "n-zero": ({"n": 0}, "n"),
    "max-tokens-negative": ({"max_tokens": -1}, "max_tokens"),
    "max-tokens-huge": ({"max_tokens": 10**18}, "max_tokens"),
    "max-tokens-true": ({"max_tokens": True}, "max_tokens"),
    "max-tokens-text": ({"max_tokens": "5"}, "max_tokens"),
    "max-completion-tokens-zero": ({"max_completion_tokens": 0}, "max_completion_tokens"),
    "temperature-high": ({"temperature": 3}, "temperature"),
    "temperature-true": ({"temperature": True}, "temperature"),
    "top-p-high": ({"top_p": 1.5}, "top_p"),
    "penalty-high": ({"presence_penalty": 9}, "presence_penalty"),
    "stop-too-many": ({"stop": ["x"] * 100_000}, "stop"),
    "stop-number": ({"stop": 5}, "stop"),
    "tools-too-many": ({"tools": [{}] * 2000}, "tools"),
    "tools-object": ({"tools": {}}, "tools"),
    "seed-text": ({"seed": "x"}, "seed"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "field"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("read", [requests.peek, requests.decode], ids=["peek", "decode"])
def test_a_wrong_field_is_named(read: Any, fields: dict[str, Json], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(body(**fields))
    assert caught.value.field == field
    assert field in caught.value.message


WRONG_INSIDE: dict[str, tuple[dict[str, Json], str]] = {
    "part-unknown": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "messages[0].content[0].type",
    ),
    "part-text": ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    "parts-too-many": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 2000}]},
        "messages[0].content",
    ),
    "content-missing": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "tool-without-name": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
    ),
    "tool-hosted": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "tool-choice-number": ({"tool_choice": 5}, "tool_choice"),
    "tool-choice-without-name": ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
    "schema-missing": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema.schema",
    ),
    "format-unknown": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "effort-unknown": ({"reasoning_effort": "giant"}, "reasoning_effort"),
    "num-ctx-huge": ({"num_ctx": 10**12}, "num_ctx"),
    "option-num-ctx-huge": ({"options": {"num_ctx": 10**12}}, "options.num_ctx"),
    "option-num-ctx-text": ({"options": {"num_ctx": "big"}}, "options.num_ctx"),
    "keep-alive-huge": ({"keep_alive": "999999h"}, "keep_alive"),
    "keep-alive-bare-number-text": ({"keep_alive": "300"}, "keep_alive"),
    "logprobs-number": ({"logprobs": 5}, "logprobs"),
    "top-logprobs-high": ({"top_logprobs": 21}, "top_logprobs"),
    "include-usage-text": (
        {"stream_options": {"include_usage": "x"}},
        "stream_options.include_usage",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "field"), WRONG_INSIDE.values(), ids=WRONG_INSIDE.keys())
def test_decoding_names_a_wrong_field_inside(fields: dict[str, Json], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "name",
    ["api_base", "base_url", "api_key", "extra_headers", "extra_body", "proxy", "organization"],
)
@pytest.mark.parametrize("read", [requests.peek, requests.decode], ids=["peek", "decode"])
def test_a_request_cannot_choose_its_destination(read: Any, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(body(**{name: "http://evil.example"}))
    assert caught.value.code == "field-not-allowed"
    assert caught.value.field == name
    assert "evil" not in caught.value.message
    read(body(messages=[{"role": "user", "content": f'"{name}": "x"'}]))


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "//evil/x.png", "data:image/png;base64,", "data:image/png;base64,%%%",
     "data:text/plain,hello", "ftp://x/y.png", "", "javascript:1"],
)  # fmt: skip
def test_images_come_as_data_or_by_http_only(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(InvalidRequest) as caught:
        decode(messages=[{"role": "user", "content": [part]}])
    assert caught.value.field == "messages[0].content[0].image_url.url"


def test_a_detail_that_few_models_know_is_sent_as_the_best_that_all_know() -> None:
    # Codex 0.169.0 sends its images so to `/v1/responses`, and to any model.
    url = f"data:image/png;base64,{PIXEL}"
    part = {"type": "input_image", "image_url": url, "detail": "original"}
    request = decode(messages=[{"role": "user", "content": [part]}])
    sent = json.loads(requests.encode(request, "m"))["messages"][0]["content"][0]
    assert sent["image_url"] == {"url": url, "detail": "high"}


def test_a_whole_conversation_survives_decoding_and_encoding() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    image = {"url": f"data:image/jpeg;base64,{PIXEL}", "detail": "low"}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "look"}, {"type": "image_url", "image_url": image}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
        {"role": "user", "name": "ann", "content": "and?"},
    ]  # fmt: skip
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    request = decode(
        messages=messages,
        tools=[{"type": "function", "function": tool}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        parallel_tool_calls=False,
        stop="END",
        seed=3,
        temperature=0.5,
        logit_bias={"5": 1},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}},
        },
    )
    assert request.messages[0].role == "system"
    assert request.messages[1].content == (
        TextPart(text="look"),
        ImagePart(media_type="image/jpeg", data=PIXEL, detail="low"),
    )
    assert request.messages[2].tool_calls == (
        ToolCall(id="call_1", name="f", arguments='{"a": 1}'),
    )
    assert request.tools == (
        Tool(name="f", description="d", parameters={"type": "object"}, strict=True),
    )
    sent = json.loads(requests.encode(request, "big"))
    assert sent["model"] == "big"
    assert sent["messages"][1:4] == messages[1:4]
    assert sent["messages"][5] == messages[5]
    assert sent["tools"] == [{"type": "function", "function": tool}]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert sent["parallel_tool_calls"] is False
    assert (sent["stop"], sent["seed"], sent["temperature"]) == (["END"], 3, 0.5)
    assert sent["logit_bias"] == {"5": 1}
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "reasoning_content" not in sent["messages"][4]


def test_older_spellings_are_understood() -> None:
    request = decode(
        functions=[{"name": "f"}],
        function_call={"name": "f"},
        messages=[
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
            {"role": "function", "name": "f", "content": "1"},
        ],
    )
    assert request.tool_choice == "f"
    assert request.tools[0].name == "f"
    assert request.messages[0].tool_calls[0].arguments == "{}"
    assert request.messages[1].role == "tool"


@pytest.mark.parametrize(
    ("fields", "think"),
    [({"reasoning_effort": "high"}, "high"), ({"reasoning_effort": "none"}, False),
     ({"reasoning": {"effort": "low"}}, "low"), ({"think": True}, True), ({}, None)],
)  # fmt: skip
def test_reasoning_is_asked_for_in_several_ways(fields: dict[str, Json], think: object) -> None:
    assert decode(**fields).think == think


# --- passed on ---------------------------------------------------------------------------


def splice(given: bytes, **options: Any) -> dict[str, Json]:
    requests.peek(given)
    spliced: dict[str, Json] = json.loads(requests.splice(given, model="big", **options))
    return spliced


def test_only_what_must_change_is_touched() -> None:
    raw = (
        b'{"model": "m", "temperature": 0.10, "messages": [ {"role":"user",\n'
        b'"content":"h\\u00e9"} ], "new_field": {"x": [1 , 2]}}'
    )
    sent = requests.splice(raw, model="big")
    assert b'[ {"role":"user",\n"content":"h\\u00e9"} ]' in sent
    assert b'{"x": [1 , 2]}' in sent
    assert b"0.10" in sent
    assert json.loads(sent) == {**json.loads(raw), "model": "big"}


def test_a_stream_is_asked_for_its_usage_and_other_requests_are_not() -> None:
    assert splice(body(stream=True))["stream_options"] == {"include_usage": True}
    assert splice(body(stream=True, stream_options={"include_usage": False}))["stream_options"] == {
        "include_usage": True
    }
    assert "stream_options" not in splice(body())
    assert "stream_options" not in splice(body(stream=False))
    assert "stream_options" not in splice(body(stream=True), quirks=Quirks(stream_usage=False))


@pytest.mark.parametrize(
    ("options", "wants"),
    [({"include_usage": True}, True), ({"include_usage": False}, False), (None, False)],
)
def test_whether_the_client_wants_usage_itself_is_known(options: Json, wants: bool) -> None:
    assert requests.wants_usage(body(stream=True, stream_options=options)) is wants


def test_nulls_empty_tools_and_our_own_fields_are_left_out() -> None:
    sent = splice(
        body(
            tools=[],
            tool_choice=None,
            response_format={"type": "text"},
            options={"num_ctx": 4},
            keep_alive=5,
            think=True,
        )
    )
    assert sent.keys() == {"model", "messages"}


def test_quirks_drop_rename_cap_and_fill() -> None:
    quirks = Quirks(
        drop=frozenset({"logprobs", "user"}),
        rename={"seed": "random_seed"},
        caps={"max_completion_tokens": 100, "temperature": 1.0},
        floors={"temperature": 0.01},
        defaults={"safe_prompt": False, "seed": 1},
        forced={"n": 1},
        with_tools={"parallel_tool_calls": False},
        max_tokens_field="max_completion_tokens",
    )
    tool = {"type": "function", "function": {"name": "f"}}
    given = body(max_tokens=500, user="u", logprobs=True, seed=7, temperature=0, tools=[tool])
    request = requests.decode(given)
    for sent in (
        splice(given, quirks=quirks),
        json.loads(requests.encode(request, "big", quirks=quirks)),
    ):
        assert sent["max_completion_tokens"] == 100
        assert "max_tokens" not in sent and "user" not in sent and "logprobs" not in sent
        assert (sent["random_seed"], sent["temperature"], sent["n"]) == (7, 0.01, 1)
        assert sent["safe_prompt"] is False
        assert sent["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    "asked",
    [{"web_search_options": {}}, {"web_search_options": {"search_context_size": "low"}},
     {"modalities": ["text", "audio"]}],
)  # fmt: skip
def test_what_an_answer_would_silently_lack_is_left_to_who_has_it(asked: dict[str, Json]) -> None:
    sent = body(**asked)
    assert json.loads(requests.splice(sent, model="m")).items() >= asked.items()
    (field,) = asked
    with pytest.raises(NotTranslatable) as refused:
        requests.splice(sent, model="m", quirks=Quirks(drop=frozenset({field})))
    assert refused.value.field == field


def test_what_says_nothing_of_a_search_or_of_sound_is_no_hindrance() -> None:
    quirks = Quirks(drop=frozenset({"web_search_options", "modalities"}))
    sent = body(web_search_options=None, modalities=["text"])
    assert json.loads(requests.splice(sent, model="m", quirks=quirks)).keys() == {
        "model", "messages"}  # fmt: skip


def test_quirks_reach_inside_messages_and_schemas() -> None:
    quirks = Quirks(
        message_drop=frozenset({"name"}),
        schema_drop=frozenset({"$schema", "additionalProperties"}),
        tool_id_chars=9,
        reasoning_field="reasoning_content",
    )
    call = {
        "id": "call_a_long_one",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    parameters = {
        "$schema": "x",
        "properties": {"additionalProperties": {"type": "object", "additionalProperties": False}},
    }
    given = body(
        messages=[
            {"role": "user", "name": "ann", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_a_long_one", "content": "1"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}],
    )
    for sent in (
        splice(given, quirks=quirks),
        json.loads(requests.encode(requests.decode(given), "big", quirks=quirks)),
    ):
        assert "name" not in sent["messages"][0]
        identifier = sent["messages"][1]["tool_calls"][0]["id"]
        assert len(identifier) == 9 and identifier.isalnum()
        assert sent["messages"][2]["tool_call_id"] == identifier
        assert sent["messages"][1]["reasoning_content"] == ""
        assert sent["tools"][0]["function"]["parameters"] == {
            "properties": {"additionalProperties": {"type": "object"}}
        }


def test_a_schema_is_put_in_words_where_it_cannot_be_enforced() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    sent = splice(body(response_format=form), quirks=Quirks(json_schema=False))
    assert sent["response_format"] == {"type": "json_object"}
    assert '{"type":"object"}' in sent["messages"][0]["content"]
    assert sent["messages"][1:] == HI


def test_a_duplicate_that_slips_by_is_resolved_before_it_is_sent() -> None:
    raw = b'{"model":"a","messages":[{"role":"user","content":"x"}],"user":"1","user":"2"}'
    assert requests.splice(raw, model="b").count(b'"user":') == 1


@pytest.mark.parametrize("encode", [requests.encode, anthropic.encode])
def test_a_suffix_is_left_to_a_backend_that_can_insert(encode: Any) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        encode(ChatRequest(prompt="a", suffix="b"), "m")
    failure = classify.failure("groq", caught.value, model="m", now_unix=0)
    assert classify.is_capability(failure)


def test_a_bare_prompt_becomes_a_message() -> None:
    sent = json.loads(requests.encode(ChatRequest(prompt="a"), "m"))
    assert sent["messages"] == [{"role": "user", "content": "a"}]


def test_thinking_that_was_switched_off_is_said_so() -> None:
    assert json.loads(requests.encode(ChatRequest(think=False), "m"))["reasoning_effort"] == "none"
    assert "reasoning_effort" not in json.loads(requests.encode(ChatRequest(think=True), "m"))


def test_reasoning_goes_back_only_where_it_is_wanted() -> None:
    request = ChatRequest(messages=(Message(role="assistant", content="a", reasoning="r"),))
    plain = json.loads(requests.encode(request, "m"))
    echoed = json.loads(
        requests.encode(request, "m", quirks=Quirks(reasoning_field="reasoning_content"))
    )
    assert "reasoning_content" not in plain["messages"][0]
    assert echoed["messages"][0]["reasoning_content"] == "r"


def test_a_thousand_images_are_refused() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    many = body(messages=[{"role": "user", "content": [image] * 100}] * 10)
    for read in (requests.peek, requests.decode):
        with pytest.raises(InvalidRequest, match="images"):
            read(many)
    few = body(messages=[{"role": "user", "content": [image] * 100}])
    assert requests.peek(few).needs.vision
    assert len(requests.decode(few).messages[0].images) == 100


def test_calls_of_another_model_get_the_mark_that_a_provider_wants() -> None:
    mark = {"extra_content": {"google": {"thought_signature": "none"}}}
    own = {"extra_content": {"google": {"thought_signature": "its own"}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    given = body(
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [call, {**call, **own}]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ]
    )
    calls = splice(given, quirks=Quirks(call_fields=mark))["messages"][0]["tool_calls"]
    assert calls == [{**call, **mark}, {**call, **own}]
    request = requests.decode(given)
    sent = json.loads(requests.encode(request, "m", quirks=Quirks(call_fields=mark)))
    assert sent["messages"][0]["tool_calls"][0] == {**call, **mark}


@pytest.mark.parametrize(
    "broken", ['{"a":', "[1]", "nonsense", '"text"', '{"a":NaN}', '{"a":"\\ud800"}']
)
def test_broken_arguments_of_an_earlier_call_do_not_end_the_conversation(broken: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": broken}}
    request = decode(
        messages=[
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "these are no arguments"},
        ]
    )
    sent = json.loads(requests.encode(request, "m"))
    assert sent["messages"][1]["tool_calls"] == [call]
    native = json.loads(ollama.encode(request, "m"))["messages"][1]["tool_calls"][0]
    assert native["function"]["arguments"] == {"arguments": broken}
    block = json.loads(anthropic.encode(request, "m"))["messages"][1]["content"][0]
    assert block["input"] == {"arguments": broken}


def test_a_space_to_stop_at_says_something() -> None:
    assert splice(body(stop=" "))["stop"] == " "
    assert "stop" not in splice(body(stop=""))

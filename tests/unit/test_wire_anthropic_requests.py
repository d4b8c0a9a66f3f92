"""Messages requests: looked at, decoded, encoded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import InvalidRequest
from localfirst.types import ChatRequest, ImagePart, Json, Message, TextPart, Tool, ToolCall
from localfirst.wire import estimate
from localfirst.wire.anthropic import requests
from localfirst.wire.quirks import Quirks
from tests.wire.support import dumps

PIXEL = "iVBORw0KGgo="
HI = [{"role": "user", "content": "hi"}]


def body(**fields: Json) -> bytes:
    return dumps({"model": "m", "max_tokens": 9, "messages": HI, **fields})


def decode(**fields: Json) -> ChatRequest:
    return requests.decode(body(**fields))


def encode(request: ChatRequest, **options: Any) -> dict[str, Json]:
    sent: dict[str, Json] = json.loads(requests.encode(request, "claude", **options))
    return sent


WRONG: dict[str, tuple[dict[str, Json], str]] = {
    "max-tokens-missing": ({"max_tokens": None}, "max_tokens"),
    "max-tokens-zero": ({"max_tokens": 0}, "max_tokens"),
    "max-tokens-huge": ({"max_tokens": 10**18}, "max_tokens"),
    "max-tokens-true": ({"max_tokens": True}, "max_tokens"),
    "messages-missing": ({"messages": None}, "messages"),
    "messages-empty": ({"messages": []}, "messages"),
    "role-unknown": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "content-number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "temperature-high": ({"temperature": 1.5}, "temperature"),
    "stream-text": ({"stream": "x"}, "stream"),
    "stop-too-many": ({"stop_sequences": ["x"] * 1000}, "stop_sequences"),
    "tools-too-many": ({"tools": [{}] * 2000}, "tools"),
    "api-base": ({"api_base": "http://evil"}, "api_base"),
}


@pytest.mark.parametrize(("fields", "field"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("read", [requests.peek, requests.decode], ids=["peek", "decode"])
def test_a_wrong_field_is_named(read: Any, fields: dict[str, Json], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(body(**fields))
    assert caught.value.field == field


WRONG_INSIDE: dict[str, tuple[dict[str, Json], str]] = {
    "block-unknown": (
        {"messages": [{"role": "user", "content": [{"type": "wizard"}]}]},
        "messages[0].content[0].type",
    ),
    "document-of-bytes": (
        {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "base64"}}]}]},
        "messages[0].content[0].source",
    ),
    "document-of-nothing": (
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        "messages[0].content[0].source",
    ),
    "image-by-file": (
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "file:///x"}}]}]},
        "messages[0].content[0].source.url",
    ),
    "image-not-base64": (
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "data": "%%"}}]}]},
        "messages[0].content[0].source.data",
    ),
    "result-without-id": (
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    "tool-hosted": ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
    "choice-unknown": ({"tool_choice": {"type": "all"}}, "tool_choice.type"),
    "system-number": ({"system": 5}, "system"),
    "effort-unknown": ({"output_config": {"effort": "giant"}}, "output_config.effort"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "field"), WRONG_INSIDE.values(), ids=WRONG_INSIDE.keys())
def test_decoding_names_a_wrong_field_inside(fields: dict[str, Json], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(**fields)
    assert caught.value.field == field


def test_a_look_finds_what_routing_needs() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    found = requests.peek(
        body(
            messages=[{"role": "user", "content": [{"type": "image", "source": source}]}],
            stream=True,
            tools=[{"name": "f", "input_schema": {}}],
            thinking={"type": "adaptive"},
            output_config={"format": {"type": "json_schema", "schema": {}}},
        )
    )
    needs = found.needs
    assert (found.model, found.stream, needs.max_tokens) == ("m", True, 9)
    assert (needs.tools, needs.vision, needs.schema, needs.thinking) == (True, True, True, True)


def test_a_whole_conversation_survives_decoding_and_encoding() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1, None]}}
    other = {"type": "tool_use", "id": "toolu_2", "name": "f", "input": {}}
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
    }
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {"role": "assistant", "content": [thinking, {"type": "text", "text": "ok"}, use, other]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1",
             "content": [{"type": "text", "text": "seen"}, image]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True},
            {"type": "text", "text": "and?"}]},
    ]  # fmt: skip
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    request = decode(
        system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        messages=messages,
        tools=[tool],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        top_k=5,
        metadata={"user_id": "u"},
    )
    assert request.messages[0] == Message(role="system", content="a\nb")
    assert request.messages[1].content == (
        TextPart(text="look"),
        ImagePart(media_type="image/png", data=PIXEL),
    )
    assert request.messages[2].tool_calls[0] == ToolCall(
        id="toolu_1", name="f", arguments='{"a":[1,null]}'
    )
    assert [message.role for message in request.messages] == [
        "system", "user", "assistant", "tool", "tool", "user",
    ]  # fmt: skip
    assert request.messages[4].is_error
    assert request.parallel_tool_calls is False
    sent = encode(request)
    assert sent["messages"] == messages
    assert sent["system"] == "a\nb"
    assert sent["tools"] == [tool]
    assert sent["tool_choice"] == {"type": "tool", "name": "f", "disable_parallel_tool_use": True}
    assert (sent["top_k"], sent["metadata"]) == (5, {"user_id": "u"})


def test_roles_alternate_and_begin_with_the_user() -> None:
    request = ChatRequest(
        messages=(
            Message(role="assistant", content="welcome"),
            Message(role="user", content="a"),
            Message(role="system", content="note"),
            Message(role="user", content="b"),
            Message(role="user", content="  "),
        )
    )
    sent = encode(request)
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][2]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert sent["system"] == "note"


def test_thinking_without_its_proof_is_not_sent_back() -> None:
    request = ChatRequest(
        messages=(
            Message(role="user", content="a"),
            Message(role="assistant", content="b", reasoning="hm"),
        )
    )
    assert encode(request)["messages"][1]["content"] == [{"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("given", "thinking", "effort"),
    [
        ({"think": None}, None, None),
        ({"think": False}, {"type": "disabled"}, None),
        ({"think": True}, {"type": "adaptive"}, None),
        ({"think": "high"}, {"type": "adaptive"}, {"effort": "high"}),
        ({"think": "minimal"}, {"type": "adaptive"}, {"effort": "low"}),
        (
            {"think": True, "thinking_budget_tokens": 9999, "max_tokens": 2000},
            {"type": "enabled", "budget_tokens": 1999},
            None,
        ),
        ({"think": True, "thinking_budget_tokens": 9999, "max_tokens": 100}, None, None),
    ],
)
def test_thinking_is_asked_for_within_the_limits(
    given: dict[str, Json], thinking: Json, effort: Json
) -> None:
    sent = encode(ChatRequest(messages=(Message(role="user", content="a"),), **given))
    assert sent.get("thinking") == thinking
    assert sent.get("output_config") == effort


def test_what_the_dialect_has_no_word_for_is_left_out() -> None:
    request = ChatRequest(
        messages=(Message(role="user", content="a"),),
        seed=1,
        presence_penalty=1,
        logprobs=True,
        user="u",
        temperature=1.7,
        stop=("x", " \n"),
        top_k=-1,
    )
    sent = encode(request)
    assert sent["temperature"] == 1.0
    assert sent["stop_sequences"] == ["x"]
    assert sent.keys() == {"model", "max_tokens", "messages", "temperature", "stop_sequences"}


def test_a_json_object_is_asked_for_in_words_and_a_schema_natively() -> None:
    messages = (Message(role="user", content="a"),)
    assert "JSON object" in encode(ChatRequest(messages=messages, json_mode=True))["system"]
    schema = {"type": "object"}
    native = encode(ChatRequest(messages=messages, schema=schema))
    assert native["output_config"]["format"] == {"type": "json_schema", "schema": schema}
    worded = encode(ChatRequest(messages=messages, schema=schema), quirks=Quirks(json_schema=False))
    assert '{"type":"object"}' in worded["system"] and "output_config" not in worded


def test_quirks_drop_cap_and_force() -> None:
    quirks = Quirks(
        drop=frozenset({"temperature", "top_p", "top_k"}),
        caps={"max_tokens": 5},
        forced={"tool_choice": {"type": "auto"}},
    )
    given = body(temperature=0.5, top_k=3)
    spliced = json.loads(requests.splice(given, model="claude", quirks=quirks))
    for sent in (spliced, encode(requests.decode(given), quirks=quirks)):
        assert (sent["model"], sent["max_tokens"]) == ("claude", 5)
        assert "temperature" not in sent and "top_k" not in sent
        assert sent["tool_choice"] == {"type": "auto"}


def test_counting_needs_no_limit_and_sees_everything() -> None:
    few = requests.decode_count(dumps({"model": "m", "messages": HI}))
    many = requests.decode_count(
        dumps(
            {
                "model": "m",
                "system": "be brief " * 100,
                "messages": HI * 5,
                "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            }
        )
    )
    assert few.max_tokens is None
    assert 0 < estimate.prompt_tokens(few) < 20
    assert estimate.prompt_tokens(many) > 200
    tool = Tool(name="f", parameters={"a": "b" * 400})
    assert estimate.prompt_tokens(ChatRequest(tools=(tool,))) > 100
    image = Message(role="user", content=(ImagePart(data="A" * 1_000_000),))
    assert 1000 < estimate.prompt_tokens(ChatRequest(messages=(image,))) < 2000


def test_thinking_waits_while_calls_of_another_model_are_answered() -> None:
    def asked(signature: str, *after: Message) -> bool:
        call = ToolCall(id="c", name="f", arguments="{}")
        turns = (
            Message(role="user", content="a"),
            Message(role="assistant", tool_calls=(call,), reasoning_signature=signature),
            Message(role="tool", tool_call_id="c", content="1"),
            *after,
        )
        return "thinking" in encode(ChatRequest(messages=turns, think=True))

    assert not asked("")
    assert asked("sig")
    assert asked("", Message(role="user", content="and?"))


def test_a_thousand_images_are_refused() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    blocks = [{"type": "image", "source": source}] * 1000
    for read in (requests.peek, requests.decode):
        with pytest.raises(InvalidRequest, match="images"):
            read(body(messages=[{"role": "user", "content": blocks}]))

"""What a library call refuses before anybody is asked."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

import localfirst
from localfirst.arguments import build_call
from localfirst.errors import ConfigError, InvalidRequest
from localfirst.settings import Settings
from localfirst.types import ImagePart, Message, TextPart
from localfirst.wire.openai import requests


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_p": 2}, "top_p"),
        ({"stop": 5}, "stop"),
        ({"options": {"num_ctx": -1}}, "options"),
        ({"temprature": 1}, "temprature"),
        ({"schema": 5}, "schema"),
        ({"deadline_s": "a"}, "deadline_s"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"model": 5}, "model"),
        ({"local_only": "no"}, "local_only"),
        ({"fallback": 0}, "fallback"),
        ({"tools": [1]}, "tools"),
        ({"tools": "search"}, "tools"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"extra": "x"}, "extra"),
        ({"json_mode": "yes"}, "json_mode"),
        ({"think": 5}, "think"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [{"function": "search"}]}, "tools"),
    ],
)
def test_an_option_that_no_surface_would_take_is_refused_by_name(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_call("x", **{"model": "auto", "stream": False, **options})
    assert (caught.value.field or "").startswith(named)


@pytest.mark.parametrize(
    "given",
    [
        {"messages": "half \ud800 a character"},
        {"messages": "x", "options": {"stop": ["\udfff"]}},
        {"messages": "x", "user": "\ud800"},
        {"messages": "x", "schema": {"title": "\ud800"}},
    ],
)
def test_half_a_character_is_the_requests_fault_and_nobody_elses(given: dict[str, Any]) -> None:
    """Found when it is sent, it would cool down who was asked, and wake a human."""
    with pytest.raises(InvalidRequest, match="half a character"):
        build_call(given.pop("messages"), model="auto", stream=False, **given)


@pytest.mark.parametrize(
    "messages", [None, 5, b"hi", {"role": "user", "content": "hi"}, Message(role="user")]
)
def test_messages_that_are_neither_text_nor_a_list_are_told_what_they_must_be(
    messages: Any,
) -> None:
    with pytest.raises(InvalidRequest, match="a prompt, or a list of messages") as caught:
        build_call(messages, model="auto", stream=False)
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "bot", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": ({"type": "video"},)}, "messages[0].content[0]"),
    ],
)
def test_messages_made_by_hand_are_looked_at_as_those_in_openais_shape_are(
    message: dict[str, Any], field: str
) -> None:
    """They went out as they were, or as nothing, and who was asked got the blame."""
    with pytest.raises(InvalidRequest) as caught:
        build_call([Message(**message)], model="auto", stream=False)
    assert (caught.value.field or "").startswith(field)


def test_parts_are_what_they_say_in_whichever_way_they_are_written() -> None:
    picture = b"\x89PNG"
    content: Any = [{"type": "text", "text": "look"}, ImagePart(data=picture)]  # type: ignore[arg-type]
    call = build_call([Message(role="user", content=content)], model="auto", stream=False)
    assert call.request is not None
    (message,) = call.request.messages
    assert message.content == (
        TextPart(text="look"),
        ImagePart(data=base64.b64encode(picture).decode()),
    )


def test_a_conversation_may_be_of_both_kinds() -> None:
    told = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    shown = Message(role="user", content=(TextPart(text="c"), ImagePart(url="https://x/y")))
    call = build_call([*told, shown], model="auto", stream=False)
    assert call.request is not None
    assert [message.role for message in call.request.messages] == ["user", "assistant", "user"]
    assert call.request.messages[2] == shown


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        ("auto", "auto"),
        ("search", "search"),
        ({"type": "function", "function": {"name": "search"}}, "search"),
    ],
)
def test_a_tool_is_chosen_by_its_name_or_as_openai_does(choice: Any, taken: str) -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    call = build_call("x", model="auto", stream=False, tools=tools, tool_choice=choice)
    assert call.request is not None
    assert (call.request.tool_choice, call.request.tools[0].name) == (taken, "search")


def test_whether_it_streams_is_no_option_of_a_call() -> None:
    """As with other libraries: here it is another method, which the error names."""
    with pytest.raises(InvalidRequest, match="`stream`") as caught:
        localfirst.Client(Settings()).stream("x", stream=True)
    assert "chat(" in caught.value.hint


@pytest.mark.parametrize("kind", [localfirst.Client, localfirst.AsyncClient])
def test_whole_settings_and_single_ones_besides_are_refused_together(kind: Any) -> None:
    """They were ignored: `privacy="local-only"` was, and the prompt left the machine."""
    with pytest.raises(ConfigError, match="`privacy` besides"):
        kind(Settings(), privacy="local-only")


@pytest.mark.parametrize("kind", [localfirst.Client, localfirst.AsyncClient])
@pytest.mark.parametrize("settings", [{"privacy": "local-only"}, "local-only", object()])
def test_settings_that_are_none_are_refused_at_once(kind: Any, settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"localfirst\.Settings"):
        kind(settings)


def test_a_conversation_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        build_call([], model="auto", stream=False)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        build_call("x", model="auto", stream=False, extra={"when": object()})


def test_options_arrive_as_a_request_holds_them() -> None:
    call = build_call(
        "x", model="auto", stream=False, stop=("a", "b"), temperature=1, max_tokens=5, seed=None
    )
    assert call.request is not None
    assert (call.request.stop, call.request.temperature) == (("a", "b"), 1.0)
    assert (call.request.max_tokens, call.request.seed) == (5, None)
    one = build_call("x", model="auto", stream=False, stop="a").request
    assert one is not None and one.stop == ("a",)


TOOLS = [
    {
        "type": "function",
        "function": {"name": f"tool_{number}", "description": "what it does " * 30},
    }
    for number in range(50)
]
SEEN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("content", "more"),
    [("你好" * 3000, {}), ("hi", {"tools": TOOLS}), ([SEEN], {})],
    ids=["chinese", "tools", "image"],
)
def test_a_prompt_is_as_long_to_the_library_as_to_the_gateway(
    content: Any, more: dict[str, Any]
) -> None:
    """Its length chooses a local model's window, and which clouds are asked at all."""
    messages = [{"role": "user", "content": content}]
    here = build_call(messages, model="auto", stream=False, **more).needs
    body = json.dumps({"messages": messages, **more}, ensure_ascii=False).encode()
    there = requests.peek(body).needs
    assert here.prompt_tokens == pytest.approx(there.prompt_tokens, rel=0.25)

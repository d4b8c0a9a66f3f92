"""Requests to /api/chat and /api/generate: looked at, decoded, encoded."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from localfirst.cascade import classify
from localfirst.errors import InvalidRequest, UpstreamRefused
from localfirst.types import ChatRequest, ImagePart, Json, Message, TextPart, Tool, ToolCall
from localfirst.wire.anthropic import requests as anthropic_requests
from localfirst.wire.gemini import requests as gemini_requests
from localfirst.wire.ollama import embeddings, requests
from localfirst.wire.openai import embeddings as openai_embeddings
from localfirst.wire.openai import requests as openai_requests
from localfirst.wire.options import seconds_of
from tests.wire.support import dumps

PIXEL = "iVBORw0KGgo="
HI = [{"role": "user", "content": "hi"}]


def body(**fields: Json) -> bytes:
    return dumps({"model": "m", "messages": HI, **fields})


def decode(**fields: Json) -> ChatRequest:
    return requests.decode(body(**fields))


def generate(**fields: Json) -> ChatRequest:
    return requests.decode_generate(dumps({"model": "m", **fields}))


WRONG: dict[str, tuple[dict[str, Json], str]] = {
    "messages-text": ({"messages": "x"}, "messages"),
    "messages-of-text": ({"messages": ["x"]}, "messages[0]"),
    "role-number": ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
    "content-list": ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    "image-not-base64": (
        {"messages": [{"role": "user", "content": "x", "images": ["%"]}]},
        "messages[0].images[0]",
    ),
    "image-url": (
        {"messages": [{"role": "user", "content": "x", "images": ["http://x/y.png"]}]},
        "messages[0].images[0]",
    ),
    "images-too-many": (
        {"messages": [{"role": "user", "content": "x", "images": [PIXEL] * 1000}]},
        "messages[0].images",
    ),
    "options-list": ({"options": []}, "options"),
    "num-ctx-text": ({"options": {"num_ctx": "big"}}, "options.num_ctx"),
    "num-ctx-huge": ({"options": {"num_ctx": 10**12}}, "options.num_ctx"),
    "num-ctx-zero": ({"options": {"num_ctx": 0}}, "options.num_ctx"),
    "num-ctx-negative": ({"options": {"num_ctx": -5}}, "options.num_ctx"),
    "temperature-true": ({"options": {"temperature": True}}, "options.temperature"),
    "stop-too-many": ({"options": {"stop": ["x"] * 1000}}, "options.stop"),
    "keep-alive-huge": ({"keep_alive": "999999h"}, "keep_alive"),
    "keep-alive-bare": ({"keep_alive": "300"}, "keep_alive"),
    "keep-alive-minus-one": ({"keep_alive": "-1"}, "keep_alive"),
    "keep-alive-list": ({"keep_alive": []}, "keep_alive"),
    "think-word": ({"think": "enormous"}, "think"),
    "format-word": ({"format": "xml"}, "format"),
    "top-logprobs-high": ({"top_logprobs": 21}, "top_logprobs"),
    "stream-number": ({"stream": 1}, "stream"),
    "two-names": ({"name": "evil.example/x/y"}, "name"),
    "proxy": ({"proxy": "http://evil"}, "proxy"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "field"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_named(fields: dict[str, Json], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(**fields)
    assert caught.value.field == field


def test_an_empty_body_is_said_as_the_daemon_says_it() -> None:
    with pytest.raises(InvalidRequest, match="missing request body"):
        requests.decode(b"")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("10m", 600), ("1h30m", 5400), ("-1m", -60), ("0", 0), ("1.5s", 1.5), ("500ms", 0.5),
     ("300", None), ("", None), ("5", None), ("m", None), ("1x", None), ("٣s", None)],
)  # fmt: skip
def test_durations_are_go_durations(given: str, seconds: float | None) -> None:
    assert seconds_of(given) == seconds


def test_a_stream_is_the_default() -> None:
    assert requests.peek(body()).stream and decode().stream and generate(prompt="x").stream
    assert not requests.peek(body(stream=False)).stream and not decode(stream=False).stream


def test_a_look_finds_what_routing_needs() -> None:
    found = requests.peek(
        body(
            messages=[{"role": "user", "content": "x", "images": [PIXEL]}],
            tools=[{}],
            format={"type": "object"},
            think="low",
            options={"num_predict": 7},
        )
    )
    needs = found.needs
    assert (needs.tools, needs.vision, needs.schema, needs.thinking) == (True, True, True, True)
    assert needs.max_tokens == 7
    plain = requests.peek(body(format="json", think=False, options={"num_predict": -1})).needs
    assert (plain.tools, plain.vision, plain.schema, plain.thinking) == (False,) * 4
    assert plain.max_tokens == 0


@pytest.mark.parametrize(
    ("fields", "loads", "unloads"),
    [
        ({"messages": []}, True, False),
        ({"messages": [], "keep_alive": 0}, True, True),
        ({"messages": [], "keep_alive": "0"}, True, True),
        ({"messages": [], "keep_alive": "0s"}, True, True),
        ({"messages": [], "keep_alive": -1}, True, False),
        ({"messages": HI, "keep_alive": 0}, False, False),
    ],
)
def test_a_request_without_messages_loads_or_unloads(
    fields: dict[str, Json], loads: bool, unloads: bool
) -> None:
    request = decode(**fields)
    assert requests.asks_to_load(request) is loads
    assert requests.asks_to_unload(request) is unloads


def test_a_generate_without_a_prompt_loads() -> None:
    assert requests.asks_to_load(generate())
    assert requests.asks_to_unload(generate(prompt="", keep_alive=0))
    assert not requests.asks_to_load(generate(prompt="x"))
    # Whatever else is said, as a real one takes it.
    assert requests.asks_to_load(generate(images=[PIXEL], context=[1], raw=False))


def test_a_plain_prompt_becomes_messages_that_every_backend_understands() -> None:
    request = generate(prompt="look", system="s", images=[PIXEL], options={"seed": 1})
    assert request.prompt is None
    assert request.messages == (
        Message(role="system", content="s"),
        Message(role="user", content=(ImagePart(data=PIXEL), TextPart(text="look"))),
    )
    assert requests.path_of(request) == "/api/generate"
    sent = json.loads(requests.encode(request, "m"))
    assert (sent["prompt"], sent["system"], sent["images"]) == ("look", "s", [PIXEL])
    assert "messages" not in sent


def test_a_turn_that_became_a_conversation_is_one() -> None:
    request = generate(prompt="look", system="s")
    said = Message(role="assistant", content="a"), Message(role="user", content="again")
    more = msgspec.structs.replace(request, messages=(*request.messages, *said))
    assert requests.path_of(more) == "/api/chat"
    assert len(json.loads(requests.encode(more, "m"))["messages"]) == 4
    with pytest.raises(UpstreamRefused) as refused:
        requests.encode(msgspec.structs.replace(more, extra={"context": [1]}), "m")
    assert b"`context`" in refused.value.body


ONLY_LOCAL: list[dict[str, Json]] = [{"raw": True}, {"template": "x"}, {"context": [1, 2]}]


@pytest.mark.parametrize("said", [*ONLY_LOCAL, {"suffix": "b"}])
def test_what_only_a_models_own_engine_can_do_is_asked_of_nobody_else(
    said: dict[str, Json],
) -> None:
    request = generate(prompt="p", **said)
    sent = json.loads(requests.encode(request, "m"))
    assert (
        sent
        == {"prompt": "p", "model": "m", "stream": True, "truncate": False, "shift": False} | said
    )
    for other in (openai_requests, anthropic_requests, gemini_requests):
        with pytest.raises(UpstreamRefused) as refused:
            other.encode(request, "m")
        assert refused.value.unsent and b"does not support" in refused.value.body


def test_what_says_nothing_is_not_said() -> None:
    request = generate(prompt="p", raw=False, template="", context=[], suffix="")
    assert (request.extra, request.suffix) == ({}, None)


def test_raw_prompts_have_nothing_beside_them() -> None:
    for beside in ({"system": "s"}, {"template": "t"}, {"context": [1]}):
        with pytest.raises(InvalidRequest, match="raw mode"):
            generate(prompt="p", raw=True, **beside)
    with pytest.raises(InvalidRequest, match="context"):
        generate(prompt="p", context=["a"])


def test_options_that_others_have_too_are_general_and_the_rest_is_kept() -> None:
    request = decode(
        options={"temperature": 0.5, "num_predict": 5, "stop": "x", "num_ctx": 2048, "num_gpu": 0}
    )
    assert (request.temperature, request.max_tokens, request.stop) == (0.5, 5, ("x",))
    assert (request.num_ctx, request.options) == (2048, {"num_gpu": 0})
    sent = json.loads(requests.encode(request, "m"))["options"]
    assert sent == {
        "temperature": 0.5, "num_predict": 5, "stop": ["x"], "num_ctx": 2048, "num_gpu": 0,
    }  # fmt: skip


def test_no_limit_stays_no_limit() -> None:
    request = decode(options={"num_predict": -1})
    assert request.max_tokens is None
    assert json.loads(requests.encode(request, "m"))["options"] == {"num_predict": -1}


def test_results_are_tied_to_their_calls_by_name_and_order() -> None:
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("f", "g", "f")]
    request = decode(
        messages=[
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "1", "tool_name": "g"},
            {"role": "tool", "content": "2", "tool_name": "f"},
            {"role": "tool", "content": "3"},
        ]
    )
    ids = [call.id for call in request.messages[1].tool_calls]
    assert len(set(ids)) == 3
    assert [m.tool_call_id for m in request.messages[2:]] == [ids[1], ids[0], ids[2]]
    assert [m.name for m in request.messages[2:]] == ["g", "f", "f"]


def test_a_prompt_is_never_cut_in_silence() -> None:
    for request in (
        ChatRequest(messages=(Message(role="user", content="x"),)),
        generate(raw=True, prompt="x"),
    ):
        sent = json.loads(requests.encode(request, "m"))
        assert (sent["truncate"], sent["shift"]) == (False, False)


@pytest.mark.parametrize(
    ("think", "sent"),
    [(True, True), (False, False), ("low", "low"), ("minimal", "low"), ("xhigh", "max")],
)
def test_efforts_are_put_in_the_daemons_words(think: Any, sent: Any) -> None:
    request = ChatRequest(messages=(Message(role="user", content="x"),), think=think)
    assert json.loads(requests.encode(request, "m"))["think"] == sent


def test_an_image_by_url_is_left_to_a_backend_that_fetches() -> None:
    image = Message(role="user", content=(ImagePart(url="https://x/y.png"),))
    with pytest.raises(UpstreamRefused) as caught:
        requests.encode(ChatRequest(messages=(image,)), "m")
    failure = classify.failure("local", caught.value, model="m", now_unix=0)
    assert classify.is_capability(failure)


@pytest.mark.parametrize(
    ("choice", "names"),
    [(None, ["f", "g"]), ("required", ["f", "g"]), ("none", None), ("g", ["g"])],
)
def test_a_tool_choice_is_made_by_what_is_offered(choice: str | None, names: Json) -> None:
    request = ChatRequest(tools=(Tool(name="f"), Tool(name="g")), tool_choice=choice)
    tools = json.loads(requests.encode(request, "m")).get("tools")
    assert (tools and [tool["function"]["name"] for tool in tools]) == names


def test_calls_go_back_with_their_arguments_as_objects() -> None:
    call = ToolCall(id="c", name="f", arguments='{"a":1}')
    request = ChatRequest(
        messages=(
            Message(role="assistant", tool_calls=(call,), reasoning="hm"),
            Message(role="tool", tool_call_id="c", content="1"),
        )
    )
    first, second = json.loads(requests.encode(request, "m"))["messages"]
    assert first["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert first["thinking"] == "hm"
    assert second == {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": "c"}


def test_a_failed_tool_is_told_in_its_result() -> None:
    result = Message(role="tool", content="no window", tool_call_id="c", is_error=True)
    (sent,) = json.loads(requests.encode(ChatRequest(messages=(result,)), "m"))["messages"]
    assert sent["content"] == "Error: no window"


def test_a_context_is_as_many_tokens_as_it_has_ids() -> None:
    def tokens(**fields: Json) -> int:
        return requests.peek(dumps({"model": "m", "prompt": "hi", **fields})).needs.prompt_tokens

    plain = tokens()
    assert 1000 <= tokens(context=[128_006] * 1000) - plain < 1010
    assert 1000 <= tokens(context=[7] * 1000) - plain < 1010
    assert tokens(context=None) - plain < 10


# --- embeddings ----------------------------------------------------------------------------


def test_embedding_requests_of_three_surfaces_become_one() -> None:
    native = embeddings.decode(dumps({"model": "m", "input": ["a", "b"], "dimensions": 4}))
    assert (native.texts, native.dimensions) == (["a", "b"], 4)
    legacy = embeddings.decode_legacy(dumps({"model": "m", "prompt": "a"}))
    assert legacy.texts == ["a"]
    assert embeddings.decode(dumps({"model": "m", "input": ""})).texts == []
    assert embeddings.decode_legacy(dumps({"model": "m"})).texts == []
    given = openai_embeddings.decode(
        dumps({"model": "m", "input": "a", "encoding_format": "base64"})
    )
    assert (given.texts, given.encoding) == (["a"], "base64")


def test_a_text_is_cut_only_for_who_asked_for_that() -> None:
    native, other = embeddings.decode, openai_embeddings.decode
    assert native(dumps({"model": "m", "input": "a"})).truncate
    assert not native(dumps({"model": "m", "input": "a", "truncate": False})).truncate
    assert not other(dumps({"model": "m", "input": "a"})).truncate


WRONG: list[Json] = [
    5,
    {},
    [5.5],
    [["a"]],
    [[1, 2], "a"],
    None,
    ["x"] * 10_001,
    [True],
    [[]],
    [1, -1],
]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("read", [openai_embeddings.decode, embeddings.decode])
def test_embedding_input_of_a_wrong_kind_is_refused(read: Any, value: Json) -> None:
    if value is None and read is embeddings.decode:
        return
    with pytest.raises(InvalidRequest) as caught:
        read(dumps({"model": "m", "input": value}))
    assert caught.value.field.startswith("input")

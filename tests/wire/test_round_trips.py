"""
What is written is read back: any answer through any dialect's writer and reader, any request
through any dialect's encoder and decoder, with texts that try to break out.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.errors import UpstreamNonsense
from localfirst.events import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.types import ChatRequest, ImagePart, Message, TextPart, Tool, ToolCall
from localfirst.wire.anthropic import answers as anthropic_answers
from localfirst.wire.anthropic import events as anthropic_events
from localfirst.wire.anthropic import requests as anthropic_requests
from localfirst.wire.ollama import answers as ollama_answers
from localfirst.wire.ollama import events as ollama_events
from localfirst.wire.ollama import requests as ollama_requests
from localfirst.wire.openai import answers as openai_answers
from localfirst.wire.openai import events as openai_events
from localfirst.wire.openai import requests as openai_requests
from tests.wire.support import dumps, hear, read_whole, reply_of, sliced

DIALECTS: dict[str, tuple[Any, Any, Any]] = {
    "openai": (openai_requests, openai_events, openai_answers),
    "anthropic": (anthropic_requests, anthropic_events, anthropic_answers),
    "ollama": (ollama_requests, ollama_events, ollama_answers),
}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)
GIVEN: dict[str, Any] = {"model": "m", "request_id": "req_1", "created": 5}

EVIL = [
    "\n\ndata: [DONE]\n\n",
    "\nevent: message_stop\ndata: {}\n\n",
    '{"done":true}\n',
    '","finish_reason":"stop"}',
    "\u2028\u2029\x85\x0b\x0c\x1c\x00",
    "[DONE]",
    '{"error":"x"}',
    '"error":',
    "\r\n\r\n",
    "😀é\\ud800\\",
]
texts = st.one_of(
    st.sampled_from(EVIL), st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1)
)
usages = st.builds(
    lambda prompt, completion: Usage(prompt_tokens=prompt, completion_tokens=completion),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
arguments = st.dictionaries(texts, st.none() | texts | st.integers(-5, 5), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """Reasoning, then text, then calls, in pieces; and a reason that fits."""
    events: list[Event] = [ReasoningDelta(text) for text in draw(st.lists(texts, max_size=3))]
    said = [TextDelta(text) for text in draw(st.lists(texts, max_size=4))]
    calls = draw(st.lists(arguments, max_size=3))
    if not said and not calls:
        said = [TextDelta("x")]
    events += said
    for index, call in enumerate(calls):
        whole = json.dumps(call)
        cut = draw(st.integers(0, len(whole)))
        events.append(ToolCallDelta(index, f"call_{index}", f"tool_{index}", whole[:cut]))
        if whole[cut:]:
            events.append(ToolCallDelta(index, "", "", whole[cut:]))
    reasons = [FinishReason.TOOL_CALLS] if calls else [FinishReason.STOP, FinishReason.LENGTH]
    return [*events, Finished(draw(st.sampled_from(reasons)), draw(usages))]


def summary(events: list[Event]) -> Any:
    reply = reply_of(events)
    calls = [(c.id, c.name, json.loads(c.arguments or "{}")) for c in reply.tool_calls]
    return (reply.text, reply.reasoning, calls, reply.finish_reason, reply.usage)


@each_dialect
@settings(max_examples=60, deadline=None)
@given(events=answers(), size=st.sampled_from([1, 2, 7, 64, 10**6]))
def test_any_streamed_answer_is_read_back(dialect: str, events: list[Event], size: int) -> None:
    _, reading, writing = DIALECTS[dialect]
    writer = writing.StreamWriter(**GIVEN, request=ChatRequest(include_usage=True))
    stream = b"".join(map(writer.write, events))
    heard = hear(reading.StreamReader(), sliced(stream, size))
    assert heard.error is None
    assert summary(heard.events) == summary(events)
    passed = hear(reading.StreamReader(relay=True), sliced(stream, size))
    assert passed.complete and passed.relayed == stream


@each_dialect
@settings(max_examples=40, deadline=None)
@given(events=answers())
def test_any_whole_answer_is_read_back(dialect: str, events: list[Event]) -> None:
    _, reading, writing = DIALECTS[dialect]
    body = writing.reply(reply_of(events), created=5)
    assert summary(read_whole(reading, body)) == summary(events)


@each_dialect
@settings(max_examples=25, deadline=None)
@given(events=answers(), data=st.data())
def test_any_cut_answer_is_never_complete(dialect: str, events: list[Event], data: Any) -> None:
    _, reading, writing = DIALECTS[dialect]
    writer = writing.StreamWriter(**GIVEN)
    stream = b"".join(map(writer.write, events))
    cut = data.draw(st.integers(0, len(stream.rstrip()) - 1))
    for relay in (False, True):
        heard = hear(reading.StreamReader(relay=relay), [stream[:cut]])
        assert heard.error is not None and not heard.complete


@each_dialect
@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("given", ['{"city":', '{"city":"Par', "[1", "{}}", "nonsense"])
def test_a_tool_call_that_is_not_whole_is_an_error_even_at_a_proper_end(
    dialect: str, relay: bool, given: str
) -> None:
    if dialect == "ollama":
        return  # calls are objects there; half of one is not JSON at all
    _, reading, writing = DIALECTS[dialect]
    events: list[Event] = [
        ToolCallDelta(0, "call_a", "f", given),
        Finished(FinishReason.TOOL_CALLS, Usage()),
    ]
    stream = b"".join(map(writing.StreamWriter(**GIVEN).write, events))
    for size in (1, 10**6):
        heard = hear(reading.StreamReader(relay=relay), sliced(stream, size))
        assert isinstance(heard.error, UpstreamNonsense)
        assert not heard.complete


@each_dialect
def test_a_tool_call_cut_by_the_token_limit_is_what_the_model_wrote(dialect: str) -> None:
    if dialect == "ollama":
        return
    _, reading, writing = DIALECTS[dialect]
    events: list[Event] = [
        ToolCallDelta(0, "call_a", "f", '{"city":'),
        Finished(FinishReason.LENGTH, Usage()),
    ]
    stream = b"".join(map(writing.StreamWriter(**GIVEN).write, events))
    heard = hear(reading.StreamReader(), [stream])
    assert heard.finished.reason is FinishReason.LENGTH


@each_dialect
def test_a_reply_with_a_cut_tool_call_is_still_json(dialect: str) -> None:
    events: list[Event] = [
        ToolCallDelta(0, "call_a", "f", '{"city":'),
        Finished(FinishReason.LENGTH, Usage()),
    ]
    writing = DIALECTS[dialect][2]
    assert json.loads(writing.reply(reply_of(events), created=5))
    stream = b"".join(map(writing.StreamWriter(**GIVEN).write, events))
    if dialect == "ollama":
        first = json.loads(stream.split(b"\n")[0])
        call = first["message"]["tool_calls"][0]["function"]
        assert call["arguments"] == {"arguments": '{"city":'}


@each_dialect
@pytest.mark.parametrize("relay", [False, True])
def test_an_answer_that_says_nothing_is_nonsense(dialect: str, relay: bool) -> None:
    _, reading, writing = DIALECTS[dialect]
    stream = writing.StreamWriter(**GIVEN).write(Finished(FinishReason.STOP, Usage()))
    heard = hear(reading.StreamReader(relay=relay), [stream])
    assert isinstance(heard.error, UpstreamNonsense)
    assert not heard.committed
    for ended in (FinishReason.LENGTH, FinishReason.CONTENT_FILTER):
        stream = writing.StreamWriter(**GIVEN).write(Finished(ended, Usage()))
        if dialect != "ollama" or ended is FinishReason.LENGTH:
            assert hear(reading.StreamReader(relay=relay), [stream]).complete


# --- requests --------------------------------------------------------------------------------

images = st.builds(
    ImagePart, media_type=st.just("image/png"), data=st.sampled_from(["iVBORw0KGgo=", "iVBORw0="])
)
parts = st.builds(lambda text, image: (TextPart(text=text), image), texts.filter(str.strip), images)
calls = st.builds(
    lambda index, given: ToolCall(
        id=f"call_{index}", name="f", arguments=json.dumps(given, separators=(",", ":"))
    ),
    st.integers(0, 9),
    arguments,
)
tools = st.lists(
    st.builds(
        Tool,
        name=st.sampled_from(["f", "g"]),
        description=st.just("d"),
        parameters=st.just({"type": "object", "properties": {"a": {"type": "string"}}}),
    ),
    max_size=2,
)


@st.composite
def conversations(draw: st.DrawFn) -> ChatRequest:
    """Turns that alternate, as every dialect can say them."""
    messages = [Message(role="system", content=draw(texts.filter(str.strip)))]
    called: set[str] = set()
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(parts | texts.filter(str.strip))))
        if draw(st.booleans()):
            call = draw(calls.filter(lambda one: one.id not in called))
            called.add(call.id)
            messages.append(Message(role="assistant", tool_calls=(call,)))
            messages.append(Message(role="tool", tool_call_id=call.id, content=draw(texts)))
        messages.append(Message(role="assistant", content=draw(texts.filter(str.strip))))
    return ChatRequest(
        model="m",
        messages=tuple(messages),
        tools=tuple(draw(tools)),
        temperature=draw(st.none() | st.floats(0, 1)),
        top_p=draw(st.none() | st.floats(0, 1)),
        max_tokens=draw(st.integers(1, 10_000)),
        stop=tuple(draw(st.lists(st.sampled_from(["a", "END"]), max_size=2))),
        schema=draw(st.none() | st.just({"type": "object"})),
        stream=draw(st.booleans()),
    )


def essence(request: ChatRequest) -> Any:
    turns = [
        (m.role, m.text, m.images, [(c.id, c.name, json.loads(c.arguments)) for c in m.tool_calls])
        for m in request.messages
    ]
    return (
        turns,
        [(t.name, t.description, t.parameters) for t in request.tools],
        request.temperature,
        request.top_p,
        request.max_tokens,
        request.stop,
        request.schema,
        request.stream,
    )


@each_dialect
@settings(max_examples=60, deadline=None)
@given(request=conversations())
def test_any_request_is_understood_as_it_was_meant(dialect: str, request: ChatRequest) -> None:
    asking = DIALECTS[dialect][0]
    body = asking.encode(request, "m")
    found = asking.decode(body)
    assert essence(found) == essence(request)
    look = asking.peek(body)
    assert (look.model, look.stream) == ("m", request.stream)
    assert look.needs.vision == any(message.images for message in request.messages)
    assert look.needs.tools == bool(request.tools)
    assert look.needs.schema == (request.schema is not None)


@settings(max_examples=60, deadline=None)
@given(
    body=st.dictionaries(
        st.sampled_from(
            ["model", "messages", "stream", "tools", "max_tokens", "stop", "options", "format",
             "input", "system", "thinking", "response_format", "tool_choice", "images", "prompt"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(-9, 9),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["role", "content", "type", "text", "function", "name", "source"]),
                inner,
                max_size=3,
            ),
            max_leaves=8,
        ),
    )
)  # fmt: skip
def test_no_shape_of_request_raises_anything_but_invalid_request(body: Any) -> None:
    from localfirst.errors import InvalidRequest
    from localfirst.wire.ollama import embeddings
    from localfirst.wire.openai import completions
    from localfirst.wire.openai import embeddings as openai_embeddings
    from localfirst.wire.openai.responses import requests as responses

    readers = [module[0].decode for module in DIALECTS.values()]
    readers += [module[0].peek for module in DIALECTS.values()]
    readers += [ollama_requests.decode_generate, completions.decode, responses.decode]
    readers += [embeddings.decode, embeddings.decode_legacy, openai_embeddings.decode]
    for read in readers:
        with contextlib.suppress(InvalidRequest):
            read(dumps(body))

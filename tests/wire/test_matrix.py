"""
Every surface over every backend: golden bytes of both directions.

For each of them a client's request is decoded and encoded for the backend, and a backend's
answer is read and written for the client. The expected bytes are in
`tests/data/wire_golden.json`; `LOCALFIRST_GOLDEN=write` writes that file anew, to be read
before it is committed.
"""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import Any

import pytest

from localfirst.errors import StreamInterrupted, UpstreamBroken, UpstreamRefused
from localfirst.types import ChatRequest, Json
from localfirst.wire.anthropic import answers as anthropic_answers
from localfirst.wire.anthropic import events as anthropic_events
from localfirst.wire.anthropic import requests as anthropic_requests
from localfirst.wire.ollama import answers as ollama_answers
from localfirst.wire.ollama import events as ollama_events
from localfirst.wire.ollama import requests as ollama_requests
from localfirst.wire.openai import answers as openai_answers
from localfirst.wire.openai import events as openai_events
from localfirst.wire.openai import requests as openai_requests
from localfirst.wire.openai.responses import answers as responses_answers
from localfirst.wire.openai.responses import requests as responses_requests
from tests.wire.support import DATA, dumps, hear, read_whole, reply_of, sliced

GOLDEN = DATA / "wire_golden.json"
PIXEL = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CASES = ("text", "stream", "tools", "image", "schema", "error", "cut")

SURFACES: dict[str, tuple[Any, ModuleType]] = {
    "openai": (openai_requests.decode, openai_answers),
    "responses": (responses_requests.decode, responses_answers),
    "anthropic": (anthropic_requests.decode, anthropic_answers),
    "ollama": (ollama_requests.decode, ollama_answers),
}
BACKENDS: dict[str, tuple[ModuleType, ModuleType]] = {
    "openai": (openai_requests, openai_events),
    "anthropic": (anthropic_requests, anthropic_events),
    "ollama": (ollama_requests, ollama_events),
}


# --- what clients send ---------------------------------------------------------------------


def openai_body(case: str) -> Json:
    body: dict[str, Json] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    if case == "text":
        body.update(temperature=0.5, max_tokens=9, stop=["END"], seed=7, top_p=0.9)
        body["messages"].insert(0, {"role": "system", "content": "be brief"})
    if case in {"stream", "tools", "error", "cut"}:
        body.update(stream=True, stream_options={"include_usage": True})
    if case == "tools":
        call = {"name": "weather", "arguments": '{"city":"Rome"}'}
        body["messages"] += [
            {"role": "assistant", "content": None,
             "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "user", "content": "and Paris?"},
        ]  # fmt: skip
        tool = {"name": "weather", "description": "the weather", "parameters": WEATHER}
        body.update(tools=[{"type": "function", "function": tool}], tool_choice="required")
    if case == "image":
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        body["messages"][0]["content"] = [{"type": "text", "text": "what is it?"}, image]
    if case == "schema":
        named = {"name": "number", "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body


def responses_body(case: str) -> Json:
    body: dict[str, Json] = {"model": "auto", "input": "hi"}
    if case == "text":
        body.update(instructions="be brief", temperature=0.5, max_output_tokens=9, top_p=0.9)
    if case in {"stream", "tools", "error", "cut"}:
        body["stream"] = True
    if case == "tools":
        body["input"] = [
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": "call_1", "name": "weather",
             "arguments": '{"city":"Rome"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            {"role": "user", "content": [{"type": "input_text", "text": "and Paris?"}]},
        ]  # fmt: skip
        body["tools"] = [
            {"type": "function", "name": "weather", "description": "the weather",
             "parameters": WEATHER}
        ]  # fmt: skip
        body["tool_choice"] = "required"
    if case == "image":
        body["input"] = [
            {"role": "user", "content": [
                {"type": "input_text", "text": "what is it?"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}]}
        ]  # fmt: skip
    if case == "schema":
        body["text"] = {"format": {"type": "json_schema", "name": "number", "schema": SCHEMA}}
    return body


def anthropic_body(case: str) -> Json:
    body: dict[str, Json] = {
        "model": "auto",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
    }
    if case == "text":
        body.update(system="be brief", temperature=0.5, stop_sequences=["END"], top_p=0.9)
    if case in {"stream", "tools", "error", "cut"}:
        body["stream"] = True
    if case == "tools":
        use = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}}
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}
        body["messages"] += [
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result, {"type": "text", "text": "and Paris?"}]},
        ]
        tool = {"name": "weather", "description": "the weather", "input_schema": WEATHER}
        body.update(tools=[tool], tool_choice={"type": "any"})
    if case == "image":
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        blocks = [{"type": "text", "text": "what is it?"}, {"type": "image", "source": source}]
        body["messages"][0]["content"] = blocks
    if case == "schema":
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return body


def ollama_body(case: str) -> Json:
    body: dict[str, Json] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    body["stream"] = case in {"stream", "tools", "error", "cut"}
    if case == "text":
        body["options"] = {
            "temperature": 0.5, "num_predict": 9, "stop": ["END"], "seed": 7, "top_p": 0.9,
            "num_ctx": 2048, "mirostat": 1,
        }  # fmt: skip
        body["keep_alive"] = "10m"
        body["messages"].insert(0, {"role": "system", "content": "be brief"})
    if case == "tools":
        call = {"name": "weather", "arguments": {"city": "Rome"}}
        body["messages"] += [
            {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
            {"role": "tool", "tool_name": "weather", "content": "sunny"},
            {"role": "user", "content": "and Paris?"},
        ]
        tool = {"name": "weather", "description": "the weather", "parameters": WEATHER}
        body["tools"] = [{"type": "function", "function": tool}]
    if case == "image":
        body["messages"][0].update(content="what is it?", images=[PIXEL])
    if case == "schema":
        body["format"] = SCHEMA
    return body


BODIES = {
    "openai": openai_body,
    "responses": responses_body,
    "anthropic": anthropic_body,
    "ollama": ollama_body,
}

# --- what backends answer ------------------------------------------------------------------


def sse(*payloads: Json, done: bool = True) -> bytes:
    frames = b"".join(b"data: " + dumps(payload) + b"\n\n" for payload in payloads)
    return frames + (b"data: [DONE]\n\n" if done else b"")


def openai_answer(case: str) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}

    def piece(reason: str | None = None, **delta: Json) -> Json:
        return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    def call(index: int, arguments: str, **head: Json) -> Json:
        function = {"name": "weather", "arguments": arguments} if head else {"arguments": arguments}
        return piece(tool_calls=[{"index": index, "function": function, **head}])

    match case:
        case "stream":
            return sse(
                piece(role="assistant", content=""),
                piece(reasoning_content="hm"),
                piece(content="Hel"),
                piece(content="lo"),
                piece("length"),
                {"choices": [], "usage": usage},
            )
        case "tools":
            return sse(
                call(0, "", id="call_a"),
                call(0, '{"city":'),
                call(0, '"Paris"}'),
                call(1, '{"city":"Oslo"}', id="call_b"),
                piece("tool_calls"),
                {"choices": [], "usage": usage},
            )
        case "error":
            return sse({"error": {"message": "overloaded", "code": 503}})
        case "cut":
            return sse(piece(content="Hel"), done=False)
    text = '{"n":1}' if case == "schema" else "Hello"
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return dumps({"id": "c", "choices": [choice], "usage": usage})


def anthropic_answer(case: str) -> bytes:
    usage = {"input_tokens": 9, "output_tokens": 1}

    def frames(*payloads: Json, ended: str = "") -> bytes:
        given: list[Json] = [{"type": "message_start", "message": {"usage": usage}}, *payloads]
        if ended:
            final = {"stop_reason": ended, "stop_sequence": None}
            given.append({"type": "message_delta", "delta": final, "usage": {"output_tokens": 5}})
            given.append({"type": "message_stop"})
        return b"".join(
            b"event: " + item["type"].encode() + b"\ndata: " + dumps(item) + b"\n\n"
            for item in given
        )

    def start(index: int, **block: Json) -> Json:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, **given: Json) -> Json:
        return {"type": "content_block_delta", "index": index, "delta": given}

    match case:
        case "stream":
            return frames(
                start(0, type="thinking", thinking=""),
                delta(0, type="thinking_delta", thinking="hm"),
                delta(0, type="signature_delta", signature="sig"),
                {"type": "content_block_stop", "index": 0},
                start(1, type="text", text=""),
                {"type": "ping"},
                delta(1, type="text_delta", text="Hel"),
                delta(1, type="text_delta", text="lo"),
                ended="max_tokens",
            )
        case "tools":
            return frames(
                start(0, type="tool_use", id="call_a", name="weather", input={}),
                delta(0, type="input_json_delta", partial_json=""),
                delta(0, type="input_json_delta", partial_json='{"city":'),
                delta(0, type="input_json_delta", partial_json='"Paris"}'),
                start(1, type="tool_use", id="call_b", name="weather", input={}),
                delta(1, type="input_json_delta", partial_json='{"city":"Oslo"}'),
                ended="tool_use",
            )
        case "error":
            error = {"type": "overloaded_error", "message": "Overloaded"}
            return b"event: error\ndata: " + dumps({"type": "error", "error": error}) + b"\n\n"
        case "cut":
            return frames(start(0, type="text", text=""), delta(0, type="text_delta", text="Hel"))
    text = '{"n":1}' if case == "schema" else "Hello"
    block = {"type": "text", "text": text}
    ended = {
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 5},
    }
    return dumps({"type": "message", "role": "assistant", "content": [block], **ended})


def ollama_answer(case: str) -> bytes:
    def line(done: str = "", **message: Json) -> bytes:
        body = {"message": {"role": "assistant", "content": "", **message}, "done": bool(done)}
        if done:
            body |= {"done_reason": done, "total_duration": 50, "load_duration": 4,
                     "prompt_eval_count": 9, "prompt_eval_duration": 6, "eval_count": 5,
                     "eval_duration": 30}  # fmt: skip
        return dumps({"model": "m", "created_at": "2026-01-01T00:00:00Z", **body}) + b"\n"

    def call(identifier: str, city: str) -> Json:
        function = {"index": 0, "name": "weather", "arguments": {"city": city}}
        return {"id": identifier, "function": function}

    match case:
        case "stream":
            pieces = (line(thinking="hm"), line(content="Hel"), line(content="lo"), line("length"))
            return b"".join(pieces)
        case "tools":
            calls = [call("call_a", "Paris"), call("call_b", "Oslo")]
            return line(tool_calls=calls) + line("stop")
        case "error":
            return dumps({"error": "model runner has unexpectedly stopped"}) + b"\n"
        case "cut":
            return line(content="Hel")
    return line("stop", content='{"n":1}' if case == "schema" else "Hello")


ANSWERS = {"openai": openai_answer, "anthropic": anthropic_answer, "ollama": ollama_answer}


# --- both directions -----------------------------------------------------------------------


def sent(surface: str, backend: str, case: str) -> str:
    request: ChatRequest = SURFACES[surface][0](dumps(BODIES[surface](case)))
    body: bytes = BACKENDS[backend][0].encode(request, "big-model")
    return body.decode()


def answered(surface: str, backend: str, case: str, size: int = 10**6) -> str:
    request: ChatRequest = SURFACES[surface][0](dumps(BODIES[surface](case)))
    writing, reading = SURFACES[surface][1], BACKENDS[backend][1]
    raw = ANSWERS[backend](case)
    if not request.stream:
        events = read_whole(reading, raw)
        reply: bytes = writing.reply(reply_of(events, model="auto"), created=1_700_000_000)
        return reply.decode()
    writer = writing.StreamWriter(
        model="auto", request_id="req_1", created=1_700_000_000, request=request
    )
    heard = hear(reading.StreamReader(), sliced(raw, size))
    written = b"".join(writer.write(event) for event in heard.events)
    if case == "error":
        assert isinstance(heard.error, UpstreamRefused)
        assert written == b""
    elif case == "cut":
        assert isinstance(heard.error, UpstreamBroken)
    else:
        assert heard.error is None
    if heard.error is not None:
        written += writer.error(StreamInterrupted("the answer was cut"))
    return written.decode()


ALL = [
    pytest.param(surface, backend, case, id=f"{surface}-{backend}-{case}")
    for surface in SURFACES
    for backend in BACKENDS
    for case in CASES
]


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, str]]:
    if os.environ.get("LOCALFIRST_GOLDEN") == "write":
        found = {
            "/".join(case.values): {"sent": sent(*case.values), "answered": answered(*case.values)}  # type: ignore[arg-type]
            for case in ALL
        }
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    loaded: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text("utf-8"))
    return loaded


@pytest.mark.parametrize(("surface", "backend", "case"), ALL)
def test_a_request_reaches_the_backend_in_its_own_words(
    golden: dict[str, dict[str, str]], surface: str, backend: str, case: str
) -> None:
    assert sent(surface, backend, case) == golden[f"{surface}/{backend}/{case}"]["sent"]


@pytest.mark.parametrize(("surface", "backend", "case"), ALL)
@pytest.mark.parametrize("size", [1, 10**6])
def test_an_answer_reaches_the_client_in_its_own_words(
    golden: dict[str, dict[str, str]], surface: str, backend: str, case: str, size: int
) -> None:
    expected = golden[f"{surface}/{backend}/{case}"]["answered"]
    assert answered(surface, backend, case, size) == expected


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("case", CASES)
def test_the_client_cannot_tell_which_backend_answered(
    golden: dict[str, dict[str, str]], surface: str, case: str
) -> None:
    """Thinking's signature and durations aside, the bytes are the same over every backend."""
    if case in {"stream", "tools"} or surface == "ollama":
        return
    answers = {golden[f"{surface}/{backend}/{case}"]["answered"] for backend in BACKENDS}
    assert len(answers) == 1

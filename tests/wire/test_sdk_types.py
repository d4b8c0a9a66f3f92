"""
What we write, read by the SDKs that people use: every event and every answer must validate
against the published types of the `openai`, `anthropic` and `ollama` packages.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent
from ollama import ChatResponse, EmbedResponse, GenerateResponse
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from localfirst.errors import CascadeExhausted, ContextTooLong, InvalidRequest, StreamInterrupted
from localfirst.events import (
    Event,
    Finished,
    FinishReason,
    Opened,
    Progress,
    ReasoningDelta,
    Relayed,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.types import Attempt, ChatRequest, Message, Tool
from localfirst.wire.anthropic import answers as anthropic
from localfirst.wire.ollama import answers as ollama
from localfirst.wire.ollama import embeddings as ollama_embeddings
from localfirst.wire.openai import answers as openai
from localfirst.wire.openai import completions, embeddings
from localfirst.wire.openai.responses import answers as responses
from tests.wire.support import lines, payloads, reply_of

USAGE = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4, reasoning_tokens=2)
TEXT: list[Event] = [
    Opened(200),
    Progress("pulling", "llama2:7b", 42, 100),
    TextDelta("Hel"),
    TextDelta('lo\n\ndata: [DONE]\n\n{"done":true}\u2028'),
    Finished(FinishReason.STOP, USAGE),
]
TOOLS: list[Event] = [
    ReasoningDelta("let me "),
    ReasoningDelta("see", "sig"),
    TextDelta("Looking."),
    ToolCallDelta(0, "call_a", "weather", ""),
    ToolCallDelta(0, "", "", '{"city":'),
    ToolCallDelta(0, "", "", '"Paris"}'),
    ToolCallDelta(1, "call_b", "clock", "{}"),
    Finished(FinishReason.TOOL_CALLS, USAGE),
]
REQUEST = ChatRequest(
    messages=(Message(role="system", content="s"), Message(role="user", content="u")),
    tools=(Tool(name="weather", description="d", parameters={"type": "object"}),),
    include_usage=True,
    schema={"type": "object"},
)
STREAMS = pytest.mark.parametrize("events", [TEXT, TOOLS], ids=["text", "tools"])
GIVEN: dict[str, Any] = {"model": "m", "request_id": "req_1", "created": 1_700_000_000}
SPOKEN = 'Hello\n\ndata: [DONE]\n\n{"done":true}\u2028'


def write(writer: Any, events: list[Event]) -> bytes:
    return b"".join(writer.write(event) for event in events)


@contextmanager
def serving(stream: bytes) -> Iterator[str]:
    """A loopback server that answers every POST with *stream*."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(stream)))
            self.end_headers()
            self.wfile.write(stream)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def exhausted() -> CascadeExhausted:
    return CascadeExhausted(
        "nothing answered",
        attempts=[Attempt(provider="groq", model="x", outcome="rate_limit", status=429)],
        skipped=[("openai", "no key")],
    )


# --- OpenAI ------------------------------------------------------------------------------


@STREAMS
def test_openai_chunks_validate_and_add_up(events: list[Event]) -> None:
    stream = write(openai.StreamWriter(**GIVEN, request=REQUEST), events)
    *given, done = payloads(stream)
    assert done == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(payload, strict=True) for payload in given]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:] if chunk.choices)
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None and usage.total_tokens == 14
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 4
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    if events is TEXT:
        assert said == SPOKEN
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert b": pulling llama2:7b 42%\n\n" in stream
    else:
        assert chunks[-2].choices[0].finish_reason == "tool_calls"
        pieces = [p for c in chunks if c.choices for p in c.choices[0].delta.tool_calls or []]
        first = [p.function.arguments or "" for p in pieces if p.index == 0 and p.function]
        assert "".join(first) == '{"city":"Paris"}'
        assert [p.id for p in pieces if p.id] == ["call_a", "call_b"]


def test_openai_usage_comes_only_when_asked_for() -> None:
    stream = write(openai.StreamWriter(**GIVEN), TEXT)
    assert b'"usage"' not in stream


@STREAMS
def test_an_openai_reply_validates(events: list[Event]) -> None:
    found = ChatCompletion.model_validate_json(
        openai.reply(reply_of(events), created=1), strict=True
    )
    choice = found.choices[0]
    assert found.usage is not None and found.usage.completion_tokens == 5
    if events is TOOLS:
        assert choice.finish_reason == "tool_calls"
        assert [call.id for call in choice.message.tool_calls or []] == ["call_a", "call_b"]
        assert choice.message.model_extra is not None
        assert choice.message.model_extra["reasoning_content"] == "let me see"
    else:
        assert choice.message.content == SPOKEN


def test_logprobs_reach_the_client() -> None:
    item = {"token": "d", "logprob": -1.5, "bytes": [100], "top_logprobs": []}
    events: list[Event] = [TextDelta("d", (item,)), Finished()]
    chunk = payloads(write(openai.StreamWriter(**GIVEN), events))[0]
    found = ChatCompletionChunk.model_validate(chunk, strict=True).choices[0].logprobs
    assert found is not None and found.content is not None
    assert found.content[0].logprob == -1.5
    whole = ChatCompletion.model_validate_json(
        openai.reply(reply_of(events), created=1), strict=True
    )
    assert whole.choices[0].logprobs is not None


def test_completions_validate() -> None:
    *given, done = payloads(write(completions.StreamWriter(**GIVEN, include_usage=True), TEXT))
    assert done == "[DONE]"
    # The published type wants a reason in every chunk, which no server sends.
    chunks = [Completion.model_construct(**payload) for payload in given]
    Completion.model_validate(given[-1])
    Completion.model_validate(given[-2])
    assert "".join(c["text"] for payload in given for c in payload["choices"]) == SPOKEN
    assert [c["finish_reason"] for c in given[-2]["choices"]] == ["stop"]
    assert chunks[-1].usage is not None
    whole = Completion.model_validate_json(completions.reply(reply_of(TEXT), created=1))
    assert whole.choices[0].text == SPOKEN


@STREAMS
def test_responses_events_validate_in_order(events: list[Event]) -> None:
    stream = write(responses.StreamWriter(**GIVEN, request=REQUEST), events)
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    found = [adapter.validate_python(payload) for payload in payloads(stream)]
    kinds = [event.type for event in found]
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    final = found[-1].response
    assert final.usage.total_tokens == 14
    if events is TEXT:
        assert final.output_text == SPOKEN
        assert kinds[2:5] == [
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
        ]
        assert kinds[-4:-1] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ]
    else:
        assert [item.type for item in final.output] == [
            "reasoning",
            "message",
            "function_call",
            "function_call",
        ]
        assert final.output[2].arguments == '{"city":"Paris"}'
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done")


def test_a_response_validates_whole_and_when_it_is_cut_short() -> None:
    whole = Response.model_validate_json(
        responses.reply(reply_of(TOOLS), created=1, request=REQUEST)
    )
    assert whole.status == "completed"
    assert whole.tools[0].type == "function"
    short: list[Event] = [TextDelta("a"), Finished(FinishReason.LENGTH, USAGE)]
    found = Response.model_validate_json(responses.reply(reply_of(short), created=1))
    assert found.status == "incomplete"
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_validate(encoding: str) -> None:
    body = embeddings.answer([[0.5, -1.0]], model="e", prompt_tokens=3, encoding=encoding)
    found = CreateEmbeddingResponse.model_validate_json(body) if encoding == "float" else None
    if found is not None:
        assert found.data[0].embedding == [0.5, -1.0]
    read = embeddings.read(body, 1)
    assert (read, read.prompt_tokens, read.model) == ([[0.5, -1.0]], 3, "e")


# --- Anthropic ---------------------------------------------------------------------------


@STREAMS
def test_anthropic_events_validate_and_keep_their_order(events: list[Event]) -> None:
    stream = write(anthropic.StreamWriter(**GIVEN), events)
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    given = payloads(stream)
    found = [adapter.validate_python(item) for item in given if item["type"] != "ping"]
    kinds = [event.type for event in found]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert [item["type"] for item in given].count("ping") == 1
    open_index, expected = None, 0
    for event in found[1:-2]:
        if event.type == "content_block_start":
            assert open_index is None and event.index == expected
            open_index, expected = event.index, expected + 1
        elif event.type == "content_block_stop":
            assert event.index == open_index
            open_index = None
        else:
            assert event.index == open_index
    assert open_index is None
    assert found[-2].usage.output_tokens == 5
    assert found[-2].usage.input_tokens == 5
    assert found[-2].usage.cache_read_input_tokens == 4
    assert found[-2].delta.stop_reason == ("end_turn" if events is TEXT else "tool_use")
    for block in stream.strip().split(b"\n\n"):
        if not block.startswith(b":"):
            name, data = block.split(b"\n")
            kind = json.loads(data.removeprefix(b"data: "))["type"]
            assert name.removeprefix(b"event: ").decode() == kind


def test_the_anthropic_client_accumulates_what_we_stream() -> None:
    import anthropic as sdk

    stream = write(anthropic.StreamWriter(**GIVEN), TOOLS)

    with (
        serving(stream) as url,
        sdk.Anthropic(api_key="x", base_url=url, max_retries=0) as client,
        client.messages.stream(
            model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}]
        ) as running,
    ):
        message = running.get_final_message()
    thinking, text, first, second = message.content
    assert (thinking.type, text.type) == ("thinking", "text")
    assert thinking.signature == "sig"
    assert (first.type, second.type) == ("tool_use", "tool_use")
    assert (first.id, first.input) == ("call_a", {"city": "Paris"})
    assert (second.name, second.input) == ("clock", {})
    assert message.stop_reason == "tool_use"


def test_interleaved_tool_calls_become_blocks_one_after_the_other() -> None:
    events: list[Event] = [
        ToolCallDelta(0, "a", "f", ""),
        ToolCallDelta(1, "b", "g", '{"y":'),
        ToolCallDelta(0, "", "", '{"x":1}'),
        ToolCallDelta(1, "", "", "2}"),
        Finished(FinishReason.TOOL_CALLS),
    ]
    given = payloads(write(anthropic.StreamWriter(**GIVEN), events))
    blocks: dict[int, str] = {}
    open_index = -1
    for item in given:
        if item["type"] == "content_block_start":
            open_index = item["index"]
            blocks[open_index] = ""
        elif item["type"] == "content_block_delta":
            assert item["index"] == open_index
            blocks[open_index] += item["delta"]["partial_json"]
    assert list(map(json.loads, blocks.values())) == [{"x": 1}, {"y": 2}]


@STREAMS
def test_an_anthropic_reply_validates(events: list[Event]) -> None:
    body = anthropic.reply(reply_of(events, reasoning_signature="sig"))
    message = AnthropicMessage.model_validate_json(body)
    assert message.usage.output_tokens == 5
    if events is TOOLS:
        assert [block.type for block in message.content] == [
            "thinking", "text", "tool_use", "tool_use"
        ]  # fmt: skip
        assert message.stop_reason == "tool_use"
    else:
        assert message.stop_reason == "end_turn"


def test_a_stop_sequence_is_said() -> None:
    events: list[Event] = [TextDelta("a"), Finished(FinishReason.STOP, USAGE, "END")]
    given = payloads(write(anthropic.StreamWriter(**GIVEN), events))
    assert given[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


# --- Ollama ------------------------------------------------------------------------------


@STREAMS
@pytest.mark.parametrize("generate", [False, True], ids=["chat", "generate"])
def test_ollama_lines_validate(events: list[Event], generate: bool) -> None:
    ticks = iter(range(100))
    writer = ollama.StreamWriter(
        model="m", created=0, generate=generate, now_unix=lambda: 0.25 * next(ticks)
    )
    given = lines(write(writer, events))
    kind: Any = GenerateResponse if generate else ChatResponse
    found = [kind.model_validate(item) for item in given]
    last = found[-1]
    assert [item.done for item in found] == [False] * (len(found) - 1) + [True]
    assert (last.done_reason, last.prompt_eval_count, last.eval_count) == ("stop", 9, 5)
    assert last.total_duration > 0 and last.created_at.endswith("Z")
    if generate:
        said = "".join(item.response for item in found)
    else:
        said = "".join(item.message.content or "" for item in found)
        calls = [call for item in found for call in item.message.tool_calls or []]
        if events is TOOLS:
            assert [call.function.name for call in calls] == ["weather", "clock"]
            assert calls[0].function.arguments == {"city": "Paris"}
            assert "".join(item.message.thinking or "" for item in found) == "let me see"
    assert said == (SPOKEN if events is TEXT else "Looking.")


@STREAMS
def test_an_ollama_reply_validates(events: list[Event]) -> None:
    found = ChatResponse.model_validate_json(
        ollama.reply(reply_of(events), created=5.5, elapsed_s=2.0)
    )
    assert found.done and found.total_duration == 2_000_000_000
    assert found.message.content == (SPOKEN if events is TEXT else "Looking.")


def test_timings_of_the_daemon_are_kept() -> None:
    timings = {"total_duration": 7, "load_duration": 1, "eval_duration": 3}
    end = Finished(FinishReason.LENGTH, USAGE, "", timings)
    (last,) = lines(ollama.StreamWriter(model="m", created=0).write(end))
    assert (last["total_duration"], last["load_duration"], last["eval_duration"]) == (7, 1, 3)
    assert last["done_reason"] == "length"


@pytest.mark.parametrize("unload", [False, True])
def test_loading_answers_as_the_daemon_does(unload: bool) -> None:
    body = json.loads(ollama.loaded("m", created=0, unload=unload))
    assert body == {
        "model": "m",
        "created_at": "1970-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "unload" if unload else "load",
    }


def test_ollama_embeddings_validate() -> None:
    body = ollama_embeddings.answer([[0.5, 1.0]], model="m", prompt_tokens=2, elapsed_s=1)
    found = EmbedResponse.model_validate_json(body)
    assert [list(vector) for vector in found.embeddings] == [[0.5, 1.0]]
    assert ollama_embeddings.read(body, 1) == [[0.5, 1.0]]
    assert json.loads(ollama_embeddings.answer_legacy([])) == {"embedding": []}


# --- failures ----------------------------------------------------------------------------

WRITERS = {
    "openai": openai.StreamWriter,
    "completions": completions.StreamWriter,
    "responses": responses.StreamWriter,
    "anthropic": anthropic.StreamWriter,
    "ollama": ollama.StreamWriter,
}
FALSE_ENDS = (
    b"[DONE]",
    b"message_stop",
    b'"done":true',
    b"response.completed",
    b'finish_reason":"',
)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_a_failed_stream_has_an_error_and_no_false_end(writer: Any) -> None:
    made = writer(**GIVEN)
    stream = write(made, [TextDelta("a")]) + made.error(StreamInterrupted("the answer was cut"))
    assert b"the answer was cut" in stream
    assert not any(end in stream for end in FALSE_ENDS)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_relayed_bytes_are_written_as_they_are(writer: Any) -> None:
    assert writer(**GIVEN).write(Relayed(b"\x00 anything")) == b"\x00 anything"


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_progress_text_cannot_break_out_of_its_comment(writer: Any) -> None:
    written = writer(**GIVEN).write(Progress("pulling", "x\n\ndata: [DONE]\r\n\x1b[2J"))
    assert b"\ndata: [DONE]" not in written and b"\x1b" not in written and b"\r" not in written


def test_the_report_of_an_exhausted_ladder_is_in_every_shape() -> None:
    error = json.loads(openai.error_body(exhausted(), request_id="req_1"))["error"]
    assert error["type"] == "server_error" and error["code"] == "cascade-exhausted"
    assert error["attempts"][0]["outcome"] == "rate_limit"
    assert error["attempts"][1] == {"provider": "openai", "outcome": "skipped", "message": "no key"}
    other = json.loads(anthropic.error_body(exhausted(), request_id="req_1"))
    assert (other["type"], other["request_id"]) == ("error", "req_1")
    assert other["error"]["type"] == "overloaded_error"
    assert len(other["error"]["attempts"]) == 2
    third = json.loads(ollama.error_body(exhausted(), request_id="req_1"))
    assert third["error"] == "nothing answered" and third["hint"]


def test_errors_carry_what_clients_act_upon() -> None:
    wrong = json.loads(openai.error_body(InvalidRequest("bad", field="n"), request_id="r"))["error"]
    assert (wrong["type"], wrong["param"]) == ("invalid_request_error", "n")
    long = json.loads(openai.error_body(ContextTooLong("long"), request_id="r"))["error"]
    assert long["code"] == "context_length_exceeded"
    # Anthropic's own words: "prompt is too long: 213462 tokens > 200000 maximum".
    told = json.loads(anthropic.error_body(ContextTooLong("9 of 8"), request_id="r"))["error"]
    assert (told["type"], told["message"]) == (
        "invalid_request_error",
        "prompt is too long: 9 of 8",
    )
    assert long["type"] == "invalid_request_error"
    named = json.loads(anthropic.error_body(InvalidRequest("bad", field="n"), request_id="r"))
    assert named["error"]["type"] == "invalid_request_error"

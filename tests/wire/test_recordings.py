"""
Answers recorded from a real Ollama 0.33 (native, `/v1` and `/v1/messages`): read rightly, and
what we write in its place has the same shape.

`tests/data/ollama_recordings.jsonl`: one recording a line; the models' weights were random, so
the texts are noise and everything around them is real.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.events import Event, Finished, FinishReason, TextDelta, ToolCallDelta, Usage
from localfirst.types import Json
from localfirst.wire.anthropic import answers as anthropic_answers
from localfirst.wire.anthropic import events as anthropic
from localfirst.wire.ollama import answers as ollama_answers
from localfirst.wire.ollama import embeddings as ollama_embeddings
from localfirst.wire.ollama import events as ollama
from localfirst.wire.ollama import requests as ollama_requests
from localfirst.wire.openai import answers as openai_answers
from localfirst.wire.openai import embeddings as openai_embeddings
from localfirst.wire.openai import events as openai
from localfirst.wire.openai import requests as openai_requests
from tests.wire.support import DATA, dumps, hear, lines, payloads, read_whole, reply_of, sliced

RECORDED: dict[str, Any] = {
    item["name"]: item
    for item in map(json.loads, (DATA / "ollama_recordings.jsonl").read_text("utf-8").splitlines())
}
GIVEN: dict[str, Any] = {"model": "ascii", "request_id": "req_1", "created": 1_767_225_607}


def bytes_of(name: str) -> bytes:
    body: str = RECORDED[name]["body"]
    return body.encode()


STREAMS = [
    ("inference/chat_stream", "length", 28, 12),
    ("inference/chat_stream_go_template", "length", 28, 12),
    ("inference/chat_done_stop", "stop", 28, 22),
    ("inference/generate_stream", "length", 31, 12),
    ("inference/logprobs_chat_stream", "length", 28, 3),
]
REPLIES = [
    ("inference/chat", "length", 28, 8),
    ("inference/chat_done_length", "length", 28, 1),
    ("inference/chat_done_stop_no_stream", "stop", 28, 22),
    ("inference/chat_num_predict_0", "length", 28, 1),
    ("inference/format_schema", "stop", 28, 19),
    ("inference/generate", "length", 31, 8),
    ("inference/think_supported", "length", 28, 8),
    ("inference/tools_history", "length", 317, 8),
]


def said_in(name: str) -> str:
    found = lines(bytes_of(name))
    return "".join(
        (line.get("message") or {}).get("content") or line.get("response", "") for line in found
    )


@pytest.mark.parametrize(("name", "reason", "prompt", "completion"), STREAMS)
@pytest.mark.parametrize("size", [1, 10**6])
def test_native_streams_are_read(
    name: str, reason: str, prompt: int, completion: int, size: int
) -> None:
    heard = hear(ollama.StreamReader(), sliced(bytes_of(name), size))
    assert heard.error is None
    assert heard.text == said_in(name)
    assert heard.finished.reason == reason
    usage = heard.finished.usage
    assert usage == Usage(prompt_tokens=prompt, completion_tokens=completion)
    assert heard.finished.timings["total_duration"] > 0


@pytest.mark.parametrize(("name", "reason", "prompt", "completion"), REPLIES)
def test_native_replies_are_read(name: str, reason: str, prompt: int, completion: int) -> None:
    events = read_whole(ollama, bytes_of(name))
    reply = reply_of(events)
    assert reply.text == said_in(name)
    assert reply.finish_reason == reason
    assert reply.usage == Usage(prompt_tokens=prompt, completion_tokens=completion)


@pytest.mark.parametrize("name", ["inference/repeat_guard", "inference/generate_bytes_stream"])
def test_a_stream_that_just_ends_is_cut_though_it_ended_cleanly(name: str) -> None:
    heard = hear(ollama.StreamReader(), [bytes_of(name)])
    assert isinstance(heard.error, UpstreamBroken)
    assert heard.text


@pytest.mark.parametrize(
    "name",
    [
        "inference/repeat_guard_no_stream",
        "inference/repeat_guard_chat",
        "inference/generate_bytes_no_stream",
    ],
)
def test_a_reply_that_is_not_done_is_cut(name: str) -> None:
    with pytest.raises(UpstreamBroken):
        read_whole(ollama, bytes_of(name))


def test_an_error_line_ends_a_stream() -> None:
    heard = hear(ollama.StreamReader(), [bytes_of("inference/chat_bytes_stream")])
    assert isinstance(heard.error, UpstreamRefused)
    assert b"llama-server chat error" in heard.error.body
    assert heard.text == "T\x18z"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("inference/chat_load_empty_messages", "load"),
        ("inference/generate_load", "load"),
        ("inference/chat_unload", "unload"),
        ("inference/generate_unload", "unload"),
    ],
)
def test_loading_and_unloading_is_no_empty_answer(name: str, reason: str) -> None:
    (finished,) = read_whole(ollama, bytes_of(name))
    assert isinstance(finished, Finished)
    assert finished.timings["done_reason"] == reason
    ours = json.loads(
        ollama_answers.loaded(
            "ascii", created=0, generate="generate" in name, unload=reason == "unload"
        )
    )
    theirs = json.loads(bytes_of(name))
    assert {**ours, "created_at": ""} == {**theirs, "created_at": ""}


def test_logprobs_are_kept() -> None:
    heard = hear(ollama.StreamReader(), [bytes_of("inference/logprobs_chat_stream")])
    given = [event.logprobs for event in heard.events if isinstance(event, TextDelta)]
    assert all(probs and "logprob" in probs[0] for probs in given)


# --- its OpenAI and Anthropic skins, as any other backend -----------------------------------


@pytest.mark.parametrize("name", ["openai/chat_stream", "openai/chat_stream_usage"])
@pytest.mark.parametrize("relay", [False, True])
def test_its_openai_stream_is_read_and_relayed(name: str, relay: bool) -> None:
    raw = bytes_of(name)
    heard = hear(openai.StreamReader(relay=relay), sliced(raw, 50))
    assert heard.complete
    if relay:
        assert heard.relayed == raw
    else:
        assert heard.text == "dVw-FNCL"
        assert heard.finished.reason is FinishReason.LENGTH


def test_the_usage_chunk_is_taken_out_for_a_client_that_did_not_ask() -> None:
    raw = bytes_of("openai/chat_stream_usage")
    for size in (1, 10**6):
        heard = hear(openai.StreamReader(relay=True, strip_usage=True), sliced(raw, size))
        assert heard.complete
        assert b'"usage"' not in heard.relayed and b'"choices":[]' not in heard.relayed
        assert heard.relayed.endswith(b"data: [DONE]\n\n")
        last: Any = heard.events[-1]
        assert last.usage == Usage(prompt_tokens=28, completion_tokens=8)


def test_its_openai_reply_is_read_and_relayed() -> None:
    raw = bytes_of("openai/chat")
    assert reply_of(openai.read_reply(raw)).text == "dVw-FNCL"
    (relayed,) = openai.read_reply(raw, relay=True)
    assert relayed.data == raw  # type: ignore[union-attr]
    probs = openai.read_reply(bytes_of("openai/chat_logprobs"))[0]
    assert isinstance(probs, TextDelta) and len(probs.logprobs) == 2


def test_its_anthropic_answers_are_read() -> None:
    assert reply_of(anthropic.read_reply(bytes_of("anthropic/messages"))).text == "dVw-FN"
    for size in (1, 10**6):
        heard = hear(anthropic.StreamReader(), sliced(bytes_of("anthropic/messages_stream"), size))
        assert (heard.text, heard.error) == ("dVw-FN", None)
        assert heard.finished.reason is FinishReason.LENGTH
        assert heard.finished.usage == Usage(prompt_tokens=28, completion_tokens=6)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (openai.read_reply, "openai/chat_missing_model"),
        (anthropic.read_reply, "anthropic/messages_missing_model"),
    ],
)
def test_an_error_body_with_a_success_status_is_still_an_error(read: Any, name: str) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        read(bytes_of(name))
    assert caught.value.in_band


@pytest.mark.parametrize(
    "body", [b"", b"<html>busy</html>", b"null", b"[]", b"{}", b'"ok"', b'{"choices":[]}', b"{"]
)
@pytest.mark.parametrize(
    "module", [openai, anthropic, ollama], ids=["openai", "anthropic", "ollama"]
)
def test_a_reply_that_means_nothing_is_nonsense(module: Any, body: bytes) -> None:
    with pytest.raises((UpstreamNonsense, UpstreamBroken)):
        read_whole(module, body)
    heard = hear(module.StreamReader(), [body])
    assert heard.error is not None and not heard.complete and not heard.committed


def test_embeddings_are_read_in_all_their_shapes() -> None:
    native = ollama_embeddings.read(bytes_of("inference/embed_batch"), 2)
    assert native.prompt_tokens == 7
    assert ollama_embeddings.read(bytes_of("inference/embed_empty"), 0) == []
    floats = openai_embeddings.read(bytes_of("openai/embeddings"), 1)
    packed = openai_embeddings.read(bytes_of("openai/embeddings_base64"), 2)
    assert len(floats[0]) == len(packed[1]) == 32
    assert packed[0] == pytest.approx(native[0], rel=1e-6)
    with pytest.raises(UpstreamRefused):
        ollama_embeddings.read(bytes_of("inference/chat_unload_missing"), 1)
    for body, count in ((b"{}", 1), (bytes_of("openai/embeddings"), 5)):
        with pytest.raises(UpstreamNonsense):
            openai_embeddings.read(body, count)


# --- our answers have the shape of theirs ---------------------------------------------------


def keys(value: Json) -> Json:
    """The shape of a value: keys in order, all the way down."""
    if isinstance(value, dict):
        return {name: keys(item) for name, item in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__


def test_our_native_lines_look_like_the_daemons() -> None:
    for name, generate in (("inference/chat_stream", False), ("inference/generate_stream", True)):
        theirs = lines(bytes_of(name))
        events: list[Event] = hear(ollama.StreamReader(), [bytes_of(name)]).events
        writer = ollama_answers.StreamWriter(model="ascii", created=0, generate=generate)
        ours = lines(b"".join(map(writer.write, events)))
        assert len(ours) == len(theirs)
        assert [list(line) for line in ours] == [list(line) for line in theirs]
        assert [keys(line) for line in ours] == [keys(line) for line in theirs]


def test_our_native_reply_looks_like_the_daemons() -> None:
    name = "inference/chat"
    events = read_whole(ollama, bytes_of(name))
    finished = events[-1]
    assert isinstance(finished, Finished)
    body = ollama_answers.reply(reply_of(events, model="ascii"), created=0)
    ours, theirs = json.loads(body), json.loads(bytes_of(name))
    assert {**ours, "created_at": ""} == {**theirs, "created_at": ""}


def test_our_openai_stream_holds_all_that_theirs_does() -> None:
    raw = bytes_of("openai/chat_stream_usage")
    writer = openai_answers.StreamWriter(**GIVEN, include_usage=True)
    events = hear(openai.StreamReader(), [raw]).events
    ours, theirs = payloads(b"".join(map(writer.write, events))), payloads(raw)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert set(other) - {"system_fingerprint"} == set(mine)
        assert [c["delta"] for c in mine["choices"]] == [c["delta"] for c in other["choices"]]
        assert [c["finish_reason"] for c in mine["choices"]] == [
            c["finish_reason"] for c in other["choices"]
        ]


def test_our_anthropic_stream_has_the_order_of_theirs() -> None:
    raw = bytes_of("anthropic/messages_stream")
    writer = anthropic_answers.StreamWriter(**GIVEN)
    events = hear(anthropic.StreamReader(), [raw]).events
    ours = [p for p in payloads(b"".join(map(writer.write, events))) if p["type"] != "ping"]
    theirs = payloads(raw)
    assert [p["type"] for p in ours] == [p["type"] for p in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert set(other) <= set(mine)
        assert mine.get("delta", {}).items() >= other.get("delta", {}).items()


@pytest.mark.parametrize(
    "item",
    [item for item in RECORDED.values() if item["request"] and item["status"] == 200],
    ids=lambda item: item["name"],
)
def test_every_request_that_the_daemon_took_is_taken_here(item: dict[str, Any]) -> None:
    body = dumps(item["request"])
    if item["path"] == "/api/chat":
        assert ollama_requests.decode(body).model == item["request"]["model"]
        ollama_requests.peek(body)
    elif item["path"] == "/api/generate":
        assert ollama_requests.decode_generate(body).model == item["request"]["model"]
        ollama_requests.peek(body)
    elif item["path"] == "/v1/chat/completions":
        assert openai_requests.decode(body).model == item["request"]["model"]
        openai_requests.peek(body)


def test_whole_tool_calls_in_several_lines_are_several_calls() -> None:
    def line(name: str) -> bytes:
        call = {"function": {"index": 0, "name": name, "arguments": {"a": 1}}}
        return dumps({"message": {"content": "", "tool_calls": [call]}, "done": False}) + b"\n"

    end = dumps({"message": {"content": ""}, "done": True, "done_reason": "stop"}) + b"\n"
    heard = hear(ollama.StreamReader(), [line("f") + line("g") + end])
    assert [e.index for e in heard.events if isinstance(e, ToolCallDelta)] == [0, 1]
    assert [call.name for call in heard.calls] == ["f", "g"]
    assert len({call.id for call in heard.calls}) == 2

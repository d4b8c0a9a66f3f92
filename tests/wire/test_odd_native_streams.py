"""
Quirks of servers that imitate Anthropic's and Ollama's dialects, and what a reader makes of
them; OpenAI's imitators are in `test_odd_streams`.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from localfirst.errors import UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.types import Json
from localfirst.wire import forgiving
from localfirst.wire.anthropic import events as anthropic
from localfirst.wire.ollama import events as ollama
from tests.wire.support import Heard, dumps, hear, sliced


def heard(module: Any, raw: bytes) -> Heard:
    """What is read, after it was seen that slices and handing through conclude the same."""
    found = hear(module.StreamReader(), [raw])
    for relay in (False, True):
        for size in (1, 7, 10**6):
            again = hear(module.StreamReader(relay=relay), sliced(raw, size))
            assert again.complete == found.complete, (relay, size)
            assert again.committed == found.committed, (relay, size)
            assert type(again.error) is type(found.error), (relay, size)
            assert relay or again.text == found.text
    return found


# --- Anthropic's ---------------------------------------------------------------------------


def event(kind: str, **fields: Json) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + dumps({"type": kind, **fields}) + b"\n\n"


def block(index: Json = 0, kind: str = "text", **fields: Json) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(index: Json = 0, kind: str = "text_delta", **fields: Json) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def given(index: Json, text: str) -> bytes:
    return delta(index, "input_json_delta", partial_json=text)


START = event("message_start", message={"id": "m", "usage": {"input_tokens": 3}})
TEXT = block(text="") + delta(text="Hello") + event("content_block_stop", index=0)
ENDING = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5})
STOP = event("message_stop")

PLAIN: dict[str, bytes] = {
    "whole": START + TEXT + ENDING + STOP,
    "no start": TEXT + ENDING + STOP,
    "no block start": START + delta(text="Hello") + ENDING + STOP,
    "no names": (START + TEXT + ENDING + STOP).replace(b"event: ", b"x: "),
    "no types": (START + TEXT + ENDING + STOP).replace(b'"type": "content_block_delta", ', b""),
    "empty stop": START + TEXT + ENDING + b"event: message_stop\ndata: {}\n\n",
    "carriage returns": (START + TEXT + ENDING + STOP).replace(b"\n", b"\r"),
    "done behind it": START + TEXT + ENDING + STOP + b"data: [DONE]\n\n",
    "done before it": START + TEXT + ENDING + b"data: [DONE]\n\n" + STOP,
    "pings": START + b"event: ping\ndata: pong\n\n" + b"event: ping\n\n" + TEXT + ENDING + STOP,
    "numbers as text": START + block("0", text="") + delta("0", text="Hello") + ENDING + STOP,
    "null numbers": START + block(None, text="") + delta(None, text="Hello") + ENDING + STOP,
    "numbers with a point": START + TEXT + ENDING.replace(b"5", b"5.0") + STOP,
    "unknown events": START + event("new", x=[1]) + TEXT + delta(kind="new", x={}) + ENDING + STOP,
    "text at once": START + block(text="Hello") + ENDING + STOP,
}


@pytest.mark.parametrize("raw", PLAIN.values(), ids=PLAIN.keys())
def test_a_message_is_understood_in_spite_of_its_oddities(raw: bytes) -> None:
    found = heard(anthropic, raw)
    assert (found.text, found.error) == ("Hello", None)
    assert found.finished.usage is not None and found.finished.usage.completion_tokens == 5


def test_a_terminator_of_another_dialect_ends_no_message() -> None:
    cut = heard(anthropic, START + TEXT + ENDING + b"data: [DONE]\n\n")
    assert isinstance(cut.error, UpstreamBroken) and not cut.complete


TOOL = event("message_delta", delta={"stop_reason": "tool_use"}) + STOP
CALLS: dict[str, bytes] = {
    "in pieces": block(0, "tool_use", id="a", name="f", input={})
    + given(0, '{"n"')
    + given(0, ": 1}")
    + event("content_block_stop", index=0),
    "at once": block(0, "tool_use", id="a", name="f", input={"n": 1})
    + event("content_block_stop", index=0),
    "at once, never stopped": block(0, "tool_use", id="a", name="f", input={"n": 1}),
    "at once and again": block(0, "tool_use", id="a", name="f", input={"n": 1})
    + given(0, '{"n": 1}')
    + event("content_block_stop", index=0),
    "input as text": block(0, "tool_use", id="a", name="f", input="") + given(0, '{"n": 1}'),
}


@pytest.mark.parametrize("raw", CALLS.values(), ids=CALLS.keys())
def test_an_input_is_taken_once_whether_it_comes_at_once_or_in_pieces(raw: bytes) -> None:
    (call,) = heard(anthropic, START + raw + TOOL).calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("a", "f", {"n": 1})


def test_blocks_that_share_a_number_or_an_id_stay_apart() -> None:
    raw = b"".join(
        block(0, "tool_use", id=i, name=n, input={}) + given(0, "{}") for i, n in ("af", "bg", "bh")
    )
    found = heard(anthropic, START + raw + TOOL)
    assert [(call.id, call.name) for call in found.calls[:2]] == [("a", "f"), ("b", "g")]
    same = block(1, "tool_use", id="x", name="f") + block(2, "tool_use", id="x", name="g")
    one, two = heard(anthropic, START + same + TOOL).calls
    assert one.id == "x" and two.id not in {"", "x"}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (event("error", error={"type": "overloaded_error", "message": "m"}), 200),
        (b"event: error\ndata: the model crashed\n\n", 200),
        (b'data: {"error": {"message": "m", "code": 429}}\n\n', 429),
        (b'data: {"detail": "m"}\n\n', 200),
        (b'[{"error": {"message": "m", "code": 500}}]\n\n', 500),
        (event("message_delta", delta={"stop_reason": "error"}), 503),
        (event("message_delta", delta={"stop_reason": "abort"}), 503),
    ],
)
@pytest.mark.parametrize("before", [b"", START + TEXT], ids=["first", "after text"])
def test_an_error_inside_a_message_is_one(raw: bytes, status: int, before: bytes) -> None:
    found = heard(anthropic, before + raw + STOP)
    assert isinstance(found.error, UpstreamRefused) and found.error.status == status
    assert found.committed is bool(before)


def test_a_whole_message_that_gave_up_is_an_error() -> None:
    content = [{"type": "text", "text": "x"}]
    for body in (
        {"type": "message", "content": content, "stop_reason": "error"},
        {"detail": "no"},
        [{"error": {"code": 500, "message": "m"}}],
    ):
        with pytest.raises(UpstreamRefused):
            anthropic.read_reply(dumps(body))


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])
def test_a_message_in_the_other_form_than_was_asked_for_is_understood(relay: bool) -> None:
    content = [{"type": "text", "text": "Hello"}]
    body = dumps({"type": "message", "content": content, "stop_reason": "end_turn"})
    for size in (1, 10**6):
        found = hear(anthropic.StreamReader(relay=relay), sliced(body, size))
        assert (found.text, found.error, found.relayed) == ("Hello", None, b"")
    assert isinstance(hear(anthropic.StreamReader(), [body[:-5]]).error, UpstreamNonsense)
    streamed = Heard(anthropic.read_reply(START + TEXT + ENDING + STOP, relay=relay), None)
    assert streamed.text == "Hello" and streamed.complete
    with pytest.raises(UpstreamBroken):
        anthropic.read_reply(START + TEXT + ENDING, relay=relay)


# --- Ollama's ------------------------------------------------------------------------------


def line(**fields: Json) -> bytes:
    return dumps(fields) + b"\n"


def said(text: Json = "Hello", **fields: Json) -> bytes:
    return line(message={"role": "assistant", "content": text}, done=False, **fields)


END = line(message={"content": ""}, done=True, done_reason="stop", eval_count=2)
LINES: dict[str, bytes] = {
    "whole": said() + END,
    "crlf": (said() + END).replace(b"\n", b"\r\n"),
    "blank lines": b"\n" + said() + b"\n\n" + END,
    "byte order mark": b"\xef\xbb\xbf" + said() + END,
    "no last newline": (said() + END).rstrip(),
    "null done": line(message={"content": "Hello"}, done=None) + END,
    "done as text": said() + END.replace(b"true", b'"true"'),
    "null error": said(error=None) + END,
    "empty error": said(error={}) + END,
    "odd logprobs": said(logprobs={"x": 1}) + END,
    "odd context": said() + END.replace(b'"done"', b'"context": ["x"], "done"'),
    "counts with a point": said() + END.replace(b": 2", b": 2.0"),
    "what follows": said() + END + said("no") + line(error="late"),
}


@pytest.mark.parametrize("raw", LINES.values(), ids=LINES.keys())
def test_lines_are_understood_in_spite_of_their_oddities(raw: bytes) -> None:
    found = heard(ollama, raw)
    assert (found.text, found.error) == ("Hello", None)
    assert found.finished.usage is not None and found.finished.usage.completion_tokens == 2


@pytest.mark.parametrize("identifier", [None, "", 5, "a"])
@pytest.mark.parametrize("arguments", [{"n": 1}, '{"n": 1}'])
def test_calls_need_no_id_and_no_number(identifier: Json, arguments: Json) -> None:
    function = {"name": "f", "arguments": arguments, "index": "0"}
    raw = said("", tool_calls=None) + line(
        message={"content": "", "tool_calls": [{"id": identifier, "function": function}] * 2}
    )
    one, two = heard(ollama, raw + END).calls
    assert json.loads(one.arguments) == json.loads(two.arguments) == {"n": 1}
    assert one.id and two.id and one.id != two.id
    assert one.id == str(identifier) if identifier else one.id.startswith("call_")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (line(error="runner died"), 200),
        (line(error={"message": "m", "code": 503}), 503),
        (line(message="unauthorized", code=401), 401),
        (line(detail="no such route"), 200),
    ],
)
@pytest.mark.parametrize("before", [b"", said()], ids=["first", "after text"])
def test_an_error_line_is_one(raw: bytes, status: int, before: bytes) -> None:
    found = heard(ollama, before + raw + END)
    assert isinstance(found.error, UpstreamRefused) and found.error.status == status
    assert found.committed is bool(before)


# --- both ----------------------------------------------------------------------------------


def test_text_that_json_does_not_know_ends_no_answer() -> None:
    for bad, text in (
        (b"\\ud83d", "\ufffd"),
        (b"a\xff", "a\ufffd"),
        (b"\\ude00\\ud83d", "\ufffd" * 2),
    ):
        lines = said("BAD").replace(b"BAD", bad) + END
        assert heard(ollama, lines).text == text
        message = (START + TEXT).replace(b"Hello", bad) + ENDING + STOP
        assert heard(anthropic, message).text == text
    not_a_number = said(logprobs=[{"logprob": 1}]).replace(b"1}", b"NaN}")
    assert heard(ollama, not_a_number + END).text == "Hello"


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": \xff', b"nonsense", b'{"a": "\\ud83d"'])
def test_what_is_no_json_even_with_patience_is_none(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        forgiving.loads(raw)
    found = heard(ollama, raw + b"\n" + END)
    assert isinstance(found.error, UpstreamNonsense)


def test_what_was_read_with_patience_can_always_be_written_again() -> None:
    read = forgiving.loads(b'{"\\ud83d": NaN, "x": -Infinity, "y": "\\ud83d\\ude00"}')
    assert read == {"\ufffd": None, "x": None, "y": "\U0001f600"}
    assert msgspec.json.decode(msgspec.json.encode(read)) == read
    with pytest.raises(msgspec.DecodeError):
        forgiving.loads(b'"\\\\ud83d\\ude00"')

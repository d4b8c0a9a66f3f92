"""
Quirks of OpenAI-compatible streams that were met in the field, one test each: what the reader
must make of them, however the bytes are sliced, read or handed through.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.events import FinishReason, Relayed, ToolCallDelta
from localfirst.types import Json
from localfirst.wire.conclusion import CALLS_MOST
from localfirst.wire.openai import events as openai
from tests.wire.support import Heard, dumps, hear, payloads, sliced

DONE = b"data: [DONE]\n\n"


def event(payload: Json) -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else dumps(payload)) + b"\n\n"


def delta(*, finish: str | None = None, **said: Json) -> bytes:
    return event({"choices": [{"index": 0, "delta": said, "finish_reason": finish}]})


def calls(*pieces: Json) -> bytes:
    return delta(tool_calls=list(pieces))


def piece(given: Json, **fields: Json) -> Json:
    function = {"arguments": given} | ({"name": fields.pop("name")} if "name" in fields else {})
    return {"function": function, **fields}


def heard(raw: bytes, *, relay: bool = False) -> Heard:
    """What is heard in one piece, and the same in bytes and in odd slices."""
    found = hear(openai.StreamReader(relay=relay), [raw])
    for size in (1, 3, 64):
        again = hear(openai.StreamReader(relay=relay), sliced(raw, size))
        assert (again.text, again.complete) == (found.text, found.complete), size
        assert type(again.error) is type(found.error), size
        assert again.relayed.split() == found.relayed.split()
    return found


def ends_well(raw: bytes) -> Heard:
    """Read, after it was seen that handing it through concludes the same."""
    found, passed = heard(raw), heard(raw, relay=True)
    assert found.error is None and passed.error is None
    last = passed.events[-1]
    assert (last.reason, last.usage) == (found.finished.reason, found.finished.usage)  # type: ignore[union-attr]
    assert passed.committed == found.committed
    return found


def fails(raw: bytes, kind: type[Exception]) -> Heard:
    found, passed = heard(raw), heard(raw, relay=True)
    assert isinstance(found.error, kind) and isinstance(passed.error, kind)
    assert not found.complete and not passed.complete
    assert passed.committed == found.committed
    assert DONE not in passed.relayed
    return found


HELLO = delta(content="Hello")
STOP = delta(finish="stop")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


# --- framing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "done",
    [
        b"data:[DONE]\n\n", b"data: [DONE] \n\n", b"data:  [DONE]\n\n", b"data: [DONE]",
        b"data: [DONE]\r\n\r\n", b"data: [DONE]\r\r", b"id: 9\ndata: [DONE]\n\n",
        b"event: done\ndata: [DONE]", b"data: [DONE]\n", b": bye\n\ndata: [DONE]\n\n\n\n",
    ],
)  # fmt: skip
def test_a_terminator_is_known_in_every_spelling(done: bytes) -> None:
    assert ends_well(HELLO + STOP + done).text == "Hello"


@pytest.mark.parametrize("done", [b"data: [DONE", b"data: [DON", b"dat", b"data: DONE\n"])
def test_a_terminator_that_is_itself_cut_is_none(done: bytes) -> None:
    fails(HELLO + STOP + done, UpstreamBroken)


def test_a_terminator_is_final_at_once_even_if_its_blank_line_never_comes() -> None:
    for end in (b"data: [DONE]", b"id: 7\ndata:[DONE]\n"):
        events = openai.StreamReader().feed(HELLO + STOP + end)
        assert Heard(events, None).complete


@pytest.mark.parametrize(
    "noise",
    [
        b": OPENROUTER PROCESSING\n\n", b":\n\n", b"\n\n\n", b"data:\n\n", b"data: \n\n",
        b"event: ping\n\n", b"event: ping\ndata: pong\n\n", b"event: heartbeat\ndata:  \n\n",
        b'event: ping\ndata: {"type":"ping"}\n\n', b"retry: 3000\n\n", b"id: 5\n\n",
        event({"choices": []}), event({"choices": None}), event({}),
        event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}),
        event({"choices": [{"index": 0, "delta": None, "finish_reason": None}]}),
        event({"choices": [{"index": 0, "content_filter_results": {}}]}),
        delta(content=None), delta(content=""), delta(), delta(role="assistant"),
        delta(tool_calls=None), delta(tool_calls=[]), delta(function_call=None),
    ],
)  # fmt: skip
def test_what_says_nothing_changes_nothing_and_commits_nothing(noise: bytes) -> None:
    assert ends_well(noise + HELLO + noise + STOP + noise + DONE).text == "Hello"
    assert not heard(noise * 3).committed
    fails(noise + DONE, UpstreamNonsense)


def test_lines_may_end_in_any_way_and_begin_with_a_mark() -> None:
    raw = HELLO + delta(content=" you") + STOP + DONE
    for newline in (b"\r\n", b"\r"):
        assert ends_well(raw.replace(b"\n", newline)).text == "Hello you"
    assert ends_well(b"\xef\xbb\xbf" + raw).text == "Hello you"
    assert ends_well(raw.replace(b"data: ", b"data:")).text == "Hello you"


def test_json_over_several_data_lines_is_one_payload() -> None:
    raw = b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"Hello"}}]}\n\n'
    assert ends_well(raw + STOP + DONE).text == "Hello"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\n\n", b"<!DOCTYPE html><html></html>", b"<html>\n\n</html>\n\n",
        b"upstream connect error or disconnect/reset before headers",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\n\n\xcbH\xcd", b"data: <html>\n\n",
        b"data: upstream timeout\n\n", b"data: null\n\n", b"data: []\n\n", b'data: "x"\n\n',
    ],
)  # fmt: skip
def test_what_is_no_stream_falls_through(raw: bytes) -> None:
    assert not fails(raw, UpstreamNonsense).committed


# --- text that JSON does not know ----------------------------------------------------------


def test_a_character_cut_in_half_is_a_mark_and_not_the_end_of_the_answer() -> None:
    halves = [
        b'{"choices":[{"delta":{"content":"\\ud83d"}}]}',
        b'{"choices":[{"delta":{"content":"\\uDE00!"}}]}',
        b'{"choices":[{"delta":{"content":"\\ud83d\\ude00"}}]}',
    ]
    found = ends_well(b"".join(map(event, halves)) + STOP + DONE)
    assert found.text == "\ufffd\ufffd!\U0001f600"


def test_bytes_that_are_no_text_and_numbers_that_are_none_are_survived() -> None:
    bad = b'{"choices":[{"delta":{"content":"a\xff"},"logprobs":{"content":[{"logprob":NaN}]}}]}'
    infinite = b'{"choices":[{"delta":{"content":"b"},"logprobs":{"top":-Infinity}}]}'
    assert ends_well(event(bad) + event(infinite) + STOP + DONE).text == "a\ufffdb"


def test_an_escaped_backslash_before_a_half_is_not_taken_for_a_pair() -> None:
    odd = b'{"choices":[{"delta":{"content":"\\\\ud83d\\ude00"}}]}'
    found = heard(event(odd) + STOP + DONE)
    assert found.error is not None or found.text.encode()


# --- errors inside -------------------------------------------------------------------------

ERRORS: list[tuple[bytes, int]] = [
    (event({"error": {"message": "m", "code": 502}}), 502),
    (event({"error": "overloaded"}), 200),
    (event([{"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}}]), 429),
    (event({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}), 400),
    (event({"type": "error", "message": "m", "code": "503"}), 503),
    (event({"object": "error", "message": "m", "param": None}), 200),
    (event({"detail": "no such model"}), 200),
    (event({"message": "no credit", "code": 402}), 402),
    (event({"choices": [], "error": {"code": 503, "message": "m"}}), 503),
    (event({"choices": [{"delta": {}, "error": {"code": 502, "message": "m"}}]}), 502),
    (event({"choices": None, "error": {"code": 500, "message": "m"}}), 500),
    (delta(finish="error"), 503),
    (delta(finish="abort"), 503),
    (delta(finish="network_error"), 503),
    (delta(finish="insufficient_system_resource"), 503),
    (b'event: error\ndata: {"error":{"message":"m","code":500}}\n\n', 500),
    (b"event: error\ndata: the model crashed\n\n", 200),
    (b'{"error": {"message": "m", "code": 500}}\n\n', 500),
    (b'[{"error": {"message": "m", "code": 500}}]\n\n', 500),
]


@pytest.mark.parametrize(("raw", "status"), ERRORS)
@pytest.mark.parametrize("before", [b"", HELLO], ids=["first", "after text"])
@pytest.mark.parametrize("after", [b"", DONE], ids=["end", "done"])
def test_an_error_inside_is_one_whatever_follows(
    raw: bytes, status: int, before: bytes, after: bytes
) -> None:
    found = fails(before + raw + after, UpstreamRefused)
    assert isinstance(found.error, UpstreamRefused)
    assert (found.error.status, found.error.in_band) == (status, True)
    assert found.text == ("Hello" if before else "")


@pytest.mark.parametrize("nothing", [None, "", {}, [], False])
def test_a_field_for_errors_that_says_nothing_is_no_error(nothing: Json) -> None:
    choice = {"index": 0, "delta": {"content": "Hello"}, "error": nothing}
    raw = event({"error": nothing, "choices": [choice]})
    assert ends_well(raw + STOP + DONE).text == "Hello"


# --- finish reasons and usage --------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP), ("STOP", FinishReason.STOP), ("eos", FinishReason.STOP),
        ("length", FinishReason.LENGTH), ("MAX_TOKENS", FinishReason.LENGTH),
        ("max_output_tokens", FinishReason.LENGTH), ("model_length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER), ("SAFETY", FinishReason.CONTENT_FILTER),
        ("sensitive", FinishReason.CONTENT_FILTER), ("a_new_one", FinishReason.STOP),
    ],
)  # fmt: skip
def test_every_providers_words_for_the_end_are_ours(word: str, reason: FinishReason) -> None:
    assert ends_well(HELLO + delta(finish=word) + DONE).finished.reason is reason


@pytest.mark.parametrize(
    "usage",
    [
        event({"choices": [], "usage": USAGE}),
        event({"usage": USAGE}),
        event({"choices": None, "usage": USAGE}),
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": None}], "usage": USAGE}),
        event({"choices": [], "x_groq": {"usage": USAGE}}),
        event({"choices": [], "usage": {**USAGE, "prompt_tokens": "3", "cost": 0.1}}),
    ],
)
def test_usage_behind_the_finish_reason_is_heard_and_changes_no_reason(usage: bytes) -> None:
    found = ends_well(HELLO + delta(finish="length") + usage + DONE)
    assert found.finished.reason is FinishReason.LENGTH
    assert found.finished.usage is not None and found.finished.usage.total_tokens == 5


def test_usage_in_every_chunk_is_the_last_and_null_erases_nothing() -> None:
    counted = [{"prompt_tokens": 3, "completion_tokens": n, "total_tokens": 3 + n} for n in (1, 2)]
    chunks = [event({"choices": [{"delta": {"content": "x"}}], "usage": u}) for u in counted]
    found = ends_well(b"".join(chunks) + event({"choices": [], "usage": None}) + DONE)
    assert found.finished.usage is not None and found.finished.usage.total_tokens == 5


def test_thoughts_that_only_the_total_counts_are_output() -> None:
    counted = {"prompt_tokens": 3, "completion_tokens": 13, "total_tokens": 335}
    for details in ({}, {"completion_tokens_details": {"reasoning_tokens": 319}}):
        usage = event({"choices": [], "usage": {**counted, **details}})
        found = ends_well(HELLO + STOP + usage + DONE).finished.usage
        assert found is not None and found.total_tokens == 335
        assert (found.completion_tokens, found.reasoning_tokens) == (332, 319)


def test_done_without_a_finish_reason_ends_an_answer_that_said_something() -> None:
    assert ends_well(HELLO + DONE).finished.reason is FinishReason.STOP
    fails(delta(role="assistant", content="") + DONE, UpstreamNonsense)
    fails(HELLO + STOP, UpstreamBroken)


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])
def test_a_server_that_never_wrote_a_terminator_is_believed_until_it_did(relay: bool) -> None:
    habits = openai.Habits()

    def concludes(raw: bytes) -> bool:
        return hear(openai.StreamReader(relay=relay, habits=habits), [raw]).complete

    assert concludes(HELLO + STOP) and not concludes(HELLO)
    assert not concludes(calls(piece('{"n":', index=0, id="a", name="f")) + STOP)
    assert concludes(HELLO + STOP)
    assert concludes(HELLO + STOP + DONE)
    assert not concludes(HELLO + STOP)


def test_of_several_answers_the_first_is_read_and_all_are_handed_through() -> None:
    def both(one: str, two: str) -> bytes:
        made = [{"index": i, "delta": {"content": text}} for i, text in enumerate((one, two))]
        return event({"choices": made[:1]}) + event({"choices": made[1:]})

    raw = both("He", "XX") + both("llo", "YY") + STOP
    raw += event({"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]}) + DONE
    found = heard(raw)
    assert (found.text, found.finished.reason) == ("Hello", FinishReason.STOP)
    assert heard(raw, relay=True).relayed == raw


# --- reasoning -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning": "hm"}, {"reasoning_content": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "thinking", "thinking": "hm"}]},
        {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
    ],
)  # fmt: skip
def test_thoughts_are_thoughts_once_by_every_name(said: dict[str, Json]) -> None:
    found = ends_well(delta(**said) + HELLO + STOP + DONE)
    assert (found.reasoning, found.text) == ("hm", "Hello")


# --- tool calls ----------------------------------------------------------------------------

ONE, TWO = '{"n": 1}', '{"n": 2}'
PARALLEL: dict[str, bytes] = {
    "numbered": calls(piece(ONE, index=0, id="a", name="f"), piece(TWO, index=1, id="b", name="g")),
    "numbers as text": calls(piece(ONE, index="0", id="a", name="f"))
    + calls(piece(TWO, index="1", id="b", name="g")),
    "no numbers, one event": calls(piece(ONE, id="a", name="f"), piece(TWO, id="b", name="g")),
    "no numbers, two events": calls(piece(ONE, id="a", name="f"))
    + calls(piece(TWO, id="b", name="g")),
    "no numbers, in turns": calls(piece("", id="a", name="f"))
    + calls(piece("", id="b", name="g"))
    + calls(piece('{"n":', id="a"))
    + calls(piece('{"n":', id="b"))
    + calls(piece(" 1}", id="a"))
    + calls(piece(" 2}", id="b")),
    "all number 0": calls(piece(ONE, index=0, id="a", name="f"))
    + calls(piece(TWO, index=0, id="b", name="g")),
    "id and name in every piece": calls(piece('{"n":', index=0, id="a", name="f"))
    + calls(piece(" 1}", index=0, id="a", name="f"))
    + calls(piece('{"n":', index=1, id="b", name="g"))
    + calls(piece(" 2}", index=1, id="b", name="g")),
    "empty names and ids later": calls(piece("", index=0, id="a", name="f"))
    + calls(piece(ONE, index=0, id="", name=""))
    + calls(piece("", index=1, id="b", name="g"))
    + calls(piece(TWO, index=1, id=None, name=None)),
    "arguments as objects": calls(piece({"n": 1}, index=0, id="a", name="f"))
    + calls(piece({"n": 2}, index=1, id="b", name="g")),
    "null arguments first": calls(piece(None, index=0, id="a", name="f"))
    + calls(piece(ONE, index=0))
    + calls(piece(TWO, index=1, id="b", name="g")),
}


@pytest.mark.parametrize("raw", PARALLEL.values(), ids=PARALLEL.keys())
def test_parallel_calls_stay_apart_however_they_are_numbered(raw: bytes) -> None:
    found = ends_well(raw + delta(finish="tool_calls") + DONE)
    made = [(call.id, call.name, json.loads(call.arguments)) for call in found.calls]
    assert made == [("a", "f", {"n": 1}), ("b", "g", {"n": 2})]


@pytest.mark.parametrize(
    "raw",
    [
        calls(piece(ONE, name="f")) + calls(piece(TWO, name="f")),
        calls(piece(ONE, index=0, name="f")) + calls(piece(TWO, index=0, name="f")),
        calls(piece(ONE, index=0, name="f")) + calls(piece("", index=0, name="g"))
        + calls(piece(TWO, index=0)),
        calls(piece(ONE, index=0, id="", name="f"), piece(TWO, index=1, id="", name="f")),
        calls(piece(ONE, index=0, name="f")) + calls(piece("", index=0, name="f"))
        + calls(piece(TWO, index=0, name="f")),
    ],
    ids=["no numbers", "all number 0", "name first", "empty ids", "noise between"],
)  # fmt: skip
def test_calls_without_ids_stay_apart_and_get_ids_of_their_own(raw: bytes) -> None:
    found = ends_well(raw + DONE)
    assert [json.loads(call.arguments) for call in found.calls] == [{"n": 1}, {"n": 2}]
    first, second = (call.id for call in found.calls)
    assert first and second and first != second
    again = heard(raw + DONE).calls[0].id
    assert again != first, "an id of an earlier turn would be taken for this one"


def test_a_name_that_is_repeated_behind_whole_arguments_is_no_second_call() -> None:
    raw = calls(piece(ONE, index=0, name="f")) + calls(piece("", index=0, name="f"))
    assert len(ends_well(raw + DONE).calls) == 1


def test_one_id_for_several_calls_does_not_make_them_one() -> None:
    raw = calls(piece(ONE, index=0, id="x", name="f"), piece(TWO, index=1, id="x", name="f"))
    found = ends_well(raw + DONE)
    assert [json.loads(call.arguments) for call in found.calls] == [{"n": 1}, {"n": 2}]
    assert found.calls[0].id == "x" and found.calls[1].id not in {"x", ""}


def test_an_id_that_comes_late_or_changes_in_every_piece_is_the_first() -> None:
    late = calls(piece("", index=0, name="f")) + calls(piece(ONE, index=0, id="a"))
    assert len(ends_well(late + DONE).calls) == 1
    changing = calls(piece("", index=0, id="a", name="f")) + calls(piece(ONE, index=0, id="b"))
    (call,) = ends_well(changing + DONE).calls
    assert (call.id, call.arguments) == ("a", ONE)


def test_a_call_is_shown_when_its_name_is_known_and_whole() -> None:
    raw = (
        calls(piece("", index=0, id="a", name=""))
        + calls(piece('{"n":', index=0))
        + calls(piece(" 1", index=0, id="a", name="f"))
        + calls(piece("}", index=0))
    )
    found = ends_well(raw + delta(finish="tool_calls") + DONE)
    assert [(call.id, call.name, call.arguments) for call in found.calls] == [("a", "f", ONE)]
    first = next(event for event in found.events if isinstance(event, ToolCallDelta))
    assert (first.id, first.name, first.arguments) == ("a", "f", '{"n": 1')
    last = calls(piece(ONE, index=0)) + calls(piece("", index=0, name="f"))
    assert [(c.name, c.arguments) for c in ends_well(last + DONE).calls] == [("f", ONE)]
    assert not heard(calls(piece("", index=0, id="a", name=""))).committed
    fails(calls(piece(ONE, index=0, id="a", name="")) + DONE, UpstreamNonsense)


def test_more_calls_than_any_model_makes_are_no_answer() -> None:
    many = [piece("{}", index=n, id=str(n), name="f") for n in range(CALLS_MOST + 1)]
    fails(calls(*many) + DONE, UpstreamNonsense)
    assert len(heard(calls(*many[:-1]) + DONE).calls) == CALLS_MOST


def test_the_old_single_function_call_is_a_tool_call() -> None:
    raw = (
        delta(role="assistant", content=None, function_call={"name": "f", "arguments": ""})
        + delta(function_call={"arguments": '{"n":'})
        + delta(function_call={"arguments": " 1}"})
        + delta(finish="function_call")
        + DONE
    )
    (call,) = ends_well(raw).calls
    assert (call.name, json.loads(call.arguments)) == ("f", {"n": 1})
    assert heard(raw).finished.reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("given", ["", "{", '{"n": 1', '{"n": 1}}', "[1", "{} {}"])
def test_arguments_that_were_cut_are_an_error_unless_the_limit_cut_them(given: str) -> None:
    raw = calls(piece(given, index=0, id="a", name="f"))
    if given:
        fails(raw + delta(finish="tool_calls") + DONE, UpstreamNonsense)
        fails(raw + DONE, UpstreamNonsense)
    length = ends_well(raw + delta(finish="length") + DONE)
    assert length.finished.reason is FinishReason.LENGTH


# --- whole answers -------------------------------------------------------------------------


def whole(body: Json, *, relay: bool = False) -> Any:
    return openai.read_reply(body if isinstance(body, bytes) else dumps(body), relay=relay)


def message(finish: str = "stop", **said: Json) -> dict[str, Json]:
    return {"choices": [{"index": 0, "message": said, "finish_reason": finish}], "usage": USAGE}


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])
@pytest.mark.parametrize(
    "body",
    [
        message(content="Hello", tool_calls=None, function_call=None, refusal=None),
        {**message(content="Hello"), "error": None},
        {**message(content="Hello"), "error": {}},
        message(content=[{"type": "text", "text": "Hello"}]),
        b"\xef\xbb\xbf" + dumps(message(content="Hello")),
        b"\n\n\n" + dumps(message(content="Hello")) + b"\n",
        {"choices": [{"message": {"content": "Hello"}, "logprobs": None}]},
        {"choices": [{"index": "0", "text": "Hello", "finish_reason": "stop"}]},
    ],
)
def test_a_whole_answer_is_read_in_spite_of_its_oddities(body: Json, relay: bool) -> None:
    found = Heard(whole(body), None)
    assert (found.text, found.finished.reason) == ("Hello", FinishReason.STOP)
    (passed,) = whole(body, relay=True)
    assert passed.content and passed.final


def test_a_whole_answer_with_the_old_function_call_is_one() -> None:
    body = message(
        content=None, function_call={"name": "f", "arguments": ONE}, finish="function_call"
    )
    found = Heard(whole(body), None)
    assert [call.name for call in found.calls] == ["f"]
    assert found.finished.reason is FinishReason.TOOL_CALLS
    (passed,) = whole(body, relay=True)
    assert passed.content and passed.reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([{"error": {"code": 429, "message": "m"}}], 429),
        ({"object": "error", "message": "m", "code": 400}, 400),
        ({"detail": "no"}, 200),
        ({"choices": None, "error": {"code": 500, "message": "m"}}, 500),
        ({"choices": [{"message": {"content": "x"}, "error": {"code": 502}}]}, 502),
        (message(finish="error", content="x"), 503),
        (message(finish="insufficient_system_resource", content="x"), 503),
    ],
)
def test_an_error_with_status_200_is_an_error(body: Json, status: int, relay: bool) -> None:
    with pytest.raises(UpstreamRefused) as refused:
        whole(body, relay=relay)
    assert (refused.value.status, refused.value.in_band) == (status, True)


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])
@pytest.mark.parametrize(
    "body",
    [
        {"choices": None}, {"choices": []}, {}, b"", b"<html>",
        message(content=""), message(content=None), message(content=[]),
        {"choices": [{"message": None, "finish_reason": "stop"}]},
    ],
)  # fmt: skip
def test_a_body_without_an_answer_is_nonsense(body: Json, relay: bool) -> None:
    with pytest.raises(UpstreamNonsense):
        whole(body, relay=relay)


# --- the other form than was asked for -----------------------------------------------------


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])
@pytest.mark.parametrize("space", [b"", b"\n", b"\n\n"])
def test_a_server_that_does_not_stream_is_understood(relay: bool, space: bytes) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": ONE}}
    for indent in (None, 2):
        raw = json.dumps(message(content="Hello", tool_calls=[call]), indent=indent).encode()
        for size in (1, 7, 10**6):
            found = hear(openai.StreamReader(relay=relay), sliced(space + raw + space, size))
            assert (found.text, found.error, found.relayed) == ("Hello", None, b"")
            assert found.finished.reason is FinishReason.TOOL_CALLS
            assert found.finished.usage is not None and found.finished.usage.total_tokens == 5
        for cut in range(1, len(raw) - 1):
            cut_off = hear(openai.StreamReader(relay=relay), [raw[:cut]])
            assert isinstance(cut_off.error, UpstreamNonsense) and not cut_off.committed


def test_a_whole_answer_behind_text_of_a_stream_is_no_answer() -> None:
    found = fails(HELLO + dumps(message(content="Hello")), UpstreamNonsense)
    assert found.text == "Hello"


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])
def test_a_server_that_always_streams_is_understood(relay: bool) -> None:
    usage = event({"choices": [], "usage": USAGE})
    for start in (b"", b": hello\n\n", b"\xef\xbb\xbf"):
        found = Heard(whole(start + HELLO + STOP + usage + DONE, relay=relay), None)
        assert found.text == "Hello" and found.complete
        assert found.finished.usage is not None and found.finished.usage.total_tokens == 5
    with pytest.raises(UpstreamBroken):
        whole(HELLO + STOP, relay=relay)
    with pytest.raises(UpstreamRefused):
        whole(HELLO + event({"error": {"message": "m"}}) + DONE, relay=relay)
    with pytest.raises(UpstreamNonsense):
        whole(event({}) + DONE, relay=relay)


def test_content_in_parts_is_handed_through_as_text_with_its_thinking_beside() -> None:
    parts: Json = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    raw = delta(role="assistant", content="") + delta(content=parts, x=1) + delta(content="Hi")
    raw += delta(content=[{"type": "text", "text": "!"}], finish="stop")
    passed = heard(raw + DONE, relay=True)
    texts = [one["choices"][0]["delta"] for one in payloads(passed.relayed) if one != "[DONE]"]
    assert [text["content"] for text in texts] == ["", "", "Hi", "!"]
    assert (texts[1]["reasoning_content"], texts[1]["x"]) == ("hm", 1)
    said = {"role": "assistant", "content": [*parts, {"type": "text", "text": "Hi"}]}
    body = dumps({"choices": [{"index": 0, "message": said, "finish_reason": "stop"}, 5]})
    (whole,) = openai.read_reply(body, relay=True)
    assert isinstance(whole, Relayed)
    told = json.loads(whole.data)["choices"][0]["message"]
    assert (told["content"], told["reasoning"]) == ("Hi", "hm")


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": 3, "completion_tokens": 0},
        {"completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 4}},
    ],
    ids=["uncounted", "none", "thoughts"],
)
def test_an_answer_without_a_token_to_show_met_no_stop_sequence(usage: Json) -> None:
    choice: dict[str, Json] = {"index": 0, "message": {"content": ""}, "finish_reason": "stop"}
    body = dumps({"choices": [choice], "usage": usage})
    with pytest.raises(UpstreamNonsense, match="empty"):
        openai.read_reply(body, stops=lambda: ("END",))
    reader = openai.StreamReader(stops=lambda: ("END",))
    raw = delta(content="", finish="stop") + event({"choices": [], "usage": usage}) + DONE
    with pytest.raises(UpstreamNonsense, match="empty"):
        [*reader.feed(raw), *reader.close()]

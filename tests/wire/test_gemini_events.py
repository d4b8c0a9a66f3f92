"""Gemini's answers: what a reader makes of usual ones, odd ones and broken ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import Breakage, UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.events import Event, FinishReason
from localfirst.types import Json
from localfirst.wire.gemini import events
from localfirst.wire.gemini.marks import Marks
from tests.wire.support import Heard, dumps, hear, sliced

USAGE = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}


def answer(*parts: Json, finish: str = "", **more: Json) -> dict[str, Json]:
    candidate: dict[str, Json] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], **more}


def text(said: str, finish: str = "", **more: Json) -> dict[str, Json]:
    return answer({"text": said}, finish=finish, **more)


def call(name: str = "look", args: Json = None, **more: Json) -> dict[str, Json]:
    return {"functionCall": {"name": name, "args": args or {}}, **more}


def stream(*payloads: Json, end: bytes = b"") -> bytes:
    return b"".join(b"data: " + dumps(payload) + b"\r\n\r\n" for payload in payloads) + end


def heard(*payloads: Json, size: int = 10**6, **more: Any) -> Heard:
    return hear(events.StreamReader(**more), sliced(stream(*payloads), size))


def reply(payload: Json, **more: Any) -> list[Event]:
    return events.read_reply(dumps(payload), **more)


@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_text_thoughts_and_usage_add_up(size: int) -> None:
    found = heard(
        answer({"text": "hm", "thought": True}, usageMetadata={"promptTokenCount": 9}),
        text("Hel", usageMetadata={"promptTokenCount": 3, "thoughtsTokenCount": 4}),
        text("lo", "STOP", usageMetadata={**USAGE, "cachedContentTokenCount": 1}),
        size=size,
    )
    assert (found.reasoning, found.text, found.error) == ("hm", "Hello", None)
    usage = found.finished.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 6)
    assert (usage.reasoning_tokens, usage.cached_tokens, usage.total_tokens) == (4, 1, 9)


def test_a_body_says_what_its_stream_would() -> None:
    parts = ({"text": "hm", "thought": True}, {"text": "Hello"}, call(args={"a": 1}))
    whole = answer(*parts, finish="STOP", usageMetadata=USAGE, responseId="R_1-x")
    assert reply(whole) == heard(whole).events
    (made,) = Heard(reply(whole), None).calls
    assert (made.name, made.arguments, made.id) == ("look", '{"a":1}', "call_R_1-x_0")


REASONS = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    **dict.fromkeys(
        ["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE",
         "IMAGE_SAFETY"],
        FinishReason.CONTENT_FILTER,
    ),
    "OTHER": FinishReason.STOP,
    "A_NEW_ONE": FinishReason.STOP,
}  # fmt: skip


@pytest.mark.parametrize("word", REASONS)
def test_finish_reasons_are_ours(word: str) -> None:
    assert heard(text("x"), text("", word)).finished.reason is REASONS[word]
    assert Heard(reply(text("x", word)), None).finished.reason is REASONS[word]


@pytest.mark.parametrize(
    "word", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE"]
)
def test_a_call_that_the_model_broke_is_no_answer(word: str) -> None:
    assert isinstance(heard({"candidates": [{"finishReason": word}]}).error, UpstreamNonsense)
    with pytest.raises(UpstreamNonsense):
        reply(text("x", word))


@pytest.mark.parametrize("word", ["SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT"])
def test_a_blocked_prompt_is_a_content_filter_and_no_empty_answer(word: str) -> None:
    blocked = {"promptFeedback": {"blockReason": word}, "usageMetadata": {"promptTokenCount": 3}}
    for found in (heard(blocked), Heard(reply(blocked), None)):
        assert found.finished.reason is FinishReason.CONTENT_FILTER
        assert not found.committed and found.error is None


def test_an_answer_that_is_filtered_in_the_middle_keeps_what_was_said() -> None:
    found = heard(text("so far"), {"candidates": [{"finishReason": "SAFETY"}]})
    assert (found.text, found.finished.reason) == ("so far", FinishReason.CONTENT_FILTER)


def test_a_finish_reason_in_every_event_ends_nothing_before_the_bytes_do() -> None:
    payloads = [text(word, "STOP", usageMetadata=USAGE) for word in ("a", "b", "c")]
    found = heard(*payloads)
    assert (found.text, found.error) == ("abc", None)
    raw = stream(*payloads)
    inside = raw.rindex(b'"text": "c"')
    cut = hear(events.StreamReader(), [raw[:inside]])
    assert isinstance(cut.error, UpstreamBroken) and cut.text == "ab"


def test_a_finish_reason_before_the_text_is_not_the_end() -> None:
    early = [answer(finish="STOP"), text("Hello"), text(" you")]
    cut = heard(*early)
    assert isinstance(cut.error, UpstreamBroken) and cut.error.breakage is Breakage.CUT
    assert heard(*early, answer(finish="STOP")).text == "Hello you"


def test_usage_behind_the_finish_reason_counts_and_silence_does_not_erase_it() -> None:
    found = heard(
        text("x", "STOP"), {"usageMetadata": USAGE}, {"usageMetadata": {"trafficType": "T"}}
    )
    assert found.finished.usage is not None
    assert found.finished.usage.total_tokens == 5
    assert heard(text("x", "STOP")).finished.usage is None


@pytest.mark.parametrize(
    "payload",
    [text("x"), text("x", "FINISH_REASON_UNSPECIFIED"), {"usageMetadata": USAGE}],
)
def test_a_stream_without_a_finish_reason_is_cut(payload: Json) -> None:
    found = heard(payload)
    assert isinstance(found.error, UpstreamBroken) and found.error.breakage is Breakage.CUT
    assert not found.complete


@pytest.mark.parametrize(
    "payload",
    [
        answer(finish="STOP"),
        {"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}]},
        {"candidates": [{"finishReason": "STOP"}]},
        answer({"inlineData": {"mimeType": "image/png", "data": "x"}}, finish="STOP"),
    ],
)
def test_an_answer_without_content_is_none(payload: Json) -> None:
    assert isinstance(heard(payload).error, UpstreamNonsense)
    with pytest.raises(UpstreamNonsense):
        reply(payload)


@pytest.mark.parametrize("payload", [{}, {"candidates": []}, {"usageMetadata": USAGE}, [], 5, "x"])
def test_a_body_that_is_no_answer_is_nonsense(payload: Json) -> None:
    with pytest.raises(UpstreamNonsense):
        reply(payload)


def test_calls_at_once_and_one_after_the_other_keep_apart() -> None:
    found = heard(
        answer(call("a", {"n": 1}), call("b"), responseId="r"),
        answer(call("a", {"n": 2}), responseId="r"),
        answer(finish="STOP"),
    )
    assert [(c.id, c.name, c.arguments) for c in found.calls] == [
        ("call_r_0", "a", '{"n":1}'),
        ("call_r_1", "b", "{}"),
        ("call_r_2", "a", '{"n":2}'),
    ]
    assert found.finished.reason is FinishReason.TOOL_CALLS


def test_ids_of_two_answers_never_meet() -> None:
    one, two = (heard(answer(call(), finish="STOP", responseId=i)).calls[0].id for i in "ab")
    assert one != two
    odd = heard(answer(call(), finish="STOP", responseId="x/ÿ\n" + "y" * 90)).calls[0].id
    assert len(odd) <= 40 and odd.isascii() and "/" not in odd


def test_signatures_and_ids_are_remembered_for_the_next_turn() -> None:
    marks = Marks()
    own = {"functionCall": {"name": "a", "args": {}, "id": "fc_1"}, "thoughtSignature": "U2ln"}
    found = heard(answer(own, call("b"), finish="STOP", responseId="r"), marks=marks)
    assert [c.id for c in found.calls] == ["fc_1", "call_r_1"]
    assert marks.of("fc_1").signature == "U2ln" and marks.of("fc_1").own_id
    assert not marks.of("call_r_1").own_id and len(marks) == 1


@pytest.mark.parametrize("part", [call(""), {"functionCall": {"args": {}}}])
def test_a_call_without_a_name_is_no_answer(part: Json) -> None:
    assert isinstance(heard(answer(part, finish="STOP")).error, UpstreamNonsense)


def test_only_the_first_candidate_is_read() -> None:
    second = {"content": {"parts": [{"text": "no"}]}, "index": 1, "finishReason": "STOP"}
    both = text("yes", "STOP")
    both["candidates"].append(second)
    assert heard(both).text == "yes"
    assert isinstance(heard({"candidates": [second]}).error, UpstreamBroken)


ERROR = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize("wrapped", [ERROR, [ERROR]], ids=["object", "list"])
@pytest.mark.parametrize("before", [[], [text("so far")]], ids=["first", "later"])
def test_an_error_inside_is_the_error_it_names(wrapped: Json, before: list[Json]) -> None:
    for tail in (stream(wrapped), json.dumps(wrapped, indent=2).encode(), dumps(wrapped) + b"\n\n"):
        for size in (1, 10**6):
            found = hear(events.StreamReader(), sliced(stream(*before) + tail, size))
            assert isinstance(found.error, UpstreamRefused), tail
            assert (found.error.status, found.error.in_band) == (503, True)
            assert found.committed is bool(before) and not found.complete
    with pytest.raises(UpstreamRefused):
        reply(wrapped)


def test_an_error_behind_the_finish_reason_is_no_end() -> None:
    found = heard(text("x", "STOP"), ERROR)
    assert isinstance(found.error, UpstreamRefused) and not found.complete


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\n",
        b"<!DOCTYPE html><html>login</html>",
        b"data: nonsense\r\n\r\n",
        b'data: {"candidates": 5}\r\n\r\n',
        b"\x1f\x8b\x08\x00\x00\x00",
        b"data: \xff\xfe\r\n\r\n",
    ],
)
def test_what_is_no_stream_is_nonsense(raw: bytes) -> None:
    for size in (1, 10**6):
        found = hear(events.StreamReader(), sliced(raw, size))
        assert isinstance(found.error, UpstreamNonsense), raw
        assert not found.committed


def test_comments_a_foreign_done_and_a_missing_blank_line_change_nothing() -> None:
    raw = b": hello\r\n\r\n" + stream(text("a"), text("b", "STOP"))
    for odd in (raw + b"data: [DONE]\r\n\r\n", raw.rstrip(), raw.replace(b"data: ", b"data:")):
        found = hear(events.StreamReader(), sliced(odd, 7))
        assert (found.text, found.error) == ("ab", None)


def test_a_long_answer_is_cut_wherever_it_is_cut() -> None:
    raw = stream(
        *(text(f"word {n} ü") for n in range(20)), text("end", "STOP", usageMetadata=USAGE)
    )
    whole = raw.rindex(b"}") + 1
    for cut in range(len(raw) + 1):
        assert hear(events.StreamReader(), [raw[:cut]]).complete is (cut >= whole), cut


def test_an_answer_in_the_other_form_than_was_asked_for_is_understood() -> None:
    payloads = [text("Hel"), text("lo", "STOP", usageMetadata=USAGE)]
    listed = json.dumps(payloads, indent=2).encode()
    for raw in (listed, dumps(text("Hello", "STOP", usageMetadata=USAGE))):
        for size in (1, 10**6):
            found = hear(events.StreamReader(), sliced(raw, size))
            assert (found.text, found.error) == ("Hello", None)
        assert not hear(events.StreamReader(), [raw[:-20]]).complete
        assert Heard(events.read_reply(raw), None).text == "Hello"
    assert Heard(events.read_reply(stream(*payloads)), None).text == "Hello"
    cut = hear(events.StreamReader(), [dumps(payloads[:1])])
    assert isinstance(cut.error, UpstreamBroken) and cut.error.breakage is Breakage.CUT
    with pytest.raises(UpstreamBroken):
        events.read_reply(stream(*payloads[:1]))

"""
Streams seen in the wild, and what a client must conclude from each.

`tests/data/stream_cases.jsonl` holds the bytes, where each was seen, and the conclusion. Every
case is read in pieces of every size, and cut after every byte.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import Breakage, UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.wire.anthropic import events as anthropic
from localfirst.wire.gemini import events as gemini
from localfirst.wire.ollama import events as ollama
from localfirst.wire.openai import events as openai
from tests.wire.support import DATA, Heard, Reader, hear, sliced

READERS: dict[str, Any] = {
    "openai.chat": openai.StreamReader,
    "openai.responses": openai.StreamReader,
    "anthropic.messages": anthropic.StreamReader,
    "gemini.streamGenerateContent": gemini.StreamReader,
    "ollama.chat": ollama.StreamReader,
    "ollama.generate": ollama.StreamReader,
}
TERMINATORS = {
    "openai.chat": b"data: [DONE]",
    "openai.responses": b"data: [DONE]",
    "anthropic.messages": b'data: {"type":"message_stop"',
    # No terminator: what must be whole is the event that names the finish reason.
    "gemini.streamGenerateContent": b'"finishReason": "STOP"',
    "ollama.chat": b'"done":true',
    "ollama.generate": b'"done":true',
}
CASES = [*map(json.loads, (DATA / "stream_cases.jsonl").read_text("utf-8").splitlines())]
RELAYED = [case for case in CASES if not case["api"].startswith("gemini")]
"""No client speaks Gemini's dialect here, so its bytes are never handed through."""

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
each_relayed_case = pytest.mark.parametrize("case", RELAYED, ids=lambda case: case["id"])


def reader(case: dict[str, Any], relay: bool = False) -> Reader:
    made: Reader = READERS[case["api"]](relay=True) if relay else READERS[case["api"]]()
    return made


def check_usage(heard: Heard, expected: dict[str, int] | None) -> None:
    usage = heard.finished.usage
    if expected is None:
        assert usage is None
        return
    assert usage is not None
    assert usage.prompt_tokens == expected["prompt_tokens"]
    if usage.reasoning_tokens and expected["total_tokens"] == usage.total_tokens:
        # Gemini counts thoughts beside the completion and bills them as output.
        assert usage.completion_tokens - usage.reasoning_tokens == expected["completion_tokens"]
    else:
        assert usage.completion_tokens == expected["completion_tokens"]


def check_calls(heard: Heard, expected: list[dict[str, Any]]) -> None:
    assert [call.name for call in heard.calls] == [call["name"] for call in expected]
    for call, wanted in zip(heard.calls, expected, strict=True):
        assert json.loads(call.arguments or "{}") == wanted["arguments"]
        if wanted["id"] not in {"<synthesized>", None}:
            assert call.id == wanted["id"]
        assert call.id


def check(case: dict[str, Any], heard: Heard) -> None:
    expect = case["expect"]
    if "text" in expect:
        assert heard.text == expect["text"]
    if "reasoning" in expect:
        assert heard.reasoning == expect["reasoning"]
    assert expect.get("reasoning_contains", "") in heard.reasoning
    if expect["outcome"] in {"ok", "ok_transport"}:
        assert heard.error is None
        assert heard.finished.reason == expect["finish_reason"]
        check_usage(heard, expect["usage"])
        check_calls(heard, expect.get("tool_calls", []))
    elif expect["outcome"] == "truncated":
        assert isinstance(heard.error, UpstreamBroken)
    else:
        assert isinstance(heard.error, UpstreamRefused)
        assert heard.error.in_band and heard.error.body
        assert not heard.complete
    if "safe_to_failover" in expect:
        assert heard.committed is not expect["safe_to_failover"]


def test_the_corpus_is_there() -> None:
    assert len(CASES) >= 31
    assert {case["api"] for case in CASES} == set(READERS)


@each_case
def test_the_conclusion_is_right_whatever_size_the_pieces_have(case: dict[str, Any]) -> None:
    raw = case["raw"].encode()
    for size in range(1, len(raw) + 1):
        check(case, hear(reader(case), sliced(raw, size)))


def whole_from(case: dict[str, Any]) -> int:
    """How many bytes the least complete prefix has; more than all where there is none."""
    raw = case["raw"].encode()
    if case["expect"]["outcome"] not in {"ok", "ok_transport"}:
        return len(raw) + 1
    end = raw.rfind(TERMINATORS[case["api"]])
    assert end >= 0
    if case["api"] == "openai.chat":
        return end + len(TERMINATORS[case["api"]])
    # The terminator is a JSON object, and complete with its last brace.
    line = raw[end:].splitlines()[0].rstrip()
    return end + len(line)


@each_case
def test_a_stream_cut_after_any_byte_is_complete_only_behind_its_terminator(
    case: dict[str, Any],
) -> None:
    check_cuts(case, relay=False)


@each_relayed_case
def test_a_relayed_stream_cut_after_any_byte_is_complete_only_behind_its_terminator(
    case: dict[str, Any],
) -> None:
    check_cuts(case, relay=True)


def check_cuts(case: dict[str, Any], *, relay: bool) -> None:
    raw = case["raw"].encode()
    whole = whole_from(case)
    for cut in range(whole, len(raw) + 1):
        assert hear(reader(case, relay), [raw[:cut]]).complete, f"cut after {cut} of {len(raw)}"
    for cut in range(min(whole, len(raw) + 1)):
        heard = hear(reader(case, relay), [raw[:cut]])
        assert not heard.complete, f"complete after {cut} of {len(raw)} bytes"
        if cut and case["expect"]["outcome"] in {"ok", "ok_transport"}:
            assert isinstance(heard.error, UpstreamBroken)
            assert heard.error.breakage is Breakage.CUT
        assert isinstance(heard.error, UpstreamBroken | UpstreamNonsense | UpstreamRefused)


@each_relayed_case
@pytest.mark.parametrize("size", [1, 10**6])
def test_relaying_concludes_as_reading_does_and_alters_no_byte(
    case: dict[str, Any], size: int
) -> None:
    raw = case["raw"].encode()
    read = hear(reader(case), sliced(raw, size))
    passed = hear(reader(case, True), sliced(raw, size))
    assert passed.complete == read.complete
    assert passed.committed == read.committed
    assert type(passed.error) is type(read.error)
    if read.complete:
        assert passed.relayed.rstrip() == raw.rstrip()
        last = passed.events[-1]
        assert (last.usage, last.reason) == (read.finished.usage, read.finished.reason)  # type: ignore[union-attr]
    else:
        assert raw.startswith(passed.relayed)


@each_relayed_case
def test_what_follows_the_terminator_changes_nothing(case: dict[str, Any]) -> None:
    if case["expect"]["outcome"] != "ok":
        return
    raw = case["raw"].encode()
    after = b"\n\n" + raw + b"data: garbage\n\n"
    check(case, hear(reader(case), [raw + after]))
    check(case, hear(reader(case), [raw, after]))


@each_case
def test_a_byte_order_mark_and_keep_alives_change_nothing(case: dict[str, Any]) -> None:
    if case["api"].startswith("ollama"):
        return
    raw = b"\xef\xbb\xbf: hello\n\n" + case["raw"].encode().replace(b"\n\n", b"\n\n: \n\n")
    check(case, hear(reader(case), sliced(raw, 5)))


@each_case
def test_other_line_ends_change_nothing(case: dict[str, Any]) -> None:
    if case["api"].startswith("ollama"):
        return
    for newline in (b"\r\n", b"\r"):
        raw = case["raw"].encode().replace(b"\n", newline)
        for size in (1, 3, 10**6):
            check(case, hear(reader(case), sliced(raw, size)))

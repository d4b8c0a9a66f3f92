"""
Streams seen in the wild, and what a client must conclude from each.

`tests/data/stream_cases.jsonl` holds the bytes, where each was seen, and the conclusion.
Streams of protocols that no backend here speaks (Gemini's native one) are left out.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import Breakage, UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.wire.anthropic import events as anthropic
from localfirst.wire.ollama import events as ollama
from localfirst.wire.openai import events as openai
from tests.wire.support import DATA, Heard, Reader, hear, sliced

READERS: dict[str, Any] = {
    "openai.chat": openai.StreamReader,
    "openai.responses": openai.StreamReader,
    "anthropic.messages": anthropic.StreamReader,
    "ollama.chat": ollama.StreamReader,
    "ollama.generate": ollama.StreamReader,
}
TERMINATORS = {
    "openai.chat": b"data: [DONE]",
    "openai.responses": b"data: [DONE]",
    "anthropic.messages": b'data: {"type":"message_stop"',
    "ollama.chat": b'"done":true',
    "ollama.generate": b'"done":true',
}
CASES = [
    case
    for case in map(json.loads, (DATA / "stream_cases.jsonl").read_text("utf-8").splitlines())
    if case["api"] in READERS
]

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
relayed_or_read = pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])


def reader(case: dict[str, Any], relay: bool = False) -> Reader:
    made: Reader = READERS[case["api"]](relay=relay)
    return made


def check_usage(heard: Heard, expected: dict[str, int] | None) -> None:
    usage = heard.finished.usage
    if expected is None:
        assert usage is None
        return
    assert usage is not None
    assert usage.prompt_tokens == expected["prompt_tokens"]
    assert usage.completion_tokens == expected["completion_tokens"]


def check_calls(heard: Heard, expected: list[dict[str, Any]]) -> None:
    assert [call.name for call in heard.calls] == [call["name"] for call in expected]
    for call, wanted in zip(heard.calls, expected, strict=True):
        assert json.loads(call.arguments or "{}") == wanted["arguments"]
        if wanted["id"] != "<synthesized>":
            assert call.id == wanted["id"]
        assert call.id


def check(case: dict[str, Any], heard: Heard) -> None:
    expect = case["expect"]
    if "text" in expect:
        assert heard.text == expect["text"]
    if "reasoning" in expect:
        assert heard.reasoning == expect["reasoning"]
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
    assert len(CASES) >= 28


@each_case
@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
def test_the_conclusion_is_right_however_the_bytes_are_sliced(
    case: dict[str, Any], size: int
) -> None:
    check(case, hear(reader(case), sliced(case["raw"].encode(), size)))


@each_case
@relayed_or_read
def test_a_stream_cut_after_any_byte_is_never_complete(case: dict[str, Any], relay: bool) -> None:
    raw = case["raw"].encode()
    end = raw.find(TERMINATORS[case["api"]])
    # Before the terminator's last byte nothing may be complete; errors never are.
    whole = len(raw) if end < 0 else end + len(TERMINATORS[case["api"]])
    if case["expect"]["outcome"] not in {"ok", "ok_transport"}:
        whole = len(raw)
    # Every byte of short streams and of the ends of long ones; their middles repeat.
    cuts = [cut for cut in range(whole) if cut < 1500 or whole - cut < 1500 or cut % 5 == 0]
    for cut in cuts:
        heard = hear(reader(case, relay), [raw[:cut]])
        assert not heard.complete, f"complete after {cut} of {len(raw)} bytes"
        if cut and case["expect"]["outcome"] in {"ok", "ok_transport"}:
            assert isinstance(heard.error, UpstreamBroken)
            assert heard.error.breakage is Breakage.CUT
        assert isinstance(heard.error, UpstreamBroken | UpstreamNonsense | UpstreamRefused)


@each_case
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


@each_case
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

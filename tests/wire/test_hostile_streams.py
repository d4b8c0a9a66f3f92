"""
Streams that were damaged on their way, or made to do damage: a reader ends with an
`UpstreamError` or a conclusion, never with anything else, and a false end is never believed.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.errors import Breakage, UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.events import Finished, FinishReason, Relayed, ToolCallDelta
from localfirst.wire.anthropic import events as anthropic
from localfirst.wire.anthropic.answers import StreamWriter
from localfirst.wire.conclusion import LOOKS_MOST, Conclusion
from localfirst.wire.ollama import events as ollama
from localfirst.wire.openai import events as openai
from tests.wire.support import DATA, dumps, hear, read_whole, sliced
from tests.wire.test_stream_cases import CASES, RELAYED, reader

READ_OR_RELAYED = [
    *(pytest.param(case, False, id=f"{case['id']}-read") for case in CASES),
    *(pytest.param(case, True, id=f"{case['id']}-relay") for case in RELAYED),
]
READING = {"openai": openai, "anthropic": anthropic, "ollama": ollama}
each_reader = pytest.mark.parametrize("module", READING.values(), ids=READING.keys())
relayed_or_read = pytest.mark.parametrize("relay", [False, True], ids=["read", "relay"])


def damaged(raw: bytes, seed: int) -> bytes:
    """*raw* with a few bytes flipped, dropped, doubled or put elsewhere."""
    rng = random.Random(seed)
    data = bytearray(raw)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 200)]
            case 3:
                data[at:at] = rng.choice(
                    [b"\n\n", b"\r", b'"', b"}", b"null", b"\xff", b"[", b"\\"]
                )
            case _:
                data = bytearray(data.replace(rng.choice([b'"', b":", b"1", b"{}"]), b"[]", 1))
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize(("case", "relay"), READ_OR_RELAYED)
def test_damaged_streams_end_with_an_upstream_error_or_a_conclusion(
    case: dict[str, Any], relay: bool
) -> None:
    raw = case["raw"].encode()
    for seed in range(40):
        stream = damaged(raw, seed)
        heard = hear(reader(case, relay), sliced(stream, 97))
        assert heard.complete or heard.error is not None


@each_reader
@relayed_or_read
@settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=300))
def test_arbitrary_bytes_are_no_answer(module: Any, relay: bool, body: bytes) -> None:
    heard = hear(module.StreamReader(relay=relay), [body])
    assert heard.error is not None and not heard.complete


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats(-9, 9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                "choices", "delta", "message", "content", "tool_calls", "function", "arguments",
                "usage", "index", "error", "finish_reason", "type", "text", "content_block", "done",
                "response", "prompt_tokens", "id", "name", "input", "done_reason", "logprobs",
            ]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=15,
)  # fmt: skip


@each_reader
@settings(max_examples=80, deadline=None)
@given(payloads=st.lists(json_values, min_size=1, max_size=3))
def test_any_json_in_the_place_of_an_event_is_survived(module: Any, payloads: list[Any]) -> None:
    whole = [dumps(payload) for payload in payloads]
    if module is ollama:
        stream = b"\n".join(whole) + b"\n"
    else:
        stream = b"".join(b"data: " + text + b"\n\n" for text in whole) + b"data: [DONE]\n\n"
    for relay in (False, True):
        hear(module.StreamReader(relay=relay), [stream])
    for text in whole:
        try:
            read_whole(module, text)
        except (UpstreamNonsense, UpstreamBroken, UpstreamRefused):
            continue


@each_reader
@relayed_or_read
def test_an_endless_line_is_too_large_and_never_kept(module: Any, relay: bool) -> None:
    block = b"x" * 2**20
    heard = hear(module.StreamReader(relay=relay), [b'data: {"choices":"', *[block] * 20])
    assert isinstance(heard.error, UpstreamBroken)
    assert heard.error.breakage is Breakage.TOO_LARGE


@each_reader
@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>\n",
        b"<html>\n\n<p>busy</p>\n\n</html>\n\n",
        b"Internal Server Error",
    ],
)
def test_a_web_page_is_no_answer(module: Any, page: bytes) -> None:
    heard = hear(module.StreamReader(), [page])
    assert isinstance(heard.error, UpstreamNonsense | UpstreamBroken)
    assert not heard.committed


@pytest.mark.parametrize("module", [openai, anthropic], ids=["openai", "anthropic"])
@pytest.mark.parametrize("space", [b"", b"\n\n"])
def test_a_bare_json_error_in_the_place_of_a_stream_is_that_error(
    module: Any, space: bytes
) -> None:
    body = b'{"error": {"message": "no credit", "code": 402}}' + space
    heard = hear(module.StreamReader(), [body])
    assert isinstance(heard.error, UpstreamRefused)
    assert (heard.error.status, heard.error.in_band) == (402, True)


@each_reader
def test_endless_keep_alives_are_no_content(module: Any) -> None:
    if module is ollama:
        return
    reader = module.StreamReader(relay=True)
    for _ in range(100):
        events = reader.feed(b": keep-alive\n\n" + b'event: ping\ndata: {"type": "ping"}\n\n')
        assert all(isinstance(event, Relayed) and not event.content for event in events)


@relayed_or_read
def test_a_null_error_in_every_chunk_is_no_error(relay: bool) -> None:
    stream = (
        b'data: {"error":null,"usage":null,"choices":[{"index":0,"error":null,'
        b'"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
    )
    assert hear(openai.StreamReader(relay=relay), [stream]).complete


def test_a_role_chunk_commits_nothing_and_the_first_piece_of_anything_does() -> None:
    def said(**delta: Any) -> bytes:
        return b"data: " + dumps({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"

    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}
    for delta, commits in (
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": None}, False),
        ({}, False),
        ({"content": "a"}, True),
        ({"reasoning": "a"}, True),
        ({"reasoning_content": "a"}, True),
        ({"refusal": "no"}, True),
        ({"tool_calls": [call]}, True),
    ):
        assert hear(openai.StreamReader(relay=True), [said(**delta)]).committed is commits
        assert hear(openai.StreamReader(), [said(**delta)]).committed is commits


def test_parallel_calls_that_all_say_index_zero_stay_apart() -> None:
    def call(identifier: str, given: str) -> bytes:
        function = {"name": "f", "arguments": given}
        delta = {"tool_calls": [{"index": 0, "id": identifier, "function": function}]}
        return b"data: " + dumps({"choices": [{"delta": delta}]}) + b"\n\n"

    stream = call("a", '{"x":1}') + call("b", '{"x":2}') + b"data: [DONE]\n\n"
    heard = hear(openai.StreamReader(), [stream])
    assert [(c.id, c.arguments) for c in heard.calls] == [("a", '{"x":1}'), ("b", '{"x":2}')]
    assert heard.finished.reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("piece", ["}", " ", "x}"])
def test_a_name_with_every_piece_does_not_have_all_pieces_read_again_each_time(piece: str) -> None:
    """At 60 bytes a piece a cloud could hold up everybody else's answers for minutes."""
    so_far = Conclusion()
    so_far.tool(0, "", "f", '{"a": "')
    for _ in range(500):
        so_far.tool(0, "", "f", piece)
    assert len(so_far.calls) == 1
    assert so_far.calls[0].looks <= LOOKS_MOST


def test_calls_that_are_mixed_do_not_have_the_open_one_read_again_for_each_piece() -> None:
    """It may be megabytes long, and never end."""
    writer = StreamWriter(model="m", request_id="r")
    writer.write(ToolCallDelta(0, "a", "f", '{"a": "}'))
    written = b"".join(
        writer.write(ToolCallDelta(number % 2, "", "f" if number == 1 else "", "}"))
        for number in range(1, 501)
    )
    assert b"tool_use" not in written and written.count(b"partial_json") == 250
    assert writer._given.looks <= LOOKS_MOST
    ended = writer.write(Finished(FinishReason.LENGTH))
    assert ended.count(b'"type":"tool_use"') == 1 and ended.count(b"partial_json") == 250


def test_content_in_typed_parts_is_read_as_text_and_thinking() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "so"},
    ]
    stream = b"data: " + dumps({"choices": [{"delta": {"content": parts}}]}) + b"\n\n"
    heard = hear(openai.StreamReader(), [stream + b"data: [DONE]\n\n"])
    assert (heard.reasoning, heard.text) == ("hm", "so")


def test_a_server_known_to_send_no_terminator_is_believed_when_it_finished() -> None:
    finished = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    unfinished = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    for relay in (False, True):
        lenient = hear(openai.StreamReader(relay=relay, done_required=False), [finished])
        assert lenient.complete
        cut = hear(openai.StreamReader(relay=relay, done_required=False), [unfinished])
        assert isinstance(cut.error, UpstreamBroken)
        strict = hear(openai.StreamReader(relay=relay), [finished])
        assert isinstance(strict.error, UpstreamBroken)


def test_the_corpus_is_plain_data() -> None:
    for line in (DATA / "stream_cases.jsonl").read_text("utf-8").splitlines():
        assert json.loads(line)["raw"]

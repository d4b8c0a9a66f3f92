"""Frames come out the same however the bytes were sliced."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.errors import Breakage, UpstreamBroken
from localfirst.wire.framing import NdjsonDecoder, SseDecoder, begins_event

SPECIAL = "\u2028\u2029\u0085\x0b\x0c\x1c"


def events(pieces: list[bytes]) -> list[tuple[str, bytes]]:
    decoder = SseDecoder()
    found = [event for piece in pieces for event in decoder.feed(piece)]
    found += decoder.close()
    return [(event.event, event.data) for event in found if event.data or event.event]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_a_frame_may_be_split_at_every_byte(newline: bytes) -> None:
    raw = b'event: x\ndata: {"a":1}\n\n: comment\n\ndata: b\ndata:c\n\n'.replace(b"\n", newline)
    expected = [("x", b'{"a":1}'), ("", b"b\nc")]
    for cut in range(len(raw) + 1):
        assert events([raw[:cut], raw[cut:]]) == expected
    assert events([raw[i : i + 1] for i in range(len(raw))]) == expected


def test_the_raw_bytes_of_the_events_are_the_bytes_that_came() -> None:
    raw = b": a\n\ndata: x\r\n\r\nevent: e\rdata: y\r\rid: 7\n\r\n\n\ndata: z\n\n"
    for size in (1, 2, 3, 100):
        decoder = SseDecoder()
        found = [e for i in range(0, len(raw), size) for e in decoder.feed(raw[i : i + size])]
        assert b"".join(event.raw for event in found) == raw


def test_separators_that_only_text_knows_split_nothing() -> None:
    data = f'{{"t":"{SPECIAL}"}}'.encode()
    assert events([b"data: " + data + b"\n\n"]) == [("", data)]
    decoder = NdjsonDecoder()
    assert decoder.feed(data + b"\n" + data + b"\n") == [data, data]


def test_text_that_looks_like_a_terminator_stays_inside_its_json() -> None:
    raw = b'data: {"t":"\\n\\ndata: [DONE]\\n\\n"}\n\n'
    assert events([raw]) == [("", b'{"t":"\\n\\ndata: [DONE]\\n\\n"}')]


def test_a_byte_order_mark_is_dropped_only_at_the_very_start() -> None:
    assert events([b"\xef\xbb\xbfdata: a\n\n", b"\xef\xbb\xbfdata: b\n\n"]) == [("", b"a")]


def test_a_field_without_a_space_or_a_colon_is_read_as_the_standard_says() -> None:
    assert events([b"data:a\ndata\ndata:  b\nfoo: c\nid: 3\n\n"]) == [("", b"a\n\n b")]


@pytest.mark.parametrize("size", [1, 100, 10**9])
def test_an_endless_line_is_refused_and_not_collected(size: int) -> None:
    for decoder in (SseDecoder(1000), NdjsonDecoder(1000)):
        raw = b"data: " + b"x" * 2000
        pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
        with pytest.raises(UpstreamBroken) as caught:
            [decoder.feed(piece) for piece in pieces]
        assert caught.value.breakage is Breakage.TOO_LARGE


@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n\r\n"])
def test_a_whole_event_over_the_limit_is_refused(ending: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        SseDecoder(1000).feed(b"data: " + b"x" * 2000 + ending)
    with pytest.raises(UpstreamBroken):
        NdjsonDecoder(1000).feed(b"x" * 2000 + b"\n")


def test_many_small_events_may_be_larger_than_the_limit_together() -> None:
    assert len(SseDecoder(1000).feed(b"data: hello\n\n" * 500)) == 500
    assert len(NdjsonDecoder(1000).feed(b"{}\n" * 5000)) == 5000


def test_a_line_without_its_newline_is_left_over_at_the_end() -> None:
    decoder = NdjsonDecoder()
    assert decoder.feed(b'{"a":1}\n\r\n{"b"') == [b'{"a":1}']
    assert decoder.close() == [b'{"b"']
    assert decoder.close() == []


@settings(deadline=None)
@given(
    texts=st.lists(
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n")), max_size=5
    ),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_any_text_survives_any_slicing(texts: list[str], cuts: list[int]) -> None:
    raw = b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    bounds = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[a:b] for a, b in itertools.pairwise(bounds)]
    assert events(pieces) == [("", text.encode()) for text in texts if text]


@pytest.mark.parametrize(
    ("start", "begins"),
    [
        (b"data: {", True), (b"da", True), (b"", True), (b"\r\n\nevent: x", True),
        (b": keep-alive", True), (b"id:7", True), (b"retry: 5", True),
        (b"\xef\xbb\xbfdata: x", True), (b"<html>", False), (b'{"error": "no"}', False),
        (b"datum", False), (b"event", True), (b"events", False), (b"Bad Gateway", False),
    ],
)  # fmt: skip
def test_a_page_is_told_from_a_stream_by_its_first_bytes(start: bytes, begins: bool) -> None:
    assert begins_event(start) is begins


def test_a_lone_carriage_return_ends_a_line_within_an_event() -> None:
    assert events([b"data: a\rdata: b\n\n"]) == [("", b"a\nb")]
    assert events([b"data: a\rdata: b\n\ndata: c\n\n"]) == [("", b"a\nb"), ("", b"c")]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_one_event_over_the_limit_is_refused_among_others(end: bytes) -> None:
    small, large = b"data: y" + end, b"data: " + b"x" * 50 + end
    for data in (small + large + small, large + small, small + large[:-2], large[:-1]):
        with pytest.raises(UpstreamBroken):
            SseDecoder(limit_bytes=40).feed(data)
    # Many small ones are no large one, and one of just the limit is none either.
    assert len(SseDecoder(limit_bytes=40).feed(small * 20)) == 20
    assert len(SseDecoder(limit_bytes=len(small)).feed(small)) == 1


def test_the_start_of_an_event_is_shown_while_it_is_short() -> None:
    decoder = SseDecoder()
    assert decoder.pending == b""
    decoder.feed(b"data: a\n\ndata: b")
    assert decoder.pending == b"data: b"
    decoder.feed(b"x" * 600)
    assert decoder.pending == b""


def test_a_line_over_the_limit_is_refused_whole_or_begun() -> None:
    for data in (b"x" * 41, b"y\n" + b"x" * 41, b"x" * 41 + b"\ny\n"):
        with pytest.raises(UpstreamBroken):
            NdjsonDecoder(limit_bytes=40).feed(data)
    assert NdjsonDecoder(limit_bytes=40).feed(b"\n" + b"x" * 40 + b"\n") == [b"x" * 40]

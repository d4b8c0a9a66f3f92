"""The reader of request heads: what it takes, a widely used parser takes the same way."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localfirst.errors import AccessDenied, BodyTooLarge
from localfirst.gateway import head as heads
from localfirst.gateway.body import Chunked, Counted, Whole


class Seen:
    """What httptools (llhttp) makes of the same bytes."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


NAMES = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"X-Y",
        b"Connection",
        b"Cookie",
        b"X Y",
        b"",
    ]
)
VALUES = st.one_of(
    st.sampled_from([b"1", b"chunked", b"close", b"a\tb", b" x ", b"\xff", b"", b"a\x00b", b"0x1"]),
    st.binary(max_size=12),
)
LINES = st.tuples(NAMES, st.sampled_from([b":", b": ", b" :", b""]), VALUES).map(b"".join)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r\n ", b"\r"])
TARGETS = st.one_of(
    st.sampled_from([b"/", b"/v1/models?x=1", b"*", b"http://e/x", b"/a b", b"/#f", b"e:443"]),
    st.binary(min_size=1, max_size=12).map(lambda data: b"/" + data),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"get", b"CONNECT", b""]))
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b""]))
    data = method + b" " + draw(TARGETS) + b" " + version + b"\r\n"
    for line in draw(st.lists(LINES, max_size=4)):
        data += line + draw(ENDS)
    return data + b"\r\n"


@given(requests())
def test_what_is_taken_is_read_as_llhttp_reads_it(data: bytes) -> None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return
    try:
        head = heads.parse(data[: end + 4])
    except AccessDenied:
        return
    seen = Seen(data[: end + 4])
    assert seen.complete
    assert seen.url == head.path + (b"?" + head.query if b"?" in seen.url else b"")
    assert seen.headers == head.headers
    assert seen.parser.get_method().decode() == head.method
    assert head.keep_alive == seen.parser.should_keep_alive()


@given(requests(), st.integers(0, 200))
def test_an_unfinished_head_never_refuses_what_a_finished_one_passes(data: bytes, cut: int) -> None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return
    whole = data[: end + 4]
    try:
        heads.parse(whole)
    except AccessDenied:
        return
    if part := whole[: min(cut, len(whole) - 1)]:
        heads.check_unfinished(part)


def head_of(*lines: bytes, version: bytes = b"1.1", method: bytes = b"POST") -> heads.Head:
    head = b"%b /x HTTP/%b\r\n" % (method, version)
    return heads.parse(head + b"".join(line + b"\r\n" for line in lines) + b"\r\n")


REFUSED = [
    # Both lengths, each right by itself: whoever is in front may have read by the other one.
    ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), b"1.1", 400, "request-malformed"),
    ((b"Transfer-Encoding: chunked", b"Content-Length: 0"), b"1.1", 400, "request-malformed"),
    ((b"Transfer-Encoding: chunked",), b"1.0", 400, "request-malformed"),
    ((b"Transfer-Encoding: gzip",), b"1.1", 501, "encoding-not-spoken"),
    ((b"Expect: something",), b"1.1", 417, "expect-not-met"),
    ((b"X: 1",) * 101, b"1.1", 431, "head-too-large"),
]


@pytest.mark.parametrize(("lines", "version", "status", "code"), REFUSED)
def test_a_head_that_can_be_read_in_two_ways_or_none_is_refused_for_that(
    lines: tuple[bytes, ...], version: bytes, status: int, code: str
) -> None:
    with pytest.raises(AccessDenied) as caught:
        head_of(*lines, version=version)
    assert (caught.value.http_status, caught.value.code) == (status, code)


def test_this_is_no_proxy_and_says_so() -> None:
    with pytest.raises(AccessDenied) as caught:
        head_of(method=b"CONNECT")
    assert (caught.value.http_status, caught.value.code) == (405, "method-not-allowed")


@pytest.mark.parametrize(
    ("version", "said", "kept"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Close, TE", False),
        (b"1.1", b"upgrade", True),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"upgrade", False),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_a_connection_is_kept_as_its_version_and_its_client_say(
    version: bytes, said: bytes | None, kept: bool
) -> None:
    lines = [] if said is None else [b"Connection: " + said]
    assert head_of(*lines, version=version).keep_alive is kept


def test_only_http_11_is_told_to_go_on() -> None:
    assert head_of(b"Expect: 100-continue").expects
    assert not head_of(b"Expect: 100-Continue", version=b"1.0").expects


def test_what_is_just_small_enough_is_taken() -> None:
    assert len(head_of(*[b"X: 1"] * heads.HEADERS_LIMIT).headers) == heads.HEADERS_LIMIT
    line = b"GET /%b HTTP/1.1" % (b"a" * (heads.TARGET_LIMIT_BYTES - 14))
    assert heads.request_line(line)[0] == "GET"
    with pytest.raises(AccessDenied) as caught:
        heads.request_line(line.replace(b"/", b"/a", 1))
    assert caught.value.http_status == 414
    most = b"GET / HTTP/1.1\r\nX: %b\r\n\r\n" % (b"a" * (heads.HEAD_LIMIT_BYTES - 23))
    assert len(most) == heads.HEAD_LIMIT_BYTES
    for read in (heads.parse, heads.check_unfinished):
        read(most)
        with pytest.raises(AccessDenied) as caught:
            read(most.replace(b"X: ", b"X: a"))
        assert caught.value.http_status == 431


@pytest.mark.parametrize("first", [b"A", b"Z"])
def test_a_beginning_is_waited_for_as_long_as_it_may_become_a_request(first: bytes) -> None:
    heads.check_unfinished(first)
    heads.check_unfinished(first * heads.TARGET_LIMIT_BYTES)
    with pytest.raises(AccessDenied) as caught:
        heads.check_unfinished(first * (heads.TARGET_LIMIT_BYTES + 1))
    assert caught.value.http_status == 414


@pytest.mark.parametrize("first", [b"@", b"[", b"\r\n", b"\x16\x03", b"a"])
def test_what_begins_no_request_is_refused_at_its_first_byte(first: bytes) -> None:
    with pytest.raises(AccessDenied):
        heads.check_unfinished(first)


def feed_all(body: Any, data: bytes, step: int) -> bytes:
    rest = b""
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        rest += piece if body.done else body.feed(piece)
    return rest


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 60))
def test_chunks_are_the_same_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    body = Chunked(1000)
    # What follows is another request's, although it looks like one more chunk.
    rest = b"2\r\nno\r\n"
    assert feed_all(body, data + b"0\r\n\r\n" + rest, step) == rest
    assert body.done and bytes(body.data) == b"".join(pieces)


@given(st.binary(max_size=60), st.integers(1, 60))
def test_a_counted_body_leaves_what_follows(data: bytes, step: int) -> None:
    body = Counted(len(data))
    assert feed_all(body, data + b"REST", step) == b"REST"
    assert body.done and bytes(body.data) == data


def test_chunks_over_the_limit_are_refused_at_their_size() -> None:
    body = Chunked(10)
    body.feed(b"8\r\n12345678\r\n")
    with pytest.raises(BodyTooLarge):
        body.feed(b"3\r\n")


@given(st.binary(max_size=80))
def test_bytes_that_are_no_chunks_are_refused_or_waited_for(data: bytes) -> None:
    body = Chunked(1000)
    try:
        body.feed(data)
    except (AccessDenied, BodyTooLarge):
        return
    assert body.done or len(data) < 1100


def test_what_a_body_holds_is_counted_as_it_comes_and_let_go_of_when_it_is_taken() -> None:
    chunked, counted, whole = Chunked(1000), Counted(60), Whole(b"a" * 50)
    chunked.feed(b"3c\r\n" + b"a" * 50)
    counted.feed(b"a" * 50)
    assert [one.held_bytes for one in (chunked, counted, whole)] == [54, 50, 50]
    assert [one.done for one in (chunked, counted, whole)] == [False, False, True]
    assert whole.feed(b"next") == b"next"
    assert chunked.feed(b"a" * 10 + b"\r\n0\r\n\r\nnext") == counted.feed(b"a" * 10 + b"next")
    for one, size in ((chunked, 60), (counted, 60), (whole, 50)):
        assert one.take() == b"a" * size
        assert (one.held_bytes, one.take()) == (0, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"3;x=1\r\nabc\r\n",
        b"3 \r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"\r\n",
        b"5\nhello",
        b"0\r\nX: 1\r\n\r\n",
        b"3\r\nabcX",
        b"3\r\nabc\rX",
        b"00000000000000003\r\n",
        b"1111111111111111111",
    ],
)
def test_a_chunk_that_another_reader_may_read_otherwise_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(AccessDenied):
        Chunked(1000).feed(data)


@pytest.mark.parametrize(
    "data", [b"", b"3", b"3\r", b"0000000000000003\r", b"3\r\nabc\r", b"0\r\n"]
)
def test_a_chunk_that_may_go_on_is_waited_for(data: bytes) -> None:
    body = Chunked(1000)
    assert body.feed(data) == b"" and not body.done


def test_chunks_of_just_the_limit_are_taken() -> None:
    body = Chunked(10)
    assert body.feed(b"a\r\n1234567890\r\n0\r\n\r\n") == b"" and body.done
    with pytest.raises(BodyTooLarge, match="10 bytes"):
        Chunked(10).feed(b"b\r\n")

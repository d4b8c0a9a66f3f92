"""A head that comes again: read once, and never taken for another."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localfirst.errors import AccessDenied
from localfirst.gateway import head as heads
from localfirst.gateway.repeat import Repeat

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:8080\r\n"
    b"Content-Length: 12\r\nAuthorization: Bearer one\r\n\r\n"
)
PLAIN = b"GET /api/tags HTTP/1.1\r\nhost: localhost\r\n\r\n"


def repeat(data: bytes = HEAD) -> Repeat:
    return Repeat(data, heads.parse(data))


def test_a_head_is_the_same_with_another_length() -> None:
    for digits in (b"12", b"0", b"123456"):
        data = HEAD.replace(b"12", digits)
        assert repeat().again(data) == int(digits)


def test_what_is_shared_does_not_tell_of_one_length() -> None:
    assert heads.parse(HEAD).headers == heads.parse(HEAD.replace(b"12", b"7")).headers


def test_a_head_without_a_length_is_the_same_byte_for_byte() -> None:
    assert repeat(PLAIN).again(PLAIN) == 0
    assert repeat(PLAIN).again(PLAIN[:-2] + b"x: y\r\n\r\n") < 0
    assert repeat(PLAIN).again(PLAIN[:-1]) < 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"one", b"two"),
        (b"POST", b"GET"),
        (b"8080", b"8081"),
        (b"completions", b"completionz"),
        (b": 12", b": +12"),
        (b": 12", b": 1 2"),
        (b": 12", b": "),
        (b": 12", b": 12\r\nx: 3"),
        (b": 12", b": " + b"1" * 21),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"\r\nAuthorization: Bearer one", b""),
        (b"one\r\n", b"one\r\nContent-Length: 12\r\n"),
    ],
)
def test_any_other_byte_makes_it_another_head(old: bytes, new: bytes) -> None:
    assert HEAD.count(old) == 1
    assert repeat().again(HEAD.replace(old, new)) < 0


def mutated() -> st.SearchStrategy[bytes]:
    """Heads one edit away, most of them malformed."""
    edits = st.tuples(
        st.integers(0, len(HEAD) - 1), st.integers(0, 3), st.binary(min_size=0, max_size=4)
    )
    return edits.map(lambda e: HEAD[: e[0]] + e[2] + HEAD[e[0] + e[1] :])


@given(mutated())
def test_what_is_taken_for_the_same_is_read_as_if_it_were_new(data: bytes) -> None:
    length = repeat().again(data)
    if length < 0:
        return
    first = repeat().head
    try:
        assert heads.parse(data) == msgspec.structs.replace(first, length=length)
    except AccessDenied:
        pytest.fail("a head was taken that the reader refuses")

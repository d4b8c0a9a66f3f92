"""What is guarded: a name with an address that nobody hears costs a moment, not the timeout."""

from __future__ import annotations

import http.client
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from localfirst.transport.bulk import BodyReader
from localfirst.transport.dial import dial, first

Place = tuple[int, tuple[str, int]]


@pytest.fixture
def deaf() -> Iterator[Place]:
    """An address that drops what comes: its backlog is full and nobody accepts."""
    if sys.platform != "linux":
        pytest.skip("elsewhere a full backlog refuses")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield socket.AF_INET, listener.getsockname()


@pytest.fixture
def heard() -> Iterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield socket.AF_INET, listener.getsockname()


@pytest.fixture
def closed() -> Place:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return socket.AF_INET, listener.getsockname()


def test_an_address_that_nobody_hears_is_not_waited_for(deaf: Place, heard: Place) -> None:
    began = time.monotonic()
    with closing(first([deaf, deaf, heard], 30.0)) as one:
        assert one.getpeername() == heard[1] and one.gettimeout() == 30.0
    assert time.monotonic() - began < 10.0


def test_a_refused_address_is_followed_by_the_next(closed: Place, heard: Place) -> None:
    with closing(first([closed, heard], 30.0)) as one:
        assert one.getpeername() == heard[1]


def test_the_first_that_answers_is_taken_and_the_others_are_let_go(
    deaf: Place, heard: Place, closed: Place
) -> None:
    with closing(first([deaf, heard, closed], 30.0)) as one:
        assert one.getpeername() == heard[1]


def test_where_nobody_answers_the_system_says_why(deaf: Place, closed: Place) -> None:
    with pytest.raises(ConnectionRefusedError):
        first([closed, closed], 30.0)
    with pytest.raises(TimeoutError):
        first([deaf], 0.05)
    with pytest.raises(OSError):
        first([(socket.AF_INET, ("255.255.255.255", 9))], 1.0)


def test_the_library_dials_by_what_is_set() -> None:
    """A Python that names it otherwise would go back to one address after the other, unseen."""
    connection = http.client.HTTPConnection("localhost")
    assert vars(connection)["_create_connection"] is socket.create_connection
    reader = BodyReader("https://a.example/x", environ={}, context=ssl.create_default_context())
    assert vars(reader._connection)["_create_connection"] is dial
    reader.close()

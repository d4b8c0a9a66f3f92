"""
A request's body off the wire: counted, or in chunks, and never more than its limit.

Chunk extensions and trailers are refused: nobody sends them to an API, and intermediaries
disagree about them. Source: RFC 9112 §7.1.
"""

from __future__ import annotations

import re

from localfirst.errors import BodyTooLarge
from localfirst.gateway.head import malformed

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")


class Whole:
    """A body that came together with its head, as small ones do."""

    __slots__ = ("data",)

    done = True

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def held_bytes(self) -> int:
        """All of it."""
        return len(self.data)

    def feed(self, data: bytes) -> bytes:
        """Nothing is missing: all of it comes after the body."""
        return data

    def take(self) -> bytes:
        """The whole body, which is let go of here."""
        data, self.data = self.data, b""
        return data


class Counted:
    """A body of *length* bytes."""

    __slots__ = ("_length", "data", "done")

    def __init__(self, length: int) -> None:
        self._length = length
        self.data = bytearray()
        self.done = length == 0

    @property
    def held_bytes(self) -> int:
        """How much of it has come."""
        return len(self.data)

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to the body; returns what comes after it."""
        missing = self._length - len(self.data)
        self.data += data[:missing]
        self.done = len(self.data) == self._length
        return data[missing:]

    def take(self) -> bytes:
        """The whole body, which is let go of here."""
        data, self.data = self.data, bytearray()
        return bytes(data)


class Chunked:
    """A body in chunks, at most *limit_bytes* in all."""

    __slots__ = ("_limit_bytes", "_pending", "data", "done")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pending = bytearray()
        self.data = bytearray()
        self.done = False

    @property
    def held_bytes(self) -> int:
        """How much of it has come; a chunk may be as large as the whole, and counts as it comes."""
        return len(self.data) + len(self._pending)

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to the body; returns what comes after it."""
        self._pending += data
        while not self.done and self._chunk():
            pass
        if not self.done:
            return b""
        rest, self._pending = bytes(self._pending), bytearray()
        return rest

    def take(self) -> bytes:
        """The whole body, which is let go of here."""
        data, self.data = self.data, bytearray()
        return bytes(data)

    def _chunk(self) -> bool:
        """Move one whole chunk; False when more bytes are needed."""
        end = self._pending.find(b"\r\n")
        if end < 0:
            if len(self._pending) > 18 or b"\n" in self._pending:
                raise malformed("a chunk's size is malformed")
            return False
        line = bytes(self._pending[:end])
        if not _SIZE.fullmatch(line):
            raise malformed("a chunk's size is malformed")
        size = int(line, 16)
        if len(self.data) + size > self._limit_bytes:
            raise too_large(self._limit_bytes)
        stop = end + 2 + size
        closing = bytes(self._pending[stop : stop + 2])
        if not b"\r\n".startswith(closing):
            raise malformed("a chunk does not end where its size says")
        if len(closing) < 2:
            return False
        self.data += self._pending[end + 2 : stop]
        del self._pending[: stop + 2]
        self.done = size == 0
        return True


Body = Whole | Counted | Chunked

NO_BODY = Whole(b"")


def too_large(limit_bytes: int) -> BodyTooLarge:
    """The refusal of a body over the limit."""
    return BodyTooLarge(
        f"the body is larger than {limit_bytes} bytes",
        hint=f"send at most {limit_bytes >> 20} MiB",
    )

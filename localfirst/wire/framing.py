"""
Bytes into frames: server-sent events and newline-delimited JSON.

Our own, because splitters made for text break JSON strings apart at U+2028, U+0085 or form
feeds. Here only the newline bytes of the two formats split, a frame has a bound, and the
bytes of each event stay as they came, so that they can be passed on untouched.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re

import msgspec

from localfirst.errors import Breakage, UpstreamBroken

FRAME_LIMIT_BYTES = 8 * 2**20
"""The longest line or event that is accepted; a longer one is an attack or a defect."""

_SHORT_BYTES = 512
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
_BOM = b"\xef\xbb\xbf"

# A blank line in any mix of line ends. Atomic, so that CRLF never counts as two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """
    One server-sent event.

    `data` is empty for comments and keep-alives; `raw` is the event's bytes with its blank
    line, exactly as they came.
    """

    event: str
    data: bytes
    raw: bytes


def begins_event(raw: bytes) -> bool:
    """Whether *raw* is the start of a server-sent event, however short, and not a page of text."""
    start = raw.removeprefix(_BOM).lstrip()
    return any(start.startswith(name) or name.startswith(start) for name in _FIELDS)


class SseDecoder:
    """Cuts a byte stream into server-sent events, however the bytes were sliced."""

    __slots__ = ("_buffer", "_limit_bytes", "_scanned", "_started")

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._started = False
        self._limit_bytes = limit_bytes

    def feed(self, data: bytes) -> list[SseEvent]:
        """Events that are complete now; raises `UpstreamBroken` for one over the limit."""
        if not self._buffer and data.endswith(b"\n\n") and b"\r" not in data:
            return self._whole(data)
        self._buffer += data
        ends = [
            match.end() for match in _BLANK_LINE.finditer(self._buffer, max(0, self._scanned - 3))
        ]
        if not ends:
            self._scanned = len(self._buffer)
            self._bound(self._scanned)
            return []
        return self._take(ends)

    @property
    def pending(self) -> bytes:
        """The start of an event that has no blank line yet, as far as it is short."""
        return bytes(self._buffer) if 0 < len(self._buffer) <= _SHORT_BYTES else b""

    def close(self) -> list[SseEvent]:
        """The pending event, if the stream ended without its blank line."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return [self._event(rest)] if rest.strip() else []

    def _whole(self, data: bytes) -> list[SseEvent]:
        """The usual case: nothing is pending, and *data* is whole events with plain newlines."""
        if data.find(b"\n\n") == len(data) - 2:
            self._bound(len(data))
            return [self._event(data)]
        events = []
        for block in data[:-2].split(b"\n\n"):
            self._bound(len(block))
            events.append(self._event(block + b"\n\n"))
        return events

    def _take(self, ends: list[int]) -> list[SseEvent]:
        whole = bytes(self._buffer[: ends[-1]])
        del self._buffer[: ends[-1]]
        self._scanned = 0
        self._bound(len(self._buffer))
        events, start = [], 0
        for end in ends:
            self._bound(end - start)
            events.append(self._event(whole[start:end]))
            start = end
        return events

    def _event(self, raw: bytes) -> SseEvent:
        if not self._started:
            self._started = True
            if raw.startswith(_BOM):
                return self._parsed(raw, raw[3:])
        if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
            return SseEvent("", raw[6:-2], raw)  # one line: nothing to put together
        return self._parsed(raw, raw)

    def _parsed(self, raw: bytes, text: bytes) -> SseEvent:
        event, data = "", []
        for line in text.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                event = value.removeprefix(b" ").decode("utf-8", "replace")
        return SseEvent(event, b"\n".join(data), raw)

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise UpstreamBroken(Breakage.TOO_LARGE, "an event is larger than 8 MiB")


class NdjsonDecoder:
    """Cuts a byte stream into lines at LF only; blank lines are left out."""

    __slots__ = ("_buffer", "_limit_bytes", "_scanned")

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._limit_bytes = limit_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Lines that are complete now, without their newline."""
        self._buffer += data
        last = self._buffer.rfind(b"\n", self._scanned)
        if last < 0:
            self._scanned = len(self._buffer)
            self._bound(self._scanned)
            return []
        whole = bytes(self._buffer[:last])
        del self._buffer[: last + 1]
        self._scanned = 0
        self._bound(len(self._buffer))
        lines = [line for line in whole.split(b"\n") if line.strip()]
        for line in lines:
            self._bound(len(line))
        return lines

    def close(self) -> list[bytes]:
        """The pending line, if the stream ended without its newline."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return [rest] if rest.strip() else []

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise UpstreamBroken(Breakage.TOO_LARGE, "a line is longer than 8 MiB")

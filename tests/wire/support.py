"""What the tests of the wire share: running a reader, and what its events add up to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from localfirst.errors import UpstreamError
from localfirst.events import (
    Event,
    Finished,
    ReasoningDelta,
    Relayed,
    Reply,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.types import Json, Rung, ToolCall
from localfirst.wire.ollama import events as ollama

DATA = Path(__file__).parent.parent / "data"


class Reader(Protocol):
    def feed(self, data: bytes) -> list[Event]: ...

    def close(self) -> list[Event]: ...


class Heard:
    """Everything a reader said, and the error it ended with."""

    def __init__(self, events: list[Event], error: UpstreamError | None) -> None:
        self.events = events
        self.error = error
        self.text = "".join(e.text for e in events if isinstance(e, TextDelta))
        self.reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
        self.relayed = b"".join(e.data for e in events if isinstance(e, Relayed))

    @property
    def complete(self) -> bool:
        last = self.events[-1] if self.events else None
        ended = isinstance(last, Finished) or (isinstance(last, Relayed) and last.final)
        return ended and self.error is None

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last

    @property
    def calls(self) -> list[ToolCall]:
        return calls_of(self.events)

    @property
    def committed(self) -> bool:
        return any(
            isinstance(e, TextDelta | ReasoningDelta | ToolCallDelta)
            or (isinstance(e, Relayed) and e.content)
            for e in self.events
        )


def calls_of(events: Iterable[Event]) -> list[ToolCall]:
    found: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            call = found.setdefault(event.index, ["", "", ""])
            call[0] += event.id
            call[1] += event.name
            call[2] += event.arguments
    return [ToolCall(id=i, name=n, arguments=a) for i, n, a in found.values()]


def hear(reader: Reader, pieces: Iterable[bytes], *, close: bool = True) -> Heard:
    """Feed *pieces*, then close: what came, and how it ended."""
    events: list[Event] = []
    try:
        for piece in pieces:
            events += reader.feed(piece)
        if close:
            events += reader.close()
    except UpstreamError as exc:
        return Heard(events, exc)
    return Heard(events, None)


def read_whole(dialect: Any, body: bytes) -> list[Event]:
    """The events of a whole answer; Ollama's is read as what it is, a stream of one line."""
    if dialect is not ollama:
        found: list[Event] = dialect.read_reply(body)
        return found
    reader = ollama.StreamReader()
    return [*reader.feed(body), *reader.close()]


def sliced(data: bytes, size: int = 1) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def reply_of(events: list[Event], **given: Any) -> Reply:
    """The reply that events add up to, as the cascade would collect it."""
    heard = Heard(events, None)
    return Reply(
        text=heard.text,
        reasoning=heard.reasoning,
        tool_calls=tuple(heard.calls),
        finish_reason=heard.finished.reason,
        usage=heard.finished.usage or Usage(),
        logprobs=tuple(
            one for event in events if isinstance(event, TextDelta) for one in event.logprobs
        ),
        stop_sequence=heard.finished.stop_sequence,
        timings=heard.finished.timings,
        **{
            "route": "local/m",
            "rung": Rung.LOCAL,
            "model": "m",
            "request_id": "req_1",
            **given,
        },
    )


def dumps(value: Json) -> bytes:
    return json.dumps(value).encode()


def payloads(stream: bytes) -> list[Json]:
    """The JSON payloads of a server-sent stream, `[DONE]` as a string."""
    found: list[Json] = []
    for line in stream.split(b"\n"):
        if line.startswith(b"data: "):
            text = line[6:]
            found.append("[DONE]" if text == b"[DONE]" else json.loads(text))
    return found


def lines(stream: bytes) -> list[Json]:
    return [json.loads(line) for line in stream.split(b"\n") if line]

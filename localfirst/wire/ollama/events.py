"""
Answers of Ollama's `/api/chat` and `/api/generate`, read into events.

Every line is looked at for an `error`, and only `done: true` ends a stream: the repeat
guard, a killed runner and bytes that are not UTF-8 all end it cleanly without one.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from localfirst.errors import (
    Breakage,
    UpstreamBroken,
    UpstreamError,
    UpstreamNonsense,
)
from localfirst.events import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Relayed,
    TextDelta,
    Usage,
)
from localfirst.types import Json
from localfirst.wire import forgiving
from localfirst.wire.conclusion import Conclusion, Stops, is_json, object_text
from localfirst.wire.forgiving import ABSENT, NO_ERROR, tokens
from localfirst.wire.framing import NdjsonDecoder
from localfirst.wire.refusal import in_band, is_error_object

_LOADED = ("load", "unload")

DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
"""Nanoseconds of the last line; they travel in `Finished.timings`."""

_LONGEST_NS = 2**63 - 1
"""Go's `time.Duration` holds no longer one."""


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct, gc=False):
    function: _Function = msgspec.field(default_factory=_Function)
    id: Any = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Line(msgspec.Struct, gc=False):
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None
    done: bool | None = None
    done_reason: str | None = None
    error: Raw = ABSENT
    logprobs: Any = None
    context: Any = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_duration: int | None = None
    eval_duration: int | None = None

    @property
    def says_nothing(self) -> bool:
        """Whether none of an answer's fields is there."""
        said = (self.response, self.thinking, self.done)
        return self.message is None and all(field is None for field in said)


_LINE = forgiving.Decoder(_Line)


class StreamReader:
    """
    Reads one stream of lines; `relay` yields the lines themselves. `stops` tells the stop
    sequences that were asked for.

    An error that follows events in the same read is raised by the next `feed` or `close`,
    so that what came before it is not lost; `failure` shows it at once.
    """

    def __init__(self, relay: bool = False, *, stops: Stops = tuple) -> None:
        self._lines = NdjsonDecoder()
        self._so_far = Conclusion(stops)
        self._relay = relay
        self._began = False
        self._over = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Event]:
        """
        The events that *data* completes.

        Raises:
            UpstreamRefused: an error line.
            UpstreamBroken: a line over the size limit.
            UpstreamNonsense: a malformed line, or an empty answer.
        """
        return self._take(self._lines.feed(data))

    def close(self) -> list[Event]:
        """
        Conclude at the end of the bytes; the events are those of a last line without newline.

        Raises:
            UpstreamBroken: cut before `done: true`.
            UpstreamNonsense: nothing came at all.
        """
        rest = self._lines.close()
        events = [] if self._over else self._take(list(filter(is_json, rest)))
        if not self._over:
            raise self.failure or self._cut(rest)
        return events

    def _cut(self, rest: list[bytes]) -> UpstreamError:
        if not self._began and not rest:
            return UpstreamNonsense("the answer is empty")
        return UpstreamBroken(Breakage.CUT, "the stream ended without `done: true`")

    def _take(self, lines: list[bytes]) -> list[Event]:
        if self.failure is not None:
            raise self.failure
        events: list[Event] = []
        for line in lines:
            if self._over:
                break
            try:
                events += self._line(line)
            except UpstreamError as exc:
                self.failure = exc
                break
        if self.failure is not None and not events:
            raise self.failure
        return events

    def _line(self, data: bytes) -> list[Event]:
        line = _read(data)
        self._began = True
        events = _said(line, self._so_far)
        said = bool(events)
        self._so_far.said |= said
        if line.done:
            finished = _finished(line, self._so_far)
            self._over = True
            events.append(finished)
        if not self._relay:
            return events
        ending = events[-1] if self._over else None
        if isinstance(ending, Finished):
            content = said or bool(ending.stop_sequence)
            return [Relayed(data + b"\n", content, True, ending.usage, ending.reason)]
        return [Relayed(data + b"\n", said)]


def _read(data: bytes) -> _Line:
    try:
        line = _LINE.decode(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        if is_error_object(data):
            raise in_band(data) from exc
        raise UpstreamNonsense(f"a malformed line: {exc}") from exc
    if line.error is not ABSENT and line.error not in NO_ERROR:
        raise in_band(data)
    if line.message is None and line.says_nothing and is_error_object(data):
        raise in_band(data)
    return line


def _said(line: _Line, so_far: Conclusion) -> list[Event]:
    message = line.message or _Message(line.response, line.thinking, line.tool_calls)
    events: list[Event] = []
    if message.thinking:
        events.append(ReasoningDelta(message.thinking))
    if message.content:
        events.append(TextDelta(message.content, _logprobs(line) if line.logprobs else ()))
    for call in message.tool_calls or ():
        arguments = object_text(call.function.arguments) or "{}"
        # Calls come whole, and `index` starts again at 0 in every line.
        identifier = "" if call.id is None else str(call.id)
        event = so_far.tool(len(so_far.calls), identifier, call.function.name or "", arguments)
        if event is not None:
            events.append(event)
    return events


def _logprobs(line: _Line) -> tuple[Json, ...]:
    return tuple(line.logprobs) if isinstance(line.logprobs, list) else ()


def _finished(line: _Line, so_far: Conclusion) -> Finished:
    so_far.reason = FinishReason.LENGTH if line.done_reason == "length" else FinishReason.STOP
    so_far.usage = Usage(
        prompt_tokens=tokens(line.prompt_eval_count), completion_tokens=tokens(line.eval_count)
    )
    timings: dict[str, Json] = {
        name: value
        for name in DURATIONS
        if (value := getattr(line, name)) is not None and 0 <= value <= _LONGEST_NS
    }
    if line.context:
        timings["context"] = line.context
    if line.done_reason in _LOADED:
        return Finished(
            FinishReason.STOP, so_far.usage, "", {**timings, "done_reason": line.done_reason}
        )
    return so_far.finish(timings=timings)

"""
An OpenAI-style answer, read into events: as a stream, or as one JSON body.

With `relay` the bytes themselves are handed on, one `Relayed` for all the events of a read;
they are looked at all the same, because a false end must never be passed on as a true one.
"""

from __future__ import annotations

import msgspec

from localfirst.errors import (
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
    ToolCallDelta,
)
from localfirst.wire.conclusion import Conclusion, Stops, unfinished, whole_events
from localfirst.wire.forgiving import ABSENT
from localfirst.wire.framing import SseDecoder, SseEvent, begins_event
from localfirst.wire.openai.chunks import (
    CHUNK,
    REASONS,
    Choice,
    Chunk,
    Delta,
    in_texts,
    logprobs_of,
    read,
    reason_of,
)
from localfirst.wire.refusal import in_band, is_error_object

DONE = b"data: [DONE]\n\n"

_BESIDE = frozenset({"ping", "heartbeat", "keepalive", "keep-alive"})
"""Events of proxies that only keep a connection alive, with whatever in them."""


class Habits(msgspec.Struct):
    """How one server has been seen to behave: whether its streams end with `[DONE]`."""

    ends_with_done: bool = False


class StreamReader:
    """
    Reads one stream.

    Args:
        relay: yield `Relayed` bytes instead of deltas.
        strip_usage: leave out the usage chunk from relayed bytes, for a client that did not
            ask for it (clients that index `choices[0]` break on it).
        done_required: a stream that finished but has no `[DONE]` counts as cut.
        habits: of a server that is not known; it need not write `[DONE]` before it once did
            (Perplexity and ik_llama.cpp never do), but a finish reason.
        stops: tells the stop sequences that were asked for, if one may have been met at once.

    An error that follows events in the same read is raised by the next `feed` or `close`,
    so that what came before it is not lost; `failure` shows it at once.
    """

    def __init__(
        self,
        relay: bool = False,
        *,
        strip_usage: bool = False,
        done_required: bool = True,
        habits: Habits | None = None,
        stops: Stops = tuple,
    ) -> None:
        self._frames = SseDecoder()
        self._so_far = Conclusion(stops)
        self._stops = stops
        self._relay = relay
        self._strip_usage = strip_usage
        self._habits = habits or Habits(done_required)
        self._began = False
        self._over = False
        self._stop = ""
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Event]:
        """
        The events that *data* completes.

        Raises:
            UpstreamRefused: an error inside the stream.
            UpstreamBroken: an event over the size limit.
            UpstreamNonsense: a malformed chunk, an empty answer, a broken tool call.
        """
        frames = self._frames.feed(data)
        # A terminator needs no blank line: some servers end right behind it.
        if (pending := self._frames.pending) and _is_done(pending):
            frames += self._frames.close()
        return self._take(frames)

    def close(self) -> list[Event]:
        """
        Conclude at the end of the bytes; the events are those of a last unended block.

        Raises:
            UpstreamBroken: cut before the terminator.
            UpstreamNonsense: nothing came at all, or not an event stream.
        """
        rest = self._frames.close()
        events = [] if self._over else self._take(whole_events(rest))
        if self._over:
            return events
        if self.failure is not None:
            raise self.failure
        if not self._habits.ends_with_done and self._so_far.reason is not None:
            return [*events, *self._end(b"", False)]
        raise unfinished(self._began, rest, "[DONE]")

    def _take(self, frames: list[SseEvent]) -> list[Event]:
        if self.failure is not None:
            raise self.failure
        batch = _Batch()
        try:
            for frame in frames:
                if self._over:
                    break
                self._frame(frame, batch)
        except UpstreamError as exc:
            self.failure = exc
        if self._relay and batch.raw:
            batch.events.append(
                Relayed(b"".join(batch.raw), batch.content, False, self._so_far.usage, None)
            )
        if self.failure is not None and not batch.events:
            raise self.failure
        return batch.events

    def _frame(self, frame: SseEvent, batch: _Batch) -> None:
        data = frame.data
        if not data:
            self._comment(frame, batch)
            return
        self._began = True
        if self._relay and self._passes(frame, batch):
            return
        if data.strip() == b"[DONE]":
            self._habits.ends_with_done = True
            batch.events += self._end(b"".join(batch.raw), batch.content)
            batch.raw.clear()
            return
        if frame.event == "error":
            raise in_band(data)
        if frame.event in _BESIDE and not data.startswith(b"{"):
            return
        chunk = _sound(data)
        said = self._chunk(chunk, batch)
        if not self._relay:
            return
        batch.content |= said
        if not (self._strip_usage and not chunk.choices and chunk.usage is not None):
            told = in_texts(data, chunk)
            batch.raw.append(frame.raw if told is data else b"data: %b\n\n" % told)

    def _passes(self, frame: SseEvent, batch: _Batch) -> bool:
        """Relay an ordinary piece of text or reasoning at once; False for all that is more."""
        try:
            chunk = CHUNK.decode(frame.data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return False
        choices = chunk.choices
        if not choices or frame.event or chunk.usage or chunk.x_groq or len(choices) > 1:
            return False
        choice = choices[0]
        delta = choice.delta
        if delta is None or choice.finish_reason or delta.tool_calls or delta.function_call:
            return False
        if chunk.error is not ABSENT or choice.error is not ABSENT:
            return False
        if delta.content or delta.reasoning_content or delta.reasoning or delta.refusal:
            batch.content = self._so_far.said = True
        batch.raw.append(frame.raw)
        return True

    def _comment(self, frame: SseEvent, batch: _Batch) -> None:
        """Keep-alives go on to a relaying client; a bare JSON error is still an error."""
        text = frame.raw.strip()
        if text.startswith((b"{", b"[")) and not self._began:
            # A server that does not stream, whatever it was asked for.
            batch.events += read_reply(text, stops=self._stops)
            self._over = True
        elif text.startswith((b"{", b"[")) and is_error_object(text):
            raise in_band(text)
        elif text.startswith((b"<", b"{", b"[")):
            raise UpstreamNonsense("the answer is no event stream")
        elif text.startswith(b":"):
            self._began = True
            if self._relay:
                batch.raw.append(frame.raw)

    def _chunk(self, chunk: Chunk, batch: _Batch) -> bool:
        """Take one chunk in; whether it said anything."""
        if (usage := chunk.counted) is not None:
            self._so_far.usage = usage
        said = False
        for choice in chunk.choices or ():
            if choice.index and not self._relay:
                continue  # another answer to the same question, which only a relay can show
            events = _events(choice, self._so_far)
            said |= bool(events)
            if not self._relay:
                batch.events += events
            if choice.finish_reason:
                self._so_far.reason = reason_of(choice.finish_reason)
                self._stop = choice.stop_sequence
        self._so_far.said |= said
        return said

    def _end(self, before: bytes, content: bool) -> list[Event]:
        finished = self._so_far.finish(stop_sequence=self._stop)
        self._over = True
        if not self._relay:
            return [finished]
        content = content or bool(finished.stop_sequence)
        return [Relayed(before + DONE, content, True, finished.usage, finished.reason)]


class _Batch:
    """What one read yields: deltas, or raw frames and whether they say anything."""

    __slots__ = ("content", "events", "raw")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.raw: list[bytes] = []
        self.content = False


def read_reply(body: bytes, *, relay: bool = False, stops: Stops = tuple) -> list[Event]:
    """
    The events of a whole JSON answer; with *relay* one final `Relayed` of its bytes.

    A stream that nobody asked for is read too, and never handed through.

    Raises:
        UpstreamRefused: the answer is an error in spite of its status.
        UpstreamNonsense: no JSON, no choices, nothing said, or a broken tool call.
    """
    if body[:1] != b"{" and begins_event(body):
        return _streamed(body, stops)
    chunk = _read(body)
    if relay and (reason := _plain_reason(chunk)) is not None:
        return [Relayed(body, True, True, chunk.counted, reason)]
    _judge(chunk, body)
    told = in_texts(body, chunk) if relay else body
    if not chunk.choices:
        raise UpstreamNonsense("an answer without choices")
    so_far = Conclusion(stops)
    so_far.usage = chunk.counted
    choice = chunk.choices[0]
    events = _events(choice, so_far)
    so_far.said = bool(events)
    so_far.reason = reason_of(choice.finish_reason) if choice.finish_reason else None
    finished = so_far.finish(stop_sequence=choice.stop_sequence)
    if relay:
        content = so_far.said or bool(finished.stop_sequence)
        return [Relayed(told, content, True, finished.usage, finished.reason)]
    return [*events, finished]


def _streamed(body: bytes, stops: Stops) -> list[Event]:
    """The events of a server that streams, whatever it was asked for."""
    reader = StreamReader(stops=stops)
    events = reader.feed(body)
    return events if events and isinstance(events[-1], Finished) else [*events, *reader.close()]


def _plain_reason(chunk: Chunk) -> FinishReason | None:
    """Why one choice of text alone ended; None for an answer that is anything more."""
    choices = chunk.choices
    if not choices or len(choices) > 1 or chunk.error is not ABSENT or type(chunk) is not Chunk:
        return None
    choice = choices[0]
    said = choice.message
    if said is None or choice.delta is not None or choice.error is not ABSENT:
        return None
    if not said.content or said.tool_calls or said.function_call is not None:
        return None
    return REASONS.get(choice.finish_reason or "stop")


def _sound(data: bytes) -> Chunk:
    """The payload in *data*, which says of itself neither that it failed nor that it gave up."""
    chunk = _read(data)
    _judge(chunk, data)
    return chunk


def _read(data: bytes) -> Chunk:
    try:
        return read(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        if is_error_object(data):
            raise in_band(data) from exc
        raise UpstreamNonsense(f"a malformed answer: {exc}") from exc


def _judge(chunk: Chunk, data: bytes) -> None:
    if chunk.failed or (not chunk.choices and chunk.usage is None and is_error_object(data)):
        raise in_band(data)
    if chunk.gave_up:
        raise in_band(data, status=503)


def _is_done(pending: bytes) -> bool:
    """Whether what is pending is a terminator that only lacks its blank line."""
    if b"[DONE]" not in pending:
        return False
    last = pending.splitlines()[-1]
    return last.startswith(b"data:") and last[5:].strip() == b"[DONE]"


def _events(choice: Choice, so_far: Conclusion) -> list[Event]:
    """What a choice says: reasoning first, as models do, then text, then calls."""
    delta = choice.delta or choice.message
    if delta is None:
        return [TextDelta(choice.text, logprobs_of(choice.logprobs))] if choice.text else []
    events: list[Event] = []
    if thought := delta.reasoning_content or delta.reasoning:
        events.append(ReasoningDelta(thought))
    if text := delta.content or delta.refusal:
        events.append(TextDelta(text, logprobs_of(choice.logprobs)))
    if delta.tool_calls or delta.function_call:
        events += _calls(delta, so_far)
    return events


def _calls(delta: Delta, so_far: Conclusion) -> list[ToolCallDelta]:
    found = []
    for position, piece in enumerate(delta.calls):
        function = piece.function
        event = so_far.tool(
            position if piece.index is None else piece.index,
            piece.id or "",
            (function and function.name) or "",
            (function and function.arguments) or "",
            numbered=piece.index is not None,
        )
        if event is not None:
            found.append(event)
    return found

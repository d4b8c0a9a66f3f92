"""
Gemini's answers, read into events: a stream of events, or one JSON body.

There is no terminator of its own: a stream is complete when its bytes end and the last event
that said anything of the answer named a finish reason. Not earlier, because some models and
proxies name one in every event (songquanpeng/one-api#1477, Chevey339/kelivo#1003).
"""

from __future__ import annotations

import re

import msgspec

from localfirst.errors import UpstreamError, UpstreamNonsense
from localfirst.events import Event, Finished, FinishReason, ReasoningDelta, TextDelta
from localfirst.wire.conclusion import (
    Conclusion,
    check_comment,
    object_text,
    unfinished,
    whole_events,
)
from localfirst.wire.forgiving import NO_ERROR
from localfirst.wire.framing import SseDecoder, SseEvent, begins_event
from localfirst.wire.gemini.frames import (
    BROKEN,
    FRAME,
    PAYLOADS,
    REASONS,
    UNSAID,
    Candidate,
    Counts,
    Frame,
    FunctionCall,
    Part,
)
from localfirst.wire.gemini.marks import Marks
from localfirst.wire.refusal import in_band, is_error_object

_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]")
_ID_CHARS = 28  # OpenAI's clients may count on ids of at most 40 characters


class StreamReader:
    """
    Reads one stream.

    Args:
        marks: where the signatures of tool calls are kept for the next turn.

    An error that follows events in the same read is raised by the next `feed` or `close`,
    so that what came before it is not lost; `failure` shows it at once.
    """

    def __init__(self, marks: Marks | None = None) -> None:
        self._frames = SseDecoder()
        self._answer = _Answer(marks)
        self._began = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Event]:
        """
        The events that *data* completes; never `Finished`, which only the end of the bytes is.

        Raises:
            UpstreamRefused: an error inside the stream.
            UpstreamBroken: an event over the size limit.
            UpstreamNonsense: a malformed event, or a tool call that the model broke.
        """
        return self._take(self._frames.feed(data))

    def close(self) -> list[Event]:
        """
        Conclude at the end of the bytes.

        Raises:
            UpstreamBroken: cut before a finish reason, or inside an event.
            UpstreamNonsense: nothing came at all, an empty answer, or not an event stream.
        """
        rest = self._frames.close()
        whole = whole_events(rest)
        events = self._take(whole)
        if self.failure is not None:
            raise self.failure
        if len(whole) < len(rest) or not self._answer.ended:
            raise unfinished(self._began, rest, "finishReason")
        return [*events, self._answer.finish()]

    def _take(self, frames: list[SseEvent]) -> list[Event]:
        if self.failure is not None:
            raise self.failure
        events: list[Event] = []
        try:
            for frame in frames:
                events += self._frame(frame)
        except UpstreamError as exc:
            self.failure = exc
        if self.failure is not None and not events:
            raise self.failure
        return events

    def _frame(self, frame: SseEvent) -> list[Event]:
        data = frame.data
        if not data and not self._began and frame.raw.lstrip().startswith((b"{", b"[")):
            # Without `alt=sse`, which a proxy may lose, the answer is one list.
            found = _payloads(frame.raw)
            self._began = True
            return [event for one in found for event in self._answer.take(one)]
        if not data:
            self._began |= frame.raw.startswith(b":")
            check_comment(frame)
            return []
        self._began = True
        if data == b"[DONE]":  # of a proxy that speaks OpenAI's dialect elsewhere
            return []
        return self._answer.take(_read(data))


class _Answer:
    """What the candidate of an answer has amounted to so far."""

    def __init__(self, marks: Marks | None) -> None:
        self._marks = marks
        self._so_far = Conclusion()
        self._counts: Counts | None = None
        self._id = ""
        self.ended = False

    def take(self, frame: Frame) -> list[Event]:
        """The events of one payload."""
        if frame.usage_metadata is not None:
            self._counts = frame.usage_metadata.over(self._counts)
        self._id = self._id or _NOT_IN_IDS.sub("", frame.response_id or "")[:_ID_CHARS]
        blocked = frame.prompt_feedback and frame.prompt_feedback.block_reason
        if blocked and blocked not in UNSAID:
            self._ends(FinishReason.CONTENT_FILTER)
        events: list[Event] = []
        for candidate in frame.candidates or ():
            if not candidate.index:
                events += self._candidate(candidate)
        return events

    def finish(self) -> Finished:
        """The end of an answer that is one; raises `UpstreamNonsense` for any other."""
        self._so_far.usage = self._counts.usage if self._counts else None
        return self._so_far.finish()

    def _candidate(self, candidate: Candidate) -> list[Event]:
        events: list[Event] = []
        for part in (candidate.content and candidate.content.parts) or ():
            events += self._part(part)
        self._so_far.said |= bool(events)
        reason = candidate.finish_reason or ""
        if reason in BROKEN:
            raise UpstreamNonsense(f"the model ended with {reason}")
        if reason not in UNSAID:
            self._ends(REASONS.get(reason, FinishReason.STOP))
        elif events:
            self.ended = False
        return events

    def _ends(self, reason: FinishReason) -> None:
        self.ended = True
        self._so_far.reason = reason

    def _part(self, part: Part) -> list[Event]:
        if part.function_call is not None:
            return self._call(part.function_call, part.thought_signature or "")
        if not part.text:
            return []
        return [ReasoningDelta(part.text) if part.thought else TextDelta(part.text)]

    def _call(self, call: FunctionCall, signature: str) -> list[Event]:
        slot = len(self._so_far.calls)
        made = f"call_{self._id}_{slot}" if self._id else ""
        given = object_text(call.args) or "{}"
        event = self._so_far.tool(slot, call.id or made, call.name or "", given)
        if event is None:
            return []
        if self._marks is not None:
            self._marks.put(event.id, signature, event.id == call.id)
        return [event]


def read_reply(body: bytes, *, marks: Marks | None = None) -> list[Event]:
    """
    The events of a whole answer, or of a stream that nobody asked for.

    Raises:
        UpstreamRefused: the answer is an error in spite of its status.
        UpstreamNonsense: no JSON, no candidate, nothing said, or a broken tool call.
    """
    if body[:1] != b"{" and begins_event(body):
        reader = StreamReader(marks)
        return [*reader.feed(body), *reader.close()]
    answer = _Answer(marks)
    found = _payloads(body)
    events = [event for frame in found for event in answer.take(frame)]
    if not answer.ended and not any(frame.candidates for frame in found):
        raise UpstreamNonsense("an answer without candidates")
    return [*events, answer.finish()]


def _payloads(body: bytes) -> list[Frame]:
    """The payloads of an answer that is no event stream: one, or a list of them."""
    if not body.lstrip().startswith(b"["):
        return [_read(body)]
    try:
        found = PAYLOADS.decode(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise UpstreamNonsense(f"a malformed answer: {exc}") from exc
    return [_read(bytes(one)) for one in found]


def _read(data: bytes) -> Frame:
    try:
        frame = FRAME.decode(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        if is_error_object(data):
            raise in_band(data) from exc
        raise UpstreamNonsense(f"a malformed answer: {exc}") from exc
    if frame.error not in NO_ERROR or (frame.says_nothing and is_error_object(data)):
        raise in_band(data)
    return frame

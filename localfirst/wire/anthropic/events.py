"""
Anthropic's answers, read into events: the stream of `message_start` … `message_stop`, or one
message. Blocks are known by their type, never by their position.
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
)
from localfirst.wire.anthropic.frames import (
    FRAME,
    GAVE_UP,
    MESSAGE,
    REASONS,
    Block,
    Counts,
    Delta,
    Frame,
)
from localfirst.wire.conclusion import (
    Conclusion,
    check_comment,
    object_text,
    unfinished,
    whole_events,
)
from localfirst.wire.framing import SseDecoder, SseEvent, begins_event
from localfirst.wire.refusal import in_band, is_error_object

_STOP = b"message_stop"


class StreamReader:
    """
    Reads one stream; `relay` yields the events' bytes, one `Relayed` for all of a read.

    An error that follows events in the same read is raised by the next `feed` or `close`,
    so that what came before it is not lost; `failure` shows it at once.
    """

    def __init__(self, relay: bool = False) -> None:
        self._frames = SseDecoder()
        self._so_far = Conclusion()
        self._counts = Counts()
        self._stop_sequence = ""
        self._tools: dict[int, str] = {}
        self._relay = relay
        self._began = False
        self._over = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Event]:
        """
        The events that *data* completes.

        Raises:
            UpstreamRefused: an `error` event.
            UpstreamBroken: an event over the size limit.
            UpstreamNonsense: a malformed event, an empty answer, a broken tool call.
        """
        frames = self._frames.feed(data)
        # A terminator needs no blank line: some servers end right behind it.
        if (pending := self._frames.pending) and _is_stop(pending):
            frames += self._frames.close()
        return self._take(frames)

    def close(self) -> list[Event]:
        """
        Conclude at the end of the bytes; the events are those of a last unended block.

        Raises:
            UpstreamBroken: cut before `message_stop`.
            UpstreamNonsense: nothing came at all, or not an event stream.
        """
        rest = self._frames.close()
        events = [] if self._over else self._take(whole_events(rest))
        if not self._over:
            raise self.failure or unfinished(self._began, rest, "message_stop")
        return events

    def _take(self, frames: list[SseEvent]) -> list[Event]:
        if self.failure is not None:
            raise self.failure
        events: list[Event] = []
        passed: list[bytes] = []
        try:
            for frame in frames:
                if self._over:
                    break
                events += self._frame(frame)
                passed.append(_ended(frame.raw))
        except UpstreamError as exc:
            self.failure = exc
        if self._relay and passed and self._began:
            events = [self._relayed(b"".join(passed), events)]
        if self.failure is not None and not events:
            raise self.failure
        return events

    def _relayed(self, data: bytes, events: list[Event]) -> Relayed:
        last = events[-1] if events else None
        if isinstance(last, Finished):
            content = len(events) > 1 or bool(last.stop_sequence)
            return Relayed(data, content, True, last.usage, last.reason)
        return Relayed(data, bool(events), False, None, None)

    def _frame(self, frame: SseEvent) -> list[Event]:
        data = frame.data
        if not data and not self._began and frame.raw.lstrip().startswith((b"{", b"[")):
            # A server that does not stream, whatever it was asked for.
            events = read_reply(frame.raw.strip())
            self._over = True
            return events
        if not data:
            self._began |= frame.raw.startswith(b":")
            check_comment(frame)
            return []
        self._began = True
        if frame.event == "error" or (b'"error"' in data and is_error_object(data)):
            raise in_band(data)
        if data == b"[DONE]" or (frame.event == "ping" and not data.startswith(b"{")):
            return []  # of proxies that also speak OpenAI's dialect; it ends nothing here
        try:
            found = FRAME.decode(data)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise UpstreamNonsense(f"a malformed event: {exc}") from exc
        if not found.type and not frame.event and is_error_object(data):
            raise in_band(data)
        if found.delta is not None and found.delta.stop_reason in GAVE_UP:
            raise in_band(data, status=503)
        return self._event(found, found.type or frame.event)

    def _event(self, frame: Frame, kind: str) -> list[Event]:
        events: list[Event] = []
        match kind:
            case "content_block_delta" if frame.delta:
                events = self._delta(frame.index or 0, frame.delta)
            case "content_block_start" if frame.content_block:
                events = self._block(frame.index or 0, frame.content_block)
            case "content_block_stop":
                events = self._whole_input(frame.index or 0)
            case "message_start" if frame.message and frame.message.usage:
                self._counts = frame.message.usage.over(self._counts)
            case "message_delta":
                self._ending(frame)
            case "message_stop":
                return [*self._inputs_at_end(), self._finish()]
        self._so_far.said |= bool(events)
        return events

    def _delta(self, index: int, delta: Delta) -> list[Event]:
        if delta.text:
            return [TextDelta(delta.text)]
        if delta.thinking or delta.signature:
            return [ReasoningDelta(delta.thinking or "", delta.signature or "")]
        if delta.partial_json and index in self._tools:
            self._tools[index] = ""
            piece = self._so_far.tool(index, "", "", delta.partial_json)
            return [piece] if piece else []
        return []

    def _block(self, index: int, block: Block) -> list[Event]:
        if block.type == "tool_use":
            # Some servers give the input at once, and some of those again in pieces.
            self._tools[index] = object_text(block.input) if block.input else ""
            block.input = None
        return block_events(index, block, self._so_far)

    def _whole_input(self, index: int) -> list[Event]:
        """The input that stood in a block's start, when no piece of it followed."""
        given, self._tools[index] = self._tools.get(index, ""), ""
        piece = self._so_far.tool(index, "", "", given) if given else None
        return [piece] if piece else []

    def _inputs_at_end(self) -> list[Event]:
        return [event for index in [*self._tools] for event in self._whole_input(index)]

    def _ending(self, frame: Frame) -> None:
        if frame.usage:
            self._counts = frame.usage.over(self._counts)
        if frame.delta and frame.delta.stop_reason:
            self._so_far.reason = REASONS.get(frame.delta.stop_reason, FinishReason.STOP)
            self._stop_sequence = frame.delta.stop_sequence or ""

    def _finish(self) -> Finished:
        self._so_far.usage = self._counts.usage
        finished = self._so_far.finish(stop_sequence=self._stop_sequence)
        self._over = True
        return finished


def read_reply(body: bytes, *, relay: bool = False) -> list[Event]:
    """
    The events of a whole message; with *relay* one final `Relayed` of its bytes.

    A stream that nobody asked for is read too, and never handed through.

    Raises:
        UpstreamRefused: the answer is an error in spite of its status.
        UpstreamNonsense: no JSON, no message, or nothing said.
    """
    if body[:1] != b"{" and begins_event(body):
        reader = StreamReader()
        streamed = reader.feed(body)
        ended = streamed and isinstance(streamed[-1], Finished)
        return streamed if ended else [*streamed, *reader.close()]
    try:
        found = MESSAGE.decode(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        if is_error_object(body):
            raise in_band(body) from exc
        raise UpstreamNonsense(f"a malformed answer: {exc}") from exc
    if found.type == "error" or (found.content is None and is_error_object(body)):
        raise in_band(body)
    if found.stop_reason in GAVE_UP:
        raise in_band(body, status=503)
    if found.type != "message":
        raise UpstreamNonsense("an answer that is no message")
    so_far = Conclusion()
    events: list[Event] = []
    for index, block in enumerate(found.content or ()):
        events += block_events(index, block, so_far)
    so_far.said = bool(events)
    so_far.reason = REASONS.get(found.stop_reason or "", FinishReason.STOP)
    so_far.usage = (found.usage or Counts()).usage
    finished = so_far.finish(stop_sequence=found.stop_sequence or "")
    if relay:
        content = so_far.said or bool(finished.stop_sequence)
        return [Relayed(body, content, True, finished.usage, finished.reason)]
    return [*events, finished]


def block_events(index: int, block: Block, so_far: Conclusion) -> list[Event]:
    """What a block says by itself; at the start of a stream's block that is little."""
    if block.type == "text" and block.text:
        return [TextDelta(block.text)]
    if block.type == "thinking" and (block.thinking or block.signature):
        return [ReasoningDelta(block.thinking or "", block.signature or "")]
    if block.type == "tool_use":
        given = object_text(block.input) if block.input else ""
        piece = so_far.tool(index, block.id or "", block.name or "", given)
        return [piece] if piece else []
    return []


def _ended(raw: bytes) -> bytes:
    """An event with its blank line, which the last one of a stream may lack."""
    if raw.endswith((b"\n\n", b"\r\n\r\n")):
        return raw
    return raw.rstrip(b"\r\n") + b"\n\n"


def _is_stop(pending: bytes) -> bool:
    """Whether what is pending is a whole `message_stop` that only lacks its blank line."""
    if _STOP not in pending or not pending.rstrip().endswith(b"}"):
        return False
    try:
        return FRAME.decode(pending.partition(b"data:")[2]).type == "message_stop"
    except (msgspec.DecodeError, RecursionError):
        return False

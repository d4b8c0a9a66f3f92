"""
What an answer has amounted to so far, whatever its dialect: shared by the stream readers.

Keeps the tool calls' pieces together, knows whether anything was said, and decides at the
terminator whether the answer is one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence

import msgspec

from localfirst.errors import Breakage, UpstreamBroken, UpstreamError, UpstreamNonsense
from localfirst.events import Finished, FinishReason, ToolCallDelta, Usage
from localfirst.types import Json
from localfirst.wire.framing import SseEvent, begins_event
from localfirst.wire.refusal import in_band, is_error_object

CALLS_MOST = 1024
"""More calls than any answer has; telling them apart takes longer with each."""

LOOKS_MOST = 64
"""For the end of one call's arguments: each reads all of them, and they may never end."""

_ANY = msgspec.json.Decoder()


class Pieces:
    """One tool call as it grows; `given` is the id its provider named, if it did."""

    __slots__ = ("arguments", "given", "id", "last", "looks", "name")

    def __init__(
        self, given: str = "", identifier: str = "", name: str = "", arguments: str = ""
    ) -> None:
        self.given = given
        self.id = identifier
        self.name = name
        self.arguments: list[str] = []
        self.last = ""
        self.looks = 0
        self.add(arguments)

    def add(self, piece: str) -> None:
        """Take one more piece of the arguments."""
        self.arguments.append(piece)
        if piece.strip():
            self.last = piece

    @property
    def whole(self) -> bool:
        """Whether the arguments are complete JSON; none at all counts as `{}`."""
        return not self.begun or is_json("".join(self.arguments))

    @property
    def begun(self) -> bool:
        """Whether any argument has been written."""
        return bool(self.last)

    def ended(self) -> bool:
        """Whether the arguments look whole by now; not told after many looks."""
        if not self.last.rstrip().endswith("}") or self.looks == LOOKS_MOST:
            return False
        self.looks += 1
        return self.whole


Stops = Callable[[], Sequence[str]]
"""Tells the stop sequences that were asked for, where that has to be known."""


class Conclusion:
    """Collects what a stream said and turns its terminator into a `Finished`."""

    __slots__ = ("_slots", "_stops", "calls", "reason", "said", "usage")

    def __init__(self, stops: Stops = tuple) -> None:
        self._stops = stops
        self.calls: list[Pieces] = []
        self._slots: dict[int, int] = {}
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.said = False

    def tool(
        self, index: int, identifier: str, name: str, arguments: str, *, numbered: bool = True
    ) -> ToolCallDelta | None:
        """
        Take one piece of a call; the event for it, or None when it adds nothing.

        Some providers send no id, repeat it, give one id to several calls, or send an empty
        name with the first or with later pieces; the event carries id and name exactly once,
        as soon as there is a name, and an id is made up where none came. Without a number of
        its own (`numbered`) a piece belongs to the call of its id.
        """
        self.said = True
        slot = self._slots.get(index)
        if not numbered and identifier:
            slot = next((n for n, c in enumerate(self.calls) if c.given == identifier), slot)
        if slot is None or self._is_another(slot, identifier, name, arguments):
            if len(self.calls) == CALLS_MOST:
                raise UpstreamNonsense(f"more than {CALLS_MOST} tool calls in one answer")
            slot = self._slots[index] = len(self.calls)
            call = Pieces(identifier, self._own_id(identifier), name, arguments)
            self.calls.append(call)
            return ToolCallDelta(slot, call.id, name, arguments) if name else None
        call = self.calls[slot]
        call.add(arguments)
        if not call.name and name:
            call.name = name
            return ToolCallDelta(slot, call.id, name, "".join(call.arguments))
        return ToolCallDelta(slot, "", "", arguments) if arguments and call.name else None

    def _is_another(self, slot: int, identifier: str, name: str, arguments: str) -> bool:
        """
        Whether a piece begins a new call although its number is taken.

        Some servers number all parallel calls 0: a new id with a name is a new call, and so
        is a name without any id once the call before it is whole.
        """
        call = self.calls[slot]
        if not name or (identifier and identifier == call.given):
            return False
        if identifier and call.given:
            return True
        if not call.name or (name == call.name and not arguments.strip()):
            return False
        return call.ended()

    def _own_id(self, identifier: str) -> str:
        """An id that no other call has: clients and clouds match results by it, turns later."""
        if identifier and all(call.id != identifier for call in self.calls):
            return identifier
        return f"call_{secrets.token_hex(8)}"

    def finish(
        self, *, stop_sequence: str = "", timings: dict[str, Json] | None = None
    ) -> Finished:
        """
        The `Finished` of an answer whose terminator came.

        Raises:
            UpstreamNonsense: nothing was said, and no stop sequence was met at once; or a tool
                call's arguments are not whole.
        """
        reason = self.reason or FinishReason.STOP
        if self.calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        if not self.said and reason in {FinishReason.STOP, FinishReason.TOOL_CALLS}:
            stop_sequence = stop_sequence or self._met_at_once()
            if not stop_sequence:
                raise UpstreamNonsense("an empty answer: no text, no reasoning, no tool call")
        # A call cut by the token limit is what the model wrote, and `length` says so.
        if reason is not FinishReason.LENGTH:
            self._check_calls()
        return Finished(reason, self.usage, stop_sequence, timings or {})

    def _met_at_once(self) -> str:
        """
        The stop sequence that ended an answer before its first word, or "".

        Few servers name it. Tokens that were counted and not shown are one, where one was
        asked for: of several the first is named.
        """
        usage = self.usage or Usage()
        shown = usage.completion_tokens > usage.reasoning_tokens
        return next(iter(self._stops()), "") if shown else ""

    def _check_calls(self) -> None:
        for call in self.calls:
            if not call.whole:
                raise UpstreamNonsense("a tool call's arguments are not complete JSON")
            if not call.name:
                raise UpstreamNonsense("a tool call without a name")


def is_json(text: str | bytes) -> bool:
    """Whether *text* is one JSON value."""
    try:
        _ANY.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def json_value(text: str) -> Json:
    """The JSON value that *text* is; None also where it is none, or nests beyond all reason."""
    try:
        value: Json = _ANY.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return value


def object_text(value: Json) -> str:
    """Tool arguments as JSON text, whichever way a provider sends them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def arguments_object(arguments: str) -> msgspec.Raw:
    """
    A call's arguments as the JSON object that some dialects want instead of text.

    Models do write broken JSON, are cut by the token limit, and clients send such calls
    back; broken text stands as it is under one key, so that the conversation can go on.
    """
    if arguments.strip() in {"", "null"}:
        return msgspec.Raw(b"{}")
    if isinstance(json_value(arguments), dict):
        return msgspec.Raw(arguments.encode())
    return msgspec.Raw(msgspec.json.encode({"arguments": arguments}))


def whole_events(rest: list[SseEvent]) -> list[SseEvent]:
    """Of what was pending at the end of the bytes, that which is not itself cut."""
    return [
        event for event in rest if not event.data or event.data == b"[DONE]" or is_json(event.data)
    ]


def check_comment(frame: SseEvent) -> None:
    """Raises for what stands where a comment may, between events, and is none: an error, a page."""
    text = frame.raw.strip()
    if text.startswith((b"{", b"[")) and is_error_object(text):
        raise in_band(text)
    if text.startswith((b"<", b"{", b"[")):
        raise UpstreamNonsense("the answer is no event stream")


def unfinished(began: bool, rest: list[SseEvent], terminator: str) -> UpstreamError:
    """The error of a stream of events that ended without its *terminator*."""
    if began or (rest and begins_event(rest[-1].raw)):
        return UpstreamBroken(Breakage.CUT, f"the stream ended without `{terminator}`")
    return UpstreamNonsense("the answer is empty, or no event stream")

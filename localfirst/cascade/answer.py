"""An answer on its way: who gives it, what it cost to find them, and its events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Never, cast

from localfirst.cascade import report
from localfirst.cascade.report import Facts
from localfirst.errors import StreamInterrupted
from localfirst.events import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Relayed,
    Reply,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.types import Attempt, Target, ToolCall

if TYPE_CHECKING:
    from localfirst.cascade.climb import Climb
    from localfirst.cascade.direct import Given


class _Ready:
    """An awaitable, and the iterator of its own waiting, that has its value already."""

    __slots__ = ("_event",)

    def __init__(self, event: Event) -> None:
        self._event = event

    def __await__(self) -> Generator[Any, Any, Event]:
        return self  # type: ignore[return-value]  # an iterator is all that `await` uses

    def __iter__(self) -> Iterator[Never]:
        return self

    def __next__(self) -> Never:
        raise StopIteration(self._event)


class Replay:
    """Events that are all there already, read as a stream is."""

    __slots__ = ("_at", "events")

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self._at = 0

    def __aiter__(self) -> Replay:
        return self

    def __anext__(self) -> Awaitable[Event]:
        if self._at >= len(self.events):
            raise StopAsyncIteration
        self._at += 1
        return _Ready(self.events[self._at - 1])

    def close(self) -> None:
        """Nothing is left to be read."""
        self._at = len(self.events)

    async def aclose(self) -> None:
        """The same, for whoever closes streams."""
        self.close()


Events = AsyncGenerator[Event, None] | Replay


class Answer:
    """
    One answer. Iterate it to its end, or `aclose()` it; both free the upstream at once.

    Yields `Progress` at most before any content, then deltas, and last one `Finished`; or
    `Relayed` bytes, the last one `final`. Raises `StreamInterrupted` when it breaks after
    its first content, and what `Cascade.open` raises when only `Progress` had been seen.
    """

    __slots__ = ("_climb", "_events", "_first")

    def __init__(self, climb: Climb | Given, first: Event | None, events: Events) -> None:
        self._climb = climb
        self._first = first
        self._events = events

    @property
    def target(self) -> Target:
        """Who answers; while only `Progress` was seen, who is being waited for."""
        return self._climb.target

    @property
    def attempts(self) -> list[Attempt]:
        """Every request that was sent for this answer, in order."""
        return self._climb.attempts

    def headers(self) -> list[tuple[str, str]]:
        """The `x-localfirst-*` facts known so far."""
        return [*self.facts(), report.id_fact(self._climb.call.request_id)]

    def facts(self) -> Facts:
        """The same without the request's id: what repeats from one request to the next."""
        return self._climb.facts()

    def __aiter__(self) -> Answer:
        return self

    def __anext__(self) -> Awaitable[Event]:
        first = self._first
        if first is not None:
            self._first = None
            return _Ready(first)
        return self._events.__anext__()

    def wrap(
        self,
        around: Callable[[Climb, AsyncGenerator[Event, None]], AsyncGenerator[Event, None]],
    ) -> None:
        """Put a generator around all events; only before the first one was taken."""
        first, rest = self._first, self._events

        async def whole() -> AsyncGenerator[Event, None]:
            async with aclosing(rest):
                if first is not None:
                    yield first
                async for event in rest:
                    yield event

        self._first = None
        # What came the short way is plain, and nothing is put around it.
        self._events = around(cast("Climb", self._climb), whole())

    async def aclose(self) -> None:
        """Stop, and close the upstream connection; idempotent."""
        self._first = None
        events = self._events
        if type(events) is Replay:
            events.close()
        else:
            await cast("Climb", self._climb).aclose(events)

    async def read(self) -> list[Event]:
        """Every event that was not taken yet; raises as iterating does."""
        events = self._events
        if type(events) is Replay and self._first is None:
            return events.events
        return [event async for event in self]

    async def reply(self) -> Reply:
        """
        The whole answer, read to its end if that has not happened yet.

        Raises:
            StreamInterrupted: it was cut.
        """
        try:
            async for _ in self:
                pass
        finally:
            await self.aclose()
        return self._whole()

    def _whole(self) -> Reply:
        seen = self._climb.seen
        if not any(isinstance(event, Finished) for event in seen):
            raise StreamInterrupted("the answer was closed before its end")
        last = next(event for event in reversed(seen) if isinstance(event, Finished))
        thoughts = [event for event in seen if isinstance(event, ReasoningDelta)]
        texts = [event for event in seen if isinstance(event, TextDelta)]
        proofs = [event.signature for event in thoughts if event.signature]
        target = self.target
        return Reply(
            text="".join(event.text for event in texts),
            reasoning="".join(event.text for event in thoughts),
            # A proof is of one block's thoughts; of several there is none for the whole.
            reasoning_signature=proofs[0] if len(proofs) == 1 else "",
            tool_calls=tool_calls(seen),
            finish_reason=last.reason,
            usage=last.usage or Usage(),
            route=target.route,
            rung=target.rung,
            model=target.model,
            attempts=tuple(self.attempts),
            substituted=target.requested,
            request_id=self._climb.call.request_id,
            logprobs=tuple(one for event in texts for one in event.logprobs),
            stop_sequence=last.stop_sequence,
            timings=last.timings,
        )


def tool_calls(events: list[Event]) -> tuple[ToolCall, ...]:
    """The whole tool calls that deltas add up to, by their index."""
    found: dict[int, tuple[str, str, list[str]]] = {}
    for event in events:
        if not isinstance(event, ToolCallDelta):
            continue
        known = found.get(event.index)
        if known is None:
            found[event.index] = (event.id, event.name, [event.arguments])
        else:
            known[2].append(event.arguments)
            found[event.index] = (known[0] or event.id, known[1] or event.name, known[2])
    return tuple(
        ToolCall(id=id, name=name, arguments="".join(parts))
        for _, (id, name, parts) in sorted(found.items())
    )


def cut_tool_call(events: list[Event]) -> bool:
    """Whether a tool call ended in the middle of its arguments."""
    return any(call.arguments and not _is_json(call.arguments) for call in tool_calls(events))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def commits(event: Event) -> bool:
    """Whether handing this event over decides who answers."""
    kind = type(event)
    if kind is Relayed:
        return event.content  # type: ignore[union-attr]
    if kind is TextDelta or kind is ReasoningDelta:
        return bool(event.text)  # type: ignore[union-attr]
    return kind is ToolCallDelta


def usage_of(event: Event) -> Usage | None:
    """The usage that a last event carries."""
    return event.usage if isinstance(event, Finished | Relayed) else None


def reason_of(event: Event) -> FinishReason | None:
    """Why the model stopped, if this event says so."""
    return event.reason if isinstance(event, Finished | Relayed) else None

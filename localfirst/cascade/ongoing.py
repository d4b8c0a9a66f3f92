"""One attempt while it lasts: its watchdog, what is held back, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from localfirst.cascade.answer import commits, cut_tool_call, reason_of, usage_of
from localfirst.cascade.watch import Watches
from localfirst.engines.base import Limits
from localfirst.errors import Breakage, UpstreamBroken, UpstreamNonsense, UpstreamRefused
from localfirst.events import Event, Finished, FinishReason, Opened, Progress, Relayed, Usage
from localfirst.types import Attempt, Clock, Failure, Target

# What is no content may not grow without end before content comes; a patient server that
# sends an empty delta every half second for the longest wait comes to a quarter of it.
PRELUDE_EVENTS = 4096
# After the terminator the connection has this long to end by itself and be used again.
LINGER_S = 1.0
FILTERED = b'{"error":{"code":"content_filter","message":"the answer was filtered"}}'


class Ongoing:
    """
    An attempt that is being read.

    Nothing is handed over before the first content, `Progress` excepted, to a caller who
    streams; to one who does not, nothing before the end: until then somebody else may answer.
    """

    __slots__ = (
        "_began", "_began_unix", "_clock", "_content", "_deadline", "_keep", "_on_content",
        "_prelude", "_streams", "before", "committed", "finished", "first_token_s", "headers",
        "limits", "settled", "target", "usage", "watch",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        limits: Limits,
        *,
        clock: Clock,
        deadline: float,
        streams: bool,
        keep: list[Event],
        watches: Watches,
        on_content: Callable[[Target], None] | None = None,
    ) -> None:
        self.target = target
        self.limits = limits
        self.watch = watches.begin(limits.first_token_s)
        self.committed = False
        self.finished = False
        self.settled = False
        self.first_token_s = 0.0
        self.usage: Usage | None = None
        self.headers: tuple[tuple[str, str], ...] = ()
        self.before: tuple[Exception, ...] = ()
        self._clock = clock
        self._began = clock.monotonic()
        self._began_unix = clock.unix()
        self._deadline = deadline
        self._streams = streams
        self._prelude: list[Event] = []
        self._content = False
        self._keep = keep
        self._on_content = on_content

    def began_at(self, began: float, began_unix: float) -> None:
        """Count from when the request was really sent."""
        self._began, self._began_unix = began, began_unix

    @property
    def duration_s(self) -> float:
        """Seconds since the attempt began."""
        return self._clock.monotonic() - self._began

    def record(self, outcome: str, failure: Failure | None = None, *, sent: bool = True) -> Attempt:
        """The attempt as it stands in trails, reports and the ledger."""
        return Attempt(
            provider=self.target.provider,
            model=self.target.model,
            key_label=self.target.key_label,
            outcome=str(outcome),
            status=failure.status if failure else None,
            message=failure.message if failure else "",
            retry_after_s=failure.retry_after_s if failure else None,
            started_unix=self._began_unix,
            duration_s=self.duration_s,
            sent=sent,
        )

    def take(self, event: Event) -> Sequence[Event]:
        """Take the backend's next event; what may be handed over now."""
        if self.finished:
            # Bytes after the terminator are nobody's; they are read for the connection's sake.
            return ()
        if self.committed:
            if type(event) is Relayed:
                if event.final:
                    self._finish(event)
                elif event.usage is not None:  # all that is known, should its caller leave
                    self.usage = event.usage
            else:
                self._keep.append(event)
                if type(event) is Finished:
                    self._finish(event)
            return (event,)
        if not self._streams:
            return self._hold(event)
        if commits(event):
            return self._commit(event)
        return self._before(event)

    def ended(self) -> None:
        """The stream is over; raises unless its terminator came."""
        if not self.finished:
            raise UpstreamBroken(Breakage.CUT, "the stream ended without its terminator")

    def _hold(self, event: Event) -> Sequence[Event]:
        """Keep an event until the answer is whole."""
        kind = type(event)
        if kind is Relayed and event.final and event.content:  # type: ignore[union-attr]
            return self._commit(event)  # the whole of it at once
        if not self._content and commits(event):
            self._content, self.first_token_s = True, self.duration_s
            self.watch.restart(self.limits.stall_s, Breakage.STALL_TIMEOUT)
        if not self._content:
            return self._before(event)
        if kind is Finished:
            if cut_tool_call(self._prelude):
                raise UpstreamNonsense("a tool call ended in the middle of its arguments")
            return self._commit(event)
        if kind is Relayed and event.final:  # type: ignore[union-attr]
            return self._commit(event)
        self._prelude.append(event)
        return ()

    def _before(self, event: Event) -> Sequence[Event]:
        kind = type(event)
        if isinstance(event, Opened):
            self.headers, self.before = event.headers, event.before
            return ()
        if kind is Progress:
            return self._progress(event)
        if kind is Finished or (isinstance(event, Relayed) and event.final):
            return self._empty(event)
        self._prelude.append(event)
        if len(self._prelude) > PRELUDE_EVENTS:
            raise UpstreamNonsense(f"{PRELUDE_EVENTS} events without any content")
        return ()

    def _commit(self, event: Event) -> Sequence[Event]:
        self.committed = True
        if not self._content:
            self.first_token_s = self.duration_s
        if self._on_content is not None:
            self._on_content(self.target)
        ready = [*self._prelude, event]
        for one in ready:
            self.take(one)
        if not self.finished:
            self.watch.restart(self.limits.stall_s, Breakage.STALL_TIMEOUT)
        return ready

    def _progress(self, event: Event) -> Sequence[Event]:
        left_s = self._deadline - self._clock.monotonic()
        if left_s <= 0:
            raise UpstreamBroken(Breakage.TOTAL_TIMEOUT, "the deadline passed")
        limit_s = min(self.limits.first_token_s, left_s)
        self.watch.restart(limit_s, Breakage.FIRST_TOKEN_TIMEOUT)
        return (event,) if self._streams else ()

    def _empty(self, event: Event) -> Sequence[Event]:
        """An end without content: an answer only where the reason explains it."""
        reason = reason_of(event)
        if reason is FinishReason.CONTENT_FILTER:
            raise UpstreamRefused(400, FILTERED, in_band=True)
        met = type(event) is Finished and event.stop_sequence
        if reason is not FinishReason.LENGTH and not met:
            raise UpstreamNonsense("the answer was empty")
        return self._commit(event)

    def _finish(self, event: Event) -> None:
        if type(event) is Finished and cut_tool_call(self._keep):
            raise UpstreamNonsense("a tool call ended in the middle of its arguments")
        self.finished = True
        self.usage = usage_of(event)
        self.watch.restart(LINGER_S, Breakage.STALL_TIMEOUT)

"""
One request on its way down the ladder: ask, watch, hand over, or go on to the next.

One generator is the whole of it. It yields `Progress` while nothing is decided, commits at
the first content, and from then on only passes events through. Whoever closes it closes
the upstream; whoever cancels it blames nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec

from localfirst.cascade import classify, exits, report
from localfirst.cascade.answer import Answer
from localfirst.cascade.ladder import GiveUp, Ladder, Take, Wait
from localfirst.cascade.ongoing import Ongoing
from localfirst.engines.base import Limits
from localfirst.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LocalFirstError,
    PrivacyRefused,
    StreamInterrupted,
    Unavailable,
    UpstreamError,
    let_go,
)
from localfirst.events import Event
from localfirst.types import Attempt, Call, Failure, FailureClass, Rung, Scope, Target

if TYPE_CHECKING:
    from localfirst.cascade.run import Cascade

log = logging.getLogger(__name__)

# What a candidate keeps back for each one behind it, where the deadline is long enough.
LEAST_SHARE_S = 5.0
# A whole answer shows nothing until its end: it may take so many waits for a first token.
WHOLE_WAITS = 5.0
# Whoever was given less, because the deadline was nearly over, is not blamed for it.
JUDGED_S = 1.0
# An answer that is over waits this long for the cooldowns it caused to be on disk.
SETTLE_S = 0.5
NOBODY = Target(rung=Rung.LOCAL, provider="", model="")


class Climb:
    """The state of one request; written only by its own generator."""

    def __init__(self, cascade: Cascade, call: Call, ladder: Ladder, *, local_only: bool) -> None:
        self.cascade = cascade
        self.call = call
        self.ladder = ladder
        self.attempts: list[Attempt] = []
        self.egress: list[str] = []
        self.seen: list[Event] = []
        self.target = NOBODY
        self.from_cache = False
        self._local_only = local_only
        self._began = cascade.clock.monotonic()
        self._strict = call.deadline_s is not None
        whole_s = cascade.settings.cascade.deadline_s
        self._deadline = self._began + (whole_s if call.deadline_s is None else call.deadline_s)
        self._ongoing: Ongoing | None = None
        self._writing: list[asyncio.Future[None]] = []

    async def open(self) -> Answer:
        """Go down until there is something to hand over."""
        events = self.events()
        try:
            first = await events.__anext__()
        except StopAsyncIteration:
            raise StreamInterrupted("the answer ended before it began") from None
        return Answer(self, first, events)

    def replayed(self, target: Target, events: list[Event]) -> Answer:
        """An answer that was given before; nobody is asked."""
        self.target = target
        self.from_cache = True

        async def again() -> AsyncGenerator[Event, None]:
            for event in events[1:]:
                yield event

        self.seen.extend(events)
        return Answer(self, events[0], again())

    async def aclose(self, events: AsyncGenerator[Event, None]) -> None:
        """Close the generator, also while another task reads from it."""
        if not getattr(events, "ag_running", False):
            await events.aclose()
        elif self._ongoing is not None:
            self._ongoing.watch.abandon()

    @property
    def asking(self) -> Target | None:
        """Who is being asked right now."""
        return self._ongoing.target if self._ongoing is not None else None

    def headers(self) -> list[tuple[str, str]]:
        """
        The `x-localfirst-*` facts known so far.

        They are sent with the first content: an answer that has begun counts as the one
        that was given, although its end is still to come.
        """
        target = self.target if self.target.provider else None
        attempts, current = self.attempts, self._ongoing
        if current is not None and current.committed and not current.settled:
            attempts = [*attempts, *self._taught(current), current.record("ok")]
        found = report.headers(
            attempts, request_id=self.call.request_id, target=target, egress=self.egress
        )
        return [*found, ("x-localfirst-cache", "hit")] if self.from_cache else found

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event that is handed over; raises when nobody answers, or somebody stops."""
        try:
            while True:
                take = await self._next()
                attempt = self._begin(take)
                watch = attempt.watch
                try:
                    stream = self._ask(attempt)
                    try:
                        async for event in stream:
                            ready = attempt.take(event)
                            if attempt.finished and not attempt.settled:
                                await self._won(attempt)
                            for one in ready:
                                watch.since = None
                                yield one
                                watch.resume()
                    finally:
                        await stream.aclose()
                    attempt.ended()
                    return
                except asyncio.CancelledError:
                    self._stopped(take, attempt)
                except Exception as error:  # noqa: BLE001 - logged; no backend may end the ladder
                    try:
                        self._failed(take, attempt, error)
                    finally:
                        let_go(error)
                finally:
                    self._leave(attempt)
                if attempt.finished:
                    return
        except LocalFirstError as error:
            error.attempts = error.attempts or tuple(self.attempts)
            error.egress = tuple(dict.fromkeys(self.egress))
            if isinstance(error, Unavailable | DeadlineExceeded) and self.cascade.alarm is not None:
                self.cascade.alarm.exhausted(self.attempts, self._prompt())
            await self._settle()
            raise

    def _prompt(self) -> str:
        """What was asked, for an escalation; only where the settings want it written down."""
        if not self.cascade.settings.escalation.include_prompts:
            return ""
        chat = self.call.chat
        return chat.prompt or "\n".join(f"{one.role}: {one.text}" for one in chat.messages)

    # --- the next one -----------------------------------------------------------------------

    async def _next(self) -> Take:
        """The next candidate, after any wait that is worth it."""
        while True:
            now = self.cascade.clock.monotonic()
            move = self.ladder.next_move(now, self.cascade.now_unix())
            if isinstance(move, GiveUp):
                raise exits.nobody(
                    self.attempts, self.ladder, move.retry_after_s, self.cascade.now_unix()
                )
            if now >= self._deadline:
                if isinstance(move, Take):
                    self.cascade.health.left(move.target)
                raise self._too_late()
            if isinstance(move, Take):
                if self._may_go(move):
                    return move
                continue
            await self._wait(move)

    async def _wait(self, move: Wait) -> None:
        seconds = min(move.seconds, max(0.0, self._deadline - self.cascade.clock.monotonic()))
        await self.cascade.clock.sleep(seconds)
        self.ladder.waited(seconds)

    def _too_late(self) -> DeadlineExceeded:
        seconds = self.cascade.clock.monotonic() - self._began
        told = report.text(self.attempts, self.ladder.skipped)
        return DeadlineExceeded(f"no answer within {seconds:.1f} s: {told}")

    # --- one attempt ------------------------------------------------------------------------

    def _begin(self, take: Take) -> Ongoing:
        target = take.target
        take.candidate.asked += 1
        limits = self._limits(take)
        self.cascade.quota.reserve(target, self.call.needs.prompt_tokens)
        self.target = target
        attempt = self._ongoing = Ongoing(
            target,
            limits,
            clock=self.cascade.clock,
            deadline=self._deadline if self._strict else float("inf"),
            streams=self.call.stream,
            keep=self.seen,
            watches=self.cascade.watches,
            on_content=None if self.cascade.health.idle else self.cascade.began,
        )
        return attempt

    def _may_go(self, take: Take) -> bool:
        """The last look before a request leaves the machine; what is not allowed stays."""
        if not take.candidate.step.leaves_machine:
            return True
        provider = take.target.provider
        if self._local_only or self.call.local_only:
            self.cascade.health.left(take.target)
            raise PrivacyRefused(f"`{provider}` is not on this machine")
        no = self.cascade.over_budget(take.target)
        if no:
            take.candidate.over = True
            self.cascade.health.left(take.target)
            self.ladder.skipped.append((provider, no))
            return False
        self.egress.append(provider)
        return True

    def _limits(self, take: Take) -> Limits:
        """
        The waits of one attempt, its share of the deadline among them.

        Content of a whole (not streamed) answer comes with its end, so it may take longer
        than a first token, but never what the others need at least. A model of this machine
        is bounded by its own limit, and by the deadline only when the caller set one.
        """
        waits, step = self.cascade.settings.timeouts, take.candidate.step
        mine, first_s = take.target.rung is not Rung.CLOUD, self._own_wait_s(take)
        left_s = max(0.0, self._deadline - self.cascade.clock.monotonic())
        share_s = left_s / take.share
        if self.call.stream:
            first_s = first_s if mine else min(first_s, share_s)
        elif mine or take.share == 1:
            first_s = first_s if step.timeout_s else max(first_s, share_s)
        elif not step.timeout_s:
            first_s = max(first_s, min(share_s, first_s * WHOLE_WAITS))
        left_s -= min(LEAST_SHARE_S, share_s) * (take.share - 1)
        bounded = self._strict or not mine
        return Limits(
            connect_s=waits.connect_s,
            first_token_s=min(first_s, left_s) if bounded else first_s,
            stall_s=waits.stall_s,
            load_s=waits.load_s,
            # A stream that moves may outlast the deadline: it bounds the way to an answer.
            deadline=self._deadline if bounded and not self.call.stream else float("inf"),
        )

    def _own_wait_s(self, take: Take) -> float:
        """The wait for a first token that the settings give this candidate."""
        waits = self.cascade.settings.timeouts
        mine = take.target.rung is not Rung.CLOUD
        return take.candidate.step.timeout_s or (
            waits.local_first_token_s if mine else waits.first_token_s
        )

    def _fairly(self, take: Take, attempt: Ongoing, failure: Failure) -> Failure:
        """*failure*, and nobody's when there was too little time left to judge anybody by."""
        enough_s = min(self._own_wait_s(take), JUDGED_S)
        if failure.cls is not FailureClass.TIMEOUT or attempt.limits.first_token_s >= enough_s:
            return failure
        return msgspec.structs.replace(failure, scope=Scope.REQUEST)

    def _ask(self, attempt: Ongoing) -> AsyncGenerator[Event, None]:
        return self.cascade.backend(attempt.target).answer(
            self.call, attempt.target, attempt.limits
        )

    async def _won(self, attempt: Ongoing) -> None:
        """The terminator came: settle everything before the last event is handed over."""
        attempt.settled = True
        self._note_taught(attempt)
        record = attempt.record("ok")
        self.attempts.append(record)
        self.cascade.won(self.call, attempt, record)
        if self._writing:
            await self._settle()

    def _stopped(self, take: Take, attempt: Ongoing) -> None:
        """Tell the watchdog's cancellation from the caller's; only called while handling one."""
        broken = attempt.watch.verdict()
        if broken is None:
            raise
        if attempt.watch.abandoned:
            raise StreamInterrupted("the answer was closed while it was being read") from None
        self._failed(take, attempt, broken)

    def _failed(self, take: Take, attempt: Ongoing, error: BaseException) -> None:
        """Classify, remember, and raise where the ladder must not go on."""
        if attempt.finished:
            # The answer is whole; what breaks behind its end is not its caller's matter,
            # but a fault of ours there must not be silent.
            if not isinstance(error, classify.EXPECTED):
                log.error("after an answer of `%s`", attempt.target.provider, exc_info=error)
            return
        if isinstance(error, InvalidRequest):
            raise error
        if isinstance(error, UpstreamError) and error.before:
            attempt.before = error.before
        self._note_taught(attempt)
        failure = self._failure(attempt, error)
        if not isinstance(error, classify.EXPECTED):
            log.error("`%s` failed unexpectedly", attempt.target.provider, exc_info=error)
        failure = self._fairly(take, attempt, failure)
        attempt.settled = True
        record = attempt.record(failure.cls, failure)
        self.attempts.append(record)
        writing = self.cascade.lost(self.call, attempt, record, failure)
        if writing is not None:
            self._writing.append(writing)
        if attempt.committed:
            raise StreamInterrupted(
                f"{attempt.target.route} broke off: {failure.message}", cls=failure.cls
            ) from error
        self._judge(take, attempt, failure)

    def _failure(self, attempt: Ongoing, error: BaseException) -> Failure:
        return classify.failure(
            attempt.target.provider,
            error,
            model=attempt.target.model,
            now_unix=self.cascade.now_unix(),
        )

    def _taught(self, attempt: Ongoing) -> list[Attempt]:
        """The requests of this attempt that were refused for a field, and sent without it."""
        found = [self._failure(attempt, refused) for refused in attempt.before]
        return [attempt.record(failure.cls, failure) for failure in found]

    def _note_taught(self, attempt: Ongoing) -> None:
        if attempt.before:
            for record in self._taught(attempt):
                self.attempts.append(record)
                self.cascade.taught(self.call, attempt, record)

    def _judge(self, take: Take, attempt: Ongoing, failure: Failure) -> None:
        fault = exits.at_fault(failure, attempt.target.provider)
        if fault is not None and not classify.is_capability(failure):
            raise fault
        self.ladder.failed(take.candidate, attempt.target, failure, self.cascade.clock.monotonic())

    def _leave(self, attempt: Ongoing) -> None:
        """Give back what the attempt held; runs however it ended."""
        attempt.watch.close()
        self._ongoing = None
        self.cascade.quota.release(attempt.target, self.call.needs.prompt_tokens)
        if not attempt.settled:
            self.cascade.health.left(attempt.target)
        if attempt.target.rung is not Rung.CLOUD and not self._strict:
            # Time on this machine's own model is not the clouds' to lose.
            self._deadline += attempt.duration_s

    async def _settle(self) -> None:
        """Wait, briefly, until the cooldowns that this request caused are written."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=SETTLE_S)
            self._writing.clear()

"""
One request on its way down the ladder: ask, watch, hand over, or go on to the next.

A stream is one generator: it yields `Progress` while nothing is decided, commits at the first
content, and from then on only passes events through. Whoever closes it closes the upstream;
whoever cancels it blames nobody. Any other answer is read to its end before it is handed
over, so that until then the next candidate may give it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from localfirst.cascade import classify, escalate, exits, report, verdict
from localfirst.cascade.answer import Answer, Events, Replay
from localfirst.cascade.direct import Asked, ShortWay
from localfirst.cascade.ladder import Candidate, GiveUp, Ladder, Take
from localfirst.cascade.ongoing import Ongoing
from localfirst.cascade.shares import limits_of
from localfirst.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LocalFirstError,
    PrivacyRefused,
    StreamInterrupted,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    let_go,
)
from localfirst.events import Event
from localfirst.types import Attempt, Call, Rung, Target

if TYPE_CHECKING:
    from localfirst.cascade.run import Cascade

log = logging.getLogger(__name__)

# An answer that is over waits this long for the cooldowns it caused to be on disk.
SETTLE_S = 0.5
NOBODY = Target(rung=Rung.LOCAL, provider="", model="")


class Climb:
    """The state of one request; written only by its own generator."""

    def __init__(
        self,
        cascade: Cascade,
        call: Call,
        ladder: Ladder,
        *,
        local_only: bool,
        way: ShortWay | None = None,
        asked: Asked | None = None,
    ) -> None:
        self.cascade = cascade
        self.call = call
        self.ladder = ladder
        self.attempts: list[Attempt] = []
        self.egress: list[str] = []
        self.seen: list[Event] = []
        self.whole: list[Event] = []
        self.target = NOBODY
        self.from_cache = False
        self._local_only = local_only
        self._way = way if asked is None else asked.way
        self._first: ShortWay | None = None
        self._asked = asked
        self._began = asked.began if asked is not None else cascade.clock.monotonic()
        self._strict = call.deadline_s is not None
        whole_s = cascade.settings.cascade.deadline_s
        self._deadline = self._began + (whole_s if call.deadline_s is None else call.deadline_s)
        self._ongoing: Ongoing | None = None
        self._writing: list[asyncio.Future[None]] = []

    async def open(self) -> Answer:
        """Go down until there is something to hand over: the first content, or all of it."""
        if not self.call.stream:
            return Answer(self, None, Replay(await self._all()))
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
        self.seen.extend(events)
        return Answer(self, None, Replay(events))

    async def aclose(self, events: Events) -> None:
        """Close the generator, also while another task reads from it."""
        if not getattr(events, "ag_running", False):
            await events.aclose()
        elif self._ongoing is not None:
            self._ongoing.watch.abandon()

    @property
    def asking(self) -> Target | None:
        """Who is being asked right now."""
        return self._ongoing.target if self._ongoing is not None else None

    def facts(self) -> report.Facts:
        """
        The `x-localfirst-*` facts known so far.

        They are sent with the first content: an answer that has begun counts as the one
        that was given, although its end is still to come.
        """
        target = self.target if self.target.provider else None
        attempts, current = self.attempts, self._ongoing
        if current is not None and current.committed and not current.settled:
            if self._first is not None and not current.before:
                return self._first.facts
            attempts = [*attempts, *verdict.taught(current, self.cascade.now_unix())]
            attempts.append(current.record("ok"))
        found = report.told(attempts, target, self.egress)
        return (("x-localfirst-cache", "hit"), *found) if self.from_cache else found

    async def _all(self) -> list[Event]:
        """Every event of an answer that is handed over at its end; the next one on any fault."""
        try:
            while True:
                take = await self._next()
                attempt = self._begin(take)
                try:
                    await self._read(attempt)
                except asyncio.CancelledError:
                    self._stopped(take, attempt)
                except Exception as error:  # noqa: BLE001 - logged; no backend may end the ladder
                    self._failed(take, attempt, error)
                finally:
                    self._leave(attempt)
                if attempt.finished:
                    return self.whole
        except LocalFirstError as error:
            await self._gave_up(error)
            raise

    async def _read(self, attempt: Ongoing) -> None:
        """Read one candidate's answer to its end; nothing of it is handed over before that."""
        asked, self._asked = self._asked, None
        replying = self.cascade.replying.get(attempt.target.provider)
        events: list[Event] | None = None
        if asked is not None:
            if asked.error is not None:
                raise asked.error
            events = asked.events
        elif replying is not None:
            events = await replying.reply(self.call, attempt.target, attempt.limits)
        if events is not None:
            for event in events:
                self.whole += attempt.take(event)
            attempt.ended()
            await self._won(attempt)
            return
        async with aclosing(self._ask(attempt)) as stream:
            async for event in stream:
                self.whole += attempt.take(event)
                if attempt.finished and not attempt.settled:
                    await self._won(attempt)
        attempt.ended()

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
                    self._failed(take, attempt, error)
                finally:
                    self._leave(attempt)
                if attempt.finished:
                    return
        except LocalFirstError as error:
            await self._gave_up(error)
            raise

    async def _gave_up(self, error: LocalFirstError) -> None:
        """Nobody answered, or nobody may be asked any more: say so to whoever listens."""
        error.attempts = error.attempts or tuple(self.attempts)
        error.egress = tuple(dict.fromkeys(self.egress))
        if isinstance(error, Unavailable | DeadlineExceeded) and self.cascade.alarm is not None:
            prompt = escalate.prompt_of(self.call, self.cascade.settings.escalation)
            self.cascade.alarm.exhausted(self.attempts, prompt)
        await self._settle()

    # --- the next one -----------------------------------------------------------------------

    async def _next(self) -> Take | ShortWay:
        """The next candidate, after any wait that is worth it."""
        way, self._way = self._way, None
        self._first = way
        if way is not None:
            if way.leaves_machine:
                self.egress.append(way.target.provider)
            return way
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
                raise exits.too_late(now - self._began, self.attempts, self.ladder)
            if isinstance(move, Take):
                if self._may_go(move):
                    return move
                continue
            seconds = min(move.seconds, max(0.0, self._deadline - now))
            await self.cascade.clock.sleep(seconds)
            self.ladder.waited(seconds)

    def _candidate(self, move: Take | ShortWay) -> Candidate:
        """The ladder's own name for who was asked."""
        if isinstance(move, Take):
            return move.candidate
        candidate = self.ladder.candidates[0]
        candidate.asked = 1
        return candidate

    # --- one attempt ------------------------------------------------------------------------

    def _begin(self, take: Take | ShortWay) -> Ongoing:
        target = take.target
        stream = self.call.stream
        if isinstance(take, Take):
            take.candidate.asked += 1
            left_s = max(0.0, self._deadline - self.cascade.clock.monotonic())
            limits = limits_of(
                self.cascade.settings,
                take.candidate.step,
                share=take.share,
                left_s=left_s,
                stream=stream,
                strict=self._strict,
            )
        else:
            limits = take.stream_limits if stream else take.limits
        self.cascade.quota.reserve(target, self.call.needs.prompt_tokens)
        self.target = target
        attempt = self._ongoing = Ongoing(
            target,
            limits,
            clock=self.cascade.clock,
            deadline=self._deadline if self._strict else float("inf"),
            streams=stream,
            keep=self.seen,
            watches=self.cascade.watches,
            on_content=None if self.cascade.health.idle else self.cascade.began,
        )
        if self._asked is not None:
            attempt.began_at(self._asked.began, self._asked.began_unix)
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
        self.cascade.won(
            self.call,
            attempt.target,
            record,
            usage=attempt.usage,
            headers=attempt.headers,
            first_token_s=attempt.first_token_s,
        )
        if self._writing:
            await self._settle()

    def _stopped(self, take: Take | ShortWay, attempt: Ongoing) -> None:
        """Tell the watchdog's cancellation from the caller's; only called while handling one."""
        broken = attempt.watch.verdict()
        if broken is None:
            raise
        if attempt.watch.abandoned:
            raise StreamInterrupted("the answer was closed while it was being read") from None
        self._failed(take, attempt, broken)

    def _failed(self, take: Take | ShortWay, attempt: Ongoing, error: BaseException) -> None:
        """Judge, and raise where the ladder must not go on; then nothing holds the error."""
        try:
            self._judge(self._candidate(take), attempt, error)
        finally:
            let_go(error)

    def _judge(self, candidate: Candidate, attempt: Ongoing, error: BaseException) -> None:
        """Classify, remember, and tell the ladder."""
        if attempt.finished:
            # What breaks behind a whole answer is not its caller's matter; a fault of ours is.
            if not isinstance(error, classify.EXPECTED):
                log.error("after an answer of `%s`", attempt.target.provider, exc_info=error)
            return
        if isinstance(error, InvalidRequest):
            attempt.settled = True  # ours to refuse, and never sent
            self.cascade.health.left(attempt.target)
            raise error
        if isinstance(error, UpstreamError) and error.before:
            attempt.before = error.before
        self._note_taught(attempt)
        failure = verdict.failure_of(attempt, error, self.cascade.now_unix())
        if not isinstance(error, classify.EXPECTED):
            log.error("`%s` failed unexpectedly", attempt.target.provider, exc_info=error)
        failure = verdict.fairly(failure, attempt, candidate.step, self.cascade.settings.timeouts)
        attempt.settled = True
        sent = not (isinstance(error, UpstreamRefused) and error.unsent)
        if not sent and attempt.target.provider in self.egress:
            self.egress.remove(attempt.target.provider)
        record = attempt.record(failure.cls, failure, sent=sent)
        self.attempts.append(record)
        writing = self.cascade.lost(self.call, attempt, record, failure)
        if writing is not None:
            self._writing.append(writing)
        if attempt.committed:
            raise StreamInterrupted(
                f"{attempt.target.route} broke off: {failure.message}", cls=failure.cls
            ) from error
        fault = exits.at_fault(failure, attempt.target.provider)
        if fault is not None and not classify.is_capability(failure):
            raise fault
        self.ladder.failed(candidate, attempt.target, failure, self.cascade.clock.monotonic())

    def _note_taught(self, attempt: Ongoing) -> None:
        if attempt.before:
            for record in verdict.taught(attempt, self.cascade.now_unix()):
                self.attempts.append(record)
                self.cascade.taught(self.call, attempt, record)

    def _leave(self, attempt: Ongoing) -> None:
        """Give back what the attempt held; runs however it ended."""
        attempt.watch.close()
        target, self._ongoing = attempt.target, None
        self.cascade.quota.release(target, self.call.needs.prompt_tokens)
        if not attempt.settled:
            self.attempts.append(record := attempt.record("left"))
            self.cascade.left(self.call, target, record, attempt.usage, attempt.first_token_s)
        if target.rung is not Rung.CLOUD and not self._strict:
            # Time on this machine's own model is not the clouds' to lose.
            self._deadline += attempt.duration_s

    async def _settle(self) -> None:
        """Wait, briefly, until the cooldowns that this request caused are written."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=SETTLE_S)
            self._writing.clear()

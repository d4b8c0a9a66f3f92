"""
Who is cooling down, why and until when: a circuit breaker for every scope of failure.

What may be asked now is `health_view`'s; here failures and successes come in. A wait that a
server named is a fact and is kept to the second; one that we made up is a guess. Pure:
nothing here waits, reads a clock or writes a file; `now_unix` comes in, and `Cooldown`s go
out to the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from localfirst.cascade.health_view import NEVER as NEVER
from localfirst.cascade.health_view import Cooldown as Cooldown
from localfirst.cascade.health_view import Gate as Gate
from localfirst.cascade.health_view import HealthView as HealthView
from localfirst.cascade.health_view import Place as Place
from localfirst.cascade.health_view import place_of, places
from localfirst.types import Failure, FailureClass, Scope, Target

DAY_S = 86400.0
LOCAL_LONGEST_S = 5.0  # this machine's own engine restarts in seconds; nobody else is affected
LONGEST_GUESS_S = 300.0
HEALTHY_S = 300.0  # one strike is forgiven per five minutes without a new one
STRIKES_MOST = 60  # with these every guess is at its longest; more would only be held against it
PROBE_LEASE_S = 60.0  # a probe whose process died frees its place after this
BAD_ANSWERS_IN_A_ROW = 3
# Clients name models, and any name that a cloud does not have is remembered: so many at most.
PLACES_MOST = 1024
RATE_LIMIT_S, TIMEOUT_S, MODEL_GONE_S, CONFIG_S = 60.0, 30.0, DAY_S, 600.0
NETWORK_BASE_S, UNAVAILABLE_BASE_S = 5.0, 5.0
UNKNOWN_BASE_S, UNKNOWN_LONGEST_S = 5.0, 80.0


def guess_s(cls: FailureClass, strikes: int, now_unix: float, status: int | None = None) -> float:
    """Seconds to stay away when nobody said for how long; design §4.4's table."""
    match cls:
        case FailureClass.RATE_LIMIT:
            return RATE_LIMIT_S
        case FailureClass.QUOTA:
            # Without credit a day; a daily allowance comes back at midnight UTC.
            return DAY_S if status == 402 else DAY_S - now_unix % DAY_S
        case FailureClass.AUTH:
            return NEVER
        case FailureClass.TIMEOUT:
            return TIMEOUT_S
        case FailureClass.NETWORK:
            return min(NETWORK_BASE_S * 2.0 ** (strikes - 1), LONGEST_GUESS_S)
        case FailureClass.UNAVAILABLE | FailureClass.INVALID_RESPONSE:
            return min(UNAVAILABLE_BASE_S * strikes, LONGEST_GUESS_S)
        case FailureClass.MODEL_NOT_FOUND:
            return MODEL_GONE_S
        case FailureClass.CONFIG:
            return CONFIG_S
        case FailureClass.UNKNOWN:
            return min(UNKNOWN_BASE_S * 2.0 ** (strikes - 1), UNKNOWN_LONGEST_S)
        case _:
            return 0.0


class Health:
    """
    The breakers of one process; written by the cascade, read by anyone through `view()`.

    Args:
        local: providers that are this machine's own; they never cool for long.
        marks: per key label (or provider), what identifies its present configuration.
    """

    def __init__(
        self, *, local: Iterable[str] = ("local",), marks: Mapping[str, str] | None = None
    ) -> None:
        self._local = frozenset(local)
        self._marks = dict(marks or {})
        self._cooldowns: dict[Place, Cooldown] = {}
        self._probing: dict[Place, float] = {}
        self._strikes: dict[Place, tuple[int, float]] = {}
        self._bad_answers: dict[Place, int] = {}
        self._misses: dict[Place, int] = {}
        self._ttft_s: dict[str, float] = {}
        self._view: HealthView | None = None
        self.revision = 0

    @property
    def idle(self) -> bool:
        """True while nothing cools: the hot path's only question."""
        return not self._cooldowns

    def view(self) -> HealthView:
        """A frozen look; the same object until something changes."""
        if self._view is None:
            self._view = HealthView(
                cooldowns=dict(self._cooldowns),
                probing=dict(self._probing),
                local=self._local,
            )
        return self._view

    def failed(self, target: Target, failure: Failure, now_unix: float) -> Cooldown | None:
        """Count a failure; the cooldown it causes, or None when nothing cools for it."""
        place = place_of(target, failure.scope)
        if place is None:
            self._release(target)
            return None
        if failure.cls is FailureClass.INVALID_RESPONSE and not self._too_many_bad(place):
            self._release(target)
            return None
        entry = self._ejected(place, failure, now_unix)
        self._release(target)
        if entry is None:
            return None
        self._put(entry)
        return entry

    def succeeded(self, target: Target) -> tuple[Place, ...]:
        """Count an answer that came whole; the places that were closed by it."""
        if not self._cooldowns and not self._bad_answers:
            return ()
        self._bad_answers.pop((target.provider, "", target.model), None)
        return self.began(target)

    def judged(self, target: Target, *, fulfilled: bool, now_unix: float) -> Cooldown | None:
        """Count an answer against its schema; the cooldown that the third miss in a row causes."""
        place = (target.provider, "", target.model)
        if fulfilled:
            self._misses.pop(place, None)
            return None
        count = self._misses[place] = self._misses.get(place, 0) + 1
        if count < BAD_ANSWERS_IN_A_ROW:
            return None
        said = Failure(
            cls=FailureClass.INVALID_RESPONSE,
            scope=Scope.MODEL,
            message="its answers do not fulfil the schemas that were asked for",
        )
        entry = self._ejected(place, said, now_unix)
        if entry is not None:
            self._put(entry)
        return entry

    def began(self, target: Target) -> tuple[Place, ...]:
        """Close every breaker that this target passed: its first content is here."""
        # Without a key the account's place is the provider's: each is healed once.
        met = dict.fromkeys(places(target))
        healed = tuple(place for place in met if place in self._cooldowns)
        for place in healed:
            del self._cooldowns[place]
            self._probing.pop(place, None)
        if healed:
            self._changed()
        return healed

    def admit(self, target: Target, now_unix: float) -> bool:
        """Take the probe's place if one is needed; False while the target cools."""
        if not self._cooldowns:
            return True
        view = self.view()
        gate, _ = view.gate(target, now_unix)
        if gate is Gate.PROBE:
            for entry in view.to_try(target, now_unix):
                self._probing[entry.place] = now_unix + PROBE_LEASE_S
            self._changed()
        return gate is not Gate.COOLING

    def left(self, target: Target) -> None:
        """The request was given up without a verdict: free the probe's place, blame nobody."""
        self._release(target)

    def forgive(self, provider: str) -> tuple[Place, ...]:
        """Drop what is only guessed of a provider; the places that may be asked again."""
        gone = tuple(
            place
            for place, entry in self._cooldowns.items()
            if place[0] == provider and not entry.fact
        )
        for place in gone:
            del self._cooldowns[place]
            self._strikes.pop(place, None)
        if gone:
            self._changed()
        return gone

    def restore(self, entries: Iterable[Cooldown], now_unix: float) -> None:
        """
        Replace everything by what the ledger holds, as after a start or another's change.

        A wait that was cut by a clock set back is at most its own length from now; a key
        that was refused under another configuration is tried again.
        """
        kept = {
            place: entry
            for place, entry in self._cooldowns.items()
            if entry.half_open(now_unix)  # the ledger tells only of what still cools
        }
        kept |= {entry.place: entry for entry in self._sane(entries, now_unix)}
        if kept == self._cooldowns:
            return
        for place, entry in kept.items():
            known, when = self._strikes.get(place, (0, 0.0))
            self._strikes[place] = (max(known, entry.strikes), max(when, entry.since_unix))
        self._cooldowns = kept
        self._changed()

    def shift(self, seconds: float) -> None:
        """Move every instant: the wall clock was set."""
        for place, entry in self._cooldowns.items():
            self._cooldowns[place] = msgspec.structs.replace(
                entry,
                since_unix=entry.since_unix + seconds,
                until_unix=entry.until_unix + seconds,
            )
        self._probing = {place: until + seconds for place, until in self._probing.items()}
        self._strikes = {place: (n, at + seconds) for place, (n, at) in self._strikes.items()}
        self._changed()

    def snapshot(self) -> tuple[Cooldown, ...]:
        """Every cooldown, those included that are over and were not tried since."""
        return tuple(self._cooldowns.values())

    def cooling(self, now_unix: float) -> tuple[Cooldown, ...]:
        """The cooldowns that are not over yet, for people."""
        return tuple(one for one in self._cooldowns.values() if one.until_unix > now_unix)

    def note_first_token(self, route: str, seconds: float) -> None:
        """Learn how fast a route answers (moving average), for the strategy `fastest`."""
        before = self._ttft_s.get(route)
        if before is None and len(self._ttft_s) >= PLACES_MOST:
            del self._ttft_s[next(iter(self._ttft_s))]
        self._ttft_s[route] = seconds if before is None else before * 0.8 + seconds * 0.2

    @property
    def first_token_s(self) -> Mapping[str, float]:
        """Measured time to the first token by route."""
        return self._ttft_s

    # --- inside ---------------------------------------------------------------------------

    def _sane(self, entries: Iterable[Cooldown], now_unix: float) -> Iterable[Cooldown]:
        for entry in entries:
            if entry.until_unix <= now_unix:
                continue
            if entry.cls is FailureClass.AUTH and (
                not entry.mark or entry.mark != self._mark(entry.place)
            ):
                mine = self._cooldowns.get(entry.place)
                if mine is None or mine.mark != entry.mark:
                    continue
            if entry.duration_s != NEVER and entry.since_unix > now_unix + 1.0:
                entry = msgspec.structs.replace(
                    entry, since_unix=now_unix, until_unix=now_unix + entry.duration_s
                )
            yield entry

    def _mark(self, place: Place) -> str:
        return self._marks.get(place[1]) or self._marks.get(place[0], "")

    def _too_many_bad(self, place: Place) -> bool:
        count = self._bad_answers.get(place, 0) + 1
        self._bad_answers[place] = count
        return count >= BAD_ANSWERS_IN_A_ROW

    def _ejected(self, place: Place, failure: Failure, now_unix: float) -> Cooldown | None:
        strikes = self._strike(place, now_unix)
        stated = failure.retry_after_s if failure.retry_is_fact else None
        duration_s = stated
        if duration_s is None:
            duration_s = guess_s(failure.cls, strikes, now_unix, failure.status)
        if place[0] in self._local and stated is None:
            duration_s = min(duration_s, LOCAL_LONGEST_S)
        if duration_s <= 0.0:
            return None
        until_unix = now_unix + duration_s
        before = self._cooldowns.get(place)
        if before is not None and before.until_unix >= until_unix:
            # A longer wait is never shortened by a later, milder failure.
            return msgspec.structs.replace(
                before, since_unix=now_unix, duration_s=before.until_unix - now_unix
            )
        return Cooldown(
            provider=place[0],
            key_label=place[1],
            model=place[2],
            cls=failure.cls,
            since_unix=now_unix,
            until_unix=until_unix,
            duration_s=duration_s,
            fact=stated is not None,
            strikes=strikes,
            message=failure.message,
            mark=self._mark(place),
        )

    def _strike(self, place: Place, now_unix: float) -> int:
        count, when = self._strikes.get(place, (0, now_unix))
        forgiven = int(max(0.0, now_unix - when) // HEALTHY_S)
        count = min(max(0, count - forgiven) + 1, STRIKES_MOST)
        if len(self._strikes) >= PLACES_MOST and place not in self._strikes:
            self._forget_strikes()
        self._strikes[place] = (count, now_unix)
        return count

    def _forget_strikes(self) -> None:
        """Keep the latest half of the strikes, and begin to count answers anew."""
        latest = sorted(self._strikes.items(), key=lambda item: -item[1][1])
        self._strikes = dict(latest[: PLACES_MOST // 2])
        self._bad_answers.clear()
        self._misses.clear()

    def _put(self, entry: Cooldown) -> None:
        if len(self._cooldowns) >= PLACES_MOST and entry.place not in self._cooldowns:
            soonest = min(self._cooldowns.values(), key=lambda one: one.until_unix)
            del self._cooldowns[soonest.place]
        self._cooldowns[entry.place] = entry
        self._changed()

    def _release(self, target: Target) -> None:
        if not self._probing:
            return
        for place in places(target):
            if self._probing.pop(place, None) is not None:
                self._changed()

    def _changed(self) -> None:
        self.revision += 1
        self._view = None

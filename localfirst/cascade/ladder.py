"""
Where one request stands on its ladder: who was asked, who comes next, who must be waited for.

No I/O and no waiting of its own: `next_move()` says take this candidate, wait so long, or
give up; `run` does it. Lives as long as its request.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import msgspec

from localfirst.cascade.health import NEVER, Health
from localfirst.cascade.plan import Plan, Step, StepState
from localfirst.cascade.quota import Quota
from localfirst.cascade.shares import is_open
from localfirst.settings import CascadeSettings
from localfirst.types import Failure, FailureClass, Rung, Scope, Target

# Failures that may be gone a moment later at the very same place.
TRANSIENT = frozenset({
    FailureClass.TIMEOUT, FailureClass.NETWORK, FailureClass.UNAVAILABLE,
    FailureClass.INVALID_RESPONSE, FailureClass.UNKNOWN,
})  # fmt: skip
# What no waiting mends is no recovery to be told of, although it is looked at again some day.
LASTING = frozenset({FailureClass.AUTH, FailureClass.CONFIG, FailureClass.MODEL_NOT_FOUND})
# How long a request that finds every place taken waits for one before it looks again.
PLACE_TAKEN_S = 0.05


class Take(msgspec.Struct, frozen=True):
    """Ask this candidate now; `share` candidates, itself included, still want a turn."""

    candidate: Candidate
    target: Target
    share: int = 1


class Wait(msgspec.Struct, frozen=True):
    """Nobody is ready; somebody will be in so many seconds."""

    seconds: float


class GiveUp(msgspec.Struct, frozen=True):
    """Nobody is ready and nobody will be soon; `retry_after_s` None when waiting is useless."""

    retry_after_s: float | None = None


Move = Take | Wait | GiveUp


class Candidate:
    """One step of the plan with what this request learnt about it."""

    __slots__ = ("again_at", "asked", "failures", "last", "over", "place", "spent", "step")

    def __init__(self, place: int, step: Step) -> None:
        self.place = place
        self.step = step
        self.asked = 0
        self.failures = 0
        self.over = False
        self.again_at = 0.0
        self.spent: set[str] = set()
        self.last: Failure | None = None

    @property
    def fresh(self) -> bool:
        """Whether it still has a first try: never asked, or only other keys of it were."""
        if not self.asked:
            return True
        return self.failures == len(self.spent) < len(self.step.keys)


class _Search:
    """One look along the ladder: the time, and the waits that were met."""

    __slots__ = ("now", "now_unix", "recoveries", "tried", "waits")

    def __init__(self, now: float, now_unix: float) -> None:
        self.now = now
        self.now_unix = now_unix
        self.waits: list[float] = []
        self.recoveries: list[float] = []
        # Who is being tried by another request: asked all the same if nobody else is left.
        self.tried: tuple[Candidate, Target] | None = None


class Ladder:
    """
    The candidates of one request, in the order of its plan.

    Args:
        plan: the steps; skipped ones are only remembered for the report.
        turn: where the turns through a provider's keys begin, so that keys are used evenly.
        avoid: `(provider, model)`s that are left out; an empty model means all of them.
        spread: a number in [0, 1) for the jitter of a backoff; injected by tests.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        health: Health,
        quota: Quota,
        settings: CascadeSettings,
        tokens: int = 0,
        turn: int = 0,
        spread: float | None = None,
        avoid: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self._health = health
        self._quota = quota
        self._settings = settings
        self._tokens = tokens
        self._turn = turn
        self._spread = spread
        self._waited_s = 0.0
        self._too_small = 0
        self.plan = plan
        self._avoid = avoid

    # Most answers are the first candidate's, whom the plan names too.

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """Whom this request may ask, in the plan's order."""
        return [
            Candidate(place, step)
            for place, step in enumerate(self.plan.steps)
            if step.state is not StepState.SKIPPED and not _avoided(step.target, self._avoid)
        ]

    @functools.cached_property
    def skipped(self) -> list[tuple[str, str]]:
        """`(provider, reason)` of what the plan leaves out."""
        return [
            (step.target.provider, step.reason)
            for step in self.plan.steps
            if step.state is StepState.SKIPPED
        ]

    # --- asking -----------------------------------------------------------------------------

    def next_move(self, now: float, now_unix: float) -> Move:
        """
        Say what to do next.

        Args:
            now: monotonic seconds, for backoffs.
            now_unix: for cooldowns.
        """
        found = _Search(now, now_unix)
        earlier: list[Candidate] = []
        for candidate in self.candidates:
            if candidate.over or not self._eligible(candidate):
                continue
            if candidate.step.target.rung is Rung.PULL:
                # A moment's wait, or a second try, is cheaper than a download.
                move = self._again(earlier, found)
                if move is not None:
                    return move
            if candidate.fresh:
                target = self._ready(candidate, found)
                if target is not None:
                    return Take(candidate, target, self._share(candidate, found.now_unix))
            else:
                earlier.append(candidate)
        return (
            self._again(earlier, found) or self._last_one(now_unix) or GiveUp(self._soonest(found))
        )

    def failed(self, candidate: Candidate, target: Target, failure: Failure, now: float) -> None:
        """Take a failure into account; the candidate may come again after a backoff."""
        candidate.last = failure
        candidate.failures += 1
        cls = failure.cls
        if cls is FailureClass.CONTEXT_LENGTH:
            self._too_small = max(self._too_small, candidate.step.window_tokens)
            candidate.over = True
        elif failure.scope in {Scope.KEY, Scope.KEY_MODEL} and cls not in TRANSIENT:
            candidate.spent.add(target.key_label)
        elif target.rung is Rung.PULL:
            # A download retries by itself while it makes progress; once over, it is over.
            candidate.over = True
        elif self._worth_another(candidate, failure):
            candidate.again_at = now + self._backoff_s(candidate.failures, failure)
        else:
            candidate.over = True
        if failure.scope is Scope.PROVIDER:
            self._same_provider(candidate, target)

    def waited(self, seconds: float) -> None:
        """Count a wait against `wait_for_cooldown_s`."""
        self._waited_s += seconds

    def report_cooling(self, now_unix: float) -> list[tuple[str, str, FailureClass]]:
        """`(provider, why, class)` of candidates that were never asked because they cool."""
        view = self._health.view()
        found = []
        for candidate in self.candidates:
            if candidate.asked or not self._eligible(candidate):
                continue
            entry = view.blocker(candidate.step.target, now_unix)
            if entry is not None:
                words = f"{candidate.step.target.model} is cooling down after {entry.cls}"
                if entry.message:
                    words += f": {entry.message}"
                found.append((candidate.step.target.provider, words, entry.cls))
                continue
            target = candidate.step.target
            refusal = self._quota.refusal(target, self._tokens, now_unix)
            if refusal is not None:
                found.append((target.provider, refusal.reason, FailureClass.RATE_LIMIT))
        return found

    # --- inside -----------------------------------------------------------------------------

    def _eligible(self, candidate: Candidate) -> bool:
        step = candidate.step
        if self._too_small and 0 < step.window_tokens <= self._too_small:
            return False
        return not step.alternate or self._predecessor_is_gone(candidate)

    def _predecessor_is_gone(self, candidate: Candidate) -> bool:
        """An alternate model stands by until the one before it turns out not to exist."""
        before = None
        for other in self.candidates:
            if other is candidate:
                break
            if other.step.target.provider == candidate.step.target.provider:
                before = other
        if before is None:
            return True
        last = before.last
        if last is not None:
            return last.cls is FailureClass.MODEL_NOT_FOUND
        view = self._health.view()
        target = before.step.target
        entry = view.cooldowns.get((target.provider, "", target.model))
        return entry is not None and entry.cls is FailureClass.MODEL_NOT_FOUND

    def _again(self, candidates: Sequence[Candidate], found: _Search) -> Move | None:
        """A second try for those that were asked before, or the wait until one is due."""
        for candidate in candidates:
            target = self._ready(candidate, found)
            if target is not None:
                return Take(candidate, target, self._share(candidate, found.now_unix))
        if found.tried is not None:
            return Take(*found.tried, self._share(found.tried[0], found.now_unix))
        return Wait(min(found.waits)) if found.waits else None

    def _ready(self, candidate: Candidate, found: _Search) -> Target | None:
        """The target to ask with now, or None with its wait noted."""
        if candidate.again_at > found.now:
            found.waits.append(candidate.again_at - found.now)
            return None
        for target in self._in_turn(candidate.step.keys or (candidate.step.target,)):
            if target.key_label in candidate.spent and not self._recovered(
                candidate, target, found
            ):
                continue
            refusal = self._quota.refusal(target, self._tokens, found.now_unix)
            if refusal is not None:
                self._note(refusal.ready_unix, found)
            # Its own failure a moment ago has had its backoff; others' is respected.
            elif candidate.again_at or self._health.admit(target, found.now_unix):
                return target
            elif self._health.view().being_tried(target, found.now_unix):
                found.tried = found.tried or (candidate, target)
            else:
                self._note_recovery(target, found)
        return None

    def _recovered(self, candidate: Candidate, target: Target, found: _Search) -> bool:
        """Whether a key that was turned down may be used again: its cooldown has passed."""
        if self._health.view().blocker(target, found.now_unix) is not None:
            self._note_recovery(target, found)
            return False
        keys = max(1, len(candidate.step.keys))
        return candidate.asked < self._settings.attempts_per_provider + keys - 1

    def _in_turn(self, keys: Sequence[Target]) -> Sequence[Target]:
        if len(keys) < 2:
            return keys
        first = self._turn % len(keys)
        return (*keys[first:], *keys[:first])

    def _note_recovery(self, target: Target, found: _Search) -> None:
        entry = self._health.view().blocker(target, found.now_unix)
        if entry is not None and entry.until_unix < NEVER and entry.cls not in LASTING:
            self._note(entry.until_unix, found)

    def _note(self, ready_unix: float | None, found: _Search) -> None:
        if ready_unix is None:
            found.waits.append(PLACE_TAKEN_S)
            return
        seconds = max(0.0, ready_unix - found.now_unix)
        found.recoveries.append(seconds)
        if seconds + self._waited_s <= self._settings.wait_for_cooldown_s:
            found.waits.append(seconds)

    def _share(self, candidate: Candidate, now_unix: float) -> int:
        """Who may still want a turn, *candidate* included: the deadline is shared among them."""
        others = [
            one
            for one in self.candidates
            if one is not candidate and not (one.over or one.asked or one.step.alternate)
        ]
        if not self._health.idle:
            view, wait_s = self._health.view(), self._settings.wait_for_cooldown_s
            others = [one for one in others if is_open(one.step, view, now_unix, wait_s)]
        return 1 + len(others)

    def _last_one(self, now_unix: float) -> Take | None:
        """The last candidate is never ejected on a guess: better a try than a refusal."""
        view = self._health.view()
        best: tuple[float, Candidate, Target] | None = None
        for candidate in self.candidates:
            if candidate.over or candidate.asked or not self._eligible(candidate):
                continue
            for target in candidate.step.keys or (candidate.step.target,):
                found = view.blockers(target, now_unix)
                if not found or any(one.fact or one.cls not in TRANSIENT for one in found):
                    continue
                if best is None or found[0].until_unix < best[0]:
                    best = (found[0].until_unix, candidate, target)
        return Take(best[1], best[2]) if best else None

    def _soonest(self, found: _Search) -> float | None:
        """Seconds until anybody who was asked or passed over may be asked again."""
        view = self._health.view()
        waits = list(found.recoveries)
        for candidate in self.candidates:
            for target in candidate.step.keys or (candidate.step.target,):
                entry = view.blocker(target, found.now_unix)
                if entry is not None and entry.until_unix < NEVER and entry.cls not in LASTING:
                    waits.append(entry.until_unix - found.now_unix)
        return min(waits, default=None)

    def _worth_another(self, candidate: Candidate, failure: Failure) -> bool:
        cls = failure.cls
        if cls not in TRANSIENT or candidate.failures >= self._settings.attempts_per_provider:
            return False
        if self._stated_s(failure) + self._waited_s > self._settings.wait_for_cooldown_s:
            return False
        # This machine's model was given minutes; nobody waits as long for it again.
        return cls is not FailureClass.TIMEOUT or candidate.step.target.rung is Rung.CLOUD

    def _stated_s(self, failure: Failure) -> float:
        """How long they asked us to stay away, where they did."""
        return (failure.retry_after_s or 0.0) if failure.retry_is_fact else 0.0

    def _backoff_s(self, failures: int, failure: Failure) -> float:
        """Half to the whole of the configured wait, so that a crowd does not return at once."""
        steps = self._settings.backoff_s or (0.0,)
        whole = steps[min(failures - 1, len(steps) - 1)]
        spread = random.random() if self._spread is None else self._spread
        return max(whole * (0.5 + 0.5 * spread), self._stated_s(failure))

    def _same_provider(self, candidate: Candidate, target: Target) -> None:
        """What failed for a provider as a whole fails for its other models too, for now."""
        for other in self.candidates:
            if other is candidate or other.step.target.provider != target.provider:
                continue
            if candidate.over:
                other.over = True
            else:
                other.again_at = max(other.again_at, candidate.again_at)
                other.failures = max(other.failures, candidate.failures)


def _avoided(target: Target, avoid: frozenset[tuple[str, str]]) -> bool:
    return (target.provider, target.model) in avoid or (target.provider, "") in avoid

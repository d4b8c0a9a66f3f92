"""What an attempt came to, in the terms of health and ladder: class, scope, and whose fault."""

from __future__ import annotations

import msgspec

from localfirst.cascade import classify
from localfirst.cascade.ongoing import Ongoing
from localfirst.cascade.plan import Step
from localfirst.cascade.shares import own_wait_s
from localfirst.settings import TimeoutSettings
from localfirst.types import Attempt, Failure, FailureClass, Scope

# Whoever was given less, because the deadline was nearly over, is not blamed for it.
JUDGED_S = 1.0


def failure_of(attempt: Ongoing, error: BaseException, now_unix: float) -> Failure:
    """*error* classified."""
    target = attempt.target
    return classify.failure(target.provider, error, model=target.model, now_unix=now_unix)


def fairly(failure: Failure, attempt: Ongoing, step: Step, waits: TimeoutSettings) -> Failure:
    """*failure*, and nobody's when there was too little time left to judge anybody by."""
    enough_s = min(own_wait_s(waits, step), JUDGED_S)
    if failure.cls is not FailureClass.TIMEOUT or attempt.limits.first_token_s >= enough_s:
        return failure
    return msgspec.structs.replace(failure, scope=Scope.REQUEST)


def taught(attempt: Ongoing, now_unix: float) -> list[Attempt]:
    """The requests of this attempt that were refused for a field, and sent without it."""
    found = [failure_of(attempt, refused, now_unix) for refused in attempt.before]
    return [attempt.record(failure.cls, failure) for failure in found]

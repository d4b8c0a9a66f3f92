"""How a ladder ends without an answer: the one error that tells the caller what to do."""

from __future__ import annotations

from collections.abc import Sequence

from localfirst.cascade import report
from localfirst.cascade.ladder import Ladder
from localfirst.cascade.plan import Plan, Skip, StepState
from localfirst.cascade.plan_names import Named
from localfirst.errors import (
    CascadeExhausted,
    ContentFiltered,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    LocalFirstError,
)
from localfirst.types import Attempt, Failure, FailureClass

# A 4xx of the upstream that is the request's own fault is passed on as it is.
_TRUE_STATUSES = range(400, 500)


def nobody(
    attempts: Sequence[Attempt], ladder: Ladder, retry_after_s: float | None, now_unix: float
) -> LocalFirstError:
    """The error when nobody is left to ask."""
    cooling = ladder.report_cooling(now_unix)
    skipped = [*ladder.skipped, *((provider, words) for provider, words, _ in cooling)]
    if attempts and all(one.outcome == FailureClass.CONTEXT_LENGTH for one in attempts):
        return _too_long(attempts, skipped)
    named = ladder.plan.named
    if named is not None and _unheard_of(attempts, [cls for _, _, cls in cooling], ladder.plan):
        return named.unknown(report.who(attempts, skipped))
    return report.exhausted(
        attempts,
        skipped,
        cooling=[cls for _, _, cls in cooling],
        retry_after_s=retry_after_s,
        hint=_instead(named),
    )


def _unheard_of(attempts: Sequence[Attempt], cooling: Sequence[str], plan: Plan) -> bool:
    """Whether everybody who could have the model said that they do not, and nobody is away."""
    said = {*(one.outcome for one in attempts), *cooling}
    away = any(s.state is StepState.SKIPPED and s.skip is Skip.LATER for s in plan.steps)
    return said == {FailureClass.MODEL_NOT_FOUND} and not away


def _instead(named: Named | None) -> str:
    """The hint that what is here looks like the model that nobody could be asked for."""
    near = ", ".join(f"`{one}`" for one in named.installed) if named is not None else ""
    return f"installed here is {near}; {CascadeExhausted.hint}" if near else ""


def too_late(seconds: float, attempts: Sequence[Attempt], ladder: Ladder) -> DeadlineExceeded:
    """The error when the time is over, *seconds* after the request came."""
    told = report.text(attempts, ladder.skipped)
    return DeadlineExceeded(f"no answer within {seconds:.1f} s: {told}")


def _too_long(attempts: Sequence[Attempt], skipped: Sequence[tuple[str, str]]) -> ContextTooLong:
    told = report.text(attempts, skipped)
    return ContextTooLong(f"the prompt is longer than every candidate's window: {told}")


def at_fault(failure: Failure, provider: str) -> LocalFirstError | None:
    """The error for a failure that is the request's own, or None for any other."""
    words = f"{provider} refused the request: {failure.message}"
    if failure.cls is FailureClass.CONTENT_FILTER:
        return ContentFiltered(words)
    if failure.cls is not FailureClass.INVALID_REQUEST:
        return None
    error = InvalidRequest(words, field=failure.field)
    if failure.status in _TRUE_STATUSES and failure.status is not None:
        error.http_status = failure.status
    return error

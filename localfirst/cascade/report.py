"""
Why nobody answered, in words: one text for the command line, the library and every surface.

Pure. Messages were redacted when they were classified; nothing here sees a key or a prompt.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

from localfirst.errors import CascadeExhausted
from localfirst.types import Attempt, FailureClass, Target

Facts = tuple[tuple[str, str], ...]
"""Header names and values."""

ADVICE: dict[str, str] = {
    FailureClass.RATE_LIMIT: "wait, or add another key or provider",
    FailureClass.QUOTA: "add credit, wait for the reset, or add another provider",
    FailureClass.AUTH: "check the key: `localfirst test {provider}`",
    FailureClass.TIMEOUT: "try again, or raise `timeouts.first_token_s`",
    FailureClass.NETWORK: "check that it runs and can be reached: `localfirst doctor`",
    FailureClass.UNAVAILABLE: "its servers are in trouble; try again later",
    FailureClass.MODEL_NOT_FOUND: "set `providers.{provider}.model` to a model it has",
    FailureClass.CONTEXT_LENGTH: "shorten the prompt, or name a model with a larger window",
    FailureClass.CONTENT_FILTER: "change the request",
    FailureClass.INVALID_REQUEST: "correct the request",
    FailureClass.INVALID_RESPONSE: "try again, or use another model",
    FailureClass.CONFIG: "see `localfirst providers`",
    FailureClass.UNKNOWN: "see `localfirst stats`, and try again",
}

# The HTTP status of each class: design table "class, http".
STATUS: dict[str, int] = {
    FailureClass.RATE_LIMIT: 429,
    FailureClass.QUOTA: 429,
    FailureClass.AUTH: 503,
    FailureClass.TIMEOUT: 504,
    FailureClass.NETWORK: 503,
    FailureClass.UNAVAILABLE: 503,
    FailureClass.MODEL_NOT_FOUND: 404,
    FailureClass.CONTEXT_LENGTH: 413,
    FailureClass.CONTENT_FILTER: 400,
    FailureClass.INVALID_REQUEST: 400,
    FailureClass.INVALID_RESPONSE: 502,
    FailureClass.CONFIG: 503,
    FailureClass.UNKNOWN: 502,
}

# Among equally frequent classes, the one that says most about when to come back.
_WEIGHT = tuple(STATUS)
_HEADER_CHARACTERS = 1000


def dominating(classes: Sequence[str]) -> FailureClass:
    """The class that decides the status: the most frequent, CONFIG when nothing failed."""
    counts = Counter(cls for cls in classes if cls in STATUS)
    if not counts:
        return FailureClass.CONFIG
    return FailureClass(max(counts, key=lambda cls: (counts[cls], -_WEIGHT.index(cls))))


def exhausted(
    attempts: Sequence[Attempt],
    skipped: Sequence[tuple[str, str]],
    *,
    cooling: Sequence[str] = (),
    retry_after_s: float | None = None,
    hint: str = "",
) -> CascadeExhausted:
    """
    The error for a ladder that ended without an answer.

    Args:
        attempts: every try, in order.
        skipped: `(provider, reason)` of what was not tried.
        cooling: the classes for which candidates are left alone.
        retry_after_s: seconds until the soonest of them is tried again.
        hint: what to do, where more is known than what each attempt says.
    """
    cls = dominating([*(one.outcome for one in attempts), *cooling])
    return CascadeExhausted(
        text(attempts, skipped, retry_after_s=retry_after_s),
        attempts=attempts,
        skipped=skipped,
        dominating=cls,
        http_status=STATUS[cls],
        retry_after_s=retry_after_s,
        hint=hint,
    )


def text(
    attempts: Sequence[Attempt],
    skipped: Sequence[tuple[str, str]] = (),
    *,
    retry_after_s: float | None = None,
) -> str:
    """The report: a line for each attempt with what to do, and one for each skipped rung."""
    lines = ["nobody could answer" if attempts else "nobody could be asked"]
    lines += [who(attempts, skipped)] if attempts or skipped else []
    if retry_after_s is not None:
        lines.append(f"soonest recovery in {_span(retry_after_s)}")
    return "\n".join(lines)


def who(attempts: Sequence[Attempt], skipped: Sequence[tuple[str, str]] = ()) -> str:
    """The lines alone."""
    lines = [_attempt_line(attempt) for attempt in attempts]
    return "\n".join([*lines, *(f"  - {provider}: {reason}" for provider, reason in skipped)])


def _attempt_line(attempt: Attempt) -> str:
    key = f" [{attempt.key_label}]" if attempt.key_label else ""
    status = f" HTTP {attempt.status}" if attempt.status else ""
    again = f", back in {_span(attempt.retry_after_s)}" if attempt.retry_after_s else ""
    head = (
        f"  - {attempt.provider}/{attempt.model}{key}: {attempt.outcome}{status}"
        f" after {attempt.duration_s:.1f} s{again}"
    )
    advice = ADVICE.get(attempt.outcome, "").format(provider=attempt.provider)
    if attempt.outcome == FailureClass.MODEL_NOT_FOUND and attempt.provider in {"local", "pull"}:
        advice = "check the name and its tag; `localfirst list` has what is installed"
    told = f": {attempt.message}" if attempt.message else ""
    return f"{head}{told}" + (f" ({advice})" if advice else "")


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"


def headers(
    attempts: Sequence[Attempt],
    *,
    request_id: str,
    target: Target | None = None,
    egress: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """
    The `x-localfirst-*` headers of an answer, or of an error when *target* is None.

    `attempts` counts what was really sent; `egress` names who saw the request.
    """
    return [*told(attempts, target, egress), id_fact(request_id)]


def told(
    attempts: Sequence[Attempt], target: Target | None = None, egress: Sequence[str] = ()
) -> Facts:
    """All headers but the request's id, which are the same for many requests."""
    trail = ",".join([f"{one.provider}={one.outcome}" for one in attempts])
    sent = len([one for one in attempts if one.sent])
    return facts(target, trail, sent, tuple(egress))


def id_fact(request_id: str) -> tuple[str, str]:
    """The header that names the request."""
    return "x-localfirst-request-id", _plain(request_id)


@functools.lru_cache(maxsize=256)
def facts(target: Target | None, trail: str, sent: int, egress: tuple[str, ...]) -> Facts:
    """All but the request's id; nearly every answer has the facts of the one before it."""
    found: list[tuple[str, str]] = []
    if target is not None:
        found.append(("x-localfirst-rung", target.rung.value))
        found.append(("x-localfirst-route", _plain(target.route)))
    seen = ",".join(dict.fromkeys(egress))
    found.append(("x-localfirst-attempts", str(sent)))
    found.append(("x-localfirst-trail", _plain(trail)))
    found.append(("x-localfirst-egress", _plain(seen or "none")))
    if target is not None and target.requested:
        found.append(("x-localfirst-substituted", _plain(target.requested)))
    return tuple(found)


def _plain(value: str) -> str:
    """What may stand in a header: printable ASCII (RFC 9110 §5.5), of bounded length."""
    if not value.isascii() or not value.isprintable():
        value = "".join(c if " " <= c <= "~" else "?" for c in value)
    return value if len(value) <= _HEADER_CHARACTERS else value[:_HEADER_CHARACTERS]

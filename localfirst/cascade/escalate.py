"""
When a human should know: thresholds, what they are told, and when it is over.

Pure: failures and successes go in with their time, decisions come out. Writing the file,
the history and the messages is `alarm`'s.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from localfirst.cascade.health import Cooldown
from localfirst.settings import EscalationSettings, Secret
from localfirst.types import Attempt, Call, FailureClass, Json

# The same reason is told again after this, or the telling itself becomes the noise.
AGAIN_AFTER_S = 3600.0
KEPT = 1000
HISTORY_IN_FILE = 50

PROPOSALS: dict[str, str] = {
    FailureClass.RATE_LIMIT: "add keys or a further provider; spread the load over time",
    FailureClass.QUOTA: "add credit or another provider's key; until then it is left alone",
    FailureClass.AUTH: "renew the key and restart, or run `localfirst config`",
    FailureClass.TIMEOUT: "check the provider's status page; raise `timeouts.first_token_s`",
    FailureClass.NETWORK: "check the network, the proxy, and that the local engine runs",
    FailureClass.UNAVAILABLE: "check the provider's status page; add a further provider",
    FailureClass.MODEL_NOT_FOUND: "set the provider's `model` to one that it still has",
    FailureClass.INVALID_RESPONSE: "use another model for these requests",
    FailureClass.CONFIG: "run `localfirst doctor`: nothing is configured that could answer",
}


# The request's own fault: nobody has to be woken for a client's mistake.
OWN_FAULT = frozenset({
    FailureClass.INVALID_REQUEST, FailureClass.CONTENT_FILTER, FailureClass.CONTEXT_LENGTH,
})  # fmt: skip


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A human should know: `rule` is exhausted, same_error or failures."""

    rule: str
    reason: str
    providers: tuple[str, ...]
    cls: str
    at_unix: float


class Thresholds:
    """
    Counts failures in a sliding window; one per process.

    Args:
        models: what the settings name. Any other model that nobody has is the mistake of
            whoever asked for it, and wakes nobody; None: every one was meant.
    """

    def __init__(self, settings: EscalationSettings, models: Container[str] | None = None) -> None:
        self._settings = settings
        self._models = models
        self._failures: deque[Attempt] = deque(maxlen=KEPT)
        self._told: dict[tuple[str, str], float] = {}
        self._recovered: dict[str, float] = {}

    @property
    def recent(self) -> tuple[Attempt, ...]:
        """The failures in the window, oldest first."""
        return tuple(self._failures)

    def failed(self, attempt: Attempt, now_unix: float) -> Decision | None:
        """Count a failure; a decision when it was one too many."""
        if self._own_fault(attempt):
            return None
        self._forget_before(now_unix - self._settings.window_s)
        self._failures.append(attempt)
        return self._same(attempt, now_unix) or self._many(attempt, now_unix)

    def exhausted(self, attempts: Sequence[Attempt], now_unix: float) -> Decision | None:
        """Nobody answered a request."""
        attempts = [one for one in attempts if not self._own_fault(one)]
        if not attempts:
            return None
        providers = tuple(dict.fromkeys(one.provider for one in attempts))
        (cls, _), *_ = Counter(one.outcome for one in attempts).most_common(1)
        reason = f"every candidate failed: {', '.join(providers)}"
        return self._decide("exhausted", reason, providers, cls, now_unix)

    def succeeded(self, provider: str, now_unix: float) -> None:
        """A provider answered."""
        self._recovered[provider] = now_unix

    def is_over(self, decision: Decision) -> bool:
        """Whether an escalation has resolved itself: its providers answer again."""
        back = [self._recovered.get(name, 0.0) > decision.at_unix for name in decision.providers]
        # One that answers is enough where the trouble was that nobody did.
        return any(back) if decision.rule == "exhausted" else bool(back) and all(back)

    def _own_fault(self, attempt: Attempt) -> bool:
        if attempt.outcome != FailureClass.MODEL_NOT_FOUND:
            return attempt.outcome in OWN_FAULT
        return self._models is not None and attempt.model not in self._models

    def _same(self, attempt: Attempt, now_unix: float) -> Decision | None:
        like = [one for one in self._failures if _alike(one, attempt)]
        if not 0 < self._settings.same_error <= len(like):
            return None
        reason = f"{attempt.provider} failed {len(like)} times with {attempt.outcome}"
        return self._decide("same_error", reason, (attempt.provider,), attempt.outcome, now_unix)

    def _many(self, attempt: Attempt, now_unix: float) -> Decision | None:
        if not 0 < self._settings.failures <= len(self._failures):
            return None
        providers = tuple(dict.fromkeys(one.provider for one in self._failures))
        reason = f"{len(self._failures)} failures within {self._settings.window_s:g} s"
        return self._decide("failures", reason, providers, attempt.outcome, now_unix)

    def _decide(
        self, rule: str, reason: str, providers: tuple[str, ...], cls: str, now_unix: float
    ) -> Decision | None:
        about = (rule, ",".join(providers) if rule != "failures" else "")
        if now_unix - self._told.get(about, -AGAIN_AFTER_S) < AGAIN_AFTER_S:
            return None
        self._told[about] = now_unix
        return Decision(rule=rule, reason=reason, providers=providers, cls=cls, at_unix=now_unix)

    def _forget_before(self, oldest_unix: float) -> None:
        while self._failures and self._failures[0].started_unix < oldest_unix:
            self._failures.popleft()


def prompt_of(call: Call, settings: EscalationSettings) -> str:
    """What was asked, for an escalation; only where the settings want it written down."""
    if not settings.include_prompts:
        return ""
    chat = call.chat
    return chat.prompt or "\n".join(f"{one.role}: {one.text}" for one in chat.messages)


def _alike(one: Attempt, other: Attempt) -> bool:
    return one.provider == other.provider and one.outcome == other.outcome


def document(
    decision: Decision,
    *,
    history: Sequence[Attempt],
    cooldowns: Iterable[Cooldown],
    context: Mapping[str, Json],
    prompt: str = "",
) -> dict[str, Json]:
    """
    What the escalation file says: context, provider status, error history, proposal.

    *prompt* is left out unless the caller was told to include it.
    """
    found: dict[str, Json] = {
        "at": stamp(decision.at_unix),
        "rule": decision.rule,
        "reason": decision.reason,
        "providers": list(decision.providers),
        "context": dict(context),
        "cooling": [_cooling(entry) for entry in cooldowns],
        "history": [_failure(one) for one in list(history)[-HISTORY_IN_FILE:]],
        "proposal": PROPOSALS.get(decision.cls, "run `localfirst doctor`"),
    }
    if prompt:
        found["prompt"] = prompt
    return found


def _cooling(entry: Cooldown) -> dict[str, Json]:
    endless = entry.until_unix == float("inf")
    return {
        "provider": entry.provider,
        "key": entry.key_label,
        "model": entry.model,
        "class": str(entry.cls),
        "until": None if endless else stamp(entry.until_unix),
        "message": entry.message,
    }


def _failure(one: Attempt) -> dict[str, Json]:
    return {
        "at": stamp(one.started_unix),
        "provider": one.provider,
        "model": one.model,
        "key": one.key_label,
        "class": one.outcome,
        "status": one.status,
        "message": one.message,
    }


def stamp(unix: float) -> str:
    """A point in time as people and programs read it: RFC 3339, UTC."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def file_name(at_unix: float, number: int = 1) -> str:
    """The name of an escalation's file; *number* tells apart those of one second."""
    more = f"_{number}" if number > 1 else ""
    return datetime.fromtimestamp(at_unix, UTC).strftime(f"escalation_%Y%m%d_%H%M%S{more}.json")


def message(decision: Decision) -> str:
    """What a person reads on their phone."""
    proposal = PROPOSALS.get(decision.cls, "run `localfirst doctor`")
    return f"localfirst: {decision.reason}\n{proposal}"


def telegram(secret: Secret, text: str) -> tuple[str, dict[str, Json]]:
    """URL and body of a message by `BOT_TOKEN@CHAT_ID` (core.telegram.org/bots/api)."""
    token, _, chat = secret.reveal().rpartition("@")
    return f"https://api.telegram.org/bot{token}/sendMessage", {"chat_id": chat, "text": text}

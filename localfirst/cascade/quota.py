"""
What may still be sent: limits learnt from response headers, and places taken in flight.

A request that would be refused is not sent at all. Every response teaches the remaining
requests and tokens of its key and model; what is in flight is counted against them until
its own response says better. Pure: the time comes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from localfirst.cascade import classify_wait
from localfirst.types import Target

# Without a stated reset a spent window is believed for a minute, the shortest any cloud has,
# or for as long as its name says; days end at midnight UTC.
UNSTATED_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
# Clients name models, and each has windows of its own: of so many are they kept.
ACCOUNTS_MOST = 1024
# No cloud tells of more limits than six; every request looks through those of its account.
WINDOWS_MOST = 16
# Names of a window inside a header name, longest first; the rest of the name is its unit.
_KINDS = ("input-tokens", "output-tokens", "tokens", "requests", "req")

Account = tuple[str, str, str]
"""(provider, key label, model)."""

Place = tuple[str, str, str, str]
"""An account, and the name of one of its windows."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of one limit until `reset_unix`; `unit` is "requests" or "tokens"."""

    unit: str
    remaining: float
    reset_unix: float
    limit: float = 0.0
    learnt_unix: float = 0.0


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why nothing may be sent now; `ready_unix` is None when a place frees by itself."""

    reason: str
    ready_unix: float | None = None


class Quota:
    """
    The windows and places of one process.

    Args:
        concurrency: at most so many requests in flight, by provider; 0 or absent = no limit.
    """

    def __init__(self, *, concurrency: Mapping[str, int] | None = None) -> None:
        self._concurrency = {name: n for name, n in (concurrency or {}).items() if n > 0}
        self._windows: dict[Account, dict[str, Window]] = {}
        self._in_flight: dict[str, int] = {}
        self._reserved: dict[Account, tuple[int, float]] = {}

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Requests on their way, by provider."""
        return self._in_flight

    def refusal(self, target: Target, tokens: int, now_unix: float) -> Refusal | None:
        """Why a request of about *tokens* would be refused now; None when it may go."""
        if self._concurrency:
            full = self._concurrency.get(target.provider)
            if full is not None and self._in_flight.get(target.provider, 0) >= full:
                return Refusal(reason=f"{full} requests are already in flight there")
        if not self._windows:
            return None
        account = (target.provider, target.key_label, target.model)
        windows = self._windows.get(account)
        if not windows:
            return None
        return self._spent(account, windows, tokens, now_unix)

    def reserve(self, target: Target, tokens: int) -> None:
        """Take a place; `release` gives it back."""
        provider = target.provider
        self._in_flight[provider] = self._in_flight.get(provider, 0) + 1
        if not self._windows:
            return
        account = (provider, target.key_label, target.model)
        if account in self._windows:
            count, held = self._reserved.get(account, (0, 0.0))
            self._reserved[account] = (count + 1, held + tokens)

    def release(self, target: Target, tokens: int) -> None:
        """Give a place back; more releases than reservations are ignored."""
        provider = target.provider
        self._in_flight[provider] = max(0, self._in_flight.get(provider, 0) - 1)
        if not self._reserved:
            return
        account = (provider, target.key_label, target.model)
        count, held = self._reserved.get(account, (0, 0.0))
        if count > 1:
            self._reserved[account] = (count - 1, max(0.0, held - tokens))
        else:
            self._reserved.pop(account, None)

    def learn(
        self, target: Target, headers: Sequence[tuple[str, str]], now_unix: float
    ) -> dict[Place, Window]:
        """Take over what response headers say of this target's limits; returns what they said."""
        found = windows_in(headers, now_unix)
        if not found:
            return {}
        account = (target.provider, target.key_label, target.model)
        known = self._windows.setdefault(account, {})
        known.update(found)
        while len(known) > WINDOWS_MOST:
            del known[next(iter(known))]
        self._bound(now_unix)
        return {(*account, name): window for name, window in found.items()}

    def restore(self, found: Mapping[Place, Window], now_unix: float) -> None:
        """Take over what is not over, and was learnt later than what is known here."""
        for (*account, name), window in found.items():
            # What is said to last longer was learnt under another clock, or of a wrong one.
            if not 0.0 < window.reset_unix - now_unix <= classify_wait.ABSURD_S:
                continue
            provider, key_label, model = account
            known = self._windows.setdefault((provider, key_label, model), {})
            mine = known.get(name)
            if mine is None and len(known) >= WINDOWS_MOST:
                continue
            if mine is None or mine.learnt_unix < window.learnt_unix:
                known[name] = window
        self._bound(now_unix)

    def _bound(self, now_unix: float) -> None:
        """Forget what is over, then what was learnt first, where there is too much of it."""
        if len(self._windows) <= ACCOUNTS_MOST:
            return
        for account, windows in list(self._windows.items()):
            if all(window.reset_unix <= now_unix for window in windows.values()):
                del self._windows[account]
        while len(self._windows) > ACCOUNTS_MOST:
            del self._windows[next(iter(self._windows))]

    def shift(self, seconds: float) -> None:
        """Move every reset: the wall clock was set."""
        for windows in self._windows.values():
            for name, window in windows.items():
                windows[name] = msgspec.structs.replace(
                    window, reset_unix=window.reset_unix + seconds
                )

    def windows(self, target: Target) -> Mapping[str, Window]:
        """What is known of a target's limits, by window name."""
        return self._windows.get((target.provider, target.key_label, target.model), {})

    def _spent(
        self, account: Account, windows: dict[str, Window], tokens: int, now_unix: float
    ) -> Refusal | None:
        count, held = self._reserved.get(account, (0, 0.0))
        for name, window in windows.items():
            if window.reset_unix <= now_unix:
                continue
            if window.unit == "requests":
                short = window.remaining - count < 1
            else:
                # A prompt larger than the whole window never fits; that is for them to say.
                wanted = min(tokens, window.limit) if window.limit else tokens
                short = window.remaining - held < wanted or window.remaining <= 0
            if short:
                return Refusal(
                    reason=f"its limit of {name} is used up", ready_unix=window.reset_unix
                )
        return None


def windows_in(headers: Sequence[tuple[str, str]], now_unix: float) -> dict[str, Window]:
    """
    The limit windows that response headers describe, by name ("requests", "tokens-minute").

    Reads `x-ratelimit-{remaining,reset}-NAME` (OpenAI, Groq, Cerebras, Mistral) and
    `anthropic-ratelimit-NAME-{remaining,reset}`.
    """
    limits = [pair for pair in headers if "ratelimit-" in pair[0]]
    if not limits:
        return {}
    fields: dict[str, dict[str, str]] = {}
    for name, value in limits:
        for part in ("remaining", "reset", "limit"):
            if f"-{part}" in name:
                label = name.split("ratelimit", 1)[1].replace(f"-{part}", "", 1).strip("-")
                fields.setdefault(label, {})[part] = value
                break
    return {
        label: window
        for label, parts in islice(fields.items(), WINDOWS_MOST)
        if (window := _window(label, parts, now_unix)) is not None
    }


def _window(label: str, parts: dict[str, str], now_unix: float) -> Window | None:
    remaining = classify_wait.seconds(parts.get("remaining", ""))
    kind = next((kind for kind in _KINDS if kind in label), None)
    if remaining is None or kind is None:
        return None
    wait_s = classify_wait.reset(parts["reset"], now_unix) if "reset" in parts else None
    if wait_s is None or wait_s > classify_wait.ABSURD_S:
        wait_s = _unstated_s(label, now_unix)
    return Window(
        unit="tokens" if "tokens" in kind else "requests",
        remaining=remaining,
        reset_unix=now_unix + wait_s,
        limit=classify_wait.seconds(parts.get("limit", "")) or 0.0,
        learnt_unix=now_unix,
    )


def _unstated_s(label: str, now_unix: float) -> float:
    """How long a window lasts that tells its name only: `requests-day`, `tokens-minute`."""
    if "day" in label or "month" in label:
        return DAY_S - now_unix % DAY_S
    return HOUR_S if "hour" in label else UNSTATED_S

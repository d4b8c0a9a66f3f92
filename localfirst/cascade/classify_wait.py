"""
How long somebody asks us to stay away: every spelling that clouds use, read into seconds.

Pure. What cannot be read is None, never a guess; what lies in the past is 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Go's time.Duration.String(): "1h2m3s", "6m0s", "7.66s", "130ms", "900.2µs".
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PIECE = r"\d+(?:\.\d+)?(?:ms|us|µs|ns|h|m|s)"
_DURATION = re.compile(rf"(?:{_PIECE})+")
_PIECES = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
# Numbers from here on are points in time, not waits: 10^9 s is 2001, 10^12 ms is the same.
_EPOCH_S, _EPOCH_MS = 1e9, 1e12
# The longest that any cloud's limits last is a month: beyond it, somebody's arithmetic failed.
ABSURD_S = 32 * 86400.0

_WORD_S = {"second": 1.0, "sec": 1.0, "minute": 60.0, "min": 60.0, "hour": 3600.0, "day": 86400.0}
_IN_TEXT = re.compile(
    r"(?:try again|retry|available again|resets?|wait)\s+"
    r"(?:in|after|for|at least|approximately)?\s*"
    rf"(?:(?P<go>(?:{_PIECE}\s?)+)(?![a-z])"
    r"|(?P<n>\d+(?:\.\d+)?)\s*(?P<word>second|sec|minute|min|hour|day)s?)",
    re.IGNORECASE | re.ASCII,  # in Unicode, ſ is an s too, and no word here has one
)
_DATE_IN_TEXT = re.compile(
    r"(?:regain access|available again|try again|resets?|retry)\s+(?:on|at|after)\s+"
    r"(\d{4}-\d\d-\d\d)(?:[ T]+(?:at\s+)?(\d\d:\d\d(?::\d\d)?))?",
    re.IGNORECASE,
)


def duration(text: str) -> float | None:
    """Seconds of a Go duration such as `2m59.56s`; None when it is none."""
    if not _DURATION.fullmatch(text.strip()):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PIECES.findall(text))


def seconds(text: str) -> float | None:
    """A plain finite number of seconds, 0 when negative; None when it is no number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def retry_after(text: str, now_unix: float) -> float | None:
    """
    Seconds of a `Retry-After` header: a number or an HTTP date (RFC 9110 §10.2.3).

    What servers send there beside the RFC is read as well: durations, RFC 3339, epochs.
    """
    found = reset(text, now_unix)
    if found is not None:
        return found
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - now_unix)


def instant(text: str, now_unix: float) -> float | None:
    """Seconds until an RFC 3339 time, as `anthropic-ratelimit-*-reset` spells it."""
    if len(text) < 10 or text[4] != "-":
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - now_unix)


def reset(text: str, now_unix: float) -> float | None:
    """Seconds until a reset header's time: duration, RFC 3339, epoch in s or ms, or a delta."""
    text = text.strip()
    found = duration(text)
    if found is None:
        found = instant(text, now_unix)
    if found is not None:
        return found
    value = seconds(text)
    if value is None:
        return None
    if value >= _EPOCH_MS:
        return max(0.0, value / 1000 - now_unix)
    return max(0.0, value - now_unix) if value >= _EPOCH_S else value


def in_text(text: str, now_unix: float) -> float | None:
    """Seconds that a sentence asks for: `Please try again in 6m0s`, `regain access on DATE`."""
    found = _IN_TEXT.search(text)
    if found and found["go"]:
        return duration(found["go"].replace(" ", ""))
    if found:
        return float(found["n"]) * _WORD_S[found["word"].lower()]
    dated = _DATE_IN_TEXT.search(text)
    if dated is None:
        return None
    # A date that has passed says nothing of the wait that is still ahead.
    return instant(f"{dated[1]}T{dated[2] or '00:00'}+00:00", now_unix) or None


def in_headers(
    headers: Mapping[str, str], now_unix: float, *, limited: bool = False
) -> float | None:
    """
    Seconds that response headers ask for, the most explicit first.

    `retry-after-ms`, then `retry-after` (openai-python `_base_client.py` reads them in this
    order), then the reset of any limit whose remainder is 0; where the status says that a
    limit was met (*limited*), also of one whose remainder is not told.
    """
    millis = seconds(headers.get("retry-after-ms", ""))
    if millis is not None:
        return millis / 1000
    if "retry-after" in headers:
        found = retry_after(headers["retry-after"], now_unix)
        if found is not None:
            return found
    waits = [
        wait
        for name, value in headers.items()
        if "ratelimit-" in name and "reset" in name and _spent(headers, name, limited)
        if (wait := reset(value, now_unix)) is not None
    ]
    return max(waits) if waits else None


def _spent(headers: Mapping[str, str], reset_name: str, unsaid: bool) -> bool:
    remaining = headers.get(reset_name.replace("reset", "remaining"))
    return unsaid if remaining is None else seconds(remaining) == 0.0

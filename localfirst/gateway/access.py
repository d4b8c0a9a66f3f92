"""
The access log: one line a request, written in batches.

Time, route, model, who answered, status, bytes, milliseconds. No query string, no prompt,
no answer, no key; what a client chose is cut and escaped, so that a line stays a line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localfirst.gateway.request import Request

log = logging.getLogger("localfirst.access")

NAME_LIMIT_CHARS = 80

FULL = 1024
"""Lines that wait at most; a burst is written before the next tick."""


class AccessLog:
    """
    Lines of finished requests.

    Args:
        write: takes whole lines joined by newlines; None means the logger `localfirst.access`.
        unix: seconds since 1970; without it lines have no time (the logger adds one).
    """

    def __init__(
        self, write: Callable[[str], object] | None, unix: Callable[[], float] | None = None
    ) -> None:
        self._write = write
        self._unix = unix
        self._lines: list[str] = []

    def note(self, request: Request, elapsed_s: float) -> None:
        """Remember one finished request."""
        if self._write is None and not log.isEnabledFor(logging.INFO):
            return
        self._lines.append(self._line(request, elapsed_s))
        if len(self._lines) >= FULL:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        if self._write is None:
            for line in lines:
                log.info("%s", line)
        else:
            self._write("\n".join(lines) + "\n")

    def _line(self, request: Request, elapsed_s: float) -> str:
        at = f"{stamp(self._unix())} " if self._unix else ""
        model = clean(request.model) or "-"
        who = f"{request.rung or '-'}/{clean(request.route) or '-'}"
        return (
            f"{at}{request.id} {request.method} {request.surface} {model} {who} "
            f"{request.status} {request.outcome} {request.sent_bytes}B {elapsed_s * 1000:.1f}ms"
        )


def stamp(at_unix: float) -> str:
    """A time in UTC, to the millisecond."""
    return datetime.fromtimestamp(at_unix, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def clean(text: str) -> str:
    """A name that cannot break a line, a terminal or a log reader."""
    if not text:
        return text
    short = text[:NAME_LIMIT_CHARS]
    if short.isascii() and short.isprintable() and " " not in short:
        return short
    return short.encode("unicode_escape").decode().replace(" ", "\\x20")

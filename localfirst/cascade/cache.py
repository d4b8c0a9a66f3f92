"""
The response cache: the same question to the same model, answered from before. Off by default.

Only what is asked at temperature 0 is kept, and only whole answers. A key is a digest of
the request and of who would answer it, so prompts are never stored; answers are, in the
ledger's database, until they are too old or too many.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import msgspec

from localfirst.cascade.climb import Climb
from localfirst.cascade.plan import Plan
from localfirst.errors import InvalidRequest
from localfirst.events import (
    Event,
    Finished,
    ReasoningDelta,
    Relayed,
    TextDelta,
    ToolCallDelta,
)
from localfirst.types import Call, Target

T = TypeVar("T")
LARGEST_BYTES = 1024 * 1024
"""An answer beyond this is not kept: few questions are asked twice at that length."""

_KINDS: dict[str, type[Any]] = {
    "text": TextDelta,
    "reasoning": ReasoningDelta,
    "tool": ToolCallDelta,
    "finished": Finished,
    "relayed": Relayed,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Shelf(Protocol):
    """Runs work on a database beside the loop; `ledger.db.Ledger` is one."""

    def run(self, work: Callable[[sqlite3.Connection], T]) -> Awaitable[T | None]:
        """The result of *work*, or None when there is no database."""
        ...


class Cache:
    """
    Answers by digest.

    Args:
        shelf: where they are kept.
        ttl_s: how long an answer is good.
        size_bytes: how much is kept; the longest unused goes first.
        now_unix: the time.
    """

    def __init__(
        self, shelf: Shelf, *, ttl_s: float, size_bytes: int, now_unix: Callable[[], float]
    ) -> None:
        self._shelf = shelf
        self._ttl_s = ttl_s
        self._size_bytes = size_bytes
        self._now_unix = now_unix

    def key(self, call: Call, plan: Plan) -> tuple[bytes, Target] | None:
        """The digest of a request that may be kept, and who would answer it; else None."""
        step = next(iter(plan.ready), None)
        if step is None or self._ttl_s <= 0:
            return None
        try:
            request = call.chat
        except InvalidRequest:
            return None  # for whoever is asked to say
        if request.temperature != 0:
            return None
        whole = msgspec.structs.replace(request, user="", stream=call.stream)
        form = (step.target.route, str(call.dialect), call.relay, call.stream, whole)
        return hashlib.sha256(
            msgspec.json.encode(form, order="deterministic")
        ).digest(), step.target

    async def get(self, key: bytes) -> list[Event] | None:
        """The events of a kept answer, or None."""
        now = self._now_unix()
        body = await self._shelf.run(lambda db: _read(db, key.hex(), now, now - self._ttl_s))
        return _unpacked(body) if body is not None else None

    async def keep(
        self, key: bytes, climb: Climb, rest: AsyncGenerator[Event, None]
    ) -> AsyncGenerator[Event, None]:
        """Pass *rest* through, and keep it when it came whole."""
        del climb
        seen: list[Event] = []
        async with aclosing(rest):
            async for event in rest:
                seen.append(event)
                if isinstance(event, Finished) or (isinstance(event, Relayed) and event.final):
                    await self._put(key, seen)
                yield event

    async def _put(self, key: bytes, events: list[Event]) -> None:
        body = _packed(events)
        if len(body) <= min(LARGEST_BYTES, self._size_bytes):
            now, most = self._now_unix(), self._size_bytes
            await self._shelf.run(lambda db: _write(db, key.hex(), body, now, most))


def _packed(events: list[Event]) -> bytes:
    rows = [(_NAMES[type(event)], event) for event in events if type(event) in _NAMES]
    return msgspec.msgpack.encode(rows)


def _unpacked(body: bytes) -> list[Event] | None:
    try:
        rows = msgspec.msgpack.decode(body, type=list[tuple[str, msgspec.Raw]])
        return [msgspec.msgpack.decode(raw, type=_KINDS[name]) for name, raw in rows]
    except (msgspec.DecodeError, KeyError):
        return None  # another version's; it is written anew


def _read(db: sqlite3.Connection, key: str, now: float, oldest: float) -> bytes | None:
    row = db.execute("SELECT body FROM answers WHERE key = ? AND at >= ?", (key, oldest)).fetchone()
    if row is None:
        return None
    db.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
    return bytes(row[0])


def _write(db: sqlite3.Connection, key: str, body: bytes, now: float, most: int) -> None:
    db.execute(
        "INSERT OR REPLACE INTO answers (key, at, used, size, body) VALUES (?, ?, ?, ?, ?)",
        (key, now, now, len(body), body),
    )
    total = db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()[0]
    while total > most:
        old, size = db.execute("SELECT key, size FROM answers ORDER BY used LIMIT 1").fetchone()
        db.execute("DELETE FROM answers WHERE key = ?", (old,))
        total -= size

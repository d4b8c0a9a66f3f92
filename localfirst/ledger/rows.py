"""Rows in and out: the statements behind the ledger, run on its own thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from localfirst.cascade.health import NEVER, Cooldown, Place
from localfirst.events import Usage
from localfirst.types import Attempt, Call, FailureClass, Target

AttemptRow = tuple[Attempt, Call | None, Target | None, Usage | None, float, float | None]

# SQLite keeps infinity as REAL; a cooldown without end is stored as one.
_SAVE_COOLDOWN = """
INSERT INTO cooldowns
  (provider, key_label, model, cls, since, until, duration_s, fact, strikes, message, mark)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (provider, key_label, model) DO UPDATE SET
  cls = excluded.cls, since = excluded.since, until = excluded.until,
  duration_s = excluded.duration_s, fact = excluded.fact, strikes = excluded.strikes,
  message = excluded.message, mark = excluded.mark
WHERE excluded.until > cooldowns.until OR cooldowns.until <= excluded.since
"""
_SAVE_ATTEMPTS = """
INSERT INTO attempts
  (at, request_id, surface, stream, rung, provider, model, key_label, requested, outcome,
   status, message, duration_s, first_token_s, prompt_tokens, completion_tokens,
   cached_tokens, usd)
VALUES """
_ONE = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_AT_ONCE = 32
"""
Rows a statement, when there are many: each statement takes the interpreter's lock from
whoever answers a request. 18 × 32 values are fewer than the 999 that an old SQLite binds.
"""
_SAVE_MANY = _SAVE_ATTEMPTS + ",".join([_ONE] * _AT_ONCE)
KEEP_DAYS = 90
ROWS_MOST = 1_000_000
"""Attempts that are kept at most, about 200 MB: one every eight seconds for all those days."""
_TOKENS_MOST = 2**40
"""No answer has as many; SQLite takes 2**63, and the sum of all rows must stay below it too."""
_FORGOTTEN_AT_ONCE = 2000
"""Rows a statement, so that other processes wait for milliseconds to write theirs."""


def save_cooldown(db: sqlite3.Connection, entry: Cooldown) -> None:
    """Write one cooldown; another process's longer one is never shortened."""
    db.execute(
        _SAVE_COOLDOWN,
        (
            entry.provider,
            entry.key_label,
            entry.model,
            str(entry.cls),
            entry.since_unix,
            entry.until_unix,
            entry.duration_s,
            int(entry.fact),
            entry.strikes,
            entry.message,
            entry.mark,
        ),
    )


def drop_cooldowns(db: sqlite3.Connection, places: Sequence[Place]) -> None:
    """Forget the cooldowns of these places."""
    db.executemany(
        "DELETE FROM cooldowns WHERE provider = ? AND key_label = ? AND model = ?", places
    )


def load_cooldowns(db: sqlite3.Connection) -> tuple[Cooldown, ...]:
    """Every cooldown in the file."""
    found = db.execute(
        "SELECT provider, key_label, model, cls, since, until, duration_s, fact, strikes,"
        " message, mark FROM cooldowns"
    )
    return tuple(_cooldown(row) for row in found)


def _cooldown(row: tuple[str, str, str, str, float, float, float, int, int, str, str]) -> Cooldown:
    known = row[3] in FailureClass.__members__.values()
    return Cooldown(
        provider=row[0],
        key_label=row[1],
        model=row[2],
        cls=FailureClass(row[3]) if known else FailureClass.UNKNOWN,
        since_unix=float(row[4]),
        until_unix=float(row[5]) if row[5] is not None else NEVER,
        duration_s=float(row[6]) if row[6] is not None else NEVER,
        fact=bool(row[7]),
        strikes=int(row[8]),
        message=row[9],
        mark=row[10],
    )


def save_attempts(db: sqlite3.Connection, batch: Sequence[AttemptRow], now_unix: float) -> None:
    """Write attempts in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    try:
        rows = [_attempt(row, now_unix) for row in batch]
        while len(rows) >= _AT_ONCE:
            db.execute(_SAVE_MANY, [value for row in rows[:_AT_ONCE] for value in row])
            del rows[:_AT_ONCE]
        db.executemany(_SAVE_ATTEMPTS + _ONE, rows)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it
            db.execute("ROLLBACK")
        raise


def prune(db: sqlite3.Connection, now_unix: float, *, rows_most: int = ROWS_MOST) -> bool:
    """
    Forget attempts and ended escalations older than three months, and cooldowns long over.

    Of attempts, the latest *rows_most* are kept at most. They go a few at a time; whether
    there may be more to forget.
    """
    before_unix = now_unix - KEEP_DAYS * 86400
    old = _forget(db, "at < ?", before_unix)
    many = _forget(db, "id <= (SELECT max(id) FROM attempts) - ?", rows_most)
    db.execute("DELETE FROM escalations WHERE resolved_at < ?", (before_unix,))
    db.execute("DELETE FROM cooldowns WHERE until < ?", (now_unix - 86400,))
    return old or many


def _forget(db: sqlite3.Connection, which: str, value: float) -> bool:
    some = f"SELECT id FROM attempts WHERE {which} LIMIT {_FORGOTTEN_AT_ONCE}"
    gone = db.execute(f"DELETE FROM attempts WHERE id IN ({some})", (value,)).rowcount
    return gone == _FORGOTTEN_AT_ONCE


def _attempt(row: AttemptRow, now_unix: float) -> tuple[object, ...]:
    attempt, call, target, usage, first_token_s, usd = row
    usage = usage or Usage()
    tokens = [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens]
    if min(tokens) < 0 or max(tokens) > _TOKENS_MOST:
        tokens = [min(max(0, count), _TOKENS_MOST) for count in tokens]
    return (
        attempt.started_unix or now_unix,
        call.request_id if call else "",
        str(call.dialect) if call else "",
        int(call.stream) if call else 0,
        str(target.rung) if target else "",
        attempt.provider,
        attempt.model,
        attempt.key_label,
        target.requested if target else "",
        attempt.outcome,
        attempt.status,
        attempt.message,
        attempt.duration_s,
        first_token_s,
        *tokens,
        usd,
    )

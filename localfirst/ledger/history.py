"""What went wrong lately, and what it grew into: errors and escalations."""

from __future__ import annotations

import sqlite3

import msgspec

from localfirst.types import Attempt


class Escalated(msgspec.Struct, frozen=True, kw_only=True):
    """One escalation; `resolved_unix` is None while it is open, `body` its JSON text."""

    id: int
    at_unix: float
    reason: str
    providers: tuple[str, ...]
    body: str
    file: str = ""
    resolved_unix: float | None = None


def errors(db: sqlite3.Connection, *, since_unix: float = 0.0, limit: int = 100) -> list[Attempt]:
    """Failed attempts, the latest first."""
    found = db.execute(
        "SELECT provider, model, outcome, key_label, status, message, at, duration_s"
        " FROM attempts WHERE outcome NOT IN ('ok', 'left') AND at >= ?"
        " ORDER BY at DESC, id DESC LIMIT ?",
        (since_unix, limit),
    )
    return [
        Attempt(
            provider=row[0],
            model=row[1],
            outcome=row[2],
            key_label=row[3],
            status=row[4],
            message=row[5],
            started_unix=row[6],
            duration_s=row[7],
        )
        for row in found
    ]


def save_escalation(db: sqlite3.Connection, entry: Escalated) -> int:
    """Write a new escalation; its id."""
    done = db.execute(
        "INSERT INTO escalations (at, reason, providers, body, file) VALUES (?, ?, ?, ?, ?)",
        (entry.at_unix, entry.reason, ",".join(entry.providers), entry.body, entry.file),
    )
    return int(done.lastrowid or 0)


def resolve(db: sqlite3.Connection, ids: list[int], now_unix: float) -> None:
    """Close escalations."""
    db.executemany(
        "UPDATE escalations SET resolved_at = ? WHERE id = ? AND resolved_at IS NULL",
        [(now_unix, one) for one in ids],
    )


def escalations(
    db: sqlite3.Connection, *, only_open: bool = False, limit: int = 100
) -> list[Escalated]:
    """Escalations, the latest first."""
    where = "WHERE resolved_at IS NULL" if only_open else ""
    found = db.execute(
        "SELECT id, at, reason, providers, body, file, resolved_at"
        f" FROM escalations {where} ORDER BY at DESC, id DESC LIMIT ?",
        (limit,),
    )
    return [
        Escalated(
            id=row[0],
            at_unix=row[1],
            reason=row[2],
            providers=tuple(name for name in row[3].split(",") if name),
            body=row[4],
            file=row[5],
            resolved_unix=row[6],
        )
        for row in found
    ]

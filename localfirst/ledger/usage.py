"""What was used: requests, tokens and money by provider and model over a stretch of time."""

from __future__ import annotations

import sqlite3

import msgspec


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Sums for one provider and model; times in seconds, `usd` None while no price is known."""

    provider: str
    model: str
    requests: int
    failures: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    usd: float | None
    first_token_s: float
    duration_s: float


_SUMS = """
SELECT provider, model, count(*), sum(outcome NOT IN ('ok', 'left')),
  coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
  coalesce(sum(cached_tokens), 0), sum(usd),
  coalesce(avg(CASE WHEN outcome = 'ok' AND first_token_s > 0 THEN first_token_s END), 0),
  coalesce(avg(CASE WHEN outcome = 'ok' THEN duration_s END), 0)
FROM attempts WHERE at >= ? GROUP BY provider, model ORDER BY count(*) DESC, provider, model
"""


def totals(db: sqlite3.Connection, since_unix: float) -> list[UsageRow]:
    """Sums by provider and model of everything since *since_unix*, the busiest first."""
    return [
        UsageRow(
            provider=row[0],
            model=row[1],
            requests=row[2],
            failures=row[3],
            prompt_tokens=row[4],
            completion_tokens=row[5],
            cached_tokens=row[6],
            usd=row[7],
            first_token_s=row[8],
            duration_s=row[9],
        )
        for row in db.execute(_SUMS, (since_unix,))
    ]


def spent(db: sqlite3.Connection, since_unix: float) -> tuple[int, float]:
    """Requests that left this machine since *since_unix*, and the USD they cost."""
    row = db.execute(
        "SELECT count(*), coalesce(sum(usd), 0) FROM attempts WHERE at >= ? AND rung = 'cloud'",
        (since_unix,),
    ).fetchone()
    return int(row[0]), float(row[1])

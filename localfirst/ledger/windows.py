"""Quota windows on disk: what every process of a user has learnt of each key's limits."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from localfirst.cascade.classify_wait import ABSURD_S
from localfirst.cascade.quota import Place, Window

_SAVE = """
INSERT INTO windows (provider, key_label, model, name, unit, remaining, most, reset, learnt)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (provider, key_label, model, name) DO UPDATE SET
  unit = excluded.unit, remaining = excluded.remaining, most = excluded.most,
  reset = excluded.reset, learnt = excluded.learnt
WHERE excluded.learnt >= windows.learnt
"""


def save(db: sqlite3.Connection, found: Mapping[Place, Window]) -> None:
    """Write windows; what another process learnt later stays."""
    db.executemany(
        _SAVE,
        [
            (*place, one.unit, one.remaining, one.limit, one.reset_unix, one.learnt_unix)
            for place, one in found.items()
        ],
    )


def load(db: sqlite3.Connection) -> dict[Place, Window]:
    """Every window in the file, those that are over too."""
    found = db.execute(
        "SELECT provider, key_label, model, name, unit, remaining, most, reset, learnt FROM windows"
    )
    return {
        (provider, key_label, model, name): Window(
            unit=unit,
            remaining=float(remaining),
            limit=float(most),
            reset_unix=float(reset),
            learnt_unix=float(learnt),
        )
        for provider, key_label, model, name, unit, remaining, most, reset, learnt in found
    }


def prune(db: sqlite3.Connection, now_unix: float) -> None:
    """Forget windows that are over, and those that would never be: of a wrong clock."""
    db.execute("DELETE FROM windows WHERE reset <= ? OR reset > ?", (now_unix, now_unix + ABSURD_S))

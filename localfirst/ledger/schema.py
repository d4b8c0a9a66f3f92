"""The tables, and how an older file becomes a newer one."""

from __future__ import annotations

import sqlite3

VERSION = 1

TABLES = """
CREATE TABLE IF NOT EXISTS attempts (
  id INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  request_id TEXT NOT NULL DEFAULT '',
  surface TEXT NOT NULL DEFAULT '',
  stream INTEGER NOT NULL DEFAULT 0,
  rung TEXT NOT NULL DEFAULT '',
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  key_label TEXT NOT NULL DEFAULT '',
  requested TEXT NOT NULL DEFAULT '',
  outcome TEXT NOT NULL,
  status INTEGER,
  message TEXT NOT NULL DEFAULT '',
  duration_s REAL NOT NULL DEFAULT 0,
  first_token_s REAL NOT NULL DEFAULT 0,
  prompt_tokens INTEGER NOT NULL DEFAULT 0,
  completion_tokens INTEGER NOT NULL DEFAULT 0,
  cached_tokens INTEGER NOT NULL DEFAULT 0,
  usd REAL
);
CREATE INDEX IF NOT EXISTS attempts_at ON attempts (at);
CREATE TABLE IF NOT EXISTS cooldowns (
  provider TEXT NOT NULL,
  key_label TEXT NOT NULL,
  model TEXT NOT NULL,
  cls TEXT NOT NULL,
  since REAL NOT NULL,
  until REAL NOT NULL,
  duration_s REAL NOT NULL,
  fact INTEGER NOT NULL,
  strikes INTEGER NOT NULL,
  message TEXT NOT NULL,
  mark TEXT NOT NULL,
  PRIMARY KEY (provider, key_label, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS escalations (
  id INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  reason TEXT NOT NULL,
  providers TEXT NOT NULL,
  body TEXT NOT NULL,
  file TEXT NOT NULL DEFAULT '',
  resolved_at REAL
);
CREATE TABLE IF NOT EXISTS windows (
  provider TEXT NOT NULL,
  key_label TEXT NOT NULL,
  model TEXT NOT NULL,
  name TEXT NOT NULL,
  unit TEXT NOT NULL,
  remaining REAL NOT NULL,
  most REAL NOT NULL,
  reset REAL NOT NULL,
  learnt REAL NOT NULL,
  PRIMARY KEY (provider, key_label, model, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,
  at REAL NOT NULL,
  used REAL NOT NULL,
  size INTEGER NOT NULL,
  body BLOB NOT NULL
) WITHOUT ROWID;
"""


class NewerFile(Exception):
    """Raised when a later localfirst wrote the file; it is left as it is."""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables; raises `NewerFile`, `sqlite3.Error`."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise NewerFile(f"the file has version {found}, this localfirst knows {VERSION}")
    connection.executescript(TABLES)
    if found != VERSION:
        connection.execute(f"PRAGMA user_version = {VERSION}")

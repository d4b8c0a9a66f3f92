"""What happened before, as the ledger remembers it; empty when history is switched off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localfirst.ledger import history, usage
from localfirst.ledger.history import Escalated
from localfirst.ledger.usage import UsageRow
from localfirst.types import Attempt

if TYPE_CHECKING:
    from localfirst.runtime.runtime import Runtime

__all__ = ["Escalated", "UsageRow", "errors", "escalations", "used"]


async def used(runtime: Runtime, since_unix: float) -> list[UsageRow]:
    """Requests, tokens and money by provider and model since then."""
    return await runtime.ledger.run(lambda db: usage.totals(db, since_unix)) or []


async def errors(runtime: Runtime, since_unix: float, limit: int) -> list[Attempt]:
    """Failed attempts since then, the latest first."""
    found = await runtime.ledger.run(
        lambda db: history.errors(db, since_unix=since_unix, limit=limit)
    )
    return found or []


async def escalations(runtime: Runtime, *, only_open: bool) -> list[Escalated]:
    """What a human was told, the latest first."""
    return await runtime.ledger.run(lambda db: history.escalations(db, only_open=only_open)) or []

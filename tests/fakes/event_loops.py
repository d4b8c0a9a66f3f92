"""The event loops that the product runs on: the library on asyncio's own, the gateway on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

RUNNERS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
MOST_S = 40.0


def run(kind: str, work: Callable[[], Awaitable[Any]]) -> Any:
    """Run *work* on a loop of *kind*, never longer than any test may take."""

    async def bounded() -> Any:
        async with asyncio.timeout(MOST_S):
            return await work()

    return RUNNERS[kind](bounded())

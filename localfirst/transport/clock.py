"""The one real clock; everything else is handed a `types.Clock`."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """Time as this machine tells it."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never backwards."""
        return time.monotonic()

    def unix(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)

"""The one real clock; everything else is handed a `types.Clock`."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """Time as this machine tells it."""

    # The system's own functions: the hot path asks a dozen times a request.
    monotonic = staticmethod(time.monotonic)
    unix = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)

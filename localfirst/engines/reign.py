"""
Whose daemon answers while the configuration changes.

With other settings a daemon of ours cannot go on, and whoever it answers is not to be cut:
it serves the new configuration, too, until a moment when nobody is being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from localfirst.engines.life import Pace
from localfirst.engines.supervisor import Supervisor
from localfirst.settings import Privacy, Settings
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Clock


class Reign:
    """One configuration's supervisor, and the reign before it while that has a daemon."""

    def __init__(
        self,
        settings: Settings,
        *,
        upstream: UpstreamClient,
        clock: Clock,
        environ: Mapping[str, str],
        places: Sequence[str],
        pace: Pace,
    ) -> None:
        local = settings.local
        self.supervisor = Supervisor(
            local.host,
            state_dir=Path(settings.state_dir) if settings.state_dir else None,
            upstream=upstream,
            clock=clock,
            environ=environ,
            models_dir=local.models_dir,
            offline=settings.privacy is Privacy.LOCAL_ONLY,
            keep_alive_s=local.keep_alive_s,
            may_start=local.start,
            places=places,
            pace=pace,
        )
        self.asked = 0
        """How many are being answered, or will be."""
        self._before: Reign | None = None
        self._ending: asyncio.Task[None] | None = None
        self._handed_over = False

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Somebody is being answered."""
        self.asked += 1
        try:
            yield
        finally:
            self.asked -= 1

    @property
    def now(self) -> Supervisor:
        """Whose daemon answers."""
        return self.supervisor if self._before is None else self._before.now

    @property
    def settled(self) -> bool:
        """Whether no daemon of before is left."""
        return self._before is None

    def succeed(self, other: Reign, upstream: UpstreamClient, *, same: bool) -> None:
        """Go on with the daemon of *other*: for good when all that it runs by is the *same*."""
        if other._handed_over:
            return
        if same and other._before is None:
            self.supervisor = other.supervisor
        elif other._before is not None or other.supervisor.at_work:
            self._before = other
        else:
            return
        other._handed_over = True
        other.now.ask_over(upstream)

    async def begun(self) -> bool:
        """
        End the daemon before this reign if it answers nobody but who asks; whether it is gone.

        Called within `used`.
        """
        before = self._before
        if before is None:
            return True
        if self._ending is None:
            if self.asked > 1 or before._busy:
                return False
            self._ending = asyncio.ensure_future(before._end())
        await asyncio.shield(self._ending)
        self._before = self._ending = None
        return True

    @property
    def _busy(self) -> bool:
        return bool(self.asked) or (self._before is not None and self._before._busy)

    async def _end(self) -> None:
        if self._before is not None:
            await self._before._end()
        await self.supervisor.aclose()

    async def aclose(self) -> None:
        """End what was not handed over."""
        if self._ending is not None:
            await asyncio.wait({self._ending})
        if not self._handed_over:
            await self._end()

"""How far something slow is: a bar for people, lines for logs."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from localfirst.cli.render import is_terminal, plain, say, size

if TYPE_CHECKING:
    from localfirst.runtime.provision import Chore


async def watch(chore: Chore[Any], title: str) -> None:
    """Do a long piece of work with its progress on stderr; raises what it raises."""
    ticker = Ticker(title)
    loop = asyncio.get_running_loop()
    try:
        async for progress in chore.watch():
            ticker.show(progress.completed_bytes, progress.total_bytes, loop.time())
    finally:
        ticker.close()


class Ticker:
    """
    How far something slow is, on stderr.

    On a terminal a bar; elsewhere one line every five seconds, and one at the end.
    """

    EVERY_S = 5.0

    def __init__(self, title: str) -> None:
        self._title = plain(title)
        self._bar: Any = None
        self._said_at = float("-inf")
        self._last = self._said = ""

    def show(self, done: int, total: int, now: float, *, note: str = "") -> None:
        """Tell the state at the monotonic moment *now*; *note* stands where bytes say nothing."""
        if is_terminal(sys.stderr):
            self._draw(done, total, note)
            return
        if not total and not note:
            return
        self._last = self._text(done, total, note)
        if now - self._said_at >= self.EVERY_S:
            self._said_at = now
            self._say()

    def interrupt(self, line: str) -> None:
        """Say *line* above the bar."""
        if self._bar is None:
            say(line)
        else:
            self._bar.write(plain(line), file=sys.stderr)

    def close(self) -> None:
        """Leave the last state standing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        else:
            self._say()

    def _say(self) -> None:
        """Say the last state, once."""
        if self._last != self._said:
            self._said = self._last
            say(self._last)

    def _text(self, done: int, total: int, note: str) -> str:
        if not total:
            return f"{self._title}: {note or 'waiting'}"
        percent = f"{100 * done / total:.0f} %"
        return f"{self._title}: {percent} of {size(total)}" + (f", {note}" if note else "")

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total or None,
                desc=self._title,
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
                leave=True,
                ascii=" ━" if (sys.stderr.encoding or "").lower().startswith("utf") else " #",
                miniters=0,
                mininterval=0.05,
            )
        if total and self._bar.total != total:
            self._bar.total = total
        self._bar.set_postfix_str(plain(note), refresh=False)
        self._bar.update(done - self._bar.n)

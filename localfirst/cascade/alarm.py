"""
Escalations carried out: the file, the history, the webhook and Telegram, and their end.

Nothing here delays an answer: what is to be told is told by one task of its own, which
`aclose()` ends. Sending is done by an injected `send`, so that no socket lives here.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
from pathlib import Path

import msgspec

from localfirst.cascade import escalate
from localfirst.cascade.escalate import Decision, Thresholds
from localfirst.cascade.health import Health
from localfirst.ledger import history
from localfirst.ledger.db import Ledger
from localfirst.settings import EscalationSettings
from localfirst.transport import files
from localfirst.types import Attempt, Clock, Json

log = logging.getLogger(__name__)

Send = Callable[[str, Mapping[str, Json]], Awaitable[None]]
"""POSTs JSON to a URL; raises whatever went wrong."""

SEND_S = 20.0
TELLING_AT_MOST = 16


class Alarm:
    """
    Listens to attempts and tells people.

    Args:
        folder: where escalation files go, `<state>/escalations`.
        send: how a webhook is called; None sends nothing.
        context: facts for the file (version, engine, order), without secrets.
        models: those that the settings name; see `Thresholds`.
    """

    def __init__(
        self,
        settings: EscalationSettings,
        *,
        folder: Path,
        clock: Clock,
        health: Health,
        ledger: Ledger | None = None,
        send: Send | None = None,
        context: Callable[[], Mapping[str, Json]] = dict,
        models: Container[str] | None = None,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._clock = clock
        self._health = health
        self._ledger = ledger
        self._send = send
        self._context = context
        self._thresholds = Thresholds(settings, models)
        self._open: dict[int, Decision] = {}
        self._resumed = ledger is None
        self._named: list[Path] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def attempted(self, attempt: Attempt) -> None:
        """Count one attempt."""
        now_unix = self._clock.unix()
        if attempt.outcome == "ok":
            self._thresholds.succeeded(attempt.provider, now_unix)
            if self._open or not self._resumed:
                self._begin(self._resolve())
            return
        self._tell(self._thresholds.failed(attempt, now_unix))

    def exhausted(self, attempts: Sequence[Attempt], prompt: str = "") -> None:
        """Nobody answered; *prompt* is used only when the settings ask for it."""
        self._tell(self._thresholds.exhausted(attempts, self._clock.unix()), prompt)

    async def aclose(self) -> None:
        """Finish telling, briefly, then stop."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=2.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # --- inside -----------------------------------------------------------------------------

    def _tell(self, decision: Decision | None, prompt: str = "") -> None:
        if decision is not None:
            self._begin(self._escalate(decision, prompt))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        if len(self._tasks) >= TELLING_AT_MOST:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _escalate(self, decision: Decision, prompt: str) -> None:
        body = escalate.document(
            decision,
            history=self._thresholds.recent,
            cooldowns=self._health.cooling(decision.at_unix),
            context=self._context(),
            prompt=prompt if self._settings.include_prompts else "",
        )
        path = await asyncio.to_thread(self._write, self._name(decision.at_unix), body)
        log.warning("%s%s", decision.reason, f" (see {path})" if path else "")
        await self._note(decision, body, path)
        await self._send_all(decision, body)

    def _name(self, at_unix: float) -> Path:
        """A file of its own: a fifth like error is often the one that leaves nobody."""
        path = self._folder / escalate.file_name(at_unix)
        for number in range(2, TELLING_AT_MOST + 1):
            if path not in self._named and not path.exists():
                break
            path = self._folder / escalate.file_name(at_unix, number)
        self._named = [*self._named[-TELLING_AT_MOST:], path]
        return path

    def _write(self, path: Path, body: Mapping[str, Json]) -> str:
        try:
            files.ensure_dir(self._folder)
            files.write_atomic(path, msgspec.json.format(msgspec.json.encode(body), indent=2))
        except OSError as error:
            log.warning("the escalation could not be written to `%s` (%s)", path, error)
            return ""
        return str(path)

    async def _note(self, decision: Decision, body: Mapping[str, Json], path: str) -> None:
        if self._ledger is None:
            self._open[-len(self._open) - 1] = decision
            return
        entry = history.Escalated(
            id=0,
            at_unix=decision.at_unix,
            reason=decision.reason,
            providers=decision.providers,
            body=msgspec.json.encode(body).decode(),
            file=path,
        )
        number = await self._ledger.run(lambda db: history.save_escalation(db, entry))
        self._open[number or -len(self._open) - 1] = decision

    async def _resume(self, ledger: Ledger) -> None:
        """Take over what earlier processes told and nobody has closed."""
        self._resumed = True
        told = await ledger.run(lambda db: history.escalations(db, only_open=True))
        for entry in told or ():
            self._open.setdefault(entry.id, _resumed(entry))

    async def _resolve(self) -> None:
        if not self._resumed and self._ledger is not None:
            await self._resume(self._ledger)
        over = [id for id, decision in self._open.items() if self._thresholds.is_over(decision)]
        for id in over:
            log.info("resolved by itself: %s", self._open.pop(id).reason)
        if over and self._ledger is not None:
            now_unix = self._clock.unix()

            def close(db: sqlite3.Connection) -> None:
                history.resolve(db, over, now_unix)

            await self._ledger.run(close)

    async def _send_all(self, decision: Decision, body: Mapping[str, Json]) -> None:
        if self._send is None:
            return
        if self._settings.webhook:
            await self._try_to_send(self._send, "the webhook", self._settings.webhook, body)
        if self._settings.telegram is not None:
            text = escalate.message(decision)
            url, said = escalate.telegram(self._settings.telegram, text)
            await self._try_to_send(self._send, "Telegram", url, said)

    async def _try_to_send(self, send: Send, name: str, url: str, body: Mapping[str, Json]) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await send(url, body)
        except Exception as error:  # noqa: BLE001 - the last frame of a background task
            # The URL holds a token; neither it nor the error's words are shown.
            log.warning("%s could not be told (%s)", name, type(error).__name__)


def _resumed(entry: history.Escalated) -> Decision:
    """The decision behind an escalation that an earlier process told."""
    return Decision(
        rule=_rule_of(entry.body),
        reason=entry.reason,
        providers=entry.providers,
        cls="",
        at_unix=entry.at_unix,
    )


def _rule_of(body: str) -> str:
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get("rule", b'""')
        return msgspec.json.decode(found, type=str)
    except msgspec.DecodeError:
        return ""

"""
Questions to drivers, each in a thread of its own with its own limit.

A driver may raise anything, or never answer (a card that fell off the bus, a network
drive). Neither may cost more than the limit, nor hurt the other questions; and a question
that still hangs from the last time is not asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from localfirst.transport.clock import SystemClock


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Something to ask: `ask` may block, raise and hang."""

    ask: Callable[[], Any]
    timeout_s: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`value` is the answer, or None with `note` saying why there is none."""

    value: Any = None
    note: str = ""


class _Asking:
    """One question under way; `value` and `note` are written by its thread only."""

    def __init__(self, name: str, question: Question) -> None:
        self.value: Any = None
        self.note = ""
        self._question = question
        self.thread = threading.Thread(target=self._run, name=f"probe-{name}", daemon=True)

    def _run(self) -> None:
        try:
            self.value = self._question.ask()
        except Exception as broken:  # noqa: BLE001 - a thread's top frame: told, not raised
            self.note = f"{type(broken).__name__}: {str(broken)[:200]}"


_hanging: dict[str, _Asking] = {}
_lock = threading.Lock()


def ask_all(questions: Mapping[str, Question]) -> dict[str, Outcome]:
    """Ask all *questions* at once; returns within the longest limit and never raises."""
    clock = SystemClock()
    began = clock.monotonic()
    asked = {name: _start(name, question) for name, question in questions.items()}

    def left_s(name: str) -> float:
        return max(0.0, questions[name].timeout_s - (clock.monotonic() - began))

    return {
        name: _settle(name, questions[name], asking, left_s(name)) for name, asking in asked.items()
    }


def _start(name: str, question: Question) -> _Asking | None:
    with _lock:
        before = _hanging.get(name)
        if before is not None and before.thread.is_alive():
            return None
        _hanging.pop(name, None)
        asking = _Asking(name, question)
    asking.thread.start()
    return asking


def _settle(name: str, question: Question, asking: _Asking | None, left_s: float) -> Outcome:
    if asking is None:
        return Outcome(note=f"{name}: still no answer from an earlier time")
    asking.thread.join(left_s)
    if asking.thread.is_alive():
        with _lock:
            _hanging[name] = asking
        return Outcome(note=f"{name}: no answer within {question.timeout_s:g} s")
    return Outcome(value=asking.value, note=f"{name}: {asking.note}" if asking.note else "")

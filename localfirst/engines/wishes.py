"""What a request says about the engine rather than about its answer. Pure."""

from __future__ import annotations

import re

from localfirst.types import Call, Json

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(keep_alive: str | float | None, usual: float) -> float:
    """Ollama's `keep_alive` in seconds: a number, or a Go duration such as `1h30m`."""
    if keep_alive is None:
        return usual
    if isinstance(keep_alive, int | float):
        return float(keep_alive)
    text = keep_alive.strip()
    pieces = re.findall(r"([\d.]+)(ms|s|m|h)", text)
    if not pieces:
        return usual
    total = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    return -total if text.startswith("-") else total


def said(call: Call, field: str) -> Json:
    """A field of the request, or None; decodes the body only when the name occurs in it."""
    if call.request is None and field.encode() not in call.body:
        return None
    return getattr(call.chat, field)

"""What a request says about the engine rather than about its answer. Pure."""

from __future__ import annotations

from localfirst.types import Call, Json
from localfirst.wire import options


def seconds_of(keep_alive: str | float | None, usual: float) -> float:
    """Ollama's `keep_alive` in seconds: a number, or a Go duration such as `1h30m`."""
    said = options.seconds_of(keep_alive) if isinstance(keep_alive, str) else keep_alive
    return usual if said is None else float(said)


def said(call: Call, field: str) -> Json:
    """A field of the request, or None; decodes the body only when the name occurs in it."""
    if call.request is None and field.encode() not in call.body:
        return None
    return getattr(call.chat, field)

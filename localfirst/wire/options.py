"""
Ollama's `options` and `keep_alive`, which other surfaces may carry too.

Types and names as in Ollama's `api/types.go` (`Options`, `Runner`); a wrong type is a 500
there, so it is caught here.
"""

from __future__ import annotations

import re

from localfirst.types import Json
from localfirst.wire.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_SEED,
    MAX_STOPS,
    MAX_TOKENS,
    Fields,
    wrong,
)

MAX_KEEP_ALIVE_S = 366 * 86400.0

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIECE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(r"[+-]?(?:0|(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+)", re.ASCII)

_INTEGERS: dict[str, tuple[int, int]] = {
    "num_keep": (-1, MAX_TOKENS),
    "seed": (-MAX_SEED, MAX_SEED),
    "num_predict": (-2, MAX_TOKENS),
    "top_k": (-1, 1_000_000),
    "repeat_last_n": (-1, MAX_CONTEXT_TOKENS),
    "num_ctx": (1, MAX_CONTEXT_TOKENS),
    "num_batch": (1, 1_048_576),
    "num_gpu": (-1, 100_000),
    "main_gpu": (0, 1024),
    "num_thread": (0, 4096),
    "draft_num_predict": (0, 1024),
}
_NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}


def seconds_of(duration: str) -> float | None:
    """Seconds of a Go duration (`1h30m`, `-1m`), or None when it is none."""
    if not _DURATION.fullmatch(duration):
        return None
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PIECE.findall(duration))
    return -total if duration.startswith("-") else total


def keep_alive_of(fields: Fields) -> str | float | None:
    """`keep_alive`: seconds, or a Go duration; negative is for ever, 0 unloads."""
    value = fields.get("keep_alive")
    if value is None:
        return None
    seconds = seconds_of(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise wrong(fields.at("keep_alive"), 'seconds or a duration such as `"10m"`')
    if seconds > MAX_KEEP_ALIVE_S:
        raise wrong(fields.at("keep_alive"), "at most 366 days; a negative one means for ever")
    return value if isinstance(value, str) else float(seconds)


def options_of(fields: Fields) -> dict[str, Json]:
    """`options`, each known one checked; unknown ones are kept, as Ollama only warns of them."""
    options = fields.object("options")
    if options is None:
        return {}
    whole = {name: options.integer(name, low, high) for name, (low, high) in _INTEGERS.items()}
    for name, (least, most) in _NUMBERS.items():
        options.number(name, least, most)
    options.texts("stop", MAX_STOPS)
    options.flag("use_mmap")
    given = {**options.values, **whole}
    return {name: given[name] for name in options.values if given[name] is not None}

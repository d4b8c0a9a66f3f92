"""
What people see: colour, tables, sizes, ages, bars, and errors.

Colour only on a terminal and without `NO_COLOR`; everything is understood without it.
What a model or a server wrote is stripped of control characters before a terminal gets it.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Sequence
from typing import IO

from localfirst import config
from localfirst.types import Json

LEAST_COLUMNS, LAST_COLUMNS = 16, 20
WIDE_GAP, GAP = 3, 2
BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"

# C0 but tab and newline, DEL, C1, and the marks that turn the direction of text: each can
# make a terminal show what was not said (https://trojansource.codes).
_UNSEEN = {
    **dict.fromkeys(code for code in range(32) if chr(code) not in "\t\n"),
    **dict.fromkeys((*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
}


def is_terminal(stream: IO[str]) -> bool:
    """Whether a person looks at *stream* right now."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def paint(text: str, *codes: str, stream: IO[str] | None = None) -> str:
    """*text* in colour where *stream* (stdout) shows colours."""
    if not has_colours(stream or sys.stdout):
        return text
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


def has_colours(stream: IO[str]) -> bool:
    """Whether *stream* is a terminal that shows colours, and nobody minds."""
    dumb = config.variable("NO_COLOR") or config.variable("TERM") == "dumb"
    return not dumb and is_terminal(stream)


def plain(text: str) -> str:
    """*text* without what could steer a terminal."""
    return text.translate(_UNSEEN)


def shown(text: str, stream: IO[str] | None = None) -> str:
    """*text* as *stream* (stdout) may have it: as it is in a file or pipe, plain on a terminal."""
    return plain(text) if is_terminal(stream or sys.stdout) else text


def say(text: str = "") -> None:
    """A line of progress or a message, to stderr; to nobody once the terminal is gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def problem(message: str, *, hint: str = "", code: str = "") -> None:
    """An error: what is wrong, its stable code, and what to do next."""
    first, _, rest = plain(message).partition("\n")
    label = paint("error:", BOLD, RED, stream=sys.stderr)
    say(f"{label} {first}" + (f" [{code}]" if code else ""))
    if rest:
        say(rest)
    if hint:
        say()
        say(f"{paint('hint:', BOLD, CYAN, stream=sys.stderr)} {plain(hint)}")


def warn(message: str) -> None:
    """Something to act on that stops nothing."""
    say(f"{paint('warning:', BOLD, YELLOW, stream=sys.stderr)} {plain(message)}")


def as_json(value: Json) -> None:
    """One JSON document on one line of stdout, in its letters where it has them all."""
    escaped = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=escaped, separators=(",", ":")), flush=True)


def table(rows: Sequence[Sequence[str]], *, head: Sequence[str], right: Sequence[int] = ()) -> None:
    """Rows in columns on stdout; the columns named in *right* are aligned to the right."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [
        max(len(line[column]) for line in [list(head), *cells]) for column in range(len(head))
    ]
    gap = WIDE_GAP
    if is_terminal(sys.stdout):
        gap = _narrow(widths, columns())
    print(paint(_line(head, widths, right, gap), BOLD))
    for row in cells:
        print(_line(row, widths, right, gap))


def columns() -> int:
    """The terminal's width; 100 where there is none."""
    return shutil.get_terminal_size((100, 40)).columns


def _narrow(widths: list[int], columns: int) -> int:
    """
    Have a line fit the terminal, but leave names readable; returns what parts two columns.

    First they move together, then the widest gives way. The last is left whole: it says why.
    What still does not fit, a terminal wraps.
    """
    gaps = len(widths) - 1
    if sum(widths) + WIDE_GAP * gaps <= columns:
        return WIDE_GAP
    last = min(widths[-1], LAST_COLUMNS)
    while sum(widths[:-1]) + last + GAP * gaps > columns:
        widest = max(widths[:-1], default=0)
        if widest <= LEAST_COLUMNS:
            break
        widths[widths[:-1].index(widest)] -= 1
    return GAP


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[int], gap: int) -> str:
    padded = [
        _cut(cell, width).rjust(width) if column in right else _cut(cell, width).ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return (" " * gap).join(padded).rstrip()


def size(amount: float) -> str:
    """Bytes as `ollama list` writes them: decimal, two or three digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(amount) < 1000:
            digits = 0 if unit == "B" or amount >= 10 else 1
            return f"{amount:.{digits}f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def speed(predicted: Sequence[float] | None, measured: float = 0.0) -> str:
    """Tokens a second: what was measured here, else the range that is predicted."""
    if measured:
        return f"{measured:.0f} measured" if measured >= 10 else f"{measured:.1f} measured"
    if predicted is None:
        return "–"
    low, high = predicted
    return f"{low:.0f}–{high:.0f}" if high >= 10 else f"{low:.1f}–{high:.1f}"


def count(number: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def span(seconds: float) -> str:
    """A length of time in its largest unit."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, many, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < many * limit:
            return f"{seconds / many:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def ago(unix: float, now_unix: float) -> str:
    """How long since a moment; "–" when it is unknown."""
    return f"{span(max(0.0, now_unix - unix))} ago" if unix else "–"

"""The one line that a waiting stream shows of a `Progress`, in every dialect's comment."""

from __future__ import annotations

from localfirst.events import Progress


def line(progress: Progress) -> str:
    """For example `pulling llama2:7b 42%`; one line of printable text."""
    words = [progress.stage, progress.detail]
    if progress.percent is not None:
        words.append(f"{progress.percent:.0f}%")
    text = " ".join(word for word in words if word)
    return "".join(char if char.isprintable() else " " for char in text)


def comment(progress: Progress) -> bytes:
    """A server-sent comment, which every client skips and which keeps the connection alive."""
    return f": {line(progress)}\n\n".encode()

"""Text files that a command writes for people: whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path


def write(file: Path, text: str, *, mode: int) -> None:
    """
    Replace *file*; a link to it, as dotfiles are kept, stays one.

    Raises:
        OSError: naming *file*, which then is as it was.
    """
    try:
        file = file.resolve()
        draft = file.with_name(f"{file.name}.new")
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            draft.touch(mode)
            draft.write_text(text, encoding="utf-8")
            draft.replace(file)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename = str(file)
        raise

"""
What loads really took on this machine: noted after an answer, used by the next prediction.

Kept in one small file of the state folder, by the model file's digest. Memory that an
engine has reserved but not touched yet is not resident, so a figure below the prediction
proves nothing and is not kept: experience makes predictions more careful, never less.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from localfirst.machine.fit import Fit, Measured, Placement, corrected
from localfirst.transport import files

FILE_BYTES = 2**20
MOST = 500
"""Models remembered; the oldest goes first."""


class Experience:
    """Measured loads by model file, context and slots; *path* None remembers while it runs."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Measured] = {}
        if path is not None:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._known = msgspec.json.decode(
                    files.read_bounded(path, FILE_BYTES), type=dict[str, Measured]
                )

    def applied(self, found: Fit, model: str, parallel: int = 1) -> Fit:
        """*found* as what this machine knows of *model* (a file's path) changes it."""
        return corrected(found, self._known.get(_key(model, parallel)))

    def note(self, predicted: Fit, model: str, parallel: int, resident_bytes: int) -> bool:
        """
        Keep what a load took, if it took more than was predicted; whether it was kept.

        Only for models that lie in RAM alone: a process' resident size knows no GPU.
        """
        before = self._known.get(_key(model, parallel))
        least = max(predicted.needed_bytes, before.measured_bytes if before else 0)
        if predicted.placement is not Placement.CPU or resident_bytes <= least:
            return False
        self._known.pop(_key(model, parallel), None)
        self._known[_key(model, parallel)] = Measured(
            context_tokens=predicted.context_tokens,
            predicted_bytes=predicted.needed_bytes,
            measured_bytes=resident_bytes,
        )
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        self._save()
        return True

    def _save(self) -> None:
        """Losing it costs the experience, never an answer."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                files.ensure_dir(self._path.parent)
                files.write_atomic(self._path, msgspec.json.encode(self._known))


def _key(model: str, parallel: int) -> str:
    return f"{Path(model).name}*{parallel}"

"""
A blob that is not whole yet: its bytes and a journal of which of them are here.

Both lie in `<store>/.localfirst/partial/sha256-HEX/`. The journal is only appended to:

    localfirst 1 sha256:HEX SIZE     what this is
    S START END                      these bytes were on the disk before this line was
    B BOOT                           the `W` lines below were written under this boot
    W START END                      these bytes were handed to the operating system

A killed process loses nothing that was handed over, so `W` counts as long as the machine
has not restarted since; after a restart only `S` does. A torn or foreign line counts as
nothing. Whatever the journal says, the digest is checked before a blob becomes visible.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from localfirst.models.manifest import Layer, ManifestInvalid, normal_digest
from localfirst.models.pull_ranges import Ranges
from localfirst.models.store import Store
from localfirst.transport import files
from localfirst.wire.forgiving import UNREADABLE

JOURNAL_LIMIT_BYTES = 16 * 2**20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PARTIAL = "partial"
# A daemon that downloads writes at least this often; ollama cuts a stall after 30 s.
OLLAMA_QUIET_S = 60.0


def boot_id() -> str:
    """Something that changes when the machine restarts; "" when nothing tells."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()
    try:
        import psutil

        return f"since-{int(psutil.boot_time())}"
    except (ImportError, OSError, RuntimeError):
        return ""


class Partial:
    """
    One partial blob, opened for writing by the one process that holds its lock.

    Bytes are written with `os.pwrite(partial.descriptor, …)`; `written` and `sync` note
    them. `done` is what the journal granted when it was opened.
    """

    def __init__(self, store: Store, layer: Layer, *, boot: str | None = None) -> None:
        self.layer = layer
        self.folder = folder_of(store, layer.digest)
        self.data = self.folder / "data"
        self.journal = self.folder / "journal"
        self.boot = boot_id() if boot is None else boot
        store.prepare(PARTIAL, self.folder.name)
        self.descriptor = files.open_regular(self.data, os.O_RDWR | os.O_CREAT)
        self._log = -1
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        safe, loose = read_journal(self.journal, self.layer, self.boot)
        there = os.fstat(self.descriptor).st_size
        self.safe = Ranges((start, min(end, there)) for start, end in safe)
        self.done = self.safe.copy()
        for start, end in loose:
            self.done.add(start, min(end, there))
        os.ftruncate(self.descriptor, self.layer.size_bytes)
        self._rewrite(self.done.without(self.safe))

    def _rewrite(self, loose: Iterable[tuple[int, int]]) -> None:
        """Start the journal anew, without what was superseded."""
        lines = [_header(self.layer), *(f"S {start} {end}\n" for start, end in self.safe)]
        if self.boot:
            lines.append(f"B {self.boot}\n")
            lines += [f"W {start} {end}\n" for start, end in loose]
        files.write_atomic(self.journal, "".join(lines).encode())
        if self._log >= 0:
            os.close(self._log)
        self._log = files.open_regular(self.journal, os.O_WRONLY | os.O_APPEND)

    def written(self, start: int, end: int) -> None:
        """Note that `[start, end)` was handed to the operating system."""
        if self.boot:
            os.write(self._log, f"W {start} {end}\n".encode())

    def sync(self, done: Ranges) -> None:
        """Flush the bytes to the disk, then note that all of *done* is there."""
        fresh = done.without(self.safe)
        if not fresh.total:
            return
        files.sync_data(self.descriptor)
        lines = "".join(f"S {start} {end}\n" for start, end in fresh)
        os.write(self._log, lines.encode())
        files.sync_data(self._log)
        for start, end in fresh:
            self.safe.add(start, end)

    def forget(self) -> None:
        """Throw the bytes away and start over: they were false."""
        self.safe, self.done = Ranges(), Ranges()
        self._rewrite(())
        os.ftruncate(self.descriptor, 0)
        os.ftruncate(self.descriptor, self.layer.size_bytes)

    def close(self) -> None:
        """Close the files; idempotent."""
        for descriptor in (self.descriptor, self._log):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self.descriptor = self._log = -1

    def remove(self) -> None:
        """Remove what is left of the folder once the data has become a blob."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class PartialInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A partial blob on disk; `completed_bytes` is what a pull started now would not fetch."""

    digest: str
    size_bytes: int
    completed_bytes: int
    modified_unix: float
    folder: Path


def folder_of(store: Store, digest: str) -> Path:
    """Where a digest's partial lies, whether it exists or not."""
    return store.ours / PARTIAL / normal_digest(digest).replace(":", "-")


def look(folder: Path, *, boot: str | None = None) -> PartialInfo | None:
    """What a partial's folder holds, without touching it; None when it is none."""
    with contextlib.suppress(OSError, ValueError, IndexError, ManifestInvalid):
        journal = folder / "journal"
        with journal.open("rb") as stream:
            first = stream.readline(200).decode("ascii").split()
        layer = Layer(media_type="", digest=normal_digest(first[2]), size_bytes=int(first[3]))
        if layer.digest.replace(":", "-") != folder.name:
            return None
        safe, loose = read_journal(journal, layer, boot_id() if boot is None else boot)
        for start, end in loose:
            safe.add(start, end)
        return PartialInfo(
            digest=layer.digest,
            size_bytes=layer.size_bytes,
            completed_bytes=safe.total,
            modified_unix=journal.stat().st_mtime,
            folder=folder,
        )
    return None


def completed_bytes(store: Store, layer: Layer) -> int:
    """How much of a layer lies in a partial."""
    info = look(folder_of(store, layer.digest))
    return info.completed_bytes if info and info.size_bytes == layer.size_bytes else 0


def read_journal(path: Path, layer: Layer, boot: str) -> tuple[Ranges, Ranges]:
    """The bytes that are on the disk, and those that are only while this boot lasts."""
    safe, loose = Ranges(), Ranges()
    try:
        text = files.read_bounded(path, JOURNAL_LIMIT_BYTES).decode("ascii", errors="replace")
    except OSError:
        return safe, loose
    lines = text.split("\n")[:-1]  # a line without its end was torn
    if not lines or lines[0] + "\n" != _header(layer):
        return safe, loose
    same_boot = False
    for line in lines[1:]:
        words = line.split(" ")
        if words[0] == "B":
            same_boot = bool(boot) and words[1:] == [boot]
            continue
        pair = _pair(words, layer.size_bytes)
        if pair and words[0] == "S":
            safe.add(*pair)
        elif pair and words[0] == "W" and same_boot:
            loose.add(*pair)
    return safe, loose


def _pair(words: list[str], size: int) -> tuple[int, int] | None:
    if len(words) != 3 or not all(one.isdecimal() and len(one) < 20 for one in words[1:]):
        return None
    start, end = int(words[1]), int(words[2])
    return (start, end) if start < end <= size else None


def _header(layer: Layer) -> str:
    return f"localfirst 1 {layer.digest} {layer.size_bytes}\n"


class _OllamaPart(msgspec.Struct):
    N: int
    Offset: int
    Size: int
    Completed: int


def take_over(store: Store, layer: Layer, *, now_unix: float, daemon_idle: bool = False) -> int:
    """
    Make an interrupted `ollama pull`'s partial file ours; returns the bytes gained.

    Ollama has no lock: a file that was written to within the last minute is left alone,
    unless the caller knows that no daemon runs (`daemon_idle`). Its sidecar files count
    what is surely in the file (ollama/ollama `server/download.go`). An own partial that is
    there already wins.
    """
    theirs = store.blobs / (layer.digest.replace(":", "-") + "-partial")
    folder = folder_of(store, layer.digest)
    if (folder / "journal").exists() or not theirs.is_file() or theirs.is_symlink():
        return 0
    sidecars = sorted(store.blobs.glob(theirs.name + "-*"))
    newest = max(path.stat().st_mtime for path in (theirs, *sidecars))
    if not daemon_idle and now_unix - newest < OLLAMA_QUIET_S:
        return 0
    done = _ollama_ranges(sidecars, layer.size_bytes)
    if not done.total:  # killed before it noted anything: nothing to go on with
        for path in (theirs, *sidecars):
            path.unlink(missing_ok=True)
        return 0
    store.prepare(PARTIAL, folder.name)
    lines = [_header(layer), f"B {boot_id()}\n", *(f"W {s} {e}\n" for s, e in done)]
    theirs.replace(folder / "data")
    (folder / "data").chmod(0o600)
    files.write_atomic(folder / "journal", "".join(lines).encode())
    for path in sidecars:
        path.unlink(missing_ok=True)
    return done.total


def _ollama_ranges(sidecars: list[Path], size: int) -> Ranges:
    done = Ranges()
    for path in sidecars:
        with contextlib.suppress(OSError, *UNREADABLE):
            part = msgspec.json.decode(files.read_bounded(path, 4096), type=_OllamaPart)
            end = part.Offset + part.Completed
            if 0 <= part.Offset < end <= size and part.Completed <= part.Size:
                done.add(part.Offset, end)
    return done

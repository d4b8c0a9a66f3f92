"""
One file in several parts, `NAME.001` and on, for filesystems with a largest file.

Written under names that count as nothing and renamed when all is there; read as one file
that can be sought in.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from localfirst.errors import InvalidRequest, VerificationFailed
from localfirst.transport import files

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# The largest file FAT32 holds (Microsoft, fatgen103: a 32-bit size).
FAT32_BYTES = 2**32 - 1
# As the names have three digits; a forgotten unit would make millions.
MOST_PARTS = 999
# More is asked for at once only by a tar header that lies.
READ_LIMIT_BYTES = 64 * 2**20


class BundleInvalid(VerificationFailed):
    """Raised when a file is no bundle, is cut short, or holds what it must not."""

    code = "bundle-invalid"
    hint = "export the bundle again, and copy it with a tool that checks what it wrote"


class PartWriter(io.RawIOBase):
    """
    A file, or several of at most *limit* bytes, that take their names when all is written.

    Parts lie beside their target under a name of their own meanwhile.
    """

    def __init__(self, target: Path, limit: int = 0) -> None:
        self._target = target
        self._limit = limit
        self._paths: list[Path] = []
        self._stream: IO[bytes] | None = None
        self._room = 0
        self._at = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning of the first part."""
        return self._at

    def write(self, data: ReadableBuffer) -> int:
        """Write all of *data*, over as many parts as it takes."""
        view = memoryview(data).cast("B")
        left = view
        while left:
            if self._stream is None or (self._limit and not self._room):
                self._next()
            piece = left[: self._room] if self._limit else left
            assert self._stream is not None
            self._stream.write(piece)
            self._room -= len(piece)
            left = left[len(piece) :]
        self._at += len(view)
        return len(view)

    def _next(self) -> None:
        self._flush()
        if len(self._paths) == MOST_PARTS:
            raise InvalidRequest(
                f"parts of {self._limit} bytes would be more than {MOST_PARTS}",
                field="split",
                hint="make larger ones, such as `--split 4G`",
            )
        descriptor, path = files.create_beside(self._target, 0o644)
        self._paths.append(path)
        self._stream = os.fdopen(descriptor, "wb")
        self._room = self._limit

    def _flush(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()

    def finish(self) -> Path:
        """Give the parts their names; the first one's is returned."""
        self._flush()
        targets = [self._target]
        if self._limit:
            targets = [part_path(self._target, number) for number in range(len(self._paths))]
        for path, target in zip(self._paths, targets, strict=True):
            files.replace(path, target)
        stale = part_path(self._target, len(self._paths))
        if self._limit and stale.exists():  # of a longer bundle that had this name
            stale.unlink()
        return targets[0]

    def discard(self) -> None:
        """Remove what was written."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # a full disk refuses what is still to be written
                self._stream.close()
        for path in self._paths:
            path.unlink(missing_ok=True)


def part_path(target: Path, number: int) -> Path:
    """The name of a part, counted from 0."""
    return target.with_name(f"{target.name}.{number + 1:03}")


def parts_of(path: Path) -> list[Path]:
    """The files of a bundle, by its own name or its first part's; `InvalidRequest` for none."""
    if path.is_file() and path.suffix != ".001":
        return [path]
    base = path.with_suffix("") if path.suffix == ".001" else path
    found: list[Path] = []
    while (part := part_path(base, len(found))).is_file():
        found.append(part)
    if not found:
        why = "is a folder" if path.is_dir() else "is not there"
        hint = "name the bundle or its `.001` part"
        raise InvalidRequest(f"`{path}` {why}", hint=hint, code="bundle-missing")
    return found


class PartReader(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._streams = [path.open("rb", buffering=0) for path in paths]
        self._sizes = [path.stat().st_size for path in paths]
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place counted over all parts."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: sum(self._sizes)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Bytes from the beginning of the first part."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """*size* bytes, fewer only at the end; a size that no honest tar asks for is refused."""
        if not 0 <= size <= READ_LIMIT_BYTES:
            raise BundleInvalid(f"a header asks for {size} bytes at once")
        view, count = memoryview(bytearray(size)), 0
        while count < size and (more := self.readinto(view[count:])):
            count += more
        return bytes(view[:count])

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read on, at most to the end of a part."""
        view = memoryview(buffer).cast("B")
        start = 0
        for stream, size in zip(self._streams, self._sizes, strict=True):
            if self._at < start + size:
                stream.seek(self._at - start)
                count = stream.readinto(view[: start + size - self._at]) or 0
                self._at += count
                return count
            start += size
        return 0

    def close(self) -> None:
        """Close every part."""
        for stream in self._streams:
            stream.close()
        super().close()

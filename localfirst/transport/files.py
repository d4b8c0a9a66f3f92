"""
Files that are whole or absent, private, and never a trap.

Every write goes to a temporary file beside its target, is flushed to the disk, and then
takes the target's name; a reader sees the old content or the new one. Links are not
followed, and what is not a regular file is refused, so that nobody redirects our writes.
All failures are `OSError`s with their own `errno`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import ctypes
    import msvcrt
else:
    import fcntl

# Absent on Windows, where links need a privilege to be made.
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)
CLOEXEC = getattr(os, "O_CLOEXEC", 0)

WINDOWS = os.name == "nt"
# Virus scanners hold a new file for a moment; uv waits up to 10 s for them (uv-fs).
REPLACE_TRIES = 40
REPLACE_PAUSE_S = 0.25


def ensure_dir(path: Path, mode: int = 0o700) -> Path:
    """
    Make *path* and its parents, and return it.

    A private folder (no bits for others in *mode*) that exists must be this user's own:
    a link into somebody else's folder is refused with `EACCES`.
    """
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if sys.platform != "win32" and not mode & 0o077:
        owner = path.stat().st_uid
        if owner not in {os.geteuid(), 0} and os.geteuid() != 0:
            raise OSError(errno.EACCES, "folder belongs to another user", str(path))
    return path


def fsync_dir(path: Path) -> None:
    """Make a folder's entries survive a power cut; does nothing where folders cannot be opened."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network filesystems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_data(descriptor: int) -> None:
    """Flush a file's bytes (and its size) to the disk."""
    flush = getattr(os, "fdatasync", os.fsync)
    flush(descriptor)


def replace(source: Path, target: Path) -> None:
    """Give *source* the name *target*, and make that survive a power cut."""
    for remaining in reversed(range(REPLACE_TRIES)):
        try:
            source.replace(target)
            break
        except PermissionError:
            if not WINDOWS or not remaining:
                raise
            _pause(REPLACE_PAUSE_S)
    fsync_dir(target.parent)


def _pause(seconds: float) -> None:
    """Wait in a place that has no loop; only Windows comes here."""
    threading.Event().wait(seconds)


def create_beside(path: Path, mode: int = 0o600) -> tuple[int, Path]:
    """
    Open a new, unpredictably named file in *path*'s folder; returns descriptor and name.

    What is no file is not going to be replaced by one: `/dev/stdout` is refused. Errors name
    *path*, which the caller knows.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | NOFOLLOW | BINARY | CLOEXEC
    for _ in range(100):
        candidate = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            return os.open(candidate, flags, mode), candidate
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    raise OSError(errno.EEXIST, "no free temporary name", str(path))


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write *data* to *path*, whole or not at all; a link at *path* is replaced, not followed."""
    descriptor, temporary = create_beside(path, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            if sys.platform != "win32":
                os.fchmod(stream.fileno(), mode)  # whatever the umask took away
            os.fsync(stream.fileno())
        replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file without following a link or waiting for a pipe; else `EINVAL`/`ELOOP`."""
    descriptor = os.open(path, flags | NOFOLLOW | NONBLOCK | BINARY | CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def open_appending(path: Path) -> int:
    """
    Open a private file for a program that writes at its end, wherever that will be then.

    Windows tells a program of no such wish, but lets it do nothing else.
    """
    if sys.platform == "win32":
        import _winapi

        # FILE_APPEND_DATA and SYNCHRONIZE; shared for all; OPEN_ALWAYS.
        handle = _winapi.CreateFile(str(path), 0x100004, 0x7, 0, 4, 0, 0)
        opened: int = msvcrt.open_osfhandle(handle, os.O_APPEND | os.O_WRONLY)
        return opened
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.set_blocking(descriptor, True)
    return descriptor


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The content of a regular file of at most *limit_bytes* (else `EFBIG`); links are refused."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"file is larger than {limit_bytes} bytes", str(path))
    return data


_SEEKING = threading.Lock()


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill *view* from *offset* on, as far as one read goes; from any thread."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    if hasattr(os, "pread"):
        data = os.pread(descriptor, len(view), offset)
    else:
        with _SEEKING:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of *view* at *offset*; from any thread."""
    while view:
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, view, offset)
        else:
            with _SEEKING:
                os.lseek(descriptor, offset, os.SEEK_SET)
                count = os.write(descriptor, view)
        view, offset = view[count:], offset + count


def existing_parent(path: Path) -> Path:
    """*path* itself, or the nearest folder above it that exists."""
    for candidate in (path, *path.absolute().parents):
        if candidate.exists():
            return candidate
    return Path(path.anchor or ".")


def free_bytes(path: Path) -> int:
    """Bytes this user may still write on the filesystem where *path* is, or would be."""
    return shutil.disk_usage(existing_parent(path)).free


class FileLock:
    """
    A lock between processes, by a file that is never removed.

    Removing it would split waiters over two files. Advisory, and not to be relied upon on
    network filesystems: what it guards is written atomically anyway. Two locks on one path
    exclude each other within a process as well, unless both are shared. Released when the
    process ends, however. With *anywhere*, a file that may only be read is locked, too.
    """

    def __init__(self, path: Path, *, anywhere: bool = False) -> None:
        self.path = path
        self._anywhere = anywhere
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """
        Take the lock if it is free, or beside others that are *shared*; False when it is not.

        One that is held stays what it is.
        """
        if self.held:
            return True
        descriptor = self._open()
        try:
            taken = _lock(descriptor, shared)
        except BaseException:
            os.close(descriptor)
            raise
        if not taken:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def _open(self) -> int:
        try:
            return open_regular(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if not self._anywhere or error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
            return open_regular(self.path, os.O_RDONLY)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _unlock(descriptor)
            os.close(descriptor)

    @contextlib.contextmanager
    def tried(self) -> Iterator[bool]:
        """`with lock.tried() as mine:` for code without a loop; released at the end if taken."""
        mine = self.try_acquire()
        try:
            yield mine
        finally:
            if mine:
                self.release()


def _lock(descriptor: int, shared: bool) -> bool:
    try:
        if sys.platform == "win32":
            _lock_windows(descriptor, shared)
        else:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN, errno.EDEADLK}:
            return False
        raise
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


if sys.platform == "win32":

    class _Overlapped(ctypes.Structure):
        """OVERLAPPED of minwinbase.h: the lock's place, which is the file's first byte."""

        _fields_ = (
            ("internal", ctypes.c_size_t),
            ("internal_high", ctypes.c_size_t),
            ("offset", ctypes.c_uint32),
            ("offset_high", ctypes.c_uint32),
            ("event", ctypes.c_void_p),
        )

    def _lock_windows(descriptor: int, shared: bool) -> None:
        """As msvcrt.locking, which knows no shared locks."""
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(descriptor))
        flags = 0x1 if shared else 0x3  # LOCKFILE_FAIL_IMMEDIATELY, LOCKFILE_EXCLUSIVE_LOCK
        if not kernel.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(_Overlapped())):
            code = ctypes.get_last_error()
            # ERROR_LOCK_VIOLATION and ERROR_IO_PENDING: another holds it.
            raise OSError(errno.EACCES if code in {33, 997} else errno.EIO, f"error {code}")

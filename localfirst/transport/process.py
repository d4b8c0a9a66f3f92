"""
Other programs: the one place that starts, watches and ends them, and reads the environment.

A child runs in its own session, so that its whole group can be ended; it inherits an
allow-listed environment (never a key or a token), no open file, and a drained log of
bounded size. Its exit is seen before it is reaped: while the leader is a zombie its number
cannot be given to anyone else, and what it left behind in the group is ended safely.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from localfirst.transport.childlog import LogRing, OutlivingFile, RotatedFile

WINDOWS = sys.platform.startswith("win")
LINUX = sys.platform.startswith("linux")
OUTPUT_BYTES = 2**20
KILLED = -9  # `Popen.returncode` of SIGKILL, which Windows does not name

# What a program needs to find its home, its libraries, its GPU and the way out; names as
# in Ollama's envconfig, the CUDA, ROCm and ggml runtimes, and the Windows loader.
ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TEMP|TMP|XDG_\w+|"
    r"SYSTEMROOT|SYSTEMDRIVE|WINDIR|COMSPEC|PATHEXT|APPDATA|LOCALAPPDATA|PROGRAMDATA|"
    r"PROGRAMFILES|USERPROFILE|USERNAME|HOMEDRIVE|HOMEPATH|NUMBER_OF_PROCESSORS|"
    r"LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|DYLD_FALLBACK_LIBRARY_PATH|"
    r"CUDA_\w+|NVIDIA_\w+|HIP_\w+|ROCR_\w+|ROCM_\w+|HSA_\w+|AMD_\w+|GPU_\w+|GGML_\w+|VK_\w+|"
    r"ONEAPI_\w+|ZE_\w+|SYCL_\w+|OMP_\w+|KMP_\w+|JETSON_\w+|LLAMA_ARG_\w+|OLLAMA_\w+|"
    r"HTTPS?_PROXY|ALL_PROXY|NO_PROXY|SSL_CERT_FILE|SSL_CERT_DIR",
    re.IGNORECASE,
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)AUTH(_|$)", re.IGNORECASE)


def environ() -> Mapping[str, str]:
    """This process' environment, as a copy."""
    return dict(os.environ)


def child_environ(environ: Mapping[str, str], extra: Mapping[str, str] = {}) -> dict[str, str]:
    """The part of *environ* a child may see, with *extra* on top; no name that holds a secret."""
    kept = {
        name: value
        for name, value in environ.items()
        if ALLOWED.fullmatch(name) and not SECRET.search(name)
    }
    return kept | dict(extra)


# --- one-shot programs -------------------------------------------------------------------


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """A program that ended, or was ended: `timed_out`; output is cut at `OUTPUT_BYTES`."""

    returncode: int
    stdout: bytes = b""
    stderr: bytes = b""
    timed_out: bool = False


def run(
    argv: Sequence[str],
    timeout_s: float,
    *,
    env: Mapping[str, str] | None = None,
    output_bytes: int = OUTPUT_BYTES,
) -> Completed:
    """
    Run a short program to its end; blocks, so call it from a thread when a loop runs.

    Raises:
        OSError: the program does not exist or may not be executed.
    """
    child = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(child_environ(environ()) if env is None else env),
        start_new_session=not WINDOWS,
    )
    with child:
        try:
            stdout, stderr = child.communicate(timeout=timeout_s)
            timed_out = False
        except subprocess.TimeoutExpired:
            _signal_group(child.pid, _KILL)
            child.kill()
            stdout, stderr, timed_out = b"", b"", True
            # A grandchild outside the group may hold the pipes; it is not waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                stdout, stderr = child.communicate(timeout=1.0)
    return Completed(
        returncode=child.returncode,
        stdout=stdout[:output_bytes],
        stderr=stderr[:output_bytes],
        timed_out=timed_out,
    )


# --- identity ------------------------------------------------------------------------------


def birth(pid: int) -> str:
    """
    A mark of the process *pid* that its number's next owner does not share; "" when gone.

    On Linux the start in clock ticks since boot (proc(5), field 22), which no change of the
    wall clock moves; elsewhere psutil's creation time. A zombie counts as gone.
    """
    if LINUX:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return ""
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in {"Z", "X"} else f"{boot}:{fields[19]}"
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return ""


def same(pid: int, mark: str) -> bool:
    """Whether *pid* is alive and still the process that had *mark*."""
    return bool(mark) and birth(pid) == mark


def resident_bytes(pid: int) -> int:
    """The physical memory that a process holds; 0 when it is gone or not ours to look at."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def end(pid: int, mark: str, *, force: bool = False) -> bool:
    """Ask (or with *force* make) a process that is not our child end; False when it is gone."""
    if not same(pid, mark):
        return False
    try:
        os.kill(pid, _KILL if force else signal.SIGTERM)
    except OSError:
        return False
    return True


_KILL = signal.SIGTERM if WINDOWS else signal.SIGKILL


def _signal_group(pid: int, number: int) -> None:
    """Signal the group that *pid* leads; only called while the leader is not reaped."""
    with contextlib.suppress(OSError):
        if WINDOWS:
            os.kill(pid, number)
        else:
            os.killpg(pid, number)


# --- long-running children -------------------------------------------------------------------


class Child:
    """
    A running program of ours; made by `spawn`, ended by `stop`.

    `returncode` is None while it runs and negative for a signal. `log` holds what it wrote.
    """

    def __init__(
        self, popen: subprocess.Popen[bytes], log: LogRing, own: OutlivingFile | None
    ) -> None:
        self._popen = popen
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[int] = self._loop.create_future()
        self._drained: list[asyncio.Future[None]] = []
        self.pid = popen.pid
        self.birth = birth(popen.pid)
        self.log = log

    @property
    def alive(self) -> bool:
        """Whether it has not been seen to end."""
        return not self._done.done()

    @property
    def returncode(self) -> int | None:
        """Its exit status once it ended."""
        return self._done.result() if self._done.done() else None

    @property
    def killed(self) -> bool:
        """Whether it ended by the signal that nothing outlives, the system's for want of memory."""
        return self.returncode == KILLED

    @property
    def ending(self) -> str:
        """How it ended, for people, with the last line it wrote."""
        killed, status = "was killed, perhaps out of memory", f"ended with status {self.returncode}"
        lines = (line.strip() for line in reversed(self.log.tail(5)))
        words = next((line[:300] for line in lines if line), "")
        how = killed if self.killed else status
        return f"{how}: {words}" if words else how

    async def wait(self) -> int:
        """Its exit status, once it and its group have ended; pipes held elsewhere do not count."""
        return await asyncio.shield(self._done)

    def terminate(self) -> None:
        """Ask the whole group to end."""
        if self.alive:
            _signal_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once."""
        if self.alive:
            _signal_group(self.pid, _KILL)

    async def stop(self, grace_s: float = 5.0) -> int:
        """Ask, wait *grace_s*, then make it end; returns its exit status."""
        self.terminate()
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()
        finally:
            if not self.alive:
                self.close()

    async def drained(self, timeout_s: float = 0.5) -> None:
        """Wait until what an ended child wrote has been read, at most *timeout_s*."""
        if self._drained:
            await asyncio.wait(self._drained, timeout=timeout_s)
        if self._own is not None:
            self.log.feed(self._own.words())

    def close(self) -> None:
        """Give the pipes back, even when a stranger holds their other end; idempotent."""
        for future in self._drained:
            _settle(future)
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()

    def _attach(
        self, file: RotatedFile | None, on_stdout: Callable[[bytes], object] | None
    ) -> None:
        """Drain the pipes and watch for the exit."""

        def keep(data: bytes) -> None:
            self.log.feed(data)
            if file is not None:
                file.write(data)

        if self._popen.stdout is not None:
            self._drain(_detach(self._popen.stdout), on_stdout or keep)
        if self._popen.stderr is not None:
            self._drain(_detach(self._popen.stderr), keep)
        self._watch()

    # Exit: seen by a thread, because no loop and no platform agree on a way to wait.

    def _watch(self) -> None:
        threading.Thread(target=self._wait_thread, name=f"child-{self.pid}", daemon=True).start()

    def _wait_thread(self) -> None:
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            _signal_group(self.pid, _KILL)
        code = self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop may be gone; then nobody waits
            self._loop.call_soon_threadsafe(self._ended, code)

    def _ended(self, code: int) -> None:
        if not self._done.done():
            self._done.set_result(code)

    def _drain(self, pipe: int, take: Callable[[bytes], object]) -> None:
        """Read *pipe* to its end without ever blocking the loop."""
        ended: asyncio.Future[None] = self._loop.create_future()
        self._drained.append(ended)
        if WINDOWS:
            threading.Thread(
                target=_drain_thread, args=(pipe, take, self._loop, ended), daemon=True
            ).start()
            return
        os.set_blocking(pipe, False)

        def readable() -> None:
            try:
                data = os.read(pipe, 2**16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                take(data)
            else:
                _settle(ended)

        def close(_: asyncio.Future[None]) -> None:
            with contextlib.suppress(RuntimeError):
                self._loop.remove_reader(pipe)
            os.close(pipe)

        self._loop.add_reader(pipe, readable)
        ended.add_done_callback(close)


def _drain_thread(
    pipe: int,
    take: Callable[[bytes], object],
    loop: asyncio.AbstractEventLoop,
    ended: asyncio.Future[None],
) -> None:
    with open(pipe, "rb", buffering=0) as file, contextlib.suppress(RuntimeError, OSError):
        while data := file.read(2**16):
            loop.call_soon_threadsafe(take, data)
        loop.call_soon_threadsafe(_settle, ended)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: LogRing | None = None,
    file: RotatedFile | None = None,
    stdin: bytes | None = None,
    on_stdout: Callable[[bytes], object] | None = None,
) -> Child:
    """
    Start *argv* in its own session; needs a running loop.

    Args:
        argv: an absolute program and its arguments; nothing of a request belongs here.
        env: the child's whole environment, made by `child_environ`.
        log: where its stderr goes (and stdout, unless *on_stdout* takes it).
        file: a second, longer home of the same output; an `OutlivingFile` is its only one.
        stdin: written at once, and the pipe stays open as long as this process lives:
            a child that reads it sees its parent's death as the end of input.
        on_stdout: gets stdout's bytes as they come.

    Raises:
        OSError: the program does not exist or may not be executed.
    """
    own = file if isinstance(file, OutlivingFile) else None
    with own.opened() if own else contextlib.nullcontext(subprocess.PIPE) as output:
        popen = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=output,
            bufsize=0,
            stderr=subprocess.PIPE if on_stdout else subprocess.STDOUT,
            start_new_session=not WINDOWS,
            # CREATE_NO_WINDOW: neither our console's Ctrl-C nor its end are the child's.
            creationflags=0x08000000 if WINDOWS and own else 0,
        )
    child = Child(popen, LogRing() if log is None else log, own)
    child._attach(file, on_stdout)
    if stdin is not None and popen.stdin is not None:
        with contextlib.suppress(OSError):  # it may have died already; its exit says why
            popen.stdin.write(stdin)
            popen.stdin.flush()
    return child


def _detach(pipe: object) -> int:
    """Own the descriptor of a Popen pipe, so that exactly one place closes it."""
    descriptor = os.dup(pipe.fileno())  # type: ignore[attr-defined]
    pipe.close()  # type: ignore[attr-defined]
    return descriptor

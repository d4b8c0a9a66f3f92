"""
What starting `ollama serve` needs: the program, its environment, a port, who is on it.

Nothing is started here; `supervisor` does that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from localfirst.config import values
from localfirst.engines.ollama.daemon import Daemon
from localfirst.errors import (
    Breakage,
    ConfigError,
    EngineUnavailable,
    UpstreamBroken,
    UpstreamError,
)
from localfirst.transport import process
from localfirst.transport.http import is_loopback
from localfirst.transport.upstream import UpstreamClient

log = logging.getLogger("localfirst.engines")

MARKER = "LOCALFIRST_ENGINE"
"""Set in a daemon's environment, and so in its runners': what tells our orphans from others'."""

STATE_DIR = f"{MARKER}_STATE_DIR"
"""Beside it: the folder whose locks tell who uses the daemon."""

# Where installers put it (ollama/ollama scripts/install.sh, app/, and distributions).
PLACES = (
    "/usr/local/bin/ollama",
    "/usr/bin/ollama",
    "/opt/homebrew/bin/ollama",
    "/Applications/Ollama.app/Contents/Resources/ollama",
    "/snap/bin/ollama",
)
GONE = {Breakage.CONNECT_REFUSED, Breakage.OFFLINE, Breakage.DNS}


class Seen(StrEnum):
    """Who answers at an address."""

    OLLAMA = "ollama"
    OTHER = "other"
    SILENT = "silent"
    NOTHING = "nothing"


async def look(
    endpoint: str, upstream: UpstreamClient, timeout_s: float = 1.0, *, tries: int = 1
) -> Seen:
    """
    Who is at *endpoint*: an Ollama says its version; anything else that talks is another.

    A daemon accepts connections before it answers them, so silence is not yet a stranger, and
    is asked again, *tries* times in all.
    """
    for _ in range(tries - 1):
        if (seen := await look(endpoint, upstream, timeout_s)) is not Seen.SILENT:
            return seen
    daemon = Daemon(endpoint, upstream)
    try:
        await daemon.version(timeout_s)
    except UpstreamBroken as error:
        if error.breakage in GONE:
            return Seen.NOTHING
        silent = {Breakage.FIRST_BYTE_TIMEOUT, Breakage.CONNECT_TIMEOUT, Breakage.STALL_TIMEOUT}
        return Seen.SILENT if error.breakage in silent else Seen.OTHER
    except UpstreamError:
        return Seen.OTHER
    return Seen.OLLAMA if await daemon.alive(timeout_s) else Seen.OTHER


def connectable(host: str) -> str:
    """
    An address that was meant for listening, as one to connect to: as Ollama's own client does.

    Raises:
        ConfigError: it is none; only settings that were built by hand still hold such a one.
    """
    try:
        return values.ollama_host(host)
    except ValueError as error:
        raise ConfigError(
            f"`{host[:80]}` is no address of an Ollama: expected {error}", setting="local.host"
        ) from None


def port_of(endpoint: str) -> int:
    """The port of an endpoint that `connectable` made."""
    return urlsplit(endpoint).port or 11434


def startable_at(endpoint: str) -> bool:
    """Whether a daemon of ours could listen there: on this machine, in plain http."""
    parts = urlsplit(endpoint)
    return parts.scheme == "http" and is_loopback(parts.hostname or "")


def find_program(environ: Mapping[str, str], places: Sequence[str] = PLACES) -> Path:
    """
    The `ollama` program, by absolute path: in PATH, else where installers put it.

    Only absolute folders of PATH are searched: a program that lies in the current folder
    is never run.

    Raises:
        EngineUnavailable: it is not installed, or may not be executed.
    """
    folders = [f for f in environ.get("PATH", "").split(os.pathsep) if Path(f).is_absolute()]
    found = shutil.which("ollama", path=os.pathsep.join(folders)) if folders else None
    names = [Path(found)] if found else []
    names += [Path(place) for place in places]
    if local := environ.get("LOCALAPPDATA"):
        names.append(Path(local) / "Programs" / "Ollama" / "ollama.exe")
    names += [Path(folder) / "ollama" for folder in folders]
    return usable(next((path for path in names if _is_file(path)), None))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder of PATH that this user may not look into
        return False


def usable(path: Path | None) -> Path:
    """*path* if it can be run; raises `EngineUnavailable`."""
    if path is None:
        raise EngineUnavailable("Ollama is not installed", code="ollama-not-installed")
    if not os.access(path, os.X_OK):
        raise EngineUnavailable(
            f"`{path}` may not be executed",
            hint=f"run `chmod +x {path}`",
            code="ollama-not-executable",
        )
    if sys.platform != "win32" and path.stat().st_mode & stat.S_IWOTH:
        log.warning("`%s` can be changed by every user of this machine", path)
    return path


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def daemon_environ(
    environ: Mapping[str, str],
    *,
    port: int,
    marks: Mapping[str, str],
    models_dir: str = "",
    offline: bool = False,
    keep_alive_s: float = 300.0,
) -> dict[str, str]:
    """What a daemon of ours sees: loopback only, this machine's store, no key, no origins."""
    extra = {"OLLAMA_HOST": f"127.0.0.1:{port}", **marks}
    if models_dir:
        extra["OLLAMA_MODELS"] = models_dir
    if "OLLAMA_KEEP_ALIVE" not in environ:
        extra["OLLAMA_KEEP_ALIVE"] = f"{keep_alive_s:.0f}s"
    if offline:
        extra["OLLAMA_NO_CLOUD"] = "1"
    seen = process.child_environ(environ, extra)
    seen.pop("OLLAMA_ORIGINS", None)
    return seen


async def free_endpoint(wanted: str, upstream: UpstreamClient, timeout_s: float) -> tuple[str, str]:
    """*wanted* if nobody has it, else another port, and who has that one."""
    if not startable_at(wanted):
        return f"http://127.0.0.1:{free_port()}", ""
    if await look(wanted, upstream, timeout_s) is Seen.NOTHING:
        return wanted, ""
    port = port_of(wanted)
    who = await asyncio.to_thread(holder_of, port) or "another program"
    elsewhere = f"port {port} is taken by {who}, which is no Ollama"
    log.warning("%s", elsewhere)
    return f"http://127.0.0.1:{free_port()}", elsewhere


def fingerprint(*settings: object) -> str:
    """What a daemon runs by, told from other settings."""
    return hashlib.sha256(repr(settings).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def holder_of(port: int) -> str:
    """The program that listens on a loopback port, for people; "" when it cannot be told."""
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and connection.laddr.port == port and connection.pid:
                return f"`{psutil.Process(connection.pid).name()}` (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""

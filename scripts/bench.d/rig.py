"""
What measurements of the gateway share: cores, a model server in C, the gateway, nginx.

The model server (gcc) and the load have one core, what stands between them the other one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

MIDDLE, ENDS = 0, 1
"""Which core whatever stands in the middle runs on, and which one its two ends share."""

FIRST = -15
"""Niceness of what is measured."""

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

SERVE = """
import sys
from localfirst import config
from localfirst.gateway.server import serve
sys.exit(serve(config.load().settings, say=lambda line: print(line, flush=True)))
"""
PROFILED = """
import cProfile, pstats, sys
from localfirst import config
from localfirst.gateway.server import serve
profile = cProfile.Profile()
profile.runcall(serve, config.load().settings, say=lambda line: print(line, flush=True))
pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(45)
"""

CONFIG = """
order = ["mock"]
[providers.mock]
base_url = "http://127.0.0.1:{port}/v1"
model = "m"
keys = ["env:MOCK_API_KEY"]
concurrency = 16384
[gateway]
port = 0
max_connections = 16384
"""

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
  fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  keepalive_requests 100000000;
  upstream mock {{ server 127.0.0.1:{mock}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


class Place(NamedTuple):
    """Somewhere to ask: its port, whose CPU and memory it takes, headers that it wants."""

    port: int
    pid: int = 0
    headers: tuple[tuple[str, str], ...] = ()

    def processes(self) -> list[psutil.Process]:
        if not self.pid:
            return []
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def cpu_s(self) -> float:
        """Seconds of CPU so far; what a busy machine disturbs least."""
        return sum(sum(one.cpu_times()[:2]) for one in self.processes())

    def waited_s(self) -> float:
        """Seconds that it could have run and did not, because others had its core (Linux)."""
        found = 0
        for one in self.processes():
            with contextlib.suppress(OSError, IndexError):
                found += int(Path(f"/proc/{one.pid}/schedstat").read_text().split()[1])
        return found / 1e9

    def rss_bytes(self) -> int:
        return sum(one.memory_info().rss for one in self.processes())

    def descriptors(self) -> int:
        return sum(one.num_fds() for one in self.processes())


def pinned(core: int) -> list[str]:
    """The words before a command that keep it on a core."""
    if len(CORES) < 2 or shutil.which("taskset") is None:
        return []
    return ["taskset", "-c", str(CORES[core])]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """
    Go before other programs where one may, and have descriptors; children inherit both.

    On Linux the scheduler shares between sessions first (sched(7), autogroup), so that a
    process' own niceness says nothing to the rest of the machine.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    group = Path("/proc/self/autogroup")
    try:
        before = int(group.read_text().split()[-1])
        group.write_text(str(FIRST))
    except (OSError, ValueError, IndexError):
        yield
        return
    try:
        yield
    finally:
        group.write_text(str(before))


@contextlib.contextmanager
def running(argv: list[str], core: int, **options: object) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([*pinned(core), *argv], text=True, **options)  # type: ignore[call-overload]
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def compiled(folder: Path, name: str) -> str:
    """A C program of this folder, made in *folder*."""
    program = folder / name
    subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / f"{name}.c")], check=True)
    return str(program)


@contextlib.contextmanager
def mock(folder: Path) -> Iterator[Place]:
    """The model server."""
    program = compiled(folder, "gateway_mock")
    with running([program], ENDS, stdout=subprocess.PIPE) as child:
        assert child.stdout
        yield Place(int(child.stdout.readline()))


@contextlib.contextmanager
def gateway(folder: Path, upstream: int, *, profiled: bool = False) -> Iterator[Place]:
    """The gateway, with everything of its own in *folder*."""
    config = folder / "config.toml"
    config.write_text(CONFIG.format(port=upstream))
    config.chmod(0o600)
    environ = {
        **os.environ,
        "LOCALFIRST_CONFIG": str(config),
        "LOCALFIRST_STATE_DIR": str(folder / "state"),
        "MOCK_API_KEY": "sk-2f9c1d7be04a4c55b8e1",
        "PYTHONPATH": str(ROOT),
    }
    began = time.perf_counter()
    argv = [sys.executable, "-c", PROFILED if profiled else SERVE]
    with running(argv, MIDDLE, stdout=subprocess.PIPE, env=environ) as child:
        assert child.stdout
        line = child.stdout.readline()
        place = Place(int(line.split()[-1].rsplit(":")[-1]), child.pid)
        ready_s = time.perf_counter() - began
        print(f"gateway ready after {ready_s:.2f} s, {place.rss_bytes() / 1e6:.0f} MB idle")
        yield place


@contextlib.contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[Place | None]:
    """A plain reverse proxy, where nginx is installed."""
    if shutil.which("nginx") is None:
        print("nginx is not installed: nothing to compare with (`apt install nginx`)")
        yield None
        return
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, mock=upstream, port=port))
    with running(["nginx", "-c", str(config), "-e", "stderr"], MIDDLE) as child:
        wait_for(port)
        yield Place(port, child.pid)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(port: int, seconds: float = 5.0) -> None:
    """Until somebody listens."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")

"""
What the gateway costs beside its upstream: relayed JSON, latency, first token, CPU per chunk.

A model server in C (gcc) answers on one core together with the load; the gateway has the
other one, and so has nginx as a plain reverse proxy where it is installed. Rounds are
interleaved and medians printed, with the ratios that matter. Without `wrk` a loader in
Python takes its place, and is itself the limit.

    python scripts/bench.d/gateway.py [--rounds 3] [--seconds 3] [--clients 16] [--profile]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

MESSAGES = [{"role": "user", "content": "hello there, how are you today?"}]
ASKED = json.dumps({"model": "auto", "messages": MESSAGES}, separators=(",", ":"))
STREAMED = ASKED[:-1] + ',"stream":true}'
CHUNKS = 100
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
concurrency = 4096
[gateway]
port = 0
"""

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 4096; }}
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


def pinned(core: int) -> list[str]:
    """The words before a command that keep it on a core."""
    if len(CORES) < 2 or shutil.which("taskset") is None:
        return []
    return ["taskset", "-c", str(CORES[core])]


@contextlib.contextmanager
def running(argv: list[str], core: int, **options: object) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([*pinned(core), *argv], text=True, **options)  # type: ignore[call-overload]
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


@contextlib.contextmanager
def mock(folder: Path) -> Iterator[int]:
    program = folder / "mock"
    subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / "gateway_mock.c")], check=True)
    with running([str(program), str(CHUNKS)], 1, stdout=subprocess.PIPE) as child:
        assert child.stdout
        yield int(child.stdout.readline())


@contextlib.contextmanager
def gateway(folder: Path, port: int, profiled: bool) -> Iterator[tuple[int, int, float]]:
    """Port, process id and seconds until it said where it listens."""
    config = folder / "config.toml"
    config.write_text(CONFIG.format(port=port))
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
    with running(argv, 0, stdout=subprocess.PIPE, env=environ) as child:
        assert child.stdout
        line = child.stdout.readline()
        yield int(line.split()[-1].rsplit(":")[-1]), child.pid, time.perf_counter() - began


@contextlib.contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[tuple[int, int] | None]:
    if shutil.which("nginx") is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, mock=upstream, port=port))
    with running(["nginx", "-c", str(config), "-e", "stderr"], 0) as child:
        wait_for(port)
        yield port, child.pid


def wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


def request(port: int, body: str) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def load(port: int, clients: int, seconds: float, folder: Path) -> tuple[float, float]:
    """Requests a second, and the median latency in milliseconds."""
    if shutil.which("wrk") is None:
        return python_load(port, clients, seconds)
    script = folder / "post.lua"
    script.write_text(
        f'wrk.method="POST" wrk.body=\'{ASKED}\' wrk.headers["content-type"]="application/json"'
    )
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    argv = [
        "wrk",
        "-t1",
        f"-c{clients}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    said = subprocess.run([*pinned(1), *argv], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in said:
        raise SystemExit(f"port {port} answered with errors:\n{said}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", said).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def python_load(port: int, clients: int, seconds: float) -> tuple[float, float]:
    took: list[float] = []
    end = time.perf_counter() + seconds

    def ask() -> None:
        data = request(port, ASKED)
        with socket.create_connection(("127.0.0.1", port)) as one:
            while time.perf_counter() < end:
                began = time.perf_counter()
                one.sendall(data)
                while not one.recv(65536).endswith(b"}"):
                    pass
                took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(took) / seconds, statistics.median(took) * 1e3


def streams(port: int, count: int) -> list[float]:
    """Milliseconds to the first event of *count* streams, one after the other."""
    data, found = request(port, STREAMED), []
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            one.sendall(data)
            seen = b""
            while b"data: {" not in seen:
                seen += one.recv(65536)
            found.append((time.perf_counter() - began) * 1e3)
            while not seen.endswith(b"0\r\n\r\n"):
                seen += one.recv(65536)
    return found


def cpu_us_per_chunk(port: int, pid: int, count: int) -> float:
    before = cpu_s(pid)
    streams(port, count)
    return (cpu_s(pid) - before) / (count * (CHUNKS + 1)) * 1e6


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used; what a busy machine disturbs least."""
    return sum(psutil.Process(pid).cpu_times()[:2]) if pid else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--profile", action="store_true", help="the gateway's functions by time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        upstream = stack.enter_context(mock(folder))
        port, pid, ready_s = stack.enter_context(gateway(folder, upstream, given.profile))
        proxy = stack.enter_context(nginx(folder, upstream))
        places = {"direct": (upstream, 0), "gateway": (port, pid)}
        if proxy is not None:
            places["nginx"] = proxy
        idle_mb = psutil.Process(pid).memory_info().rss / 1e6
        print(f"ready after {ready_s:.2f} s, {idle_mb:.0f} MB idle")
        report(places, given, folder)
        print(f"afterwards {psutil.Process(pid).memory_info().rss / 1e6:.0f} MB")
    return 0


def report(places: dict[str, tuple[int, int]], given: argparse.Namespace, folder: Path) -> None:
    rounds: dict[str, list[list[float]]] = {place: [] for place in places}
    for _ in range(given.rounds):
        for place, (port, pid) in places.items():
            before = cpu_s(pid)
            rate, _ = load(port, given.clients, given.seconds, folder)
            request_us = (cpu_s(pid) - before) / (rate * given.seconds) * 1e6
            _, one_ms = load(port, 1, given.seconds / 2, folder)
            first_ms = statistics.median(streams(port, given.streams))
            chunk_us = cpu_us_per_chunk(port, pid, given.streams) if pid else 0.0
            rounds[place].append([rate, one_ms, first_ms, chunk_us, request_us])
    found = {
        place: [statistics.median(column) for column in zip(*rows, strict=True)]
        for place, rows in rounds.items()
    }
    print(
        f"{'':<10}{'requests/s':>12}{'p50 ms':>10}{'first ms':>10}{'us/chunk':>10}"
        f"{'us/request':>12}"
    )
    for place, (rate, one_ms, first_ms, chunk_us, request_us) in found.items():
        print(
            f"{place:<10}{rate:>12.0f}{one_ms:>10.3f}{first_ms:>10.3f}{chunk_us:>10.2f}"
            f"{request_us:>12.1f}"
        )
    direct, ours, proxy = found["direct"], found["gateway"], found.get("nginx")
    added_ms = [ours[1] - direct[1], ours[2] - direct[2]]
    print(f"added by the gateway: {added_ms[0]:.3f} ms, {added_ms[1]:.3f} ms to the first token")
    if proxy is not None:
        print(
            f"against nginx: {ours[0] / proxy[0]:.2f} of its requests/s (budget 0.25), "
            f"{(ours[1] - direct[1]) / (proxy[1] - direct[1]):.1f}x its latency (3), "
            f"{(ours[2] - direct[2]) / (proxy[2] - direct[2]):.1f}x its first token (3), "
            f"{ours[3] / proxy[3]:.1f}x its CPU per chunk (2.2), "
            f"{ours[4] / proxy[4]:.1f}x its CPU per request (4)"
        )


if __name__ == "__main__":
    sys.exit(main())

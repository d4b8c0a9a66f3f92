"""
What the gateway costs beside its upstream: relayed JSON, latency, first token, CPU per chunk.

A model server in C (gcc) answers on one core together with the load (wrk); the gateway has the
other one, and so have nginx as a plain reverse proxy and, with `--rivals`, LiteLLM and Portkey.
Rounds are interleaved and medians printed, with the ratios that matter and their budgets. The
first token is asked for by one client, in turns everywhere, of a server that writes one token
at a time. Without `wrk` a loader in Python takes its place, and is itself the limit.

    python scripts/bench.d/gateway.py [--rounds 5] [--seconds 2] [--rivals] [--profile]
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
from pathlib import Path
from typing import NamedTuple

import rivals
from rig import CORES, ENDS, Place, alone, gateway, mock, nginx, pinned

MESSAGES = [{"role": "user", "content": "hello there, how are you today?"}]
ASKED = json.dumps({"model": "auto", "messages": MESSAGES}, separators=(",", ":"))
CHUNKS = 100
BURST = ASKED[:-1] + f',"stream":true,"max_tokens":{CHUNKS}}}'
PACED = ASKED[:-1] + ',"stream":true,"max_tokens":3,"seed":2000}'
FIRST_ROUNDS = 15
FIRST_EACH = 20


class Found(NamedTuple):
    """One place in one round, or its medians."""

    rate: float
    request_us: float
    one_ms: float
    chunk_us: float
    waited: float


def request(place: Place, body: str) -> bytes:
    fields = {"host": f"127.0.0.1:{place.port}", "content-type": "application/json"}
    fields |= {"content-length": str(len(body))} | dict(place.headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n{body}".encode()


# --- loads ---------------------------------------------------------------------------------


def load(place: Place, clients: int, seconds: float, folder: Path) -> tuple[float, float]:
    """Requests a second, and the median latency in milliseconds."""
    if shutil.which("wrk") is None:
        return python_load(place, clients, seconds)
    script = folder / "post.lua"
    fields = {"content-type": "application/json"} | dict(place.headers)
    script.write_text(
        f"wrk.method='POST' wrk.body='{ASKED}'"
        + "".join(f" wrk.headers['{name}']='{value}'" for name, value in fields.items())
    )
    url = f"http://127.0.0.1:{place.port}/v1/chat/completions"
    length = f"-d{max(1, round(seconds))}s"
    argv = ["wrk", "-t1", f"-c{clients}", length, "--latency", "-s", str(script), url]
    said = subprocess.run([*pinned(ENDS), *argv], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in said:
        raise SystemExit(f"port {place.port} answered with errors:\n{said}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", said).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def python_load(place: Place, clients: int, seconds: float) -> tuple[float, float]:
    took: list[float] = []
    end = time.perf_counter() + seconds

    def ask() -> None:
        data = request(place, ASKED)
        with socket.create_connection(("127.0.0.1", place.port)) as one:
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


class Client:
    """One kept connection that asks for streams."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.socket = socket.create_connection(("127.0.0.1", place.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0

    def ask(self, body: str) -> float:
        """Milliseconds to the first content; the rest is read to its end."""
        data = request(self.place, body)
        began = time.perf_counter()
        self.socket.sendall(data)
        seen = b""
        while b'"content":"' not in seen:
            seen += self.heard()
        first_ms = (time.perf_counter() - began) * 1e3
        while not seen.endswith(b"0\r\n\r\n"):
            seen += self.heard()
        return first_ms

    def heard(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise SystemExit(f"port {self.place.port} closed the connection inside a stream")
        return data


# --- measuring -----------------------------------------------------------------------------


def first_tokens(places: dict[str, Place]) -> dict[str, float]:
    """Milliseconds to the first content, medians of rounds in which all take turns."""
    rounds: dict[str, list[float]] = {name: [] for name in places}
    with contextlib.ExitStack() as stack:
        clients = {name: Client(place) for name, place in places.items()}
        for client in clients.values():
            stack.enter_context(client.socket)
            client.ask(PACED)
        for _ in range(FIRST_ROUNDS):
            for name, client in clients.items():
                times = [client.ask(PACED) for _ in range(FIRST_EACH)]
                rounds[name].append(statistics.median(times))
    return {name: statistics.median(times) for name, times in rounds.items()}


def cpu_us_per_chunk(place: Place, count: int) -> float:
    """Microseconds of CPU for each chunk of streams that are written as fast as they are read."""
    client = Client(place)
    before = place.cpu_s()
    with client.socket:
        for _ in range(count):
            client.ask(BURST)
    return (place.cpu_s() - before) / (count * (CHUNKS + 1)) * 1e6


def one_round(name: str, place: Place, given: argparse.Namespace, folder: Path) -> Found:
    cpu_s, waited_s, began = place.cpu_s(), place.waited_s(), time.perf_counter()
    rate, _ = load(place, given.clients, given.seconds, folder)
    request_us = (place.cpu_s() - cpu_s) / (rate * given.seconds) * 1e6
    waited = (place.waited_s() - waited_s) / (time.perf_counter() - began)
    _, one_ms = load(place, 1, given.seconds / 2, folder)
    streams = bool(place.pid) and name not in rivals.RIVALS
    chunk_us = cpu_us_per_chunk(place, given.streams) if streams else 0.0
    return Found(rate, request_us, one_ms, chunk_us, waited)


def measure(places: dict[str, Place], given: argparse.Namespace, folder: Path) -> dict[str, Found]:
    rounds: dict[str, list[Found]] = {name: [] for name in places}
    for _ in range(given.rounds):
        for name, place in places.items():
            rounds[name].append(one_round(name, place, given, folder))
    return {
        name: Found(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in rounds.items()
    }


# --- telling -------------------------------------------------------------------------------


def table(found: dict[str, Found], first_ms: dict[str, float]) -> None:
    print(
        f"{'':<10}{'requests/s':>12}{'us/request':>12}{'p50 ms':>10}{'first ms':>10}"
        f"{'us/chunk':>10}{'waited':>9}"
    )
    for name, one in found.items():
        first = f"{first_ms[name]:>10.3f}" if name in first_ms else f"{'':>10}"
        print(
            f"{name:<10}{one.rate:>12.0f}{one.request_us:>12.1f}{one.one_ms:>10.3f}{first}"
            + (f"{one.chunk_us:>10.2f}" if one.chunk_us else f"{'':>10}")
            + f"{one.waited:>9.0%}"
        )
    print("us: microseconds of CPU; waited: the share of time in which others had its core")


def against_nginx(found: dict[str, Found], first_ms: dict[str, float]) -> list[bool]:
    direct, ours, proxy = found["direct"], found["gateway"], found["nginx"]
    added = first_ms["gateway"] - first_ms["direct"], first_ms["nginx"] - first_ms["direct"]
    one = ours.one_ms - direct.one_ms, proxy.one_ms - direct.one_ms
    print(
        f"one client: {one[0]:.3f} ms added by the gateway, {one[1]:.3f} by nginx; "
        f"to the first token {added[0]:.3f} and {added[1]:.3f}"
    )
    print("against nginx")
    return [
        ratio("requests/s", ours.rate / proxy.rate, at_least=0.25),
        ratio("added latency, one client", one[0] / one[1], at_most=3),
        ratio("added to the first token", added[0] / added[1], at_most=3),
        ratio("CPU per streamed chunk", ours.chunk_us / proxy.chunk_us, at_most=2.2),
        ratio("CPU per request", ours.request_us / proxy.request_us, at_most=4),
    ]


def ratio(name: str, value: float, *, at_least: float = 0.0, at_most: float = 0.0) -> bool:
    """Print one line against its budget; whether it is kept."""
    kept = value >= at_least if at_least else value <= at_most
    budget = f"at least {at_least:g}" if at_least else f"at most {at_most:g}"
    print(f"  {name:<28}{value:>8.2f}x   {budget:<14}{'' if kept else 'OVER BUDGET'}")
    return kept


def report(found: dict[str, Found], first_ms: dict[str, float]) -> list[bool]:
    """The tables; whether each budget is kept."""
    table(found, first_ms)
    kept = against_nginx(found, first_ms) if "nginx" in found else []
    for name, least in (("litellm", 100), ("portkey", 25)):
        if name in found:
            print(f"against {name}")
            kept.append(
                ratio("requests/s", found["gateway"].rate / found[name].rate, at_least=least)
            )
            times = found[name].request_us / found["gateway"].request_us
            print(f"  {'its CPU per request':<28}{times:>8.2f}x")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rivals", action="store_true", help="LiteLLM and Portkey too")
    parser.add_argument("--profile", action="store_true", help="the gateway's functions by time")
    given = parser.parse_args()
    if len(CORES) > 1:
        # The client that asks for first tokens is this process.
        os.sched_setaffinity(0, {CORES[ENDS]})
    with alone(), tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        upstream = stack.enter_context(mock(folder))
        ours = stack.enter_context(gateway(folder, upstream.port, profiled=given.profile))
        proxy = stack.enter_context(nginx(folder, upstream.port))
        places = {"direct": upstream, "gateway": ours}
        if proxy is not None:
            places["nginx"] = proxy
        first_ms = first_tokens(places)
        if given.rivals:
            places |= rivals.enter(stack, folder, upstream.port)
        kept = report(measure(places, given, folder), first_ms)
        print(f"afterwards the gateway has {ours.rss_bytes() / 1e6:.0f} MB")
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())

"""
What the gateway takes from its own engine: tokens a second with and without it between.

One model of random weights, loaded once by the embedded engine. The same streamed question
goes to the engine's own socket and through the gateway in turn; the rate is that of the tokens
after the first one. Printed are the medians, and the ratio of the medians.

    python scripts/bench.d/embedded.py [--rounds 9] [--tokens 200] [--layers 8] [--embedding 768]

Exit code 1 when the gateway's rate is below 0.97 of the engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from localfirst import config
from localfirst.engines.llamacpp.runner import Runner
from localfirst.gateway.listener import listen, url_of
from localfirst.gateway.server import Server, loop_factory
from localfirst.models import toy
from localfirst.runtime import Runtime

LEAST = 0.97
ASKED = [{"role": "user", "content": "Say something long."}]


class Place(NamedTuple):
    """Somewhere to ask, and the key it wants."""

    address: str
    key: str = ""


def serve(folder: Path, line: Connection) -> None:
    """A gateway in a process of its own; says where it and its engine listen."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(folder, line))


async def _serve(folder: Path, line: Connection) -> None:
    wanted = {
        "order": ["local"],
        "privacy": "local-only",
        "state_dir": str(folder / "state"),
        "local.engine": "llamacpp",
        "local.models_dir": str(folder / "store"),
        "gateway.port": 0,
    }
    environ = {"HOME": str(folder), "PATH": os.environ.get("PATH", "")}
    settings = config.load(environ=environ, overrides=wanted, cwd=folder).settings
    runtime = Runtime(settings)
    sockets = listen(settings.gateway)
    server = Server(runtime)
    try:
        await runtime.start()
        await server.start(sockets)
        await runtime.engine.load("toy:latest")
        # A child's key is nobody's but the gateway's; a measurement may ask the process itself.
        child = next(one for one in gc.get_objects() if isinstance(one, Runner))
        line.send((Place(url_of(sockets[0])), Place(child.address, child.key)))
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(line.recv)
    finally:
        await server.aclose()
        await runtime.aclose()


def rate(place: Place, tokens: int) -> float:
    """Tokens a second of one streamed answer, without the first token."""
    body = {"model": "toy:latest", "messages": ASKED, "max_tokens": tokens, "stream": True}
    headers = {"content-type": "application/json", "authorization": f"Bearer {place.key}"}
    link = http.client.HTTPConnection(place.address.partition("//")[2], timeout=300)
    try:
        link.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = link.getresponse()
        if answer.status != 200:
            raise SystemExit(f"{place.address} answered {answer.status}: {answer.read()[:300]!r}")
        first = last = 0.0
        count = 0
        for said in answer:
            if b'"content":"' in said:
                last = time.perf_counter()
                first = first or last
                count += 1
    finally:
        link.close()
    return (count - 1) / (last - first)


class Found(NamedTuple):
    """Medians: tokens a second through the gateway and without it, its CPU for each token."""

    gateway: float
    engine: float
    token_us: float


def measure(
    gateway: Place, engine: Place, process: psutil.Process, given: argparse.Namespace
) -> Found:
    """Rounds in which both take turns, either one first; the first round warms."""
    rates: dict[Place, list[float]] = {gateway: [], engine: []}
    cpu_us: list[float] = []
    for number in range(given.rounds + 1):
        for place in (gateway, engine) if number % 2 else (engine, gateway):
            before = sum(process.cpu_times()[:2])
            seen = rate(place, given.tokens)
            spent_s = sum(process.cpu_times()[:2]) - before
            if number:
                rates[place].append(seen)
            if number and place is gateway:
                cpu_us.append(spent_s / given.tokens * 1e6)
    through, alone = (statistics.median(rates[place]) for place in (gateway, engine))
    return Found(through, alone, statistics.mean(cpu_us))


def main() -> int:
    """Measure; 0 when the gateway costs no more than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--embedding", type=int, default=768)
    given = parser.parse_args()
    shape = toy.Shape(
        layers=given.layers,
        embedding=given.embedding,
        heads=12,
        kv_heads=12,
        feed_forward=2048,
        tensor_type="Q8_0",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toy.publish(folder / "store", name="library/toy", shape=shape)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        child = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, theirs))
        child.start()
        theirs.close()  # so that a child that dies ends the wait
        try:
            gateway, engine = ours.recv()
            found = measure(gateway, engine, psutil.Process(child.pid), given)
        except EOFError:
            return 1  # the child has said why
        finally:
            ours.close()
            child.join(10)
    ratio = found.gateway / found.engine
    print(f"engine alone      {found.engine:8.1f} tokens/s")
    print(
        f"through gateway   {found.gateway:8.1f} tokens/s, {found.token_us:.0f} us of its CPU each"
    )
    print(f"ratio             {ratio:8.3f}   at least {LEAST}", end="")
    print("" if ratio >= LEAST else "   OVER BUDGET")
    return 0 if ratio >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())

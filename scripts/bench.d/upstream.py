"""
What one request costs in the upstream client: round trips per second and per core.

A server in C (gcc at hand) answers on loopback; clients in one process ask it over kept
sockets for a few seconds. Printed are requests a second, requests per second of this
process' own CPU time (the figure that decides a gateway's speed), and the same for streams.

    python scripts/bench.d/upstream.py [--seconds 3] [--clients 16] [--profile] [--loop asyncio]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from localfirst.engines.base import Limits  # noqa: E402
from localfirst.providers.catalog import configured  # noqa: E402
from localfirst.providers.openai import OpenAIBackend  # noqa: E402
from localfirst.settings import ProviderSettings, Settings  # noqa: E402
from localfirst.transport.clock import SystemClock  # noqa: E402
from localfirst.transport.upstream import UpstreamClient  # noqa: E402
from localfirst.types import Call, Dialect, Rung, Target  # noqa: E402
from localfirst.wire.openai import requests  # noqa: E402

BODY = b'{"model":"m","messages":[{"role":"user","content":"hello there"}],"max_tokens":16}'
HEADERS = (
    ("content-type", "application/json"),
    ("user-agent", "localfirst"),
    ("authorization", "Bearer sk-0123456789abcdef0123456789abcdef"),
)


@contextmanager
def answerer() -> Iterator[int]:
    """The C server, compiled into a temporary folder; its port."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "echo"
        source = HERE / "upstream_echo.c"
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
        child = subprocess.Popen([str(program)], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            yield int(child.stdout.readline())
        finally:
            child.kill()
            child.wait()


async def load(port: int, clients: int, seconds: float) -> tuple[int, float, float]:
    """Requests done, wall seconds, CPU seconds."""
    upstream = UpstreamClient(SystemClock())
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    done = 0
    end = time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < end:
            response = await upstream.send(url, headers=HEADERS, body=BODY)
            await response.read()
            done += 1

    await asyncio.gather(*(ask() for _ in range(clients)))  # warm: connections, caches
    done, end = 0, time.perf_counter() + seconds
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(clients)))
    spent = time.perf_counter() - wall, time.process_time() - cpu
    await upstream.aclose()
    return done, *spent


async def streams(port: int, seconds: float, *, relay: bool) -> tuple[int, float]:
    """Events that went through a backend, and CPU seconds: one stream after another."""
    provider = configured(
        Settings(providers={"box": ProviderSettings(base_url=f"http://127.0.0.1:{port}")})
    )["box"]
    upstream = UpstreamClient(SystemClock())
    backend = OpenAIBackend(provider, upstream, SystemClock())
    target = Target(rung=Rung.CLOUD, provider="box", model="m")
    call = Call(
        model="m",
        stream=True,
        dialect=Dialect.OPENAI,
        request_id="r",
        body=BODY[:-1] + b',"stream":true}',
        relay=relay,
        decode=requests.decode,
    )
    done, end, cpu = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end:
        async for _ in backend.answer(call, target, Limits()):
            done += 1
    spent = time.process_time() - cpu
    await upstream.aclose()
    return done, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16, 128])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    run: Callable[..., Any] = asyncio.run
    if given.loop == "uvloop":
        import uvloop

        run = uvloop.run
    gc.freeze()
    profile = cProfile.Profile()
    with answerer() as port:
        for clients in given.clients * given.rounds:
            if given.profile:
                profile.enable()
            done, wall, cpu = run(load(port, clients, given.seconds))
            profile.disable()
            print(
                f"{clients:4} clients  {done / wall:9.0f} requests/s  "
                f"{done / cpu:9.0f} per CPU second  {1e6 * cpu / done:6.1f} us each"
            )
        for relay in (True, False):
            if given.profile:
                profile.enable()
            done, cpu = run(streams(port, given.seconds, relay=relay))
            profile.disable()
            kind = "relayed" if relay else "decoded"
            print(f"stream {kind}  {1e6 * cpu / done:6.1f} us of CPU each event ({done} events)")
    if given.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()

"""
Half an hour of everything at once: faults, rude clients, reloads; nothing may grow.

`localfirst serve` in its own process stands between a crowd of clients, a cloud that fails at
random and an Ollama that cuts one model's answers. After each round the crowd leaves, and the
gateway must be as small as before.
`LOCALFIRST_SOAK_S` is the length (seconds), `LOCALFIRST_SOAK_SEED` repeats a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.fakes.cloud_answers import WORDS
from tests.fakes.cloud_process import ROOT, FakeCloud, fake_cloud
from tests.fakes.crowd import CANARY, KEY, Crowd
from tests.fakes.house import House, house

SOAK_S = float(os.environ.get("LOCALFIRST_SOAK_S", "12"))
SEED = int(os.environ.get("LOCALFIRST_SOAK_SEED", "7"))
ROUNDS = max(4, min(60, round(SOAK_S / 15)))
CLIENTS = 16
MOST_S = 20.0
"""Longer than the ladder's deadline below, a cut's linger and a busy machine's delays."""
SETTLE_S = 40.0
"""Longer than the pool keeps an idle socket; only waited for in a long run."""
LONG_S = 60.0
KEPT = 2
"""Sockets by which the daemon is asked now and then how it is."""
MIB = 2**20
WARM_BYTES = (4 if SOAK_S >= LONG_S else 24) * MIB
"""What may come after the first rounds: modules that are first needed, a second runtime's room."""
STEPS = 400

CONFIG = """
order = ["anna", "otto", "emil", "sour", "poor", "local"]

[cascade]
deadline_s = 3
wait_for_cooldown_s = 0.5
backoff_s = [0.02, 0.05]

[timeouts]
connect_s = 2
first_token_s = 0.5
local_first_token_s = 0.5
stall_s = 0.5

[routes.any]
targets = ["anna/m", "otto/m", "emil/m"]
strategy = "balance"
"""

PROVIDER = """
[providers.{name}]
base_url = "{url}"
model = "m"
keys = ["{key}"]
concurrency = 64
rung = "{rung}"
dialect = "{dialect}"
"""

WELL: list[dict[str, Any]] = [{"do": "ok"}, {"do": "ok", "pause_s": 0.01}, {"do": "drip"}]
FAULTS: list[dict[str, Any]] = [
    {"do": "ok", "delay_s": 0.2},
    {"do": "status", "status": 429, "headers": {"retry-after": "1"}},
    {"do": "status", "status": 400},
    {"do": "status", "status": 404, "code": "model_not_found"},
    {"do": "status", "status": 500},
    {"do": "status", "status": 503},
    {"do": "status", "status": 529},
    {"do": "close"},
    {"do": "reset"},
    {"do": "hang"},
    {"do": "headers_cut"},
    {"do": "half_headers"},
    {"do": "cut", "events": 1},
    {"do": "cut", "events": 3},
    {"do": "cut", "events": 3, "reset": True},
    {"do": "cut", "events": 3, "clean": True},
    {"do": "error_event"},
    {"do": "error_event", "events": 3},
    {"do": "empty"},
    {"do": "html"},
    {"do": "malformed"},
    {"do": "keepalives"},
    {"do": "stall"},
    {"do": "stall", "events": 3},
    {"do": "gzip"},
    {"do": "long_header"},
    {"do": "long_line"},
    {"do": "redirect", "to": "http://127.0.0.1:9/"},
    {"do": "short_body"},
    {"do": "extra_body"},
    {"do": "bad_chunk"},
    {"do": "flood", "mib": 2},
]


MODELS = ("auto", "any", "otto/m", "anna/m", "tiny", "torn", "slow")
SAYS = [{"content": word} for word in WORDS]
INSTALLED = {
    "tiny": {"says": SAYS},
    "torn": {"says": SAYS, "cut_after": 2},
    "slow": {"says": SAYS, "word_delay_s": 0.02},
}


class Size(NamedTuple):
    """What a process holds."""

    rss_bytes: int
    descriptors: int
    threads: int


@contextmanager
def ollama() -> Iterator[int]:
    """The fake daemon with `INSTALLED`; its port."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.ollama_daemon", json.dumps({"models": INSTALLED})],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        yield int(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()


def config(cloud: FakeCloud) -> str:
    """Three providers that fail at times, one of them of the other dialect; two that always do."""
    found = CONFIG
    for name in ("anna", "otto", "emil", "sour", "poor"):
        found += PROVIDER.format(
            name=name,
            url=cloud.base_url(name),
            key=KEY,
            rung="cloud" if name == "emil" else "local",
            dialect="anthropic" if name == "anna" else "openai",
        )
    return found


def fill(cloud: FakeCloud, choice: random.Random) -> None:
    """Give the cloud its next steps; what it remembers of the last is forgotten."""
    cloud.reset()
    for part in ("anna", "otto", "emil"):
        steps = [choice.choice(WELL if choice.random() < 0.7 else FAULTS) for _ in range(STEPS)]
        cloud.script(*steps, part=part)
    cloud.script({"do": "status", "status": 401, "times": -1}, part="sour")
    cloud.script({"do": "status", "status": 402, "times": -1}, part="poor")


async def until(condition: Callable[[], bool], what: Callable[[], object], seconds: float) -> None:
    """Wait for *condition*, bounded."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, what()
        await asyncio.sleep(0.02)


def gauges(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.e+]+)$", text, re.M)}


async def asked(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    try:
        return (await asyncio.wait_for(reader.read(), MOST_S)).decode()
    finally:
        writer.close()
        await writer.wait_closed()


def sockets(process: psutil.Process, port: int) -> list[Any]:
    """Connections to others than the clients: of running requests, and kept for the next."""
    found = process.net_connections("tcp")
    return [one for one in found if one.raddr and one.laddr.port != port]


async def quiet(process: psutil.Process, port: int) -> Size:
    """The gateway's size once nobody is there any more."""

    def clients() -> list[Any]:
        return [
            one for one in process.net_connections("tcp") if one.laddr.port == port and one.raddr
        ]

    await until(lambda: not clients(), lambda: f"connections stay open: {clients()}", 10)
    found = gauges(await asked(port, "/metrics"))
    assert found["localfirst_requests_running"] == 1, "requests run for nobody"
    assert found["localfirst_connections"] == 1, "connections are counted that are closed"
    kept = len(sockets(process, port))
    return Size(process.memory_info().rss, process.num_fds() - kept, process.num_threads())


async def soak(at: House, cloud: FakeCloud) -> tuple[Crowd, list[Size]]:
    process, port = psutil.Process(at.child.pid), int(at.url.rpartition(":")[2])
    choice = random.Random(SEED)
    crowd = Crowd(port, seed=SEED, models=MODELS, most_s=MOST_S)
    sizes = []
    for number in range(ROUNDS):
        steps = asyncio.create_task(keep_filled(cloud, choice))
        if number % 3 == 1:
            at.child.send_signal(signal.SIGHUP)
        try:
            await crowd.visit(CLIENTS, SOAK_S / ROUNDS)
        finally:
            steps.cancel()
        sizes.append(await quiet(process, port))
        print(f"{number:>3} {sum(crowd.did.values()):>8} {sizes[-1]}", flush=True)
    if SOAK_S >= LONG_S:
        await until(
            lambda: len(sockets(process, port)) <= KEPT, lambda: "sockets stay open", SETTLE_S
        )
    return crowd, sizes


async def keep_filled(cloud: FakeCloud, choice: random.Random) -> None:
    while True:
        await asyncio.to_thread(fill, cloud, choice)
        await asyncio.sleep(2)


def nothing_grew(sizes: list[Size]) -> None:
    """The last rounds against the first ones; in a long run against those in the middle."""
    half = len(sizes) // 2
    warm, last = sizes[:half], sizes[-2:]
    assert max(one.descriptors for one in last) <= max(one.descriptors for one in warm) + 2, sizes
    assert max(one.threads for one in last) <= max(one.threads for one in warm) + 2, sizes
    highest = max(one.rss_bytes for one in warm)
    assert min(one.rss_bytes for one in last) <= highest * 1.1 + WARM_BYTES, sizes
    if half >= 10:
        early = statistics.mean(one.rss_bytes for one in sizes[half // 2 : half])
        late = statistics.mean(one.rss_bytes for one in sizes[-half // 2 :])
        assert late <= early * 1.1 + MIB, sizes


def test_nothing_grows_while_everything_fails(tmp_path: Path) -> None:
    with fake_cloud() as cloud, ollama() as daemon:
        local = {
            "LOCALFIRST_LOCAL_ENGINE": "ollama",
            "OLLAMA_HOST": f"http://127.0.0.1:{daemon}",
            "OLLAMA_MODEL": "tiny",
        }
        with house(tmp_path, config=config(cloud), **local) as at:
            crowd, sizes = asyncio.run(soak(at, cloud))
        log = "".join(at.said)
    print(dict(sorted(crowd.did.items())))
    assert crowd.wrong == []
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert CANARY not in log
    assert KEY not in log
    assert log.count("the configuration was read again") == (ROUNDS + 1) // 3
    nothing_grew(sizes)

"""
Kill -9 at random moments under load: the size comes from `LOCALFIRST_KILLS`.

Every request is answered or given a clear error within its deadline, there are never two
children at any time they were counted, and nothing is left: no zombie, no process, no port,
no file. With `-s` the numbers are shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from localfirst.engines.base import Engine, Limits
from localfirst.engines.launch import free_port
from localfirst.engines.life import Pace
from localfirst.engines.llamacpp import LlamaCppEngine
from localfirst.engines.local import LocalEngine
from localfirst.errors import Unavailable, UpstreamBroken, UpstreamRefused
from localfirst.events import Event, Finished
from localfirst.machine.fit import Cpu, Hardware
from localfirst.models import toy
from localfirst.models.store import Store
from localfirst.settings import LocalSettings, Settings
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from tests.fakes.engine_bench import NO_REAL, REAL, ask, finish_of, run, target, until

KILLS = int(os.environ.get("LOCALFIRST_KILLS", "4"))
SEED = int(os.environ.get("LOCALFIRST_SEED", "20261121"))
CLIENTS = 4
DEADLINE_S = 30.0
ROOMY = Hardware(ram_total_bytes=16 * 2**30, ram_available_bytes=8 * 2**30, cpu=Cpu(cores=2))


class Outcomes:
    """What came of a storm: answers, errors, kills that hit, the longest wait, most children."""

    def __init__(self) -> None:
        self.answered = 0
        self.errors: list[str] = []
        self.killed = 0
        self.longest_s = 0.0
        self.most = 0
        self.counted = 0

    def show(self, engine: str) -> None:
        causes = Counter(re.sub(r"[\d.]+", "N", error)[:60] for error in self.errors)
        print(
            f"\n{engine}: {self.killed} kills, {self.answered} answers, {len(self.errors)} errors"
            f" ({dict(causes.most_common(6))}), longest wait {self.longest_s:.1f} s, at most"
            f" {self.most} child in {self.counted} counts"
        )


def children(mark: str) -> list[psutil.Process]:
    """Our processes with *mark* in their command line, zombies included."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            zombie = child.status() == psutil.STATUS_ZOMBIE
            line = " ".join(child.cmdline())
            # Ollama asks its inference program for the devices beside a running one.
            if zombie or (mark in line and "--list-devices" not in line):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def living(mark: str) -> list[psutil.Process]:
    """Those that are no zombies; one that is about to become another program is none, either."""
    alive = [child for child in children(mark) if process.birth(child.pid)]
    pids = {child.pid for child in alive}
    found = []
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Until its exec a process has the command line of the one that forks it.
            if child.ppid() not in pids:
                found.append(child)
    return found


async def client(engine: Engine, outcomes: Outcomes, over: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while not over.is_set():
        events: list[Event] = []
        began = loop.time()
        try:
            async with asyncio.timeout(DEADLINE_S):
                async for event in engine.answer(ask(max_tokens=150), target(), Limits()):
                    events.append(event)
        except (UpstreamBroken, UpstreamRefused, Unavailable) as error:
            assert not any(isinstance(event, Finished) for event in events)
            outcomes.errors.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.005)
        else:
            finish_of(events)
            outcomes.answered += 1
        outcomes.longest_s = max(outcomes.longest_s, loop.time() - began)


async def count(outcomes: Outcomes, mark: str) -> None:
    """Count the children as often as possible, away from the loop."""
    while True:
        outcomes.most = max(outcomes.most, len(await asyncio.to_thread(living, mark)))
        outcomes.counted += 1
        await asyncio.sleep(0.01)


async def storm(engine: Engine, mark: str, *, most: int) -> Outcomes:
    """Clients without a pause, and kills without mercy."""
    chance = random.Random(SEED)
    outcomes, over = Outcomes(), asyncio.Event()
    clients = [asyncio.ensure_future(client(engine, outcomes, over)) for _ in range(CLIENTS)]
    counting = asyncio.ensure_future(count(outcomes, mark))

    def some_child() -> bool:
        for one in clients:
            if one.done():
                one.result()  # what nobody expected
        return living(mark) != []

    while outcomes.killed < KILLS:
        # From its first moment on: half of them die while they load, or start.
        await until(some_child, "a child to kill", 45)
        await asyncio.sleep(chance.uniform(0.0, 0.6))
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in living(mark)[:1]:
                child.send_signal(signal.SIGKILL)
                outcomes.killed += 1
    before = outcomes.answered
    await until(
        lambda: some_child() and outcomes.answered > before, "an answer after the last kill", 45
    )
    over.set()
    await asyncio.gather(*clients)
    counting.cancel()
    await asyncio.wait({counting})
    assert outcomes.most <= most
    assert outcomes.longest_s <= DEADLINE_S
    return outcomes


def listening() -> set[int]:
    """The ports that this process and its children listen on."""
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = (one for each in mine for one in each.net_connections("tcp"))
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


@pytest.mark.slow
def test_the_embedded_engine_survives_kills_at_random_moments(tmp_path: Path) -> None:
    toy.publish(tmp_path / "store")

    async def test() -> None:
        gc.collect()
        before, others = psutil.Process().num_fds(), listening()
        upstream, clock = UpstreamClient(SystemClock()), SystemClock()
        engine = LlamaCppEngine(
            Settings(state_dir=str(tmp_path / "state")),
            store=Store(tmp_path / "store"),
            upstream=upstream,
            clock=clock,
            environ=process.environ(),
            hardware=lambda: ROOMY,
        )
        outcomes = await storm(engine, "localfirst.engines.llamacpp_child", most=1)
        await engine.aclose()
        await upstream.aclose()
        outcomes.show("embedded")
        assert listening() == others
        assert children("localfirst.engines.llamacpp_child") == []
        await until(lambda: psutil.Process().num_fds() <= before, "every file given back")
        assert outcomes.answered > 0
        unclear = [e for e in outcomes.errors if "engine_died" not in e and "rests for" not in e]
        assert unclear == []

    run(test, seconds=60 + 8 * KILLS)


@pytest.mark.slow
@pytest.mark.real_ollama
@pytest.mark.skipif(not REAL.exists(), reason=NO_REAL)
@pytest.mark.parametrize("victim", ["ollama serve", "llama-server"])
def test_a_supervised_ollama_survives_kills_at_random_moments(tmp_path: Path, victim: str) -> None:
    toy.publish(tmp_path / "store")

    async def test() -> None:
        gc.collect()
        before, others = psutil.Process().num_fds(), listening()
        upstream = UpstreamClient(SystemClock())
        local = LocalSettings(
            engine="ollama", host=f"127.0.0.1:{free_port()}", models_dir=str(tmp_path / "store")
        )
        engine = LocalEngine(
            Settings(state_dir=str(tmp_path / "state"), local=local),
            store=Store(tmp_path / "store"),
            upstream=upstream,
            clock=SystemClock(),
            environ={"PATH": f"{REAL.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)},
            hardware=lambda: ROOMY,
            # So many deaths are a crash loop, and would rightly end in a rest.
            pace=Pace(budget=10**6, backoff_s=0.05, backoff_max_s=0.2),
        )
        outcomes = await storm(engine, victim, most=1)
        await engine.aclose()
        await upstream.aclose()
        outcomes.show(victim)
        assert listening() == others
        assert children(str(REAL.parent.parent)) == []
        await until(lambda: psutil.Process().num_fds() <= before, "every file given back")
        assert outcomes.answered > 0

    run(test, seconds=60 + 8 * KILLS)

"""
`localfirst selftest`: the whole ladder on this very machine, without a network.

A toy model is made, served by a registry, pulled, loaded, and asked through a real gateway;
then its engine is killed, its file taken away, and a cloud has to stand in. Registry and
cloud are programs on loopback; everything lies in one temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localfirst import config
from localfirst.cli import render, selftest_registry
from localfirst.cli.progress import Ticker
from localfirst.cli.selftest_client import Answered, ask, healthy
from localfirst.errors import EngineUnavailable, LocalFirstError, Unavailable
from localfirst.models import toy

if TYPE_CHECKING:
    from localfirst.runtime.program import Child

NAME = "tiny:latest"
READY_S = 20.0
"""Longest wait for a program of ours to be ready; a healthy machine takes one second."""

NAMED_OTHERWISE = ("OLLAMA_HOST", "OLLAMA_BASE_URL", "OLLAMA_MODEL", "OLLAMA_MODELS")
"""Variables that would lead the gateway away from the test's own folder."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object a step")


async def run(given: argparse.Namespace) -> int:
    """Take the steps; exit code 1 at the first that fails."""
    teller = Teller(as_json=given.json)
    try:
        with tempfile.TemporaryDirectory(prefix="localfirst-selftest-") as name:
            await steps(Path(name), teller)
        teller.done("ended every program and removed every file")
    except (LocalFirstError, OSError) as error:
        teller.failed(error)
        return 1
    teller.passed()
    return 0


class Teller:
    """Tells each step when it is done, with the time it took."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._loop = asyncio.get_running_loop()
        self._first = self._last = self._loop.time()
        self._count = 0

    def done(self, what: str, note: str = "") -> None:
        """One step is done; *note* is shown below it."""
        now = self._loop.time()
        took, self._last = now - self._last, now
        self._count += 1
        if self._as_json:
            render.as_json({"step": self._count, "done": what, "note": note, "took_s": took})
            return
        mark = render.paint("ok", render.GREEN)
        print(f"{self._count:2} {mark} {render.span(took):>7}  {what}")
        if note:
            print(f"{' ' * 15}{render.plain(note)}", flush=True)

    def failed(self, error: LocalFirstError | OSError) -> None:
        """The step after the last done one failed."""
        told = error.message if isinstance(error, LocalFirstError) else str(error)
        hint = error.hint if isinstance(error, LocalFirstError) else "run `localfirst doctor`"
        code = error.code if isinstance(error, LocalFirstError) else "selftest-failed"
        if self._as_json:
            render.as_json({"step": self._count + 1, "failed": told, "code": code, "hint": hint})
        render.problem(f"step {self._count + 1} failed: {told}", hint=hint, code=code)

    def passed(self) -> None:
        """Every step is done."""
        took = self._last - self._first
        if self._as_json:
            render.as_json({"passed": True, "steps": self._count, "took_s": took})
        else:
            print(f"\nthe whole ladder works on this machine ({render.span(took)})")


async def steps(place: Path, teller: Teller) -> None:
    """All of them, in order; raises at the first that fails."""
    if find_spec("xllamacpp") is None:
        raise EngineUnavailable(
            "the embedded engine is not installed",
            hint="pip install 'localfirst-runtime[embedded]'",
        )
    shop = place / "registry"
    published = toy.publish(shop)
    size = render.size(published.blobs[published.model].stat().st_size)
    teller.done(f"made a toy model: {size} of random weights")
    async with strangers(shop) as ports:
        teller.done("served it from a registry on loopback")
        port = free_port()
        file = place / "config.toml"
        file.write_text(configuration(place, port, **ports))
        await pull(file, NAME, teller)
        async with gateway(file, port) as child:
            teller.done(f"started the gateway on port {port}")
            told = await asyncio.to_thread(ask, port, NAME)
            check(told, "local")
            teller.done(
                f"a model on this machine answered: {told.route}",
                f"“{told.text.strip()[:60]}”  (noise: the toy has learnt nothing)",
            )
            lose_engine(child.pid, place / "models")
            teller.done("killed the engine and took its model away")
            told = await asyncio.to_thread(ask, port, "auto")
            check(told, "scripted")
            before = told.trail.rpartition(",")[0].replace("=", " was ")
            teller.done(f"a cloud stood in: {told.route}, as {before}", f"“{told.text}”")


async def pull(file: Path, name: str, teller: Teller) -> None:
    """Pull the toy into the temporary store, with its progress."""
    from localfirst.runtime import Runtime

    settings = config.load(environ={"LOCALFIRST_CONFIG": str(file)}).settings
    ticker = Ticker("pulling the toy")
    loop = asyncio.get_running_loop()
    async with Runtime(settings) as runtime:
        async for progress in runtime.pull(name):
            ticker.show(progress.completed_bytes, progress.total_bytes, loop.time())
        ticker.close()
        size = runtime.store.get(name).size_bytes
    teller.done(f"pulled it into a store like Ollama's: {render.size(size)}, verified")


def check(told: Answered, provider: str) -> None:
    """Whether the right one answered."""
    if not told.text.strip() or not told.route.startswith(f"{provider}/"):
        raise Unavailable(
            f"`{told.route or 'nobody'}` answered with {len(told.text)} characters, "
            f"`{provider}` should have: {told.error or told.trail}"
        )


# --- the programs ------------------------------------------------------------------------


def configuration(place: Path, gateway: int, *, cloud: int, registry: int) -> str:
    """A ladder of two rungs: the embedded engine, and the scripted cloud."""
    return "\n".join(
        [
            'order = ["local", "scripted"]',
            f"state_dir = {json.dumps(str(place / 'state'))}",
            'serverless = "0"',
            "[local]",
            'engine = "llamacpp"',
            "auto_pull = false",
            f"models_dir = {json.dumps(str(place / 'models'))}",
            "[pull]",
            "reserve_disk = 0",
            f'mirrors = {{ "registry.ollama.ai" = "http://127.0.0.1:{registry}" }}',
            "registries = []",  # where that fails, nobody outside is asked instead
            "[gateway]",
            f"port = {gateway}",
            "[providers.scripted]",
            f'base_url = "http://127.0.0.1:{cloud}/v1"',
            f'model = "{selftest_registry.MODEL}"',
            "",
        ]
    )


@asynccontextmanager
async def strangers(shop: Path) -> AsyncIterator[Mapping[str, int]]:
    """The registry and the cloud; yields their ports."""
    from localfirst.runtime import program

    said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def hear(data: bytes) -> None:
        if not said.done():
            said.set_result(data)

    child = program.start([str(shop)], module="localfirst.cli.selftest_registry", on_stdout=hear)
    try:
        await ready(child, said)
        yield json.loads(said.result())
    finally:
        await child.stop()


@asynccontextmanager
async def gateway(file: Path, port: int) -> AsyncIterator[Child]:
    """`localfirst serve` as a child, ready to answer."""
    from localfirst.runtime import program

    variables = {"LOCALFIRST_CONFIG": str(file), **dict.fromkeys(NAMED_OTHERWISE, "")}
    child = program.start(["serve"], variables=variables)
    try:
        await ready(child, asyncio.ensure_future(healthy(port)))
        yield child
    finally:
        await child.stop()


async def ready(child: Child, sign: asyncio.Future[Any]) -> None:
    """Wait for the program's *sign* of life; raises with its last words if it dies first."""
    died = asyncio.ensure_future(child.wait())
    await asyncio.wait({died, sign}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    if not sign.done():
        sign.cancel()
        await child.drained()
        words = "\n".join(child.log.tail(5))
        raise Unavailable(f"a program of the test did not become ready\n{words}".rstrip())


def lose_engine(gateway_pid: int, models: Path) -> None:
    """What nobody hopes for: the engine dies, and the model's file with it."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(gateway_pid).children(recursive=True):
            process.kill()
    for blob in (models / "blobs").iterdir():
        blob.unlink()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

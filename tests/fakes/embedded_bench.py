"""The embedded engine on a store of its own, for the tests: its children, models, a clock."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil

from localfirst.engines.llamacpp import LlamaCppEngine
from localfirst.machine.fit import Cpu, Hardware
from localfirst.models import manifest, names, toy
from localfirst.models.store import Store
from localfirst.settings import LocalSettings, Settings
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from tests.fakes.engine_bench import JumpyClock

ROOMY = Hardware(ram_total_bytes=16 * 2**30, ram_available_bytes=8 * 2**30, cpu=Cpu(cores=2))


class Bench:
    """An engine on a store of its own."""

    def __init__(self, folder: Path, upstream: UpstreamClient, settings: Settings) -> None:
        self.store = Store(folder / "store")
        self.hardware = ROOMY
        self.clock = JumpyClock()
        self.engine = LlamaCppEngine(
            settings,
            store=self.store,
            upstream=upstream,
            clock=self.clock,
            environ=process.environ(),
            hardware=lambda: self.hardware,
        )

    def children(self) -> list[psutil.Process]:
        """The engine's processes, zombies included."""
        found = []
        for child in psutil.Process().children(recursive=True):
            try:
                ours = "localfirst.engines.llamacpp_child" in " ".join(child.cmdline())
                ours = ours or child.status() == psutil.STATUS_ZOMBIE
            except psutil.ZombieProcess:
                ours = True
            except psutil.NoSuchProcess:
                continue
            if ours:
                found.append(child)
        return found

    def kill(self) -> None:
        """SIGKILL every child that lives."""
        for child in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def freeze(child: psutil.Process) -> None:
    """Stop *child*, and see it stopped: its threads go on until one of them hears of it."""
    child.suspend()
    for _ in range(100_000):
        if child.status() == psutil.STATUS_STOPPED:
            return
    raise AssertionError("it would not freeze")


@contextlib.asynccontextmanager
async def bench(folder: Path, settings: Settings) -> AsyncIterator[Bench]:
    upstream = UpstreamClient(SystemClock())
    made = Bench(folder, upstream, settings)
    try:
        yield made
    finally:
        await made.engine.aclose()
        await upstream.aclose()
    assert made.children() == []


def install(store: Store, name: str, template: str, go_template: str = "") -> None:
    """A toy model whose file has *template* of its own, or none, and a layer *go_template*."""
    path = store.prepare() / "toy.gguf"
    toy.write(path, template=template)
    put(store, name, path, go_template)


def put(store: Store, name: str, path: Path, go_template: str = "") -> None:
    """The model file at *path*, and a layer *go_template* if there is one."""
    config = toy.config_json()
    layers = []
    for kind, data in (("model", path.read_bytes()), ("template", go_template.encode())):
        if data:
            layers.append(layer(f"{manifest.LAYER_PREFIX}{kind}", data))
            store.put_bytes(data, layers[-1].digest)
    store.put_bytes(config, layer("", config).digest)
    data = manifest.build(layer(manifest.CONFIG_TYPE, config), tuple(layers))
    store.put_manifest(names.parse(name), data)


def layer(media_type: str, data: bytes) -> manifest.Layer:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return manifest.Layer(media_type=media_type, digest=digest, size_bytes=len(data))


def run(
    folder: Path,
    test: Callable[[Bench], Awaitable[None]],
    *,
    local: LocalSettings | None = None,
    models: dict[str, dict[str, object]] | None = None,
) -> None:
    settings = Settings(state_dir=str(folder / "state"), local=local or LocalSettings())
    toy.publish(folder / "store")
    for name, given in (models or {}).items():
        toy.publish(folder / "store", name=f"library/{name}", **given)  # type: ignore[arg-type]

    async def bounded() -> None:
        async with asyncio.timeout(30), bench(folder, settings) as made:
            await test(made)

    asyncio.run(bounded())

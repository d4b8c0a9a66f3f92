"""
What is guarded: one store, two programs. What we write a real Ollama lists, shows, runs and
keeps over a restart; what it pulls, or began to pull, is ours to read and to finish.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from localfirst.models import daemon_route, names, pull_partial, toy
from localfirst.models.bundle import Export
from localfirst.models.bundle_read import Import
from localfirst.models.pull import Puller
from localfirst.models.store import Store
from localfirst.models.verify import Verification
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock
from tests.fakes import registry
from tests.fakes.engine_bench import NO_REAL, REAL, ROOT, free_port, real_daemon
from tests.fakes.registry import FakeRegistry

pytestmark = [
    pytest.mark.real_ollama,
    pytest.mark.skipif(not REAL.exists(), reason=NO_REAL),
]
BIG = random.Random(6).randbytes(24_000_000)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    folder = tmp_path_factory.mktemp("registry")
    toy.publish(folder, template="{{ .Prompt }}", system="be brief")
    with registry.running(folder) as fake:
        fake.publish("library/big", model=BIG)
        yield fake


@pytest.fixture
def fake(shared: FakeRegistry) -> FakeRegistry:
    shared.knobs(reset=True, cdn_host="localhost")
    return shared


def puller_into(store: Store, **options: Any) -> Puller:
    settings = PullSettings(reserve_disk_bytes=0)
    return Puller(store=store, settings=settings, clock=SystemClock(), environ={}, **options)


async def pull(store: Store, name: str, **options: Any) -> int:
    """Pull *name*; what was there when the transfer began."""
    puller = puller_into(store, **options)
    first = -1
    try:
        async for shot in puller.start(name).snapshots():
            if first < 0 and shot.state == "pulling":
                first = sum(layer.completed_bytes for layer in shot.layers)
    finally:
        await puller.aclose()
    return first


@asynccontextmanager
async def ollama(folder: Path, store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        real_daemon(folder, store.root) as served,
        httpx.AsyncClient(base_url=served.endpoint, timeout=60, trust_env=False) as client,
    ):
        yield client


def run(scene: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(90):
            return await scene()

    return asyncio.run(bounded())


async def listed(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    answer = await client.get("/api/tags")
    return {model["name"]: model for model in answer.json()["models"]}


def test_what_we_pull_ollama_lists_shows_and_runs(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene() -> None:
        store = Store(tmp_path / "store")
        name = names.parse(fake.name()).display
        async with ollama(tmp_path, store) as client:
            assert await listed(client) == {}
            await pull(store, fake.name())
            theirs, ours = (await listed(client))[name], store.get(name)
            assert (theirs["digest"], theirs["size"]) == (ours.digest, ours.size_bytes)
            shown = (await client.post("/api/show", json={"model": name})).json()
            assert shown["system"] == "be brief" == store.text(name, "system")
            assert shown["details"]["family"] == store.config(name)["model_family"]
            body = {"model": name, "prompt": "hi", "stream": False, "options": {"num_predict": 3}}
            answer = (await client.post("/api/generate", json=body)).json()
            assert answer["eval_count"] > 0, answer

    run(scene)


def test_a_restart_prunes_nothing_of_ours(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene() -> None:
        store = Store(tmp_path / "store")
        await pull(store, fake.name())
        partial = pull_partial.Partial(store, store.get(fake.name()).manifest.layers[0])
        partial.close()
        for path in [*store.root.rglob("*")]:  # as if all had lain there for two hours
            then = path.stat().st_mtime - 7200
            os.utime(path, (then, then))
        async with ollama(tmp_path, store) as client:
            assert list(await listed(client)) == [store.models()[0].name]
        assert Verification(store).run().ok
        assert partial.journal.exists()

    run(scene)


def test_what_ollama_pulls_is_ours_to_read(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene() -> None:
        store = Store(tmp_path / "store")
        async with ollama(tmp_path, store) as client:
            body = {"model": fake.name(), "insecure": True, "stream": False}
            answer = await client.post("/api/pull", json=body)
            assert answer.json() == {"status": "success"}
            theirs = (await listed(client))[fake.name()]
        ours = store.get(fake.name())
        assert (theirs["digest"], theirs["size"]) == (ours.digest, ours.size_bytes)
        assert Verification(store).run().ok
        fake.knobs(reset=True)
        await pull(store, fake.name())
        assert len(fake.requests()) == 1  # the manifest; every blob is there

    run(scene)


def noted(store: Store) -> int:
    """What Ollama's sidecar files say is in its partial file."""
    total = 0
    for path in store.blobs.glob("*-partial-*"):
        with suppress(ValueError):
            total += json.loads(path.read_text())["Completed"]
    return total


def test_an_interrupted_pull_of_ollamas_is_gone_on_with(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene() -> int:
        store = Store(tmp_path / "store")
        fake.knobs(rate=4_000_000)
        name = fake.name("library/big")
        async with ollama(tmp_path, store) as client:
            body = {"model": name, "insecure": True}
            async with client.stream("POST", "/api/pull", json=body) as response:
                async for line in response.aiter_lines():
                    if json.loads(line).get("completed", 0) > 6_000_000:
                        break
            async with asyncio.timeout(10):  # it notes what it has once it sees us gone
                while noted(store) < 5_000_000:
                    await asyncio.sleep(0.02)
        fake.knobs(reset=True)

        async def idle() -> bool:
            return True

        began = await pull(store, name, daemon_idle=idle)
        assert store.model_file(name).read_bytes() == BIG
        assert not list(store.blobs.glob("*-partial*"))
        return began

    assert run(scene) > 5_000_000


def test_a_bundle_that_we_import_runs_in_ollama(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene() -> None:
        source, target = Store(tmp_path / "source"), Store(tmp_path / "store")
        await pull(source, fake.name())
        bundle = Export(source, [fake.name()], tmp_path / "x.lfb").run()
        async with ollama(tmp_path, target) as client:
            Import(target, bundle).run()
            theirs = (await listed(client))[fake.name()]
            assert theirs["digest"] == source.get(fake.name()).digest
            body = {"model": fake.name(), "prompt": "hi", "stream": False}
            answer = await client.post(
                "/api/generate", json={**body, "options": {"num_predict": 2}}
            )
            assert answer.status_code == 200, answer.text

    run(scene)


def test_a_store_of_anothers_is_filled_through_its_daemon(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene() -> None:
        theirs, mine = Store(tmp_path / "store"), Store(tmp_path / "mine")
        async with ollama(tmp_path, theirs) as client:

            async def through(_: names.ModelName) -> str:
                return str(client.base_url)

            await pull(mine, fake.name(), daemon=through)
            assert theirs.get(fake.name()).digest and mine.models() == []

    run(scene)


@contextmanager
def gateway(folder: Path, fake: FakeRegistry) -> Iterator[str]:
    """`localfirst serve` as a program, on a store of its own; yields where it listens."""
    (folder / "config.toml").touch()
    own = {
        "LOCALFIRST_CONFIG": str(folder / "config.toml"),
        "LOCALFIRST_STATE_DIR": str(folder / "state"),
        "LOCALFIRST_PULL_REGISTRIES": fake.host,
        "LOCALFIRST_GATEWAY_PORT": str(free_port()),
        "OLLAMA_MODELS": str(folder / "store"),
        "OLLAMA_HOST": "http://127.0.0.1:1",
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
    }
    argv = [sys.executable, "-m", "localfirst", "serve"]
    with subprocess.Popen(argv, env=own, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        try:
            wait_for(int(own["LOCALFIRST_GATEWAY_PORT"]))
            yield f"http://127.0.0.1:{own['LOCALFIRST_GATEWAY_PORT']}"
        finally:
            child.terminate()


def wait_for(port: int) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        threading.Event().wait(0.05)
    raise AssertionError("the gateway did not come up")


def test_ollamas_own_client_pulls_through_our_gateway(tmp_path: Path, fake: FakeRegistry) -> None:
    fake.knobs(rate=20_000_000)
    with gateway(tmp_path, fake) as url:
        environ = {"OLLAMA_HOST": url, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}

        def ollama_pull(name: str) -> subprocess.CompletedProcess[str]:
            argv = [str(REAL), "pull", name]
            return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60)

        good = ollama_pull(fake.name("library/big"))
        bad = ollama_pull(fake.name("library/nope"))
    assert good.returncode == 0, good.stderr
    said = good.stdout + good.stderr
    assert "100%" in said and "verifying sha256 digest" in said and "success" in said
    assert Store(tmp_path / "store").model_file(fake.name("library/big")).read_bytes() == BIG
    assert bad.returncode == 1
    assert "pull model manifest: file does not exist" in bad.stdout + bad.stderr


def test_it_is_known_which_store_a_daemon_of_ours_reads(tmp_path: Path) -> None:
    async def scene() -> None:
        theirs, mine = Store(tmp_path / "store"), Store(tmp_path / "mine")
        theirs.prepare()
        async with ollama(tmp_path, theirs) as client:
            url = str(client.base_url).rstrip("/")
            assert await daemon_route.route(url, theirs) == ""
            assert await daemon_route.route(url, mine) == url

    run(scene)


def test_ollama_reads_past_what_a_damaged_store_holds(tmp_path: Path, fake: FakeRegistry) -> None:
    """We and Ollama leave out the same manifests."""

    async def scene() -> None:
        store = Store(tmp_path / "store")
        await pull(store, fake.name())
        good = store.get(fake.name()).manifest.data
        for name, data in (("bad", b"{"), ("empty", b""), ("half", good[: len(good) // 2])):
            store.put_manifest(names.parse(name), data)
        (store.manifest_path(names.parse("bad")).parent / ".DS_Store").write_bytes(b"x")
        async with ollama(tmp_path, store) as client:
            assert set(await listed(client)) == {model.name for model in store.models()}
        assert len(store.damaged()) == 4

    run(scene)

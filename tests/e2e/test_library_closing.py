"""Clients that are closed too early, too late, never, or in another process; before a cloud."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import localfirst
from localfirst.config import load
from localfirst.errors import PrivacyRefused, Unavailable
from tests.fakes import registry
from tests.fakes.cloud_process import FakeCloud, with_cloud
from tests.fakes.terminal import LONGEST_S, finished

Ask = Callable[[localfirst.Client], object]
WAYS: list[Ask] = [
    lambda client: client.chat("x"),
    lambda client: list(client.stream("x").text()),
]


def loaded(folder: Path, cloud: FakeCloud) -> Any:
    """What `load_settings()` gives on a machine with nothing but *cloud*."""
    config = with_cloud(folder, cloud) / "config.toml"
    environ = {
        "LOCALFIRST_CONFIG": str(config),
        "LOCALFIRST_STATE_DIR": str(folder / "state"),
        "OLLAMA_MODELS": str(folder / "models"),
        "LOCALFIRST_LOCAL_ENGINE": "none",
    }
    return load(environ=environ, cwd=folder)


async def chat(client: localfirst.AsyncClient) -> object:
    return await client.chat("x")


async def stream(client: localfirst.AsyncClient) -> object:
    return [event async for event in client.stream("x")]


def until(true: Callable[[], bool]) -> bool:
    """Wait for a condition, a bounded time."""
    end = time.monotonic() + LONGEST_S
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


@pytest.mark.parametrize("ask", WAYS, ids=["chat", "stream"])
@pytest.mark.parametrize("step", ["hang", "stall"])
def test_who_waits_for_an_answer_is_told_that_the_client_was_closed(
    tmp_path: Path, cloud: FakeCloud, ask: Ask, step: str
) -> None:
    """Its loop was stopped, and the thread that waited did so for ever."""
    client = localfirst.Client(loaded(tmp_path, cloud))
    cloud.script(step)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            ask(client)
        except BaseException as error:
            caught.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert until(lambda: len(cloud.requests()) == 1)
    client.close()
    waiting.join(LONGEST_S)
    assert not waiting.is_alive()
    assert [(type(error), error.code) for error in caught] == [(Unavailable, "client-closed")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("ask", [chat, stream], ids=["chat", "stream"])
@pytest.mark.parametrize("step", ["hang", "stall"])
def test_a_client_that_is_closed_is_no_failure_of_who_was_asked(
    tmp_path: Path, cloud: FakeCloud, ask: Callable[[localfirst.AsyncClient], Any], step: str
) -> None:
    """Each restart of a program cooled its providers down for all others, and told a human."""

    async def scenario() -> None:
        client = localfirst.AsyncClient(loaded(tmp_path, cloud))
        await client.chat("x")
        cloud.script(step)
        waiting = asyncio.create_task(ask(client))
        while len(cloud.requests()) < 2:
            await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await waiting
        async with client:
            assert (await client.explain()).steps[0].state == "ready"

    asyncio.run(scenario())
    assert not list((tmp_path / "state").rglob("escalation*"))


def test_a_client_is_closed_while_it_opens(tmp_path: Path, cloud: FakeCloud) -> None:
    for _ in range(5):
        client = localfirst.Client(loaded(tmp_path, cloud))
        codes: list[str] = []

        def ask(client: localfirst.Client = client, codes: list[str] = codes) -> None:
            try:
                codes.append(client.chat("x").text and "ok")
            except localfirst.LocalFirstError as error:
                codes.append(error.code)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        client.close()
        for thread in threads:
            thread.join(LONGEST_S)
        client.close()
        assert len(codes) == 4 and set(codes) <= {"ok", "client-closed"}


def test_a_stream_of_a_closed_client_says_so_and_closes_in_silence(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    client = localfirst.Client(loaded(tmp_path, cloud))
    begun, unread = client.stream("x"), client.stream("y")
    events = iter(begun)
    next(events)
    client.close()
    for stream in (events, iter(unread)):
        with pytest.raises(Unavailable, match="closed"):
            next(stream)
    begun.close()
    assert client.chat("z").text, "closed, it may begin anew"
    client.close()


def test_a_stream_is_closed_by_its_block(tmp_path: Path, cloud: FakeCloud) -> None:
    with localfirst.Client(loaded(tmp_path, cloud)) as client:
        cloud.script({"do": "stall", "events": 3})
        with client.stream("x") as stream:
            assert next(stream.text())
            assert [attempt.provider for attempt in stream.attempts] == ["scripted"]
        assert until(lambda: cloud.state()["aborted"] == 1)


def test_clients_that_are_forgotten_take_threads_and_connections_with_them(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    """A notebook's cell is run again and again."""
    settings, me = loaded(tmp_path, cloud), psutil.Process()
    localfirst.Client(settings).chat("x")
    gc.collect()
    before = threading.active_count(), me.num_fds()
    for _ in range(5):
        localfirst.Client(settings).chat("x")
    gc.collect()
    assert until(lambda: (threading.active_count(), me.num_fds()) <= before)
    assert cloud.state()["open"] <= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_wait_for_its_parents_stream(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    text = (
        "import localfirst, os\n"
        "events = iter(localfirst.stream('x'))\nnext(events)\n"
        "if pid := os.fork():\n"
        "    print(os.waitpid(pid, 0)[1], len(list(events)) > 2)\n"
        "else:\n"
        "    try: next(events)\n"
        "    except localfirst.Unavailable as error: os._exit('parent' not in str(error))\n"
        "    os._exit(2)\n"
    )
    ran = finished(
        with_cloud(tmp_path, cloud), [sys.executable, "-c", text], LOCALFIRST_LOCAL_ENGINE="none"
    )
    assert (ran.code, ran.out) == (0, "0 True\n"), ran


def test_what_load_settings_gives_is_what_a_client_takes(tmp_path: Path, cloud: FakeCloud) -> None:
    found = loaded(tmp_path, cloud)
    for settings in (found, found.settings):
        with localfirst.Client(settings) as client:
            assert client.chat("x").route == "scripted/m"


def test_settings_made_by_hand_leave_nothing_in_the_working_directory(tmp_path: Path) -> None:
    text = (
        "import localfirst\n"
        "with localfirst.Client(localfirst.Settings(order=('groq',))) as client: client.state()\n"
    )
    (tmp_path / "cwd").mkdir()
    ran = finished(tmp_path, ["sh", "-c", 'cd cwd && exec "$0" -c "$1"', sys.executable, text])
    assert (ran.code, list((tmp_path / "cwd").iterdir())) == (0, []), ran


def test_embeddings_keep_to_this_machine_when_they_are_told_to(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    """`local_only` went to the engine's options, and the text to the cloud."""
    (tmp_path / "config.toml").write_text(
        'order = ["far"]\n[providers.far]\nbase_url = "https://far.invalid/v1"\nmodel = "m"\n'
        'keys = ["k"]\n'
    )
    environ = {
        "LOCALFIRST_CONFIG": str(tmp_path / "config.toml"),
        "LOCALFIRST_STATE_DIR": str(tmp_path / "state"),
        "LOCALFIRST_LOCAL_ENGINE": "none",
        "HTTPS_PROXY": cloud.url,
    }
    with localfirst.Client(load(environ=environ, cwd=tmp_path)) as client:
        with pytest.raises(PrivacyRefused):
            client.embed("secret", model="far/embedder", local_only=True)
        for name in ("foo", "deadline_s"):
            with pytest.raises(localfirst.InvalidRequest, match=name):
                client.embed("x", model="far/embedder", **{name: 1})
        for texts in (None, [1, 2], b"x", 5):
            with pytest.raises(localfirst.InvalidRequest, match="list of texts"):
                client.embed(texts, model="far/embedder")  # type: ignore[arg-type]


def test_who_stops_reading_a_download_ends_it_unless_somebody_else_waits(tmp_path: Path) -> None:
    """An interrupted cell of a notebook went on downloading tens of gigabytes."""
    with registry.running(tmp_path / "shop") as shop:
        shop.publish("library/large", model=bytes(16 * 2**20))
        shop.knobs(rate=2_000_000)
        environ = {
            "LOCALFIRST_CONFIG": os.devnull,
            "LOCALFIRST_STATE_DIR": str(tmp_path / "state"),
            "OLLAMA_MODELS": str(tmp_path / "models"),
            "LOCALFIRST_LOCAL_ENGINE": "llamacpp",
            "LOCALFIRST_PULL_RESERVE_DISK": "0",
        }
        name = shop.name("library/large")
        with localfirst.Client(load(environ=environ, cwd=tmp_path)) as client:

            def states() -> list[str]:
                return [job["state"] for job in client.state()["pulls"]]  # type: ignore[index, union-attr, call-overload]

            one, other = client.pull(name, insecure=True), client.pull(name, insecure=True)
            next(other)
            while next(one).completed_bytes < 2**18:
                pass
            one.close()  # type: ignore[attr-defined]  # as `break` and an interrupt do
            next(other)
            assert states() == ["pulling"]
            other.close()  # type: ignore[attr-defined]
            assert until(lambda: states() in ([], ["cancelled"]))
            again = client.pull(name, insecure=True)
            kept = next(step.completed_bytes for step in again if step.completed_bytes)
            assert kept >= 2**18, "it goes on where it stopped"

"""What a gateway keeps of requests that failed: nothing, and at once. Seen from the inside."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from localfirst.gateway.hub import Limits
from localfirst.runtime import Runtime
from localfirst.settings import (
    CascadeSettings,
    GatewaySettings,
    LocalSettings,
    ProviderSettings,
    Settings,
)
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.gateway_host import hosted, run, until

SAY = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: FakeCloud) -> FakeCloud:
    shared.reset()
    return shared


def settings(folder: Path, cloud: FakeCloud) -> Settings:
    return Settings(
        order=("cloud",),
        cascade=CascadeSettings(attempts_per_provider=1, wait_for_cooldown_s=0.0),
        state_dir=str(folder / "state"),
        local=LocalSettings(engine="none", models_dir=str(folder / "models")),
        providers={"cloud": ProviderSettings(model="m", base_url=cloud.base_url(), rung="local")},
        gateway=GatewaySettings(port=0),
    )


@contextlib.contextmanager
def no_look_for_garbage() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive(*kinds: str, but: Sequence[object] = ()) -> list[str]:
    """Objects of these kinds that exist, wanted or not; *but* those that other tests left."""
    known = set(map(id, but))
    found = (type(one) for one in gc.get_objects() if id(one) not in known)
    return [f"{one.__module__}.{one.__name__}" for one in found if one.__name__ in kinds]


def existing(kind: str) -> list[object]:
    """What an error that is still to be reported holds, for one."""
    return [one for one in gc.get_objects() if type(one).__name__ == kind]


FAILURES: list[dict[str, Any]] = [
    {"do": "close"},
    {"do": "cut", "events": 1},
    {"do": "cut", "events": 3},
    {"do": "error_event"},
    {"do": "malformed"},
    {"do": "html"},
    {"do": "empty"},
    {"do": "status", "status": 400},
    {"do": "status", "status": 500},
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", FAILURES, ids=lambda one: "-".join(map(str, one.values())))
def test_a_failed_request_is_freed_when_it_is_over(
    tmp_path: Path, cloud: FakeCloud, fault: dict[str, Any], stream: bool
) -> None:
    """A circle of error, traceback and frame would keep its bodies until garbage is looked for."""
    cloud.script({**fault, "times": -1})
    body = json.dumps({"model": "cloud/m", "stream": stream, "messages": SAY}).encode()
    before = existing("Climb")

    async def main() -> None:
        async with Runtime(settings(tmp_path, cloud), environ={}) as runtime, hosted(runtime) as at:
            await at.ask("POST", "/v1/chat/completions", body)
            await until(lambda: not at.server.gateway.running, "the end of the request")
            await asyncio.sleep(0)
            assert alive("Climb", "UpstreamResponse", "Exchange", but=before) == []

    with no_look_for_garbage():
        run(main())


def test_a_kept_socket_that_its_server_had_closed_is_freed(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script("ok", "close", "ok", "close", "ok")
    body = json.dumps({"model": "cloud/m", "messages": SAY}).encode()

    async def main() -> None:
        async with Runtime(settings(tmp_path, cloud), environ={}) as runtime, hosted(runtime) as at:
            for _ in range(3):
                answer = await at.ask("POST", "/v1/chat/completions", body)
                assert answer.headers["x-localfirst-trail"] == "cloud=ok"
            await until(lambda: not at.server.hub.connections, "the clients' end")
            assert len(cloud.requests()) == 5
            kept = [one for one in alive("Connection") if "upstream" in one]
            assert len(kept) == 1, "only the last one is kept"

    with no_look_for_garbage():
        run(main())


def test_bodies_that_are_refused_give_their_memory_back(tmp_path: Path, cloud: FakeCloud) -> None:
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
        b"Content-Type: application/json\r\nContent-Length: 4000\r\n\r\n" + b" " * 2000
    )

    async def main() -> None:
        limits = Limits(max_bodies_bytes=3000)
        given = settings(tmp_path, cloud)
        async with Runtime(given, environ={}) as runtime, hosted(runtime, limits=limits) as host:
            _, first = await host.connect()
            first.write(request % host.port)
            await until(lambda: host.server.hub.bodies_bytes == 2000, "the first body")
            for _ in range(3):
                assert b"too-many-bodies" in await host.raw(request % host.port)
            first.close()
            await until(lambda: host.server.hub.bodies_bytes == 0, "all memory to be given back")

    run(main())


BUSY_HOUR = """
import psutil
from localfirst.gateway.memory import return_large_buffers
{first}
bytearray(24 * 2**20)  # one large body, gone again
before = psutil.Process().memory_info().rss
bodies, kept = [], []
for _ in range(100):
    bodies.append(bytearray(b"a" * 2**20))
    kept.append(b"a" * 60_000)
del bodies
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc's allocator")
def test_large_bodies_leave_no_holes_in_the_heap() -> None:
    def grown_mib(first: str) -> float:
        argv = [sys.executable, "-c", BUSY_HOUR.format(first=first)]
        return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)

    assert grown_mib("") > 50, "this allocator needs no help"
    assert grown_mib("return_large_buffers()") < 20

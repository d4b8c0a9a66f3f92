"""Every way in which a cloud fails, over real sockets, with the exact error it must become."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from localfirst.engines.base import Limits
from localfirst.errors import (
    Breakage,
    UpstreamBroken,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.events import Event, Finished, Opened, Relayed, TextDelta
from localfirst.providers.anthropic import AnthropicBackend
from localfirst.providers.catalog import configured
from localfirst.providers.cloud import CloudBackend
from localfirst.providers.openai import OpenAIBackend
from localfirst.settings import ProviderSettings, Secret, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, ChatRequest, Dialect, Message, Rung, Target
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.gateway_host import until

QUICK = Limits(connect_s=2.0, first_token_s=0.2, stall_s=0.2)
PATIENT = Limits(connect_s=2.0, first_token_s=20.0, stall_s=20.0)
TOOL = {"name": "look", "arguments": {"where": "Paris, France"}}
KEY = "canary-0123456789abcdef"

BACKENDS: dict[str, type[CloudBackend]] = {"openai": OpenAIBackend, "anthropic": AnthropicBackend}


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: FakeCloud) -> FakeCloud:
    shared.reset()
    return shared


def backend(dialect: str, base_url: str, upstream: UpstreamClient) -> CloudBackend:
    given = ProviderSettings(base_url=base_url, keys=(Secret(KEY, "KEY"),), dialect=dialect)
    provider = configured(Settings(providers={dialect: given}))[dialect]
    return BACKENDS[dialect](provider, upstream, SystemClock())


def call_for(stream: bool, *, relay: str = "") -> Call:
    messages = (Message(role="user", content="hi"),)
    call = Call(
        model="auto",
        stream=stream,
        dialect=Dialect.OPENAI,
        request_id="r",
        request=ChatRequest(messages=messages, stream=stream),
    )
    if relay:
        flag = "true" if stream else "false"
        call.dialect, call.relay = Dialect(relay), True
        call.body = (
            '{"model":"auto","max_tokens":9,"messages":[{"role":"user","content":"hi"}],'
            f'"stream":{flag}}}'
        ).encode()
    return call


async def run(
    dialect: str, base_url: str, call: Call, limits: Limits = PATIENT
) -> tuple[list[Event], BaseException | None, UpstreamClient]:
    """The events of one answer and what ended it; the client is closed."""
    upstream = UpstreamClient(SystemClock())
    seen: list[Event] = []
    caught: BaseException | None = None
    target = Target(rung=Rung.CLOUD, provider=dialect, model="m")
    try:
        async for event in backend(dialect, base_url, upstream).answer(call, target, limits):
            seen.append(event)
    except UpstreamError as error:
        caught = error
    assert KEY not in f"{caught!r} {caught} {vars(caught) if caught else ''}"
    busy, _ = upstream.open_sockets
    assert busy == 0 or isinstance(seen[-1], Finished | Relayed)
    await upstream.aclose()
    return seen, caught, upstream


def attempt(cloud: FakeCloud, dialect: str, stream: bool, limits: Limits, relay: bool) -> Any:
    call = call_for(stream, relay=dialect if relay else "")
    return asyncio.run(run(dialect, cloud.base_url(), call, limits))[:2]


BROKEN: list[tuple[dict[str, Any], Breakage, Limits]] = [
    ({"do": "close"}, Breakage.RESET, PATIENT),
    ({"do": "reset"}, Breakage.RESET, PATIENT),
    ({"do": "hang"}, Breakage.FIRST_BYTE_TIMEOUT, QUICK),
    ({"do": "half_headers"}, Breakage.CUT, PATIENT),
    ({"do": "headers_cut"}, Breakage.CUT, PATIENT),
    ({"do": "cut", "events": 0}, Breakage.CUT, PATIENT),
    ({"do": "cut", "events": 1}, Breakage.CUT, PATIENT),
    ({"do": "cut", "events": 4}, Breakage.CUT, PATIENT),
    ({"do": "cut", "events": 4, "reset": True}, Breakage.CUT, PATIENT),
    ({"do": "cut", "events": 4, "clean": True}, Breakage.CUT, PATIENT),
    ({"do": "cut", "events": 4, "tool": TOOL}, Breakage.CUT, PATIENT),
    ({"do": "cut", "events": 4, "tool": TOOL, "clean": True}, Breakage.CUT, PATIENT),
    ({"do": "stall", "events": 0}, Breakage.STALL_TIMEOUT, QUICK),
    ({"do": "stall", "events": 4}, Breakage.STALL_TIMEOUT, QUICK),
    ({"do": "gzip"}, Breakage.ENCODING, PATIENT),
    ({"do": "long_line"}, Breakage.TOO_LARGE, PATIENT),
    ({"do": "long_header"}, Breakage.TOO_LARGE, PATIENT),
    ({"do": "endless_headers"}, Breakage.TOO_LARGE, PATIENT),
    ({"do": "redirect", "to": "/elsewhere"}, Breakage.REDIRECT, PATIENT),
    ({"do": "bad_chunk"}, Breakage.PROTOCOL, PATIENT),
]


@pytest.mark.parametrize("relay", [False, True], ids=["decoded", "relayed"])
@pytest.mark.parametrize("dialect", BACKENDS)
@pytest.mark.parametrize(
    ("step", "breakage", "limits"), BROKEN, ids=[str(list(case[0].values())) for case in BROKEN]
)
def test_a_broken_stream_says_how_it_broke(
    cloud: FakeCloud,
    dialect: str,
    relay: bool,
    step: dict[str, Any],
    breakage: Breakage,
    limits: Limits,
) -> None:
    cloud.script(step)
    seen, caught = attempt(cloud, dialect, True, limits, relay)
    assert isinstance(caught, UpstreamBroken)
    assert caught.breakage is breakage
    assert not any(isinstance(event, Finished) for event in seen)
    assert not any(isinstance(event, Relayed) and event.final for event in seen)


WHOLE: list[tuple[dict[str, Any], Breakage]] = [
    ({"do": "short_body"}, Breakage.CUT),
    ({"do": "headers_cut"}, Breakage.CUT),
    ({"do": "gzip"}, Breakage.ENCODING),
    ({"do": "long_body"}, Breakage.TOO_LARGE),
    ({"do": "close"}, Breakage.RESET),
]


@pytest.mark.parametrize("relay", [False, True], ids=["decoded", "relayed"])
@pytest.mark.parametrize("dialect", BACKENDS)
@pytest.mark.parametrize(("step", "breakage"), WHOLE, ids=[case[0]["do"] for case in WHOLE])
def test_a_broken_json_answer_says_how_it_broke(
    cloud: FakeCloud, dialect: str, relay: bool, step: dict[str, Any], breakage: Breakage
) -> None:
    cloud.script(step)
    _, caught = attempt(cloud, dialect, False, PATIENT, relay)
    assert isinstance(caught, UpstreamBroken)
    assert caught.breakage is breakage


@pytest.mark.parametrize("relay", [False, True], ids=["decoded", "relayed"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("dialect", BACKENDS)
@pytest.mark.parametrize("step", ["empty", "html", "malformed"])
def test_an_answer_that_means_nothing_is_nonsense(
    cloud: FakeCloud, dialect: str, stream: bool, relay: bool, step: str
) -> None:
    cloud.script(step)
    seen, caught = attempt(cloud, dialect, stream, PATIENT, relay)
    assert isinstance(caught, UpstreamNonsense)
    assert not any(isinstance(event, Relayed) and event.content for event in seen)


@pytest.mark.parametrize("relay", [False, True], ids=["decoded", "relayed"])
@pytest.mark.parametrize("dialect", BACKENDS)
@pytest.mark.parametrize("events", [0, 1, 4])
def test_an_error_inside_a_stream_is_a_refusal(
    cloud: FakeCloud, dialect: str, relay: bool, events: int
) -> None:
    cloud.script({"do": "error_event", "events": events})
    seen, caught = attempt(cloud, dialect, True, PATIENT, relay)
    assert isinstance(caught, UpstreamRefused)
    assert caught.in_band and b"Overloaded" in caught.body
    assert isinstance(seen[0], Opened)


@pytest.mark.parametrize("dialect", BACKENDS)
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 429, 500, 503, 529])
def test_an_error_status_is_a_refusal_with_its_headers_and_body(
    cloud: FakeCloud, dialect: str, status: int
) -> None:
    step = {"do": "status", "status": status, "headers": {"Retry-After": "7"}}
    cloud.script({**step, "message": f"no, {KEY} is wrong"})
    _, caught = attempt(cloud, dialect, True, PATIENT, False)
    assert isinstance(caught, UpstreamRefused)
    assert (caught.status, caught.in_band) == (status, False)
    assert ("retry-after", "7") in caught.headers
    assert b"no, [key] is wrong" in caught.body


def test_an_error_event_that_echoes_the_key_loses_it(cloud: FakeCloud) -> None:
    cloud.script({"do": "error_event", "error": {"message": f"bad {KEY}", "code": 401}})
    _, caught = attempt(cloud, "openai", True, PATIENT, False)
    assert isinstance(caught, UpstreamRefused)
    assert KEY.encode() not in caught.body and b"[key]" in caught.body


@pytest.mark.parametrize("dialect", BACKENDS)
def test_a_refused_connection_says_so(dialect: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        _, caught, _ = asyncio.run(run(dialect, url, call_for(True)))
    assert isinstance(caught, UpstreamBroken)
    assert caught.breakage is Breakage.CONNECT_REFUSED


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_reaches_nobody(cloud: FakeCloud, status: int) -> None:
    with fake_cloud() as other:
        target = f"{other.url}/stolen"
        cloud.script({"do": "redirect", "status": status, "to": target})
        _, caught = attempt(cloud, "openai", True, PATIENT, False)
        assert other.requests() == []
        assert other.state()["accepted"] == 2  # the two questions of this test
    assert isinstance(caught, UpstreamBroken)
    assert caught.breakage is Breakage.REDIRECT
    assert "127.0.0.1" in caught.detail and "stolen" not in caught.detail


@pytest.mark.parametrize("relay", [False, True], ids=["decoded", "relayed"])
@pytest.mark.parametrize("dialect", BACKENDS)
def test_a_stream_in_single_bytes_is_whole(cloud: FakeCloud, dialect: str, relay: bool) -> None:
    cloud.script("drip")
    seen, caught = attempt(cloud, dialect, True, PATIENT, relay)
    assert caught is None
    if relay:
        text = b"".join(event.data for event in seen if isinstance(event, Relayed))
        assert b" cloud" in text and seen[-1].final
    else:
        said = "".join(event.text for event in seen if isinstance(event, TextDelta))
        assert said == "Hello from the cloud."
        assert isinstance(seen[-1], Finished)


def test_bytes_behind_an_answer_end_the_socket_not_the_answer(cloud: FakeCloud) -> None:
    cloud.script("extra_body")

    async def twice() -> list[Event]:
        upstream = UpstreamClient(SystemClock())
        target = Target(rung=Rung.CLOUD, provider="openai", model="m")
        asked = backend("openai", cloud.base_url(), upstream)
        seen = [event async for event in asked.answer(call_for(False), target, PATIENT)]
        again = [event async for event in asked.answer(call_for(False), target, PATIENT)]
        assert again == seen
        await upstream.aclose()
        return seen

    seen = asyncio.run(twice())
    assert isinstance(seen[-1], Finished)
    assert len({record["connection"] for record in cloud.requests()}) == 2


def test_endless_keep_alives_never_become_content_and_closing_ends_them(cloud: FakeCloud) -> None:
    cloud.script("keepalives")

    async def ask() -> list[Event]:
        upstream = UpstreamClient(SystemClock())
        target = Target(rung=Rung.CLOUD, provider="openai", model="m")
        stream = backend("openai", cloud.base_url(), upstream).answer(
            call_for(True), target, PATIENT
        )
        seen = [await anext(stream)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                seen.append(await anext(stream))
        await stream.aclose()
        assert upstream.open_sockets == (0, 0)
        await upstream.aclose()
        return seen

    seen = asyncio.run(ask())
    assert [type(event) for event in seen] == [Opened]
    wait_until(lambda: cloud.requests()[0]["ended"] == "aborted")


def test_a_caller_who_leaves_frees_the_cloud_at_once(cloud: FakeCloud) -> None:
    cloud.script({"do": "stall", "events": 4})

    async def leave() -> None:
        upstream = UpstreamClient(SystemClock())
        target = Target(rung=Rung.CLOUD, provider="openai", model="m")
        asked = backend("openai", cloud.base_url(), upstream)

        async def consume(begun: asyncio.Event) -> None:
            async for _ in asked.answer(call_for(True), target, PATIENT):
                begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(consume(begun))
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert upstream.open_sockets == (0, 0)
        await asyncio.to_thread(wait_until, lambda: cloud.requests()[0]["ended"] == "aborted")
        await upstream.aclose()

    asyncio.run(leave())
    assert cloud.state()["aborted"] == 1


def wait_until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    """Ask again until it is so; each question is a round trip to the fake."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"


CUT_ANYWHERE = 60


async def cancelled_at(step: int, work: Callable[[], Awaitable[None]]) -> bool:
    """Run *work*, cancelling it at its *step*-th suspension; whether it got so far."""
    task = asyncio.ensure_future(work())
    for _ in range(step):
        await asyncio.sleep(0)
        if task.done():
            break
    finished = task.done()
    task.cancel()
    await asyncio.wait({task})
    return not finished


def test_cancelling_at_any_moment_leaves_no_socket_and_the_next_request_works(
    cloud: FakeCloud,
) -> None:
    async def main() -> None:
        upstream = UpstreamClient(SystemClock())
        target = Target(rung=Rung.CLOUD, provider="openai", model="m")
        asked = backend("openai", cloud.base_url(), upstream)

        async def one() -> None:
            stream = asked.answer(call_for(True), target, PATIENT)
            try:
                async for _ in stream:
                    pass
            finally:
                await stream.aclose()

        for step in range(CUT_ANYWHERE):
            await cancelled_at(step, one)
            # One whose answer was whole may still wait for its last bytes.
            await until(lambda: upstream.open_sockets[0] == 0, f"the socket of step {step}")
            assert asyncio.all_tasks() == {asyncio.current_task()}
        await one()
        await upstream.aclose()

    asyncio.run(main())

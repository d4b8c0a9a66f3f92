"""The upstream client's own rules: kept sockets, bounds, framing, privacy, proxies by name."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from localfirst.errors import Breakage, PrivacyRefused, UpstreamBroken
from localfirst.transport import upstream_proxy
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import IDLE_S, UpstreamClient, request_head
from localfirst.transport.upstream_names import Names, alternating
from localfirst.transport.upstream_open import broken
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.event_loops import RUNNERS, run
from tests.fakes.gateway_host import until

LOOP = "asyncio"


@pytest.fixture(params=RUNNERS, autouse=True)
def loop_kind(request: pytest.FixtureRequest) -> None:
    """Every test here runs on both loops."""
    global LOOP
    LOOP = request.param


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: FakeCloud) -> FakeCloud:
    shared.reset()
    return shared


class HandClock(SystemClock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def with_client(
    work: Callable[[UpstreamClient], Awaitable[Any]], clock: SystemClock | None = None, **more: Any
) -> Any:
    async def main() -> Any:
        upstream = UpstreamClient(clock or SystemClock(), **more)
        try:
            return await work(upstream)
        finally:
            await upstream.aclose()

    return run(LOOP, main)


def raw(data: bytes, then: str = "close") -> dict[str, Any]:
    return {"do": "raw", "base64": base64.b64encode(data).decode(), "then": then}


def url_of(cloud: FakeCloud) -> str:
    return cloud.base_url() + "/chat/completions"


# --- kept sockets --------------------------------------------------------------------------


def test_a_request_on_a_kept_socket_is_not_sent_again_by_a_client_that_was_closed(
    cloud: FakeCloud,
) -> None:
    cloud.script({"do": "ok"}, {"do": "hang"}, {"do": "ok"})

    async def work(upstream: UpstreamClient) -> tuple[int, int]:
        await (await upstream.send(url_of(cloud), body=b"{}")).read()
        asking = asyncio.ensure_future(upstream.send(url_of(cloud), body=b"{}"))
        await until(lambda: len(cloud.requests()) == 2, "the second request")
        await upstream.aclose()
        with pytest.raises(UpstreamBroken):
            await asking
        return upstream.open_sockets

    assert with_client(work) == (0, 0)
    assert len(cloud.requests()) == 2


def test_a_request_that_is_cancelled_while_it_connects_is_cancelled_and_not_broken(
    cloud: FakeCloud,
) -> None:
    async def work(upstream: UpstreamClient) -> None:
        for turn in range(400):
            asking = asyncio.ensure_future(upstream.send(url_of(cloud), body=b"{}"))
            for _ in range(turn % 8):
                await asyncio.sleep(0)
            if not asking.cancel():  # on a busy machine it may be answered by now
                asking.result().close()
                continue
            with pytest.raises(asyncio.CancelledError):
                await asking

    with_client(work)


def test_requests_one_after_another_share_a_socket(cloud: FakeCloud) -> None:
    async def work(upstream: UpstreamClient) -> None:
        for _ in range(3):
            response = await upstream.send(url_of(cloud), body=b"{}")
            assert response.status == 200
            await response.read()
        assert upstream.open_sockets == (0, 1)

    with_client(work)
    assert {record["connection"] for record in cloud.requests()} == {
        cloud.requests()[0]["connection"]
    }


def test_requests_at_once_each_have_a_socket_and_none_waits(cloud: FakeCloud) -> None:
    cloud.script({"do": "ok", "delay_s": 0.1, "times": 60})

    async def one(upstream: UpstreamClient) -> int:
        response = await upstream.send(url_of(cloud), body=b"{}")
        await response.read()
        return response.status

    async def work(upstream: UpstreamClient) -> list[int]:
        return await asyncio.gather(*(one(upstream) for _ in range(60)))

    assert with_client(work) == [200] * 60
    assert len({record["connection"] for record in cloud.requests()}) == 60


def test_no_more_idle_sockets_are_kept_than_allowed(cloud: FakeCloud) -> None:
    cloud.script({"do": "ok", "delay_s": 0.05, "times": 5})

    async def one(upstream: UpstreamClient) -> None:
        await (await upstream.send(url_of(cloud), body=b"{}")).read()

    async def work(upstream: UpstreamClient) -> tuple[int, int]:
        await asyncio.gather(*(one(upstream) for _ in range(5)))
        return upstream.open_sockets

    assert with_client(work, connections_per_origin=2) == (0, 2)


def test_a_socket_idle_for_too_long_is_not_used_again(cloud: FakeCloud) -> None:
    clock = HandClock()

    async def work(upstream: UpstreamClient) -> None:
        for _ in range(2):
            await (await upstream.send(url_of(cloud), body=b"{}")).read()
            clock.now += IDLE_S + 1

    with_client(work, clock)
    first, second = cloud.requests()
    assert first["connection"] != second["connection"]


def test_a_kept_socket_that_the_server_closes_is_replaced_unseen(cloud: FakeCloud) -> None:
    cloud.script("ok", "close", "ok")

    async def work(upstream: UpstreamClient) -> list[int]:
        statuses = []
        for _ in range(2):
            response = await upstream.send(url_of(cloud), body=b"{}")
            await response.read()
            statuses.append(response.status)
        return statuses

    assert with_client(work) == [200, 200]
    assert len(cloud.requests()) == 3


def test_a_stale_socket_is_retried_once_only(cloud: FakeCloud) -> None:
    cloud.script("ok", "close", "close", "ok")

    async def work(upstream: UpstreamClient) -> None:
        await (await upstream.send(url_of(cloud), body=b"{}")).read()
        with pytest.raises(UpstreamBroken) as caught:
            await upstream.send(url_of(cloud), body=b"{}")
        assert caught.value.breakage is Breakage.RESET

    with_client(work)
    assert len(cloud.requests()) == 3


def test_a_fresh_socket_that_is_closed_is_a_failure_at_once(cloud: FakeCloud) -> None:
    cloud.script("close", "ok")

    async def work(upstream: UpstreamClient) -> None:
        with pytest.raises(UpstreamBroken) as caught:
            await upstream.send(url_of(cloud), body=b"{}")
        assert caught.value.breakage is Breakage.RESET

    with_client(work)
    assert len(cloud.requests()) == 1


def test_a_socket_that_had_begun_to_answer_is_never_retried(cloud: FakeCloud) -> None:
    cloud.script("ok", "half_headers", "ok")

    async def work(upstream: UpstreamClient) -> None:
        await (await upstream.send(url_of(cloud), body=b"{}")).read()
        with pytest.raises(UpstreamBroken) as caught:
            await upstream.send(url_of(cloud), body=b"{}")
        assert caught.value.breakage is Breakage.CUT

    with_client(work)
    assert len(cloud.requests()) == 2


def test_an_answer_that_says_close_is_not_kept(cloud: FakeCloud) -> None:
    cloud.script(
        raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", "keep")
    )

    async def work(upstream: UpstreamClient) -> tuple[int, int]:
        assert await (await upstream.send(url_of(cloud), body=b"{}")).read() == b"{}"
        return upstream.open_sockets

    assert with_client(work) == (0, 0)


def test_an_unread_answer_closes_its_socket_and_a_finished_one_keeps_it(cloud: FakeCloud) -> None:
    cloud.script({"do": "stall", "events": 2}, {"do": "ok", "pause_s": 0.01})
    body = b'{"stream":true}'

    async def work(upstream: UpstreamClient) -> None:
        response = await upstream.send(url_of(cloud), body=body)
        await response.aclose()
        await response.aclose()
        assert upstream.open_sockets == (0, 0)
        response = await upstream.send(url_of(cloud), body=body)
        response.finish()
        while upstream.open_sockets != (0, 1):
            await asyncio.sleep(0.005)

    with_client(work)


def test_a_finished_answer_whose_body_never_ends_is_closed_soon(cloud: FakeCloud) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    cloud.script(raw(head + b"e\r\ndata: [DONE]\n\n\r\n", "hang"))

    async def work(upstream: UpstreamClient) -> None:
        response = await upstream.send(url_of(cloud), body=b"{}")
        assert await anext(response) == b"data: [DONE]\n\n"
        response.finish()
        assert upstream.open_sockets == (1, 0)
        while upstream.open_sockets != (0, 0):
            await asyncio.sleep(0.02)

    with_client(work)


def test_a_finished_answer_that_goes_on_and_on_is_closed(cloud: FakeCloud) -> None:
    cloud.script({"do": "flood", "mib": 64})

    async def work(upstream: UpstreamClient) -> None:
        response = await upstream.send(url_of(cloud), body=b'{"stream":true}')
        await anext(response)
        response.finish()
        while upstream.open_sockets != (0, 0):
            await asyncio.sleep(0.005)

    with_client(work)


def test_closing_the_client_ends_answers_in_progress(cloud: FakeCloud) -> None:
    cloud.script("hang")

    async def work(upstream: UpstreamClient) -> None:
        asking = asyncio.ensure_future(upstream.send(url_of(cloud), body=b"{}"))
        while upstream.open_sockets != (1, 0):
            await asyncio.sleep(0.001)
        await upstream.aclose()
        with pytest.raises(UpstreamBroken):
            await asking

    with_client(work)


# --- framing -------------------------------------------------------------------------------


def test_interim_answers_are_skipped(cloud: FakeCloud) -> None:
    cloud.script(
        raw(
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        )
    )

    async def work(upstream: UpstreamClient) -> tuple[int, bytes, list[tuple[str, str]]]:
        response = await upstream.send(url_of(cloud), body=b"{}")
        return response.status, await response.read(), response.headers

    assert with_client(work) == (200, b"ok", [("content-length", "2")])


def test_a_body_without_length_ends_with_the_connection(cloud: FakeCloud) -> None:
    cloud.script(raw(b"HTTP/1.1 200 OK\r\n\r\nall of it"))

    async def work(upstream: UpstreamClient) -> bytes:
        return await (await upstream.send(url_of(cloud), body=b"{}")).read()

    assert with_client(work) == b"all of it"


def test_head_needs_no_body_and_get_sends_none(cloud: FakeCloud) -> None:
    async def work(upstream: UpstreamClient) -> None:
        cloud.script(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n"))
        response = await upstream.send(url_of(cloud), method="HEAD")
        assert (response.status, await response.read()) == (200, b"")
        await (await upstream.send(url_of(cloud), method="GET")).read()

    with_client(work)
    assert ["content-length" in record["headers"] for record in cloud.requests()] == [False, False]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    ],
    ids=["length-and-chunked", "two-lengths", "upgrade", "ssh", "negative", "no-colon"],
)
def test_an_answer_that_is_no_clean_http_is_a_protocol_error(
    cloud: FakeCloud, answer: bytes
) -> None:
    cloud.script(raw(answer, "hang"))

    async def work(upstream: UpstreamClient) -> Breakage:
        with pytest.raises(UpstreamBroken) as caught:
            await (await upstream.send(url_of(cloud), body=b"{}", first_byte_s=2)).read()
        return caught.value.breakage

    assert with_client(work) is Breakage.PROTOCOL


def test_long_headers_are_refused_even_when_the_body_comes_with_them(cloud: FakeCloud) -> None:
    lines = b"".join(b"x-%d: %s\r\n" % (n, b"a" * 1000) for n in range(100))
    cloud.script(raw(b"HTTP/1.1 200 OK\r\n" + lines + b"content-length: 2\r\n\r\n{}", "keep"))

    async def work(upstream: UpstreamClient) -> Breakage:
        with pytest.raises(UpstreamBroken) as caught:
            await (await upstream.send(url_of(cloud), body=b"{}")).read()
        return caught.value.breakage

    assert with_client(work) is Breakage.TOO_LARGE


def test_an_error_status_outlives_an_encoding_that_was_not_asked_for(cloud: FakeCloud) -> None:
    head = (
        b"HTTP/1.1 429 Slow\r\nretry-after: 3\r\ncontent-encoding: br\r\ncontent-length: 4\r\n\r\n"
    )
    cloud.script(raw(head + b"\1\2\3\4", "keep"))

    async def work(upstream: UpstreamClient) -> tuple[int, str, bytes, tuple[int, int]]:
        response = await upstream.send(url_of(cloud), body=b"{}")
        body = await response.read()
        return response.status, response.header("retry-after"), body, upstream.open_sockets

    assert with_client(work) == (429, "3", b"", (0, 0))


def test_an_answer_before_the_request_is_out_is_heard_and_its_socket_not_kept() -> None:
    async def main() -> tuple[int, bytes, tuple[int, int]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")
            await gone.wait()
            writer.close()

        gone = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = UpstreamClient(SystemClock())
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        response = await upstream.send(url, body=b"a" * 64 * 2**20)
        answer = response.status, await response.read(), upstream.open_sockets
        gone.set()
        await upstream.aclose()
        server.close()
        return answer

    assert run(LOOP, main) == (413, b"{}", (0, 0))


WHOLE_ANSWERS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b'10\r\ndata: {"a": 1}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\nx-trailer: 1\r\n\r\n',
    b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\nx-a: b\r\n\r\n{"a":1}',
)


def test_spoilt_answers_end_in_bytes_or_in_a_broken_upstream_and_nothing_else() -> None:
    dice = random.Random(int(os.environ.get("LOCALFIRST_SEED", "20261121")))

    def spoilt() -> bytes:
        data = bytearray(dice.choice(WHOLE_ANSWERS))
        for _ in range(dice.randrange(1, 6)):
            where = dice.randrange(len(data))
            act = dice.randrange(3)
            if act == 0:
                data[where] = dice.randrange(256)
            elif act == 1:
                del data[where : where + dice.randrange(1, 9)]
            else:
                data[where:where] = bytes(
                    dice.choices(b"\r\n\0: 0aF;,\xff", k=dice.randrange(1, 9))
                )
            data = data or bytearray(b"x")
        return bytes(data)

    async def main() -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(spoilt())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = UpstreamClient(SystemClock())
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        whole = 0
        for _ in range(400):
            try:
                response = await upstream.send(url, first_byte_s=5, stall_s=5)
                await response.read()
                whole += 1
            except UpstreamBroken:
                pass
            assert upstream.open_sockets[0] == 0
        await upstream.aclose()
        server.close()
        return whole

    assert 0 < run(LOOP, main) < 400


def test_endless_trailers_are_bounded(cloud: FakeCloud) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    cloud.script(raw(head + b"x-t: " + b"a" * 200_000, "hang"))

    async def work(upstream: UpstreamClient) -> Breakage:
        with pytest.raises(UpstreamBroken) as caught:
            await (await upstream.send(url_of(cloud), body=b"{}", stall_s=2)).read()
        return caught.value.breakage

    assert with_client(work) is Breakage.TOO_LARGE


def test_a_body_over_the_callers_limit_is_refused(cloud: FakeCloud) -> None:
    async def work(upstream: UpstreamClient) -> None:
        response = await upstream.send(url_of(cloud), body=b"{}")
        with pytest.raises(UpstreamBroken) as caught:
            await response.read(10)
        assert caught.value.breakage is Breakage.TOO_LARGE
        assert upstream.open_sockets[0] == 0

    with_client(work)


def test_a_large_request_arrives_whole(cloud: FakeCloud) -> None:
    body = b'{"x":"' + b"a" * (8 * 2**20) + b'"}'

    async def work(upstream: UpstreamClient) -> int:
        response = await upstream.send(url_of(cloud), body=body)
        await response.read()
        return response.status

    assert with_client(work) == 200
    assert len(cloud.requests()[0]["body"]["x"]) == 8 * 2**20


@pytest.mark.parametrize(
    "headers", [(("x", "a\r\nevil: 1"),), (("x\nevil", "1"),), (("x", "a\0"),), (("x", "☃"),)]
)
def test_a_header_that_would_break_the_request_is_refused(
    headers: tuple[tuple[str, str], ...],
) -> None:
    with pytest.raises(ValueError, match=r"line end|latin-1"):
        request_head("POST", "/", "h", headers, 0)


@pytest.mark.parametrize(
    "url",
    ["http://user:pw@127.0.0.1/x", "ftp://127.0.0.1/", "127.0.0.1", "http:///x", "http://h/a b",
     "http://h/ä"],
)  # fmt: skip
def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    async def work(upstream: UpstreamClient) -> None:
        with pytest.raises(ValueError, match="a URL must be"):
            await upstream.send(url)

    with_client(work)


def test_every_request_asks_for_identity_and_sends_no_expect(cloud: FakeCloud) -> None:
    async def work(upstream: UpstreamClient) -> None:
        await (await upstream.send(url_of(cloud), headers=[("x-a", "b")], body=b"{}")).read()

    with_client(work)
    headers = cloud.requests()[0]["headers"]
    assert headers == {
        "host": f"127.0.0.1:{cloud.port}",
        "accept-encoding": "identity",
        "x-a": "b",
        "content-length": "2",
    }


# --- time ----------------------------------------------------------------------------------


def test_a_silent_address_times_out_while_connecting() -> None:
    async def work(upstream: UpstreamClient) -> Breakage:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            bound.listen(0)
            port = bound.getsockname()[1]
            # The queue of a listener that accepts nobody fills up.
            fillers = [socket.socket() for _ in range(3)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            try:
                with pytest.raises(UpstreamBroken) as caught:
                    await upstream.send(f"http://127.0.0.1:{port}/", connect_s=0.2)
            finally:
                for filler in fillers:
                    filler.close()
        return caught.value.breakage

    assert with_client(work) is Breakage.CONNECT_TIMEOUT


def test_a_peer_that_does_not_read_times_out_while_writing() -> None:
    from localfirst.transport import upstream_connection

    async def main() -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            server.setblocking(False)
            loop = asyncio.get_running_loop()
            accepting = asyncio.ensure_future(loop.sock_accept(server))
            upstream = UpstreamClient(SystemClock())
            url = f"http://127.0.0.1:{server.getsockname()[1]}/"
            sending = asyncio.ensure_future(upstream.send(url, body=b"a" * 32 * 2**20))
            peer, _ = await accepting
            while not any(c._limit_kind is Breakage.WRITE_TIMEOUT for c in upstream._busy):
                await asyncio.sleep(0.005)
            (connection,) = upstream._busy
            # Half a minute of silence, looked at early: twice, for the first look sees progress.
            connection._look()
            connection._last -= upstream_connection.WRITE_STALL_S
            connection._look()
            with pytest.raises(UpstreamBroken) as caught:
                await sending
            assert caught.value.breakage is Breakage.WRITE_TIMEOUT
            peer.close()
            await upstream.aclose()

    run(LOOP, main)


def test_a_slow_but_steady_stream_never_times_out(cloud: FakeCloud) -> None:
    cloud.script({"do": "ok", "pause_s": 0.06, "chunks": ["a"] * 8})

    async def work(upstream: UpstreamClient) -> bytes:
        response = await upstream.send(url_of(cloud), body=b'{"stream":true}', stall_s=0.3)
        return await response.read()

    assert with_client(work).endswith(b"data: [DONE]\n\n")


# --- privacy and addresses -----------------------------------------------------------------


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "[2001:db8::1]", "0.0.0.0"])
def test_local_only_opens_no_socket_to_another_machine(host: str) -> None:
    async def work(upstream: UpstreamClient) -> None:
        with pytest.raises(PrivacyRefused):
            await upstream.send(f"http://{host}/", local_only=True)

    with_client(work)


def test_local_only_allows_loopback_even_with_a_proxy_configured(cloud: FakeCloud) -> None:
    async def work(upstream: UpstreamClient) -> int:
        response = await upstream.send(url_of(cloud), body=b"{}", local_only=True)
        await response.read()
        return response.status

    assert with_client(work, proxies={"all": "http://127.0.0.1:9"}) == 200


def test_localhost_is_found_on_whichever_family_listens() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    async def work(upstream: UpstreamClient) -> int:
        server = await asyncio.start_server(answer, "::1", 0)
        port = server.sockets[0].getsockname()[1]
        response = await upstream.send(f"http://localhost:{port}/", method="GET", local_only=True)
        server.close()
        return response.status

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert with_client(work) == 204


def test_localhost_is_resolved_without_a_resolver() -> None:
    found = run(LOOP, lambda: Names().addresses("localhost", 80))
    assert [address[1] for address in found] == [("127.0.0.1", 80), ("::1", 80)]


def test_families_take_turns_in_the_resolvers_order() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    given = [(six, "a"), (six, "b"), (four, "c"), (four, "d")]
    assert [address for _, address in alternating(given)] == ["a", "c", "b", "d"]


@pytest.mark.parametrize("host", ["a" * 80 + ".invalid", ".."])
def test_a_name_that_nobody_has_is_a_dns_failure_for_all_who_asked(host: str) -> None:
    async def work(upstream: UpstreamClient) -> list[Breakage]:
        asked = [upstream.send(f"http://{host}/") for _ in range(5)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, UpstreamBroken) for error in found), found
        return [error.breakage for error in found if isinstance(error, UpstreamBroken)]

    assert with_client(work) == [Breakage.DNS] * 5


def test_whoever_leaves_a_look_up_leaves_it_to_the_others() -> None:
    async def main() -> None:
        names = Names()
        first = asyncio.ensure_future(names.addresses("a" * 80 + ".invalid", 80))
        second = asyncio.ensure_future(names.addresses("a" * 80 + ".invalid", 80))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(socket.gaierror):
            await second
        assert first.cancelled()

    run(LOOP, main)


@pytest.mark.parametrize(
    ("error", "breakage"),
    [
        (OSError(errno.ENETUNREACH, "x"), Breakage.OFFLINE),
        (OSError(errno.EHOSTUNREACH, "x"), Breakage.OFFLINE),
        (OSError(errno.ETIMEDOUT, "x"), Breakage.CONNECT_TIMEOUT),
        (ConnectionResetError(errno.ECONNRESET, "x"), Breakage.RESET),
        (ConnectionAbortedError("handshake"), Breakage.RESET),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), Breakage.CONNECT_REFUSED),
        (socket.gaierror(socket.EAI_NONAME, "x"), Breakage.DNS),
    ],
)
def test_an_operating_systems_error_has_one_meaning(error: OSError, breakage: Breakage) -> None:
    assert broken(error, "h:1").breakage is breakage


# --- proxies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "rules", "expected"),
    [
        ("api.groq.com", 443, "*", True),
        ("api.groq.com", 443, "groq.com", True),
        ("api.groq.com", 443, ".groq.com", True),
        ("api.groq.com", 443, "*.groq.com", True),
        ("notgroq.com", 443, "groq.com", False),
        ("API.GROQ.COM", 443, "Groq.com", True),
        ("api.groq.com", 443, "example.com, groq.com:443", True),
        ("api.groq.com", 443, "groq.com:80", False),
        ("10.1.2.3", 80, "10.0.0.0/8", True),
        ("11.1.2.3", 80, "10.0.0.0/8", False),
        ("fd00::1", 80, "fd00::/8", True),
        ("192.168.1.9", 80, "192.168.1.9", True),
        ("api.groq.com", 443, "", False),
        ("api.groq.com", 443, " , ,", False),
    ],
)
def test_no_proxy_rules(host: str, port: int, rules: str, expected: bool) -> None:
    assert upstream_proxy.bypassed(host, port, rules) is expected


def test_loopback_never_goes_through_a_proxy() -> None:
    proxies = {"https": "http://p:1", "http": "p:2"}
    assert upstream_proxy.proxy_of("https", "localhost", 1, proxies) == ""
    assert upstream_proxy.proxy_of("https", "127.0.0.9", 1, proxies) == ""
    assert upstream_proxy.proxy_of("http", "example.com", 80, proxies) == "http://p:2"


def test_proxies_come_from_the_variables_that_curl_knows() -> None:
    environ = {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1", "NO_PROXY": "x"}
    assert upstream_proxy.from_environment(environ) == {"https": "http://b:1", "no": "x"}
    behind_cgi = {"HTTP_PROXY": "http://evil:1", "REQUEST_METHOD": "GET"}
    assert upstream_proxy.from_environment(behind_cgi) == {}


@pytest.mark.parametrize("proxy", ["socks5://p:1", "https://p:1", "http://", "http://p:x"])
def test_a_proxy_of_another_kind_is_named_as_the_trouble(proxy: str) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        upstream_proxy.proxy_address(proxy)
    assert caught.value.breakage is Breakage.PROXY

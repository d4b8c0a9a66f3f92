"""Requests that end before their answer: refused inside their body, or left by their client."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from localfirst.gateway.exchange import Exchange
from localfirst.gateway.hub import Limits
from tests.fakes.gateway_host import PATIENCE_S, Host, hosted, read_answer, run, until
from tests.fakes.scripted_runtime import HELLO, Gate, ScriptedRuntime

BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'


def head(host: Host, framing: str) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host.at}\r\n"
        f"content-type: application/json\r\n{framing}\r\n\r\n"
    ).encode()


def counted(host: Host) -> list[str]:
    page = host.server.gateway.metrics.page([]).decode()
    return [line for line in page.splitlines() if line.startswith("localfirst_requests_total{")]


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [(b"zz\r\n", 400, "request-malformed"), (b"fffffff\r\n", 413, "body-too-large")],
)
def test_a_body_that_goes_wrong_is_refused_once_counted_so_and_no_fault_of_ours(
    more: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> tuple[bytes, list[str]]:
        async with hosted(ScriptedRuntime(), limits=Limits(max_body_bytes=1000)) as host:
            reader, writer = await host.connect()
            writer.write(head(host, "transfer-encoding: chunked") + b'5\r\n{"mod\r\n')
            await until(lambda: host.server.gateway.running, "the handler to wait for the body")
            writer.write(more)
            found = await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
            await until(lambda: not host.server.gateway.running)
            return found, counted(host)

    with caplog.at_level(logging.WARNING):
        found, lines = run(main())
    assert found.count(b"HTTP/1.1 ") == 1
    assert read_answer(found).status == status
    told = f'localfirst_requests_total{{route="openai.chat",status="{status}",outcome="{code}"}} 1'
    assert lines == [told]
    assert not caplog.records


def test_a_client_that_hangs_up_is_no_503_in_the_counts() -> None:
    async def main() -> list[str]:
        gate = Gate()
        async with hosted(ScriptedRuntime([gate, *HELLO])) as host:
            _, writer = await host.connect()
            writer.write(head(host, f"content-length: {len(BODY)}") + BODY)
            await gate.reached.wait()
            writer.close()
            await until(lambda: not host.server.gateway.running)
            return counted(host)

    (line,) = run(main())
    assert 'status="499",outcome="cancelled"' in line


def test_one_large_chunk_counts_as_it_comes() -> None:
    async def main() -> int:
        async with hosted(ScriptedRuntime(), limits=Limits(max_bodies_bytes=50_000)) as host:
            reader, writer = await host.connect()
            writer.write(head(host, "transfer-encoding: chunked") + b"186a0\r\n" + b" " * 60_000)
            found = await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
            await until(lambda: not host.server.hub.connections)
            assert host.server.hub.bodies_bytes == 0
            return read_answer(found).status

    assert run(main()) == 503


def test_one_large_chunk_that_comes_fast_enough_is_not_too_slow() -> None:
    limits = Limits(body_grace_s=0.05, body_bytes_s=10.0)

    async def main() -> int:
        async with hosted(ScriptedRuntime(), limits=limits) as host:
            reader, writer = await host.connect()
            writer.write(head(host, "transfer-encoding: chunked") + b"%x\r\n" % len(BODY))
            writer.write(BODY[:-1])
            await until(lambda: host.server.gateway.running)
            loop = host.server.hub.loop
            end = loop.time() + 0.3
            await until(lambda: loop.time() > end, "several looks at the body")
            writer.write(BODY[-1:] + b"\r\n0\r\n\r\n")
            found = await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE_S)
            writer.close()
            return int(found.split()[1])

    assert run(main()) == 200


def test_a_request_that_is_ended_before_anybody_began_to_answer_leaves_nothing_behind() -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime()) as host:
            reader, writer = await host.connect()
            hub = host.server.hub
            await until(lambda: hub.connections)
            (connection,) = hub.connections
            # The bytes and the second signal come in the same round of the loop.
            body = b" " * 100_000
            connection.data_received(head(host, f"content-length: {len(body)}") + body)
            assert hub.bodies_bytes == len(body)
            connection.cancel()
            await until(lambda: not hub.connections, "the connection to be closed")
            assert hub.bodies_bytes == 0
            found = await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
            return found

    assert run(main()) == b""


def test_a_body_that_nobody_read_is_not_kept_while_its_connection_idles() -> None:
    async def main() -> int:
        async with hosted(ScriptedRuntime()) as host:
            reader, writer = await host.connect()
            writer.write(f"GET /localfirst/health HTTP/1.1\r\nhost: {host.at}\r\n".encode())
            writer.write(b"content-length: 5000\r\n\r\n" + b"x" * 5000)
            await asyncio.wait_for(reader.readuntil(b'"ok"'), PATIENCE_S)
            await until(lambda: not host.server.gateway.running)
            left = sum(type(one) is Exchange for one in gc.get_objects())
            writer.close()
            return left

    assert run(main()) == 0

"""Clients that take too much: rows E1–E10, E13 and E14 of the attack table."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys

import psutil
import pytest

from localfirst.errors import Unavailable
from localfirst.events import Finished, TextDelta
from localfirst.gateway.hub import Limits
from tests.fakes.gateway_host import hosted, read_answer, run, until
from tests.fakes.scripted_runtime import Gate, ScriptedRuntime
from tests.security.attack import BODY, Attack, code_of, get, post, stage

CHAT = b"/v1/chat/completions"
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
    b"Content-Type: application/json\r\n"
)


def test_e1_dripping_headers_are_closed_in_time_and_others_are_served() -> None:
    limits = Limits(head_s=0.3)

    async def drip(host: object, port: int) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiting = asyncio.ensure_future(reader.read())
        for byte in b"GET /api/tags HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Drip: aaaaaaaaaaaaaaaaaaaaa":
            if waiting.done():
                break
            writer.write(bytes([byte]))
            await asyncio.wait({waiting}, timeout=0.05)
        await waiting
        writer.close()
        return loop.time() - began

    async def main() -> list[float]:
        async with hosted(ScriptedRuntime(), limits=limits) as host:
            drips = [asyncio.ensure_future(drip(host, host.port)) for _ in range(100)]
            await until(lambda: len(host.server.hub.connections) >= 100, "100 drips")
            assert (await host.ask("GET", "/api/tags")).status == 200
            return await asyncio.gather(*drips)

    assert max(run(main())) < 1.5


def test_e1_silence_after_connecting_is_closed_without_a_word() -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime(), limits=Limits(head_s=0.05)) as host:
            return await host.raw(b"")

    assert run(main()) == b""


def test_e2_a_dripping_body_is_408() -> None:
    data = HEAD + b"Content-Length: 1000\r\n\r\n{"
    answer = stage(Attack("E2", data, 408, "slow"), limits=Limits(body_grace_s=0.1))
    assert answer.complete


def test_e3_an_absurd_length_is_413_before_it_is_read() -> None:
    data = HEAD + b"Content-Length: 99999999999999\r\nExpect: 100-continue\r\n\r\n"
    stage(Attack("E3", data, 413, "body-too-large"))


def test_e4_endless_chunks_are_413_at_the_limit() -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40
    limits = Limits(max_body_bytes=2**20)
    stage(Attack("E4", data, 413, "body-too-large"), limits=limits)


def test_e4_one_chunk_over_the_limit_is_413_at_its_size() -> None:
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n"
    stage(Attack("E4-size", data, 413, "body-too-large"))


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd", b"deflate", b"gzip, identity"])
def test_e5_an_encoded_body_is_415(coding: bytes) -> None:
    data = post(CHAT, b"Content-Encoding: " + coding)
    stage(Attack("E5", data, 415, "encoding-not-allowed"))


def test_e8_one_connection_too_many_is_503_and_the_others_live() -> None:
    limits = Limits(max_connections=20)

    async def main() -> bytes:
        async with hosted(ScriptedRuntime(), limits=limits) as host:
            held = [await host.connect() for _ in range(20)]
            await until(lambda: len(host.server.hub.connections) == 20, "20 connections")
            refused = await host.raw(get().replace(b"PORT", b"%d" % host.port))
            reader, writer = held[0]
            writer.write(get().replace(b"PORT", b"%d" % host.port))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            for _, one in held:
                one.close()
            await until(lambda: not host.server.hub.connections, "everyone gone")
            assert (await host.ask("HEAD", "/")).status == 200
            return refused

    answer = read_answer(run(main()))
    assert (answer.status, code_of(answer)) == (503, "too-many-connections")
    assert answer.headers["retry-after"] == "1"


def test_e8_an_idle_connection_is_closed() -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime(), limits=Limits(idle_s=0.05)) as host:
            return await host.raw(get(b"/api/version").replace(b"PORT", b"%d" % host.port))

    assert read_answer(run(main())).status == 200


def test_e9_a_full_queue_is_told_with_a_time_to_come_back() -> None:
    full = Unavailable("the queue is full", code="queue-full", retry_after_s=7)

    async def main() -> tuple[int, str]:
        async with hosted(ScriptedRuntime(refusal=full)) as host:
            answer = await host.ask("POST", CHAT.decode(), BODY)
            return answer.status, answer.headers["retry-after"]

    assert run(main()) == (503, "7")


def test_large_bodies_together_have_a_limit() -> None:
    limits = Limits(max_bodies_bytes=2**20)
    data = HEAD + b"Content-Length: 2000000\r\n\r\n" + b" " * 1_500_000
    stage(Attack("bodies", data, 503, "too-many-bodies"), limits=limits)


def flood() -> list[TextDelta | Finished]:
    return [TextDelta("x" * 65536) for _ in range(400)] + [Finished()]


def test_e10_a_client_that_reads_nothing_costs_little_and_is_cut() -> None:
    runtime = ScriptedRuntime(flood())
    limits = Limits(stall_s=0.3)

    async def main() -> tuple[int, int]:
        async with hosted(runtime, limits=limits) as host:
            _, writer = await asyncio.open_connection("127.0.0.1", host.port, limit=1024)
            data = post(CHAT, body=BODY[:-1] + b',"stream":true}')
            writer.write(data.replace(b"PORT", b"%d" % host.port))
            await until(lambda: runtime.answers, "the answer")
            (connection,) = host.server.hub.connections
            await until(lambda: connection.writable is not None, "back-pressure")
            queued = connection._transport.get_write_buffer_size()
            await asyncio.wait_for(runtime.answers[0].closed.wait(), 5)
            await until(lambda: not host.server.hub.connections, "the cut")
            writer.close()
            return queued, len(runtime.answers[0].seen)

    queued, seen = run(main())
    assert queued < 2**20
    assert seen < 400, "the upstream was read on although nobody took it"


def test_e10_a_slow_reader_gets_everything() -> None:
    runtime = ScriptedRuntime(flood())

    async def main() -> int:
        async with hosted(runtime) as host:
            reader, writer = await asyncio.open_connection("127.0.0.1", host.port, limit=1024)
            data = post(CHAT, b"Connection: close", body=BODY[:-1] + b',"stream":true}')
            writer.write(data.replace(b"PORT", b"%d" % host.port))
            total = 0
            while piece := await reader.read(2**20):
                total += len(piece)
                await asyncio.sleep(0)
            writer.close()
            return total

    assert run(main()) > 400 * 65536


def test_a_client_that_hangs_up_frees_its_upstream_at_once() -> None:
    gate = Gate()
    runtime = ScriptedRuntime([TextDelta("x"), gate, Finished()])

    async def main() -> float:
        async with hosted(runtime) as host:
            _, writer = await host.connect()
            data = post(CHAT, body=BODY[:-1] + b',"stream":true}')
            writer.write(data.replace(b"PORT", b"%d" % host.port))
            await asyncio.wait_for(gate.reached.wait(), 5)
            loop = asyncio.get_running_loop()
            began = loop.time()
            writer.close()
            await asyncio.wait_for(runtime.answers[0].closed.wait(), 5)
            return loop.time() - began

    assert run(main()) < 1.0


def test_e14_a_storm_of_disconnections_leaves_nothing_behind() -> None:
    runtime = ScriptedRuntime([TextDelta("x"), *[Finished()]])

    async def storm(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(CHAT, body=BODY[:-1] + b',"stream":true}').replace(b"PORT", b"%d" % port))
        writer.close()

    async def main() -> tuple[int, int, int, int]:
        process = psutil.Process()
        async with hosted(runtime) as host:
            await host.ask("HEAD", "/")
            before = process.num_fds(), len(asyncio.all_tasks())
            for _ in range(10):
                await asyncio.gather(*(storm(host.port) for _ in range(50)))
            await until(lambda: not host.server.hub.connections, "everyone gone")
            await until(lambda: len(asyncio.all_tasks()) <= before[1], "their tasks")
            await until(lambda: process.num_fds() <= before[0] + 1, "their sockets")
            assert (await host.ask("HEAD", "/")).status == 200
            return *before, process.num_fds(), len(asyncio.all_tasks())

    fds, tasks, fds_after, tasks_after = run(main())
    assert fds_after <= fds + 1 and tasks_after <= tasks


CROWD = """
import asyncio, json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from tests.fakes.gateway_host import hosted, run
from tests.fakes.scripted_runtime import ScriptedRuntime

async def main():
    async with hosted(ScriptedRuntime()) as host:
        print(host.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

run(main())
"""


def test_e13_without_descriptors_it_waits_and_recovers() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CROWD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdin and child.stdout
        port = int(child.stdout.readline())

        async def main() -> bytes:
            held = []
            for _ in range(150):
                held.append(await asyncio.open_connection("127.0.0.1", port))
            for _, writer in held:
                writer.close()
            data = get(b"/api/version", b"Connection: close").replace(b"PORT", b"%d" % port)
            for _ in range(100):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(data)
                try:
                    found = await asyncio.wait_for(reader.read(), 2)
                except (TimeoutError, ConnectionError):
                    found = b""
                writer.close()
                if found:
                    return found
            return b""

        answer = read_answer(run(main()))
        assert (answer.status, json.loads(answer.body)) == (200, {"version": "0.33.0"})
        busy = psutil.Process(child.pid)
        busy.cpu_percent()
        assert busy.cpu_times().user < 10
    finally:
        child.communicate("\n", timeout=10)
    assert child.returncode == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64

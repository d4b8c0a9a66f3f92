"""What a repeated head was once allowed is judged anew when the door has changed."""

from __future__ import annotations

import asyncio

from tests.fakes.gateway_host import PATIENCE_S, Host, hosted, run
from tests.fakes.scripted_runtime import ScriptedRuntime

BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'


async def status(
    host: Host, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], more: str = ""
) -> int:
    """One request on a connection that is kept; always the same bytes."""
    reader, writer = streams
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host.at}\r\n{more}"
        f"authorization: Bearer first\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
        + BODY
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await asyncio.wait_for(reader.readexactly(length), PATIENCE_S)
    return int(head.split(b" ")[1])


def test_a_key_that_was_changed_opens_no_more_on_a_connection_that_was_let_in() -> None:
    async def main() -> list[int]:
        async with hosted(ScriptedRuntime(key="first")) as host:
            streams = await host.connect()
            found = [await status(host, streams) for _ in range(2)]
            await host.server.take_over(ScriptedRuntime(key="second"))
            found.append(await status(host, streams))
            streams[1].close()
            return found

    assert run(main()) == [200, 200, 401]


def test_a_large_head_is_answered_and_not_kept() -> None:
    async def main() -> None:
        async with hosted(ScriptedRuntime(key="first")) as host:
            streams = await host.connect()
            assert [await status(host, streams) for _ in range(2)] == [200, 200]
            hub = host.server.hub
            assert hub is not None
            (connection,) = hub.connections
            assert connection._repeat is not None
            large = f"x-note: {'n' * 8000}\r\n"
            assert [await status(host, streams, large) for _ in range(2)] == [200, 200]
            assert connection._repeat is None
            streams[1].close()

    run(main())

"""
How an attack is staged: raw bytes to a real gateway, and what must hold whatever they were.

Nothing reaches the runtime, the answer is small and in the surface's own shape, it does not
repeat the attacker's words, the connection is closed, and the next honest request is
answered at once.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from localfirst.gateway.hub import Limits
from tests.fakes.gateway_host import Answer, Host, hosted, read_answer, run
from tests.fakes.scripted_runtime import ScriptedRuntime

BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'

CANARY = "lf-canary-7f3a90"


class Attack(msgspec.Struct, frozen=True):
    """A row of the attack table: bytes with `PORT` in them, and the answer they must get."""

    id: str
    data: bytes
    status: int
    code: str = ""


def post(
    path: bytes = b"/v1/chat/completions",
    *headers: bytes,
    body: bytes = BODY,
    host: bytes = b"127.0.0.1:PORT",
    kind: bytes = b"application/json",
) -> bytes:
    """A POST with the headers that an honest one has, and *headers* after them."""
    lines = [b"POST %b HTTP/1.1" % path, b"Host: %b" % host]
    if kind:
        lines.append(b"Content-Type: %b" % kind)
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), *headers, b"", body])


def get(path: bytes = b"/api/tags", *headers: bytes, host: bytes = b"127.0.0.1:PORT") -> bytes:
    """A GET with *headers* after the honest ones."""
    return b"\r\n".join([b"GET %b HTTP/1.1" % path, b"Host: %b" % host, *headers, b"", b""])


def code_of(answer: Answer) -> str:
    """The error's code, in whichever surface's shape it came."""
    found: Any = answer.json
    if isinstance(found["error"], str):
        return str(found["code"])
    return str(found["error"]["code"])


async def sane(host: Host) -> None:
    """An honest request after the attack is answered."""
    answer = await host.ask("HEAD", "/")
    assert answer.status == 200


def stage(
    attack: Attack, runtime: ScriptedRuntime | None = None, limits: Limits | None = None
) -> Answer:
    """Run an attack against a fresh gateway, and check what always holds."""
    runtime = runtime or ScriptedRuntime()

    async def main() -> tuple[Answer, bytes]:
        async with hosted(runtime, limits=limits) as host:
            raw = await host.raw(attack.data.replace(b"PORT", b"%d" % host.port))
            await sane(host)
            return read_answer(raw, attack.data.split(b" ")[0].decode("latin-1")), raw

    answer, raw = run(main())
    assert runtime.calls == [] and "embed" not in " ".join(runtime.asked)
    assert answer.status == attack.status, (attack.id, answer)
    if attack.status == 0:
        assert raw == b""
        return answer
    assert len(answer.body) <= 1024
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert CANARY.encode() not in raw
    if attack.code:
        assert code_of(answer) == attack.code
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", raw)) == 1, (
        "a second request behind a refused one was run"
    )
    return answer

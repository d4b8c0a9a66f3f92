"""
Seeded fuzz: mutated bodies on every surface, and damaged bytes of valid HTTP.

`LOCALFIRST_FUZZ` sets how many of each, `LOCALFIRST_SEED` where they begin.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import Any

import pytest

from localfirst.events import Event
from localfirst.gateway.hub import Limits
from localfirst.types import Call
from tests.fakes.gateway_host import hosted, read_answer, run
from tests.fakes.scripted_runtime import HELLO, ScriptedRuntime
from tests.security.attack import BODY, get, post

COUNT = int(os.environ.get("LOCALFIRST_FUZZ", "150"))
SEED = int(os.environ.get("LOCALFIRST_SEED", "7"))

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
VALID: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": "auto",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [TOOL],
        "stream": False,
        "temperature": 0.5,
        "response_format": {"type": "json_object"},
    },
    "/v1/completions": {"model": "auto", "prompt": "x", "max_tokens": 3, "stop": ["a"]},
    "/v1/responses": {"model": "auto", "input": [{"role": "user", "content": "x"}], "tools": []},
    "/v1/embeddings": {"model": "auto", "input": ["x"], "encoding_format": "base64"},
    "/v1/messages": {
        "model": "auto",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "s"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    },
    "/v1/messages/count_tokens": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
    "/api/chat": {
        "model": "auto",
        "messages": [{"role": "user", "content": "x", "images": ["iVBORw0KGgo="]}],
        "options": {"num_ctx": 512, "stop": ["x"]},
        "format": {"type": "object"},
        "keep_alive": "5m",
    },
    "/api/generate": {"model": "auto", "prompt": "x", "suffix": "y", "raw": True},
    "/api/embed": {"model": "auto", "input": "x", "truncate": True},
    "/api/embeddings": {"model": "auto", "prompt": "x"},
    "/api/show": {"model": "llama3.2:3b", "verbose": True},
    "/api/pull": {"model": "llama3.2:3b", "stream": False},
    "/localfirst/pulls": {"model": "llama3.2:3b", "action": "start"},
}
ODD = [
    None, True, False, 0, -1, 2**70, 1e308, 0.1, "", "x", "\u0000", "\ud83d\ude00" * 50, "a" * 9000,
    [], {}, [[]], {"a": None}, [None], "../x", "NaN",
]  # fmt: skip


def mutated(value: Any, dice: random.Random) -> Any:
    """*value* with one of its parts dropped, retyped, doubled, nested or replaced."""
    if dice.random() < 0.35 or not isinstance(value, dict | list) or not value:
        return dice.choice([dice.choice(ODD), [value, value], {"x": value}])
    if isinstance(value, list):
        index = dice.randrange(len(value))
        return [*value[:index], mutated(value[index], dice), *value[index + 1 :]]
    key = dice.choice(sorted(value))
    if dice.random() < 0.2:
        return {name: item for name, item in value.items() if name != key}
    return {**value, key: mutated(value[key], dice)}


def decoded(call: Call) -> tuple[Event, ...]:
    """Answer as a backend of another dialect would: the whole request is read first."""
    assert call.chat.model
    return HELLO


@pytest.mark.parametrize("path", VALID)
def test_a_mutated_body_gets_an_answer_in_the_surfaces_shape(path: str) -> None:
    dice = random.Random(f"{SEED} {path}")
    runtime = ScriptedRuntime(decoded)

    async def main() -> None:
        async with hosted(runtime) as host:
            for number in range(COUNT // 5):
                body = json.dumps(mutated(VALID[path], dice)).encode()
                answer = await asyncio.wait_for(host.ask("POST", path, body), 2)
                told = (number, body, answer)
                assert answer.status in {200, 400, 403, 404, 413, 503}, told
                if answer.status != 200:
                    assert answer.status != 503 or answer.json, told
                    shaped(path, answer.json, told)
            assert (await host.ask("POST", path, json.dumps(VALID[path]).encode())).status == 200

    run(main())
    for call in runtime.calls:
        assert isinstance(json.loads(call.body), dict)


def shaped(path: str, found: Any, told: object) -> None:
    if path.startswith("/api/"):
        assert isinstance(found["error"], str), told
    elif path.startswith("/v1/messages"):
        assert found["type"] == "error" and found["error"]["message"], told
    else:
        assert found["error"]["message"] and found["error"]["code"], told


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Valid HTTP with some bytes flipped, dropped, doubled or inserted."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(found))
        what = dice.randrange(4)
        if what == 0:
            found[place] = dice.randrange(256)
        elif what == 1:
            del found[place : place + dice.randint(1, 8)]
        elif what == 2:
            found[place:place] = found[place : place + dice.randint(1, 8)]
        else:
            found[place:place] = dice.choice([b"\r", b"\n", b"\0", b" ", b":", b"\r\n\r\n"])
    return bytes(found)


def test_damaged_bytes_end_in_an_answer_or_a_closed_connection() -> None:
    dice = random.Random(SEED)
    limits = Limits(head_s=0.05, idle_s=0.05, body_grace_s=0.05, linger_s=0.05)

    async def one(host: Any, data: bytes) -> None:
        reader, writer = await host.connect()
        try:
            for start in range(0, len(data), max(1, len(data) // 3)):
                writer.write(data[start : start + max(1, len(data) // 3)])
                await asyncio.sleep(0)
            raw = await asyncio.wait_for(reader.read(), 5)
        except ConnectionError:
            return
        finally:
            writer.close()
        if raw:
            assert 200 <= read_answer(raw).status < 600

    async def main() -> None:
        async with hosted(ScriptedRuntime(), limits=limits) as host:
            port = b"%d" % host.port
            chunked = (
                b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
            )
            seeds = [get() + get(), post(), post() + get(), chunked]
            for _ in range(COUNT // 10):
                await asyncio.gather(
                    *(
                        one(host, damaged(dice.choice(seeds).replace(b"PORT", port), dice))
                        for _ in range(10)
                    )
                )
            assert (await host.ask("HEAD", "/")).status == 200
            assert host.server.hub.bodies_bytes == 0

    run(main())

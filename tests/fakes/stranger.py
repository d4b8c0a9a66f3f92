"""
A stranger at the gateway's door: three surfaces in raw HTTP, and what they were really told.

Nothing of the project is used here, only sockets and JSON: what a stranger reads off the wire
is what people's programs read.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "ollama": "/api/chat",
}
SURFACES = tuple(PATHS)
PATIENCE_S = 30.0


@dataclass
class Told:
    """
    One answer as it came over the wire.

    `framed` says that HTTP's own framing ended properly, `finished` that the surface's own
    terminator (or a whole JSON answer) came, `error` is the error it told, if any.
    """

    surface: str
    status: int
    headers: dict[str, str]
    body: bytes
    framed: bool
    seconds: float
    text: str = ""
    finished: bool = False
    error: Any = None
    first_s: float = 0.0
    events: list[Any] = field(default_factory=list)

    @property
    def trail(self) -> str:
        return self.headers.get("x-localfirst-trail", "")

    @property
    def attempts(self) -> int:
        return int(self.headers.get("x-localfirst-attempts", "-1"))

    @property
    def route(self) -> str:
        return self.headers.get("x-localfirst-route", "")

    @property
    def message(self) -> str:
        """The words of the error, in whichever shape it came."""
        error = self.error
        if isinstance(error, dict):
            return str(error.get("message", error))
        return str(error or "")


def body_of(model: str, *, stream: bool, **more: Any) -> dict[str, Any]:
    """A request that all three surfaces understand."""
    said = more.pop("content", "hi")
    return {
        "model": model,
        "stream": stream,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": said}],
        **more,
    }


async def ask(
    url: str,
    model: str = "auto",
    *,
    surface: str = "openai",
    stream: bool = True,
    headers: dict[str, str] | None = None,
    path: str = "",
    patience_s: float = PATIENCE_S,
    body: dict[str, Any] | None = None,
    **more: Any,
) -> Told:
    """
    Send one request and read all that comes back, to the end or to the cut.

    A *body* of one's own is sent as it is, and its answer is not looked into.
    """
    sent = json.dumps(body or body_of(model, stream=stream, **more)).encode()
    began = time.monotonic()
    async with asyncio.timeout(patience_s):
        reader, writer = await _sent(url, path or PATHS[surface], sent, headers or {})
        try:
            raw, first_s = await _all(reader, began)
        finally:
            writer.close()
    told = read("" if body else surface, raw, time.monotonic() - began)
    told.first_s = first_s
    return told


async def _sent(
    url: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
    await writer.drain()
    return reader, writer


async def _all(reader: asyncio.StreamReader, began: float) -> tuple[bytes, float]:
    raw, first_s = bytearray(), 0.0
    try:
        while data := await reader.read(65536):
            first_s = first_s or time.monotonic() - began
            raw += data
    except ConnectionError:
        pass
    return bytes(raw), first_s


def read(surface: str, raw: bytes, seconds: float) -> Told:
    """What the bytes of one answer mean to a client of *surface*."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines[1:] if ": " in line]
    headers = {name.lower(): value for name, value in pairs}
    status = int(lines[0].split(" ")[1]) if lines[0] else 0
    body, framed = _framed(rest, headers)
    told = Told(surface, status, headers, body, framed, seconds)
    kind = headers.get("content-type", "")
    if not surface:
        return told
    if status == 200 and ("event-stream" in kind or "ndjson" in kind):
        _read_stream(told)
    elif body:
        _read_whole(told)
    return told


def _framed(rest: bytes, headers: dict[str, str]) -> tuple[bytes, bool]:
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers.get("content-length", len(rest)))
        return rest, len(rest) == length
    found = bytearray()
    while rest:
        size, _, after = rest.partition(b"\r\n")
        if not size:
            break
        count = int(size, 16)
        if not count:
            return bytes(found), True
        found += after[:count]
        rest = after[count + 2 :]
    return bytes(found), False


def _read_whole(told: Told) -> None:
    try:
        said = json.loads(told.body)
    except ValueError:
        told.error = told.body[:200]
        return
    if "error" in said:
        told.error = said["error"]
        return
    told.finished = True
    told.events = [said]
    if told.surface == "openai":
        told.text = said["choices"][0]["message"].get("content") or ""
    elif told.surface == "anthropic":
        told.text = "".join(part.get("text", "") for part in said["content"])
    else:
        told.text = said["message"]["content"]
        told.finished = bool(said["done"])


def _read_stream(told: Told) -> None:
    if told.surface == "ollama":
        for line in told.body.splitlines():
            _ollama_line(told, json.loads(line))
        return
    for block in told.body.replace(b"\r\n", b"\n").split(b"\n\n"):
        data = b"\n".join(
            line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")
        )
        if data == b"[DONE]":
            told.finished = told.error is None
        elif data:
            _sse(told, json.loads(data))


def _sse(told: Told, said: dict[str, Any]) -> None:
    told.events.append(said)
    if said.get("error"):
        told.error = said["error"]
    elif told.surface == "openai":
        for choice in said.get("choices") or []:
            told.text += choice["delta"].get("content") or ""
    elif said["type"] == "content_block_delta":
        told.text += said["delta"].get("text", "")
    elif said["type"] == "message_stop":
        told.finished = told.error is None


def _ollama_line(told: Told, said: dict[str, Any]) -> None:
    told.events.append(said)
    if "error" in said:
        told.error = said["error"]
        return
    told.text += said["message"]["content"]
    told.finished = bool(said["done"])


# --- what a stranger writes into config.toml -----------------------------------------------

BARE = """
order = []
[local]
engine = "none"
auto_pull = false
[escalation]
same_error = 1000000
failures = 1000000
"""


def provider(name: str, url: str, dialect: str = "openai", keys: int = 1, **more: Any) -> str:
    """A provider's table; *keys* are `key-1-of-NAME` and so on."""
    found = ", ".join(f'"key-{number}-of-{name}"' for number in range(1, keys + 1))
    lines = [
        f"[providers.{name}]",
        f'base_url = "{url}"',
        'model = "m"',
        f'dialect = "{dialect}"',
        f"keys = [{found}]",
        *(f"{field} = {json.dumps(value)}" for field, value in more.items()),
    ]
    return "\n".join(lines) + "\n"


def route(name: str, *targets: str, **more: Any) -> str:
    """A route's table; a bare provider stands for its model `m`."""
    whole = [target if "/" in target else f"{target}/m" for target in targets]
    lines = [f"[routes.{name}]", f"targets = {json.dumps(whole)}"]
    lines += [f"{field} = {json.dumps(value)}" for field, value in more.items()]
    return "\n".join(lines) + "\n"

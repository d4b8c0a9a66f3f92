"""
A crowd of clients of the gateway: every surface, whole and streamed, polite and rude.

Seeded, so that a run can be had again. Each answer is looked at: it must be whole and true,
or a clean error in its surface's shape, or visibly cut; and it must come in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from typing import Any, NamedTuple

from tests.fakes.cloud_answers import WORDS
from tests.fakes.gateway_host import Answer, read_answer

TEXT = "".join(WORDS)
CANARY = "canary-in-the-prompt"
KEY = "sk-soak-5e1f0a9b7c3d4e2f"
SAY = [{"role": "user", "content": f"hello {CANARY}"}]
STATUSES = frozenset({200, 400, 404, 405, 413, 415, 429, 502, 503, 504})
"""What an answer may be; 500 is a defect in the gateway."""


class Surface(NamedTuple):
    """A generation endpoint: what is asked, and what ends its stream truly."""

    path: str
    body: dict[str, Any]
    terminator: bytes


SURFACES = (
    Surface("/v1/chat/completions", {"messages": SAY}, b"data: [DONE]"),
    Surface("/v1/completions", {"prompt": f"hello {CANARY}"}, b"data: [DONE]"),
    Surface("/v1/responses", {"input": f"hello {CANARY}"}, b"event: response.completed"),
    Surface("/v1/messages", {"messages": SAY, "max_tokens": 9}, b"event: message_stop"),
    Surface("/api/chat", {"messages": SAY}, b'"done":true'),
    Surface("/api/generate", {"prompt": f"hello {CANARY}"}, b'"done":true'),
)

QUESTIONS = (
    b"/v1/models",
    b"/api/tags",
    b"/api/ps",
    b"/api/version",
    b"/metrics",
    b"/ui",
    b"/localfirst/state",
    b"/localfirst/explain?model=any",
    b"/localfirst/health",
    b"/localfirst/openapi.json",
    b"/",
)

END = b"Connection: close\r\n\r\n"
CHAT_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"
RUDE = (
    CHAT_HEAD + JSON_TYPE + b"Content-Length: 9\r\n" + END + b"{nonsense",
    CHAT_HEAD + JSON_TYPE + b"Content-Length: 2\r\n" + END + b"{}",
    CHAT_HEAD + JSON_TYPE + b"Content-Length: 999999999999\r\n" + END,
    CHAT_HEAD + JSON_TYPE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n" + END + b"{}",
    CHAT_HEAD + b"Content-Type: text/plain\r\nContent-Length: 2\r\n" + END + b"{}",
    CHAT_HEAD + JSON_TYPE + b"Transfer-Encoding: chunked\r\n" + END + b"zz\r\n{}",
    CHAT_HEAD + b"Origin: https://elsewhere.example\r\nContent-Length: 0\r\n" + END,
    b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" + END,
    b"GET / HTTP/1.1\r\nHost: elsewhere.example:%d\r\n" + END,
    b"GET /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" + END,
    b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 2\r\n" + END + b"[]",
    b"\x16\x03\x01 no HTTP for %d at all\r\n\r\n",
)


class Crowd:
    """
    Clients that come and go until they are told to stop.

    `did` counts kinds of visits and of endings; `wrong` tells what must never be.
    """

    def __init__(self, port: int, *, seed: int, models: tuple[str, ...], most_s: float) -> None:
        self.port = port
        self.did: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._choice = random.Random(seed)
        self._models = models
        self._most_s = most_s
        self._stop = asyncio.Event()

    async def visit(self, clients: int, seconds: float) -> None:
        """Have *clients* at once for so long, and return when the last has its answer."""
        self._stop.clear()
        asyncio.get_running_loop().call_later(seconds, self._stop.set)
        await asyncio.gather(*(self._client() for _ in range(clients)))

    async def _client(self) -> None:
        while not self._stop.is_set():
            kind = self._choice.choices(list(VISITS), list(VISITS.values()))[0]
            self.did[kind] += 1
            try:
                async with asyncio.timeout(self._most_s):
                    await getattr(self, f"_{kind}")()
            except TimeoutError:
                self.wrong.append(f"{kind}: nothing within {self._most_s:g} s")
            except OSError as error:
                self.did[f"{kind} {type(error).__name__}"] += 1
                if kind in POLITE:
                    self.wrong.append(f"{kind}: {error!r}")

    # --- the kinds of visits ---------------------------------------------------------------

    async def _polite(self) -> None:
        """Ask and read to the end."""
        surface, stream, data = self._generation()
        async with self._connected() as (reader, writer):
            writer.write(data)
            self._judge(surface, stream, read_answer(await _rest(reader), "POST"))

    async def _slow(self) -> None:
        """Read in small sips."""
        surface, stream, data = self._generation()
        async with self._connected() as (reader, writer):
            writer.write(data)
            pieces = []
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(512 if len(pieces) < 50 else 2**16):
                    pieces.append(piece)
                    await asyncio.sleep(0.002)
            self._judge(surface, stream, read_answer(b"".join(pieces), "POST"))

    async def _hasty(self) -> None:
        """Hang up before anything comes, or in the middle."""
        _, _, data = self._generation()
        async with self._connected() as (reader, writer):
            writer.write(data)
            await writer.drain()
            if self._choice.random() < 0.6:
                await reader.read(self._choice.randrange(1, 900))
            if self._choice.random() < 0.5:
                writer.transport.abort()

    async def _half(self) -> None:
        """Hang up inside the own request."""
        _, _, data = self._generation()
        async with self._connected() as (_, writer):
            writer.write(data[: self._choice.randrange(1, len(data))])
            await writer.drain()

    async def _rude(self) -> None:
        """Send what is no request, or a bad one: refused, never answered with 200 or 500."""
        async with self._connected() as (reader, writer):
            asked = self._choice.choice(RUDE) % self.port
            writer.write(asked)
            answer = read_answer(await _rest(reader))
            if asked[:1] != b"\x16" and not 400 <= answer.status < 500:
                self.wrong.append(f"rude: {answer.status} for {asked[:200]!r}")

    async def _curious(self) -> None:
        """Several questions on one connection, as dashboards and scrapers ask."""
        async with self._connected() as (reader, writer):
            for path in self._choice.sample(QUESTIONS, 3):
                writer.write(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (path, self.port))
                head = await reader.readuntil(b"\r\n\r\n")
                status = int(head.split()[1])
                size = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(size)
                self.did[f"question {status}"] += 1
                if status != 200:
                    self.wrong.append(f"{path!r}: {status}")

    async def _beside(self) -> None:
        """Embeddings and token counts."""
        path, body = self._choice.choice(
            (
                ("/v1/embeddings", {"input": [CANARY, "b"]}),
                ("/api/embed", {"input": CANARY}),
                ("/v1/messages/count_tokens", {"messages": SAY}),
            )
        )
        async with self._connected() as (reader, writer):
            writer.write(self._request(path, {"model": self._choice.choice(self._models), **body}))
            answer = read_answer(await _rest(reader), "POST")
            self.did[f"{path} {answer.status}"] += 1
            self._sound(path, answer)

    # --- asking ----------------------------------------------------------------------------

    def _generation(self) -> tuple[Surface, bool, bytes]:
        surface = self._choice.choice(SURFACES)
        stream = self._choice.random() < 0.6
        body = {"model": self._choice.choice(self._models), "stream": stream, **surface.body}
        return surface, stream, self._request(surface.path, body)

    def _request(self, path: str, body: dict[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    @contextlib.asynccontextmanager
    async def _connected(self) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    # --- judging ---------------------------------------------------------------------------

    def _judge(self, surface: Surface, stream: bool, answer: Answer) -> None:
        """An answer is whole and true, a clean error, or a stream that is visibly cut."""
        kind = f"{surface.path} {answer.status}"
        if answer.status != 200 or not stream:
            self.did[kind] += 1
            self._sound(surface.path, answer)
            if answer.status == 200 and answer.complete and not _is_true(text_of(answer.json)):
                self.wrong.append(f"{kind}: {answer.body[:300]!r}")
            return
        ended = surface.terminator in answer.body
        self.did[f"{kind} {'whole' if ended else 'cut'}"] += 1
        if ended:
            said = "".join(text_of(event) for event in events(answer.body))
            if not answer.complete or not _is_true(said):
                self.wrong.append(f"{kind}: a false end: {answer.body[-300:]!r}")
        elif answer.complete or b'"error"' not in answer.body:
            self.wrong.append(f"{kind}: cut without a word: {answer.body[-300:]!r}")

    def _sound(self, path: str, answer: Answer) -> None:
        if answer.status not in STATUSES or not answer.complete:
            self.wrong.append(f"{path}: {answer.status}, complete: {answer.complete}")
        elif answer.status != 200 and "error" not in answer.json:
            self.wrong.append(f"{path}: {answer.status} {answer.body[:200]!r}")


VISITS = {"polite": 58, "slow": 4, "hasty": 14, "half": 4, "rude": 8, "curious": 6, "beside": 6}
POLITE = frozenset({"polite", "slow", "curious", "beside"})


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the gateway closes, also abruptly."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(2**16):
            pieces.append(piece)
    return b"".join(pieces)


def _is_true(text: str) -> bool:
    """What the fake cloud says when it says everything: its words, or a flood."""
    return text == TEXT or (len(text) % 16_000 == 0 and set(text) == {"a"})


def events(body: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a stream, server-sent events or lines."""
    lines = (line.removeprefix(b"data: ").strip() for line in body.split(b"\n"))
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def text_of(value: dict[str, Any]) -> str:
    """What an answer or one event of any surface says."""
    match value:
        case {"choices": [{"delta": {"content": str(text)}}]}:
            return text
        case {"choices": [{"message": {"content": str(text)}}]}:
            return text
        case {"choices": [{"text": str(text)}]}:
            return text
        case {"type": "response.output_text.delta", "delta": str(text)}:
            return text
        case {"output": [*_, {"content": [{"text": str(text)}]}]}:
            return text
        case {"type": "content_block_delta", "delta": {"text": str(text)}}:
            return text
        case {"type": "message", "content": [{"text": str(text)}]}:
            return text
        case {"message": {"content": str(text)}, "model": _}:
            return text
        case {"response": str(text), "model": _}:
            return text
    return ""

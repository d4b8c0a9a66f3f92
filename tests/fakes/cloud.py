"""
A scripted cloud: `python -m tests.fakes.cloud --port 0` prints its port and serves until killed.

Any path that ends in `/chat/completions`, `/messages`, `/models` or `/embeddings` is answered,
so that one process can be many providers: the first path segment is the *part* it plays
(`http://127.0.0.1:PORT/groq/v1`). Control, as JSON:

    POST /_script    {"part": "groq" or "", "steps": [STEP, …]}   queued, "" plays any part
    GET  /_requests[/PART]  what came: part, path, headers, body, connection, ended, at
    GET  /_state     {"open": sockets, "accepted": sockets so far, "aborted": left by the client}
    POST /_reset     forget scripts, records and model lists
    POST /_models    {"part": …, "ids": […]}

A STEP is `{"do": NAME, "times": 1, "delay_s": 0, …}`; without one the answer is "ok". Names are
the methods `do_*` below; `times` -1 is for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import json
import socket
import struct
import time
from typing import Any

from tests.fakes import cloud_answers as answers

Step = dict[str, Any]


class Exchange:
    """One request and the socket it came on."""

    def __init__(self, writer: asyncio.StreamWriter, record: dict[str, Any]) -> None:
        self.writer = writer
        self.record = record
        self.path: str = record["path"]
        self.dialect = answers.dialect_of(self.path)
        body = record["body"] if isinstance(record["body"], dict) else {}
        self.stream = bool(body.get("stream"))
        self.model = str(body.get("model", ""))
        self.usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.inputs = body.get("input", [])

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int, headers: dict[str, Any], *, chunked: bool = False) -> None:
        lines = [f"HTTP/1.1 {status} Scripted", "x-fake: cloud"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if chunked:
            lines.append("transfer-encoding: chunked")
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def json(self, status: int, body: bytes, headers: dict[str, Any] | None = None) -> None:
        given = {"content-type": "application/json", "content-length": len(body)}
        await self.head(status, {**given, **(headers or {})})
        await self.send(body)

    async def open_stream(self, step: Step) -> None:
        headers = {"content-type": "text/event-stream", **step.get("headers", {})}
        await self.head(200, headers, chunked=True)

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def events(self, step: Step) -> list[bytes]:
        return answers.events(self.dialect, step, self.model, usage=self.usage)

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Acts:
    """The named faults; each returns whether the connection may be used again."""

    async def do_ok(self, x: Exchange, step: Step) -> bool:
        if x.path.endswith("/embeddings"):
            several = isinstance(x.inputs, list) and not isinstance(x.inputs[0], int)
            count = len(x.inputs) if several else 1
            rows: list[Any] = [[float(n), 0.5] for n in range(count)]
            if step.get("packed"):
                rows = [base64.b64encode(struct.pack("<2f", *row)).decode() for row in rows]
            data = [{"index": n, "embedding": row} for n, row in enumerate(rows)]
            made = {"data": data[:: step.get("order", 1)], "usage": {"prompt_tokens": 3}}
            made |= {"model": step["model"]} if "model" in step else {}
            await x.json(200, json.dumps(made).encode())
            return True
        if not x.stream:
            body = json.dumps(answers.whole(x.dialect, step, x.model)).encode()
            await x.json(200, body, step.get("headers"))
            return True
        await x.open_stream(step)
        for event in x.events(step):
            await x.chunk(event)
            await asyncio.sleep(step.get("pause_s", 0))
        await x.send(b"0\r\n\r\n")
        return True

    async def do_ok_and_close(self, x: Exchange, step: Step) -> bool:
        """A whole answer that says nothing of the connection's end, and the end."""
        await self.do_ok(x, step)
        return False

    async def do_status(self, x: Exchange, step: Step) -> bool:
        body = answers.error_body(x.dialect, step["status"], step)
        await x.json(step["status"], body, step.get("headers"))
        return True

    async def do_close(self, x: Exchange, step: Step) -> bool:
        return False

    async def do_reset(self, x: Exchange, step: Step) -> bool:
        x.reset()
        return False

    async def do_hang(self, x: Exchange, step: Step) -> bool:
        await asyncio.sleep(3600)
        return False

    async def do_headers_cut(self, x: Exchange, step: Step) -> bool:
        await x.head(200, {"content-type": "application/json", "content-length": 1000})
        return False

    async def do_half_headers(self, x: Exchange, step: Step) -> bool:
        await x.send(b"HTTP/1.1 200 OK\r\ncontent-ty")
        return False

    async def do_cut(self, x: Exchange, step: Step) -> bool:
        """A stream that ends after `events` events (1: the role only), by FIN or RST."""
        await x.open_stream(step)
        for event in x.events(step)[: step.get("events", 2)]:
            await x.chunk(event)
        if step.get("reset"):
            x.reset()
        elif step.get("clean"):
            await x.send(b"0\r\n\r\n")
        return bool(step.get("clean"))

    async def do_error_event(self, x: Exchange, step: Step) -> bool:
        await x.open_stream(step)
        for event in x.events(step)[: step.get("events", 0)]:
            await x.chunk(event)
        await x.chunk(answers.error_event(x.dialect, step))
        await x.send(b"0\r\n\r\n")
        return True

    async def do_empty(self, x: Exchange, step: Step) -> bool:
        return await self.do_ok(x, {**step, "chunks": []})

    async def do_html(self, x: Exchange, step: Step) -> bool:
        page = b"<!DOCTYPE html><html><body>captive portal</body></html>"
        await x.head(200, {"content-type": "text/html", "content-length": len(page)})
        await x.send(page)
        return True

    async def do_malformed(self, x: Exchange, step: Step) -> bool:
        if x.stream:
            await x.open_stream(step)
            await x.chunk(b'data: {"choices": [{"delta": {"content": \n\n')
            await x.send(b"0\r\n\r\n")
        else:
            await x.json(200, b'{"choices": [{"message": ')
        return True

    async def do_keepalives(self, x: Exchange, step: Step) -> bool:
        await x.open_stream(step)
        while True:
            await x.chunk(b": keep-alive\n\n")
            await asyncio.sleep(step.get("pause_s", 0.02))

    async def do_blanks(self, x: Exchange, step: Step) -> bool:
        """A whole answer's keep-alives, blank lines, `count` of them (or for ever), then it."""
        headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
        await x.head(200, headers)
        for _ in range(step.get("count", 100_000)):
            await x.chunk(b"\n")
            await asyncio.sleep(step.get("pause_s", 0.02))
        await x.chunk(json.dumps(answers.whole(x.dialect, step, x.model)).encode())
        await x.send(b"0\r\n\r\n")
        return True

    async def do_continues(self, x: Exchange, step: Step) -> bool:
        for _ in range(step.get("count", 100_000)):
            await x.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(3600)
        return False

    async def do_stall(self, x: Exchange, step: Step) -> bool:
        await x.open_stream(step)
        for event in x.events(step)[: step.get("events", 0)]:
            await x.chunk(event)
        await asyncio.sleep(3600)
        return False

    async def do_gzip(self, x: Exchange, step: Step) -> bool:
        body = gzip.compress(b"a" * step.get("bytes", 100_000))
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        await x.head(200, {**headers, "content-length": len(body)})
        await x.send(body)
        return True

    async def do_long_line(self, x: Exchange, step: Step) -> bool:
        await x.open_stream(step)
        await x.chunk(b'data: {"x": "')
        for _ in range(step.get("mib", 9)):
            await x.chunk(b"a" * 2**20)
        await asyncio.sleep(3600)
        return False

    async def do_long_header(self, x: Exchange, step: Step) -> bool:
        await x.head(200, {"x-long": "a" * step.get("bytes", 100_000)})
        await asyncio.sleep(3600)
        return False

    async def do_endless_headers(self, x: Exchange, step: Step) -> bool:
        await x.send(b"HTTP/1.1 200 OK\r\n")
        for number in range(step.get("count", 100_000)):
            await x.send(f"x-{number}: 1\r\n".encode())
        await asyncio.sleep(3600)
        return False

    async def do_long_body(self, x: Exchange, step: Step) -> bool:
        size = step.get("mib", 65)
        await x.head(200, {"content-type": "application/json", "content-length": size * 2**20})
        for _ in range(size):
            await x.send(b" " * 2**20)
        return True

    async def do_redirect(self, x: Exchange, step: Step) -> bool:
        await x.head(step.get("status", 307), {"location": step["to"], "content-length": 0})
        return True

    async def do_drip(self, x: Exchange, step: Step) -> bool:
        await x.open_stream(step)
        for byte in b"".join(x.events(step)):
            await x.chunk(bytes([byte]))
            await asyncio.sleep(step.get("pause_s", 0))
        await x.send(b"0\r\n\r\n")
        return True

    async def do_short_body(self, x: Exchange, step: Step) -> bool:
        body = json.dumps(answers.whole(x.dialect, step, x.model)).encode()
        await x.json(200, body, {"content-length": len(body) + 10})
        return False

    async def do_extra_body(self, x: Exchange, step: Step) -> bool:
        body = json.dumps(answers.whole(x.dialect, step, x.model)).encode()
        await x.json(200, body + b"HTTP/1.1 200 OK\r\n\r\n", {"content-length": len(body)})
        return True

    async def do_bad_chunk(self, x: Exchange, step: Step) -> bool:
        await x.open_stream(step)
        await x.send(b"zz\r\nnot a chunk\r\n")
        return False

    async def do_flood(self, x: Exchange, step: Step) -> bool:
        """A stream of `mib` MiB as fast as it is taken, then its end."""
        await x.open_stream(step)
        events = x.events({**step, "text": "a" * 16_000})
        for _ in range(step.get("mib", 64) * 64):
            await x.chunk(events[1])
        for event in events[2:]:
            await x.chunk(event)
        await x.send(b"0\r\n\r\n")
        return True

    async def do_raw(self, x: Exchange, step: Step) -> bool:
        """`base64` bytes, then "close", "hang" or "keep"."""
        await x.send(base64.b64decode(step["base64"]))
        if step.get("then", "close") == "hang":
            await asyncio.sleep(3600)
        return step.get("then") == "keep"


class Cloud(Acts):
    """The server: reads requests, records them, plays the script."""

    def __init__(self) -> None:
        self.clear()
        self.open = self.accepted = 0

    def clear(self) -> None:
        self.aborted = 0
        self.scripts: dict[str, list[Step]] = {}
        self.records: list[dict[str, Any]] = []
        self.models: dict[str, list[str]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        self.open += 1
        try:
            while await self.one(reader, writer, number):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        pairs = [line.split(": ", 1) for line in head[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if path.startswith("/_"):
            return await self.control(path, raw, writer)
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = raw.decode("latin-1")
        part = path.split("/")[1]
        record = {
            "part": part,
            "method": method,
            "path": path,
            "headers": headers,
            "body": body,
            "connection": number,
            "ended": "",
            "at": time.time(),
        }
        self.records.append(record)
        exchange = Exchange(writer, record)
        if path.partition("?")[0].endswith("/models") and not self.scripts.get(part):
            ids = [{"id": name} for name in self.models.get(part, [])]
            await exchange.json(200, json.dumps({"object": "list", "data": ids}).encode())
            return True
        return await self.play(exchange, self.next_step(part), reader)

    def next_step(self, part: str) -> Step:
        for name in (part, ""):
            queue = self.scripts.get(name, [])
            if queue:
                step = queue[0]
                step["times"] = step.get("times", 1) - 1
                if step["times"] == 0:
                    queue.pop(0)
                return step
        return {"do": "ok"}

    async def play(self, exchange: Exchange, step: Step, reader: asyncio.StreamReader) -> bool:
        """Perform while watching for the client to leave."""
        acting = asyncio.ensure_future(self.act(exchange, step))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({acting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            gone = not acting.done() or isinstance(acting.exception(), ConnectionError)
            if gone:
                self.aborted += 1
                exchange.record["ended"] = "aborted"
                return False
            exchange.record["ended"] = "served"
            return acting.result()
        finally:
            for task in (acting, leaving):
                task.cancel()
            await asyncio.wait({acting, leaving})

    async def act(self, exchange: Exchange, step: Step) -> bool:
        await asyncio.sleep(step.get("delay_s", 0))
        doing = getattr(self, "do_" + step["do"])
        return bool(await doing(exchange, step))

    async def control(self, path: str, raw: bytes, writer: asyncio.StreamWriter) -> bool:
        given = json.loads(raw) if raw else {}
        answer: Any = {}
        if path == "/_script":
            self.scripts.setdefault(given.get("part", ""), []).extend(given["steps"])
        elif path == "/_models":
            self.models[given["part"]] = given["ids"]
        elif path.startswith("/_requests"):
            part = path.removeprefix("/_requests").strip("/")
            answer = [one for one in self.records if part in ("", one["part"])]
        elif path == "/_state":
            answer = {"open": self.open - 1, "accepted": self.accepted, "aborted": self.aborted}
        elif path == "/_reset":
            self.clear()
        body = json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return True


async def main(port: int, certificate: str = "", key: str = "") -> None:
    context = None
    if certificate:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(
        Cloud().serve, "127.0.0.1", port, ssl=context, backlog=1024, limit=2**20
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate", default="")
    parser.add_argument("--key", default="")
    given = parser.parse_args()
    asyncio.run(main(given.port, given.certificate, given.key))

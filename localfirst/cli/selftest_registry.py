"""
The strangers of the selftest, on loopback: a model registry, and a cloud with one sentence.

    python -m localfirst.cli.selftest_registry STORE

prints `{"registry": PORT, "cloud": PORT}` and serves until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

SENTENCE = "The cloud answers, because this machine cannot."
MODEL = "one-sentence"


class Loopback(BaseHTTPRequestHandler):
    """What both have in common: HTTP/1.1, silence, and whole answers."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send *body* whole."""
        self.send_response(status)
        for name, value in {**headers, "content_length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Registry(Loopback):
    """`/v2/NAMESPACE/MODEL/manifests/TAG` and `…/blobs/DIGEST`, by Range."""

    store: ClassVar[Path]

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """A manifest, a blob or a part of one."""
        parts = self.path.strip("/").split("/")
        if len(parts) != 5 or parts[0] != "v2" or ".." in parts:
            self.answer(404, b"{}")
            return
        _, namespace, model, kind, name = parts
        found = (
            sorted(self.store.glob(f"manifests/*/{namespace}/{model}/{name}"))
            if kind == "manifests"
            else [self.store / "blobs" / name.replace(":", "-")]
        )
        if not found or not found[0].is_file():
            self.answer(404, b"{}")
            return
        self.part(found[0].read_bytes())

    def part(self, data: bytes) -> None:
        """All of *data*, or the range asked for."""
        asked = self.headers.get("range", "").removeprefix("bytes=").split(",")[0]
        first, _, last = asked.partition("-")
        if not first.isdigit() or int(first) >= len(data):
            self.answer(200, data)
            return
        begin, end = int(first), min(int(last) if last.isdigit() else len(data), len(data) - 1)
        place = f"bytes {begin}-{end}/{len(data)}"
        self.answer(206, data[begin : end + 1], content_range=place)


class Cloud(Loopback):
    """OpenAI's `/chat/completions`, with one sentence to say."""

    def do_GET(self) -> None:
        """The list of models."""
        self.answer(200, json.dumps({"data": [{"id": MODEL, "object": "model"}]}).encode())

    def do_POST(self) -> None:
        """The sentence, streamed or whole."""
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if not asked.get("stream"):
            self.answer(200, json.dumps(reply()).encode(), content_type="application/json")
            return
        events = [chunk({"role": "assistant", "content": word}) for word in words()]
        events += [chunk({}, "stop"), "[DONE]"]
        body = "".join(f"data: {event}\n\n" for event in events).encode()
        self.answer(200, body, content_type="text/event-stream")


def words() -> list[str]:
    """The sentence in the pieces in which it is streamed."""
    first, *rest = SENTENCE.split(" ")
    return [first, *(f" {word}" for word in rest)]


def chunk(delta: dict[str, str], reason: str | None = None) -> str:
    """One event of the stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    about = {"id": "selftest", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    return json.dumps({**about, "choices": [choice]})


def reply() -> dict[str, object]:
    """The whole answer."""
    message = {"role": "assistant", "content": SENTENCE}
    return {
        "id": "selftest",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9},
    }


def serve(handler: type[Loopback]) -> int:
    """Start one of them on a port of its own; returns the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def main(words: list[str]) -> None:
    """Serve until nobody is at the other end of stdin."""
    Registry.store = Path(words[0])
    print(json.dumps({"registry": serve(Registry), "cloud": serve(Cloud)}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])

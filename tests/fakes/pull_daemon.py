"""
An Ollama daemon that can only pull, as a program: it says what its script tells it to.

    python tests/fakes/pull_daemon.py '{"tries": [[STEP…], …], "lists": {"tiny:latest": DIGEST}}'

prints its port. The n-th `POST /api/pull` plays the n-th try (the last one again and
again); a step is a line to send, `{"wait": true}` (silence until the client goes),
`{"cut": true}` (an abrupt end) or, as the first, `{"http": 500, "body": "…"}`. Serves until
its standard input ends; `GET /fake` tells the bodies that were posted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import urlopen


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: dict[str, Any]
    posted: list[dict[str, Any]]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        listed = self.script.get("lists", {})
        tags = [{"name": name, "digest": digest} for name, digest in listed.items()]
        answers = {
            "/api/tags": {"models": tags},
            "/fake": self.posted,
        }
        self.whole(200, json.dumps(answers[self.path]).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.posted.append(body)
        tries = self.script["tries"]
        steps = tries[min(len(self.posted), len(tries)) - 1]
        if steps and "http" in steps[0]:
            self.whole(steps[0]["http"], steps[0]["body"].encode())
            return
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for step in steps:
            if isinstance(step, str):
                self.chunk(step.encode() + b"\n")
            elif step.get("wait"):
                self.connection.recv(1)  # until the client hangs up
                self.close_connection = True
                return
            elif step.get("cut"):
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class PullDaemon:
    """A running one, as tests hold it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def posted(self) -> list[dict[str, Any]]:
        with urlopen(f"{self.url}/fake", timeout=5) as answer:
            return json.loads(answer.read())


@contextmanager
def running(
    *tries: list[Any], lists: tuple[str, ...] = (), digests: tuple[str, ...] = ()
) -> Iterator[PullDaemon]:
    """Run the program with a script for a while."""
    listed = dict(zip(lists, digests or [""] * len(lists), strict=True))
    argv = [sys.executable, "-I", __file__, json.dumps({"tries": tries, "lists": listed})]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        try:
            yield PullDaemon(int(child.stdout.readline()))
        finally:
            child.stdin.close()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


if __name__ == "__main__":
    handler = type("Scripted", (Handler,), {"script": json.loads(sys.argv[1]), "posted": []})
    server = Server(("127.0.0.1", 0), handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    sys.stdin.read()

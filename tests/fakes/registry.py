"""
A registry on loopback, as a program: manifests and blobs of a folder, with faults on demand.

    python tests/fakes/registry.py --folder STORE        (STORE is laid out as Ollama's)

prints `{"port": …, "cdn_port": …}` and serves until its standard input ends. Blobs are
answered with a redirect to the second port, as the public registry does. `POST /_control`
with `{"knobs": {…}}` changes behaviour, `GET /_log` tells what was asked.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import random
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

KNOBS: dict[str, Any] = {
    "redirect": 307,  # 0 serves blobs directly
    "redirect_to": "",  # another Location altogether
    "cdn_host": "127.0.0.1",  # Ollama follows only to another host's name: "localhost"
    "auth": "",  # "bearer" or "basic"
    "realm": "",  # where tokens are, instead of here
    "manifest_status": 0,
    "manifest_body": "",
    "manifest_times": -1,  # how often the manifest fault happens; -1 is always
    "registry_status": 0,  # for blobs, at the registry
    "registry_times": -1,
    "cdn_status": 0,
    "cdn_times": -1,
    "retry_after": "",
    "expire_after": 0,  # requests that one signed URL is good for
    "ignore_range": False,
    "stall_after": -1,  # bytes of a body, then silence
    "stall_times": -1,
    "cut_after": -1,  # bytes of a body, then an abrupt end
    "cut_times": -1,
    "cut_share": 0.0,  # of all bodies, cut at a random place
    "corrupt_at": -1,  # offset in the largest blob whose byte is flipped
    "corrupt_times": -1,
    "wrong_length": 0,  # added to Content-Length
    "wrong_start": 0,  # added to Content-Range's start
    "wrong_total": 0,  # added to Content-Range's total
    "start_digits": 0,  # Content-Range's start with so many zeros before it
    "rate": 0,  # bytes a second and connection
    "slow_first": 0,  # bytes a second of the first body only
    "latency_s": 0.0,
    "down": False,  # bodies under way end at once, and everything else is a 503
    "no_head": False,  # HEAD of a manifest tells no digest
}
CHUNK = 64 * 2**10


class State:
    """What the two servers share."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.knobs = dict(KNOBS)
        self.log: list[dict[str, Any]] = []
        self.signatures: dict[str, int] = {}
        self.serial = 0
        self.bodies = 0
        self.random = random.Random(seed)
        self.cdn_port = 0
        self.release = threading.Event()

    def strikes(self, knob: str, times: str) -> bool:
        """Whether a fault that may be limited in number happens now."""
        with self.lock:
            set_at_all = self.knobs[knob] != KNOBS[knob]
            if not set_at_all or self.knobs[times] == 0:
                return False
            if self.knobs[times] > 0:
                self.knobs[times] -= 1
            return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State
    server_name = "registry"
    # With Nagle's algorithm a header and its body cost a delayed acknowledgement each.
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def note(self, status: int) -> None:
        entry = {
            "server": self.server_name,
            "method": self.command,
            "path": self.path,
            "range": self.headers.get("range", ""),
            "authorization": self.headers.get("authorization", ""),
            "status": status,
        }
        with self.state.lock:
            if not self.path.startswith("/_"):
                self.state.log.append(entry)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.note(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fault(self, knob: str, times: str) -> bool:
        """Answer with a fault's status if it strikes."""
        if not self.state.strikes(knob, times):
            return False
        extra = {"retry_after": self.state.knobs["retry_after"]}
        self.answer(
            self.state.knobs[knob],
            b'{"errors":[{"code":"FAULT"}]}',
            **(extra if extra["retry_after"] else {}),
        )
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        with self.state.lock:
            if body.get("reset"):
                self.state.knobs = dict(KNOBS)
                self.state.log.clear()
                self.state.signatures.clear()
                self.state.bodies = 0
            self.state.knobs.update(body.get("knobs", {}))
        self.state.release.set()
        self.state.release = threading.Event()
        self.answer(200, b"{}")

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/_log":
            body = json.dumps(self.state.log).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if self.state.knobs["latency_s"]:
            time.sleep(self.state.knobs["latency_s"])
        parts = path.strip("/").split("/")
        if self.state.knobs["down"]:
            self.answer(503)
        elif path == "/token":
            self.token()
        elif self.server_name == "cdn":
            self.cdn(parts[-1])
        elif len(parts) == 5 and parts[0] == "v2" and self.allowed():
            if parts[3] == "manifests":
                self.manifest(parts)
            else:
                self.blob(parts[4])
        elif len(parts) != 5:
            self.answer(404)

    # --- the registry ------------------------------------------------------------------

    def allowed(self) -> bool:
        wanted = self.state.knobs["auth"]
        given = self.headers.get("authorization", "")
        if wanted == "bearer" and given != "Bearer good-token":
            host = self.headers["host"]
            realm = self.state.knobs["realm"] or f"http://{host}/token"
            challenge = f'Bearer realm="{realm}",service="{host}",scope="repository:tiny:pull"'
            self.answer(401, b"{}", www_authenticate=challenge)
            return False
        if wanted == "basic" and given != "Basic " + base64.b64encode(b"me:secret").decode():
            self.answer(401, b"{}", www_authenticate='Basic realm="here"')
            return False
        return True

    def token(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        good = {"nonce", "service", "scope", "ts"} <= set(query)
        body = b'{"token":"good-token"}' if good else b'{"error":"bad"}'
        self.answer(200 if good else 400, body)

    def manifest(self, parts: list[str]) -> None:
        if self.fault("manifest_status", "manifest_times"):
            return
        found = sorted(self.state.folder.glob(f"manifests/*/{parts[1]}/{parts[2]}/{parts[4]}"))
        if not found:
            self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            return
        body = self.state.knobs["manifest_body"].encode() or found[0].read_bytes()
        headers = {"content_type": "application/vnd.docker.distribution.manifest.v2+json"}
        if self.command == "HEAD" and not self.state.knobs["no_head"]:
            headers["ollama_content_digest"] = hashlib.sha256(body).hexdigest()
        self.answer(200, body, **headers)

    def blob(self, digest: str) -> None:
        if self.fault("registry_status", "registry_times"):
            return
        path = self.state.folder / "blobs" / digest.replace(":", "-")
        if not path.is_file():
            self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
        elif not self.state.knobs["redirect"]:
            self.body(path)
        else:
            with self.state.lock:
                self.state.serial += 1
                signature = f"s{self.state.serial}"
                self.state.signatures[signature] = 0
            host = self.state.knobs["cdn_host"]
            target = f"http://{host}:{self.state.cdn_port}/r2/{path.name}?sig={signature}"
            where = self.state.knobs["redirect_to"] or target
            self.answer(self.state.knobs["redirect"], location=where)

    # --- the blobs' host ---------------------------------------------------------------

    def cdn(self, name: str) -> None:
        if self.fault("cdn_status", "cdn_times"):
            return
        signature = parse_qs(urlsplit(self.path).query).get("sig", [""])[0]
        with self.state.lock:
            uses = self.state.signatures.get(signature)
            if uses is not None:
                self.state.signatures[signature] = uses + 1
        limit = self.state.knobs["expire_after"]
        if uses is None or (limit and uses >= limit):
            self.answer(403, b"<Error><Code>ExpiredToken</Code></Error>")
            return
        self.body(self.state.folder / "blobs" / name)

    def body(self, path: Path) -> None:
        """A blob, or the range asked for, with whatever faults are set."""
        knobs, size = self.state.knobs, path.stat().st_size
        asked = self.headers.get("range", "")
        start, end = 0, size
        ranged = asked.startswith("bytes=") and not knobs["ignore_range"]
        if ranged:
            first, _, last = asked[6:].partition("-")
            start, end = int(first), min(size, int(last) + 1 if last else size)
            if start >= size:
                self.answer(416, content_range=f"bytes */{size}")
                return
        self.note(206 if ranged else 200)
        self.send_response(206 if ranged else 200)
        self.send_header(
            "content-length", str(end - start + (knobs["wrong_length"] if end - start > 1 else 0))
        )
        if ranged:
            shown = "0" * knobs["start_digits"] + str(start + knobs["wrong_start"])
            total = size + knobs["wrong_total"]
            self.send_header("content-range", f"bytes {shown}-{end - 1}/{total}")
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.pour(path, start, end)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    def pour(self, path: Path, start: int, end: int) -> None:
        knobs, state = self.state.knobs, self.state
        large = end - start > 1
        with state.lock:
            number = state.bodies
            state.bodies += large
            lucky = state.random.random()
            where = state.random.random()
        rate = (
            knobs["slow_first"] if large and not number and knobs["slow_first"] else knobs["rate"]
        )
        stop, silent = end, False
        if large and self.cuts("stall", end - start):
            stop, silent = start + knobs["stall_after"], True
        if large and self.cuts("cut", end - start):
            stop = start + knobs["cut_after"]
        if large and lucky < knobs["cut_share"]:
            stop = start + int((end - start) * where)
        bad = knobs["corrupt_at"]
        flips = large and start <= bad < stop and state.strikes("corrupt_at", "corrupt_times")
        self.send(path, start, stop, rate, bad if flips else -1)
        if silent:
            state.release.wait(60)
        if stop < end or knobs["down"]:
            self.close_connection = True

    def cuts(self, fault: str, length: int) -> bool:
        """Whether a body of *length* is to end early by that fault."""
        after = self.state.knobs[f"{fault}_after"]
        return 0 <= after < length and self.state.strikes(f"{fault}_after", f"{fault}_times")

    def send(self, path: Path, start: int, stop: int, rate: int, bad: int) -> None:
        chunk = CHUNK if not rate else max(1, min(CHUNK, rate // 20))
        began = time.monotonic()
        with path.open("rb") as stream:
            stream.seek(start)
            at = start
            while at < stop and not self.state.knobs["down"]:
                data = stream.read(min(chunk, stop - at))
                if at <= bad < at + len(data):
                    flipped = bytearray(data)
                    flipped[bad - at] ^= 0xFF
                    data = bytes(flipped)
                self.wfile.write(data)
                self.wfile.flush()
                at += len(data)
                if rate:
                    late = began + (at - start) / rate - time.monotonic()
                    time.sleep(max(0.0, late))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


def serve(folder: Path, seed: int, certificate: str) -> None:
    state = State(folder, seed)
    servers = []
    for name in ("registry", "cdn"):
        handler = type(name, (Handler,), {"state": state, "server_name": name})
        server = Server(("127.0.0.1", 0), handler)
        if certificate and name == "registry":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
    state.cdn_port = servers[1].server_address[1]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    ports = {"port": servers[0].server_address[1], "cdn_port": state.cdn_port}
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


# --- for tests ---------------------------------------------------------------------------


class FakeRegistry:
    """A running registry, as tests hold it."""

    def __init__(self, folder: Path, port: int, cdn_port: int) -> None:
        self.folder = folder
        self.port = port
        self.cdn_port = cdn_port
        self.host = f"127.0.0.1:{port}"

    def name(self, model: str = "library/tiny", tag: str = "latest") -> str:
        """A model's name as one types it to pull from here."""
        return f"{self.host}/{model}:{tag}"

    def publish(
        self, name: str = "library/tiny", *, tag: str = "latest", **blobs: bytes
    ) -> dict[str, str]:
        """Offer a model made of *blobs* by kind; returns their digests."""
        blobs.setdefault("config", b'{"model_format":"gguf","model_family":"llama"}')
        digests = {}
        parts = []
        for kind, data in blobs.items():
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            path = self.folder / "blobs" / digest.replace(":", "-")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            media = "application/vnd.ollama.image." + kind
            if kind == "config":
                media = "application/vnd.docker.container.image.v1+json"
            digests[kind] = digest
            parts.append((kind, {"mediaType": media, "digest": digest, "size": len(data)}))
        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": next(part for kind, part in parts if kind == "config"),
            "layers": [part for kind, part in parts if kind != "config"],
        }
        place = self.folder / "manifests" / "registry.ollama.ai" / name / tag
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(json.dumps(document, separators=(",", ":")).encode())
        return digests

    def knobs(self, *, reset: bool = False, **knobs: object) -> None:
        """Change behaviour; *reset* forgets earlier knobs and the log."""
        assert set(knobs) <= set(KNOBS), set(knobs) - set(KNOBS)
        self._call("POST", "/_control", json.dumps({"reset": reset, "knobs": knobs}))

    def requests(self, server: str = "") -> list[dict[str, Any]]:
        """What was asked so far."""
        log = json.loads(self._call("GET", "/_log"))
        return [entry for entry in log if not server or entry["server"] == server]

    def fetched_bytes(self, digest: str) -> int:
        """The bytes of a blob asked for in ranges longer than a probe (cut ones count whole)."""
        total = 0
        for entry in self.requests():
            if digest[7:] in entry["path"] and entry["status"] == 206:
                first, last = entry["range"].removeprefix("bytes=").split("-")
                total += int(last) - int(first) + 1 if last != first else 0
        return total

    def _call(self, method: str, path: str, body: str | None = None) -> str:
        # The blobs' door has no TLS and takes control requests just as well.
        connection = http.client.HTTPConnection("127.0.0.1", self.cdn_port, timeout=10)
        try:
            connection.request(method, path, body)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


@contextmanager
def running(folder: Path, *, seed: int = 0, certificate: str = "") -> Iterator[FakeRegistry]:
    """Run the program on *folder* for a while; with a certificate's file its door speaks TLS."""
    argv = [sys.executable, "-I", __file__, "--folder", str(folder), "--seed", str(seed)]
    argv += ["--certificate", certificate]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        ports = json.loads(child.stdout.readline())
        try:
            yield FakeRegistry(folder, ports["port"], ports["cdn_port"])
        finally:
            child.stdin.close()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--certificate", default="")
    options = parser.parse_args()
    serve(options.folder, options.seed, options.certificate)

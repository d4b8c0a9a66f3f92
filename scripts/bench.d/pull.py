"""
How fast a pull is, its hash included: against `curl` then `openssl dgst -sha256`.

    python scripts/bench.d/pull.py [--size 1G] [--rounds 5] [--link]

A blob of random bytes is served on loopback by nginx if it is installed, else by a small
sendfile server; each round runs both sides once, in turn, on files that were removed
before. Prints the medians, their ratio (budget: ≥ 1.0) and the peak memory of our process
(budget: < 80 MB). `--link` measures 32 MB through a link of 200 ms and 2 % cut connections
against a single `curl --retry` (budget: ≥ 3 times as fast).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "tests" / "fakes" / "pulling.py"
CHUNK = 2**20


# --- the other side ----------------------------------------------------------------------


def make_store(folder: Path, size: int) -> tuple[str, str]:
    """A registry's folder with one model of *size* random bytes; its digest and blob path."""
    name = folder / "v2" / "library" / "big"
    (name / "blobs").mkdir(parents=True)
    (name / "manifests").mkdir()
    sha = hashlib.sha256()
    raw = folder / "raw"
    with raw.open("wb") as stream:
        left = size
        while left:
            data = random.randbytes(min(CHUNK, left))
            sha.update(data)
            stream.write(data)
            left -= len(data)
    digest = "sha256:" + sha.hexdigest()
    raw.rename(name / "blobs" / digest)
    config = b"{}"
    config_digest = "sha256:" + hashlib.sha256(config).hexdigest()
    (name / "blobs" / config_digest).write_bytes(config)
    layer = "application/vnd.ollama.image.model"
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": "x", "digest": config_digest, "size": len(config)},
        "layers": [{"mediaType": layer, "digest": digest, "size": size}],
    }
    (name / "manifests" / "latest").write_text(json.dumps(manifest))
    return digest, f"/v2/library/big/blobs/{digest}"


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, str]]:
    """Serve *folder*; yields the port and what serves."""
    nginx = shutil.which("nginx")
    if nginx is None:
        with sendfile_server(folder) as port:
            yield port, "a sendfile server in Python"
        return
    port = free_port()
    config = folder / "nginx.conf"
    # As root its workers would become nobody, who may not read a temporary folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr error; worker_processes 1;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; server {{ listen 127.0.0.1:{port};"
        f" root {folder}; }} }}\n"
    )
    with subprocess.Popen([nginx, "-p", str(folder), "-c", str(config)]) as child:
        wait_for(port)
        try:
            yield port, "nginx"
        finally:
            child.terminate()


@contextmanager
def sendfile_server(folder: Path) -> Iterator[int]:
    """A server that does nothing but ranges, in a process of its own."""
    argv = [sys.executable, __file__, "--serve", str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.stdin.close()


def serve(folder: Path) -> None:
    """The program behind `sendfile_server`."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=talk, args=(connection, folder), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def talk(connection: socket.socket, folder: Path) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as lines:
        try:
            while request := lines.readline():
                answer(connection, lines, folder / request.split()[1].decode().lstrip("/"))
        except OSError:
            return


def answer(connection: socket.socket, lines: IO[bytes], path: Path) -> None:
    """One request: the file, or the range of it that is asked for."""
    size = path.stat().st_size
    start, end, status, headers = 0, size, "200 OK", ""
    while (line := lines.readline()) not in {b"\r\n", b""}:
        if line.lower().startswith(b"range: bytes="):
            first, _, last = line[13:].strip().partition(b"-")
            start, end = int(first), int(last) + 1 if last else size
            status = "206 Partial Content"
            headers = f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
    headers += f"Content-Length: {end - start}\r\n"
    connection.sendall(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode())
    with path.open("rb") as stream:
        while start < end:
            start += os.sendfile(
                connection.fileno(), stream.fileno(), start, min(end - start, CHUNK)
            )


# --- a bad link --------------------------------------------------------------------------


@contextmanager
def bad_link(port: int, *, delay_s: float, cut_share: float, rate: int) -> Iterator[int]:
    """
    A relay to *port* that answers late, at *rate* bytes a second and connection, and cuts.

    A connection is cut with a chance of *cut_share* in each second of transfer.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    rng = random.Random(1)

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as far:
            threading.Thread(target=requests, args=(client, far), daemon=True).start()
            piece = max(1, rate // 20)
            try:
                while data := far.recv(piece):
                    time.sleep(len(data) / rate)
                    if rng.random() < cut_share * len(data) / rate:
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    client.sendall(data)
            except OSError:
                return

    def requests(client: socket.socket, far: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                time.sleep(delay_s)  # a round trip before each answer
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=relay, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]


# --- measuring ---------------------------------------------------------------------------


def ours(folder: Path, port: int) -> float:
    """Seconds to pull the model into an empty store, hashed, flushed and visible."""
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    argv = [sys.executable, str(CHILD), str(folder), f"127.0.0.1:{port}/library/big"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def curl(folder: Path, url: str, *more: str) -> float:
    """Seconds to fetch the blob with curl and hash it with openssl."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target = folder / "blob"
    began = time.perf_counter()
    subprocess.run(["curl", "-sS", *more, "-o", str(target), url], check=True)
    subprocess.run(["openssl", "dgst", "-sha256", str(target)], check=True, capture_output=True)
    return time.perf_counter() - began


def fast(size: int, rounds: int, where: Path) -> None:
    """A fast mirror."""
    _, path = make_store(where / "registry", size)
    mine, theirs = [], []
    with server(where / "registry") as (port, what):
        for _ in range(rounds):
            theirs.append(curl(where / "curl", f"http://127.0.0.1:{port}{path}"))
            shutil.rmtree(where / "curl")
            mine.append(ours(where / "store", port))
            shutil.rmtree(where / "store")
    a, b = statistics.median(mine), statistics.median(theirs)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    report = {
        "server": what,
        "size_mb": size // 10**6,
        "ours_s": round(a, 3),
        "curl_openssl_s": round(b, 3),
        "ratio": round(b / a, 2),
        "ours_mb_s": round(size / a / 1e6),
        "peak_mb_of_any_child": round(peak),
    }
    print(json.dumps(report))


def slow(where: Path) -> None:
    """A long and lossy link."""
    size = 32 * 10**6
    _, path = make_store(where / "registry", size)
    # curl goes on with -C - where it was cut.
    more = ("--retry", "100", "--retry-all-errors", "--retry-delay", "1", "-C", "-")
    with (
        server(where / "registry") as (port, _),
        bad_link(port, delay_s=0.2, cut_share=0.02, rate=2_000_000) as bad,
    ):
        theirs = curl(where / "curl", f"http://127.0.0.1:{bad}{path}", *more)
        mine = ours(where / "store", bad)
    report = {"link": "200 ms, 2 %/s cut, 2 MB/s a connection", "ours_s": round(mine, 2)}
    print(
        json.dumps({**report, "curl_retry_s": round(theirs, 2), "ratio": round(theirs / mine, 2)})
    )


def wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the server did not come up")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def size_of(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1] in units else int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=size_of, default=2**30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--link", action="store_true")
    parser.add_argument("--serve", type=Path)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "registry").mkdir()
        if options.link:
            slow(Path(folder))
        else:
            fast(options.size, options.rounds, Path(folder))

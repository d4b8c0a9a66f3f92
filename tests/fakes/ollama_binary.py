"""
A stand-in for the `ollama` program: real processes that misbehave on demand.

`install(folder, …)` writes an executable `ollama` with its faults built in, because the
supervisor starts it as `ollama serve` with a cleaned environment. Every start is noted in
`starts.jsonl` beside it. Only a few modules are imported, so that a start takes 30 ms.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

VERSION = "0.33.0"


def install(folder: Path, **faults: Any) -> Path:
    """
    Write the program into *folder*; later calls replace its faults.

    Faults: exit_code (leave at once), say (a last line on stderr), never_ready (accept,
    do not answer), ready_after_s, die_after_requests (SIGKILL itself while it answers the
    n-th generation), word_s (before each word), die_after_s, ignore_sigterm, end_s (from
    SIGTERM to its end), grandchild ("group" or "session"), noise_bytes (on stderr), html
    (answer as some other program), deaf_s (at SIGUSR1 refuse every connection, and end that
    much later; at SIGUSR2 listen again), chatter (write a line for each request, and die of a
    log that is gone, as Go programs do), first (the faults hold for the first n starts only).
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ollama"
    replacement = folder / "ollama.new"
    replacement.write_text(
        f"#!{sys.executable} -SE\n"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import ollama_binary; ollama_binary.main({str(folder)!r}, {faults!r})\n"
    )
    replacement.chmod(0o755)
    replacement.replace(program)
    return program


def starts(folder: Path) -> list[dict[str, Any]]:
    """Every start so far: pid, host, names in the environment."""
    journal = folder / "starts.jsonl"
    return (
        [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    )


def main(folder: str, faults: dict[str, Any]) -> None:
    count = note(folder)
    if count > faults.get("first", count):
        faults = {}
    if faults.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: end(Path(folder), faults.get("end_s", 0)))
    if (mode := faults.get("grandchild")) is not None:
        grandchild(folder, mode)
    if noise := faults.get("noise_bytes"):
        threading.Thread(target=make_noise, args=(Path(folder), noise), daemon=True).start()
    if "exit_code" in faults:
        sys.stderr.write(faults.get("say", "") + "\n")
        sys.stderr.flush()
        os._exit(faults["exit_code"])
    if after := faults.get("die_after_s"):
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    serve(faults)


def end(folder: Path, after_s: float) -> None:
    (folder / "ending").touch()
    time.sleep(after_s)
    os._exit(0)


def note(folder: str) -> int:
    line = {"pid": os.getpid(), "host": os.environ.get("OLLAMA_HOST"), "names": sorted(os.environ)}
    journal = Path(folder) / "starts.jsonl"
    with journal.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return len(journal.read_text().splitlines())


def grandchild(folder: str, mode: str) -> None:
    """A runner: it is named as the real one and holds our pipes."""
    runner = Path(folder) / "llama-server"
    if not runner.exists():
        runner.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(runner), "300"], start_new_session=mode == "session")
    sys.stderr.write(f"runner {child.pid}\n")
    sys.stderr.flush()


def make_noise(folder: Path, size: int) -> None:
    block = b"n" * 1023 + b"\n"
    for _ in range(size // 1024):
        os.write(2, block)
    (folder / "noised").touch()


def serve(faults: dict[str, Any]) -> None:
    listener = listening()
    say_listening(listener)
    if wait := faults.get("ready_after_s"):
        time.sleep(wait)
    held: list[socket.socket] = []
    state = {"generations": 0}
    door = Door(listener, faults.get("deaf_s", 0))
    while True:
        try:
            connection, _ = door.listener.accept()
        except OSError:  # the door is shut
            time.sleep(0.005)
            continue
        if faults.get("never_ready"):
            held.append(connection)
            continue
        threading.Thread(target=talk, args=(connection, faults, state), daemon=True).start()


def listening() -> socket.socket:
    host, _, port = os.environ["OLLAMA_HOST"].rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except OSError:
        sys.stderr.write(f"Error: listen tcp {host}:{port}: bind: address already in use\n")
        sys.stderr.flush()
        os._exit(1)
    listener.listen(128)
    return listener


def say_listening(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    sys.stderr.write(f"Listening on {host}:{port} (version {VERSION})\n")
    sys.stderr.flush()


class Door:
    """The listening socket, shut by SIGUSR1 and opened again by SIGUSR2."""

    def __init__(self, listener: socket.socket, deaf_s: float) -> None:
        self.listener = listener
        self.end: threading.Timer | None = None
        self.deaf_s = deaf_s
        signal.signal(signal.SIGUSR1, lambda *_: self.shut())
        signal.signal(signal.SIGUSR2, lambda *_: self.open())

    def shut(self) -> None:
        self.listener.close()
        self.end = threading.Timer(self.deaf_s, os._exit, (0,))
        self.end.start()

    def open(self) -> None:
        if self.end is not None:
            self.end.cancel()
        self.listener = listening()


def talk(connection: socket.socket, faults: dict[str, Any], state: dict[str, int]) -> None:
    with connection, connection.makefile("rb") as reader:
        while head := read_head(reader):
            method, path, length = head
            reader.read(length)
            if faults.get("chatter"):
                chatter(method, path)
            if faults.get("html"):
                reply(connection, method, b"<html>It works!</html>", "text/html")
            elif path == "/":
                reply(connection, method, b"Ollama is running", "text/plain; charset=utf-8")
            elif path == "/api/version":
                reply(connection, method, json.dumps({"version": VERSION}).encode())
            elif path == "/api/chat":
                generate(connection, faults, state)
            elif path in {"/api/tags", "/api/ps"}:
                reply(connection, method, json.dumps({"models": listed(path)}).encode())
            else:
                reply(connection, method, b'{"error":"not here"}', status="404 Not Found")


def chatter(method: str, path: str) -> None:
    """As Go: a write to a broken pipe ends the program if it is standard error's."""
    try:
        os.write(2, f"[GIN] {method} {path}\n".encode())
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGKILL)


def listed(path: str) -> list[dict[str, Any]]:
    entry = {
        "name": "tiny:latest",
        "model": "tiny:latest",
        "size": 469624,
        "digest": "e59b7c5d6d0a446a49943ebfabef6e7166587c90ba583edc46ad37b736843eb1",
        "details": {"format": "gguf", "family": "llama", "context_length": 2048},
    }
    return [entry | {"capabilities": ["completion"]}] if path == "/api/tags" else []


def read_head(reader: Any) -> tuple[str, str, int] | None:
    first = reader.readline().decode().split()
    if len(first) < 3:
        return None
    length = 0
    while (line := reader.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return first[0], first[1], length


def reply(
    connection: socket.socket,
    method: str,
    body: bytes,
    kind: str = "application/json; charset=utf-8",
    *,
    status: str = "200 OK",
) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + (b"" if method == "HEAD" else body))


def generate(connection: socket.socket, faults: dict[str, Any], state: dict[str, int]) -> None:
    state["generations"] += 1
    head = ("HTTP/1.1 200 OK", "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
    stamp = "2026-01-01T00:00:01.219511413Z"
    for word in ("one", " two", " three"):
        time.sleep(faults.get("word_s", 0))
        chunk(
            connection,
            {
                "model": "tiny",
                "created_at": stamp,
                "message": {"role": "assistant", "content": word},
                "done": False,
            },
        )
        if state["generations"] == faults.get("die_after_requests"):
            os.kill(os.getpid(), signal.SIGKILL)
    chunk(
        connection,
        {
            "model": "tiny",
            "created_at": stamp,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 4,
            "eval_count": 3,
        },
    )
    connection.sendall(b"0\r\n\r\n")


def chunk(connection: socket.socket, line: dict[str, Any]) -> None:
    data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

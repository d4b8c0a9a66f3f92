"""
A web proxy, as a program: CONNECT and plain GETs, with a password if asked for.

    python tests/fakes/connect_proxy.py TARGET_PORT [USER:PASSWORD]

prints its port; whatever host is asked for is reached at 127.0.0.1:TARGET_PORT. Each
request line is printed. Serves until its standard input ends.
"""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def talk(client: socket.socket, port: int, login: str) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        more = client.recv(65536)
        if not more:
            client.close()
            return
        head += more
    line = head.split(b"\r\n")[0].decode()
    print(line, flush=True)
    wanted = b"basic " + base64.b64encode(login.encode()).lower()
    if login and wanted not in head.lower():
        client.sendall(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n"
            b'Proxy-Authenticate: Basic realm="x"\r\nConnection: close\r\n\r\n'
        )
        client.close()
        return
    far = socket.create_connection(("127.0.0.1", port))
    if line.startswith("CONNECT"):
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        method, url, version = line.split(" ")
        path = "/" + url.split("/", 3)[3]
        far.sendall(head.replace(line.encode(), f"{method} {path} {version}".encode(), 1))
    threading.Thread(target=copy, args=(client, far), daemon=True).start()
    copy(far, client)


@contextmanager
def running(target_port: int, login: str = "") -> Iterator[tuple[str, list[str]]]:
    """Run the program; yields its URL and the list of request lines so far."""
    argv = [sys.executable, "-I", __file__, str(target_port), login]
    lines: list[str] = []
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        port = int(child.stdout.readline())
        reader = threading.Thread(target=lines.extend, args=(child.stdout,), daemon=True)
        reader.start()
        at = f"{login}@" if login else ""
        try:
            yield f"http://{at}127.0.0.1:{port}", lines
        finally:
            child.stdin.close()
            child.wait(10)
            reader.join(10)


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            arguments = (client, int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
            threading.Thread(target=talk, args=arguments, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()

"""The guard of `doctor --offline`: in a process of its own, every way out is really tried."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# 192.0.2.0/24 and 2001:db8::/32 are nobody's (RFC 5737, RFC 3849); `.invalid` no name (RFC 6761).
WAYS_OUT = {
    "connect": "socket.create_connection(('192.0.2.1', 80), timeout=2)",
    "connect without raising": "raised(socket.socket().connect_ex(('192.0.2.1', 80)))",
    "version 6": "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 443, 0, 0))",
    "a datagram": "udp().sendto(b'x', ('192.0.2.1', 53))",
    "a message": "udp().sendmsg([b'x'], [], 0, ('192.0.2.1', 53))",
    "all interfaces": "socket.socket().connect(('0.0.0.0', 9))",
    "a name": "socket.getaddrinfo('example.invalid', 443)",
    "an old name": "socket.gethostbyname('example.invalid')",
    "the standard library": "urllib.request.urlopen('http://192.0.2.1/', timeout=2)",
    "an event loop": "asyncio.run(asyncio.open_connection('192.0.2.1', 443))",
    "a client": "httpx.get('http://192.0.2.1/', timeout=2, trust_env=False)",
    "our own client": "asyncio.run(ours('http://192.0.2.1/'))",
}
PROGRAM = """
import asyncio, errno, json, socket, sys, urllib.request
import httpx
from localfirst.cli import offline
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient

def udp(): return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def raised(number):
    if number: raise OSError(number, 'not refused by the guard')
async def ours(url):
    client = UpstreamClient(SystemClock())
    try: await client.send(url, method='GET', connect_s=2)
    finally: await client.aclose()
async def inside(port):
    _, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.close()

ways, port = json.loads(sys.argv[1]), int(sys.argv[2])
offline.cut_off()
said = {}
for name, way in ways.items():
    try:
        eval(way)
        said[name] = 'went out'
    except Exception as error:
        chain = []
        while error is not None:
            chain.append(str(error)); error = error.__cause__ or error.__context__
        said[name] = ' / '.join(chain)
asyncio.run(inside(port))
urllib.request.urlopen(f'http://localhost:{port}/', timeout=5).read()
print(json.dumps(said))
"""


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_every_way_out_is_refused_by_the_guard_and_loopback_is_not(port: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(WAYS_OUT), str(port)],
        capture_output=True,
        timeout=60,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    said = json.loads(ran.stdout)
    assert said.keys() == WAYS_OUT.keys()
    for name, words in said.items():
        assert "the network is cut off by `doctor --offline`" in words, (name, words)

"""The gateway behind a real nginx, with what nginx does unless it is told otherwise."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import house

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or ""
pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is what is asked")

CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen unix:{folder}/nginx;
    location /llm/ {{ proxy_pass {url}/; }}
    location / {{ proxy_pass {url}; proxy_set_header Host $host; }}
  }}
}}
"""
NAME = "llm.example"
HOUSE = """
order = ["scripted"]
[gateway]
hosts = ["llm.example"]
[providers.scripted]
base_url = "{cloud}"
model = "m"
"""


class Through(http.client.HTTPConnection):
    """A client of nginx by its socket's path: it cannot choose a port and say which."""

    def __init__(self, path: Path) -> None:
        super().__init__(NAME, timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def nginx(url: str) -> Iterator[Path]:
    # A socket's path has a hundred bytes, and pytest's folders need most of them.
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "conf").write_text(CONFIG.format(folder=folder, url=url))
        child = subprocess.Popen([NGINX, "-e", "stderr", "-c", str(folder / "conf")])
        try:
            end = time.monotonic() + 10
            while not (folder / "nginx").exists():
                assert child.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            yield folder / "nginx"
        finally:
            child.terminate()
            child.wait(10)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, FakeCloud]]:
    folder = tmp_path_factory.mktemp("house")
    with (
        fake_cloud() as cloud,
        house(folder, config=HOUSE.format(cloud=cloud.base_url())) as at,
        nginx(at.url) as path,
    ):
        yield path, cloud


def ask(path: Path, target: str, body: object = None, **fields: str) -> tuple[int, bytes]:
    connection = Through(path)
    try:
        sent = None if body is None else json.dumps(body)
        headers = {"content-type": "application/json"} if sent else {}
        connection.request("POST" if sent else "GET", target, sent, {**headers, **fields})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("target", ["/llm/v1/chat/completions", "/api/chat"])
def test_a_stream_comes_as_it_is_written(behind: tuple[Path, FakeCloud], target: str) -> None:
    path, cloud = behind
    # It never ends: an nginx that gathers would hand on nothing.
    cloud.script({"do": "stall", "events": 2, "text": "Hello there"})
    connection = Through(path)
    try:
        asked = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        connection.request("POST", target, json.dumps(asked), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200 and b"content" in answer.read1(65536)
    finally:
        connection.close()
    end = time.monotonic() + 10
    while cloud.state()["open"]:
        assert time.monotonic() < end, "the request outlived its client"
        time.sleep(0.01)


@pytest.mark.parametrize("page", ["/llm/ui", "/ui", "/"])
def test_the_page_finds_its_answers_under_a_prefix(
    behind: tuple[Path, FakeCloud], page: str
) -> None:
    path, _ = behind
    status, found = ask(path, page, accept="text/html")
    wanted = re.findall(r'\bask\("([^"]+)"', found.decode())
    assert status == 200 and len(wanted) >= 3
    for one in wanted:
        assert ask(path, urljoin(page, one))[0] == 200, one


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_page_may_ask_where_a_proxy_speaks_tls(
    behind: tuple[Path, FakeCloud], scheme: str
) -> None:
    path, _ = behind
    asked = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    own, other = f"{scheme}://{NAME}", f"{scheme}://{NAME}.evil.example"
    assert ask(path, "/v1/chat/completions", asked, origin=own)[0] == 200
    assert ask(path, "/v1/chat/completions", asked, origin=other)[0] == 403

"""`localfirst serve` on a terminal that is closed, and with a log that nobody reads any more."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from localfirst.engines.launch import free_port
from localfirst.models import toy
from tests.fakes import ollama_binary, registry
from tests.fakes.cloud_process import fake_cloud, with_cloud
from tests.fakes.house import house
from tests.fakes.terminal import LONGEST_S, Terminal, environ, terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")


def listening(shown: Terminal) -> str:
    shown.until("listens on ")
    shown.until("\r\n")
    (url,) = re.findall(r"http://\S+", shown.seen)
    assert httpx.get(f"{url}/localfirst/health").status_code == 200
    return str(url)


def said(log: Path, pattern: str) -> str:
    """What the group of *pattern* is in a log, once it is there."""
    end = time.monotonic() + LONGEST_S
    while not (log.exists() and (found := re.search(pattern, log.read_text()))):
        assert time.monotonic() < end
    return found[1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_closed_terminal_ends_its_gateway(tmp_path: Path, workers: str) -> None:
    with terminal(tmp_path, "serve", "--port", "0", "--workers", workers) as shown:
        url = listening(shown)
        shown.close()
        assert shown.child.wait(LONGEST_S) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_on_a_terminal_the_signal_reads_the_configuration_again(tmp_path: Path) -> None:
    with terminal(tmp_path, "serve", "--port", "0") as shown:
        listening(shown)
        shown.child.send_signal(signal.SIGHUP)
        shown.until("the configuration was read again")
        shown.type("\x03")
        assert shown.end() == 0


def test_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, "serve", "--port", "0", before=["nohup"]) as shown:
        url = said(tmp_path / "nohup.out", r"listens on (\S+)\n")
        shown.close()
        said(tmp_path / "nohup.out", "(the configuration was read again)")
        assert httpx.get(f"{url}/localfirst/health").status_code == 200
        shown.child.terminate()
        assert shown.child.wait(LONGEST_S) == 0


def test_a_log_that_nobody_reads_ends_neither_the_gateway_nor_its_order(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "localfirst", "serve", "--port", "0", "--log-requests"],
        stderr=subprocess.PIPE,
        text=True,
        env=environ(tmp_path),
        cwd=tmp_path,
    )
    try:
        assert child.stderr is not None
        url = child.stderr.readline().split()[-1]
        child.stderr.close()
        with httpx.Client() as client:
            for _ in range(1100):  # more lines than wait for the next tick
                assert client.get(f"{url}/localfirst/health").status_code == 200
        child.terminate()
        assert child.wait(LONGEST_S) == 0
    finally:
        child.kill()
        child.wait(LONGEST_S)


def test_the_limits_of_the_door_are_read_again_too(tmp_path: Path) -> None:
    with fake_cloud() as cloud:
        ladder = with_cloud(tmp_path, cloud).joinpath("config.toml").read_text()
        with house(tmp_path, config=f"{ladder}[gateway]\ndrain_s = 600\n") as at:
            door = "[gateway]\ndrain_s = 0.1\nmax_body_bytes = 2000\n"
            (tmp_path / "config.toml").write_text(ladder + door)
            at.child.send_signal(signal.SIGHUP)
            at.hears("the configuration was read again")
            large = httpx.post(f"{at.url}/api/chat", content=b" " * 5000)
            assert (large.status_code, "body-too-large" in large.text) == (413, True)
            cloud.script("hang")
            host = at.url.removeprefix("http://")
            with socket.create_connection(("127.0.0.1", int(host.partition(":")[2]))) as waits:
                body = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}]}'
                waits.sendall(b"POST /api/chat HTTP/1.1\r\nhost: %s\r\n" % host.encode())
                waits.sendall(b"content-type: application/json\r\n")
                waits.sendall(b"content-length: %d\r\n\r\n" % len(body) + body)
                end = time.monotonic() + LONGEST_S
                while not cloud.requests("cloud"):
                    assert time.monotonic() < end
                assert at.stop() == 0


def test_a_running_gateway_gives_up_no_key_that_its_address_needs(tmp_path: Path) -> None:
    """The check was made at the start only: a key taken away opened the door to everybody."""
    door = '[gateway]\nhost = "0.0.0.0"\n'
    with house(tmp_path, config=f'{door}keys = ["opensesame"]\n') as at:
        for text in (door, '[gateway]\nhost = "127.0.0.1"\n', ""):
            (tmp_path / "config.toml").write_text(text)
            at.said.clear()
            at.child.send_signal(signal.SIGHUP)
            at.hears("not taken over: `gateway.host` is `0.0.0.0`, which others can reach")
            assert httpx.get(f"{at.url}/v1/models").status_code == 401


def test_what_cannot_change_while_it_runs_is_named(tmp_path: Path) -> None:
    with house(tmp_path) as at:
        (tmp_path / "config.toml").write_text("[gateway]\nhost = '0.0.0.0'\nworkers = 3\n")
        at.child.send_signal(signal.SIGHUP)
        at.hears("read again; `gateway.host`, `gateway.workers` can change at the next start only")
        assert httpx.get(f"{at.url}/v1/models").status_code == 200


def test_a_download_outlives_the_configuration_it_began_under(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    with registry.running(tmp_path / "shop") as shop:
        shop.publish(model=bytes(range(256)) * 2**14)
        shop.knobs(rate=400_000)
        allowed = {"LOCALFIRST_PULL_REGISTRIES": shop.host}
        with house(tmp_path, config='local.engine = "none"\n', **allowed) as at:
            pulls = f"{at.url}/localfirst/pulls"
            httpx.post(pulls, json={"model": shop.name()}).raise_for_status()

            def listed(wanted: str, least: int) -> None:
                end = time.monotonic() + LONGEST_S
                while time.monotonic() < end:
                    (found,) = httpx.get(pulls).json()["pulls"]
                    if found["state"] == wanted and found["completed_bytes"] >= least:
                        return
                raise AssertionError(found)

            listed("pulling", 100_000)
            shop.knobs(rate=0)  # for those who ask from now on
            at.child.send_signal(signal.SIGHUP)
            at.hears("the configuration was read again")
            listed("done", 256 * 2**14)


def test_what_is_spent_stays_spent_while_it_is_still_being_answered(tmp_path: Path) -> None:
    """The ledger hears of a request at its end: until then each SIGHUP gave the day anew."""
    config = """
        order = ["groq"]
        local.engine = "none"
        budget.cloud_requests_per_day = 1
        gateway.drain_s = 0.1
        [providers.groq]
        base_url = "BASE_URL"
        model = "m"
    """
    with fake_cloud() as cloud:
        config = config.replace("BASE_URL", cloud.base_url())
        with house(tmp_path, config=config, GROQ_API_KEY="gsk_" + "a1b2c3d4" * 6) as at:
            cloud.script("hang")
            ask = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
            with httpx.Client() as waits, ThreadPoolExecutor(1) as beside:
                hangs = beside.submit(waits.post, f"{at.url}/api/chat", json=ask, timeout=60)
                end = time.monotonic() + LONGEST_S
                while not cloud.requests("cloud"):
                    assert time.monotonic() < end
                at.child.send_signal(signal.SIGHUP)
                at.hears("the configuration was read again")
                refused = httpx.post(f"{at.url}/api/chat", json=ask)
                assert "the day's 1 cloud requests are used" in refused.text
                assert at.stop() == 0
                assert hangs.result().status_code == 503


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_signal_keeps_it_from_ending_what_it_started(tmp_path: Path, again: int) -> None:
    """A second one, while the engine was ended, ended the gateway: its daemon was left."""
    toy.publish(tmp_path / "models")
    ollama_binary.install(tmp_path / "bin", end_s=0.7)
    config = f'local.engine = "ollama"\nlocal.host = "127.0.0.1:{free_port()}"\n'
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with house(tmp_path, config=config, PATH=path) as at:
        ask = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
        httpx.post(f"{at.url}/api/chat", json=ask, timeout=LONGEST_S).raise_for_status()
        (start,) = ollama_binary.starts(tmp_path / "bin")
        at.child.terminate()
        end = time.monotonic() + LONGEST_S
        while not (tmp_path / "bin/ending").exists():
            assert time.monotonic() < end
        at.child.send_signal(again)
        assert at.child.wait(LONGEST_S) == 0
    assert not psutil.pid_exists(start["pid"])
    assert not (tmp_path / "state/ollama.json").exists()

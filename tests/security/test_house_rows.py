"""Rows that need a whole house: `localfirst serve` as a process, clouds and engines behind it."""

from __future__ import annotations

import base64
import copy
import http.client
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from localfirst.models import toy
from localfirst.settings import Secret
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import House, house
from tests.security.attack import CANARY

GROWTH_BYTES = 48 * 2**20
ASKED = {"model": "auto", "messages": [{"role": "user", "content": "lf-prompt-51c0"}]}


def config_for(cloud: FakeCloud) -> str:
    return (
        f'order = ["scripted"]\n[providers.scripted]\nbase_url = "{cloud.base_url()}"\n'
        f'model = "m"\nkeys = ["env:SCRIPTED_KEY"]\n'
    )


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as running:
        yield running


@pytest.fixture
def at(cloud: FakeCloud, tmp_path: Path) -> Iterator[House]:
    """A house whose only cloud has the canary for its key."""
    cloud.reset()
    none = {"LOCALFIRST_LOCAL_ENGINE": "none", "SCRIPTED_KEY": CANARY}
    with house(tmp_path, config=config_for(cloud), **none) as running:
        yield running


def ask(
    at: House,
    body: dict[str, Any] | None = None,
    path: str = "/v1/chat/completions",
    **headers: str,
) -> tuple[int, str]:
    """Status, and everything that came: headers and body."""
    connection = http.client.HTTPConnection(at.url.removeprefix("http://"), timeout=30)
    try:
        fields = {"content-type": "application/json"} | headers
        connection.request("POST" if body else "GET", path, json.dumps(body or ""), fields)
        answer = connection.getresponse()
        said = b""
        try:
            said = answer.read()
        except http.client.IncompleteRead as cut:
            said = cut.partial
        return answer.status, f"{answer.getheaders()} {said.decode('utf-8', 'replace')}"
    finally:
        connection.close()


def resident_bytes(at: House) -> int:
    return int(psutil.Process(at.child.pid).memory_info().rss)


# --- destinations ----------------------------------------------------------------------------


def test_a6_of_a_clients_headers_none_reaches_a_cloud(at: House, cloud: FakeCloud) -> None:
    shown = {
        "authorization": "Bearer theirs",
        "x-api-key": "theirs",
        "cookie": "session=theirs",
        "proxy-authorization": "Basic dGhlaXJz",
        "x-forwarded-for": "10.9.8.7",
        "openai-organization": "theirs",
        "user-agent": "theirs/1",
    }
    assert ask(at, ASKED, **shown)[0] == 200
    (seen,) = [one for one in cloud.requests() if one["method"] == "POST"]
    assert set(seen["headers"]) <= {
        "host", "content-type", "content-length", "accept", "accept-encoding",
        "authorization", "user-agent", "connection",
    }  # fmt: skip
    assert seen["headers"]["authorization"] == f"Bearer {CANARY}"
    assert "theirs" not in str(seen["headers"]) and "10.9.8.7" not in str(seen["headers"])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_s5_a_redirect_is_not_followed_and_carries_nothing(
    status: int, at: House, cloud: FakeCloud
) -> None:
    with fake_cloud() as elsewhere:
        before = elsewhere.state()["accepted"]
        to = elsewhere.base_url() + "/chat/completions"
        cloud.script({"do": "redirect", "status": status, "to": to, "times": -1}, part="cloud")
        assert ask(at, ASKED)[0] in {502, 503}
        assert elsewhere.state()["accepted"] == before + 1, "only this very question"


@pytest.mark.parametrize(
    "address",
    [
        "https://user:word@example.com/v1",
        "https://example.com/v1#part",
        "ftp://example.com/v1",
        "file:///etc/passwd",
        "http://example.com/v1",
        "//example.com/v1",
        "https://",
    ],
)
def test_s6_an_address_that_hides_something_is_a_configuration_error(
    address: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[providers.mine]\nbase_url = "{address}"\nmodel = "m"\n')
    done = subprocess.run(
        [sys.executable, "-m", "localfirst", "serve", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LOCALFIRST_CONFIG": str(file)},
    )
    assert done.returncode == 2
    assert "`providers.mine.base_url`" in done.stderr and "word" not in done.stderr


def test_s7_a_key_for_ollamas_cloud_is_not_shown_to_another_host(tmp_path: Path) -> None:
    with fake_cloud() as pretender:
        variables = {
            "OLLAMA_HOST": pretender.url,
            "OLLAMA_API_KEY": CANARY,
            "GROQ_API_KEY": CANARY + "-groq",
            "LOCALFIRST_ORDER": "local",
        }
        with house(tmp_path, **variables) as at:
            ask(at, ASKED)
            ask(at, path="/api/tags")
        seen = pretender.requests()
        assert seen, "it was spoken to"
        assert CANARY not in json.dumps(seen)


def test_s8_this_machine_is_never_behind_a_proxy(cloud: FakeCloud, tmp_path: Path) -> None:
    cloud.reset()
    nowhere = "http://127.0.0.1:9"
    variables = {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "ALL_PROXY": nowhere}
    variables |= {"http_proxy": nowhere, "https_proxy": nowhere, "SCRIPTED_KEY": "k-1234567"}
    none = {"LOCALFIRST_LOCAL_ENGINE": "none"}
    with house(tmp_path, config=config_for(cloud), **none, **variables) as at:
        assert ask(at, ASKED)[0] == 200


def test_s9_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(
        [*argv, "-keyout", "k.pem", "-out", "c.pem", "-days", "2"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    import ssl

    trusting = ssl.create_default_context(cafile=str(tmp_path / "c.pem"))
    given = ["--certificate", str(tmp_path / "c.pem"), "--key", str(tmp_path / "k.pem")]
    with fake_cloud(*given, context=trusting) as own:
        written = config_for(own).replace("127.0.0.1", "localhost")
        none = {"LOCALFIRST_LOCAL_ENGINE": "none", "SCRIPTED_KEY": CANARY}
        with house(tmp_path, config=written, **none) as at:
            status, said = ask(at, ASKED)
        assert status == 503 and "certificate" in said
        assert own.requests() == []


# --- answers without end ---------------------------------------------------------------------


def test_e6_a_compressed_answer_is_refused_and_never_unpacked(at: House, cloud: FakeCloud) -> None:
    ask(at, ASKED)
    before = resident_bytes(at)
    cloud.script({"do": "gzip", "bytes": 200 * 2**20, "times": -1}, part="cloud")
    assert ask(at, ASKED)[0] in {502, 503}
    assert resident_bytes(at) - before < GROWTH_BYTES


@pytest.mark.parametrize("what", ["long_line", "long_header", "endless_headers", "long_body"])
def test_e7_an_answer_without_end_is_cut_and_costs_little(
    what: str, at: House, cloud: FakeCloud
) -> None:
    ask(at, ASKED)
    before = resident_bytes(at)
    cloud.script({"do": what, "times": -1}, part="cloud")
    status, _ = ask(at, {**ASKED, "stream": what == "long_line"})
    assert status in {502, 503}
    assert resident_bytes(at) - before < GROWTH_BYTES + 64 * 2**20


# --- secrets ---------------------------------------------------------------------------------


def test_k1_a_secret_shows_itself_in_no_way_of_printing() -> None:
    secret = Secret(CANARY, "env:SCRIPTED_KEY")
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{secret!s:>20}"]
    shown.append(repr({"key": [secret]}))
    for way in (msgspec.json.encode, msgspec.to_builtins, pickle.dumps, copy.deepcopy):
        try:
            shown.append(repr(way(secret)))
        except (TypeError, ValueError, NotImplementedError, pickle.PicklingError):
            continue
    assert not any(CANARY in text for text in shown)
    assert secret.reveal() == CANARY


def everything_of(at: House, folder: Path) -> str:
    """What the house has said and written so far."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != "config.toml"]
    written = " ".join(path.read_bytes().decode("latin-1") for path in kept)
    return "".join(at.said) + written


def test_k2_k3_k7_a_key_is_in_no_answer_no_log_and_no_file(
    at: House, cloud: FakeCloud, tmp_path: Path
) -> None:
    echo = f"Incorrect API key provided: {CANARY}. You can find yours at https://example.com"
    said = ask(at, ASKED)[1]
    cloud.script(
        {"do": "status", "status": 400, "message": echo},
        {"do": "error_event", "events": 3, "error": {"message": echo, "code": 500}},
        {"do": "status", "status": 401, "message": echo, "times": -1},
        part="cloud",
    )
    said += ask(at, ASKED)[1] + ask(at, {**ASKED, "stream": True})[1]
    for path in ("/v1/messages", "/api/chat", "/v1/responses"):
        said += ask(at, {**ASKED, "max_tokens": 9, "input": "hi"}, path)[1]
    for path in ("/localfirst/state", "/localfirst/explain", "/metrics", "/ui", "/v1/models"):
        said += ask(at, path=path)[1]
    assert "Incorrect API key provided" in said, "the rest of the message is told"
    assert at.stop() == 0
    assert CANARY not in said
    assert CANARY not in everything_of(at, tmp_path)
    assert "lf-prompt-51c0" not in everything_of(at, tmp_path)


def test_k5_a_child_gets_no_key_in_its_environment_or_arguments(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    toy.publish(tmp_path / "models")
    names = (
        "GROQ_API_KEY",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "OLLAMA_API_KEY",
    )
    variables = dict.fromkeys(names, CANARY)
    engine = {"LOCALFIRST_LOCAL_ENGINE": "llamacpp", "LOCALFIRST_ORDER": "local"}
    with house(tmp_path, **engine, **variables) as at:
        status, said = ask(at, {**ASKED, "max_tokens": 2})
        assert status == 200, said
        children = psutil.Process(at.child.pid).children(recursive=True)
        assert children
        for child in children:
            assert CANARY not in f"{child.environ()} {child.cmdline()}"
            assert not set(names) & set(child.environ())


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_k8_what_is_written_is_its_owners_alone_whatever_the_mask(
    mask: int, cloud: FakeCloud, tmp_path: Path
) -> None:
    cloud.reset()
    none = {"LOCALFIRST_LOCAL_ENGINE": "none", "SCRIPTED_KEY": CANARY}
    before = os.umask(mask)
    try:
        with house(tmp_path, config=config_for(cloud), **none) as at:
            assert ask(at, ASKED)[0] == 200
    finally:
        os.umask(before)
    state = tmp_path / "state"
    found = [state, *state.rglob("*")]
    assert len(found) > 1
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_k9_no_command_takes_a_key_as_an_argument() -> None:
    """Arguments are public: every program of the user, and of others, can read them."""
    for command in ("serve", "chat", "test", "pull"):
        done = subprocess.run(
            [sys.executable, "-m", "localfirst", command, "--help"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "--key" not in done.stdout.replace("--keys-from", "")
        assert "--token" not in done.stdout and "--api-key" not in done.stdout


# --- terminal --------------------------------------------------------------------------------


def test_t2_a_status_from_elsewhere_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """A registry's words pass through a download's errors to whoever reads them."""
    evil = b"\x1b]52;c;ZXZpbA==\x07\x1b[2J\r\nfake: line"
    head = b"HTTP/1.1 403 No\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(evil)
    with fake_cloud() as shop:
        answer = base64.b64encode(head + evil).decode()
        shop.script({"do": "raw", "base64": answer, "times": -1}, part="v2")
        mirror = f'[pull.mirrors]\n"registry.ollama.ai" = "{shop.url}"\n'
        with house(tmp_path, config=mirror, LOCALFIRST_LOCAL_ENGINE="none") as at:
            _, line = ask(at, {"model": "evil"}, "/api/pull")
            _, listed = ask(at, path="/localfirst/pulls")
        done = subprocess.run(
            [sys.executable, "-m", "localfirst", "pull", "evil"],
            capture_output=True,
            timeout=60,
            check=False,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "LOCALFIRST_CONFIG": str(tmp_path / "config.toml"),
                "LOCALFIRST_STATE_DIR": str(tmp_path / "state"),
                "OLLAMA_MODELS": str(tmp_path / "models"),
                "LOCALFIRST_LOCAL_ENGINE": "none",
            },
        )
    assert done.returncode != 0
    for said in (line, listed, (done.stdout + done.stderr).decode("utf-8", "replace")):
        assert "\x1b" not in said and "\\u001b" not in said and "\x07" not in said
    assert not any(text.startswith(b"fake: line") for text in done.stderr.splitlines())


def test_t5_a_reader_that_goes_away_ends_the_program_quietly(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "localfirst", "config", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait(30) == 141
    assert b"Traceback" not in said

"""What is guarded: company proxies and private CAs, for the manifest and for the bytes alike."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localfirst.models.store import Store
from localfirst.transport import http
from localfirst.transport.bulk import proxy_for
from tests.fakes import connect_proxy, registry
from tests.fakes.registry import FakeRegistry

CHILD = Path(__file__).parents[1] / "fakes" / "pulling.py"
WEIGHTS = random.Random(3).randbytes(2_500_000)
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the CA")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A key and a certificate for `registry.test` that vouches for itself."""
    path = tmp_path_factory.mktemp("ca") / "both.pem"
    key = path.with_name("key.pem")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=registry.test"]
    argv += ["-addext", "subjectAltName=DNS:registry.test", "-keyout", str(key)]
    subprocess.run([*argv, "-out", str(path)], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return str(path)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificate: str) -> Iterator[FakeRegistry]:
    with registry.running(tmp_path_factory.mktemp("tls"), certificate=certificate) as fake:
        fake.publish(model=WEIGHTS)
        fake.knobs(redirect=0)
        yield fake


def pull(store: Store, name: str, **variables: str) -> str:
    """Pull *name* in a process with those variables; the code it ends with."""
    environ = {k: v for k, v in os.environ.items() if k.lower() not in VARIABLES}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(store.root), name],
        env={**environ, **variables},
        capture_output=True,
        timeout=60,
    )
    return str(json.loads(done.stdout.splitlines()[-1])["end"])


@needs_openssl
def test_a_pull_goes_through_a_proxy_with_a_password_and_a_private_ca(
    tmp_path: Path, secure: FakeRegistry, certificate: str
) -> None:
    store = Store(tmp_path)
    with connect_proxy.running(secure.port, "me:secret") as (proxy, lines):
        end = pull(
            store,
            "registry.test/library/tiny",
            HTTPS_PROXY=proxy,
            SSL_CERT_FILE=certificate,
        )
    assert end == "ok"
    assert store.model_file("registry.test/library/tiny").read_bytes() == WEIGHTS
    assert {line.split(" ")[1] for line in lines} == {"registry.test:443"}
    assert len(lines) >= 2  # the manifest's connection and the bytes'


@needs_openssl
def test_a_certificate_that_nobody_vouches_for_is_a_tls_error(
    tmp_path: Path, secure: FakeRegistry
) -> None:
    with connect_proxy.running(secure.port) as (proxy, _):
        end = pull(Store(tmp_path), "registry.test/library/tiny", HTTPS_PROXY=proxy)
    assert end == "registry-tls"


def test_a_ca_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    end = pull(
        Store(tmp_path), "registry.test/library/tiny", SSL_CERT_FILE=str(tmp_path / "absent.pem")
    )
    assert end == "config-invalid"


@needs_openssl
def test_a_wrong_password_is_a_proxy_error(
    tmp_path: Path, secure: FakeRegistry, certificate: str
) -> None:
    with connect_proxy.running(secure.port, "me:secret") as (proxy, _):
        end = pull(
            Store(tmp_path),
            "registry.test/library/tiny",
            HTTPS_PROXY=proxy.replace("secret", "wrong"),
            SSL_CERT_FILE=certificate,
        )
    assert end == "registry-proxy"


@needs_openssl
def test_no_proxy_is_honoured(tmp_path: Path, secure: FakeRegistry) -> None:
    with connect_proxy.running(secure.port) as (proxy, lines):
        end = pull(
            Store(tmp_path), "registry.test/library/tiny", HTTPS_PROXY=proxy, NO_PROXY=".test"
        )
    assert end in {"registry-dns", "registry-unreachable"} and lines == []


@needs_openssl
def test_a_registry_on_loopback_is_asked_directly(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        registry.running(tmp_path_factory.mktemp("plain")) as fake,
        connect_proxy.running(fake.port) as (proxy, lines),
    ):
        fake.publish(model=WEIGHTS)
        assert pull(Store(tmp_path), fake.name(), HTTP_PROXY=proxy, ALL_PROXY=proxy) == "ok"
    assert lines == []


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://a.example/x", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://a.example/x", {"https_proxy": "p:1"}, "http://p:1"),
        ("https://a.example/x", {"HTTP_PROXY": "http://p:1"}, ""),
        ("http://a.example/x", {"http_proxy": "http://p:1"}, "http://p:1"),
        ("http://a.example/x", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("http://a.example/x", {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, ""),
        ("https://127.0.0.1/x", {"HTTPS_PROXY": "http://p:1"}, ""),
        ("https://localhost/x", {"HTTPS_PROXY": "http://p:1"}, ""),
        ("https://a.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, ""),
        ("https://a.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example"}, ""),
        ("https://a.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, ""),
        ("https://a.example/x", {"HTTPS_PROXY": "http://p:1", "no_proxy": "b, a.example"}, ""),
        ("https://a.example/x", {"HTTPS_PROXY": "http://p:1", "no_proxy": "b a.example"}, ""),
        ("https://a.example./x", {"HTTPS_PROXY": "http://p:1", "no_proxy": "example."}, ""),
        (
            "https://an.example/x",
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "n.example"},
            "http://p:1",
        ),
        (
            "https://a.example/x",
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.example:80"},
            "http://p:1",
        ),
        ("https://a.example:80/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.example:80"}, ""),
        ("https://10.1.2.3/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, ""),
        (
            "https://11.1.2.3/x",
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"},
            "http://p:1",
        ),
    ],
)
def test_the_customary_variables_choose_the_proxy(
    url: str, environ: dict[str, str], expected: str
) -> None:
    assert proxy_for(url, environ) == expected


@needs_openssl
@pytest.mark.parametrize(
    "more",
    [
        {"ALL_PROXY": "socks5h://127.0.0.1:9"},
        {"NO_PROXY": "fe80::/10"},
        {"NO_PROXY": "localhost,[::1]:11434"},
        {"NO_PROXY": "a.example b.example"},
    ],
)
def test_what_stands_beside_the_proxy_that_counts_stops_no_pull(
    tmp_path: Path, secure: FakeRegistry, certificate: str, more: dict[str, str]
) -> None:
    store = Store(tmp_path)
    with connect_proxy.running(secure.port) as (proxy, lines):
        variables = {"HTTPS_PROXY": proxy, "SSL_CERT_FILE": certificate, **more}
        end = pull(store, "registry.test/library/tiny", **variables)
    assert end == "ok" and len(lines) >= 2


def test_a_proxy_of_another_kind_is_a_proxy_error(tmp_path: Path) -> None:
    end = pull(Store(tmp_path), "registry.test/library/tiny", HTTPS_PROXY="socks5://127.0.0.1:9")
    assert end == "registry-proxy"


def test_a_network_in_no_proxy_is_honoured_for_the_manifest_too(tmp_path: Path) -> None:
    # 0.0.0.0 leads to this machine without being one of loopback's names.
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with connect_proxy.running(port) as (proxy, lines):
        variables = {"HTTPS_PROXY": proxy, "NO_PROXY": "localhost,0.0.0.0/8"}
        end = pull(Store(tmp_path), f"0.0.0.0:{port}/library/tiny", **variables)
    assert end == "registry-unreachable" and lines == []


@needs_openssl
def test_whatever_is_posted_takes_the_same_proxy_and_authority(
    secure: FakeRegistry, certificate: str
) -> None:
    async def ask(**environ: str) -> int:
        url = "https://registry.test/v2/library/none/manifests/latest"
        async with http.client(url, environ=environ) as client:
            return (await client.get(url)).status_code

    with connect_proxy.running(secure.port) as (proxy, lines):
        variables = {"HTTPS_PROXY": proxy, "SSL_CERT_FILE": certificate}
        assert asyncio.run(ask(ALL_PROXY="socks5://127.0.0.1:9", **variables)) == 404
    assert [line.split()[1] for line in lines] == ["registry.test:443"]


def test_plain_http_is_asked_though_the_ca_file_is_not_there(tmp_path: Path) -> None:
    with registry.running(tmp_path) as fake:
        url = f"http://127.0.0.1:{fake.port}/v2/library/none/manifests/latest"

        async def ask() -> int:
            environ = {"SSL_CERT_FILE": str(tmp_path / "absent.pem")}
            async with http.client(url, environ=environ) as client:
                return (await client.get(url)).status_code

        assert asyncio.run(ask()) == 404

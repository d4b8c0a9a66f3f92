"""TLS and proxies on real sockets: what is refused, what passes, and whom the error names."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from localfirst.errors import Breakage, ConfigError, UpstreamBroken
from localfirst.transport.bulk import tls_context
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.event_loops import RUNNERS, run

LOOP = "asyncio"


@pytest.fixture(params=RUNNERS, autouse=True)
def loop_kind(request: pytest.FixtureRequest) -> None:
    """Every test here runs on both loops."""
    global LOOP
    LOOP = request.param


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def leaf(folder: Path, name: str, names: str, *more: str) -> None:
    """A certificate for *names*, signed by the folder's authority."""
    openssl(
        folder, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key",
        "-out", f"{name}.csr", "-subj", f"/CN={name}",
    )  # fmt: skip
    (folder / f"{name}.ext").write_text(
        f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-CAcreateserial", "-out", f"{name}.pem", "-extfile", f"{name}.ext", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A throw-away authority with a good, an expired and a wrongly named certificate."""
    folder = tmp_path_factory.mktemp("authority")
    openssl(
        folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key",
        "-out", "ca.pem", "-subj", "/CN=throw-away", "-days", "2",
        # As RFC 5280 wants it; Python 3.13 and later look.
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    leaf(folder, "good", "DNS:localhost,IP:127.0.0.1", "-days", "2")
    leaf(folder, "other", "DNS:example.com", "-days", "2")
    leaf(folder, "expired", "DNS:localhost,IP:127.0.0.1", "-days", "-1")
    return folder


def trusting(authority: Path) -> ssl.SSLContext:
    return tls_context({"SSL_CERT_FILE": str(authority / "ca.pem")})


@pytest.fixture(scope="module")
def clouds(authority: Path) -> Iterator[dict[str, FakeCloud]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                fake_cloud(
                    *("--certificate", str(authority / f"{name}.pem")),
                    *("--key", str(authority / f"{name}.key")),
                    context=ssl._create_unverified_context(),
                )
            )
            for name in ("good", "other", "expired")
        }


def with_client(work: Callable[[UpstreamClient], Awaitable[Any]], **more: Any) -> Any:
    async def main() -> Any:
        upstream = UpstreamClient(SystemClock(), **more)
        try:
            return await work(upstream)
        finally:
            await upstream.aclose()

    return run(LOOP, main)


def ask(url: str, **more: Any) -> Any:
    async def work(upstream: UpstreamClient) -> tuple[int, bytes]:
        response = await upstream.send(url, body=b'{"stream":true}')
        return response.status, await response.read()

    return with_client(work, **more)


def test_a_certificate_of_a_given_authority_is_accepted(
    clouds: dict[str, FakeCloud], authority: Path
) -> None:
    url = clouds["good"].base_url() + "/chat/completions"
    status, body = ask(url, ssl_context=trusting(authority))
    assert status == 200 and body.endswith(b"data: [DONE]\n\n")


def test_tls_sockets_are_kept_too(clouds: dict[str, FakeCloud], authority: Path) -> None:
    cloud = clouds["good"]
    cloud.reset()

    async def work(upstream: UpstreamClient) -> None:
        for _ in range(3):
            await (await upstream.send(cloud.base_url() + "/chat/completions", body=b"{}")).read()

    with_client(work, ssl_context=trusting(authority))
    assert len({record["connection"] for record in cloud.requests()}) == 1


@pytest.mark.parametrize(
    ("which", "reason"),
    [("other", "not valid for"), ("expired", "expired")],
)
def test_a_wrong_certificate_is_refused_and_named(
    clouds: dict[str, FakeCloud], authority: Path, which: str, reason: str
) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        ask(clouds[which].base_url() + "/chat/completions", ssl_context=trusting(authority))
    assert caught.value.breakage is Breakage.TLS
    assert reason in caught.value.detail and "SSL_CERT_FILE" not in caught.value.detail
    assert clouds[which].requests() == []


def test_an_unknown_authority_is_refused_and_the_way_to_name_one_is_told(
    clouds: dict[str, FakeCloud],
) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        ask(clouds["good"].base_url() + "/chat/completions", ssl_context=tls_context({}))
    assert caught.value.breakage is Breakage.TLS
    assert "certificate" in caught.value.detail and "`SSL_CERT_FILE`" in caught.value.detail


def test_plain_http_where_tls_is_expected_is_a_tls_failure(authority: Path) -> None:
    async def main() -> Breakage:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        upstream = UpstreamClient(SystemClock(), ssl_context=trusting(authority))
        with pytest.raises(UpstreamBroken) as caught:
            await upstream.send(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/x")
        await upstream.aclose()
        server.close()
        return caught.value.breakage

    assert run(LOOP, main) is Breakage.TLS


def test_a_tls_stream_that_is_cut_is_cut(clouds: dict[str, FakeCloud], authority: Path) -> None:
    clouds["good"].script({"do": "cut", "events": 3})
    with pytest.raises(UpstreamBroken) as caught:
        ask(clouds["good"].base_url() + "/chat/completions", ssl_context=trusting(authority))
    assert caught.value.breakage is Breakage.CUT


def test_a_file_without_certificates_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "empty.pem", tmp_path / "absent.pem"):
        with pytest.raises(ConfigError) as caught:
            tls_context({"SSL_CERT_FILE": str(path)})
        assert caught.value.setting == "SSL_CERT_FILE"


# --- proxies -------------------------------------------------------------------------------


@asynccontextmanager
async def proxy(port_behind: int, *, credentials: str = "", answer: bytes = b"") -> Any:
    """A real little CONNECT proxy to one port; yields its URL part and the heads it saw."""
    heads: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            heads.append(head)
            wanted = base64.b64encode(credentials.encode()).decode()
            if answer:
                writer.write(answer)
                await writer.drain()
            elif credentials and f"Basic {wanted}" not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                await writer.drain()
            else:
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port_behind)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=2)


def through(
    cloud: FakeCloud, url: str, *, user: str = "", context: ssl.SSLContext | None, **kind: Any
) -> tuple[Any, list[str], UpstreamBroken | None]:
    """Ask *url* through a proxy that leads to *cloud*: answer, heads, failure."""

    async def main() -> Any:
        async with proxy(cloud.port, **kind) as (address, heads):
            proxies = {"all": f"http://{user}{address}", "no": "direct.example"}
            upstream = UpstreamClient(SystemClock(), ssl_context=context, proxies=proxies)
            answer, failure = None, None
            try:
                response = await upstream.send(url, body=b"{}")
                answer = response.status, await response.read()
            except UpstreamBroken as error:
                failure = error
            await upstream.aclose()
            return answer, heads, failure

    return run(LOOP, main)


@pytest.fixture(scope="module")
def example(authority: Path) -> Iterator[FakeCloud]:
    """A cloud that is certified as `example.com`, reachable only through a proxy."""
    with fake_cloud(
        *("--certificate", str(authority / "other.pem"), "--key", str(authority / "other.key")),
        context=ssl._create_unverified_context(),
    ) as cloud:
        yield cloud


def test_tls_runs_inside_a_tunnel_with_credentials(example: FakeCloud, authority: Path) -> None:
    answer, heads, failure = through(
        example,
        "https://example.com/c/v1/chat/completions",
        user="me:p%40ss@",
        context=trusting(authority),
        credentials="me:p@ss",
    )
    assert failure is None and answer[0] == 200
    assert heads[0].startswith("CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n")


def test_plain_http_is_tunnelled_as_well(authority: Path) -> None:
    with fake_cloud() as cloud:
        answer, heads, failure = through(cloud, "http://example.com/c/v1/models", context=None)
        assert failure is None and answer[0] == 200
        assert len(heads) == 1 and "example.com:80" in heads[0]


def test_an_address_of_six_is_named_to_the_proxy_in_brackets() -> None:
    with fake_cloud() as cloud:
        answer, heads, failure = through(cloud, "http://[2001:db8::1]:81/c/v1/models", context=None)
        assert failure is None and answer[0] == 200
        assert heads[0].startswith(
            "CONNECT [2001:db8::1]:81 HTTP/1.1\r\nhost: [2001:db8::1]:81\r\n"
        )


def test_wrong_proxy_credentials_name_the_proxy_and_not_the_password(
    example: FakeCloud, authority: Path
) -> None:
    _, _, failure = through(
        example,
        "https://example.com/x",
        user="me:canary@",
        context=trusting(authority),
        credentials="me:other",
    )
    assert failure is not None and failure.breakage is Breakage.PROXY
    assert "127.0.0.1" in failure.detail and "credentials" in failure.detail
    assert "canary" not in str(failure)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1\r\n\r\n",
     b"HTTP/1.1 200 OK\r\n\r\nand more", b"HTTP/1.1 200 OK\r\nx: " + b"a" * 20_000],
    ids=["refuses", "ssh", "no-status", "too-much", "endless"],
)  # fmt: skip
def test_a_proxy_that_does_not_open_a_tunnel_is_named(
    example: FakeCloud, authority: Path, answer: bytes
) -> None:
    _, _, failure = through(
        example, "https://example.com/x", context=trusting(authority), answer=answer
    )
    assert failure is not None and failure.breakage is Breakage.PROXY
    assert "127.0.0.1" in failure.detail


def test_a_certificate_inside_the_tunnel_is_checked_for_the_host_not_the_proxy(
    example: FakeCloud, authority: Path
) -> None:
    _, _, failure = through(example, "https://elsewhere.test/x", context=trusting(authority))
    assert failure is not None and failure.breakage is Breakage.TLS


def test_an_unreachable_proxy_is_named(authority: Path) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        ask("https://example.com/x", proxies={"https": "http://127.0.0.1:9"})
    assert caught.value.breakage is Breakage.PROXY
    assert "127.0.0.1:9" in caught.value.detail


def test_a_proxy_that_stays_silent_runs_into_the_connect_limit() -> None:
    async def main() -> UpstreamBroken:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(1)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            upstream = UpstreamClient(SystemClock(), proxies={"all": url})
            with pytest.raises(UpstreamBroken) as caught:
                await upstream.send("http://example.com/x", connect_s=0.2)
            await upstream.aclose()
        return caught.value

    error = run(LOOP, main)
    assert error.breakage is Breakage.CONNECT_TIMEOUT
    assert "through 127.0.0.1" in error.detail

"""Host and framing: rows H1–H11 and F1–F11 of the attack table, raw bytes in, answer out."""

from __future__ import annotations

import pytest

from localfirst.settings import GatewaySettings, Secret
from tests.fakes.gateway_host import hosted, read_answer, run
from tests.fakes.scripted_runtime import ScriptedRuntime
from tests.security.attack import BODY, Attack, get, post, stage

HOSTS = [
    Attack("H1-foreign", get(host=b"attacker.example:PORT"), 403, "host-not-allowed"),
    Attack("H2-wrong-port", get(host=b"127.0.0.1:9999"), 403, "host-not-allowed"),
    Attack("H2-no-port", get(host=b"127.0.0.1"), 403, "host-not-allowed"),
    Attack("H3-missing-11", b"GET /api/tags HTTP/1.1\r\n\r\n", 400, "host-missing"),
    Attack("H3-missing-10", b"GET /api/tags HTTP/1.0\r\n\r\n", 400, "host-missing"),
    Attack("H4-twice-equal", get(b"/api/tags", b"Host: 127.0.0.1:PORT"), 400, "host-malformed"),
    Attack("H4-twice-other", get(b"/api/tags", b"Host: evil.example"), 400, "host-malformed"),
    Attack("H5-path", get(host=b"127.0.0.1:PORT/?x="), 400, "host-malformed"),
    Attack("H5-fragment", get(host=b"127.0.0.1:PORT#"), 400, "host-malformed"),
    Attack("H5-userinfo", get(host=b"a@127.0.0.1:PORT"), 400, "host-malformed"),
    Attack("H5-list", get(host=b"127.0.0.1:PORT, evil"), 400, "host-malformed"),
    *(
        Attack(f"H7-{name.decode()}", get(host=name + b":PORT"), 403, "host-not-allowed")
        for name in (
            b"127.1", b"2130706433", b"0x7f.1", b"0177.0.0.1", b"[::ffff:127.0.0.1]",
            b"[::1%lo]", b"localhost.", b"0.0.0.0",
        )
    ),
    *(
        Attack(f"H8-{name.decode()}", get(host=name + b":PORT"), 403, "host-not-allowed")
        for name in (b"foo.localhost", b"my-mac.local", b"x.internal", b"192.168.1.5")
    ),
    Attack(
        "H9-absolute-form",
        b"GET http://evil.example/api/tags HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
        400,
        "target-malformed",
    ),
]  # fmt: skip


def chunked(size: bytes, rest: bytes = b"") -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + size + rest
    )


def coded(value: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n"
    )


def sized(*values: bytes) -> bytes:
    lines = b"".join(b"Content-Length: %b\r\n" % value for value in values)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
        b"Content-Type: application/json\r\n" + lines + b"\r\n" + BODY
    )


FRAMES = [
    Attack("F1-cl-te", post(b"/v1/chat/completions", b"Transfer-Encoding: chunked"), 400,
           "request-malformed"),
    # A body that is whole by either length: nothing but the two lengths is wrong with it.
    Attack("F1-te-cl", coded(b"chunked\r\nContent-Length: 5"), 400, "request-malformed"),
    Attack("F2-two-lengths", sized(b"5", b"6"), 400),
    Attack("F2-same-twice", sized(b"5", b"5"), 400),
    Attack("F2-negative", sized(b"-1"), 400),
    Attack("F2-plus", sized(b"+5"), 400),
    Attack("F2-list", sized(b"5, 5"), 400),
    Attack("F2-hex", sized(b"0x5"), 400),
    Attack("F2-empty", sized(b""), 400),
    Attack("F3-xchunked", coded(b"xchunked"), 501),
    Attack("F3-gzip-chunked", coded(b"gzip, chunked"), 501),
    Attack("F3-chunked-twice", coded(b"chunked\r\nTransfer-Encoding: chunked"), 400),
    Attack("F3-http-10", coded(b"chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    Attack("F4-negative", chunked(b"-1\r\n"), 400),
    Attack("F4-hex-prefix", chunked(b"0x1\r\na\r\n0\r\n\r\n"), 400),
    Attack("F4-21-digits", chunked(b"1" * 21 + b"\r\n"), 400),
    Attack("F4-no-crlf-after-data", chunked(b"1\r\naXX0\r\n\r\n"), 400),
    Attack("F4-bare-lf", chunked(b"1\na\n0\n\n"), 400),
    Attack("F4-extension", chunked(b"1;x=y\r\na\r\n0\r\n\r\n"), 400),
    Attack("F4-trailer", chunked(b"0\r\nX: y\r\n\r\n"), 400),
    Attack("F5-bare-lf", get().replace(b"\r\n", b"\n"), 400),
    Attack("F5-one-bare-lf", get(b"/api/tags", b"X: y\nZ: 1"), 400),
    Attack("F5-fold", get(b"/api/tags", b"X: y\r\n z"), 400),
    Attack("F5-space-before-colon", get(b"/api/tags", b"X : y"), 400),
    Attack("F5-nul", get(b"/api/tags", b"X: a\0b"), 400),
    Attack("F5-bare-cr", get(b"/api/tags", b"X: a\rb"), 400),
    Attack("F5-no-colon", get(b"/api/tags", b"X"), 400),
    Attack("F6-64-kib-head", get(b"/api/tags", b"X: " + b"a" * 65536), 431),
    Attack("F6-200-headers", get(b"/api/tags", *[b"X: y"] * 200), 431),
    Attack("F6-20-kib-target", get(b"/" + b"a" * 20480), 414),
    Attack("F6-endless-target", b"GET /" + b"a" * 20480, 414),
    Attack("F6-endless-head", b"GET / HTTP/1.1\r\nX: " + b"a" * 65536, 431),
    Attack("F7-connect", b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n", 405),
    Attack("F7-trace", get().replace(b"GET /api/tags", b"TRACE /"), 400),
    Attack("F7-options-star", get().replace(b"GET /api/tags", b"OPTIONS *"), 400),
    Attack("F7-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    Attack("F7-tls", bytes.fromhex("16030100c8010000c403030000"), 0),
    Attack("F7-http-09", b"GET /\r\n", 400),
    Attack("F7-http-12", get().replace(b"HTTP/1.1", b"HTTP/1.2"), 400),
    Attack("F7-lower-case", get().replace(b"GET", b"get"), 400),
    Attack("F9-unknown-expectation", post(b"/api/chat", b"Expect: 200-maybe"), 417),
    Attack(
        "F10-pipelined-behind-a-refused",
        get(host=b"evil.example") + get(b"/api/version"),
        403,
        "host-not-allowed",
    ),
    *(
        Attack(f"F11-{path.decode()}", get(path), 404, "route-unknown")
        for path in (
            b"/v1/../api/delete", b"//api/tags", b"/api/%74ags", b"/api/tags%00",
            b"/api/tags;x", b"/API/TAGS", b"/api/tags/", b"/api/delete", b"/api/create",
            b"/debug/pprof/", b"/v1/models/",
        )
    ),
    Attack("F11-fragment", get(b"/api/tags#x"), 400, "target-malformed"),
]  # fmt: skip


@pytest.mark.parametrize("attack", [*HOSTS, *FRAMES], ids=lambda attack: attack.id)
def test_attack_is_refused(attack: Attack) -> None:
    stage(attack)


@pytest.mark.parametrize("name", [b"localhost", b"LOCALHOST", b"127.0.0.1", b"[::1]"])
def test_h6_own_names_pass(name: bytes) -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime()) as host:
            data = get(b"/api/tags", b"Connection: close", host=name + b":PORT")
            return await host.raw(data.replace(b"PORT", b"%d" % host.port))

    assert read_answer(run(main())).status == 200


@pytest.mark.parametrize(
    "header", [b"X-Forwarded-Host: evil", b"Forwarded: host=evil", b"X-Original-URL: /admin"]
)
def test_h10_forwarding_headers_change_nothing(header: bytes) -> None:
    async def main() -> tuple[bytes, bytes]:
        async with hosted(ScriptedRuntime()) as host:
            port = b"%d" % host.port
            plain = get(b"/api/version", b"Connection: close").replace(b"PORT", port)
            odd = get(b"/api/version", b"Connection: close", header).replace(b"PORT", port)
            return await host.raw(plain), await host.raw(odd)

    plain, odd = (read_answer(data) for data in run(main()))
    assert (plain.status, plain.body) == (odd.status, odd.body) == (200, b'{"version":"0.33.0"}')


def test_h11_everywhere_with_a_key_the_host_is_still_checked() -> None:
    door = GatewaySettings(
        host="0.0.0.0", port=0, keys=(Secret("right", "k"),), hosts=("box.lan", "gw.example:443")
    )
    wanted = {
        "127.0.0.1:PORT": 200,
        "box.lan:PORT": 200,
        "box.lan": 200,
        "gw.example:443": 200,
        "gw.example:PORT": 403,
        "0.0.0.0:PORT": 403,
        "evil.example:PORT": 403,
    }

    async def main() -> dict[str, int]:
        async with hosted(ScriptedRuntime(gateway=door)) as host:
            found = {}
            for name in wanted:
                fields = {
                    "host": name.replace("PORT", str(host.port)),
                    "authorization": "Bearer right",
                }
                found[name] = (await host.ask("GET", "/api/version", headers=fields)).status
            return found

    assert run(main()) == wanted


@pytest.mark.parametrize("value", [b"websocket", b"h2c"])
def test_f8_an_upgrade_is_ignored(value: bytes) -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime()) as host:
            data = get(b"/api/version", b"Upgrade: " + value, b"Connection: close, upgrade")
            return await host.raw(data.replace(b"PORT", b"%d" % host.port))

    assert read_answer(run(main())).status == 200


def test_f9_continue_is_said_after_the_guard_passed() -> None:
    async def main() -> tuple[bytes, bytes, bytes]:
        async with hosted(ScriptedRuntime()) as host:
            data = post(b"/v1/chat/completions", b"Expect: 100-continue", b"Connection: close")
            head, _, body = data.replace(b"PORT", b"%d" % host.port).partition(b"\r\n\r\n")
            reader, writer = await host.connect()
            writer.write(head + b"\r\n\r\n")
            first = await reader.readuntil(b"\r\n\r\n")
            writer.write(body)
            rest = await reader.read()
            writer.close()
            await writer.wait_closed()
            refused = await host.raw(head.replace(b"Host: 127", b"Host: 128") + b"\r\n\r\n")
            return first, rest, refused

    first, rest, refused = run(main())
    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert read_answer(rest).status == 200
    assert read_answer(refused).status == 403


def test_honest_requests_behind_each_other_are_answered_in_order() -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime()) as host:
            data = get(b"/api/version") + post() + get(b"/localfirst/health", b"Connection: close")
            return await host.raw(data.replace(b"PORT", b"%d" % host.port))

    raw = run(main())
    assert raw.count(b"HTTP/1.1 200 OK") == 3
    assert raw.index(b"0.33.0") < raw.index(b"chat.completion") < raw.index(b'"ok"')


def test_a_body_in_chunks_is_a_body() -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime()) as host:
            half = len(BODY) // 2
            pieces = b"%x\r\n%b\r\n%X\r\n%b\r\n0\r\n\r\n" % (
                half,
                BODY[:half],
                len(BODY) - half,
                BODY[half:],
            )
            data = chunked(pieces).replace(b"Transfer", b"Connection: close\r\nTransfer")
            return await host.raw(data.replace(b"PORT", b"%d" % host.port))

    assert read_answer(run(main())).status == 200

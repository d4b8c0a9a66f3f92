"""Web pages and keys: rows W1–W9 and A1–A7 of the attack table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from localfirst.errors import ConfigError
from localfirst.gateway import guard
from localfirst.gateway.listener import check_exposure
from localfirst.gateway.routes import ROUTES
from localfirst.gateway.server import serve
from localfirst.settings import GatewaySettings, Secret, Settings
from tests.fakes.gateway_host import Answer, hosted, read_answer, run
from tests.fakes.scripted_runtime import ScriptedRuntime
from tests.security.attack import BODY, Attack, get, post, stage

CHAT = b"/v1/chat/completions"
EVIL = b"Origin: https://evil.example"

PAGES = [
    Attack("W1-text-plain", post(CHAT, EVIL, kind=b"text/plain"), 403, "origin-not-allowed"),
    Attack("W1-json", post(CHAT, EVIL), 403, "origin-not-allowed"),
    Attack("W2-null", post(CHAT, b"Origin: null"), 403, "origin-not-allowed"),
    Attack(
        "W2-prefix",
        post(CHAT, b"Origin: http://127.0.0.1:PORT.evil.example"),
        403,
        "origin-not-allowed",
    ),
    Attack("W2-port", post(CHAT, b"Origin: http://localhost:9999"), 403, "origin-not-allowed"),
    Attack("W2-https", post(CHAT, b"Origin: https://127.0.0.1:PORT"), 403, "origin-not-allowed"),
    Attack("W2-get", get(b"/api/tags", EVIL), 403, "origin-not-allowed"),
    Attack(
        "W3-preflight",
        get(
            CHAT,
            EVIL,
            b"Access-Control-Request-Method: POST",
            b"Access-Control-Request-Private-Network: true",
        ).replace(b"GET", b"OPTIONS"),
        403,
        "origin-not-allowed",
    ),
    # Of its own page no browser asks this; whoever does is none.
    Attack(
        "W3-own-page",
        get(CHAT, b"Origin: http://127.0.0.1:PORT").replace(b"GET", b"OPTIONS"),
        403,
        "origin-not-allowed",
    ),
    Attack("W3-no-origin", get(CHAT).replace(b"GET", b"OPTIONS"), 405, "method-not-allowed"),
    *(
        Attack(
            f"W5-{site.decode()}-{method.decode()}",
            get(b"/api/tags", b"Sec-Fetch-Site: " + site).replace(b"GET", method),
            403,
            "origin-not-allowed",
        )
        for site in (b"cross-site", b"same-site")
        for method in (b"GET", b"POST")
    ),
    Attack(
        "W7-own-page-form",
        post(CHAT, b"Origin: http://127.0.0.1:PORT", kind=b"application/x-www-form-urlencoded"),
        415,
        "content-type-not-allowed",
    ),
    Attack(
        "W7-fetch-metadata",
        post(b"/api/chat", b"Sec-Fetch-Site: same-origin", kind=b"text/plain"),
        415,
        "content-type-not-allowed",
    ),
    Attack(
        "W7-form-on-v1",
        post(CHAT, b"Sec-Fetch-Mode: no-cors", kind=b"text/plain"),
        415,
        "content-type-not-allowed",
    ),
    *(
        Attack(f"W9-{origin.decode()}", post(CHAT, b"Origin: " + origin), 403, "origin-not-allowed")
        for origin in (
            b"chrome-extension://abc", b"app://x", b"tauri://localhost", b"vscode-webview://x",
            b"file://", b"moz-extension://x",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", PAGES, ids=lambda attack: attack.id)
def test_a_page_is_refused(attack: Attack) -> None:
    stage(attack)


def with_origin(headers: dict[str, str], method: str = "POST") -> Answer:
    door = GatewaySettings(port=0, origins=("https://app.example",))

    async def main() -> Answer:
        async with hosted(ScriptedRuntime(gateway=door)) as host:
            body = BODY if method == "POST" else None
            return await host.ask(method, CHAT.decode(), body, headers)

    return run(main())


def test_w4_a_configured_origin_is_echoed_exactly_and_without_credentials() -> None:
    answer = with_origin({"origin": "https://app.example", "sec-fetch-site": "cross-site"})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-private-network" not in answer.headers


def test_w4_its_preflight_lists_methods_and_headers() -> None:
    answer = with_origin({"origin": "https://app.example"}, "OPTIONS")
    assert answer.status == 204
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"
    assert answer.headers["access-control-max-age"] == "600"
    assert "x-api-key" in answer.headers["access-control-allow-headers"]
    assert "*" not in str(answer.headers)


def test_w4_a_clients_own_headers_are_allowed_where_its_origin_is() -> None:
    """OpenAI's client in a browser tells its version in headers, and asks for them first."""
    wished = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"
    asked = {"origin": "https://app.example", "access-control-request-headers": wished}
    answer = with_origin(asked, "OPTIONS")
    assert answer.headers["access-control-allow-headers"] == wished
    for odd in ("*", "x, *", "a;b", "x" * 5000, "a b"):
        answer = with_origin({**asked, "access-control-request-headers": odd}, "OPTIONS")
        assert odd not in answer.headers["access-control-allow-headers"]
    exposed = with_origin({"origin": "https://app.example"}).headers
    assert "retry-after" in exposed["access-control-expose-headers"]


def test_w4_a_near_origin_is_not_the_configured_one() -> None:
    assert with_origin({"origin": "https://app.example.evil"}).status == 403


def test_w6_no_get_has_effects() -> None:
    """Every GET is asked of a runtime that would remember a start, a pull or a generation."""
    runtime = ScriptedRuntime()

    async def main() -> None:
        async with hosted(runtime) as host:
            for route in ROUTES:
                if route.method == "GET":
                    path = route.path.decode() + ("auto" if route.prefix else "")
                    assert (await host.ask("GET", path)).status == 200, path

    run(main())
    assert runtime.calls == [] and runtime.puller.started == {}
    assert runtime.engine.loaded == runtime.engine.unloaded == []


def test_w7_curl_without_a_content_type_is_served_on_the_ollama_surface() -> None:
    async def main() -> Answer:
        async with hosted(ScriptedRuntime()) as host:
            form = {"content-type": "application/x-www-form-urlencoded"}
            return await host.ask("POST", "/api/chat", BODY, form)

    assert run(main()).status == 200


def test_w8_every_answer_forbids_sniffing_caching_and_embedding() -> None:
    async def main() -> list[Answer]:
        async with hosted(ScriptedRuntime()) as host:
            found = [await host.ask("GET", "/nothing")]
            for route in ROUTES:
                body = BODY if route.method == "POST" else None
                found.append(await host.ask(route.method, route.path.decode(), body))
            return found

    for answer in run(main()):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers


def test_the_own_page_may_ask() -> None:
    async def main() -> Answer:
        async with hosted(ScriptedRuntime()) as host:
            return await host.ask("POST", CHAT.decode(), BODY, {"origin": host.url})

    assert run(main()).status == 200


# --- keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "", "my-box"])
def test_a1_off_loopback_without_a_key_it_does_not_start(host: str) -> None:
    settings = GatewaySettings(host=host, port=0)
    with pytest.raises(ConfigError) as caught:
        check_exposure(settings)
    assert (caught.value.code, caught.value.exit_code) == ("key-required-off-loopback", 2)
    with pytest.raises(ConfigError):
        serve(Settings(gateway=settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_a1_on_loopback_no_key_is_needed(host: str) -> None:
    check_exposure(GatewaySettings(host=host))


WRONG = {
    "none": [],
    "wrong": [b"Authorization: Bearer wrong"],
    "spaces": [b"Authorization: Bearer  right"],
    "inner-space": [b"Authorization: Bearer ri ght"],
    "lower-case": [b"Authorization: bearer right"],
    "basic": [b"Authorization: Basic right"],
    "empty": [b"Authorization: Bearer"],
    "empty-value": [b"Authorization:"],
    "20-kib": [b"Authorization: Bearer " + b"a" * 20480],
    "non-ascii": [b"Authorization: Bearer \xff\xfe"],
    "twice": [b"Authorization: Bearer right", b"Authorization: Bearer wrong"],
    "prefix": [b"Authorization: Bearer righ"],
    "x-api-key": [b"x-api-key: wrong"],
    "api-key": [b"api-key: wrong"],
    "one-wrong": [b"Authorization: Bearer right", b"x-api-key: wrong"],
    "one-empty": [b"Authorization: Bearer right", b"x-api-key:"],
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_a2_a_wrong_key_is_401_whatever_its_form(headers: list[bytes]) -> None:
    attack = Attack("A2", post(CHAT, *headers), 401, "key-required")
    answer = stage(attack, ScriptedRuntime(key="right"))
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"right" not in answer.body and b"wrong" not in answer.body


def test_a2_all_refusals_are_the_same_but_for_their_id() -> None:
    bodies = set()
    for headers in WRONG.values():
        answer = stage(Attack("A2", post(CHAT, *headers), 401), ScriptedRuntime(key="right"))
        found = dict(answer.json["error"])
        found.pop("request_id")
        bodies.add(str(found))
    assert len(bodies) == 1


def test_a2_a_megabyte_is_not_even_read() -> None:
    attack = post(CHAT, b"Authorization: Bearer " + b"a" * 2**20)
    stage(Attack("A2-1-mb", attack, 431), ScriptedRuntime(key="right"))


@pytest.mark.parametrize(("key", "status"), [("one", 200), ("two", 200), ("onetwo", 401)])
def test_a3_each_of_several_keys_opens(key: str, status: int) -> None:
    door = GatewaySettings(port=0, keys=(Secret("one", "a"), Secret("two", "b")))

    async def main() -> Answer:
        async with hosted(ScriptedRuntime(gateway=door)) as host:
            return await host.ask("POST", CHAT.decode(), BODY, {"authorization": f"Bearer {key}"})

    assert run(main()).status == status


@pytest.mark.parametrize(
    "header", [b"Authorization: Bearer right", b"x-api-key: right", b"api-key: right"]
)
def test_a3_the_right_key_opens_in_each_form(header: bytes) -> None:
    async def main() -> bytes:
        async with hosted(ScriptedRuntime(key="right")) as host:
            data = post(CHAT, header, b"Connection: close")
            return await host.raw(data.replace(b"PORT", b"%d" % host.port))

    assert read_answer(run(main())).status == 200


@pytest.mark.parametrize("header", [None, "authorization", "x-api-key", "api-key"])
def test_a4_every_route_needs_the_key(header: str | None) -> None:
    fields = {} if header is None else {header: "Bearer no"}

    async def main() -> dict[str, int]:
        async with hosted(ScriptedRuntime(key="right")) as host:
            found = {}
            for route in ROUTES:
                path = route.path.decode() + ("auto" if route.prefix else "")
                body = BODY if route.method == "POST" else None
                answer = await host.ask(route.method, path, body, fields)
                found[f"{route.method} {path}"] = answer.status
            return found

    statuses = run(main())
    opened = {path for path, status in statuses.items() if status != 401}
    # The page is the same for everybody, and asks for the key itself.
    assert opened == {"GET /", "GET /ui", "GET /localfirst/health"}
    assert all(statuses[path] == 200 for path in opened)


def test_a4_the_open_ones_say_nothing() -> None:
    async def main() -> list[Answer]:
        async with hosted(ScriptedRuntime(key="right")) as host:
            return [await host.ask("GET", path) for path in ("/", "/localfirst/health")]

    assert [answer.body for answer in run(main())] == [b"Ollama is running", b'{"status":"ok"}']


def test_a5_keys_are_compared_in_constant_time_only() -> None:
    tree = ast.parse(Path(guard.__file__).read_text())
    function = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "_is_key"
    )
    assert "compare_digest" in ast.unparse(function)
    assert not any(isinstance(node, ast.Compare) for node in ast.walk(function))
    assert ast.unparse(tree).count(".reveal()") == 1, "digests are kept, not keys"


@pytest.mark.parametrize("name", [b"key", b"api_key", b"Key", b"%6bey", b"a=1&access_token"])
def test_a7_a_key_in_the_url_is_refused(name: bytes) -> None:
    attack = get(b"/v1/models?" + name + b"=lf-canary-7f3a90")
    stage(Attack("A7", attack, 400, "key-in-url"))


def test_other_queries_are_let_be() -> None:
    async def main() -> Answer:
        async with hosted(ScriptedRuntime()) as host:
            return await host.ask("POST", "/v1/chat/completions?beta=true", BODY)

    assert run(main()).status == 200

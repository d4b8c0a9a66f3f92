"""Our own endpoints, and the promise that their description is true."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from localfirst.gateway.openapi import document
from localfirst.gateway.routes import ROUTES
from localfirst.settings import GatewaySettings
from tests.fakes.gateway_host import Answer, hosted, run
from tests.fakes.scripted_runtime import ScriptedRuntime

BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"input":"x"}'


def ask(
    *asks: tuple[str, str, bytes | None], runtime: ScriptedRuntime | None = None
) -> list[Answer]:
    async def main() -> list[Answer]:
        async with hosted(runtime or ScriptedRuntime()) as host:
            return [await host.ask(method, path, body) for method, path, body in asks]

    return run(main())


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    paths: dict[str, dict[str, Any]] = json.loads(document(ROUTES))["paths"]
    described = {(method.upper(), path) for path, item in paths.items() for method in item}
    real = {
        (route.method, route.path.decode() + ("{name}" if route.prefix else "")) for route in ROUTES
    }
    assert described == real
    (served,) = ask(("GET", "/localfirst/openapi.json", None))
    assert served.json == json.loads(document(ROUTES))


def test_every_answer_is_one_that_the_description_names() -> None:
    paths = json.loads(document(ROUTES))["paths"]
    for path, item in paths.items():
        for method, operation in item.items():
            bodies = [BODY, b"{}", b"[1]", b"{"] if method == "post" else [None]
            real = path.replace("{name}", "auto")
            for answer in ask(*((method.upper(), real, body) for body in bodies)):
                named = operation["responses"][str(answer.status)]
                kind = answer.headers["content-type"].partition(";")[0]
                assert kind in named["content"], (path, answer)
                assert answer.status < 500


def test_the_state_names_engine_pulls_and_server() -> None:
    runtime = ScriptedRuntime()
    runtime.puller.start("llama3.2:3b")
    (state,) = ask(("GET", "/localfirst/state", None), runtime=runtime)
    assert state.json["engine"]["kind"] == "ollama"
    assert state.json["pulls"][0]["percent"] == 12.3
    assert state.json["gateway"]["running"] == 0, "who asks for the state is not counted"


def test_explain_shows_steps_and_sends_nothing() -> None:
    runtime = ScriptedRuntime()
    good, odd = ask(
        ("GET", "/localfirst/explain?model=llama3.2:3b", None),
        ("GET", "/localfirst/explain?modle=x", None),
        runtime=runtime,
    )
    assert good.json["steps"][0]["reason"] == "it is loaded"
    assert (odd.status, odd.json["error"]["param"]) == (400, "modle")
    assert runtime.calls == [] and runtime.asked[-1] == "explain llama3.2:3b"


def test_a_pull_is_started_paused_resumed_and_cancelled() -> None:
    asked = [
        ("POST", "/localfirst/pulls", json.dumps({"model": "llama3.2:3b", "action": word}).encode())
        for word in ("start", "pause", "resume", "cancel", "dance")
    ]
    *done, odd = ask(*asked)
    assert [one.json["state"] for one in done] == ["pulling", "paused", "pulling", "cancelled"]
    assert odd.status == 400
    (missing,) = ask(("POST", "/localfirst/pulls", b'{"model":"a","action":"pause"}'))
    assert missing.status == 404


def test_metrics_are_prometheus_text_that_adds_up() -> None:
    *_, metrics = ask(
        ("POST", "/v1/chat/completions", BODY),
        ("POST", "/v1/chat/completions", b"{"),
        ("GET", "/nothing?x=evil", None),
        ("GET", "/metrics", None),
    )
    text = metrics.body.decode()
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r'[a-z_]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? [0-9.e+-]+|# .+')
    assert all(line.fullmatch(one) for one in text.splitlines())
    assert 'localfirst_requests_total{route="openai.chat",status="200",outcome="ok"} 1' in text
    assert 'status="400",outcome="invalid-json"' in text
    assert 'localfirst_answers_total{rung="local",provider="local"} 1' in text
    assert 'duration_seconds_bucket{route="openai.chat",le="+Inf"} 2' in text
    assert "evil" not in text and "nothing" not in text


@pytest.mark.parametrize("path", ["/ui", "/"])
def test_the_page_needs_nothing_from_elsewhere(path: str) -> None:
    async def main() -> Answer:
        async with hosted(ScriptedRuntime()) as host:
            return await host.ask("GET", path, headers={"accept": "text/html"})

    page = run(main())
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    text = page.body.decode()
    # By paths relative to its own, which may stand under a prefix.
    assert '"localfirst/state"' in text and '"localfirst/pulls"' in text
    assert "max-width: 40rem" in text, "rows stack in a narrow window"
    assert not re.search(r"(src|href)\s*=|https?://|innerHTML", text)


def test_health_says_when_it_is_stopping() -> None:
    async def main() -> Answer:
        async with hosted(ScriptedRuntime(gateway=GatewaySettings(port=0))) as host:
            host.server.gateway.draining = True
            return await host.ask("GET", "/localfirst/health")

    answer = run(main())
    assert (answer.status, answer.json["error"]["code"]) == (503, "stopping")

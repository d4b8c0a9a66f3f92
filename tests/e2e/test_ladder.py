"""
One request, end to end, down every rung: `localfirst serve` in its own process, clients and
upstreams on real sockets, and the embedded engine or a real Ollama where a model answers.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from localfirst.models import toy
from tests.fakes import registry
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.engine_bench import NO_REAL, REAL, Served, fake_daemon, real_daemon
from tests.fakes.house import House, house

SAY = [{"role": "user", "content": "hello"}]
EMBEDDED = {"LOCALFIRST_LOCAL_ENGINE": "llamacpp"}
NO_ENGINE = {"LOCALFIRST_LOCAL_ENGINE": "none"}
LAMBDA = {
    "AWS_LAMBDA_FUNCTION_NAME": "f",
    "LAMBDA_TASK_ROOT": "/var/task",
    "AWS_EXECUTION_ENV": "AWS_Lambda_python3.11",
}
real = [pytest.mark.real_ollama, pytest.mark.skipif(not REAL.exists(), reason=NO_REAL)]


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[registry.FakeRegistry]:
    toy.publish(tmp_path / "shop")
    with registry.running(tmp_path / "shop") as running:
        yield running


def keyed(cloud: FakeCloud, *providers: str) -> dict[str, str]:
    """Variables that give each provider a key and the fake's address."""
    found: dict[str, str] = {}
    for provider in providers:
        found[f"{provider.upper()}_API_KEY"] = f"{provider}-key-0123456789abcdef"
        found[f"{provider.upper()}_BASE_URL"] = cloud.base_url(provider)
    return found


def client(at: House) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{at.url}/v1", api_key="unused", max_retries=0, timeout=30)


def ask(at: House, **more: Any) -> Any:
    """A whole answer with its headers, by the openai package."""
    with client(at) as speaker:
        more = {"model": "auto", "max_tokens": 8, "messages": SAY} | more
        return speaker.chat.completions.with_raw_response.create(**more)


def stream(at: House, **more: Any) -> tuple[str, str, dict[str, str]]:
    """A streamed answer: its text, its finish reason, its headers."""
    with client(at) as speaker:
        more = {"model": "auto", "max_tokens": 8, "messages": SAY} | more
        raw = speaker.chat.completions.with_raw_response.create(stream=True, **more)
        text, reason = "", ""
        for chunk in raw.parse():
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        return text, reason, dict(raw.headers)


def test_the_whole_ladder_down_to_a_model_that_is_pulled_and_embedded(
    tmp_path: Path, shop: registry.FakeRegistry
) -> None:
    """No Ollama, no key: a pull seen in the stream itself, then tokens of a real engine."""
    with house(
        tmp_path, **EMBEDDED, LOCALFIRST_LOCAL_LAST_RESORT=shop.name(), PATH="/nonexistent"
    ) as at:
        body = {"model": "auto", "stream": True, "max_tokens": 8, "messages": SAY}
        raw = post(at, b"/v1/chat/completions", json.dumps(body).encode())
        text, reason, headers = stream(at)
    head, _, events = raw.partition(b"\r\n\r\n")
    assert b"x-localfirst-rung: pull" in head
    assert b": pulling" in events
    assert events.index(b": pulling") < events.index(b'"content"')
    assert b"data: [DONE]" in events
    assert (bool(text), reason) == (True, "length")
    assert headers["x-localfirst-rung"] == "local"
    assert headers["x-localfirst-trail"] == "local=ok"


def test_serverless_targets_never_download(tmp_path: Path, shop: registry.FakeRegistry) -> None:
    environ = EMBEDDED | LAMBDA | {"LOCALFIRST_LOCAL_LAST_RESORT": shop.name()}
    with house(tmp_path, **environ) as at, pytest.raises(openai.APIStatusError) as caught:
        ask(at)
    assert caught.value.status_code == 503
    assert "LOCALFIRST_SERVERLESS" in caught.value.message
    assert shop.requests() == []


def test_a_prompt_that_the_last_resort_cannot_hold_downloads_nothing(
    tmp_path: Path, shop: registry.FakeRegistry
) -> None:
    mirror = {"LOCALFIRST_PULL_MIRRORS": f"registry.ollama.ai=http://{shop.host}"}
    resort = {"LOCALFIRST_LOCAL_LAST_RESORT": "qwen3:0.6b"}  # fits everywhere
    long = [{"role": "user", "content": "many words " * 40_000}]
    environ = EMBEDDED | mirror | resort
    with house(tmp_path, **environ) as at, pytest.raises(openai.APIStatusError) as caught:
        ask(at, messages=long)
    assert caught.value.status_code == 413
    assert caught.value.code == "context_length_exceeded"
    assert "the window of 40960 of `qwen3:0.6b`" in caught.value.message
    assert shop.requests() == []


def test_this_machine_is_preferred_to_any_cloud(tmp_path: Path, cloud: FakeCloud) -> None:
    toy.publish(tmp_path / "models")
    with house(tmp_path, **EMBEDDED, **keyed(cloud, "groq", "gemini")) as at:
        answer = ask(at)
    assert answer.headers["x-localfirst-route"] == "local/tiny:latest"
    assert answer.headers["x-localfirst-egress"] == "none"
    assert answer.parse().usage.completion_tokens == 8
    assert cloud.requests() == []


def test_a_first_cloud_that_is_limited_lets_the_second_answer(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script({"do": "status", "status": 429, "headers": {"retry-after": "30"}}, part="groq")
    with house(tmp_path, **NO_ENGINE, **keyed(cloud, "groq", "gemini")) as at:
        answer = ask(at)
        # The second request knows: groq is not asked again before its time.
        again, _, headers = stream(at)
    assert answer.headers["x-localfirst-trail"] == "groq=rate_limit,gemini=ok"
    assert answer.headers["x-localfirst-attempts"] == "2"
    assert answer.headers["x-localfirst-egress"] == "groq,gemini"
    assert headers["x-localfirst-trail"] == "gemini=ok"
    assert again
    assert [request["part"] for request in cloud.requests()] == ["groq", "gemini", "gemini"]


def test_a_default_model_that_is_gone_is_replaced_by_the_next_one(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    body = {"error": {"message": "The model does not exist", "code": "model_not_found"}}
    cloud.script({"do": "status", "status": 404, "body": body}, part="groq")
    with house(tmp_path, **NO_ENGINE, **keyed(cloud, "groq")) as at:
        first = ask(at).headers
        second = ask(at).headers
    assert first["x-localfirst-trail"] == "groq=model_not_found,groq=ok"
    assert second["x-localfirst-trail"] == "groq=ok"
    asked = [request["body"]["model"] for request in cloud.requests()]
    assert asked[1] == asked[2] != asked[0]


def test_what_a_request_does_not_say_the_settings_do(tmp_path: Path, cloud: FakeCloud) -> None:
    environ = NO_ENGINE | keyed(cloud, "groq") | {"LLM_TEMPERATURE": "0.2", "LLM_MAX_TOKENS": "77"}
    with house(tmp_path, **environ) as at:
        ask(at, max_tokens=openai.omit)
        ask(at, max_tokens=5, temperature=1)
    said = [request["body"] for request in cloud.requests()]
    limits = [body.get("max_tokens") or body.get("max_completion_tokens") for body in said]
    assert (limits, [body["temperature"] for body in said]) == ([77, 5], [0.2, 1])


def test_an_answer_is_remembered_when_that_is_asked_for(tmp_path: Path, cloud: FakeCloud) -> None:
    environ = NO_ENGINE | keyed(cloud, "groq") | {"LOCALFIRST_CASCADE_CACHE_TTL_S": "60"}
    with house(tmp_path, **environ) as at:
        answers = [ask(at, temperature=0) for _ in range(2)]
        other = ask(at, temperature=1)
    texts = {answer.parse().choices[0].message.content for answer in answers}
    assert len(texts) == 1
    assert len(cloud.requests()) == 2
    told = [answer.headers.get("x-localfirst-cache", "") for answer in (*answers, other)]
    assert told == ["", "hit", ""]


def test_the_days_budget_closes_the_clouds_and_says_so(tmp_path: Path, cloud: FakeCloud) -> None:
    environ = NO_ENGINE | keyed(cloud, "groq") | {"LLM_FALLBACK_ORDER": "local,groq"}
    with house(tmp_path, **environ, LOCALFIRST_BUDGET_CLOUD_REQUESTS_PER_DAY="1") as at:
        ask(at)
        with pytest.raises(openai.APIStatusError, match="cloud_requests_per_day"):
            ask(at)
    assert len(cloud.requests()) == 1
    # A limit on money fails closed: nobody knows what this model costs.
    environ["GROQ_MODEL"] = "somebody/unpriced"
    (tmp_path / "other").mkdir()
    with (
        house(tmp_path / "other", **environ, LOCALFIRST_BUDGET_USD_PER_DAY="5") as at,
        pytest.raises(openai.APIStatusError, match="price"),
    ):
        ask(at, model="groq/somebody/unpriced")
    assert len(cloud.requests()) == 1


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("said", "trail", "got"),
    [
        (['{"city": "Bonn", "people": 3}'], "groq=ok", '{"city": "Bonn", "people": 3}'),
        (['```json\n{"city": "Bonn", "people": 3,}\n```'], "groq=ok", '{"city":"Bonn","people":3}'),
        (
            ['{"city": "Bonn"}', '{"city": "Bonn", "people": 4}'],
            "groq=invalid_response,groq=ok",
            '{"city": "Bonn", "people": 4}',
        ),
        (
            ["[" * 5000, '{"city": "Bonn", "people": 4}'],
            "groq=invalid_response,groq=ok",
            '{"city": "Bonn", "people": 4}',
        ),
        (
            # Two models of the first cloud, each asked twice.
            ["no idea", "still none", "none", "none at all"],
            "groq=invalid_response," * 4 + "gemini=ok",
            '{"city": "Ulm", "people": 9}',
        ),
    ],
    ids=["valid", "repaired", "asked again", "without end", "next candidate"],
)
def test_a_schema_is_met_or_somebody_else_is_asked(
    said: list[str], trail: str, got: str, tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script(*[{"do": "ok", "chunks": [text]} for text in said], part="groq")
    cloud.script({"do": "ok", "chunks": ['{"city": "Ulm", "people": 9}']}, part="gemini")
    form = {"type": "json_schema", "json_schema": {"name": "town", "schema": SCHEMA}}
    with house(tmp_path, **NO_ENGINE, **keyed(cloud, "groq", "gemini")) as at:
        answer = ask(at, response_format=form, max_tokens=100)
    assert answer.parse().choices[0].message.content == got
    assert answer.headers["x-localfirst-trail"] == trail


def test_nobody_answers_and_the_report_names_every_attempt(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script({"do": "status", "status": 401, "times": -1}, part="groq")
    cloud.script({"do": "status", "status": 500, "times": -1}, part="gemini")
    keys = keyed(cloud, "groq", "gemini")
    config = "order = ['local', 'groq', 'gemini']\n[cascade]\nbackoff_s = [0.01]"
    with (
        house(tmp_path, config=config, **NO_ENGINE, **keys) as at,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        ask(at)
    error = caught.value
    assert error.status_code == 503
    body: Any = error.body
    tried = {(one["provider"], one["outcome"]) for one in body["attempts"]}
    assert {("groq", "auth"), ("gemini", "unavailable")} <= tried
    assert ("local", "skipped") in tried
    assert "x-localfirst-trail" in error.response.headers
    said = error.response.text + "".join(at.said)
    assert not any(value in said for value in keys.values() if "key" in value)


def test_local_only_keeps_every_request_here(tmp_path: Path, cloud: FakeCloud) -> None:
    """Neither the setting nor the header lets a cloud be asked, whatever its address."""
    environ = NO_ENGINE | keyed(cloud, "groq", "anthropic")
    private = {"x-localfirst-privacy": "local-only"}
    with house(tmp_path, **environ) as at, pytest.raises(openai.APIStatusError) as by_header:
        ask(at, extra_headers=private)
    environ["LOCALFIRST_PRIVACY"] = "local-only"
    with house(tmp_path, **environ) as at:
        with pytest.raises(openai.APIStatusError) as by_setting:
            ask(at)
        with pytest.raises(openai.APIStatusError) as by_name:
            ask(at, model="groq/openai/gpt-oss-20b")
    assert [e.value.status_code for e in (by_header, by_setting, by_name)] == [503, 503, 403]
    assert cloud.requests() == []


@asynccontextmanager
async def daemon(kind: str, folder: Path) -> AsyncIterator[Served]:
    """An Ollama with the toy model: the scripted one or a real one."""
    store = folder / "models"
    toy.publish(store)
    script = {"models": {"tiny": {"context": 2048, "window": 2048}}}
    made = fake_daemon(script) if kind == "fake" else real_daemon(folder, store)
    async with made as served:
        yield served


@pytest.mark.parametrize("kind", ["fake", pytest.param("real", marks=real)])
def test_a_running_ollama_is_adopted_and_answers(kind: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with daemon(kind, tmp_path) as served:
            with house(tmp_path, OLLAMA_HOST=served.endpoint) as at:
                text, reason, headers = await asyncio.to_thread(stream, at, model="tiny")
                answer = await asyncio.to_thread(ask, at)
            assert text
            assert reason in {"length", "stop"}
            assert headers["x-localfirst-route"] == "local/tiny:latest"
            assert answer.headers["x-localfirst-rung"] == "local"
            # What we did not start, we do not stop.
            assert served.child.alive

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["fake", pytest.param("real", marks=real)])
def test_an_ollama_takes_over_after_a_cloud_fails(
    kind: str, tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script({"do": "status", "status": 503, "times": -1}, part="groq")

    async def scenario() -> dict[str, str]:
        async with daemon(kind, tmp_path) as served:
            environ = keyed(cloud, "groq") | {"LLM_FALLBACK_ORDER": "groq,ollama"}
            config = "[cascade]\nbackoff_s = [0.01]"
            with house(tmp_path, config=config, OLLAMA_HOST=served.endpoint, **environ) as at:
                return (await asyncio.to_thread(stream, at))[2]

    headers = asyncio.run(scenario())
    assert headers["x-localfirst-route"] == "local/tiny:latest"
    assert headers["x-localfirst-trail"].startswith("groq=unavailable")
    assert headers["x-localfirst-trail"].endswith("local=ok")


@pytest.mark.parametrize("kind", ["fake", pytest.param("real", marks=real)])
def test_an_ollama_that_dies_is_replaced_by_a_cloud(
    kind: str, tmp_path: Path, cloud: FakeCloud
) -> None:
    async def scenario() -> tuple[dict[str, str], dict[str, str]]:
        async with daemon(kind, tmp_path) as served:
            environ = keyed(cloud, "groq") | {"LOCALFIRST_LOCAL_START": "false"}
            environ["LOCALFIRST_LOCAL_ENGINE"] = "ollama"
            with house(tmp_path, OLLAMA_HOST=served.endpoint, **environ) as at:
                before = (await asyncio.to_thread(stream, at))[2]
                await served.child.stop()
                after = (await asyncio.to_thread(stream, at))[2]
        return before, after

    before, after = asyncio.run(scenario())
    assert before["x-localfirst-rung"] == "local"
    assert after["x-localfirst-route"].startswith("groq/")
    assert after["x-localfirst-trail"].endswith("groq=ok")


def post(at: House, path: bytes, body: bytes) -> bytes:
    """The raw bytes of one answer, on a connection of its own."""
    host, _, port = at.url.removeprefix("http://").partition(":")
    head = b"POST %s HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n" % (
        path,
        host.encode(),
        port.encode(),
    )
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(head + body)
        pieces = []
        while piece := wire.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)

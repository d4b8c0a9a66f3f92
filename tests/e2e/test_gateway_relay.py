"""The gateway over a real runtime and a scripted cloud: bytes through, faults told, keys kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from localfirst.runtime import Runtime
from localfirst.settings import GatewaySettings, LocalSettings, ProviderSettings, Secret, Settings
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.gateway_host import Answer, Host, hosted, run, until

CHAT = "/v1/chat/completions"
OURS = "sk-of-the-gateway-4f1c9"
THEIRS = "sk-of-the-client-77aa"


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud("--port", "0") as running:
        yield running


def settings(folder: Path, cloud: FakeCloud, *parts: str, dialect: str = "openai") -> Settings:
    """A machine without engines whose clouds are parts of the fake one."""
    providers = {
        part: ProviderSettings(
            model="m",
            base_url=cloud.base_url(part),
            keys=(Secret(OURS, f"{part.upper()}_API_KEY"),),
            dialect=dialect,
        )
        for part in parts
    }
    return Settings(
        order=parts,
        state_dir=str(folder / "state"),
        local=LocalSettings(engine="none", models_dir=str(folder / "models")),
        providers=providers,
        gateway=GatewaySettings(port=0),
    )


def through(given: Settings, use: Any) -> Any:
    async def main() -> Any:
        async with Runtime(given, environ={}) as runtime, hosted(runtime) as host:
            return await use(host)

    return run(main())


def body(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def ask(given: Settings, sent: bytes, path: str = CHAT, **headers: str) -> Answer:
    async def use(host: Host) -> Answer:
        return await host.ask("POST", path, sent, headers)

    found: Answer = through(given, use)
    return found


def test_a_relayed_answer_carries_its_route_and_a_whole_body(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.reset()
    answer = ask(settings(tmp_path, cloud, "one"), body())
    assert answer.status == 200 and answer.json["choices"][0]["message"]["content"]
    assert answer.headers["x-localfirst-route"] == "one/m"
    assert answer.headers["x-localfirst-rung"] == "cloud"
    assert answer.headers["x-localfirst-egress"] == "none", "this cloud is on loopback"


def test_the_first_cloud_is_limited_and_the_second_answers(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.reset()
    cloud.script({"do": "status", "status": 429, "times": -1}, part="one")
    answer = ask(settings(tmp_path, cloud, "one", "two"), body(stream=True))
    assert answer.complete and answer.body.endswith(b"data: [DONE]\n\n")
    assert answer.headers["x-localfirst-route"] == "two/m"
    assert answer.headers["x-localfirst-trail"].startswith("one=rate_limit,")


def test_a6_only_our_own_headers_and_key_go_out(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.reset()
    shown = {
        "authorization": f"Bearer {THEIRS}",
        "cookie": f"session={THEIRS}",
        "x-api-key": THEIRS,
        "proxy-authorization": THEIRS,
        "x-forwarded-for": "1.2.3.4",
        "x-stainless-lang": "python",
    }
    assert ask(settings(tmp_path, cloud, "one"), body(), **shown).status == 200
    (request,) = cloud.requests()
    sent = {name.lower(): value for name, value in dict(request["headers"]).items()}
    allowed = {"host", "content-type", "content-length", "user-agent", "accept", "authorization",
               "accept-encoding", "connection"}  # fmt: skip
    assert set(sent) <= allowed
    assert sent["authorization"] == f"Bearer {OURS}"
    assert THEIRS not in json.dumps(request)


def test_k3_a_key_in_a_clouds_error_is_not_passed_on(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.reset()
    complaint = json.dumps({"error": {"message": f"Incorrect API key provided: {OURS}"}})
    cloud.script({"do": "status", "status": 401, "body": complaint, "times": -1})
    answer = ask(settings(tmp_path, cloud, "one"), body())
    assert answer.status == 503 and answer.headers["x-localfirst-trail"] == "one=auth"
    assert OURS.encode() not in answer.body


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
def test_a_cut_after_content_is_told_in_each_surface(
    path: str, tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.reset()
    cloud.script({"do": "cut", "events": 3, "times": -1})
    answer = ask(settings(tmp_path, cloud, "one"), body(stream=True, max_tokens=9), path)
    assert answer.status == 200 and not answer.complete
    assert b"stream-interrupted" in answer.body
    for end in (b"[DONE]", b"message_stop", b'"done":true'):
        assert end not in answer.body


def test_a_client_that_leaves_closes_the_upstream_within_a_second(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.reset()
    cloud.script({"do": "stall", "events": 3, "times": -1})

    async def use(host: Host) -> float:
        before = await asyncio.to_thread(cloud.state)
        reader, writer = await host.connect()
        sent = body(stream=True)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host.at}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        await reader.readuntil(b"data: ")
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer.close()
        while (await asyncio.to_thread(cloud.state))["aborted"] == before["aborted"]:
            assert loop.time() - began < 5
        return loop.time() - began

    assert through(settings(tmp_path, cloud, "one"), use) < 1.0


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_every_surface_works_over_every_clouds_dialect(
    path: str, dialect: str, stream: bool, tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.reset()
    given = settings(tmp_path, cloud, "one", dialect=dialect)
    answer = ask(given, body(stream=stream, max_tokens=9, input="hi"), path)
    assert answer.status == 200 and answer.complete, answer
    if not stream:
        said = answer.json
        text = said.get("message") or said.get("output") or said.get("content") or said["choices"]
        assert text
    else:
        end = {CHAT: b"[DONE]", "/v1/responses": b"response.completed",
               "/v1/messages": b"message_stop", "/api/chat": b'"done":true'}  # fmt: skip
        assert end[path] in answer.body


def test_the_openai_client_streams_through_the_whole_house(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.reset()

    async def use(host: Host) -> str:
        async with openai.AsyncOpenAI(base_url=f"{host.url}/v1", api_key="x") as client:
            stream = await client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    assert through(settings(tmp_path, cloud, "one"), use)


def test_concurrent_requests_leave_no_task_behind(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.reset()

    async def use(host: Host) -> list[int]:
        await host.ask("POST", CHAT, body())
        before = len(asyncio.all_tasks())
        sent = (body(stream=bool(number % 2)) for number in range(40))
        answers = await asyncio.gather(*(host.ask("POST", CHAT, one) for one in sent))
        await until(lambda: len(asyncio.all_tasks()) <= before, "the tasks' end")
        return [answer.status for answer in answers]

    assert through(settings(tmp_path, cloud, "one"), use) == [200] * 40

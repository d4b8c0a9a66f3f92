"""What a backend sends to a cloud, what it learns from refusals, and the lists it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from localfirst.engines.base import Backend, Limits
from localfirst.errors import (
    PrivacyRefused,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.events import Event, Finished, FinishReason, Opened, Relayed, ToolCallDelta
from localfirst.providers.anthropic import AnthropicBackend
from localfirst.providers.catalog import CATALOG, configured
from localfirst.providers.cloud import CloudBackend, model_ids
from localfirst.providers.learned import named_fields
from localfirst.providers.listing import ModelLists
from localfirst.providers.openai import OpenAIBackend
from localfirst.settings import ProviderSettings, Secret, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, ChatRequest, Dialect, Message, Needs, Rung, Target, Tool
from localfirst.wire.openai import requests
from tests.fakes.cloud_process import FakeCloud, fake_cloud

TOOL = {"name": "look", "arguments": {"where": "Paris"}}
KEYS = (Secret("key-number-one-0001", "A"), Secret("key-number-two-0002", "B"))


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: FakeCloud) -> FakeCloud:
    shared.reset()
    return shared


class HandClock(SystemClock):
    """Wall time that is moved by hand."""

    now = 1_790_000_000.0

    def unix(self) -> float:
        return self.now


def backend_of(cloud: FakeCloud, name: str, upstream: UpstreamClient, **more: Any) -> Any:
    given = {"base_url": cloud.base_url(name), "keys": KEYS, **more}
    provider = configured(Settings(providers={name: ProviderSettings(**given)}))[name]
    kind = AnthropicBackend if provider.dialect is Dialect.ANTHROPIC else OpenAIBackend
    return kind(provider, upstream, SystemClock())


def chat(stream: bool = False, **fields: Any) -> Call:
    request = ChatRequest(messages=(Message(role="user", content="hi"),), stream=stream, **fields)
    return Call(
        model="auto", stream=stream, dialect=Dialect.OLLAMA, request_id="r", request=request
    )


def body_call(dialect: Dialect, body: dict[str, Any]) -> Call:
    raw = json.dumps(body, separators=(",", ":")).encode()
    return Call(
        model=body["model"],
        stream=bool(body.get("stream")),
        dialect=dialect,
        request_id="r",
        body=raw,
        relay=True,
        decode=requests.decode,
    )


def with_backend(
    cloud: FakeCloud, name: str, work: Callable[[Any], Awaitable[Any]], **more: Any
) -> Any:
    async def main() -> Any:
        upstream = UpstreamClient(SystemClock())
        try:
            return await work(backend_of(cloud, name, upstream, **more))
        finally:
            await upstream.aclose()

    return asyncio.run(main())


def ask(cloud: FakeCloud, name: str, call: Call, *, model: str = "", label: str = "") -> Any:
    async def work(backend: CloudBackend) -> list[Event]:
        target = Target(
            rung=Rung.CLOUD,
            provider=name,
            model=model or backend.provider.default_models[0],
            key_label=label,
        )
        return [event async for event in backend.answer(call, target, Limits())]

    return with_backend(cloud, name, work)


def sent(cloud: FakeCloud, number: int = -1) -> dict[str, Any]:
    found: dict[str, Any] = cloud.requests()[number]["body"]
    return found


# --- every cloud ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("name", CATALOG)
def test_every_cloud_of_the_catalogue_is_asked_in_its_way(
    cloud: FakeCloud, name: str, stream: bool
) -> None:
    call = chat(stream, temperature=0.5, seed=1, max_tokens=10, user="me", tools=(Tool(name="t"),))
    events = ask(cloud, name, call)
    assert isinstance(events[0], Opened)
    assert isinstance(events[-1], Finished)
    assert events[-1].usage is not None or (stream and not CATALOG[name].quirks.stream_usage)
    record = cloud.requests()[0]
    spec = CATALOG[name]
    tail = "/messages" if spec.dialect is Dialect.ANTHROPIC else "/chat/completions"
    assert record["path"] == f"/{name}/v1{tail}"
    assert record["body"]["model"] == spec.models.fast[0]
    # A rename may give a dropped name back to another field; nothing else may appear.
    assert not set(record["body"]) & (spec.quirks.drop - set(spec.quirks.rename.values()))
    if spec.dialect is Dialect.OPENAI:
        assert record["body"][spec.quirks.max_tokens_field] == 10


def test_both_backends_are_backends() -> None:
    for kind in (OpenAIBackend, AnthropicBackend):
        provider = configured(Settings())["groq"]
        assert isinstance(kind(provider, UpstreamClient(SystemClock()), SystemClock()), Backend)


def test_a_key_travels_in_its_dialects_header_and_nowhere_else(cloud: FakeCloud) -> None:
    ask(cloud, "groq", chat())
    ask(cloud, "anthropic", chat(), label="B")
    first, second = cloud.requests()
    assert first["headers"]["authorization"] == "Bearer key-number-one-0001"
    assert second["headers"]["x-api-key"] == "key-number-two-0002"
    assert second["headers"]["anthropic-version"] == "2023-06-01"
    assert "authorization" not in second["headers"]
    assert "key-number" not in json.dumps([first["path"], first["body"], second["body"]])


def test_the_label_of_a_target_chooses_the_key(cloud: FakeCloud) -> None:
    for label in ("A", "B", ""):
        ask(cloud, "groq", chat(), label=label)
    used = [record["headers"]["authorization"][-4:] for record in cloud.requests()]
    assert used == ["0001", "0002", "0001"]


def test_a_server_without_key_gets_no_authorization(cloud: FakeCloud) -> None:
    async def work(backend: CloudBackend) -> None:
        target = Target(rung=Rung.CLOUD, provider="mybox", model="m")
        assert [event async for event in backend.answer(chat(), target, Limits())]

    with_backend(cloud, "mybox", work, keys=())
    assert "authorization" not in cloud.requests()[0]["headers"]


def test_deepseek_thinks_only_when_asked(cloud: FakeCloud) -> None:
    ask(cloud, "deepseek", chat())
    call = chat(think=True)
    call.needs = Needs(thinking=True)
    ask(cloud, "deepseek", call)
    assert sent(cloud, 0)["thinking"] == {"type": "disabled"}
    assert "thinking" not in sent(cloud, 1)


def test_local_only_reaches_no_cloud() -> None:
    async def main() -> None:
        upstream = UpstreamClient(SystemClock())
        provider = configured(Settings(providers={"groq": ProviderSettings(keys=KEYS)}))["groq"]
        backend = OpenAIBackend(provider, upstream, SystemClock())
        call = chat()
        call.local_only = True
        with pytest.raises(PrivacyRefused):
            async for _ in backend.answer(
                call, Target(rung=Rung.CLOUD, provider="groq", model="m"), Limits()
            ):
                pass
        with pytest.raises(PrivacyRefused):
            await backend.models(local_only=True)
        await upstream.aclose()

    asyncio.run(main())


def test_a_request_the_dialect_cannot_say_is_refused_unsent(cloud: FakeCloud) -> None:
    with pytest.raises(UpstreamRefused):
        ask(cloud, "groq", chat(prompt="a", suffix="b"))
    assert cloud.requests() == []


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("name", ["groq", "anthropic"])
def test_tool_calls_come_whole(cloud: FakeCloud, name: str, stream: bool) -> None:
    cloud.script({"do": "ok", "tool": TOOL})
    events = ask(cloud, name, chat(stream, tools=(Tool(name="look"),)))
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert pieces[0].name == "look" and pieces[0].id
    assert json.loads("".join(piece.arguments for piece in pieces)) == TOOL["arguments"]
    assert events[-1].reason is FinishReason.TOOL_CALLS


# --- relay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("name", "dialect"), [("openai", Dialect.OPENAI), ("anthropic", Dialect.ANTHROPIC)]
)
def test_the_same_dialect_is_relayed_with_only_the_model_changed(
    cloud: FakeCloud, name: str, dialect: Dialect, stream: bool
) -> None:
    body = {
        "model": "auto",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "Grüße \u2028"}],
        "stream": stream,
        "metadata": {"user_id": "u"},
    }
    model = "gpt-4o-mini" if name == "openai" else "claude-haiku-5-5"
    events = ask(cloud, name, body_call(dialect, body), model=model)
    relayed = [event for event in events if isinstance(event, Relayed)]
    assert relayed == events[1:] and relayed[-1].final
    assert any(event.content for event in relayed)
    assert relayed[-1].usage is not None
    got = sent(cloud)
    if name == "openai":
        body["max_completion_tokens"] = body.pop("max_tokens")
        if stream:
            body["stream_options"] = {"include_usage": True}
    assert got == {**body, "model": model}


def test_usage_that_the_client_did_not_ask_for_is_not_shown(cloud: FakeCloud) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "stream": True}
    quiet = ask(cloud, "groq", body_call(Dialect.OPENAI, body))
    body["stream_options"] = {"include_usage": True}
    asked = ask(cloud, "groq", body_call(Dialect.OPENAI, body))
    shown = [b"".join(e.data for e in es if isinstance(e, Relayed)) for es in (quiet, asked)]
    assert b"prompt_tokens" not in shown[0]
    assert b'"choices":[],"usage"' in shown[1]
    assert quiet[-1].usage == asked[-1].usage is not None


def test_another_dialect_is_decoded(cloud: FakeCloud) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    events = ask(cloud, "anthropic", body_call(Dialect.OPENAI, body))
    assert isinstance(events[-1], Finished)
    assert sent(cloud)["messages"] == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


# --- what refusals teach -------------------------------------------------------------------

REFUSALS: list[tuple[int, Any, str]] = [
    (400, {"error": {"message": "Unknown parameter: 'seed'.", "param": "seed"}}, "seed"),
    (
        400,
        [{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed"'}}],
        "seed",
    ),
    (
        400,
        {
            "error": {
                "message": "Unsupported parameter: 'temperature' is not supported with this model.",
                "param": "temperature",
                "code": "unsupported_parameter",
            }
        },
        "temperature",
    ),
    (
        422,
        {
            "object": "error",
            "message": {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "top_p"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        },
        "top_p",
    ),
]
FIELDS = {"seed": 1, "temperature": 0.3, "top_p": 0.9}


@pytest.mark.parametrize(("status", "body", "field"), REFUSALS)
def test_a_field_that_a_cloud_refuses_is_dropped_retried_and_remembered(
    cloud: FakeCloud, status: int, body: Any, field: str
) -> None:
    cloud.script({"do": "status", "status": status, "body": body})

    async def work(backend: CloudBackend) -> None:
        target = Target(rung=Rung.CLOUD, provider="together", model="m")
        for _ in range(2):
            events = [e async for e in backend.answer(chat(**FIELDS), target, Limits())]
            assert isinstance(events[-1], Finished)
        assert backend.learned["m"].drop == {field}
        other = Target(rung=Rung.CLOUD, provider="together", model="other")
        assert [e async for e in backend.answer(chat(**FIELDS), other, Limits())]

    with_backend(cloud, "together", work)
    carried = [field in record["body"] for record in cloud.requests()]
    assert carried == [True, False, False, True]


def test_several_fields_named_at_once_are_all_dropped(cloud: FakeCloud) -> None:
    forbidden = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
        for name in ("seed", "top_p")
    ]
    cloud.script({"do": "status", "status": 422, "body": {"detail": forbidden}})
    assert isinstance(ask(cloud, "together", chat(**FIELDS))[-1], Finished)
    assert set(sent(cloud)) & set(FIELDS) == {"temperature"}
    assert len(cloud.requests()) == 2


def test_the_limits_other_name_is_learnt(cloud: FakeCloud) -> None:
    said = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead."
    )
    error = {"message": said, "param": "max_tokens", "code": "unsupported_parameter"}
    cloud.script({"do": "status", "status": 400, "body": {"error": error}})
    ask(cloud, "together", chat(max_tokens=9))
    assert sent(cloud)["max_completion_tokens"] == 9 and "max_tokens" not in sent(cloud)


def test_a_field_of_messages_is_left_out_of_messages(cloud: FakeCloud) -> None:
    where = ["body", "messages", 0, "name"]
    detail = [{"type": "extra_forbidden", "loc": where, "msg": "Extra inputs are not permitted"}]
    cloud.script({"do": "status", "status": 422, "body": {"detail": detail}})
    call = chat()
    call.request = ChatRequest(messages=(Message(role="user", content="x", name="bob"),))
    ask(cloud, "together", call)
    assert [record["body"]["messages"][0].get("name") for record in cloud.requests()] == [
        "bob",
        None,
    ]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "Unknown parameter: 'messages'.", "param": "messages"}),
        (400, {"message": "tools are not supported", "param": "tools"}),
        (
            400,
            {"message": "Invalid 'temperature': must be between 0 and 2", "param": "temperature"},
        ),
        (400, {"message": "Unknown parameter: 'never_sent'.", "param": "never_sent"}),
        (401, {"message": "Unsupported parameter: 'seed'", "param": "seed"}),
        (429, {"message": "Unsupported parameter: 'seed'", "param": "seed"}),
    ],
)
def test_nothing_else_is_ever_left_out(
    cloud: FakeCloud, status: int, error: dict[str, str]
) -> None:
    cloud.script({"do": "status", "status": status, "body": {"error": error}})
    with pytest.raises(UpstreamRefused):
        ask(cloud, "together", chat(**FIELDS, tools=(Tool(name="t"),)))
    assert len(cloud.requests()) == 1


def test_a_cloud_that_refuses_the_same_field_for_ever_is_asked_twice(cloud: FakeCloud) -> None:
    error = {"message": "Unknown parameter: 'seed'.", "param": "seed"}
    cloud.script({"do": "status", "status": 400, "body": {"error": error}, "times": -1})
    with pytest.raises(UpstreamRefused):
        ask(cloud, "together", chat(**FIELDS))
    assert len(cloud.requests()) == 2


def test_named_fields_survives_hostile_bodies() -> None:
    assert named_fields(b"") == [] and named_fields(b"<html>") == []
    assert named_fields(b"[" * 100_000) == []
    deep = b'{"detail":' * 50 + b'{"loc":["body","x"]}' + b"}" * 50
    assert len(named_fields(deep)) <= 1


# --- lists and vectors ---------------------------------------------------------------------


def test_model_lists_of_every_shape_are_read() -> None:
    assert model_ids({"data": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}) == ["a", "b"]
    assert model_ids([{"id": "a"}, {"name": "b"}, 7, None]) == ["a", "b"]
    assert model_ids({"models": [{"name": "models/gemini-x"}]}) == ["gemini-x"]
    assert model_ids({"data": ["a"]}) == ["a"]
    for nothing in ({}, {"data": None}, "x", None, 5):
        with pytest.raises(UpstreamNonsense):
            model_ids(nothing)


def test_a_dead_default_is_replaced_by_the_next_and_said(cloud: FakeCloud) -> None:
    cloud.models("openai/gpt-oss-120b", "other", part="groq")

    async def work(backend: CloudBackend) -> None:
        lists = ModelLists({"groq": backend}, SystemClock())
        await lists.refresh_due()
        found = lists.defaults(backend.provider)
        assert found.models == ("openai/gpt-oss-120b",)
        assert "`openai/gpt-oss-20b` is no longer listed by Groq" in found.note

    with_backend(cloud, "groq", work)


def test_a_list_that_knows_none_of_the_defaults_changes_nothing(cloud: FakeCloud) -> None:
    cloud.models("something-else", part="groq")

    async def work(backend: CloudBackend) -> None:
        lists = ModelLists({"groq": backend}, SystemClock())
        await lists.refresh("groq")
        assert lists.defaults(backend.provider).models == backend.provider.default_models

    with_backend(cloud, "groq", work)


def test_suffixes_and_unlisted_names_are_alive(cloud: FakeCloud) -> None:
    cloud.models("openai/gpt-oss-120b", part="huggingface")

    async def work(backend: CloudBackend) -> None:
        lists = ModelLists({"huggingface": backend}, SystemClock())
        await lists.refresh("huggingface")
        assert lists.has(backend.provider, "openai/gpt-oss-120b:cheapest")
        assert not lists.has(backend.provider, "meta/gone")
        lists.drop("huggingface", "openai/gpt-oss-120b:cheapest")
        assert lists.defaults(backend.provider).models == ("openai/gpt-oss-120b",)

    with_backend(cloud, "huggingface", work)


def test_a_list_is_read_once_a_day_and_an_hour_after_a_failure(cloud: FakeCloud) -> None:
    cloud.models("a", part="groq")

    async def work(backend: CloudBackend) -> None:
        clock = HandClock()
        lists = ModelLists({"groq": backend}, clock)
        assert lists.due() == ["groq"]
        await lists.refresh_due()
        assert lists.due() == []
        clock.now += 24 * 3600
        assert lists.due() == ["groq"]
        await asyncio.to_thread(cloud.script, {"do": "status", "status": 500}, part="groq")
        failed = await lists.refresh("groq")
        assert failed.failure and failed.models == {"a"}
        assert lists.due() == []
        clock.now += 3600
        assert lists.due() == ["groq"]
        await lists.refresh_due()
        clock.now -= 10 * 24 * 3600
        assert lists.due() == ["groq"]

    with_backend(cloud, "groq", work)


def test_a_refused_list_is_an_upstream_error(cloud: FakeCloud) -> None:
    cloud.script({"do": "status", "status": 401}, {"do": "html"}, part="groq")

    async def work(backend: CloudBackend) -> None:
        for _ in range(2):
            with pytest.raises(UpstreamError):
                await backend.models()

    with_backend(cloud, "groq", work)


def test_a_cloud_without_a_list_is_not_asked(cloud: FakeCloud) -> None:
    async def work(backend: CloudBackend) -> list[str]:
        return await backend.models()

    assert with_backend(cloud, "cloudflare", work) == []
    assert cloud.requests() == []


def test_embeddings_come_in_the_order_of_the_texts(cloud: FakeCloud) -> None:
    async def work(backend: OpenAIBackend) -> list[list[float]]:
        return await backend.embed("e", ["a", "b", "c"], {"dimensions": 2}, key_label="B")

    assert with_backend(cloud, "openai", work) == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
    assert sent(cloud)["dimensions"] == 2
    assert cloud.requests()[0]["headers"]["authorization"].endswith("0002")

"""Gemini's native dialect as a backend: how it is chosen, what is sent, what is understood."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from localfirst.config.load import load
from localfirst.engines.base import Limits
from localfirst.errors import (
    Breakage,
    ConfigError,
    PrivacyRefused,
    UpstreamBroken,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.events import Event, Finished, FinishReason, Opened, TextDelta, ToolCallDelta
from localfirst.providers.catalog import CATALOG, configured
from localfirst.providers.gemini import EMBED_MOST, GeminiBackend
from localfirst.runtime.clouds import Clouds
from localfirst.settings import ProviderSettings, Secret, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, ChatRequest, Dialect, Message, Rung, Target, Tool, ToolCall
from localfirst.wire.openai import requests as openai
from tests.fakes.cloud_gemini import FakeGemini, error, fake_gemini

KEY = "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"
KEYS = (Secret(KEY, "GEMINI_API_KEY"),)
NATIVE = "https://generativelanguage.googleapis.com/v1beta"
LOOK = {"name": "look", "arguments": {"where": "Paris"}}
USER = Message(role="user", content="hi")


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeGemini]:
    with fake_gemini() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: FakeGemini) -> FakeGemini:
    shared.reset()
    return shared


def provider_of(name: str = "gemini", **given: Any) -> Any:
    return configured(Settings(providers={name: ProviderSettings(**given)}))[name]


def with_backend(cloud: FakeGemini, work: Callable[[Any], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        upstream = UpstreamClient(SystemClock())
        provider = provider_of(base_url=cloud.base_url("gemini"), keys=KEYS)
        try:
            return await work(GeminiBackend(provider, upstream, SystemClock()))
        finally:
            await upstream.aclose()

    return asyncio.run(main())


def chat(stream: bool = False, *messages: Message, **fields: Any) -> Call:
    request = ChatRequest(messages=messages or (USER,), stream=stream, **fields)
    return Call(
        model="auto", stream=stream, dialect=Dialect.OLLAMA, request_id="r", request=request
    )


async def heard(backend: GeminiBackend, call: Call, model: str = "gemini-3.5-flash") -> list[Event]:
    target = Target(rung=Rung.CLOUD, provider="gemini", model=model)
    return [event async for event in backend.answer(call, target, Limits())]


def ask(cloud: FakeGemini, call: Call, model: str = "gemini-3.5-flash") -> list[Event]:
    found: list[Event] = with_backend(cloud, lambda backend: heard(backend, call, model))
    return found


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# --- how it is chosen ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "dialect", "url"),
    [
        ("gemini", {}, Dialect.OPENAI, NATIVE + "/openai"),
        ("gemini", {"dialect": "gemini"}, Dialect.GEMINI, NATIVE),
        ("gemini", {"base_url": NATIVE}, Dialect.GEMINI, NATIVE),
        ("gemini", {"base_url": NATIVE + "/"}, Dialect.GEMINI, NATIVE),
        ("gemini", {"base_url": NATIVE + "/openai"}, Dialect.OPENAI, NATIVE + "/openai"),
        ("gemini", {"base_url": NATIVE + "/openai", "dialect": "gemini"}, Dialect.GEMINI, NATIVE),
        ("gemini", {"base_url": NATIVE, "dialect": "openai"}, Dialect.OPENAI, NATIVE),
        ("mybox", {"base_url": "http://127.0.0.1:1/v1beta"}, Dialect.GEMINI,
         "http://127.0.0.1:1/v1beta"),
        ("mybox", {"base_url": "http://127.0.0.1:1/x", "dialect": "gemini"}, Dialect.GEMINI,
         "http://127.0.0.1:1/x"),
        ("mybox", {"base_url": "http://127.0.0.1:1/v1"}, Dialect.OPENAI, "http://127.0.0.1:1/v1"),
        ("anthropic", {"base_url": "https://proxy.example/v1beta"}, Dialect.ANTHROPIC,
         "https://proxy.example/v1beta"),
    ],
)  # fmt: skip
def test_the_dialect_is_what_is_said_or_what_the_address_says(
    name: str, given: dict[str, Any], dialect: Dialect, url: str
) -> None:
    provider = provider_of(name, keys=KEYS, **given)
    assert (provider.dialect, provider.base_url) == (dialect, url)


def test_nothing_but_the_language_changes_with_the_dialect() -> None:
    compatible, native = provider_of(keys=KEYS), provider_of(keys=KEYS, dialect="gemini")
    assert native.default_models == compatible.default_models
    assert native.capabilities == compatible.capabilities and native.ready
    assert native.quirks("gemini-3.5-flash").drop == frozenset()
    assert CATALOG["gemini"].dialect is Dialect.OPENAI


def test_the_setting_is_read_from_file_and_environment(tmp_path: Any) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[providers.gemini]\ndialect = "gemini"\n')
    at = {"LOCALFIRST_CONFIG": str(file), "GEMINI_API_KEY": KEY}
    assert configured(load(environ=at).settings)["gemini"].dialect is Dialect.GEMINI
    file.write_text("")
    at["GEMINI_BASE_URL"] = NATIVE
    assert configured(load(environ=at).settings)["gemini"].dialect is Dialect.GEMINI
    file.write_text('[providers.gemini]\ndialect = "klingon"\n')
    with pytest.raises(ConfigError, match="gemini"):
        load(environ=at)


def test_the_runtime_has_a_backend_and_an_embedder_for_it() -> None:
    clock = SystemClock()
    settings = Settings(providers={"gemini": ProviderSettings(dialect="gemini", keys=KEYS)})
    clouds = Clouds(settings, upstream=UpstreamClient(clock), clock=clock)
    assert isinstance(clouds.backends["gemini"], GeminiBackend)
    assert "gemini" in clouds.embedders


# --- what is sent --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_the_key_stands_in_its_header_and_nowhere_else(cloud: FakeGemini, stream: bool) -> None:
    events = ask(cloud, chat(stream, temperature=0.5, seed=1, max_tokens=10, user="me"))
    assert isinstance(events[0], Opened) and isinstance(events[-1], Finished)
    assert text_of(events) == "Hello from the cloud."
    assert events[-1].usage is not None and events[-1].usage.total_tokens == 12
    (record,) = cloud.requests()
    method = "streamGenerateContent?alt=sse" if stream else "generateContent"
    assert record["path"] == f"/gemini/v1beta/models/gemini-3.5-flash:{method}"
    assert record["headers"]["x-goog-api-key"] == KEY
    assert "authorization" not in record["headers"]
    assert KEY not in record["path"] + json.dumps(record["body"])
    assert record["body"]["generationConfig"] == {
        "temperature": 0.5,
        "maxOutputTokens": 10,
        "seed": 1,
    }


def test_a_body_of_another_dialect_is_decoded_and_never_relayed(cloud: FakeGemini) -> None:
    raw = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()
    call = Call(
        model="auto",
        stream=False,
        dialect=Dialect.OPENAI,
        request_id="r",
        body=raw,
        relay=True,
        decode=openai.decode,
    )
    assert text_of(ask(cloud, call)) == "Hello from the cloud."


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_tool_is_called_and_its_result_goes_back_with_the_signature(
    cloud: FakeGemini, stream: bool
) -> None:
    cloud.script({"do": "ok", "tool": LOOK})
    tools = (Tool(name="look"),)

    async def work(backend: GeminiBackend) -> list[Event]:
        events = await heard(backend, chat(stream, tools=tools))
        (delta,) = [event for event in events if isinstance(event, ToolCallDelta)]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason is FinishReason.TOOL_CALLS
        called = ToolCall(id=delta.id, name=delta.name, arguments=delta.arguments)
        talk = (
            USER,
            Message(role="assistant", tool_calls=(called,)),
            Message(role="tool", tool_call_id=delta.id, content="a tower"),
        )
        return await heard(backend, chat(stream, *talk, tools=tools))

    assert text_of(with_backend(cloud, work)) == "Hello from the cloud."
    _, model, user = cloud.requests()[1]["body"]["contents"]
    called = {"name": "look", "args": {"where": "Paris"}}
    assert model["parts"] == [{"functionCall": called, "thoughtSignature": "c2lnbmVk"}]
    answered = {"name": "look", "response": {"output": "a tower"}}
    assert user["parts"] == [{"functionResponse": answered}]


def test_a_conversation_with_calls_of_another_model_is_accepted(cloud: FakeGemini) -> None:
    call = ToolCall(id="toolu_9", name="look", arguments="not json")
    talk = (
        USER,
        Message(role="assistant", content="I look", tool_calls=(call,)),
        Message(role="tool", tool_call_id="toolu_9", content="a tower"),
        USER,
    )
    for model in ("gemini-3.5-flash", "gemini-2.5-flash"):
        assert text_of(ask(cloud, chat(False, *talk), model)) == "Hello from the cloud."


# --- what is understood --------------------------------------------------------------------


def test_a_field_that_is_refused_by_name_is_dropped_and_remembered(cloud: FakeGemini) -> None:
    said = 'Invalid JSON payload received. Unknown name "topK" at'
    said += " 'generation_config': Cannot find field."
    cloud.script({"do": "status", "status": 400, "body": error(400, said)})
    assert text_of(ask(cloud, chat(top_k=5, top_p=0.5))) == "Hello from the cloud."
    first, second = (record["body"]["generationConfig"] for record in cloud.requests())
    assert (first, second) == ({"topP": 0.5, "topK": 5}, {"topP": 0.5})


@pytest.mark.parametrize(
    "said",
    [
        "Thinking level is not supported for this model.",
        "Budget 0 is invalid. This model only works in thinking mode.",
        "Thinking_config.include_thoughts is only enabled when thinking is enabled.",
    ],
)
def test_a_model_that_cannot_think_as_it_was_told_is_told_nothing(
    cloud: FakeGemini, said: str
) -> None:
    cloud.script({"do": "status", "status": 400, "body": error(400, said)})
    assert text_of(ask(cloud, chat(think="low", top_p=0.5))) == "Hello from the cloud."
    first, second = (record["body"]["generationConfig"] for record in cloud.requests())
    assert "thinkingConfig" in first and second == {"topP": 0.5}
    cloud.reset()
    cloud.script({"do": "status", "status": 400, "body": error(400, said)})
    with pytest.raises(UpstreamRefused):
        ask(cloud, chat(top_p=0.5))


def test_ids_that_are_refused_are_left_out(cloud: FakeGemini) -> None:
    said = "Unknown name \"id\" at 'contents[1].parts[0].function_call': Cannot find field."

    async def work(backend: GeminiBackend) -> list[Event]:
        backend._marks.put("fc_1", "c2ln", own_id=True)
        called = ToolCall(id="fc_1", name="look", arguments="{}")
        talk = (
            USER,
            Message(role="assistant", tool_calls=(called,)),
            Message(role="tool", tool_call_id="fc_1", content="a tower"),
        )
        return await heard(backend, chat(False, *talk))

    cloud.script({"do": "status", "status": 400, "body": error(400, said)})
    assert text_of(with_backend(cloud, work)) == "Hello from the cloud."
    first, second = (json.dumps(record["body"]) for record in cloud.requests())
    assert '"id": "fc_1"' in first and '"id"' not in second and "c2ln" in second


@pytest.mark.parametrize("name", ["responseJsonSchema", "generationConfig", "contents", "tools"])
def test_what_was_asked_for_is_never_dropped(cloud: FakeGemini, name: str) -> None:
    said = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    cloud.script({"do": "status", "status": 400, "body": error(400, said)})
    with pytest.raises(UpstreamRefused):
        ask(cloud, chat(schema={"type": "object"}, tools=(Tool(name="look"),)))
    assert len(cloud.requests()) == 1


def test_an_error_body_comes_as_a_list_and_loses_the_key(cloud: FakeGemini) -> None:
    cloud.script({"do": "status", "status": 400, "message": f"API key {KEY} not valid"})
    with pytest.raises(UpstreamRefused) as refused:
        ask(cloud, chat())
    assert refused.value.status == 400 and KEY.encode() not in refused.value.body


BROKEN: list[tuple[dict[str, Any], type[UpstreamError]]] = [
    ({"do": "cut", "events": 3}, UpstreamBroken),
    ({"do": "cut", "events": 3, "clean": True}, UpstreamBroken),
    ({"do": "cut", "events": 6}, UpstreamBroken),  # the reason came, the body's end did not
    ({"do": "cut", "events": 0, "clean": True}, UpstreamNonsense),
    ({"do": "error_event", "events": 2}, UpstreamRefused),
    ({"do": "error_event", "error": [error(429, "slow down", "RESOURCE_EXHAUSTED")]},
     UpstreamRefused),
    ({"do": "empty"}, UpstreamNonsense),
    ({"do": "html"}, UpstreamNonsense),
    ({"do": "malformed"}, UpstreamNonsense),
]  # fmt: skip


@pytest.mark.parametrize(("step", "kind"), BROKEN)
def test_a_broken_stream_never_ends_well(
    cloud: FakeGemini, step: dict[str, Any], kind: type[UpstreamError]
) -> None:
    cloud.script(step)
    with pytest.raises(kind) as caught:
        ask(cloud, chat(True))
    if isinstance(caught.value, UpstreamBroken):
        assert caught.value.breakage is Breakage.CUT


def test_local_only_refuses_another_host() -> None:
    async def main() -> None:
        upstream = UpstreamClient(SystemClock())
        backend = GeminiBackend(provider_of(dialect="gemini", keys=KEYS), upstream, SystemClock())
        call = chat()
        call.local_only = True
        try:
            await heard(backend, call)
        finally:
            await upstream.aclose()

    with pytest.raises(PrivacyRefused):
        asyncio.run(main())


def test_its_list_of_models_is_read_whole(cloud: FakeGemini) -> None:
    cloud.models("gemini-3.5-flash", "gemini-embedding-001", part="gemini")
    cloud.script("ok", part="gemini")
    found = with_backend(cloud, lambda backend: backend.models())
    assert found == ["gemini-3.5-flash", "gemini-embedding-001"]
    assert cloud.requests()[0]["path"] == "/gemini/v1beta/models?pageSize=1000"


def test_embeddings_come_in_order_in_as_many_batches_as_are_needed(cloud: FakeGemini) -> None:
    texts = [str(number) for number in range(EMBED_MOST + 2)]
    found = with_backend(
        cloud, lambda backend: backend.embed("gemini-embedding-001", texts, {"dimensions": 2})
    )
    assert len(found) == len(texts) and found[1] == [1.0, 0.5] and found[EMBED_MOST] == [0.0, 0.5]
    sizes = [len(record["body"]["requests"]) for record in cloud.requests()]
    assert sizes == [EMBED_MOST, 2]
    assert cloud.requests()[0]["path"].endswith("/models/gemini-embedding-001:batchEmbedContents")


@pytest.mark.parametrize("body", [{}, {"embeddings": []}, {"embeddings": [{"values": "x"}]}])
def test_embeddings_that_are_none_are_nonsense(cloud: FakeGemini, body: Any) -> None:
    cloud.script({"do": "status", "status": 200, "body": body})
    with pytest.raises(UpstreamNonsense):
        with_backend(cloud, lambda backend: backend.embed("m", ["a"]))
    cloud.script({"do": "status", "status": 404, "message": "not found"})
    with pytest.raises(UpstreamRefused):
        with_backend(cloud, lambda backend: backend.embed("m", ["a"]))

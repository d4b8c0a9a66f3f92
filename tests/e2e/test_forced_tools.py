"""Tool calls that have to be made, by an Ollama, which has no word for that: real and scripted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from localfirst.engines.ollama import OllamaEngine
from localfirst.errors import InvalidRequest
from localfirst.events import Event, FinishReason, TextDelta, ToolCallDelta
from localfirst.models import toy
from localfirst.models.store import Store
from localfirst.settings import Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, Needs, Tool
from tests.fakes import stranger
from tests.fakes.embedded_bench import install
from tests.fakes.engine_bench import (
    NO_REAL,
    REAL,
    OllamaBench,
    ask,
    call_of,
    collect,
    finish_of,
    ollama_bench,
    real_daemon,
    run,
    tell,
    text_of,
)
from tests.fakes.house import house


def tool(name: str, **fields: Any) -> Tool:
    asked = {"properties": fields, "required": list(fields), "additionalProperties": False}
    return Tool(name=name, description="d", parameters={"type": "object"} | asked)


WEATHER = tool("get_weather", city={"enum": ["Bern", "Rome"]})
TIME = tool("get_time", zone={"enum": ["a", "b"]})
LOST = tool("lost", x={"$ref": "#/nope"})
CAN = {"capabilities": ["completion", "tools"]}

MESSAGES = "{{ range .Messages }}{{ .Role }}: {{ .Content }}"
JSON = '{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}'
AS_JSON = f"{{{{ .Tools }}}}{MESSAGES}{{{{ range .ToolCalls }}}}{JSON}{{{{ end }}}}{{{{ end }}}}"
AS_TAG = AS_JSON.replace(JSON, f"<tool_call>{JSON}</tool_call>")
OWN = (
    "{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
)
TEMPLATES = {"as-json": ("", AS_JSON), "as-tag": ("", AS_TAG), "own": (OWN, "")}
"""Ollama's templates, whose calls Ollama finds itself, and a GGUF's own."""


def obliged(choice: str, *tools: Tool, seed: int = 1) -> Call:
    """A call whose toy does not repeat itself, which an Ollama would break off."""
    lively: dict[str, Any] = {"temperature": 1.0, "frequency_penalty": 2.0, "repeat_penalty": 3.0}
    asked = ask(max_tokens=400, tools=tools, tool_choice=choice, seed=seed, **lively)
    return call_of(asked.chat, needs=Needs(tools=True))


def called(events: list[Event]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the one call, beside which nothing is said."""
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert {piece.index for piece in pieces} == {0}, events
    assert text_of(events).strip() == ""
    assert finish_of(events).reason is FinishReason.TOOL_CALLS
    arguments: dict[str, Any] = json.loads("".join(piece.arguments for piece in pieces))
    assert pieces[0].id
    return pieces[0].name, arguments


# --- a real one ------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.exists(), reason=NO_REAL)


@asynccontextmanager
async def real_engine(folder: Path) -> AsyncIterator[OllamaEngine]:
    """The engine on a real Ollama with a model for each of `TEMPLATES`."""
    store = Store(folder / "models")
    toy.publish(store.root)
    for name, templates in TEMPLATES.items():
        install(store, name, *templates)
    upstream = UpstreamClient(SystemClock())
    try:
        async with real_daemon(folder, store.root) as served:
            yield OllamaEngine(served.endpoint, Settings(), upstream=upstream, clock=SystemClock())
    finally:
        await upstream.aclose()


@pytest.mark.real_ollama
@real
@pytest.mark.parametrize("model", TEMPLATES)
def test_a_model_of_random_weights_calls_a_tool_when_it_must(model: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with real_engine(tmp_path) as engine:
            for seed in (1, 2, 3):
                call = obliged("required", WEATHER, TIME, seed=seed)
                name, given = called(await collect(engine, call, model))
                jsonschema.validate(
                    given, {one.name: one for one in (WEATHER, TIME)}[name].parameters
                )
                call = obliged("get_time", WEATHER, TIME, seed=seed)
                assert called(await collect(engine, call, model))[0] == "get_time"

    run(test)


@pytest.mark.real_ollama
@real
@pytest.mark.parametrize("model", TEMPLATES)
def test_a_tool_that_no_grammar_can_describe_is_shown_and_not_obliged(
    model: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with real_engine(tmp_path) as engine:
            events = await collect(engine, obliged("required", WEATHER, LOST), model)
            assert text_of(events)
            assert finish_of(events).reason is FinishReason.LENGTH

    run(test)


@pytest.mark.real_ollama
@real
def test_a_client_of_openais_gets_the_call_that_it_required(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    toy.publish(store.root)
    install(store, "own", OWN)
    function = {"name": "get_time", "parameters": TIME.parameters}

    async def test() -> None:
        async with real_daemon(tmp_path, store.root) as served:
            local = {"LOCALFIRST_LOCAL_ENGINE": "ollama", "OLLAMA_HOST": served.endpoint}
            with house(tmp_path, config='order = ["local"]', **local) as at:
                told = await stranger.ask(
                    at.url,
                    "local/own",
                    stream=False,
                    tools=[{"type": "function", "function": function}],
                    tool_choice={"type": "function", "function": {"name": "get_time"}},
                    temperature=1.0,
                    frequency_penalty=2.0,
                    max_tokens=400,
                )
        assert told.status == 200, told.body
        (choice,) = told.events[0]["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "get_time"
        assert json.loads(call["function"]["arguments"])["zone"] in {"a", "b"}

    run(test)


# --- a scripted one --------------------------------------------------------------------------


async def heard(made: OllamaBench, *says: dict[str, Any], choice: str = "required") -> list[Event]:
    await tell(made.served.endpoint, models={"tiny": CAN | {"says": list(says)}})
    return await collect(made.engine, obliged(choice, WEATHER, TIME))


def test_the_schema_of_a_call_goes_beside_the_tools_it_is_of() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": CAN}) as made:
            says = {"content": '{"name":"get_time","parameters":{"zone":"a"}}'}
            assert called(await heard(made, says)) == ("get_time", {"zone": "a"})
            assert called(await heard(made, says, choice="get_time"))[0] == "get_time"
            both, one = await made.asked()
            assert [each["function"]["name"] for each in both["tools"]] == [
                "get_weather",
                "get_time",
            ]
            assert len(both["format"]["anyOf"]) == 2
            assert [each["function"]["name"] for each in one["tools"]] == ["get_time"]
            assert one["format"]["properties"]["name"] == {"const": "get_time"}

    run(test)


def test_a_model_that_is_free_is_asked_as_before() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": CAN}) as made:
            events = await heard(made, {"content": '{"name":"get_time"}'}, choice="auto")
            assert text_of(events) == '{"name":"get_time"}'
            assert "format" not in (await made.asked())[0]

    run(test)


@pytest.mark.parametrize("pieces", [1, 4, 100])
def test_a_call_in_pieces_is_one_call(pieces: int) -> None:
    whole = '{ "name" : "get_weather", "parameters" : { "city" : "Bern" } }'
    size = -(-len(whole) // pieces)
    says = [{"content": whole[at : at + size]} for at in range(0, len(whole), size)]

    async def test() -> None:
        async with ollama_bench({"tiny": CAN}) as made:
            assert called(await heard(made, *says)) == ("get_weather", {"city": "Bern"})

    run(test)


def test_a_call_that_ollama_found_itself_passes() -> None:
    call = {
        "id": "call_1",
        "function": {"index": 0, "name": "get_time", "arguments": {"zone": "b"}},
    }

    async def test() -> None:
        async with ollama_bench({"tiny": CAN}) as made:
            assert called(await heard(made, {"content": " "}, {"tool_calls": [call]})) == (
                "get_time",
                {"zone": "b"},
            )

    run(test)


def test_a_model_that_was_not_held_to_it_is_heard_word_by_word() -> None:
    """Some of an Ollama's parsers put the schema aside; what is said all the same is not lost."""

    async def test() -> None:
        async with ollama_bench({"tiny": CAN}) as made:
            events = await heard(made, {"content": "It "}, {"content": "rains."})
            words = [event.text for event in events if isinstance(event, TextDelta)]
            assert words == ["It ", "rains."]
            assert finish_of(events).reason is FinishReason.STOP

    run(test)


def test_a_choice_that_is_none_of_the_tools_is_the_requests_fault() -> None:
    async def test() -> None:
        async with ollama_bench({"tiny": CAN}) as made:
            with pytest.raises(InvalidRequest, match="none of the tools"):
                await collect(made.engine, obliged("fly", WEATHER))
            assert await made.asked() == []

    run(test)

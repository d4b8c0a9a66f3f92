"""Tool calls by the embedded engine: a model of random weights makes valid ones when it must."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from localfirst.engines.forced import CallReader, choices, schema
from localfirst.errors import InvalidRequest, UpstreamRefused
from localfirst.events import Event, Finished, FinishReason, TextDelta, ToolCallDelta
from localfirst.types import (
    Call,
    ChatRequest,
    Dialect,
    ImagePart,
    Message,
    Needs,
    TextPart,
    Tool,
    ToolCall,
)
from localfirst.wire.openai import requests
from tests.fakes.embedded_bench import Bench, install, run
from tests.fakes.engine_bench import ask, call_of, collect, finish_of

CITY = {"type": "string", "enum": ["Rome", "Oslo"]}
WEATHER = Tool(
    name="get_weather",
    description="The weather in a city.",
    parameters={
        "type": "object",
        "properties": {"city": CITY},
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = Tool(
    name="set_clock",
    parameters={
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/time"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {"time": {"type": "integer", "minimum": 0, "maximum": 23}},
    },
)
TEMPLATE = (
    "{%- for tool in tools or [] %}tool: {{ tool.function.name }}\n{% endfor %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{%- for c in m.tool_calls or [] %}call {{ c.function.name }} {{ c.function.arguments }}\n"
    "{%- endfor %}{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)


def called(events: list[Event]) -> tuple[str, str]:
    """Name and arguments of the one call, which must be well-formed and whole."""
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [(bool(p.id), bool(p.name)) for p in pieces] == [(True, True)] + [(False, False)] * (
        len(pieces) - 1
    )
    assert {piece.index for piece in pieces} == {0}
    assert not [event for event in events if isinstance(event, TextDelta)]
    return pieces[0].name, "".join(piece.arguments for piece in pieces)


@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_a_call_that_has_to_be_made_is_made_and_valid(tmp_path: Path, choice: str) -> None:
    async def test(bench: Bench) -> None:
        install(bench.store, "handy", TEMPLATE)
        request = ask(max_tokens=400, tools=(WEATHER,), tool_choice=choice).chat
        events = await collect(bench.engine, call_of(request, needs=Needs(tools=True)), "handy")
        name, arguments = called(events)
        assert name == "get_weather"
        assert json.loads(arguments)["city"] in CITY["enum"]
        assert finish_of(events).reason is FinishReason.TOOL_CALLS
        usage = finish_of(events).usage
        assert usage is not None
        assert usage.prompt_tokens > len("tool: get_weather")  # the template showed the tool

    run(tmp_path, test)


def test_one_of_several_tools_is_called_with_its_own_arguments(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        install(bench.store, "handy", TEMPLATE)
        for seed in range(1, 5):
            call = ask(
                max_tokens=400,
                tools=(WEATHER, CLOCK),
                tool_choice="required",
                seed=seed,
                temperature=1.5,
            )
            name, arguments = called(await collect(bench.engine, call, "handy"))
            given = json.loads(arguments)
            assert given["city"] in CITY["enum"] if name == "get_weather" else 0 <= given["at"] < 24

    run(tmp_path, test)


def test_a_client_of_the_same_dialect_gets_the_call_as_well(tmp_path: Path) -> None:
    """Its bytes cannot be passed on as they are: llama.cpp would not hold the model to it."""

    async def test(bench: Bench) -> None:
        install(bench.store, "handy", TEMPLATE)
        body = msgspec.json.encode(
            {
                "model": "handy",
                "messages": [{"role": "user", "content": "hi"}],
                "stream": True,
                "max_tokens": 400,
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "get_weather", "parameters": WEATHER.parameters},
                    }
                ],
                "tool_choice": "required",
            }
        )
        call = Call(
            model="handy",
            stream=True,
            dialect=Dialect.OPENAI,
            request_id="r",
            body=body,
            relay=True,
            decode=requests.decode,
        )
        assert called(await collect(bench.engine, call, "handy"))[0] == "get_weather"

    run(tmp_path, test)


def test_a_call_that_was_cut_is_told_as_cut(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        install(bench.store, "handy", TEMPLATE)
        call = ask(max_tokens=42, tools=(WEATHER,), tool_choice="required")
        events = await collect(bench.engine, call, "handy")
        assert finish_of(events).reason is FinishReason.LENGTH

    run(tmp_path, test)


def test_earlier_calls_and_their_results_reach_the_model(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        install(bench.store, "handy", TEMPLATE)
        messages = (
            Message(role="user", content="weather?"),
            Message(
                role="assistant",
                tool_calls=(ToolCall(id="c1", name="get_weather", arguments='{"city":"Rome"}'),),
            ),
            Message(role="tool", tool_call_id="c1", content="sunny"),
        )
        short = await collect(
            bench.engine, ask("weather?", tools=(WEATHER,), tool_choice="none"), "handy"
        )
        request = msgspec.structs.replace(
            ask(tools=(WEATHER,), tool_choice="none").chat, messages=messages
        )
        told = await collect(bench.engine, call_of(request), "handy")
        before, after = finish_of(short).usage, finish_of(told).usage
        assert before is not None
        assert after is not None
        said = 'assistant: call get_weather {"city":"Rome"}tool: sunny'
        assert after.prompt_tokens - before.prompt_tokens >= len(said)

    run(tmp_path, test)


def test_a_model_whose_template_knows_no_tools_says_so(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        call = call_of(ask(tools=(WEATHER,)).chat, needs=Needs(tools=True))
        with pytest.raises(UpstreamRefused) as caught:
            await collect(bench.engine, call)
        assert (caught.value.status, caught.value.body) == (
            400,
            b'{"error":"tiny does not support tools"}',
        )
        assert bench.children() == []

    run(tmp_path, test)


def test_tools_that_only_ollamas_template_shows_are_not_promised(tmp_path: Path) -> None:
    """They would be left out without a word: what stands in for that template knows none."""
    go_template = "{{ .Tools }}<|im_start|>user\n{{ .Prompt }}<|im_end|>"

    async def test(bench: Bench) -> None:
        install(bench.store, "handy", TEMPLATE)
        install(bench.store, "gone", "", go_template)
        models = (await bench.engine.status()).models
        can = {model.name: model.capabilities for model in models}
        assert can["handy:latest"] == ("completion", "tools")
        assert can["gone:latest"] == ("completion",)
        call = call_of(ask(tools=(WEATHER,)).chat, needs=Needs(tools=True))
        with pytest.raises(UpstreamRefused, match="400"):
            await collect(bench.engine, call, "gone")

    run(tmp_path, test)


def test_an_image_for_a_text_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        image = Message(role="user", content=(TextPart(text="?"), ImagePart(data="aGk=")))
        call = call_of(ChatRequest(messages=(image,)), needs=Needs(vision=True))
        with pytest.raises(UpstreamRefused) as caught:
            await collect(bench.engine, call)
        assert (caught.value.status, b"does not support vision" in caught.value.body) == (400, True)
        assert bench.children() == []

    run(tmp_path, test)


# --- pure ----------------------------------------------------------------------------------


def test_a_choice_that_is_none_of_the_tools_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        choices(ChatRequest(tools=(WEATHER,), tool_choice="get_time"))
    assert caught.value.field == "tool_choice"


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_a_model_that_is_free_is_not_forced(choice: str | None) -> None:
    assert choices(ChatRequest(tools=(WEATHER,), tool_choice=choice)) == ()
    assert choices(ChatRequest(tool_choice="required")) == ()


def test_what_a_tools_schema_refers_to_is_found_from_the_whole() -> None:
    one = schema((CLOCK,))
    assert one["properties"]["name"] == {"const": "set_clock"}
    assert one["$defs"]["time"]["maximum"] == 23
    assert "$defs" not in one["properties"]["arguments"]
    assert [each["properties"]["name"] for each in schema((CLOCK, WEATHER))["anyOf"]] == [
        {"const": "set_clock"},
        {"const": "get_weather"},
    ]
    assert schema((Tool(name="f"),))["properties"]["arguments"] == {
        "type": "object",
        "properties": {},
    }
    assert "$defs" in CLOCK.parameters  # the caller's own schema is left as it is


ANSWERS = [
    ('{"name":"f","arguments":{}}', "f", "{}"),
    ('{ "name" : "f" , "arguments" : { "a" : "}" } }', "f", '{ "a" : "}" }'),
    (' {"name":"f\\"g","arguments":{"a":{"b":[{}]}}}\n', 'f"g', '{"a":{"b":[{}]}}'),
    ('{"name":"f","arguments":[1,2]}', "f", "[1,2]"),
]


@pytest.mark.parametrize(("text", "name", "arguments"), ANSWERS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_constrained_answer_is_read_in_pieces_of_any_size(
    text: str, name: str, arguments: str, size: int
) -> None:
    reader = CallReader()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    events = [told for piece in pieces for told in reader.feed(TextDelta(piece))]
    events += reader.feed(Finished(reason=FinishReason.STOP))
    found_name, found_arguments = called(events)
    assert (found_name, found_arguments.strip()) == (name, arguments)
    assert events[-1] == Finished(reason=FinishReason.TOOL_CALLS)


def test_what_was_cut_before_it_named_a_tool_is_text() -> None:
    reader = CallReader()
    assert list(reader.feed(TextDelta('{"na'))) == []
    cut = Finished(reason=FinishReason.LENGTH)
    assert list(reader.feed(cut)) == [TextDelta('{"na'), cut]


def test_a_call_that_was_cut_keeps_all_that_came() -> None:
    reader = CallReader()
    events = [*reader.feed(TextDelta('{"name":"f","arguments":{"a":{"b":1}'))]
    events += reader.feed(Finished(reason=FinishReason.LENGTH))
    assert called(events) == ("f", '{"a":{"b":1}')

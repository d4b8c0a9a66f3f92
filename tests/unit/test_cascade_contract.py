"""A schema in, a valid object out: read, repaired, corrected once, or asked of the next."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from localfirst.cascade import contract, structured
from localfirst.cascade.contract import ContractBroken
from localfirst.errors import CascadeExhausted, InvalidRequest, LocalFirstError
from localfirst.settings import CascadeSettings, Settings
from localfirst.types import ChatRequest, Message
from tests.fakes.scripted_backend import House, ScriptedBackend, make_call, refuses, says
from tests.fakes.virtual_time import run

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GOOD = {"name": "Ada", "age": 36}

READABLE = [
    '{"name": "Ada", "age": 36}',
    '```json\n{"name": "Ada", "age": 36}\n```',
    'Here you are:\n```\n{"name": "Ada", "age": 36}\n```\nAnything else?',
    '<think>{"name": "no"}</think>{"name": "Ada", "age": 36}',
    'hm {"x": 1} </think>\n{"name": "Ada", "age": 36}',
    '{"name": "Ada", "age": 36,}',
    "{'name': 'Ada', 'age': 36}",
    '{name: "Ada", age: 36}',
    '{"name": "Ada", "age": 36',
    'Sure! {"name": "Ada", "age": 36}',
    '\ufeff{"name": "Ada", "age": 36}',
    '<thinking>{"name": "no"}</thinking>{"name": "Ada", "age": 36}',
    'As in\n```json\n{"name": "x"}\n```\nhere:\n```json\n{"name": "Ada", "age": 36}\n```',
    '<think>a</think>\n<think>{"b": 1}</think> {"name": "Ada", "age": 36}',
    # A repairer takes what follows two slashes for a comment.
    'From https://people.example: {"name": "Ada", "age": 36}',
]


@pytest.mark.parametrize("text", READABLE)
def test_an_object_is_read_however_a_model_wraps_it(text: str) -> None:
    assert contract.fulfilled(text, SCHEMA) == GOOD


@pytest.mark.parametrize(
    "text", ["", "I cannot do that.", "<think>hm</think>", '{"name": "Ada"}', "[]", '"text"', "42"]
)
def test_what_is_no_valid_object_is_refused(text: str) -> None:
    with pytest.raises(ContractBroken):
        contract.fulfilled(text, SCHEMA)


@pytest.mark.parametrize("piece", ["[", '{"name":', '{"name":[', "[{"])
@pytest.mark.parametrize("times", [900, 5000])
def test_an_answer_that_nests_without_end_is_refused(piece: str, times: int) -> None:
    with pytest.raises(ContractBroken):
        contract.fulfilled(piece * times, SCHEMA)
    end = piece.replace('"name":', "").translate(str.maketrans("[{", "]}"))[::-1]
    with pytest.raises(ContractBroken):
        contract.fulfilled(piece * times + "1" + end * times, SCHEMA)


@pytest.mark.parametrize(
    ("text", "value"), [('"use {x} or [y]"', "use {x} or [y]"), ("42", 42), ("null", None)]
)
def test_a_value_that_is_no_object_is_read_as_it_stands(text: str, value: Any) -> None:
    assert contract.fulfilled(text, {"type": ["string", "integer", "null"]}) == value


def test_a_list_of_objects_is_a_list() -> None:
    assert contract.parsed('These: [{"name": "Ada"}, {"name": "Bob"}]') == [
        {"name": "Ada"},
        {"name": "Bob"},
    ]


@pytest.mark.parametrize("text", ["", "I cannot do that.", "None", "<think>hm</think>", '"Ada" is'])
def test_prose_is_no_string_that_a_schema_asked_for(text: str) -> None:
    with pytest.raises(ContractBroken, match="holds no JSON value"):
        contract.fulfilled(text, {"type": "string"})


def test_a_value_that_is_wrong_as_a_whole_is_placed_at_the_top() -> None:
    with pytest.raises(ContractBroken) as caught:
        contract.fulfilled("[]", SCHEMA)
    assert caught.value.place == "the top"


def test_a_model_that_wrote_nothing_is_shown_that_it_wrote_nothing() -> None:
    """An empty message of an assistant is refused by clouds (Anthropic answers 400)."""
    asked = contract.asked_again(ChatRequest(messages=()), "", "no value")
    assert asked.messages[0].text == "(nothing)"


def test_the_problem_names_its_place() -> None:
    with pytest.raises(ContractBroken) as caught:
        contract.fulfilled('{"name": "Ada", "age": "old"}', SCHEMA)
    assert caught.value.place == "age"
    assert "'old' is not of type 'integer'" in str(caught.value)


@pytest.mark.parametrize("wrong", [{"type": "objekt"}, 7, {"properties": []}])
def test_a_schema_that_is_none_is_refused_before_anybody_is_asked(wrong: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        contract.schema_of(wrong)
    assert caught.value.field == "schema"


def test_a_model_without_native_support_is_asked_in_words() -> None:
    request = ChatRequest(
        messages=(Message(role="system", content="Be kind."), Message(role="user", content="Who?")),
        schema=SCHEMA,
    )
    first, second = contract.instructed(request).messages
    assert first.role == "system" and first.text.startswith("Be kind.")
    assert json.dumps(SCHEMA, separators=(",", ":")) in first.text
    assert second.text == "Who?"


def test_a_request_without_a_system_message_is_asked_in_one_of_its_own() -> None:
    request = ChatRequest(messages=(Message(role="user", content="Qui ?"),), schema={"title": "é"})
    first, second = contract.instructed(request).messages
    assert (first.role, second.text) == ("system", "Qui ?")
    assert '{"title":"é"}' in first.text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_valid_or_refused(text: str) -> None:
    try:
        found = contract.fulfilled(text, SCHEMA)
    except ContractBroken:
        return
    assert set(found) == {"name", "age"}


class Person(BaseModel):
    name: str
    age: int


def test_a_pydantic_model_gets_an_instance() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(says(json.dumps(GOOD)))})
        reply = await structured.reply(house.cascade, make_call(), Person)
        assert reply.parsed == Person(name="Ada", age=36)

    run(main())


class Capital(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def begins_large(cls, name: str) -> str:
        if not name.istitle():
            raise ValueError("a name begins with a capital letter")
        return name


def test_what_a_models_own_validator_refuses_is_corrected_like_a_broken_schema() -> None:
    async def main() -> None:
        groq = ScriptedBackend(says('{"name": "ada"}'), says('{"name": "Ada"}'))
        house = House({"groq": groq})
        reply = await structured.reply(house.cascade, make_call(), Capital)
        assert reply.parsed == Capital(name="Ada")
        assert [one.outcome for one in reply.attempts] == ["invalid_response", "ok"]
        assert "begins with a capital letter" in groq.calls[-1].chat.messages[-1].text

    run(main())


def test_what_no_validator_takes_is_nobodys_answer() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(says('{"name": "ada"}'))})
        with pytest.raises(CascadeExhausted):
            await structured.reply(house.cascade, make_call(), Capital)

    run(main())


def test_a_wrong_answer_is_corrected_by_the_same_model_once() -> None:
    async def main() -> None:
        groq = ScriptedBackend(says('{"name": "Ada"}'), says(json.dumps(GOOD)))
        house = House({"groq": groq, "gemini": ScriptedBackend()})
        reply = await structured.reply(house.cascade, make_call(), SCHEMA)
        assert reply.parsed == GOOD
        assert [one.outcome for one in reply.attempts] == ["invalid_response", "ok"]
        last = groq.calls[-1].chat.messages
        assert last[-2].text == '{"name": "Ada"}'
        assert "'age' is a required property" in last[-1].text

    run(main())


def test_the_schema_is_asked_for_natively_and_in_words_only_with_a_correction() -> None:
    async def main() -> None:
        groq = ScriptedBackend(says("prose"), says(json.dumps(GOOD)))
        house = House({"groq": groq})
        await structured.reply(house.cascade, make_call(), SCHEMA)
        first, second = (call.chat for call in groq.calls)
        assert first.schema == second.schema == SCHEMA
        assert [message.role for message in first.messages] == ["user"]
        assert '"required"' in second.messages[0].text

    run(main())


def test_a_model_that_misses_three_times_in_a_row_is_left_alone_for_a_while() -> None:
    async def main() -> None:
        groq = ScriptedBackend(says("no"))
        house = House({"groq": groq, "gemini": ScriptedBackend(says(json.dumps(GOOD)))})
        for _ in range(2):
            reply = await structured.reply(house.cascade, make_call(), SCHEMA)
            assert reply.route == "gemini/gemini-model"
        assert len(groq.asked) == 4
        assert (await house.ask()).route == "gemini/gemini-model"
        assert {entry.cls for entry in house.records.cooldowns} == {"invalid_response"}

    run(main())


def test_who_stays_wrong_gives_way_to_the_next() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend(says("no")), "gemini": ScriptedBackend(says(json.dumps(GOOD)))}
        )
        reply = await structured.reply(house.cascade, make_call(), SCHEMA)
        assert reply.route == "gemini/gemini-model"
        trail = [(one.provider, one.outcome) for one in reply.attempts]
        assert trail == [
            ("groq", "invalid_response"), ("groq", "invalid_response"), ("gemini", "ok"),
        ]  # fmt: skip

    run(main())


def test_nobody_valid_is_exhaustion_without_the_answers_words() -> None:
    async def main() -> None:
        secret = "the patient is ill"
        house = House(
            {"groq": ScriptedBackend(says(json.dumps({"name": secret, "age": secret}))),
             "gemini": ScriptedBackend(refuses(500))}
        )  # fmt: skip
        with pytest.raises(CascadeExhausted) as caught:
            await structured.reply(house.cascade, make_call(), SCHEMA)
        assert secret not in caught.value.message
        outcomes = [one.outcome for one in caught.value.attempts]
        assert outcomes[:2] == ["invalid_response"] * 2
        assert outcomes[2:] == ["unavailable"] * 2

    run(main())


def test_nothing_is_left_running() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(says("no"))})
        with pytest.raises(CascadeExhausted):
            await structured.reply(house.cascade, make_call(), SCHEMA)
        assert house.unanswered == 0
        assert len(asyncio.all_tasks()) == 1

    run(main())


@pytest.mark.parametrize("deadline_s", [None, 3.0])
def test_wrong_answers_do_not_outlast_the_deadline(deadline_s: float | None) -> None:
    async def main() -> None:
        names = [f"c{number}" for number in range(6)]
        house = House(
            {name: ScriptedBackend([1.0, *says("no")]) for name in names},
            settings=Settings(cascade=CascadeSettings(deadline_s=3.0)),
        )
        began = house.clock.monotonic()
        with pytest.raises(LocalFirstError) as caught:
            await structured.reply(house.cascade, make_call(deadline_s=deadline_s), SCHEMA)
        # Everything that was sent is told, also when the time ran out in the middle.
        assert len(caught.value.attempts) == sum(len(b.asked) for b in house.backends.values())
        assert house.clock.monotonic() - began <= 4.0 + 0.1

    run(main())

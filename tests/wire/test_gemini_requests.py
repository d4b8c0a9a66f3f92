"""Requests for Gemini's native API: where they go, and what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.errors import UpstreamRefused
from localfirst.types import ChatRequest, ImagePart, Json, Message, TextPart, Tool, ToolCall
from localfirst.wire.gemini import requests
from localfirst.wire.gemini.marks import CALLS_MOST, SIGNATURE_CHARS_MOST, SKIP, Marks
from localfirst.wire.quirks import Quirks
from tests.fakes.cloud_gemini import complaint

PIXEL = "iVBORw0KGgo="
NEW, OLD = "gemini-3.5-flash-lite", "gemini-2.5-flash"
USER = Message(role="user", content="hi")
PLACE: dict[str, Json] = {"type": "object", "properties": {"city": {"type": "string"}}}


def sent(request: ChatRequest, model: str = NEW, **options: Any) -> dict[str, Json]:
    found: dict[str, Json] = json.loads(requests.encode(request, model, **options))
    return found


def config(model: str = NEW, quirks: Quirks | None = None, **fields: Any) -> dict[str, Json]:
    given = {"quirks": quirks} if quirks else {}
    request = ChatRequest(messages=(USER,), **fields)
    found: dict[str, Json] = sent(request, model, **given).get("generationConfig", {})
    return found


def calls(*named: tuple[str, str]) -> Message:
    made = tuple(ToolCall(id=i, name=name, arguments='{"city":"Bern"}') for i, name in named)
    return Message(role="assistant", tool_calls=made)


def result(identifier: str, text: str = "sunny", **more: Any) -> Message:
    return Message(role="tool", tool_call_id=identifier, content=text, **more)


def turns(*messages: Message, model: str = NEW, **options: Any) -> list[Json]:
    found: list[Json] = sent(ChatRequest(messages=messages), model, **options)["contents"]
    return found


# --- where it goes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-x", "/models/gemini-x:generateContent"),
        ("models/gemini-x", "/models/gemini-x:generateContent"),
        ("tunedModels/mine", "/tunedModels/mine:generateContent"),
        ("../../v1/keys?x#y z", "/models/..%2F..%2Fv1%2Fkeys%3Fx%23y%20z:generateContent"),
        ("a\r\nx-evil: 1", "/models/a%0D%0Ax-evil%3A%201:generateContent"),
    ],
)
def test_the_model_is_part_of_the_path_and_cannot_leave_it(model: str, path: str) -> None:
    assert requests.path_of(model) == path
    streamed = path.replace(":generateContent", ":streamGenerateContent?alt=sse")
    assert requests.path_of(model, stream=True) == streamed


def test_a_plain_question_says_nothing_more_than_it_must() -> None:
    assert sent(ChatRequest(messages=(USER,), stream=True)) == {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}]
    }


# --- the conversation ----------------------------------------------------------------------


def test_system_text_stands_apart_and_the_assistant_is_called_model() -> None:
    body = sent(
        ChatRequest(
            messages=(
                Message(role="system", content="Be brief."),
                USER,
                Message(role="assistant", content="hello"),
                Message(role="system", content="In English."),
                Message(role="user", content="again"),
            )
        )
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "In English."}]}
    assert [(turn["role"], turn["parts"]) for turn in body["contents"]] == [
        ("user", [{"text": "hi"}]),
        ("model", [{"text": "hello"}]),
        ("user", [{"text": "again"}]),
    ]


def test_turns_of_one_speaker_are_joined_and_the_first_is_the_users() -> None:
    assert turns(Message(role="assistant", content="I begin")) == [
        {"role": "user", "parts": [{"text": "."}]},
        {"role": "model", "parts": [{"text": "I begin"}]},
    ]
    assert turns(USER, USER) == [{"role": "user", "parts": [{"text": "hi"}, {"text": "hi"}]}]
    assert turns(Message(role="system", content="x")) == [
        {"role": "user", "parts": [{"text": "."}]}
    ]
    assert turns(USER, Message(role="assistant", content="")) == turns(USER)


def test_images_go_inside_and_by_address_with_a_type() -> None:
    parts = (
        TextPart(text="look"),
        ImagePart(media_type="image/jpeg", data=PIXEL),
        ImagePart(url="https://example.org/a/b.WEBP?x=1"),
    )
    (turn,) = turns(Message(role="user", content=parts))
    assert turn["parts"] == [
        {"text": "look"},
        {"inlineData": {"mimeType": "image/jpeg", "data": PIXEL}},
        {"fileData": {"fileUri": "https://example.org/a/b.WEBP?x=1", "mimeType": "image/webp"}},
    ]


def test_a_raw_prompt_is_the_users_and_one_with_a_suffix_is_for_another() -> None:
    assert sent(ChatRequest(prompt="once"))["contents"] == [
        {"role": "user", "parts": [{"text": "once"}]}
    ]
    with pytest.raises(UpstreamRefused) as refused:
        sent(ChatRequest(prompt="once", suffix="end"))
    assert not refused.value.in_band


# --- tools ---------------------------------------------------------------------------------


def test_results_follow_their_calls_in_one_turn_and_carry_the_functions_name() -> None:
    found = turns(
        USER,
        calls(("c1", "weather"), ("c2", "time")),
        result("c2", '{"hour": 5}'),
        result("c1"),
        USER,
        model=OLD,
    )
    assert [turn["role"] for turn in found] == ["user", "model", "user", "user"]
    assert [part["functionCall"] for part in found[1]["parts"]] == [
        {"name": "weather", "args": {"city": "Bern"}},
        {"name": "time", "args": {"city": "Bern"}},
    ]
    assert [part["functionResponse"] for part in found[2]["parts"]] == [
        {"name": "time", "response": {"hour": 5}},
        {"name": "weather", "response": {"output": "sunny"}},
    ]
    assert found[3]["parts"] == [{"text": "hi"}]


def test_an_id_that_was_used_twice_means_the_latest_call() -> None:
    found = turns(
        USER, calls(("c", "first")), result("c"), calls(("c", "second")), result("c"), model=OLD
    )
    named = [p["functionResponse"]["name"] for t in found for p in t["parts"] if len(p) == 1
             and "functionResponse" in p]  # fmt: skip
    assert named == ["first", "second"]


def test_a_result_that_is_an_error_a_list_or_of_an_unknown_call_is_still_said() -> None:
    found = turns(
        USER,
        calls(("c", "weather")),
        result("c", "no network", is_error=True),
        result("lost", "[1]", name="other"),
        result("gone"),
        model=OLD,
    )
    assert [part["functionResponse"] for part in found[2]["parts"]] == [
        {"name": "weather", "response": {"error": "no network"}},
        {"name": "other", "response": {"output": "[1]"}},
        {"name": "unknown", "response": {"output": "sunny"}},
    ]


def test_images_of_results_stand_behind_all_results() -> None:
    shown = Message(
        role="tool",
        tool_call_id="a",
        content=(TextPart(text="seen"), ImagePart(data=PIXEL)),
    )
    found = turns(USER, calls(("a", "look"), ("b", "time")), shown, result("b"), model=OLD)
    kinds = [next(iter(part)) for part in found[2]["parts"]]
    assert kinds == ["functionResponse", "functionResponse", "inlineData"]


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ("weather", {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
    ],
)
def test_tools_are_declared_and_chosen(choice: str, config: dict[str, Json]) -> None:
    tools = (Tool(name="weather", description="d", parameters=PLACE), Tool(name="now"))
    body = sent(ChatRequest(messages=(USER,), tools=tools, tool_choice=choice))
    weather = {"name": "weather", "description": "d", "parametersJsonSchema": PLACE}
    assert body["tools"] == [{"functionDeclarations": [weather, {"name": "now"}]}]
    assert body["toolConfig"] == {"functionCallingConfig": config}
    assert "toolConfig" not in sent(ChatRequest(messages=(USER,), tools=tools))


def test_a_signature_goes_back_where_it_came_and_an_unsigned_call_says_to_skip() -> None:
    marks = Marks()
    marks.put("c1", "c2lnbmVk", own_id=True)
    both = (USER, calls(("c1", "weather"), ("c2", "time")), result("c1"), result("c2"))
    called = turns(*both, marks=marks)[1]["parts"]
    assert called[0]["thoughtSignature"] == "c2lnbmVk" and called[0]["functionCall"]["id"] == "c1"
    assert called[1] == {"functionCall": {"name": "time", "args": {"city": "Bern"}}}
    assert [part["thoughtSignature"] for part in turns(*both)[1]["parts"]] == [SKIP, SKIP]
    assert all("thoughtSignature" not in part for part in turns(*both, model=OLD)[1]["parts"])


def test_ids_of_its_own_go_back_unless_they_were_refused() -> None:
    marks = Marks()
    marks.put("own", "", own_id=True)
    talk = (USER, calls(("own", "weather")), result("own"))
    answered = turns(*talk, marks=marks)[2]["parts"][0]["functionResponse"]
    assert answered["id"] == "own"
    refused = turns(*talk, marks=marks, quirks=Quirks(drop=frozenset({"id"})))
    assert '"id"' not in json.dumps(refused)


def test_marks_are_bounded_and_forget_the_oldest() -> None:
    marks = Marks()
    for number in range(CALLS_MOST + 5):
        marks.put(f"c{number}", "s", own_id=False)
    marks.put("huge", "s" * (SIGNATURE_CHARS_MOST + 1), own_id=False)
    assert len(marks) == CALLS_MOST
    assert marks.of("c0").signature == "" and marks.of(f"c{CALLS_MOST}").signature == "s"
    assert marks.of("huge").signature == ""


# --- how it is generated -------------------------------------------------------------------


def test_sampling_is_said_in_its_names() -> None:
    assert config(
        temperature=0.3, top_p=0.9, top_k=40, max_tokens=9, stop=("a", "", "b"), seed=2**31 + 5
    ) == {
        "temperature": 0.3,
        "topP": 0.9,
        "topK": 40,
        "maxOutputTokens": 9,
        "stopSequences": ["a", "b"],
        "seed": 5,
    }
    assert len(config(stop=tuple("abcdefgh"))["stopSequences"]) == 5
    assert config(top_k=0, presence_penalty=1.0) == {}


def test_a_schema_keeps_what_the_api_reads_and_const_becomes_a_choice_of_one() -> None:
    schema = {
        "$schema": "x",
        "type": "object",
        "properties": {"const": {"const": 1}, "a": {"anyOf": [{"const": "x"}, {"type": "null"}]}},
        "propertyNames": {"pattern": "a"},
        "additionalProperties": False,
    }
    found = config(schema=schema)
    assert found["responseMimeType"] == "application/json"
    assert found["responseJsonSchema"] == {
        "type": "object",
        "properties": {"const": {"enum": [1]}, "a": {"anyOf": [{"enum": ["x"]}, {"type": "null"}]}},
        "additionalProperties": False,
    }
    assert config(json_mode=True) == {"responseMimeType": "application/json"}


def test_where_json_cannot_be_made_it_is_asked_for_in_words() -> None:
    tools = (Tool(name="t"),)
    old = sent(ChatRequest(messages=(USER,), tools=tools, schema=PLACE), OLD)
    assert "generationConfig" not in old
    assert '"city"' in old["systemInstruction"]["parts"][0]["text"]
    new = sent(ChatRequest(messages=(USER,), tools=tools, schema=PLACE))
    assert new["generationConfig"]["responseJsonSchema"] == PLACE
    quirk = sent(ChatRequest(messages=(USER,), schema=PLACE), quirks=Quirks(json_schema=False))
    assert "generationConfig" not in quirk and "systemInstruction" in quirk
    plain = sent(ChatRequest(messages=(USER,), tools=tools, json_mode=True), OLD)
    assert "JSON" in plain["systemInstruction"]["parts"][0]["text"]


THINKING: list[tuple[str, dict[str, Any], dict[str, Json]]] = [
    (NEW, {}, {}),
    (NEW, {"think": True}, {"includeThoughts": True}),
    (NEW, {"think": False}, {"thinkingLevel": "minimal"}),
    (NEW, {"think": "none"}, {"thinkingLevel": "minimal"}),
    (NEW, {"think": "low"}, {"thinkingLevel": "low", "includeThoughts": True}),
    (NEW, {"think": "max"}, {"thinkingLevel": "high", "includeThoughts": True}),
    ("gemini-3-pro", {"think": False}, {"thinkingLevel": "low"}),
    ("gemini-3-pro", {"think": "minimal"}, {"thinkingLevel": "low", "includeThoughts": True}),
    (NEW, {"think": True, "thinking_budget_tokens": 4000},
     {"thinkingLevel": "medium", "includeThoughts": True}),
    (OLD, {"think": False}, {"thinkingBudget": 0}),
    (OLD, {"think": "medium"}, {"thinkingBudget": 8192, "includeThoughts": True}),
    (OLD, {"think": True}, {"includeThoughts": True}),
    (OLD, {"thinking_budget_tokens": 99_999}, {"thinkingBudget": 24_576, "includeThoughts": True}),
    ("gemini-2.5-pro", {"think": False}, {"thinkingBudget": 128}),
    ("gemini-2.0-flash", {"think": True}, {}),
    ("gemma-4-26b", {"think": "high"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "asked", "wanted"), THINKING)
def test_thinking_is_a_level_since_gemini_3_and_a_budget_before(
    model: str, asked: dict[str, Any], wanted: dict[str, Json]
) -> None:
    assert config(model, **asked).get("thinkingConfig", {}) == wanted


def test_quirks_reach_the_settings_of_generation() -> None:
    quirks = Quirks(
        drop=frozenset({"topK", "thinkingLevel"}),
        caps={"maxOutputTokens": 100},
        defaults={"temperature": 1.0},
        forced={"candidateCount": 1},
    )
    assert config(quirks=quirks, top_k=5, think="low", max_tokens=500) == {
        "maxOutputTokens": 100,
        "thinkingConfig": {"includeThoughts": True},
        "temperature": 1.0,
        "candidateCount": 1,
    }


def test_a_default_is_said_even_when_nothing_else_is() -> None:
    assert config(quirks=Quirks(defaults={"maxOutputTokens": 9})) == {"maxOutputTokens": 9}


def test_embeddings_are_asked_for_in_one_batch() -> None:
    body = json.loads(requests.encode_embeddings("m", ["a", "b"], 64))
    assert body["requests"] == [
        {"model": "models/m", "content": {"parts": [{"text": text}]}, "outputDimensionality": 64}
        for text in ("a", "b")
    ]
    assert "outputDimensionality" not in requests.encode_embeddings("models/m", ["a"]).decode()


words = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)
ids = st.sampled_from(["", "a", "b"])
parts = st.one_of(
    st.builds(TextPart, text=words),
    st.builds(ImagePart, data=st.just(PIXEL), url=st.sampled_from(["", "https://x.example/a.jpg"])),
)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=st.one_of(words, st.lists(parts, max_size=3).map(tuple)),
    tool_calls=st.lists(st.builds(ToolCall, id=ids, name=words, arguments=words), max_size=2).map(
        tuple
    ),
    tool_call_id=ids,
    name=words,
    reasoning=words,
    reasoning_signature=words,
    is_error=st.booleans(),
)
anything = st.builds(
    ChatRequest,
    messages=st.lists(messages, max_size=6).map(tuple),
    prompt=st.none() | words,
    tools=st.lists(st.builds(Tool, name=words, parameters=st.just(PLACE)), max_size=2).map(tuple),
    tool_choice=st.sampled_from([None, "auto", "none", "required", "f"]),
    temperature=st.none() | st.floats(0, 2),
    top_k=st.none() | st.integers(-1, 9),
    stop=st.lists(words, max_size=7).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63),
    schema=st.none() | st.just(PLACE),
    json_mode=st.booleans(),
    think=st.sampled_from([None, True, False, "minimal", "low", "xhigh", "ultra", "none"]),
    thinking_budget_tokens=st.none() | st.integers(1, 10**6),
)


@settings(max_examples=200, deadline=None)
@given(request=anything, model=st.sampled_from([NEW, OLD, "gemini-3-pro", "mine"]))
def test_any_request_makes_a_body_of_names_that_the_api_knows(
    request: ChatRequest, model: str
) -> None:
    body = sent(request, model)
    assert complaint(body) == ""
    assert body["contents"][0]["role"] == "user"
    assert all(turn["parts"] for turn in body["contents"])
    assert {turn["role"] for turn in body["contents"]} <= {"user", "model"}
    seed = body.get("generationConfig", {}).get("seed", 0)
    assert 0 <= seed < 2**31

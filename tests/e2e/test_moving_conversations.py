"""
Conversations that began at one model and go on at another, as the next API accepts them.

What a client sends back was written by whoever answered before: ids, thinking and images in
results that the next cloud refuses. Each rule is the refusal of the real API.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.fakes.cloud_process import FakeCloud
from tests.fakes.house import House, house

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ASKED: Any = {"role": "user", "content": "look"}
SHOT: Any = {"name": "shot", "input_schema": {"type": "object"}}
FUNCTION: Any = {"type": "function", "function": {"name": "shot", "parameters": {}}}
THINK: Any = {"type": "enabled", "budget_tokens": 1024}
KIMIS_ID = "functions.shot:0"


@pytest.fixture(scope="module")
def at(scripted: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    config = (
        'order = ["box", "anthropic", "imitator", "openai"]\n'
        f'[providers.box]\nbase_url = "{scripted.base_url("box")}"\nmodel = "m"\n'
        f'[providers.anthropic]\nbase_url = "{scripted.base_url("anthropic")}"\n'
        'model = "m"\nkeys = ["sk-ant-0a1B2c3D4e5F"]\n'
        f'[providers.imitator]\nbase_url = "{scripted.base_url("imitator")}"\n'
        'model = "m"\ndialect = "anthropic"\n'
        f'[providers.openai]\nbase_url = "{scripted.base_url("openai")}"\n'
        'model = "m"\nkeys = ["sk-0a1B2c3D4e5F6g7H"]\n'
        '[routes.claude]\ntargets = ["anthropic/m", "box/m"]\n'
    )
    folder = tmp_path_factory.mktemp("house")
    with house(folder, config=config, LOCALFIRST_LOCAL_ENGINE="none") as running:
        yield running


def call(identifier: str = KIMIS_ID) -> dict[str, Any]:
    return {"type": "tool_use", "id": identifier, "name": "shot", "input": {}}


def result(identifier: str = KIMIS_ID, content: Any = "done") -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identifier, "content": content}


def turns(*contents: Any) -> list[Any]:
    """A question, and turns behind it by the model and the user."""
    roles = ("assistant", "user")
    told = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return [ASKED, *told]


def sent_by_anthropic(at: House, cloud: FakeCloud, messages: list[Any], **more: Any) -> Any:
    """What a cloud was sent for an Anthropic client's conversation."""
    cloud.reset()
    model = more.pop("model", "anthropic/m")
    with anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as client:
        client.messages.create(model=model, max_tokens=2048, messages=messages, **more)
    return cloud.requests()[-1]["body"]


def sent_by_openai(at: House, cloud: FakeCloud, messages: list[Any], model: str) -> Any:
    """What a cloud was sent for an OpenAI client's conversation."""
    cloud.reset()
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        client.chat.completions.create(model=model, messages=messages, tools=[FUNCTION])
    return cloud.requests()[-1]["body"]


def answered(body: Any) -> list[str]:
    """The calls of a Messages request, by which results answer them; fails where the API would."""
    seen: list[str] = []
    open_calls: list[str] = []
    for turn in body["messages"]:
        blocks = turn["content"] if isinstance(turn["content"], list) else []
        for block in blocks:
            if block["type"] == "tool_use":
                assert re.fullmatch("[a-zA-Z0-9_-]+", block["id"]), "should match the pattern"
                assert block["id"] not in seen, "`tool_use` ids must be unique"
                seen.append(block["id"])
                open_calls.append(block["id"])
            elif block["type"] == "tool_result":
                assert block["tool_use_id"] in open_calls, "unexpected `tool_use_id`"
                open_calls.remove(block["tool_use_id"])
    assert not open_calls, "`tool_use` ids were found without `tool_result` blocks"
    return seen


def test_ids_that_only_their_own_model_allows_are_renamed_for_anthropic(
    at: House, cloud: FakeCloud
) -> None:
    again = turns([call()], [result()], "well", "more", [call(), call("b|2")], None)
    again[-1]["content"] = [result("b|2"), result()]
    assert len(answered(sent_by_anthropic(at, cloud, again, tools=[SHOT]))) == 3
    functions = {"type": "function", "function": {"name": "shot", "arguments": "{}"}}
    turn = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": KIMIS_ID, **functions}]},
        {"role": "tool", "tool_call_id": KIMIS_ID, "content": "done"},
    ]
    body = sent_by_openai(at, cloud, [ASKED, *turn, *turn], "anthropic/m")
    assert len(answered(body)) == 2


def test_ids_that_are_allowed_stay_as_they_are(at: House, cloud: FakeCloud) -> None:
    own = turns([call("toolu_01"), call("toolu_02")], [result("toolu_02"), result("toolu_01")])
    assert sent_by_anthropic(at, cloud, own, tools=[SHOT])["messages"] == own
    body = sent_by_anthropic(at, cloud, turns([call()], [result()]), model="box/m", tools=[SHOT])
    assert body["messages"][1]["tool_calls"][0]["id"] == KIMIS_ID, "its own model wants it back"


def thought(signature: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": "hm", "signature": signature}


def test_thinking_that_nobody_signed_is_not_shown_to_anthropic(at: House, cloud: FakeCloud) -> None:
    own = turns([thought("proof"), {"type": "text", "text": "Hi"}], "and?")
    assert sent_by_anthropic(at, cloud, own, thinking=THINK)["messages"] == own
    others = turns([thought(""), {"type": "text", "text": "Hi"}], "and?")
    body = sent_by_anthropic(at, cloud, others, thinking=THINK)
    assert body["messages"][1]["content"] == [{"type": "text", "text": "Hi"}]
    assert body["thinking"] == THINK
    assert sent_by_anthropic(at, cloud, others, model="imitator/m")["messages"] == others


def test_a_budget_for_thinking_waits_while_calls_of_another_model_are_answered(
    at: House, cloud: FakeCloud
) -> None:
    others = turns([thought(""), call("a")], [result("a")])
    body = sent_by_anthropic(at, cloud, others, tools=[SHOT], thinking=THINK)
    assert "thinking" not in body and answered(body) == ["a"]
    own = turns([thought("proof"), call("a")], [result("a")], [call("b")], [result("b")])
    assert sent_by_anthropic(at, cloud, own, tools=[SHOT], thinking=THINK)["thinking"] == THINK
    freely = sent_by_anthropic(at, cloud, others, tools=[SHOT], thinking={"type": "adaptive"})
    assert freely["thinking"] == {"type": "adaptive"}


def test_images_in_the_results_of_tools_are_shown_by_the_user_where_only_a_user_may(
    at: House, cloud: FakeCloud
) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    seen = [{"type": "text", "text": "here"}, {"type": "image", "source": source}]
    messages = turns(
        [call("a"), call("b")], [result("a", seen), result("b"), {"type": "text", "text": "so?"}]
    )
    told = sent_by_anthropic(at, cloud, messages, model="box/m", tools=[SHOT])["messages"]
    assert [turn["role"] for turn in told] == ["user", "assistant", "tool", "tool", "user", "user"]
    assert [turn["content"] for turn in told[2:4]] == ["here", "done"]
    label, image = told[4]["content"]
    assert "`a`" in label["text"] and image["image_url"]["url"].endswith(PIXEL)
    assert told[5]["content"] == "so?"


def test_a_streamed_call_without_arguments_has_an_empty_object_of_them(
    at: House, cloud: FakeCloud
) -> None:
    cloud.reset()
    now = {"name": "now", "arguments": {}}
    cloud.script({"do": "ok", "tools": [now, now]})
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        asked: Any = {"model": "anthropic/m", "messages": [ASKED], "tools": [FUNCTION]}
        chunks = [
            chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)
        ]
    given = {0: "", 1: ""}
    for piece in [piece for chunk in chunks for piece in chunk.delta.tool_calls or ()]:
        given[piece.index] += (piece.function and piece.function.arguments) or ""
    assert given == {0: "{}", 1: "{}"}
    assert chunks[-1].finish_reason == "tool_calls"


def test_what_only_one_api_knows_is_not_shown_to_another(at: House, cloud: FakeCloud) -> None:
    for_claude: Any = {"metadata": {"user_id": "u"}, "service_tier": "standard_only"}
    body = sent_by_anthropic(at, cloud, [ASKED], model="box/m", **for_claude)
    assert not {"metadata", "service_tier", "user"} & body.keys()
    assert sent_by_anthropic(at, cloud, [ASKED], **for_claude)["metadata"] == {"user_id": "u"}
    for_openai: Any = {"metadata": {"job": "1"}, "service_tier": "flex", "store": True}
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        asked: Any = {"model": "anthropic/m", **for_openai}
        client.chat.completions.create(messages=[ASKED], **asked)
        assert not for_openai.keys() & cloud.requests()[-1]["body"].keys()
        labelled: Any = {"model": "box/m", "metadata": {"job": "1"}, "store": False}
        answer = client.responses.create(input="hi", **labelled)
    # "The 'metadata' parameter is only allowed when 'store' is enabled."
    assert "metadata" not in cloud.requests()[-1]["body"]
    assert answer.metadata == {"job": "1"}


def test_names_of_unfinished_features_go_with_the_fields_that_need_them(
    at: House, cloud: FakeCloud
) -> None:
    def sent(model: str) -> Any:
        cloud.reset()
        asked: Any = {"betas": ["context-management-2025-06-27", "b"], "max_tokens": 9}
        with anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as client:
            client.beta.messages.create(model=model, messages=[ASKED], **asked)
        return cloud.requests()[-1]["headers"]

    assert sent("anthropic/m")["anthropic-beta"] == "context-management-2025-06-27,b"
    assert "anthropic-beta" not in sent("box/m")


def test_a_cloud_without_embeddings_says_so(at: House) -> None:
    with (
        openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        client.embeddings.create(model="anthropic/m", input="a")
    assert "cannot be asked for embeddings: it makes none" in caught.value.message


PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
ANTHROPICS_OWN: dict[str, dict[str, Any]] = {
    "server tool": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    "document": {"messages": turns("well", [{"type": "document", "source": PDF}])},
    "document in a result": {
        "messages": turns([call()], [result(content=[{"type": "document", "source": PDF}])])
    },
    "upload": {"messages": turns("well", [{"type": "container_upload", "file_id": "f"}])},
    "checked": {
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    },
}
OPENAIS_OWN: dict[str, dict[str, Any]] = {
    "several answers": {"n": 2},
    "custom tool": {"tools": [{"type": "custom", "custom": {"name": "x"}}]},
    "allowed tools": {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}},
    "audio": {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
    "file": {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
}


@pytest.mark.parametrize("own", ANTHROPICS_OWN.values(), ids=ANTHROPICS_OWN.keys())
def test_what_only_anthropic_has_goes_past_who_has_no_words_for_it(
    at: House, cloud: FakeCloud, own: Any
) -> None:
    cloud.reset()
    asked = {"messages": [ASKED], **own}
    with anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as client:
        raw = client.messages.with_raw_response.create(model="auto", max_tokens=9, **asked)
        assert raw.headers["x-localfirst-trail"] == "box=invalid_request,anthropic=ok"
        assert [one["part"] for one in cloud.requests()] == ["anthropic"], "not sent to the other"
        counted = client.messages.count_tokens(model="box/m", **asked)
        assert counted.input_tokens > 10
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(model="box/m", max_tokens=9, **asked)
    assert "does not support" in caught.value.message


@pytest.mark.parametrize("own", OPENAIS_OWN.values(), ids=OPENAIS_OWN.keys())
def test_what_only_openai_has_goes_past_who_has_no_words_for_it(
    at: House, cloud: FakeCloud, own: Any
) -> None:
    cloud.reset()
    asked = {"messages": [ASKED], **own}
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model="claude", **asked)
        assert raw.headers["x-localfirst-route"] == "box/m"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="anthropic/m", **asked)
    assert [one["part"] for one in cloud.requests()] == ["box"]


def test_a_document_of_text_is_read_by_everybody(at: House, cloud: FakeCloud) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "of the whale"}
    document = {"type": "document", "title": "Moby-Dick", "source": source}
    told = sent_by_anthropic(at, cloud, turns("well", [document]), model="box/m")["messages"]
    assert told[-1] == {"role": "user", "content": "Moby-Dick\nof the whale"}


def test_ids_that_are_too_long_for_openai_are_shortened_for_it(at: House, cloud: FakeCloud) -> None:
    function = {"type": "function", "function": {"name": "shot", "arguments": "{}"}}
    made = [f"chatcmpl-tool-{number:032x}" for number in range(2)]
    messages = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [{"id": i, **function} for i in made]},
        *({"role": "tool", "tool_call_id": i, "content": "done"} for i in reversed(made)),
    ]
    told = sent_by_openai(at, cloud, messages, "openai/m")["messages"]
    ids = [one["id"] for one in told[1]["tool_calls"]]
    assert len(set(ids)) == 2 and all(len(one) <= 40 for one in ids)
    assert [one["tool_call_id"] for one in told[2:]] == ids[::-1]
    assert sent_by_openai(at, cloud, messages, "box/m")["messages"] == messages
    short = [dict(ASKED), {"role": "assistant", "tool_calls": [{"id": "call_1", **function}]}]
    assert sent_by_openai(at, cloud, short, "openai/m")["messages"] == short
    blocks = turns([call(made[0])], [result(made[0])])
    told = sent_by_anthropic(at, cloud, blocks, model="openai/m", tools=[SHOT])["messages"]
    assert told[1]["tool_calls"][0]["id"] == told[2]["tool_call_id"] == ids[0]


def test_a_failed_tool_is_told_to_models_whose_dialect_has_no_word_for_it(
    at: House, cloud: FakeCloud
) -> None:
    def failed(content: str) -> Any:
        return [{**result(content=content), "is_error": True}]

    told = ["no such window", "Error: no such window", ""]
    said = []
    for content in told:
        again = turns([call()], failed(content))
        body = sent_by_anthropic(at, cloud, again, model="box/m", tools=[SHOT])
        said += [turn["content"] for turn in body["messages"] if turn["role"] == "tool"]
    assert said == ["Error: no such window", "Error: no such window", "Error"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_met_at_once_is_an_empty_answer_and_no_failure(
    at: House, cloud: FakeCloud, stream: bool
) -> None:
    met = {"do": "ok", "chunks": [], "finish": "stop_sequence", "stop_sequence": "END"}
    asked: Any = {"model": "anthropic/m", "messages": [ASKED]}
    cloud.reset()
    cloud.script(met, met)
    with anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as client:
        own: Any = {**asked, "max_tokens": 9, "stop_sequences": ["END"]}
        if stream:
            with client.messages.stream(**own) as events:
                message: Any = events.get_final_message()
        else:
            message = client.messages.create(**own)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as other:
        answer: Any = other.chat.completions.create(**asked, stop=["END"], stream=stream)
        choices = [one.choices[0] for one in answer if one.choices] if stream else answer.choices
    assert choices[-1].finish_reason == "stop"
    assert not any((c.delta if stream else c.message).content for c in choices)
    assert len(cloud.requests()) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("named", [{"stop_reason": "END"}, {"stop_reason": 151_645}, {}])
def test_a_stop_sequence_that_few_name_is_met_at_once_and_no_failure(
    at: House, cloud: FakeCloud, stream: bool, named: dict[str, Any]
) -> None:
    # vLLM names it, or the token that ended it; others only count what they do not show.
    cloud.reset()
    cloud.script({"do": "ok", "chunks": [], "times": -1, **named})
    asked: Any = {"model": "box/m", "messages": [ASKED], "stream": stream}
    with (
        openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client,
        anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as other,
    ):
        answer: Any = client.chat.completions.create(**asked, stop=["END", "FIN"])
        choices = [one.choices[0] for one in answer if one.choices] if stream else answer.choices
        assert choices[-1].finish_reason == "stop"
        found: Any = other.messages.create(**asked, max_tokens=9, stop_sequences=["END"])
        ends = [e.delta for e in found if e.type == "message_delta"] if stream else [found]
        assert (ends[-1].stop_reason, ends[-1].stop_sequence) == ("stop_sequence", "END")
        assert len(cloud.requests()) == 2
        if named.get("stop_reason") != "END":
            with pytest.raises(openai.InternalServerError, match="empty"):
                client.chat.completions.create(**asked)

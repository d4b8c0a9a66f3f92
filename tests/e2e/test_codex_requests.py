"""
Agents that speak the Responses API: tools in groups, tools that take text, searches for tools.

The requests were recorded from Codex, which asks every provider so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.cloud_process import FakeCloud
from tests.fakes.house import House, house

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "codex_requests.json").read_text())
HOUR = {"name": "mcp__clockwork__tell_hour", "arguments": {"zone": "Oslo"}}
PATCH = "*** Begin Patch\n*** Add File: hi.txt\n+hello\n*** End Patch\n"
SAYS: Any = {"type": "function", "name": "say", "parameters": {"type": "object"}}
CLOCKWORK: Any = {
    "type": "namespace",
    "name": "mcp__clockwork",
    "description": "",
    "tools": [{"type": "function", "name": "tell_hour", "parameters": {"type": "object"}}],
}


@pytest.fixture(scope="module")
def at(scripted: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    config = f'order = ["box"]\n[providers.box]\nbase_url = "{scripted.base_url("box")}"\n'
    folder = tmp_path_factory.mktemp("house")
    with house(folder, config=config + 'model = "m"\n', LOCALFIRST_LOCAL_ENGINE="none") as running:
        yield running


@pytest.fixture
def client(at: House, cloud: FakeCloud) -> Iterator[openai.OpenAI]:
    cloud.reset()
    with closing(openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0)) as made:
        yield made


def ask(client: openai.OpenAI, request: dict[str, Any], **more: Any) -> Any:
    """The answer to a recorded request, which the package need not have words for."""
    asked = {**request, "model": "auto", **more}
    known = {name: asked.pop(name) for name in ("model", "input", "stream")}
    return client.responses.create(**known, extra_body=asked)


def items(client: openai.OpenAI, request: dict[str, Any], *, stream: bool, **more: Any) -> Any:
    """The items of an answer, and the types of its events."""
    answer = ask(client, request, stream=stream, **more)
    if not stream:
        return [item.to_dict() for item in answer.output], []
    events = list(answer)
    assert events[-1].type == "response.completed"
    done = [e.item.to_dict() for e in events if e.type == "response.output_item.done"]
    assert [item.to_dict() for item in events[-1].response.output] == done
    return done, events


def offered(cloud: FakeCloud) -> list[str]:
    return [tool["function"]["name"] for tool in cloud.requests()[-1]["body"].get("tools", [])]


def test_an_agents_tools_reach_a_model_as_functions(
    client: openai.OpenAI, cloud: FakeCloud
) -> None:
    ask(client, RECORDED["unknown"], stream=False)
    names = offered(cloud)
    assert {"exec_command", "mcp__clockwork__tell_hour", "multi_agent_v1__spawn_agent"} <= {*names}
    assert "web_search" not in names
    ask(client, RECORDED["gpt-5.5"], stream=False)
    assert {"apply_patch", "tool_search"} <= {*offered(cloud)}
    (patch,) = [
        tool["function"]
        for tool in cloud.requests()[-1]["body"]["tools"]
        if tool["function"]["name"] == "apply_patch"
    ]
    assert patch["parameters"]["required"] == ["input"]
    assert "lark grammar:\nstart: begin_patch" in patch["description"]
    ask(client, RECORDED["gpt-6"], stream=False)
    assert {"functions__exec", "functions__wait", "clock__sleep"} <= {*offered(cloud)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_grouped_tool_is_called_as_its_client_knows_it(
    client: openai.OpenAI, cloud: FakeCloud, stream: bool
) -> None:
    cloud.script({"do": "ok", "tool": HOUR})
    (item,), events = items(client, RECORDED["unknown"], stream=stream)
    assert (item["type"], item["namespace"], item["name"]) == (
        "function_call", "mcp__clockwork", "tell_hour")  # fmt: skip
    assert json.loads(item["arguments"]) == {"zone": "Oslo"}
    for event in events:
        if event.type == "response.function_call_arguments.done":
            assert event.name == "tell_hour"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"input": PATCH}, PATCH), ({"patch": PATCH}, PATCH), ({}, ""),
        ({"a": "b", "c": 1}, '{"a": "b", "c": 1}'),
    ],
)  # fmt: skip
def test_a_tool_that_takes_text_is_given_text(
    client: openai.OpenAI, cloud: FakeCloud, stream: bool, given: dict[str, Any], text: str
) -> None:
    cloud.script({"do": "ok", "tool": {"name": "apply_patch", "arguments": given}})
    (item,), events = items(client, RECORDED["gpt-5.5"], stream=stream)
    assert (item["type"], item["name"]) == ("custom_tool_call", "apply_patch")
    assert item["input"] == text
    said = [e.delta for e in events if e.type == "response.custom_tool_call_input.delta"]
    assert "".join(said) == (text if stream else "")
    ends = [e.input for e in events if e.type == "response.custom_tool_call_input.done"]
    assert ends == ([text] if stream else [])
    assert not any("function_call_arguments" in event.type for event in events)


@pytest.mark.parametrize("stream", [False, True])
def test_a_search_for_tools_is_the_agents_and_what_it_finds_can_be_called(
    client: openai.OpenAI, cloud: FakeCloud, stream: bool
) -> None:
    request = RECORDED["gpt-5.5"]
    cloud.script(
        {"do": "ok", "tool": {"name": "tool_search", "arguments": {"query": "hour"}}},
        {"do": "ok", "tool": HOUR},
    )
    (search,), _ = items(client, request, stream=stream)
    assert (search["type"], search["execution"]) == ("tool_search_call", "client")
    assert search["arguments"] == {"query": "hour"}
    found = {"type": "tool_search_output", "call_id": search["call_id"], "status": "completed"}
    turns = [*request["input"], search, {**found, "execution": "client", "tools": [CLOCKWORK]}]
    (call,), _ = items(client, {**request, "input": turns}, stream=stream)
    assert (call["namespace"], call["name"]) == ("mcp__clockwork", "tell_hour")
    assert offered(cloud)[-1] == "mcp__clockwork__tell_hour"
    said, answer = cloud.requests()[-1]["body"]["messages"][-2:]
    assert said["tool_calls"][0]["function"] == {
        "name": "tool_search", "arguments": '{"query":"hour"}'}  # fmt: skip
    assert answer["tool_call_id"] == search["call_id"]
    assert "mcp__clockwork__tell_hour" in answer["content"]


def test_a_conversation_with_such_calls_goes_on(client: openai.OpenAI, cloud: FakeCloud) -> None:
    hour = {"type": "function_call", "call_id": "a", "namespace": "mcp__clockwork"}
    patch = {"type": "custom_tool_call", "call_id": "b", "name": "apply_patch", "input": PATCH}
    turns = [
        *RECORDED["gpt-5.5"]["input"],
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
        {**hour, "name": "tell_hour", "arguments": '{"zone":"Oslo"}'},
        patch,
        {"type": "function_call_output", "call_id": "a", "output": "noon"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "Success"},
    ]
    ask(client, {**RECORDED["gpt-5.5"], "input": turns}, stream=False)
    said, first, second = cloud.requests()[-1]["body"]["messages"][-3:]
    called = [call["function"] for call in said["tool_calls"]]
    assert [call["name"] for call in called] == ["mcp__clockwork__tell_hour", "apply_patch"]
    assert json.loads(called[1]["arguments"]) == {"input": PATCH}
    assert [(m["tool_call_id"], m["content"]) for m in (first, second)] == [
        ("a", "noon"), ("b", "Success")]  # fmt: skip


def test_the_answer_tells_which_tools_are_in_force(client: openai.OpenAI) -> None:
    offers = [{"type": "web_search"}, {"type": "image_generation"}, {"type": "tool_search"}]
    custom = {"type": "custom", "name": "note", "description": "writes"}
    answer = ask(
        client, {"input": "hi", "tools": [SAYS, *offers, CLOCKWORK, custom]}, stream=False
    ).to_dict()
    assert [(tool["type"], tool["name"]) for tool in answer["tools"]] == [
        ("function", "say"), ("namespace", "mcp__clockwork"), ("custom", "note")]  # fmt: skip
    assert [tool["name"] for tool in answer["tools"][1]["tools"]] == ["tell_hour"]


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ({"type": "function", "name": "say"}, "say"), ({"type": "custom", "name": "note"}, "note"),
        (
            {"type": "function", "namespace": "mcp__clockwork", "name": "tell_hour"},
            "mcp__clockwork__tell_hour",
        ),
    ],
)  # fmt: skip
def test_any_of_them_can_be_chosen(
    client: openai.OpenAI, cloud: FakeCloud, choice: dict[str, str], name: str
) -> None:
    tools = [SAYS, CLOCKWORK, {"type": "custom", "name": "note"}]
    ask(client, {"input": "hi", "tools": tools, "tool_choice": choice}, stream=False)
    assert cloud.requests()[-1]["body"]["tool_choice"]["function"]["name"] == name


@pytest.mark.parametrize(
    ("tools", "field"),
    [
        ([{"type": "web_search"}], "tools[0].type"),
        ([SAYS, {"type": "file_search", "vector_store_ids": ["v"]}], "tools[1].type"),
        ([SAYS, {"type": "mcp", "server_url": "https://x.example"}], "tools[1].type"),
        ([{**CLOCKWORK, "tools": [{"type": "web_search"}]}], "tools[0].tools[0].type"),
        ([{**CLOCKWORK, "tools": [CLOCKWORK]}], "tools[0].tools[0].type"),
    ],
)
def test_what_only_openai_runs_is_refused_where_an_answer_would_lack_it(
    client: openai.OpenAI, cloud: FakeCloud, tools: list[Any], field: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, {"input": "hi", "tools": tools}, stream=False)
    assert refused.value.param == field
    assert cloud.requests() == []


def test_long_names_stay_apart_and_within_what_providers_take(
    client: openai.OpenAI, cloud: FakeCloud
) -> None:
    inside = [{"type": "function", "name": "f" * 40 + end, "parameters": {}} for end in "ab"]
    group = {"type": "namespace", "name": "mcp__" + "n" * 40, "tools": inside}
    ask(client, {"input": "hi", "tools": [group]}, stream=False)
    names = offered(cloud)
    assert len({*names}) == 2 and all(len(name) <= 64 for name in names)
    cloud.script({"do": "ok", "tool": {"name": names[1], "arguments": {}}})
    (item,), _ = items(client, {"input": "hi", "tools": [group]}, stream=False)
    assert (item["namespace"], item["name"]) == (group["name"], "f" * 40 + "b")

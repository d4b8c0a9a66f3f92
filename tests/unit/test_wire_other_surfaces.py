"""Requests of the completions and the responses surface."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import InvalidRequest
from localfirst.events import Finished, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from localfirst.types import ChatRequest, Json, Tool, ToolCall
from localfirst.wire.openai import completions
from localfirst.wire.openai.responses import answers, requests
from tests.wire.support import dumps, payloads, reply_of


def completion(**fields: Json) -> ChatRequest:
    return completions.decode(dumps({"model": "m", "prompt": "p", **fields}))


def response(**fields: Json) -> ChatRequest:
    return requests.decode(dumps({"model": "m", "input": "hi", **fields}))


def test_a_completion_is_a_prompt() -> None:
    request = completion(suffix="s", max_tokens=5, stop="x", logprobs=3, stream=True)
    assert (request.prompt, request.suffix, request.max_tokens) == ("p", "s", 5)
    assert (request.stop, request.logprobs, request.top_logprobs) == (("x",), True, 3)
    assert completion(prompt=["only"]).prompt == "only"
    assert not request.messages
    look = completions.peek(dumps({"prompt": "p" * 400, "stream": True, "max_tokens": 5}))
    assert (look.model, look.stream, look.needs.max_tokens) == ("auto", True, 5)
    assert look.needs.prompt_tokens >= 100


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"echo": True}, "echo"),
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 99}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"proxy": "x"}, "proxy"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(fields: dict[str, Json], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**fields)
    assert caught.value.field == field


def test_items_of_a_response_become_turns() -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "well", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b",
         "output": [{"type": "input_text", "text": "2"}]},
    ]  # fmt: skip
    request = response(input=items, instructions="rules")
    assert [m.role for m in request.messages] == [
        "system", "system", "user", "assistant", "tool", "tool",
    ]  # fmt: skip
    assert request.messages[3].text == "well"
    assert request.messages[3].tool_calls == (
        ToolCall(id="a", name="f", arguments='{"x":1}'),
        ToolCall(id="b", name="g", arguments="{}"),
    )
    assert [m.text for m in request.messages[4:]] == ["1", "2"]


def test_a_response_asks_for_all_that_a_chat_can() -> None:
    request = response(
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        reasoning={"effort": "high", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        max_output_tokens=9,
        top_logprobs=2,
        store=False,
        include=["reasoning.encrypted_content"],
    )
    assert request.tools == (Tool(name="f", parameters={"type": "object"}, strict=True),)
    assert (request.tool_choice, request.parallel_tool_calls) == ("f", False)
    assert (request.think, request.schema, request.schema_name) == ("high", {"type": "object"}, "n")
    assert (request.max_tokens, request.top_logprobs) == (9, 2)
    assert response(text={"format": {"type": "json_object"}}).json_mode
    assert response(reasoning={"effort": "none"}).think is False


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "unheard_of"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"extra_headers": {}}, "extra_headers"),
    ],
)
def test_a_wrong_field_of_a_response_is_named(fields: dict[str, Json], field: str) -> None:
    for read in (requests.decode, requests.peek):
        with pytest.raises(InvalidRequest) as caught:
            read(dumps({"model": "m", "input": "hi", **fields}))
        assert caught.value.field == field


def test_a_turn_that_only_refers_to_its_reasoning_is_read() -> None:
    # What the Vercel AI SDK (`@ai-sdk/openai` 3.0.141, `store` left alone) sends after a tool ran.
    turns = response(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "item_reference", "id": "rs_37a093cf_0"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "noon"},
        ]
    ).messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"]


def test_who_refers_to_a_turn_is_told_to_send_it() -> None:
    # In the message: the Vercel AI SDK shows nothing else of an error.
    with pytest.raises(InvalidRequest, match=r"send the item itself, .* with `store` false"):
        response(input=[{"type": "item_reference", "id": "msg_1"}])


def test_who_sends_a_file_is_not_sent_to_look_for_a_model_that_reads_it() -> None:
    # No backend is asked in the words of this API: the Vercel AI SDK's files are `input_file`.
    part = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,"}
    with pytest.raises(InvalidRequest, match="are not read here, text and images are") as caught:
        response(input=[{"role": "user", "content": [part]}])
    assert caught.value.field == "input[0].content[0].type"
    assert "`/v1/chat/completions`" in caught.value.hint


def test_a_failed_response_says_so_and_completes_nothing() -> None:
    from localfirst.errors import StreamInterrupted

    writer = answers.StreamWriter(model="m", request_id="req_1", created=1)
    stream = writer.write(TextDelta("a")) + writer.error(StreamInterrupted("cut"))
    kinds = [payload["type"] for payload in payloads(stream)]
    assert kinds[-2:] == ["response.failed", "error"]
    assert "response.completed" not in kinds and "response.output_text.done" not in kinds
    last = payloads(stream)[-1]
    assert (last["message"], last["error"]["code"]) == ("cut", "stream-interrupted")


def test_interleaved_calls_of_a_response_keep_their_places() -> None:
    writer = answers.StreamWriter(model="m", request_id="req_1", created=1)
    events: list[Any] = [
        ReasoningDelta("hm"),
        ToolCallDelta(0, "a", "f", ""),
        ToolCallDelta(1, "b", "g", '{"y":'),
        ToolCallDelta(0, "", "", '{"x":1}'),
        ToolCallDelta(1, "", "", "2}"),
        Finished(FinishReason.TOOL_CALLS),
    ]
    final = payloads(b"".join(map(writer.write, events)))[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", *["function_call"] * 2]
    assert [json.loads(item["arguments"]) for item in final["output"][1:]] == [{"x": 1}, {"y": 2}]
    assert [item["call_id"] for item in final["output"][1:]] == ["a", "b"]


def test_what_was_asked_is_echoed() -> None:
    asked = {
        "instructions": "s",
        "input": [{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}],
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "max_output_tokens": 5,
        "reasoning": {"effort": "low"},
        "metadata": {"ours": "1"},
    }
    request = response(**asked)
    writer = answers.StreamWriter(model="m", request_id="req_1", created=1, request=request)
    given = payloads(writer.write(TextDelta("a")))[0]["response"]
    assert (given["instructions"], given["max_output_tokens"]) == ("s", 5)
    assert given["tool_choice"] == {"type": "function", "name": "f"}
    assert given["text"]["format"]["schema"] == {"type": "object"}
    assert given["reasoning"] == {"effort": "low"}
    assert given["tools"][0]["name"] == "f"
    assert given["metadata"] == {"ours": "1"}
    other = answers.StreamWriter(
        model="m", request_id="r", created=1, request=response(input=asked["input"])
    )
    said = payloads(other.write(TextDelta("a")))[0]["response"]
    assert (said["instructions"], said["metadata"]) == (None, {}), "a turn is no instruction"


def kinds_of(stream: bytes) -> list[tuple[str, int]]:
    """The events about output items, in order, with the item that each is about."""
    found = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]
    about = [one for one in found if "output_index" in one]
    return [(one["type"].removeprefix("response."), one["output_index"]) for one in about]


def test_a_call_is_concluded_before_the_next_one_begins() -> None:
    writer = answers.StreamWriter(model="m", request_id="req_1", created=1)
    stream = writer.write(ToolCallDelta(0, "a", "now", "{}"))
    stream += writer.write(ToolCallDelta(1, "b", "now", "{}")) + writer.write(Finished())
    assert [kind for kind, index in kinds_of(stream) if index == 0] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert [index for _, index in kinds_of(stream)] == sorted(i for _, i in kinds_of(stream))


def test_calls_whose_pieces_are_mixed_are_each_concluded_once_and_whole() -> None:
    writer = answers.StreamWriter(model="m", request_id="req_1", created=1)
    pieces = [(0, "a", ""), (1, "b", ""), (0, "", '{"x":'), (1, "", "{}"), (0, "", "1}")]
    events = [ToolCallDelta(index, name, name, text) for index, name, text in pieces]
    stream = b"".join(writer.write(event) for event in [*events, Finished()])
    kinds = kinds_of(stream)
    assert kinds.count(("output_item.done", 0)) == kinds.count(("output_item.done", 1)) == 1
    assert kinds[-1][0] == "output_item.done"
    assert rb'"arguments":"{\"x\":1}"' in stream


@pytest.mark.parametrize(
    "broken", ["[" * 5000, '{"input":' + "[" * 5000, r'{"input":"\ud800"}', '{"i']
)
@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ({"type": "custom", "name": "t"}, "input"),
        ({"type": "tool_search", "execution": "client"}, "arguments"),
    ],
)
def test_a_call_that_was_cut_by_the_limit_is_given_as_far_as_it_goes(
    tool: Json, field: str, broken: str
) -> None:
    request = response(tools=[tool])
    call = ToolCallDelta(0, "a", request.tools[0].name, broken)
    events = [call, Finished(FinishReason.LENGTH)]
    writer = answers.StreamWriter(model="m", request_id="r", created=1, request=request)
    streamed = payloads(b"".join(map(writer.write, events)))[-1]["response"]
    whole = json.loads(answers.reply(reply_of(events), created=1, request=request))
    for given in (streamed, whole):
        assert given["status"] == "incomplete"
        assert len(given["output"][0][field]) == (len(broken) if field == "input" else 0)


def test_a_message_that_was_cut_by_the_limit_is_incomplete_like_its_response() -> None:
    writer = answers.StreamWriter(model="m", request_id="req_1", created=1)
    stream = writer.write(TextDelta("a")) + writer.write(Finished(FinishReason.LENGTH))
    last = json.loads(stream.rstrip().split(b"data: ")[-1])["response"]
    assert (last["status"], last["output"][0]["status"]) == ("incomplete", "incomplete")


@pytest.mark.parametrize("given", ["", [""], ["a", "b"], None])
def test_a_completion_needs_one_prompt_that_says_something(given: Json) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=given)
    assert caught.value.field == "prompt"


def test_a_message_without_content_is_refused_by_the_responses_surface() -> None:
    with pytest.raises(InvalidRequest) as caught:
        response(input=[{"role": "user"}])
    assert caught.value.field == "input[0].content"


def likely(token: str) -> Json:
    return {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []}


def test_tokens_of_a_completion_are_found_in_its_text() -> None:
    pieces = [TextDelta("Hello", (likely("Hel"), likely("lo"))), TextDelta("!", (likely("!"),))]
    writer = completions.StreamWriter(model="m", request_id="r", created=1)
    chunks = [payloads(writer.write(piece))[0]["choices"][0] for piece in pieces]
    assert [chunk["logprobs"]["text_offset"] for chunk in chunks] == [[0, 3], [5]]
    whole = json.loads(completions.reply(reply_of([*pieces, Finished()]), created=1))
    assert whole["choices"][0]["logprobs"]["text_offset"] == [0, 3, 5]


def test_logprobs_of_a_response_are_asked_for_in_either_way() -> None:
    assert response(include=["message.output_text.logprobs"]).logprobs is True
    assert response(top_logprobs=2).logprobs is True
    assert response(include=["reasoning.encrypted_content"]).logprobs is None

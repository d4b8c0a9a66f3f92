"""
A request to `/v1/responses`, into a `ChatRequest`.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from localfirst.errors import InvalidRequest
from localfirst.types import ChatRequest, Dialect, Json, Message, Needs, Part, ToolCall
from localfirst.wire import strict_json
from localfirst.wire.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_MESSAGES,
    MAX_SEED,
    MAX_TOKENS,
    Fields,
    refuse,
    wrong,
)
from localfirst.wire.openai.content import check_images, content_of
from localfirst.wire.openai.decode import EFFORTS, arguments_of
from localfirst.wire.openai.responses import tools
from localfirst.wire.options import keep_alive_of, options_of
from localfirst.wire.peek import Peek, prompt_tokens
from localfirst.wire.refusal import NotTranslatable

_KNOWN = frozenset(
    {
        "model", "input", "instructions", "stream", "stream_options", "tools", "tool_choice",
        "parallel_tool_calls", "temperature", "top_p", "max_output_tokens", "text", "reasoning",
        "top_logprobs", "previous_response_id", "conversation", "background", "prompt", "user",
        "seed", "num_ctx", "keep_alive", "options", "metadata", "store",
    }
)  # fmt: skip

LIKELY = "message.output_text.logprobs"
MAX_INCLUDED = 64

_STATEFUL = ("previous_response_id", "conversation", "prompt")

_PAST = frozenset(
    {
        "reasoning", "additional_tools", "web_search_call", "image_generation_call",
        "code_interpreter_call",
    }
)  # fmt: skip
"""
What is no turn for the next model: another one's reasoning, tools (`tools.read` has them), and
what ran at OpenAI, of which the messages tell.
"""

_ROLES = ("system", "developer", "user", "assistant")


def decode(body: bytes) -> ChatRequest:
    """
    The request in *body*.

    Raises:
        InvalidRequest: naming the field that is missing, wrong or out of range, or that
            refers to something stored elsewhere.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    _check_stateless(fields)
    messages = _instructions(fields) + _input(fields)
    check_images(messages)
    top = fields.integer("top_logprobs", 0, 20)
    likely = bool(top) or LIKELY in fields.items("include", MAX_INCLUDED)
    return ChatRequest(
        model=fields.text("model") or "auto",
        messages=tuple(messages),
        tools=tools.read(fields),
        tool_choice=tools.chosen(fields),
        parallel_tool_calls=fields.flag("parallel_tool_calls"),
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        max_tokens=fields.integer("max_output_tokens", 1, MAX_TOKENS),
        seed=fields.integer("seed", -MAX_SEED, MAX_SEED),
        logprobs=likely or None,
        top_logprobs=top or None,
        **_format(fields),
        think=_think(fields),
        num_ctx=fields.integer("num_ctx", 1, MAX_CONTEXT_TOKENS),
        keep_alive=keep_alive_of(fields),
        options=options_of(fields),
        user=fields.text("user"),
        stream=bool(fields.flag("stream")),
        include_usage=True,
        extra={**fields.rest(_KNOWN), **_echoed(fields)},
        dialect=Dialect.OPENAI,
    )


def peek(body: bytes) -> Peek:
    """What routing needs; the input's many shapes are decoded for it at once."""
    request = decode(body)
    vision = any(message.images for message in request.messages)
    needs = Needs(
        tools=bool(request.tools),
        vision=vision,
        schema=request.schema is not None,
        thinking=bool(request.think),
        prompt_tokens=prompt_tokens(body, images=vision),
        max_tokens=request.max_tokens or 0,
    )
    return Peek(request.model, request.stream, needs)


def _check_stateless(fields: Fields) -> None:
    for name in _STATEFUL:
        if fields.has(name):
            raise wrong(name, "left out: nothing is stored here, send the whole input")
    if fields.flag("background"):
        raise wrong("background", "false: nothing runs in the background here")


def _instructions(fields: Fields) -> list[Message]:
    said = fields.text("instructions")
    return [Message(role="system", content=said)] if said else []


def _echoed(fields: Fields) -> dict[str, Json]:
    """What the answer repeats and no model is told: nothing is stored to be found by it."""
    fields.flag("store")
    said = {"instructions": fields.text("instructions"), "labels": fields.mapping("metadata")}
    return {name: value for name, value in said.items() if value}


def _input(fields: Fields) -> list[Message]:
    value = fields.get("input")
    if isinstance(value, str):
        return [Message(role="user", content=value)]
    if not isinstance(value, list) or not value:
        raise wrong("input", "a string or a non-empty list of items")
    turns: list[Message] = []
    for item in fields.objects("input", MAX_MESSAGES):
        _take(item, turns)
    return turns


def _take(item: Fields, turns: list[Message]) -> None:
    match item.text("type", "message"):
        case "message":
            turns.append(_message(item))
        case "function_call":
            name = tools.joined(item.text("namespace"), item.required_text("name"))
            _add_call(item, name, arguments_of(item), turns)
        case "custom_tool_call":
            name = tools.joined(item.text("namespace"), item.required_text("name"))
            _add_call(item, name, tools.written({"input": item.text("input")}), turns)
        case "tool_search_call":
            if item.text("call_id"):
                _add_call(item, tools.SEARCH, tools.written(item.mapping("arguments")), turns)
        case "tool_search_output":
            if item.text("call_id"):
                turns.append(_searched(item))
        case "function_call_output" | "custom_tool_call_output":
            turns.append(_result(item))
        case kind if kind in _PAST:
            pass
        case "item_reference":
            _check_reference(item)
        case _:
            raise wrong(item.at("type"), "a message, a function call or its output")


def _check_reference(item: Fields) -> None:
    """What points at another model's reasoning may stay; what points at a turn is missing."""
    if not item.required_text("id").startswith("rs_"):
        raise InvalidRequest(
            f"`{item.at('id')}` refers to an item, and nothing is stored here: send the item "
            "itself, as clients do for a request with `store` false",
            field=item.at("id"),
        )


def _message(item: Fields) -> Message:
    if not item.has("content"):
        raise wrong(item.at("content"), "a string or a list of parts")
    match item.choice("role", _ROLES):
        case "assistant":
            return Message(role="assistant", content=_content(item))
        case "user":
            return Message(role="user", content=_content(item))
        case None:
            raise wrong(item.at("role"), "one of " + ", ".join(f"`{role}`" for role in _ROLES))
    return Message(role="system", content=_content(item))


def _content(item: Fields, name: str = "content") -> str | tuple[Part, ...]:
    """The content of an item; no backend is asked in this API's words, so none has more."""
    try:
        return content_of(item, name)
    except NotTranslatable as error:
        raise InvalidRequest(
            f"`{error.field}`: {error.what} are not read here, text and images are",
            field=error.field,
            hint="send it as text, or to `/v1/chat/completions`, which passes such parts on",
        ) from None


def _add_call(item: Fields, name: str, arguments: str, turns: list[Message]) -> None:
    """Calls of one turn are items of their own here, and one message elsewhere."""
    identifier = item.text("call_id") or item.text("id")
    call = ToolCall(id=identifier, name=name, arguments=arguments)
    before = turns[-1] if turns and turns[-1].role == "assistant" else None
    if before is None:
        turns.append(Message(role="assistant", tool_calls=(call,)))
    else:
        calls = (*before.tool_calls, call)
        turns[-1] = Message(role="assistant", content=before.content, tool_calls=calls)


def _searched(item: Fields) -> Message:
    said = tools.found_by_search(item)
    return Message(role="tool", content=said, tool_call_id=item.text("call_id"))


def _result(item: Fields) -> Message:
    return Message(
        role="tool",
        content=_content(item, "output"),
        tool_call_id=item.required_text("call_id"),
    )


def _format(fields: Fields) -> dict[str, Json]:
    text = fields.object("text")
    found = text.object("format") if text else None
    if found is None:
        return {}
    kind = found.choice("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        return {"json_mode": True}
    if kind != "json_schema":
        return {}
    if not found.has("schema"):
        raise wrong(found.at("schema"), "a JSON schema")
    return {"schema": found.mapping("schema"), "schema_name": found.text("name")}


def _think(fields: Fields) -> bool | str | None:
    reasoning = fields.object("reasoning")
    effort = reasoning.choice("effort", EFFORTS) if reasoning else None
    return False if effort == "none" else effort

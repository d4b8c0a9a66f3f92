"""A `ChatRequest` as a chat completion request, and a client's own body passed on."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from localfirst.types import ChatRequest, Dialect, Json, Message, Part, TextPart, Tool
from localfirst.wire import peek, quirks
from localfirst.wire.openai.content import parts_of
from localfirst.wire.openai.shaping import ASKED_FOR, NOTHING, SHORT_BYTES, shape
from localfirst.wire.quirks import Quirks
from localfirst.wire.refusal import refuse_only_local

_ENCODER = msgspec.json.Encoder()

_PASSED = frozenset(
    {
        "logit_bias", "service_tier", "verbosity", "prediction", "prompt_cache_key", "provider",
        "safety_identifier", "web_search_options", "thinking", "store", "metadata",
    }
)  # fmt: skip
"""Fields of this dialect alone that are sent on when a request was decoded on its way."""

_USAGE_ON = msgspec.Raw(b'{"include_usage":true}')
_TRUE = msgspec.Raw(b"true")
_NULL = msgspec.Raw(b"null")


def encode(request: ChatRequest, model: str, *, quirks: Quirks = quirks.NONE) -> bytes:
    """
    The body of `POST …/chat/completions` for *request* at *model*.

    Raises:
        UpstreamRefused: for a `suffix` or a `context`, which this endpoint has no word for.
    """
    fields: dict[str, Json] = {"model": model, "messages": _messages(request, quirks)}
    if request.stream:
        fields["stream"] = True
        if quirks.stream_usage:
            fields["stream_options"] = {"include_usage": True}
    fields.update(_tools(request))
    fields.update(_sampling(request))
    fields["response_format"] = _format(request)
    fields["reasoning_effort"] = _effort(request.think)
    if request.dialect in {None, Dialect.OPENAI}:
        fields.update({name: request.extra[name] for name in _PASSED & request.extra.keys()})
    fields = {name: value for name, value in fields.items() if value is not None and value != []}
    shape(fields, quirks)
    return _ENCODER.encode(fields)


def splice(
    body: bytes,
    *,
    model: str,
    quirks: Quirks = quirks.NONE,
    include_usage: bool = True,
    fields: Mapping[str, msgspec.Raw] | None = None,
) -> bytes:
    """
    A client's own body for a backend of this dialect: only what must change is touched.

    Args:
        body: as the client sent it, accepted by `peek`.
        model: the name at this provider.
        quirks: what the provider wants otherwise.
        include_usage: ask a stream for its usage even if the client did not.
        fields: those of *body*, where `peek` has them already; they stay as they are.
    """
    passed: dict[str, Json] = {
        name: value
        for name, value in (fields or peek.raw_object(body)).items()
        # Long values are not copied to find out.
        if len(value) > SHORT_BYTES
        or bytes(value) not in NOTHING
        or (name in ASKED_FOR and value != _NULL)
    }
    passed["model"] = model
    if not quirks.stream_usage:
        passed.pop("stream_options", None)
    elif include_usage and passed.get("stream") == _TRUE:
        passed["stream_options"] = _USAGE_ON
    shape(passed, quirks)
    return _ENCODER.encode(passed)


def _messages(request: ChatRequest, quirks: Quirks) -> list[Json]:
    refuse_only_local(request)
    messages: list[Json] = []
    shown: list[Part] = []
    for message in request.messages:
        if shown and message.role != "tool":
            messages.append(_shown(shown))
        messages.append(_message(message, quirks))
        shown = [*shown, *_pictures(message)] if message.role == "tool" else []
    if shown:
        messages.append(_shown(shown))
    if request.prompt is not None:
        messages.append({"role": "user", "content": request.prompt})
    return messages


def _pictures(result: Message) -> list[Part]:
    """
    The images of a tool's result, which only a user may show here.

    "Image URLs are only allowed for messages with role 'user'": the API refuses them where the
    result stands. They follow behind the results of the turn, which must not be parted.
    """
    if not result.images:
        return []
    of = TextPart(text=f"Images in the result of the call `{result.tool_call_id}`:")
    return [of, *result.images]


def _shown(parts: list[Part]) -> dict[str, Json]:
    return {"role": "user", "content": parts_of(Message(role="user", content=tuple(parts)))}


def _message(message: Message, quirks: Quirks) -> dict[str, Json]:
    if message.role == "tool":
        result: dict[str, Json] = {"role": "tool", "content": message.result}
        result["tool_call_id"] = message.tool_call_id
        return result
    fields: dict[str, Json] = {"role": message.role, "content": parts_of(message)}
    if message.name:
        fields["name"] = message.name
    if message.tool_calls:
        fields["content"] = fields["content"] or None
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if quirks.reasoning_field and message.reasoning:
        fields[quirks.reasoning_field] = message.reasoning
    return fields


def _tools(request: ChatRequest) -> dict[str, Json]:
    if not request.tools:
        return {}
    choice: Json = request.tool_choice
    if choice not in {None, "auto", "none", "required"}:
        choice = {"type": "function", "function": {"name": choice}}
    return {
        "tools": [_tool(tool) for tool in request.tools],
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls,
    }


def _tool(tool: Tool) -> dict[str, Json]:
    function: dict[str, Json] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _sampling(request: ChatRequest) -> dict[str, Json]:
    return {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "seed": request.seed,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repeat_penalty,
        "logprobs": request.logprobs,
        "top_logprobs": request.top_logprobs,
        "user": request.user or None,
    }


def _format(request: ChatRequest) -> Json:
    if request.schema is not None:
        named = {"name": request.schema_name or "answer", "schema": request.schema}
        return {"type": "json_schema", "json_schema": named}
    return {"type": "json_object"} if request.json_mode else None


def _effort(think: bool | str | None) -> str | None:
    if think is None or think is True:
        return None
    return think or "none"

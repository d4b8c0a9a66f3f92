"""
A `ChatRequest` as a Messages request, and a client's own body passed on.

Roles must alternate and begin with the user, system text stands apart, all tool results of
a turn go into one user message, and `max_tokens` is required.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import msgspec

from localfirst.types import ChatRequest, Dialect, ImagePart, Json, Message, TextPart, Tool
from localfirst.wire import peek, quirks
from localfirst.wire.anthropic import history
from localfirst.wire.conclusion import arguments_object
from localfirst.wire.openai.shaping import schema_instruction
from localfirst.wire.quirks import Quirks
from localfirst.wire.refusal import refuse_only_local

DEFAULT_MAX_TOKENS = 4096

MIN_THINKING_TOKENS = 1024
"""The least budget that the API accepts for extended thinking."""

_ENCODER = msgspec.json.Encoder()

_PASSED = ("metadata", "service_tier", "container", "mcp_servers", "context_management")

_EFFORTS = {"minimal": "low", "ultra": "max"}


def encode(request: ChatRequest, model: str, *, quirks: Quirks = quirks.NONE) -> bytes:
    """
    The body of `POST …/messages` for *request* at *model*.

    Raises:
        UpstreamRefused: a `suffix` or a `context`, which this dialect has no word for.
    """
    refuse_only_local(request)
    fields: dict[str, Json] = {
        "model": model,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": _messages(request),
        "system": _system(request, quirks) or None,
        "stream": request.stream or None,
    }
    fields.update(_tools(request))
    fields.update(_sampling(request))
    fields.update(_thinking(request, fields["max_tokens"]))
    if request.schema is not None and quirks.json_schema:
        config = fields.setdefault("output_config", {})
        config["format"] = {"type": "json_schema", "schema": request.schema}
    if request.dialect in {None, Dialect.ANTHROPIC}:
        fields.update({name: request.extra[name] for name in _PASSED if name in request.extra})
    _shape(fields, quirks)
    return _ENCODER.encode(fields)


def splice(body: bytes, *, model: str, quirks: Quirks = quirks.NONE) -> bytes:
    """A client's own body for a backend of this dialect: only what must change is touched."""
    fields: dict[str, Json] = dict(peek.raw_object(body))
    fields["model"] = model
    history.mend(fields, signed=quirks.signed_thinking)
    _shape(fields, quirks)
    return _ENCODER.encode(fields)


def _shape(fields: dict[str, Json], quirks: Quirks) -> None:
    empty = [name for name, value in fields.items() if value is None]
    for name in (*empty, *quirks.drop):
        fields.pop(name, None)
    for old, new in quirks.rename.items():
        if old in fields:
            fields[new] = fields.pop(old)
    for name, most in quirks.caps.items():
        value = fields.get(name)
        if isinstance(value, msgspec.Raw):
            value = msgspec.json.decode(value)
        if isinstance(value, int | float) and value > most:
            fields[name] = type(value)(most)
    for name, value in quirks.defaults.items():
        fields.setdefault(name, value)
    fields.update(quirks.forced)


def _system(request: ChatRequest, quirks: Quirks) -> str:
    said = [message.text for message in request.messages if message.role == "system"]
    if request.schema is not None and not quirks.json_schema:
        said.append(schema_instruction(request.schema))
    elif request.json_mode:
        said.append("Answer with one JSON object only, without any other text.")
    return "\n".join(text for text in said if text)


def _messages(request: ChatRequest) -> list[Json]:
    turns: list[dict[str, Json]] = []
    ids = history.Ids()
    for message in request.messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message, ids)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if request.prompt is not None:
        turns.append({"role": "user", "content": [{"type": "text", "text": request.prompt}]})
    for turn in turns:
        # Results of tools must come before any other block of their turn.
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if not turns or turns[0]["role"] != "user":
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": "."}]})
    return [*turns]


def _blocks(message: Message, ids: history.Ids) -> list[dict[str, Json]]:
    if message.role == "tool":
        return [_result(message, ids.result(message.tool_call_id))]
    if message.role == "assistant":
        ids.turn()
    blocks: list[dict[str, Json]] = []
    if message.reasoning_signature:
        blocks.append(
            {
                "type": "thinking",
                "thinking": message.reasoning,
                "signature": message.reasoning_signature,
            }
        )
    blocks += _content(message)
    for call in message.tool_calls:
        given = arguments_object(call.arguments)
        own = ids.call(call.id)
        blocks.append({"type": "tool_use", "id": own, "name": call.name, "input": given})
    return blocks


def _content(message: Message) -> list[dict[str, Json]]:
    parts = (
        (TextPart(text=message.content),) if isinstance(message.content, str) else message.content
    )
    blocks: list[dict[str, Json]] = []
    for part in parts:
        if isinstance(part, ImagePart):
            blocks.append(_image(part))
        elif part.text.strip():
            # The API refuses text blocks that are empty or blank.
            blocks.append({"type": "text", "text": part.text})
    return blocks


def _image(part: ImagePart) -> dict[str, Json]:
    if part.url:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    return {"type": "image", "source": source}


def _result(message: Message, call: str) -> dict[str, Json]:
    content: Json = _content(message) if message.images else message.text
    block = {"type": "tool_result", "tool_use_id": call, "content": content}
    return {**block, "is_error": True} if message.is_error else block


def _tools(request: ChatRequest) -> dict[str, Json]:
    if not request.tools:
        return {}
    choice: dict[str, Json] = {"type": request.tool_choice or "auto"}
    if request.tool_choice == "required":
        choice = {"type": "any"}
    elif request.tool_choice not in {None, "auto", "none"}:
        choice = {"type": "tool", "name": request.tool_choice}
    if request.parallel_tool_calls is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    said = request.tool_choice is not None or "disable_parallel_tool_use" in choice
    return {
        "tools": [_tool(tool) for tool in request.tools],
        "tool_choice": choice if said else None,
    }


def _tool(tool: Tool) -> dict[str, Json]:
    fields: dict[str, Json] = {"name": tool.name}
    if tool.description:
        fields["description"] = tool.description
    fields["input_schema"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict:
        fields["strict"] = True
    return fields


def _sampling(request: ChatRequest) -> dict[str, Json]:
    temperature = request.temperature
    return {
        "temperature": None if temperature is None else min(1.0, temperature),
        "top_p": request.top_p,
        "top_k": request.top_k if (request.top_k or 0) > 0 else None,
        "stop_sequences": [text for text in request.stop if text.strip()] or None,
    }


def _proofless(messages: tuple[Message, ...]) -> bool:
    """
    Whether the conversation ends in tool results for calls whose thinking is not proven.

    While thinking, the API wants the signed thinking block back before such calls; calls
    that another model made have none.
    """
    for message in reversed(messages):
        if message.role == "assistant":
            return bool(message.tool_calls) and not message.reasoning_signature
        if message.role == "user":
            return False
    return False


def _thinking(request: ChatRequest, max_tokens: int) -> dict[str, Json]:
    if request.think and _proofless(request.messages):
        return {}
    if request.thinking_budget_tokens:
        # A budget must leave room for the answer, and sampling is fixed while thinking.
        if max_tokens <= MIN_THINKING_TOKENS:
            return {}
        budget = max(MIN_THINKING_TOKENS, min(request.thinking_budget_tokens, max_tokens - 1))
        thinking = {"type": "enabled", "budget_tokens": budget}
        return {"thinking": thinking, "temperature": None, "top_p": None, "top_k": None}
    if request.think is None:
        return {}
    if request.think is False:
        return {"thinking": {"type": "disabled"}}
    thought: dict[str, Json] = {"thinking": {"type": "adaptive"}}
    if isinstance(request.think, str):
        thought["output_config"] = {"effort": _EFFORTS.get(request.think, request.think)}
    return thought

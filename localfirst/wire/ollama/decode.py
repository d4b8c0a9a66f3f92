"""
A request to `/api/chat` or `/api/generate`, into a `ChatRequest`.

A request without messages (or without a prompt) loads the model, or unloads it with
`keep_alive: 0`; `asks_to_load` tells. Errors say what Ollama itself says, with the field.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from localfirst.errors import InvalidRequest
from localfirst.types import (
    ChatRequest,
    Dialect,
    ImagePart,
    Json,
    Message,
    TextPart,
    Tool,
    ToolCall,
)
from localfirst.wire import strict_json
from localfirst.wire.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_IMAGES,
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_TOOLS,
    Fields,
    refuse,
    wrong,
)
from localfirst.wire.openai.content import base64_of, check_images
from localfirst.wire.options import keep_alive_of, options_of, seconds_of

THINK_WORDS = ("high", "medium", "low", "max")

_KNOWN = frozenset(
    {
        "model", "name", "messages", "prompt", "suffix", "system", "stream", "format",
        "keep_alive", "tools", "options", "think", "images", "logprobs", "top_logprobs",
        "truncate", "shift",
    }
)  # fmt: skip

_GENERAL = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repeat_penalty",
    "num_ctx": "num_ctx",
}
"""Options that other dialects have too, by their name in `ChatRequest`."""


def decode(body: bytes) -> ChatRequest:
    """
    A body of `/api/chat`.

    Raises:
        InvalidRequest: naming the field that is missing, wrong or out of range.
    """
    fields = _object(body)
    messages = tuple(_message(item) for item in fields.objects("messages", MAX_MESSAGES))
    check_images(messages)
    return ChatRequest(
        messages=_with_call_ids(messages),
        tools=tuple(_tool(item) for item in fields.objects("tools", MAX_TOOLS)),
        **_common(fields),
        extra=fields.rest(_KNOWN),
    )


def decode_generate(body: bytes) -> ChatRequest:
    """
    A body of `/api/generate`.

    A prompt becomes messages, which every backend understands; `raw`, `template` and
    `context` say what only the engine of a model can do with them.

    Raises:
        InvalidRequest: naming the field that is missing, wrong or out of range.
    """
    fields = _object(body)
    prompt, system = fields.text("prompt"), fields.text("system")
    images, only_local = _images(fields), _only_local(fields)
    common = _common(fields)
    if fields.flag("raw") and (system or fields.has("template") or fields.has("context")):
        raise InvalidRequest("raw mode does not support template, system, or context", field="raw")
    if not prompt:
        return ChatRequest(**common)
    turn = Message(role="user", content=(*images, TextPart(text=prompt)) if images else prompt)
    before = (Message(role="system", content=system),) if system else ()
    return ChatRequest(
        messages=(*before, turn),
        suffix=fields.text("suffix") or None,
        generate=True,
        extra=only_local,
        **common,
    )


def _only_local(fields: Fields) -> dict[str, Json]:
    """What is said of `raw`, `template` and `context`."""
    context = fields.items("context", MAX_CONTEXT_TOKENS)
    if not all(type(token) is int for token in context):
        raise wrong("context", "the list of numbers that an answer gave")
    said = {"raw": fields.flag("raw"), "template": fields.text("template"), "context": context}
    return {name: value for name, value in said.items() if value}


def asks_to_load(request: ChatRequest) -> bool:
    """Whether the request only loads or unloads a model."""
    return not request.messages and not request.prompt


def asks_to_unload(request: ChatRequest) -> bool:
    """Whether a request without content unloads: its `keep_alive` is zero."""
    keep = request.keep_alive
    return asks_to_load(request) and (seconds_of(keep) if isinstance(keep, str) else keep) == 0


def _object(body: bytes) -> Fields:
    if not body.strip():
        raise InvalidRequest("missing request body", field="body")
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    return fields


def model_of(fields: Fields) -> str:
    """`model`, or its old alias `name`; both and different is refused (two readers, two models)."""
    model, name = fields.text("model"), fields.text("name")
    if model and name and model != name:
        raise InvalidRequest("`model` and `name` say different things", field="name")
    return model or name or "auto"


def _common(fields: Fields) -> dict[str, Json]:
    options = options_of(fields)
    common: dict[str, Json] = {
        "model": model_of(fields),
        "stream": fields.flag("stream") is not False,
        "keep_alive": keep_alive_of(fields),
        "think": _think(fields),
        "logprobs": fields.flag("logprobs"),
        "top_logprobs": fields.integer("top_logprobs", 0, 20),
        "include_usage": True,
        "dialect": Dialect.OLLAMA,
        **_format(fields),
    }
    for option, name in _GENERAL.items():
        if option in options:
            common[name] = options.pop(option)
    predict = options.get("num_predict")
    if predict is not None and predict >= 0:
        # Of none Ollama still makes one; elsewhere it would be no limit at all.
        common["max_tokens"] = max(1, options.pop("num_predict"))
    if "stop" in options:
        stop = options.pop("stop")
        common["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    common["options"] = options
    return common


def _think(fields: Fields) -> bool | str | None:
    value = fields.get("think")
    if value is None or isinstance(value, bool) or value in THINK_WORDS:
        return value if isinstance(value, bool | str) else None
    words = ", ".join(f'"{word}"' for word in THINK_WORDS)
    raise InvalidRequest(
        f"invalid think value: {json.dumps(value)[:80]} (must be {words}, true, or false)",
        field="think",
    )


def _format(fields: Fields) -> dict[str, Json]:
    value = fields.get("format")
    if value is None or value == "":
        return {}
    if value == "json":
        return {"json_mode": True}
    if isinstance(value, dict):
        return {"schema": value}
    raise wrong("format", '`"json"` or a JSON schema')


def _message(item: Fields) -> Message:
    images = _images(item)
    text = item.text("content")
    calls = item.objects("tool_calls", MAX_TOOLS)
    role = _role(item)
    return Message(
        role=role or "system",
        own_role="" if role else item.text("role"),
        content=(TextPart(text=text), *images) if images else text,
        tool_calls=tuple(_call(call) for call in calls),
        tool_call_id=item.text("tool_call_id"),
        name=item.text("tool_name") or item.text("name"),
        reasoning=item.text("thinking"),
    )


def _role(item: Fields) -> Literal["system", "user", "assistant", "tool"] | None:
    """One of ours, or None: Granite's templates know `control`, `document` and more."""
    match item.text("role", "user").lower():
        case "" | "user":
            return "user"
        case "system" | "developer":
            return "system"
        case "assistant":
            return "assistant"
        case "tool":
            return "tool"
    if len(item.text("role")) > MAX_NAME_CHARS:
        raise wrong(item.at("role"), f"at most {MAX_NAME_CHARS} characters long")
    return None


def _with_call_ids(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """
    Tool results tied to their calls by id.

    Ollama's own clients answer by name, or only by order; every other dialect needs the id.
    """
    open_calls: list[ToolCall] = []
    tied: list[Message] = []
    for message in messages:
        if message.tool_calls:
            open_calls = list(message.tool_calls)
        elif message.role == "tool" and not message.tool_call_id:
            named = [call for call in open_calls if call.name == message.name]
            if open_calls:
                call = (named or open_calls)[0]
                open_calls.remove(call)
                message = _answering(message, call)
        tied.append(message)
    return tuple(tied)


def _answering(message: Message, call: ToolCall) -> Message:
    return Message(
        role="tool",
        content=message.content,
        tool_call_id=call.id,
        name=message.name or call.name,
    )


def _images(item: Fields) -> tuple[ImagePart, ...]:
    found = []
    for index, value in enumerate(item.items("images", MAX_IMAGES)):
        path = f"{item.at('images')}[{index}]"
        if not isinstance(value, str):
            raise wrong(path, "base64 data")
        data = base64_of(value, path)
        found.append(ImagePart(media_type=media_type_of(data), data=data))
    return tuple(found)


def media_type_of(data: str) -> str:
    """The media type of a base64 image by its first bytes; PNG when they say nothing."""
    for start, media_type in (
        ("/9j/", "image/jpeg"),
        ("R0lG", "image/gif"),
        ("UklG", "image/webp"),
    ):
        if data.startswith(start):
            return media_type
    return "image/png"


def _tool(item: Fields) -> Tool:
    function = item.object("function") or item
    name = function.required_text("name")
    if len(name) > MAX_NAME_CHARS:
        raise wrong(function.at("name"), f"at most {MAX_NAME_CHARS} characters long")
    return Tool(
        name=name,
        description=function.text("description"),
        parameters=function.mapping("parameters"),
    )


def _call(item: Fields) -> ToolCall:
    function = item.object("function") or item
    value = function.get("arguments")
    if isinstance(value, str):
        value = strict_json.loads(value.encode()) if value.strip() else {}
    if not isinstance(value, dict | None):
        raise wrong(function.at("arguments"), "an object")
    arguments = json.dumps(value or {}, ensure_ascii=False, separators=(",", ":"))
    # Ids must be unique in a whole conversation elsewhere, and may be missing here.
    identifier = item.text("id") or "call_" + "_".join(re.findall(r"\d+", item.path))
    return ToolCall(id=identifier, name=function.required_text("name"), arguments=arguments)

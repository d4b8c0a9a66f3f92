"""A Messages request of a client, into a `ChatRequest`."""

from __future__ import annotations

import json
from typing import Literal

import msgspec

from localfirst.types import (
    ChatRequest,
    Dialect,
    ImagePart,
    Json,
    Message,
    Part,
    TextPart,
    Tool,
    ToolCall,
)
from localfirst.wire import strict_json
from localfirst.wire.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_PARTS,
    MAX_STOPS,
    MAX_TOKENS,
    MAX_TOOLS,
    Fields,
    refuse,
    wrong,
)
from localfirst.wire.openai.content import base64_of, check_images, image_from_url
from localfirst.wire.options import keep_alive_of, options_of
from localfirst.wire.refusal import NotTranslatable

_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
BLOCKS = (
    "text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document",
    "server_tool_use", "web_search_tool_result",
)  # fmt: skip
"""Kinds of content that are read here; others are left to Anthropic."""

EMPTY = {"type": "text", "text": ""}

_EFFORTS = ("low", "medium", "high", "xhigh", "max")

_KNOWN = frozenset(
    {
        "model", "messages", "system", "max_tokens", "stream", "temperature", "top_p", "top_k",
        "stop_sequences", "tools", "tool_choice", "thinking", "output_config", "output_format",
        "num_ctx", "keep_alive", "options",
    }
)  # fmt: skip


def decode(body: bytes) -> ChatRequest:
    """
    The request in *body*, fully validated.

    Raises:
        InvalidRequest: naming the field that is missing, wrong or out of range; with code
            `field-not-allowed` for fields that would choose the destination.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    if not fields.has("max_tokens"):
        raise wrong("max_tokens", f"an integer from 1 to {MAX_TOKENS}; it is required")
    if fields.items("mcp_servers", MAX_TOOLS):
        raise NotTranslatable("servers of tools", field="mcp_servers")
    return _request(fields)


def decode_count(body: bytes) -> ChatRequest:
    """
    The body of `/v1/messages/count_tokens`: a request without `max_tokens`.

    What only Anthropic reads is counted by its size, and left out here.
    """
    values = strict_json.load_object(body)
    refuse(set(values))
    return _request(Fields(_common(values)))


def _common(values: dict[str, Json]) -> dict[str, Json]:
    """A request without the tools and the blocks that only Anthropic has."""
    messages, tools = values.get("messages"), values.get("tools")
    common = dict(values)
    if isinstance(messages, list):
        common["messages"] = [_readable(item) for item in messages]
    if isinstance(tools, list):
        common["tools"] = [tool for tool in tools if _kind(tool) in {"", "custom"}]
    return common


def _readable(item: Json) -> Json:
    """A turn or a result, with an empty text for each block that is not read here."""
    if not isinstance(item, dict) or not isinstance(item.get("content"), list):
        return item
    blocks = [EMPTY if _is_foreign(block) else _readable(block) for block in item["content"]]
    return {**item, "content": blocks}


def _is_foreign(block: Json) -> bool:
    kind = _kind(block)
    if kind != "document":
        return bool(kind) and kind not in BLOCKS
    return _kind(block.get("source")) not in {"", "text"}


def _kind(item: Json) -> str:
    found = item.get("type") if isinstance(item, dict) else ""
    return found if isinstance(found, str) else ""


def _request(fields: Fields) -> ChatRequest:
    messages = _system(fields)
    for item in fields.objects("messages", MAX_MESSAGES):
        messages += _turn(item)
    if not any(message.role != "system" for message in messages):
        raise wrong("messages", "a non-empty list")
    check_images(messages)
    choice = fields.object("tool_choice")
    disabled = choice.flag("disable_parallel_tool_use") if choice else None
    return ChatRequest(
        model=fields.text("model") or "auto",
        messages=tuple(messages),
        tools=tuple(_tool(item) for item in fields.objects("tools", MAX_TOOLS)),
        tool_choice=_choice(choice),
        parallel_tool_calls=False if disabled else None,
        temperature=fields.number("temperature", 0, 1),
        top_p=fields.number("top_p", 0, 1),
        top_k=fields.integer("top_k", 0, 1_000_000),
        max_tokens=fields.integer("max_tokens", 1, MAX_TOKENS),
        stop=fields.texts("stop_sequences", MAX_STOPS),
        **_thinking(fields),
        **_schema(fields),
        num_ctx=fields.integer("num_ctx", 1, MAX_CONTEXT_TOKENS),
        keep_alive=keep_alive_of(fields),
        options=options_of(fields),
        stream=bool(fields.flag("stream")),
        include_usage=True,
        extra=fields.rest(_KNOWN),
        dialect=Dialect.ANTHROPIC,
    )


def _system(fields: Fields) -> list[Message]:
    value = fields.get("system")
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [Message(role="system", content=value)]
    texts = [item.text("text") for item in fields.objects("system", MAX_PARTS)]
    return [Message(role="system", content="\n".join(texts))]


def _thinking(fields: Fields) -> dict[str, Json]:
    config = fields.object("output_config")
    effort = config.choice("effort", _EFFORTS) if config else None
    thinking = fields.object("thinking")
    if thinking is None:
        return {"think": effort}
    kind = thinking.choice("type", ("enabled", "disabled", "adaptive"))
    if kind == "disabled":
        return {"think": False}
    budget = thinking.integer("budget_tokens", 1, MAX_TOKENS)
    return {"think": effort or True, "thinking_budget_tokens": budget}


def _schema(fields: Fields) -> dict[str, Json]:
    config = fields.object("output_config")
    found = (config.object("format") if config else None) or fields.object("output_format")
    if found is None:
        return {}
    if found.text("type") != "json_schema" or not found.has("schema"):
        raise wrong(found.at("type"), "`json_schema`, with a `schema`")
    return {"schema": found.mapping("schema")}


def _choice(choice: Fields | None) -> str | None:
    if choice is None:
        return None
    kind = choice.choice("type", ("auto", "any", "tool", "none"))
    if kind == "tool":
        return choice.required_text("name")
    return "required" if kind == "any" else kind


def _tool(item: Fields) -> Tool:
    kind = item.text("type", "custom")
    if kind != "custom":
        # Server tools run only at Anthropic itself.
        raise NotTranslatable(f"`{kind[:80]}` tools", field=item.at("type"))
    name = item.required_text("name")
    if len(name) > MAX_NAME_CHARS:
        raise wrong(item.at("name"), f"at most {MAX_NAME_CHARS} characters long")
    return Tool(
        name=name,
        description=item.text("description"),
        parameters=item.mapping("input_schema"),
        strict=item.flag("strict"),
    )


def _turn(item: Fields) -> list[Message]:
    """One turn of the client as our messages: tool results become messages of their own."""
    role = item.choice("role", ("user", "assistant", "system"))
    if role is None:
        raise wrong(item.at("role"), "`user` or `assistant`")
    content = item.get("content")
    if isinstance(content, str):
        return [Message(role=_role(role), content=content)]
    if not isinstance(content, list):
        raise wrong(item.at("content"), "a string or a list of blocks")
    turn = _Turn(_role(role))
    for block in item.objects("content", MAX_PARTS):
        turn.take(block)
    return turn.messages()


def _role(role: str) -> Literal["system", "user", "assistant"]:
    if role == "assistant":
        return "assistant"
    return "user" if role == "user" else "system"


class _Turn:
    """The blocks of one turn, sorted into what a message holds."""

    def __init__(self, role: Literal["system", "user", "assistant"]) -> None:
        self._role = role
        self._results: list[Message] = []
        self._parts: list[Part] = []
        self._calls: list[ToolCall] = []
        self._thought = ""
        self._thoughts = 0
        self._signature = ""

    def take(self, block: Fields) -> None:
        """Sort one block in; blocks that only Anthropic understands are left out."""
        match block.text("type"):
            case "text":
                if not block.has("text"):
                    raise wrong(block.at("text"), "a string")
                self._parts.append(TextPart(text=block.text("text")))
            case "image":
                self._parts.append(_image(block))
            case "tool_use":
                self._calls.append(_call(block))
            case "tool_result":
                self._results.append(_result(block))
            case "thinking":
                # A message holds one proof; of several blocks none is whole without the others.
                self._signature = "" if self._thoughts else block.text("signature")
                self._thought += block.text("thinking")
                self._thoughts += 1
            case "redacted_thinking":
                self._signature = ""
                self._thoughts += 1
            case "server_tool_use" | "web_search_tool_result":
                pass
            case "document":
                self._parts.append(_document(block))
            case "":
                raise wrong(block.at("type"), "a text, image, tool or thinking block")
            case kind:
                raise NotTranslatable(f"`{kind[:80]}` blocks", field=block.at("type"))

    def messages(self) -> list[Message]:
        """Tool results first, then the turn itself if it says anything."""
        if not (self._parts or self._calls or self._thought):
            return self._results
        plain = all(isinstance(part, TextPart) for part in self._parts)
        turn = Message(
            role=self._role,
            content="".join(part.text for part in self._parts if isinstance(part, TextPart))
            if plain
            else tuple(self._parts),
            tool_calls=tuple(self._calls),
            reasoning=self._thought,
            reasoning_signature=self._signature,
        )
        return [*self._results, turn]


def _call(block: Fields) -> ToolCall:
    arguments = json.dumps(block.mapping("input"), ensure_ascii=False, separators=(",", ":"))
    return ToolCall(id=block.text("id"), name=block.required_text("name"), arguments=arguments)


def _result(block: Fields) -> Message:
    value = block.get("content")
    content: str | tuple[Part, ...] = value if isinstance(value, str) else ""
    if isinstance(value, list):
        content = tuple(_result_part(part) for part in block.objects("content", MAX_PARTS))
    elif value is not None and not isinstance(value, str):
        raise wrong(block.at("content"), "a string or a list of blocks")
    return Message(
        role="tool",
        content=content,
        tool_call_id=block.required_text("tool_use_id"),
        is_error=bool(block.flag("is_error")),
    )


def _result_part(part: Fields) -> Part:
    if part.text("type") == "image":
        return _image(part)
    if part.text("type") == "text":
        return TextPart(text=part.text("text"))
    if part.text("type") == "document":
        return _document(part)
    return TextPart(text=msgspec.json.encode(part.values).decode())


def _document(block: Fields) -> TextPart:
    source = block.object("source")
    if source is None:
        raise wrong(block.at("source"), "an object")
    if source.required_text("type") != "text":
        raise NotTranslatable("documents that are not text", field=block.at("source"))
    return TextPart(text="\n".join(filter(None, (block.text("title"), source.text("data")))))


def _image(block: Fields) -> ImagePart:
    source = block.object("source")
    if source is None:
        raise wrong(block.at("source"), "an object")
    if source.text("type") == "url":
        return image_from_url(source.text("url"), source.at("url"))
    if source.text("type") != "base64":
        raise wrong(source.at("type"), "`base64` or `url`")
    media_type = source.choice("media_type", _MEDIA_TYPES) or "image/png"
    data = base64_of(source.text("data"), source.at("data"))
    return ImagePart(media_type=media_type, data=data)

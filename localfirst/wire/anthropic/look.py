"""The cheap look at a Messages request. Ranges as in Anthropic's API reference."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from localfirst.errors import InvalidRequest
from localfirst.types import Needs
from localfirst.wire import peek as peeking
from localfirst.wire.fields import MAX_MESSAGES, MAX_STOPS, MAX_TOKENS, MAX_TOOLS
from localfirst.wire.peek import Peek

_ROUTED = (b'"model"', b'"messages"', b'"stream"')

Unit = Annotated[float, Meta(ge=0, le=1)]
# `8.0` is what a language without integers makes of 8; a fraction is refused further on.
Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | Annotated[float, Meta(ge=1, le=MAX_TOKENS)]


class _Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Raw]


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: dict[str, Any] | None = None


class _Thinking(msgspec.Struct):
    type: str = ""


class _Head(msgspec.Struct):
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Tokens | None = None
    model: str | None = None
    system: str | list[Raw] | None = None
    stream: bool | None = None
    tools: Annotated[list[Raw], Meta(max_length=MAX_TOOLS)] | None = None
    temperature: Unit | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None


_HEAD = msgspec.json.Decoder(_Head)


def peek(body: bytes) -> Peek:
    """
    What routing needs of a Messages request.

    Raises:
        InvalidRequest: not JSON, or a field that is missing, of a wrong type or out of range.
    """
    head, _ = peeking.head(body, _HEAD, _ROUTED)
    if head.max_tokens is None:
        raise InvalidRequest("`max_tokens` is required", field="max_tokens")
    contents = (message.content for message in head.messages)
    vision = peeking.has_images(body, b'"image"', contents)
    return Peek(
        head.model or "auto",
        bool(head.stream),
        Needs(
            tools=bool(head.tools),
            vision=vision,
            schema=bool(head.output_config and head.output_config.format),
            thinking=bool(head.thinking and head.thinking.type != "disabled"),
            prompt_tokens=peeking.prompt_tokens(body, images=vision),
            max_tokens=int(head.max_tokens),
        ),
    )

"""The cheap look at a chat completion request. Ranges as in OpenAI's API reference."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from localfirst.types import Needs
from localfirst.wire import peek as peeking
from localfirst.wire.fields import MAX_MESSAGES, MAX_STOPS, MAX_TOKENS, MAX_TOOLS
from localfirst.wire.peek import Peek

_ABSENT = Raw(b"")
_ROUTED = (b'"model"', b'"messages"', b'"stream"')

# `8.0` is what a language without integers makes of 8; a fraction is refused further on.
Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | Annotated[float, Meta(ge=1, le=MAX_TOKENS)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Stops = str | Annotated[list[str], Meta(max_length=MAX_STOPS)]


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Raw] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Head(msgspec.Struct):
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: Annotated[list[Raw], Meta(max_length=MAX_TOOLS)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Unit | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: int | float | None = None
    stop: Stops | None = None
    response_format: Raw = _ABSENT
    reasoning_effort: str | None = None


_HEAD = msgspec.json.Decoder(_Head)


def peek(body: bytes) -> Peek:
    """
    What routing needs of a chat completion request.

    Raises:
        InvalidRequest: not JSON, or a field that is missing, of a wrong type or out of range.
    """
    head, fields = peeking.head(body, _HEAD, _ROUTED)
    contents = (message.content for message in head.messages)
    vision = peeking.has_images(body, b'"image_url"', contents)
    return Peek(
        head.model or "auto",
        bool(head.stream),
        Needs(
            tools=bool(head.tools),
            vision=vision,
            schema=b'"json_schema"' in bytes(head.response_format),
            thinking=head.reasoning_effort not in {None, "none"},
            prompt_tokens=peeking.prompt_tokens(body, images=vision),
            max_tokens=int(head.max_completion_tokens or head.max_tokens or 0),
        ),
        fields,
    )


class _Usage(msgspec.Struct):
    stream_options: _StreamOptions | None = None


_USAGE = msgspec.json.Decoder(_Usage)


def wants_usage(body: bytes) -> bool:
    """Whether the client itself asked for the usage chunk at the end of a stream."""
    if b'"include_usage"' not in body:
        return False
    options = _USAGE.decode(body).stream_options
    return bool(options and options.include_usage)

"""The cheap look at a request to `/api/chat` or `/api/generate`."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from localfirst.types import Needs
from localfirst.wire import peek as peeking
from localfirst.wire.fields import MAX_MESSAGES, MAX_TOKENS, MAX_TOOLS
from localfirst.wire.peek import Peek

_CHAT = (b'"model"', b'"messages"', b'"stream"')
_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*"')


class _Options(msgspec.Struct):
    # `8.0` is what a language without integers makes of 8; a fraction is refused further on.
    num_predict: (
        Annotated[int, Meta(ge=-2, le=MAX_TOKENS)]
        | Annotated[float, Meta(ge=-2, le=MAX_TOKENS)]
        | None
    ) = None


class _Head(msgspec.Struct):
    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    messages: Annotated[list[Raw], Meta(max_length=MAX_MESSAGES)] | None = None
    prompt: str | None = None
    tools: Annotated[list[Raw], Meta(max_length=MAX_TOOLS)] | None = None
    format: Any = None
    think: bool | str | None = None
    options: _Options | None = None
    context: Raw = Raw()


_HEAD = msgspec.json.Decoder(_Head)


def peek(body: bytes) -> Peek:
    """
    What routing needs; `stream` is true unless the body says otherwise.

    Raises:
        InvalidRequest: not JSON, or a field of a wrong type.
    """
    head, _ = peeking.head(body, _HEAD, _CHAT)
    vision = b'"images"' in body and _IMAGES.search(body) is not None
    wanted = head.options.num_predict if head.options else None
    return Peek(
        head.model or head.name or "auto",
        head.stream is not False,
        Needs(
            tools=bool(head.tools),
            vision=vision,
            schema=isinstance(head.format, dict),
            thinking=head.think not in {None, False},
            prompt_tokens=peeking.prompt_tokens(body, images=vision) + _counted(head.context),
            max_tokens=int(max(0, wanted or 0)),
        ),
    )


def _counted(context: Raw) -> int:
    """What its ids, which are tokens already, make more or less than as many bytes of text."""
    size_bytes = memoryview(context).nbytes
    ids = bytes(context).count(b",") + 1 if size_bytes else 0
    return ids - size_bytes // peeking.BYTES_PER_TOKEN

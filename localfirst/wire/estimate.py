"""
How many tokens a request's prompt may have, without any model's tokenizer.

About four characters a token is right within a fifth for English; images count what vision
models charge for a middling one. Used where a number is wanted before a model has counted.
"""

from __future__ import annotations

import json

from localfirst.types import ChatRequest, Message
from localfirst.wire.peek import BYTES_PER_TOKEN, TOKENS_PER_IMAGE

TOKENS_PER_MESSAGE = 4
"""What a chat template adds to each turn."""


def prompt_tokens(request: ChatRequest) -> int:
    """An estimate for the whole prompt: messages, tools, schema."""
    size_bytes = len((request.prompt or "").encode())
    for tool in request.tools:
        size_bytes += len(json.dumps(tool.parameters)) + len(tool.name) + len(tool.description)
    if request.schema is not None:
        size_bytes += len(json.dumps(request.schema))
    return size_bytes // BYTES_PER_TOKEN + sum(map(_message, request.messages))


def _message(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    size_bytes = len(message.text.encode()) + calls
    images = len(message.images) * TOKENS_PER_IMAGE
    return -(-size_bytes // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE + images

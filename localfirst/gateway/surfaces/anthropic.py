"""Anthropic's surface beside messages: counting tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localfirst.gateway.request import Request
from localfirst.wire import peek
from localfirst.wire.anthropic import answers, requests

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway

ESTIMATE = (b"x-localfirst-estimate", b"true")
"""Nobody here has the tokenizer of a model that was not chosen yet."""


async def count_tokens(gateway: Gateway, request: Request) -> None:
    """`POST /v1/messages/count_tokens`: an estimate by size, and marked as one."""
    body = await request.body()
    wanted = requests.decode_count(body)
    request.model = wanted.model
    images = any(message.images for message in wanted.messages)
    await request.json(answers.count_body(peek.prompt_tokens(body, images=images)), ESTIMATE)

"""The generation surfaces of OpenAI and Anthropic, each a table of what is its own."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from localfirst.events import Reply
from localfirst.gateway.request import Request
from localfirst.gateway.surfaces.relay import generate
from localfirst.gateway.surfaces.surface import Asked, Surface, Writer
from localfirst.types import Dialect
from localfirst.wire.anthropic import answers as anthropic_answers
from localfirst.wire.anthropic import requests as anthropic_requests
from localfirst.wire.openai import answers, look, requests
from localfirst.wire.openai import completions as older
from localfirst.wire.openai.responses import answers as response_answers
from localfirst.wire.openai.responses import requests as response_requests

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway


def _chat_writer(asked: Asked) -> Writer:
    return answers.StreamWriter(
        model=asked.model,
        request_id=asked.request.id,
        created=int(asked.created),
        include_usage=look.wants_usage(asked.call.body),
    )


def _chat_reply(reply: Reply, asked: Asked) -> bytes:
    return answers.reply(reply, created=int(asked.created))


def _completion_writer(asked: Asked) -> Writer:
    return older.StreamWriter(
        model=asked.model,
        request_id=asked.request.id,
        created=int(asked.created),
        request=asked.call.chat,
    )


def _completion_reply(reply: Reply, asked: Asked) -> bytes:
    return older.reply(reply, created=int(asked.created))


def _response_writer(asked: Asked) -> Writer:
    return response_answers.StreamWriter(
        model=asked.model,
        request_id=asked.request.id,
        created=int(asked.created),
        request=asked.call.chat,
    )


def _response_reply(reply: Reply, asked: Asked) -> bytes:
    return response_answers.reply(reply, created=int(asked.created), request=asked.call.chat)


def _message_writer(asked: Asked) -> Writer:
    return anthropic_answers.StreamWriter(
        model=asked.model,
        request_id=asked.request.id,
        prompt_tokens=asked.call.needs.prompt_tokens,
    )


def _message_reply(reply: Reply, asked: Asked) -> bytes:
    return anthropic_answers.reply(reply)


CHAT = Surface(
    dialect=Dialect.OPENAI,
    peek=requests.peek,
    decode=requests.decode,
    writer=_chat_writer,
    reply=_chat_reply,
    relay=True,
)

COMPLETIONS = Surface(
    dialect=Dialect.OPENAI,
    peek=older.peek,
    decode=older.decode,
    writer=_completion_writer,
    reply=_completion_reply,
)

RESPONSES = Surface(
    dialect=Dialect.OPENAI,
    peek=response_requests.peek,
    decode=response_requests.decode,
    writer=_response_writer,
    reply=_response_reply,
)

MESSAGES = Surface(
    dialect=Dialect.ANTHROPIC,
    peek=anthropic_requests.peek,
    decode=anthropic_requests.decode,
    writer=_message_writer,
    reply=_message_reply,
    relay=True,
)


def chat(gateway: Gateway, request: Request) -> Awaitable[None]:
    """`POST /v1/chat/completions`."""
    return generate(gateway, request, CHAT)


def completions(gateway: Gateway, request: Request) -> Awaitable[None]:
    """`POST /v1/completions`."""
    return generate(gateway, request, COMPLETIONS)


def responses(gateway: Gateway, request: Request) -> Awaitable[None]:
    """`POST /v1/responses`."""
    return generate(gateway, request, RESPONSES)


def messages(gateway: Gateway, request: Request) -> Awaitable[None]:
    """`POST /v1/messages`."""
    return generate(gateway, request, MESSAGES)

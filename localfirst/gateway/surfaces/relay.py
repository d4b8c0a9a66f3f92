"""
From a request to its answer: the one way that every generation surface goes.

Bytes of the caller's own dialect are written straight through; events are written in the
surface's words. An answer that breaks after its first content ends with the surface's error
event and without its terminator, and the connection is closed: cut must look cut.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from localfirst.errors import InvalidRequest, LocalFirstError, StreamInterrupted
from localfirst.events import Progress, Relayed, Reply
from localfirst.gateway.refusal import JSON_LINES
from localfirst.gateway.request import Request
from localfirst.gateway.surfaces.surface import Asked, Surface, Writer
from localfirst.types import Call, Dialect
from localfirst.wire.conclusion import json_value
from localfirst.wire.refusal import NotTranslatable

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway
    from localfirst.runtime import Answer, Runtime

HELD_S = 10.0
"""A client is told nothing for so long; proxies and impatient readers cut at 30 s and more."""

QUIET = frozenset({"queued", "loading"})
"""Stages that are usually over in a moment."""

_PRIVACY = {b"local-only": True, b"allow-cloud": False}
_FALLBACK = {b"off": False, b"on": True}


async def generate(gateway: Gateway, request: Request, surface: Surface) -> None:
    """Answer one generation request."""
    body = await request.body()
    call = look(body, request, surface)
    await run(gateway, request, surface, call)


async def run(gateway: Gateway, request: Request, surface: Surface, call: Call) -> None:
    """Open the answer of *call* and write it."""
    runtime = gateway.runtime
    began_unix = runtime.clock.unix()
    if runtime.validates(call) and _translatable(call):
        reply = await runtime.valid_reply(call)
        asked = _asked(request, call, reply.model, began_unix, runtime)
        await _valid(reply, gateway, asked, surface)
        return
    answer = await runtime.open(call)
    try:
        if call.stream:
            asked = _asked(request, call, call.model, began_unix, runtime)
            await _stream(answer, asked, surface)
            return
        events = await answer.read()
        first = events[0]
        if type(first) is Relayed:
            # A body that is no stream comes in one piece.
            data = first.data
        else:
            asked = _asked(request, call, answer.target.model, began_unix, runtime)
            data = surface.reply(await answer.reply(), asked)
        await request.answer(data, JSON_LINES + request.learn(answer))
    finally:
        await answer.aclose()


def _asked(request: Request, call: Call, model: str, created: float, runtime: Runtime) -> Asked:
    return Asked(request=request, call=call, model=model, created=created, unix=runtime.clock.unix)


def _translatable(call: Call) -> bool:
    """Whether the request can be read at all, and not only be passed on."""
    try:
        _ = call.chat
    except NotTranslatable:
        return False
    return True


def look(body: bytes, request: Request, surface: Surface) -> Call:
    """The call that *body* asks for; raises `InvalidRequest`."""
    seen = surface.peek(body)
    request.model = seen.model
    call = Call(
        model=seen.model,
        stream=seen.stream,
        dialect=surface.dialect,
        request_id=request.id,
        needs=seen.needs,
        body=body,
        fields=seen.fields if surface.relay else None,
        relay=surface.relay,
        decode=surface.decode,
    )
    wishes(call, request)
    if surface.dialect is Dialect.ANTHROPIC:
        call.betas = b",".join(request.all(b"anthropic-beta")).decode("ascii", "ignore")
    return call


def wishes(call: Call, request: Request) -> None:
    """What headers ask for: privacy and fallback, which only ever get stricter."""
    privacy = request.fields.get(b"x-localfirst-privacy")
    if privacy is not None:
        call.local_only = _word(_PRIVACY, privacy, "x-localfirst-privacy")
    fallback = request.fields.get(b"x-localfirst-fallback")
    if fallback is not None:
        call.fallback = _word(_FALLBACK, fallback, "x-localfirst-fallback")


def _word(words: dict[bytes, bool], value: bytes, name: str) -> bool:
    found = words.get(value.lower())
    if found is None:
        accepted = " or ".join(f"`{word.decode()}`" for word in words)
        raise InvalidRequest(f"the header `{name}` must be {accepted}", field=name)
    return found


async def _stream(answer: Answer, asked: Asked, surface: Surface) -> None:
    """
    Write an answer as it comes.

    A model that loads is waited for in silence, so that status and headers can still tell
    who really answered; a download, and a load that takes long, is shown as it goes on.
    """
    request = asked.request
    writer: Writer | None = None
    began = False
    try:
        async for event in answer:
            if not began:
                if type(event) is Progress and _may_hold(event, asked):
                    continue
                # The head is true from here on.
                asked.model = answer.target.model
                request.start(200, surface.stream_lines + request.learn(answer))
                began = True
            if type(event) is Relayed:
                data = event.data
            else:
                writer = writer or surface.writer(asked)
                data = writer.write(event)
            if data:
                await request.write(data)
    except LocalFirstError as error:
        if not began:
            raise
        request.outcome = error.code
        writer = writer or surface.writer(asked)
        await request.write(writer.error(error))
    except asyncio.CancelledError:
        # The client is gone and nothing is written; or the gateway stops, and says so.
        request.outcome = "cancelled"
        if began:
            writer = writer or surface.writer(asked)
            await request.write(writer.error(StreamInterrupted("the gateway is stopping")))
        raise
    else:
        await request.end()


def _may_hold(progress: Progress, asked: Asked) -> bool:
    return progress.stage in QUIET and asked.unix() - asked.created < HELD_S


async def _valid(reply: Reply, gateway: Gateway, asked: Asked, surface: Surface) -> None:
    """Write an answer that was checked against the request's schema."""
    request = asked.request
    if reply.parsed is not None and json_value(reply.text) != reply.parsed:
        # What had to be repaired is written repaired.
        reply = msgspec.structs.replace(reply, text=msgspec.json.encode(reply.parsed).decode())
    data = surface.reply(reply, asked)
    facts = request.learn_reply(reply, gateway.runtime.facts(reply))
    await request.answer(data, JSON_LINES + facts)

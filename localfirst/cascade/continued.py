"""
Continuing a cut stream of plain text at the next candidate.

Off by default: the seam can show, and the caller is not told in words of the API. Tools,
schemas and bytes that are relayed untouched are never continued.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec

from localfirst.cascade.answer import Answer
from localfirst.cascade.climb import Climb
from localfirst.errors import LocalFirstError, StreamInterrupted
from localfirst.events import Event, Progress, TextDelta, ToolCallDelta
from localfirst.types import Call, ChatRequest, Message

CONTINUE = "Continue exactly where you stopped. Repeat nothing and add no remark."
Open = Callable[[Call, frozenset[tuple[str, str]]], Awaitable[Answer]]


def possible(call: Call) -> bool:
    """Whether this request's answer could be continued if it were cut."""
    if not call.stream or call.needs.tools or call.needs.schema:
        return False
    request = call.chat
    if request.generate and (request.suffix or request.extra):
        return False
    return not (request.tools or request.schema or request.json_mode or request.prompt)


async def events(
    climb: Climb, rest: AsyncGenerator[Event, None], open_next: Open
) -> AsyncGenerator[Event, None]:
    """*rest*, and when it is cut, the same answer taken up by another candidate, once."""
    try:
        async with aclosing(rest):
            async for event in rest:
                yield event
        return
    except StreamInterrupted as cut:
        answer = await _taken_up(climb, open_next, cut)
    try:
        async for event in answer:
            if not isinstance(event, Progress):
                climb.seen.append(event)
                yield event
    finally:
        await answer.aclose()
        climb.attempts.extend(answer.attempts)


async def _taken_up(climb: Climb, open_next: Open, cut: StreamInterrupted) -> Answer:
    """The next candidate's answer; the original cut when there is none."""
    if any(isinstance(event, ToolCallDelta) for event in climb.seen):
        raise cut
    text = "".join(event.text for event in climb.seen if isinstance(event, TextDelta))
    request = _with_partial(climb.call.chat, text)
    call = msgspec.structs.replace(climb.call, request=request, body=b"", decode=None, relay=False)
    avoid = frozenset({(climb.target.provider, "")})
    try:
        answer = await open_next(call, avoid)
    except LocalFirstError:
        raise cut from None
    climb.target = answer.target
    return answer


def _with_partial(request: ChatRequest, text: str) -> ChatRequest:
    if not text:
        return request
    added = (Message(role="assistant", content=text), Message(role="user", content=CONTINUE))
    return msgspec.structs.replace(request, messages=(*request.messages, *added))

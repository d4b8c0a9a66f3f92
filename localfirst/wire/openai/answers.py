"""
Events and replies in OpenAI's chat dialect, as its own API writes them.

Source: https://platform.openai.com/docs/api-reference/chat (chunk and completion objects).
"""

from __future__ import annotations

import msgspec

from localfirst.errors import (
    CascadeExhausted,
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    LocalFirstError,
    UnknownModel,
)
from localfirst.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    ReasoningDelta,
    Relayed,
    Reply,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.types import ChatRequest, Json
from localfirst.wire import progress

ENCODER = msgspec.json.Encoder()

DONE = b"data: [DONE]\n\n"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class StreamWriter:
    """
    Writes one streamed answer.

    Args:
        model: the name to answer with.
        request_id: makes the chunk id.
        created: seconds since 1970.
        request: decides whether a usage chunk is written; or say so with `include_usage`.
    """

    def __init__(
        self,
        *,
        model: str,
        request_id: str,
        created: int,
        request: ChatRequest | None = None,
        include_usage: bool = False,
    ) -> None:
        self._include_usage = include_usage or bool(request and request.include_usage)
        start = ENCODER.encode(
            {
                "id": completion_id(request_id),
                "object": "chat.completion.chunk",
                "created": created,
                "model": model,
            }
        )
        self._start = b"data: " + start[:-1]
        self._role = b'"role":"assistant",'
        self._bare: dict[int, None] = {}

    def write(self, event: Event) -> bytes:
        """The bytes of one event; empty for those a client is not told of."""
        match event:
            case TextDelta(text, logprobs):
                return self._text(text, logprobs)
            case ReasoningDelta(text) if text:
                said = ENCODER.encode(text)
                return self._delta(b'"reasoning_content":%b,"reasoning":%b' % (said, said))
            case ToolCallDelta():
                return self._tool(event)
            case Finished():
                return self._finish(event)
            case Progress():
                return progress.comment(event)
            case Relayed(data):
                return data
        return b""

    def error(self, err: LocalFirstError) -> bytes:
        """The event that ends a stream in failure; no `[DONE]` follows it."""
        return b"data: " + ENCODER.encode({"error": error_object(err)}) + b"\n\n"

    def _text(self, text: str, logprobs: tuple[Json, ...]) -> bytes:
        if not logprobs:
            return self._delta(b'"content":' + ENCODER.encode(text))
        given = ENCODER.encode({"content": logprobs, "refusal": None})
        return self._delta(b'"content":' + ENCODER.encode(text), b',"logprobs":' + given)

    def _tool(self, event: ToolCallDelta) -> bytes:
        if event.arguments.strip():
            self._bare.pop(event.index, None)
        elif event.name:
            self._bare[event.index] = None
        return self._delta(b'"tool_calls":[%b]' % ENCODER.encode(_call_piece(event)))

    def _bare_calls(self) -> bytes:
        """No arguments are `{}` here: clients read them as JSON, and that of nothing fails."""
        pieces = [_call_piece(ToolCallDelta(index, arguments="{}")) for index in self._bare]
        return self._delta(b'"tool_calls":' + ENCODER.encode(pieces)) if pieces else b""

    def _delta(self, fields: bytes, beside: bytes = b"") -> bytes:
        role, self._role = self._role, b""
        return b'%b,"choices":[{"index":0,"delta":{%b%b}%b,"finish_reason":null}]}\n\n' % (
            self._start,
            role,
            fields,
            beside,
        )

    def _finish(self, event: Finished) -> bytes:
        opening = self._delta(b'"content":""') if self._role else b""
        # A call cut by the token limit is what the model wrote.
        opening += b"" if event.reason is FinishReason.LENGTH else self._bare_calls()
        end = b'%b%b,"choices":[{"index":0,"delta":{},"finish_reason":"%b"}]}\n\n' % (
            opening,
            self._start,
            event.reason.encode(),
        )
        if self._include_usage:
            usage = ENCODER.encode(usage_object(event.usage or Usage()))
            end += b'%b,"choices":[],"usage":%b}\n\n' % (self._start, usage)
        return end + DONE


def completion_id(request_id: str) -> str:
    """The id of a completion, as OpenAI's begin."""
    return f"chatcmpl-{request_id.removeprefix('req_')}"


def usage_object(usage: Usage) -> dict[str, Json]:
    """Usage as OpenAI spells it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def reply(reply: Reply, *, created: int) -> bytes:
    """A whole answer as a `chat.completion` object."""
    message: dict[str, Json] = {
        "role": "assistant",
        "content": reply.text or (None if reply.tool_calls else ""),
        "refusal": None,
    }
    if reply.reasoning:
        message["reasoning_content"] = message["reasoning"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in reply.tool_calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": reply.logprobs, "refusal": None} if reply.logprobs else None,
        "finish_reason": str(finish_reason(reply)),
    }
    return ENCODER.encode(
        {
            "id": completion_id(reply.request_id),
            "object": "chat.completion",
            "created": created,
            "model": reply.model,
            "choices": [choice],
            "usage": usage_object(reply.usage),
        }
    )


def finish_reason(reply: Reply) -> FinishReason:
    """A reply's reason; tool calls that ended with `stop` ended with `tool_calls`."""
    if reply.tool_calls and reply.finish_reason is FinishReason.STOP:
        return FinishReason.TOOL_CALLS
    return reply.finish_reason


def error_body(err: LocalFirstError, *, request_id: str) -> bytes:
    """The body of an error answer; its status is `err.http_status`."""
    return ENCODER.encode({"error": {**error_object(err), "request_id": request_id}})


def error_object(err: LocalFirstError) -> dict[str, Json]:
    """
    An error as OpenAI's clients read it.

    `code` is OpenAI's own where clients act upon it, else ours; `hint` and `attempts` are
    beside what the specification has.
    """
    found: dict[str, Json] = {
        "message": err.message,
        "type": _type(err),
        "param": (err.field or None) if isinstance(err, InvalidRequest) else None,
        "code": _code(err),
        "hint": err.hint,
    }
    if isinstance(err, CascadeExhausted):
        found["attempts"] = attempt_objects(err)
    return found


def attempt_objects(err: CascadeExhausted) -> list[Json]:
    """Every attempt and every rung that was skipped, for a person to read."""
    tried = [
        {
            "provider": attempt.provider,
            "model": attempt.model,
            "outcome": attempt.outcome,
            "status": attempt.status,
            "message": attempt.message,
        }
        for attempt in err.attempts
    ]
    skipped = [
        {"provider": provider, "outcome": "skipped", "message": reason}
        for provider, reason in err.skipped
    ]
    return [*tried, *skipped]


def _type(err: LocalFirstError) -> str:
    if isinstance(err, InvalidRequest):
        return "invalid_request_error"
    if err.http_status in _TYPES:
        return _TYPES[err.http_status]
    return "server_error" if err.http_status >= 500 else "invalid_request_error"


def _code(err: LocalFirstError) -> str:
    if isinstance(err, ContextTooLong):
        return "context_length_exceeded"
    if isinstance(err, UnknownModel):
        return "model_not_found"
    return "content_filter" if isinstance(err, ContentFiltered) else err.code


def _call_piece(event: ToolCallDelta) -> dict[str, Json]:
    piece: dict[str, Json] = {"index": event.index}
    function: dict[str, Json] = {"arguments": event.arguments}
    if event.id or event.name:
        piece.update(id=event.id, type="function")
        function = {"name": event.name, "arguments": event.arguments}
    piece["function"] = function
    return piece

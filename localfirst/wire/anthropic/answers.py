"""
Events and replies in Anthropic's dialect, in the order its own API keeps.

Order: `message_start`, per block `content_block_start`, deltas, `content_block_stop`; then
`message_delta` and `message_stop`. A `ping` follows the first block's start.

Source: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import msgspec

from localfirst.errors import CascadeExhausted, ContextTooLong, InvalidRequest, LocalFirstError
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
from localfirst.wire import estimate, progress
from localfirst.wire.conclusion import Pieces, arguments_object
from localfirst.wire.openai.answers import attempt_objects, finish_reason

ENCODER = msgspec.json.Encoder()

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class StreamWriter:
    """
    Writes one streamed answer.

    Args:
        model: the name to answer with.
        request_id: makes the message id.
        created: unused; this dialect has no such field.
        request: what `message_start` estimates the prompt's tokens from; the end corrects it.
        prompt_tokens: a better estimate, where there is one.
    """

    def __init__(
        self,
        *,
        model: str,
        request_id: str,
        created: int = 0,
        request: ChatRequest | None = None,
        prompt_tokens: int = 0,
    ) -> None:
        if request is not None and not prompt_tokens:
            prompt_tokens = estimate.prompt_tokens(request)
        self._head = message_object(model, request_id, Usage(prompt_tokens=prompt_tokens))
        self._index = -1
        self._kind = ""
        self._call = -1
        self._given = Pieces()
        self._waiting: dict[int, list[ToolCallDelta]] = {}
        self._pinged = False

    def write(self, event: Event) -> bytes:
        """The bytes of one event; empty for those a client is not told of."""
        match event:
            case TextDelta(text):
                return self._block("text", {"type": "text", "text": ""}) + self._delta(
                    b'{"type":"text_delta","text":%b}' % ENCODER.encode(text)
                )
            case ReasoningDelta():
                return self._thought(event)
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
        """The event that ends a stream in failure; no `message_stop` follows it."""
        return frame("error", {"type": "error", "error": error_object(err)})

    def _thought(self, event: ReasoningDelta) -> bytes:
        opening = self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        said = b""
        if event.text:
            text = ENCODER.encode(event.text)
            said = self._delta(b'{"type":"thinking_delta","thinking":%b}' % text)
        if event.signature:
            proof = ENCODER.encode(event.signature)
            said += self._delta(b'{"type":"signature_delta","signature":%b}' % proof)
        return opening + said

    def _tool(self, event: ToolCallDelta) -> bytes:
        """
        One block a call, one after the other.

        Pieces of another call wait until the arguments of the open one are whole, because a
        block that was stopped cannot be taken up again.
        """
        if self._kind == "tool_use" and event.index != self._call:
            behind = bool(self._waiting)
            self._waiting.setdefault(event.index, []).append(event)
            # Behind another that waits: nothing has changed since that was looked at.
            return b"" if behind else self._waited()
        return self._piece(event) + self._waited()

    def _piece(self, event: ToolCallDelta) -> bytes:
        opening = b"" if self._kind == "tool_use" else self._open_tool(event)
        if not event.arguments:
            return opening
        self._given.add(event.arguments)
        piece = ENCODER.encode(event.arguments)
        return opening + self._delta(b'{"type":"input_json_delta","partial_json":%b}' % piece)

    def _waited(self, *, at_end: bool = False) -> bytes:
        """The pieces that waited and whose turn has come: one call after the other."""
        written: list[bytes] = []
        while self._waiting and (at_end or self._given.ended()):
            turn = self._waiting.pop(next(iter(self._waiting)))
            written += (self._close(), *map(self._piece, turn))
        return b"".join(written)

    def _open_tool(self, event: ToolCallDelta) -> bytes:
        self._call = event.index
        self._given = Pieces(name=event.name)
        block = {
            "type": "tool_use",
            "id": event.id or f"toolu_{event.index}",
            "name": event.name,
            "input": {},
        }
        return self._close() + self._open("tool_use", block)

    def _block(self, kind: str, block: dict[str, Json]) -> bytes:
        return b"" if self._kind == kind else self._close() + self._open(kind, block)

    def _start(self) -> bytes:
        head, self._head = self._head, {}
        return frame("message_start", {"type": "message_start", "message": head}) if head else b""

    def _open(self, kind: str, block: dict[str, Json]) -> bytes:
        self._kind = kind
        self._index += 1
        opening = {"type": "content_block_start", "index": self._index, "content_block": block}
        ping = b"" if self._pinged else PING
        self._pinged = True
        return self._start() + frame("content_block_start", opening) + ping

    def _delta(self, delta: bytes) -> bytes:
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta",'
            b'"index":%d,"delta":%b}\n\n' % (self._index, delta)
        )

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        self._kind = ""
        return self._stop()

    def _stop(self) -> bytes:
        return frame("content_block_stop", {"type": "content_block_stop", "index": self._index})

    def _finish(self, event: Finished) -> bytes:
        reason = "stop_sequence" if event.stop_sequence else _REASONS[event.reason]
        delta = {"stop_reason": reason, "stop_sequence": event.stop_sequence or None}
        usage = usage_object(event.usage or Usage())
        ending = {"type": "message_delta", "delta": delta, "usage": usage}
        return (
            self._start()
            + self._waited(at_end=True)
            + self._close()
            + frame("message_delta", ending)
            + frame("message_stop", {"type": "message_stop"})
        )


def frame(name: str, payload: dict[str, Json]) -> bytes:
    """One named server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), ENCODER.encode(payload))


def message_id(request_id: str) -> str:
    """The id of a message, as Anthropic's begin."""
    return f"msg_{request_id.removeprefix('req_')}"


def message_object(model: str, request_id: str, usage: Usage) -> dict[str, Json]:
    """A message without content."""
    return {
        "id": message_id(request_id),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_object(usage),
    }


def usage_object(usage: Usage) -> dict[str, Json]:
    """Usage as Anthropic spells it: cached tokens are not part of `input_tokens`."""
    cached = usage.cached_tokens + usage.cache_write_tokens
    return {
        "input_tokens": max(0, usage.prompt_tokens - cached),
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def reply(reply: Reply, *, created: int = 0) -> bytes:
    """A whole answer as a `message` object."""
    content: list[Json] = []
    if reply.reasoning or reply.reasoning_signature:
        content.append(
            {
                "type": "thinking",
                "thinking": reply.reasoning,
                "signature": reply.reasoning_signature,
            }
        )
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    for call in reply.tool_calls:
        given = arguments_object(call.arguments)
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    message = message_object(reply.model, reply.request_id, reply.usage)
    message["content"] = content
    named = reply.stop_sequence or None
    message["stop_reason"] = "stop_sequence" if named else _REASONS[finish_reason(reply)]
    message["stop_sequence"] = named
    return ENCODER.encode(message)


def count_body(input_tokens: int) -> bytes:
    """The answer of `/v1/messages/count_tokens`."""
    return ENCODER.encode({"input_tokens": input_tokens})


def error_body(err: LocalFirstError, *, request_id: str) -> bytes:
    """The body of an error answer; its status is `err.http_status`."""
    return ENCODER.encode({"type": "error", "error": error_object(err), "request_id": request_id})


def error_object(err: LocalFirstError) -> dict[str, Json]:
    """An error as Anthropic's clients read it, with our code and hint beside."""
    fallback = "invalid_request_error" if isinstance(err, InvalidRequest) else "api_error"
    kind, message = _TYPES.get(err.http_status, fallback), err.message
    if isinstance(err, ContextTooLong):
        # Agents know by these words, and no code, that a conversation has to be compacted:
        # Claude Code took the status alone for a file that is too large.
        kind, message = "invalid_request_error", f"prompt is too long: {message}"
    found: dict[str, Json] = {
        "type": kind,
        "message": message,
        "code": err.code,
        "hint": err.hint,
    }
    if isinstance(err, InvalidRequest) and err.field:
        found["param"] = err.field
    if isinstance(err, CascadeExhausted):
        found["attempts"] = attempt_objects(err)
    return found

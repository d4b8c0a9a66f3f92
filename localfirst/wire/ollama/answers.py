"""
Events and replies in Ollama's dialect: one JSON object a line.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from localfirst.errors import LocalFirstError
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
from localfirst.wire.conclusion import arguments_object
from localfirst.wire.ollama.events import DURATIONS

ENCODER = msgspec.json.Encoder()

NANOSECONDS = 1_000_000_000


class StreamWriter:
    """
    Writes one streamed answer of `/api/chat`, or of `/api/generate` with *generate*.

    Args:
        model: the name as the client gave it.
        request_id: unused; this dialect has no ids.
        created: seconds since 1970 at the request's start.
        request: unused; counts are always written.
        generate: `response` instead of `message`.
        now_unix: the time, for `created_at` and `total_duration`; without it time stands.
    """

    def __init__(
        self,
        *,
        model: str,
        request_id: str = "",
        created: float,
        request: ChatRequest | None = None,
        generate: bool = False,
        now_unix: Callable[[], float] | None = None,
    ) -> None:
        self._model = model
        self._created = created
        self._generate = generate
        self._now_unix = now_unix or (lambda: created)
        self._calls: dict[int, list[str]] = {}

    def write(self, event: Event) -> bytes:
        """The bytes of one event; empty for those a client is not told of."""
        match event:
            case TextDelta(text, logprobs):
                beside = {"logprobs": logprobs} if logprobs else {}
                return self._line(text=text, beside=beside)
            case ReasoningDelta(text) if text:
                return self._line(thinking=text)
            case ToolCallDelta():
                self._collect(event)
            case Finished():
                return self._finish(event)
            case Progress():
                # An empty piece is the only keep-alive that every client of this dialect takes.
                return self._line()
            case Relayed(data):
                return data
        return b""

    def error(self, err: LocalFirstError) -> bytes:
        """The line that ends a stream in failure; no `done: true` follows it."""
        return ENCODER.encode(error_object(err)) + b"\n"

    def _collect(self, event: ToolCallDelta) -> None:
        """Calls are whole in this dialect, so pieces wait for the end."""
        call = self._calls.setdefault(event.index, ["", "", ""])
        call[0] = call[0] or event.id
        call[1] = call[1] or event.name
        call[2] += event.arguments

    def _line(
        self,
        *,
        text: str = "",
        thinking: str = "",
        calls: list[Json] | None = None,
        beside: dict[str, Json] | None = None,
    ) -> bytes:
        return line(
            self._model,
            self._now_unix(),
            said(self._generate, text, thinking, calls or []),
            {"done": False, **(beside or {})},
        )

    def _finish(self, event: Finished) -> bytes:
        before = b""
        if self._calls:
            calls = [call_object(index, *call) for index, call in sorted(self._calls.items())]
            before = self._line(calls=calls)
        elapsed_s = self._now_unix() - self._created
        return before + line(
            self._model,
            self._now_unix(),
            said(self._generate, "", "", []),
            ending(event.reason, event.usage or Usage(), event.timings, elapsed_s),
        )


def line(model: str, at_unix: float, answer: dict[str, Json], rest: dict[str, Json]) -> bytes:
    """One line of an answer, its fields in Ollama's order."""
    return ENCODER.encode({"model": model, "created_at": stamp(at_unix), **answer, **rest}) + b"\n"


def stamp(at_unix: float) -> str:
    """A time as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(at_unix, UTC).isoformat().replace("+00:00", "Z")


def said(generate: bool, text: str, thinking: str, calls: list[Json]) -> dict[str, Json]:
    """What a line says: a `message`, or a `response`."""
    if generate:
        answer: dict[str, Json] = {"response": text}
        if thinking:
            answer["thinking"] = thinking
        if calls:
            answer["tool_calls"] = calls
        return answer
    message: dict[str, Json] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def call_object(index: int, identifier: str, name: str, arguments: str) -> dict[str, Json]:
    """A whole call; its arguments are an object here, not text."""
    given = arguments_object(arguments)
    return {"id": identifier, "function": {"index": index, "name": name, "arguments": given}}


def ending(
    reason: FinishReason, usage: Usage, timings: dict[str, Json], elapsed_s: float
) -> dict[str, Json]:
    """The fields of the last line: durations in nanoseconds and counts."""
    known = {name: timings[name] for name in DURATIONS if name in timings}
    total = known.get("total_duration", max(0, round(elapsed_s * NANOSECONDS)))
    last: dict[str, Json] = {
        "done": True,
        "done_reason": timings.get("done_reason") or done_reason(reason),
    }
    if "context" in timings:
        last["context"] = timings["context"]
    last["total_duration"] = total
    last["load_duration"] = known.get("load_duration", 0)
    last["prompt_eval_count"] = usage.prompt_tokens
    last["prompt_eval_duration"] = known.get("prompt_eval_duration", 0)
    last["eval_count"] = usage.completion_tokens
    last["eval_duration"] = known.get("eval_duration", total)
    return last


def done_reason(reason: FinishReason) -> str:
    """Ollama's word; it has only two, and says `stop` after tool calls."""
    return "length" if reason is FinishReason.LENGTH else "stop"


def reply(
    reply: Reply,
    *,
    created: float,
    generate: bool = False,
    elapsed_s: float = 0.0,
) -> bytes:
    """A whole answer for `stream: false`."""
    calls: list[Json] = [
        call_object(index, call.id, call.name, call.arguments)
        for index, call in enumerate(reply.tool_calls)
    ]
    answer = said(generate, reply.text, reply.reasoning, calls)
    rest = ending(reply.finish_reason, reply.usage, reply.timings, elapsed_s)
    if reply.logprobs:
        rest["logprobs"] = reply.logprobs
    return line(reply.model, created, answer, rest).rstrip(b"\n")


def loaded(model: str, *, created: float, generate: bool = False, unload: bool = False) -> bytes:
    """The answer to a request that only loads or unloads; never a stream, never durations."""
    rest = {"done": True, "done_reason": "unload" if unload else "load"}
    return line(model, created, said(generate, "", "", []), rest).rstrip(b"\n")


def error_body(err: LocalFirstError, *, request_id: str) -> bytes:
    """The body of an error answer; its status is `err.http_status`."""
    return ENCODER.encode(error_object(err))


def error_object(err: LocalFirstError) -> dict[str, Json]:
    """An error as Ollama's clients read it: one text, with our code and hint beside."""
    return {"error": err.message, "code": err.code, "hint": err.hint}

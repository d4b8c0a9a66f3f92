"""
The older completions surface, `/v1/completions`.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from itertools import accumulate

from localfirst.errors import LocalFirstError
from localfirst.events import Event, Finished, Progress, Relayed, Reply, TextDelta, Usage
from localfirst.types import ChatRequest, Dialect, Json, Needs
from localfirst.wire import progress, strict_json
from localfirst.wire.fields import Fields, refuse, wrong
from localfirst.wire.openai.answers import (
    DONE,
    ENCODER,
    error_object,
    finish_reason,
    usage_object,
)
from localfirst.wire.openai.decode import sampling_of, stream_of
from localfirst.wire.peek import Peek, prompt_tokens

_KNOWN = frozenset(
    {
        "model", "prompt", "suffix", "stream", "stream_options", "max_tokens", "temperature",
        "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty", "frequency_penalty",
        "repeat_penalty", "repetition_penalty", "logprobs", "num_ctx", "keep_alive", "options",
        "user", "n", "echo", "best_of",
    }
)  # fmt: skip


def decode(body: bytes) -> ChatRequest:
    """
    The request in *body*; a list of one prompt is taken, token ids are not.

    Raises:
        InvalidRequest: naming the field that is missing, wrong or out of range.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    if fields.flag("echo"):
        raise wrong("echo", "false: no backend here repeats the prompt")
    fields.integer("best_of", 1, 1)
    count = fields.integer("logprobs", 0, 5)
    plain = Fields({**fields.values, "logprobs": count is not None or None})
    sampling = sampling_of(plain)
    sampling["top_logprobs"] = count
    return ChatRequest(
        model=fields.text("model") or "auto",
        prompt=_prompt(fields),
        suffix=fields.text("suffix") or None,
        **sampling,
        **stream_of(fields),
        extra=fields.rest(_KNOWN),
        dialect=Dialect.OPENAI,
    )


def peek(body: bytes) -> Peek:
    """What routing needs; this surface is rare enough to be decoded at once."""
    request = decode(body)
    tokens = prompt_tokens(body, images=False)
    needs = Needs(prompt_tokens=tokens, max_tokens=request.max_tokens or 0)
    return Peek(request.model, request.stream, needs)


def _prompt(fields: Fields) -> str:
    value = fields.get("prompt")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value:
        # An empty one only loads a model at an Ollama, which then has nothing to say.
        raise wrong("prompt", "one string, and not empty")
    return value


class StreamWriter:
    """Writes one streamed completion; see `answers.StreamWriter` for the arguments."""

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
        self._head = _head(model, request_id, created)
        self._offset = 0

    def write(self, event: Event) -> bytes:
        """The bytes of one event; reasoning and tool calls have no place in this surface."""
        match event:
            case TextDelta(text, logprobs):
                start, self._offset = self._offset, self._offset + len(text)
                return self._frame([_choice(text, None, logprobs, start)])
            case Finished(reason, usage):
                end = self._frame([_choice("", str(reason), ())])
                if self._include_usage:
                    end += self._frame([], usage=usage_object(usage or Usage()))
                return end + DONE
            case Progress():
                return progress.comment(event)
            case Relayed(data):
                return data
        return b""

    def error(self, err: LocalFirstError) -> bytes:
        """The event that ends a stream in failure; no `[DONE]` follows it."""
        return b"data: " + ENCODER.encode({"error": error_object(err)}) + b"\n\n"

    def _frame(self, choices: list[Json], **beside: Json) -> bytes:
        return b"data: " + ENCODER.encode({**self._head, "choices": choices, **beside}) + b"\n\n"


def reply(reply: Reply, *, created: int) -> bytes:
    """A whole answer as a `text_completion` object."""
    return ENCODER.encode(
        {
            **_head(reply.model, reply.request_id, created),
            "choices": [_choice(reply.text, str(finish_reason(reply)), reply.logprobs)],
            "usage": usage_object(reply.usage),
        }
    )


def _head(model: str, request_id: str, created: int) -> dict[str, Json]:
    return {
        "id": f"cmpl-{request_id.removeprefix('req_')}",
        "object": "text_completion",
        "created": created,
        "model": model,
    }


def _choice(
    text: str, reason: str | None, logprobs: tuple[Json, ...], offset: int = 0
) -> dict[str, Json]:
    return {
        "text": text,
        "index": 0,
        "logprobs": _logprobs(logprobs, offset) if logprobs else None,
        "finish_reason": "stop" if reason == "tool_calls" else reason,
    }


def _logprobs(given: tuple[Json, ...], offset: int) -> dict[str, Json]:
    """Chat's logprobs in this surface's columns; the text begins at character *offset*."""
    tokens = [item["token"] for item in given]
    return {
        "tokens": tokens,
        "token_logprobs": [item["logprob"] for item in given],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in item.get("top_logprobs") or ()}
            for item in given
        ],
        "text_offset": [*accumulate(map(len, tokens[:-1]), initial=offset)],
    }

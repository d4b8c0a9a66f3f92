"""
One chunk of an OpenAI-style stream, read for what it says.

The usual shape is read by msgspec in place (0.4 µs); whatever does not fit (content as a
list, arguments as an object, text where a number belongs) is read again leniently. Unknown
fields never matter.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from localfirst.events import FinishReason, Usage
from localfirst.types import Json
from localfirst.wire import forgiving
from localfirst.wire.conclusion import object_text
from localfirst.wire.forgiving import ABSENT, NO_ERROR, tokens

_NULL = Raw(b"null")


class FunctionPiece(msgspec.Struct, gc=False):
    """Name and a piece of the arguments."""

    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct, gc=False):
    """A piece of a tool call; `index` is missing at some providers."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class Delta(msgspec.Struct, gc=False):
    """What one chunk adds; reasoning has two names in the field."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPiece] | None = None
    function_call: FunctionPiece | None = None

    @property
    def calls(self) -> list[CallPiece]:
        """Pieces of tool calls, OpenAI's old single `function_call` among them."""
        if self.function_call is None:
            return self.tool_calls or []
        return [*(self.tool_calls or []), CallPiece(0, None, self.function_call)]


class Choice(msgspec.Struct, gc=False):
    """
    One choice, of a stream (`delta`), a reply (`message`) or a completion (`text`).

    vLLM's `stop_reason` is the stop sequence that was met, or the id of a token that ended it.
    """

    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: Raw = ABSENT
    error: Raw = ABSENT
    index: int | None = None

    @property
    def stop_sequence(self) -> str:
        """The stop sequence that ended it, or ""."""
        return self.stop_reason if isinstance(self.stop_reason, str) else ""


class Details(msgspec.Struct, gc=False):
    """The finer counts of a usage."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class Counts(msgspec.Struct, gc=False):
    """Usage as OpenAI spells it; DeepSeek's cache counts beside it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None
    prompt_cache_hit_tokens: int | None = None


class XGroq(msgspec.Struct, gc=False):
    """Groq's envelope; older streams carry usage only here."""

    usage: Counts | None = None


class Chunk(msgspec.Struct, gc=False):
    """One `data:` payload, or a whole reply."""

    choices: list[Choice] | None = None
    usage: Counts | None = None
    error: Raw = ABSENT
    x_groq: XGroq | None = None

    @property
    def failed(self) -> bool:
        """Whether the payload is an error, at its top or inside a choice."""
        if self.error is not ABSENT and self.error not in NO_ERROR:
            return True
        for choice in self.choices or ():
            if choice.error is not ABSENT and choice.error not in NO_ERROR:
                return True
        return False

    @property
    def gave_up(self) -> bool:
        """Whether a finish reason says that the provider could not go on."""
        for choice in self.choices or ():
            if choice.finish_reason and choice.finish_reason.lower() in GAVE_UP:
                return True
        return False

    @property
    def counted(self) -> Usage | None:
        """The usage it carries, wherever."""
        counts = self.usage or (self.x_groq and self.x_groq.usage)
        return usage_of(counts) if counts else None


class Odd(Chunk, gc=False):
    """A payload that is not quite of the dialect."""


CHUNK = msgspec.json.Decoder(Chunk)

REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "max_output_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    "refusal": FinishReason.CONTENT_FILTER,
    "safety": FinishReason.CONTENT_FILTER,
    "recitation": FinishReason.CONTENT_FILTER,
    "prohibited_content": FinishReason.CONTENT_FILTER,
    "sensitive": FinishReason.CONTENT_FILTER,
}
"""Finish reasons seen at OpenAI-compatible providers; unknown ones count as stop."""

GAVE_UP = frozenset({"error", "abort", "network_error", "insufficient_system_resource"})
"""
Reasons that are no end of an answer: OpenRouter's and Mistral's, vLLM's and SGLang's of a
request they dropped, Z.AI's, and DeepSeek's of a machine without room.
"""


def reason_of(word: str) -> FinishReason:
    """A provider's finish reason in our words."""
    return REASONS.get(word.lower(), FinishReason.STOP)


def read(data: bytes) -> Chunk:
    """
    The chunk in *data*.

    Raises:
        msgspec.DecodeError: not a JSON object.
    """
    try:
        return CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _lenient(forgiving.loads(data))


def in_texts(data: bytes, chunk: Chunk) -> bytes:
    """
    The *data* of a *chunk* or a reply for a client of this dialect: its content is text, and
    thinking stands beside it. Magistral's is a list of parts, which no such client reads.
    """
    if type(chunk) is not Odd or not chunk.choices:
        return data
    value, changed = forgiving.loads(data), False
    for choice in filter(lambda item: isinstance(item, dict), value["choices"]):
        for said in map(choice.get, ("delta", "message")):
            if not isinstance(said, dict) or not isinstance(said.get("content"), list):
                continue
            said["content"], thought = _split(said["content"])
            if thought:
                said["reasoning_content"] = said["reasoning"] = thought
            changed = True
    return msgspec.json.encode(value) if changed else data


def usage_of(counts: Counts) -> Usage:
    """Counts as a `Usage`."""
    prompt = counts.prompt_tokens_details
    completion = counts.completion_tokens_details
    cached = (prompt and prompt.cached_tokens) or counts.prompt_cache_hit_tokens
    read, written = tokens(counts.prompt_tokens), tokens(counts.completion_tokens)
    # xAI and Gemini count thoughts in the total only, and bill them as output.
    thoughts = max(0, tokens(counts.total_tokens) - read - written) if written else 0
    return Usage(
        prompt_tokens=read,
        completion_tokens=written + thoughts,
        cached_tokens=tokens(cached),
        cache_write_tokens=tokens(prompt.cache_write_tokens if prompt else 0),
        reasoning_tokens=tokens(completion.reasoning_tokens if completion else 0) or thoughts,
    )


def logprobs_of(raw: Raw) -> tuple[Json, ...]:
    """The `content` list of a choice's logprobs."""
    if raw in (ABSENT, _NULL):
        return ()
    found = msgspec.json.decode(raw)
    content = found.get("content") if isinstance(found, dict) else None
    return tuple(content) if isinstance(content, list) else ()


def _lenient(value: Any) -> Chunk:
    if not isinstance(value, dict):
        raise msgspec.ValidationError("not an object")
    choices = value.get("choices")
    return Odd(
        choices=[_choice(item) for item in choices if isinstance(item, dict)]
        if isinstance(choices, list)
        else None,
        usage=_typed(value.get("usage"), Counts),
        error=_raw(value.get("error")),
        x_groq=_typed(value.get("x_groq"), XGroq),
    )


def _choice(item: dict[str, Any]) -> Choice:
    reason = item.get("finish_reason")
    return Choice(
        delta=_delta(item.get("delta")),
        message=_delta(item.get("message")),
        text=_text(item.get("text")),
        finish_reason=None if reason is None else str(reason),
        stop_reason=item.get("stop_reason"),
        logprobs=_raw(item.get("logprobs")),
        error=_raw(item.get("error")),
        index=_number(item.get("index")),
    )


def _number(value: Any) -> int | None:
    """A number, which some write as text."""
    if isinstance(value, str) and value.isdecimal():
        return int(value[:9])
    return value if isinstance(value, int) else None


def _delta(item: Any) -> Delta | None:
    if not isinstance(item, dict):
        return None
    content, thought = _split(item.get("content"))
    calls = item.get("tool_calls")
    return Delta(
        content=content,
        reasoning_content=thought or _text(item.get("reasoning_content")),
        reasoning=_text(item.get("reasoning")),
        refusal=_text(item.get("refusal")),
        tool_calls=[_call(call) for call in calls if isinstance(call, dict)]
        if isinstance(calls, list)
        else None,
        function_call=_function(item["function_call"])
        if isinstance(item.get("function_call"), dict)
        else None,
    )


def _call(item: dict[str, Any]) -> CallPiece:
    function, identifier = item.get("function"), item.get("id")
    return CallPiece(
        index=_number(item.get("index")),
        id=None if identifier is None else str(identifier),
        function=_function(function if isinstance(function, dict) else {}),
    )


def _function(item: dict[str, Any]) -> FunctionPiece:
    return FunctionPiece(_text(item.get("name")), object_text(item.get("arguments")))


def _split(content: Any) -> tuple[str | None, str | None]:
    """Text and thinking of content that may be a list of typed parts (Mistral's Magistral)."""
    if not isinstance(content, list):
        return _text(content), None
    texts, thoughts = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "thinking":
            inner, _ = _split(part.get("thinking"))
            thoughts.append(inner or "")
        elif isinstance(part, dict):
            texts.append(_text(part.get("text")) or "")
    return "".join(texts), "".join(thoughts)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _raw(value: Any) -> Raw:
    return ABSENT if value is None else Raw(msgspec.json.encode(value))


def _typed(value: Any, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False) if isinstance(value, dict) else None
    except msgspec.ValidationError:
        return None

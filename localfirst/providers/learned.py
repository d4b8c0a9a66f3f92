"""
What a cloud taught us about a model: fields that it refused by name are not sent again.

Kept in memory, per provider and model. Only fields that change how an answer is made are
ever left out; what the caller asked *for* (messages, tools, a schema) never is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

import msgspec

from localfirst.cascade import classify, classify_body
from localfirst.errors import UpstreamRefused
from localfirst.providers.spec import merge
from localfirst.types import FailureClass, Json
from localfirst.wire.quirks import NONE, Quirks

MODELS_MOST = 256
FIELDS_MOST = 32

_ESSENTIAL = frozenset(
    {
        "model", "messages", "stream", "tools", "tool_choice", "response_format", "input",
        "system", "prompt", "functions", "function_call", "output_config", "max_tokens",
        "max_completion_tokens",
        # Gemini's own words.
        "contents", "systemInstruction", "generationConfig", "toolConfig", "functionDeclarations",
        "parametersJsonSchema", "responseJsonSchema", "responseMimeType", "maxOutputTokens",
        "functionCall", "functionResponse", "inlineData", "fileData", "parts", "text",
    }
)  # fmt: skip
_OF_MESSAGES = frozenset(
    {"name", "reasoning", "reasoning_content", "reasoning_details", "refusal", "annotations"}
)
# A value out of range is the caller's mistake and stays one; these say that the field itself is.
_UNSUPPORTED = re.compile(
    r"unknown|unsupported|unrecogni[sz]ed|unexpected|extra[_ ](inputs|forbidden|fields)|"
    r"not (supported|permitted|allowed|a valid (field|parameter))|no longer supported|"
    r"(does|do) not support|is deprecated|cannot find field|isn't supported|is unavailable",
    re.IGNORECASE,
)
# A schema that a model cannot be held to is asked for in words; it is never left out.
_SCHEMA = re.compile(r"json[_ ]?schema|response[_ ]format|structured[_ ]outputs?", re.IGNORECASE)

_THINKING = b'"thinkingConfig"'


class Learned:
    """The quirks that one provider's refusals taught, by model."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._by_model: dict[str, Quirks] = {}

    @property
    def by_model(self) -> Mapping[str, Quirks]:
        """Everything learnt so far, for people to read."""
        return self._by_model

    def over(self, base: Quirks, model: str) -> Quirks:
        """*base* with what was learnt about *model*."""
        more = self._by_model.get(model)
        return base if more is None else merge(base, more)

    def from_refusal(self, refused: UpstreamRefused, model: str, sent: bytes) -> bool:
        """
        Learn from a refusal of *sent*; whether there was anything new to learn.

        Only 400 and 422 that complain of a field's presence count, and only fields that
        were sent. Gemini complains of thinking without naming the field. A model that takes
        no schema is asked in words from then on.
        """
        thinking = _THINKING in sent and b"hinking" in refused.body
        said = thinking or _UNSUPPORTED.search(_text(refused.body))
        if refused.status not in {400, 422} or not said:
            return False
        failure = classify.failure(self._provider, refused, model=model, now_unix=0.0)
        if failure.cls is not FailureClass.INVALID_REQUEST:
            return False
        known = self._by_model.get(model, NONE)
        new = known
        if b'"json_schema"' in sent and _SCHEMA.search(_text(refused.body)):
            new = merge(new, Quirks(json_schema=False))
        for path in named_fields(refused.body) or ["thinkingConfig"] * thinking:
            new = merge(new, _lesson(path, refused.body, sent))
        full = model not in self._by_model and len(self._by_model) >= MODELS_MOST
        if new == known or len(new.drop) > FIELDS_MOST or full:
            return False
        self._by_model[model] = new
        return True


def _lesson(path: str, body: bytes, sent: bytes) -> Quirks:
    """What one named field means for the next request."""
    parts = [part for part in re.split(r"[.\[\]]+", path) if part]
    if not parts or f'"{parts[-1]}"'.encode() not in sent:
        return NONE
    root, last = parts[0], parts[-1]
    if root == "messages" and last in _OF_MESSAGES:
        return Quirks(message_drop=frozenset({last}))
    if root == "max_tokens" and b"max_completion_tokens" in body:
        return Quirks(max_tokens_field="max_completion_tokens")
    if root == "max_completion_tokens":
        return Quirks(rename={"max_completion_tokens": "max_tokens"})
    if root in _ESSENTIAL:
        return NONE
    return Quirks(drop=frozenset({root}))


def named_fields(body: bytes) -> list[str]:
    """Every request field that an error body names, as paths."""
    first = classify_body.read(body).field
    found = [first] if first else []
    with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        found += _locations(msgspec.json.decode(body), 0)
    return list(dict.fromkeys(found))[:FIELDS_MOST]


def _locations(value: Json, depth: int) -> Iterator[str]:
    """The `loc` paths of a validator's list, wherever it stands."""
    if depth > 6:
        return
    if isinstance(value, list):
        for item in value[:FIELDS_MOST]:
            yield from _locations(item, depth + 1)
    elif isinstance(value, dict):
        where = value.get("loc")
        if isinstance(where, list) and where and where[0] == "body":
            yield ".".join(str(part) for part in where[1:])
        for item in value.values():
            if isinstance(item, list | dict):
                yield from _locations(item, depth + 1)


def _text(body: bytes) -> str:
    return body[:16_384].decode("utf-8", "replace")

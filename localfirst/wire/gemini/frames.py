"""
The payloads of Gemini's answers, read in place; unknown fields never matter.

Source: https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from localfirst.events import FinishReason, Usage
from localfirst.wire import forgiving
from localfirst.wire.forgiving import tokens

REASONS = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "SAFETY": FinishReason.CONTENT_FILTER,
    "RECITATION": FinishReason.CONTENT_FILTER,
    "BLOCKLIST": FinishReason.CONTENT_FILTER,
    "PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
    "SPII": FinishReason.CONTENT_FILTER,
    "LANGUAGE": FinishReason.CONTENT_FILTER,
    "MODEL_ARMOR": FinishReason.CONTENT_FILTER,
    "IMAGE_SAFETY": FinishReason.CONTENT_FILTER,
    "IMAGE_RECITATION": FinishReason.CONTENT_FILTER,
    "IMAGE_PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
}
"""Reasons that end an answer; unknown ones count as stop, as in the other dialects."""

BROKEN = frozenset(
    {
        "MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE",
    }
)  # fmt: skip
"""Reasons that say the model wrote something that is no answer."""

UNSAID = frozenset({"", "FINISH_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED"})


class FunctionCall(msgspec.Struct, gc=False):
    """A whole call; `args` is an object, and an id came with Gemini 3."""

    name: str | None = None
    args: Any = None
    id: str | None = None


class Part(msgspec.Struct, gc=False, rename="camel"):
    """A piece of content: text, a thought, or a call."""

    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: FunctionCall | None = None


class Content(msgspec.Struct, gc=False):
    """The parts of one candidate; missing where there was nothing to say."""

    parts: list[Part] | None = None


class Candidate(msgspec.Struct, gc=False, rename="camel"):
    """One answer; only the first is ever asked for."""

    content: Content | None = None
    finish_reason: str | None = None
    index: int | None = None


class Feedback(msgspec.Struct, gc=False, rename="camel"):
    """Why a prompt got no answer at all."""

    block_reason: str | None = None


class Counts(msgspec.Struct, gc=False, rename="camel"):
    """Usage so far; events may leave out what they do not know."""

    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None

    def over(self, before: Counts | None) -> Counts:
        """These counts, with *before* where they are silent."""
        if before is None:
            return self
        for name in self.__struct_fields__:
            if getattr(self, name) is None:
                setattr(self, name, getattr(before, name))
        return self

    @property
    def usage(self) -> Usage | None:
        """As a `Usage`: thoughts are billed as output; None where nothing was counted."""
        if self.prompt_token_count is None and self.candidates_token_count is None:
            return None
        thoughts = tokens(self.thoughts_token_count)
        return Usage(
            prompt_tokens=tokens(self.prompt_token_count)
            + tokens(self.tool_use_prompt_token_count),
            completion_tokens=tokens(self.candidates_token_count) + thoughts,
            cached_tokens=tokens(self.cached_content_token_count),
            reasoning_tokens=thoughts,
        )


class Frame(msgspec.Struct, gc=False, rename="camel"):
    """One event of a stream, or a whole answer."""

    candidates: list[Candidate] | None = None
    prompt_feedback: Feedback | None = None
    usage_metadata: Counts | None = None
    response_id: str | None = None
    error: Raw = forgiving.ABSENT

    @property
    def says_nothing(self) -> bool:
        """Whether none of an answer's fields is there."""
        said = (self.candidates, self.prompt_feedback, self.usage_metadata)
        return all(field is None for field in said)


FRAME = forgiving.Decoder(Frame)
PAYLOADS = msgspec.json.Decoder(list[Raw])

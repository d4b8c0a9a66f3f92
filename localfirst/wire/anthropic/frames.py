"""The payloads of Anthropic's events and replies, read in place; unknown fields never matter."""

from __future__ import annotations

from typing import Any

import msgspec

from localfirst.events import FinishReason, Usage
from localfirst.wire import forgiving
from localfirst.wire.forgiving import tokens

REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "pause_turn": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}

GAVE_UP = frozenset({"error", "abort", "network_error"})
"""Reasons by which servers that only imitate this API say that they could not go on."""


class Counts(msgspec.Struct, gc=False):
    """Usage; in `message_delta` it is cumulative and leaves out what did not change."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None

    def over(self, before: Counts) -> Counts:
        """These counts, with *before* where they are silent."""
        return Counts(
            before.input_tokens if self.input_tokens is None else self.input_tokens,
            before.output_tokens if self.output_tokens is None else self.output_tokens,
            before.cache_creation_input_tokens
            if self.cache_creation_input_tokens is None
            else self.cache_creation_input_tokens,
            before.cache_read_input_tokens
            if self.cache_read_input_tokens is None
            else self.cache_read_input_tokens,
        )

    @property
    def usage(self) -> Usage:
        """As a `Usage`: cached tokens are part of the prompt's."""
        read = tokens(self.cache_read_input_tokens)
        written = tokens(self.cache_creation_input_tokens)
        return Usage(
            prompt_tokens=tokens(self.input_tokens) + read + written,
            completion_tokens=tokens(self.output_tokens),
            cached_tokens=read,
            cache_write_tokens=written,
        )


class Block(msgspec.Struct, gc=False):
    """A content block, whole or as it starts."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None


class Delta(msgspec.Struct, gc=False):
    """What a `content_block_delta` or a `message_delta` changes."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class Head(msgspec.Struct, gc=False):
    """A message: empty in `message_start`, whole in a reply."""

    content: list[Block] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Counts | None = None
    type: str = ""


class Frame(msgspec.Struct, gc=False):
    """Any event of the stream."""

    type: str = ""
    index: int | None = 0
    message: Head | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    usage: Counts | None = None


FRAME = forgiving.Decoder(Frame)
MESSAGE = forgiving.Decoder(Head)

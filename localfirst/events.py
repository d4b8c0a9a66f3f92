"""
What comes back: the events of one answer, and the reply they add up to.

A backend yields `Opened`, perhaps `Progress`, deltas, and last exactly one `Finished`; or
`Relayed` bytes where caller and backend speak the same dialect.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from localfirst.types import Attempt, Json, Rung, ToolCall


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer as its backend counted; `cached_tokens` are part of the prompt's."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class FinishReason(StrEnum):
    """Why a model stopped; surfaces translate it into their own words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Opened(msgspec.Struct, frozen=True):
    """
    The backend answered with a success status; its headers teach limits. Commits nothing.

    `before` are the refusals (`UpstreamRefused`) that taught how to ask, each a request.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    before: tuple[Exception, ...] = ()


class TextDelta(msgspec.Struct, frozen=True):
    """Visible text. `logprobs` is OpenAI's `content` list when it was asked for."""

    text: str
    logprobs: tuple[Json, ...] = ()


class ReasoningDelta(msgspec.Struct, frozen=True):
    """Thinking text; `signature` closes a block in Anthropic's dialect."""

    text: str
    signature: str = ""


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of the `index`-th tool call; `id` and `name` come with its first piece only."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Finished(msgspec.Struct, frozen=True):
    """The terminator came: the answer is complete. Nothing follows."""

    reason: FinishReason = FinishReason.STOP
    usage: Usage | None = None
    stop_sequence: str = ""
    timings: dict[str, Json] = {}


class Progress(msgspec.Struct, frozen=True):
    """
    Something slow is alive: a model loads, a file downloads. Restarts the first-token clock.

    `stage` is "queued", "loading", "pulling" or "verifying"; bytes are 0 when unknown. `note`
    is what a person should know although it goes on.
    """

    stage: str
    detail: str = ""
    completed_bytes: int = 0
    total_bytes: int = 0
    note: str = ""

    @property
    def percent(self) -> float | None:
        """0–100, or None while the total is unknown."""
        if self.total_bytes <= 0:
            return None
        return min(100.0, 100.0 * self.completed_bytes / self.total_bytes)


class Relayed(msgspec.Struct, frozen=True):
    """
    Bytes in the caller's own dialect, to be written as they are.

    For a stream these are whole events; for JSON the whole body. `content` is true when a
    content, reasoning or tool delta is inside, or the name of a stop sequence that ended it (it
    commits the answer), `final` when the terminator is; `usage` and `reason` are filled as far
    as they were seen in passing.
    """

    data: bytes
    content: bool = False
    final: bool = False
    usage: Usage | None = None
    reason: FinishReason | None = None


class Vectors(list[list[float]]):
    """
    Embeddings in the order of their texts; `prompt_tokens` as whoever made them counted, and
    `model` as they called it, where they did.
    """

    __slots__ = ("model", "prompt_tokens")

    def __init__(
        self, rows: Iterable[list[float]] = (), prompt_tokens: int = 0, model: str = ""
    ) -> None:
        super().__init__(rows)
        self.prompt_tokens = prompt_tokens
        self.model = model


Event = Opened | TextDelta | ReasoningDelta | ToolCallDelta | Finished | Progress | Relayed


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """
    A whole answer, with who gave it and who was asked before.

    `logprobs`, `stop_sequence` and `timings` are those of its `TextDelta`s and its `Finished`.
    """

    text: str
    route: str
    rung: Rung
    model: str
    reasoning: str = ""
    reasoning_signature: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()
    attempts: tuple[Attempt, ...] = ()
    substituted: str = ""
    request_id: str = ""
    parsed: Json = None
    logprobs: tuple[Json, ...] = ()
    stop_sequence: str = ""
    timings: dict[str, Json] = {}

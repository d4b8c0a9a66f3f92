"""
How one provider's dialect differs from the dialect's own specification, as data.

The catalogue fills these; `encode` and `splice` apply them, so that no codec knows a
provider's name.
"""

from __future__ import annotations

import functools

import msgspec

from localfirst.types import Json

LIMITS = ("max_tokens", "max_completion_tokens")
"""What OpenAI-style APIs call the limit on generated tokens."""


class Quirks(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    Changes to a request before it is sent.

    Applied in this order: `drop`, `rename`, `caps` and `floors`, `defaults`, `forced`.

    - drop: top-level fields that are left out.
    - rename: top-level fields by another name (`{"seed": "random_seed"}`).
    - caps, floors: largest and smallest value of a numeric field, by its final name.
    - defaults: values for fields that the request does not set; `forced` replaces what it
      sets, and `with_tools` is forced only when the request carries tools.
    - max_tokens_field: the name this provider wants for the limit on generated tokens.
    - message_drop: fields of each message that are left out (`name`, `reasoning_content`).
    - schema_drop: JSON-schema keywords that tool parameters and schemas must not carry.
    - reasoning_field: where reasoning of earlier assistant turns is sent back; "" = nowhere.
    - call_fields: added to earlier tool calls that lack them, for a provider that wants its own
      mark on calls which another one made.
    - signed_thinking: earlier thinking without a signature is refused (Anthropic's dialect, whose
      imitators do not sign, and some of them want it back all the same).
    - tool_id_chars: tool call ids must be exactly this many letters and digits; 0 = any.
    - tool_id_most: longer tool call ids than this are refused; 0 = any.
    - json_schema: False where only `json_object` exists; the schema is then put in words.
    - stream_usage: whether `stream_options.include_usage` is understood.
    - done_required: whether a stream without `[DONE]` counts as cut although it finished.
    """

    drop: frozenset[str] = frozenset()
    rename: dict[str, str] = {}
    caps: dict[str, float] = {}
    floors: dict[str, float] = {}
    defaults: dict[str, Json] = {}
    forced: dict[str, Json] = {}
    with_tools: dict[str, Json] = {}
    max_tokens_field: str = "max_tokens"
    message_drop: frozenset[str] = frozenset()
    schema_drop: frozenset[str] = frozenset()
    reasoning_field: str = ""
    call_fields: dict[str, Json] = {}
    signed_thinking: bool = False
    tool_id_chars: int = 0
    tool_id_most: int = 0
    json_schema: bool = True
    stream_usage: bool = True
    done_required: bool = True

    @functools.cached_property
    def concerns(self) -> frozenset[str] | None:
        """Top-level fields that something is done about; None where every request is changed."""
        if self.defaults or self.forced or self.tool_id_most or self.reaches_inside:
            return None
        others = {name for name in LIMITS if name != self.max_tokens_field}
        if self.with_tools:
            others.add("tools")
        if not self.json_schema:
            others.add("response_format")
        return self.drop.union(self.rename, self.caps, self.floors, others)

    @property
    def reaches_inside(self) -> bool:
        """Whether messages or tools must be opened; otherwise they are forwarded unread."""
        return bool(
            self.message_drop
            or self.schema_drop
            or self.tool_id_chars
            or self.reasoning_field
            or self.call_fields
        )


NONE = Quirks()
"""A provider that does what the specification says."""

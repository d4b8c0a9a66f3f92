"""What the runtime hands out besides answers."""

from __future__ import annotations

import msgspec

from localfirst.engines.base import LocalModel


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """
    A name that a request may use now.

    `id` is that name ("llama3.2:3b", "groq/openai/gpt-oss-20b", "auto", a route's);
    `owned_by` "local", a provider's id or "localfirst"; `local` is set for installed ones.
    """

    id: str
    owned_by: str
    created: int = 0
    local: LocalModel | None = None


class EmbedReply(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors in the order of the texts, and who made them."""

    vectors: list[list[float]]
    model: str
    route: str
    prompt_tokens: int = 0

"""What the runtime hands out besides answers."""

from __future__ import annotations

import msgspec

from localfirst.cascade import report
from localfirst.engines.base import LocalModel
from localfirst.types import Attempt, Rung, Target


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
    """
    Vectors in the order of the texts, and who made them; `egress` names who saw the texts.

    `model` is what the maker calls itself, `route` whom it was asked of by which name.
    """

    vectors: list[list[float]]
    model: str
    route: str
    prompt_tokens: int = 0
    rung: Rung = Rung.LOCAL
    attempts: tuple[Attempt, ...] = ()
    egress: tuple[str, ...] = ()

    def headers(self, request_id: str) -> list[tuple[str, str]]:
        """The `x-localfirst-*` facts: who made them, who was asked, who saw the texts."""
        provider, _, model = self.route.partition("/")
        target = Target(rung=self.rung, provider=provider, model=model)
        return report.headers(
            self.attempts, request_id=request_id, target=target, egress=self.egress
        )

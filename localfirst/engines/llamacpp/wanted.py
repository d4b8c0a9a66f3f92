"""The load that a request wants: a chat's, an embedding's, a longer one. Pure."""

from __future__ import annotations

import msgspec

from localfirst.engines.llamacpp.about import About
from localfirst.engines.llamacpp.plan import DEFAULT_CONTEXT_TOKENS, ChildPlan, context_for
from localfirst.engines.llamacpp.templates import jinja_for
from localfirst.engines.refusals import Overflow
from localfirst.engines.wishes import said
from localfirst.types import Call, Needs

EMBED_CONTEXT_TOKENS = 2048
BYTES_PER_TOKEN = 3
"""Of a text to embed: most texts have more, and one with less is refused with its numbers."""

PARALLEL = 4
"""Slots wished for, as llama-server's own default; fewer where memory is short."""


def chat_plan(about: About, call: Call | None, num_ctx: int) -> ChildPlan:
    """How to load a model for *call*, or for whoever comes; *num_ctx* is the configured size."""
    needs = call.needs if call else Needs()
    context = context_for(
        asked=(said(call, "num_ctx") or 0) if call else 0,
        prompt_tokens=needs.prompt_tokens,
        max_tokens=needs.max_tokens,
        usual=num_ctx or about.num_ctx or DEFAULT_CONTEXT_TOKENS,
        window=about.context_tokens,
    )
    return ChildPlan(
        model=about.path,
        alias=about.name,
        context_tokens=context,
        parallel=PARALLEL,
        template="" if about.template else jinja_for(about.go_template),
        projector=about.projector,
    )


def longer_plan(
    plan: ChildPlan, about: About, call: Call, found: Overflow | None
) -> ChildPlan | None:
    """*plan* with a context for a prompt that was longer than estimated, if there is one."""
    if found is None or not found.prompt_tokens:
        return None
    size = context_for(
        asked=plan.context_tokens,
        prompt_tokens=found.prompt_tokens,
        max_tokens=call.needs.max_tokens,
        usual=plan.context_tokens,
        window=about.context_tokens,
    )
    if size <= max(found.prompt_tokens, plan.context_tokens):
        return None
    return msgspec.structs.replace(plan, context_tokens=size)


def embed_plan(about: About, texts: list[str]) -> ChildPlan:
    """How to load a model that embeds *texts*, each of which it has to see at once."""
    longest = max((len(text.encode()) for text in texts), default=0)
    context = context_for(
        asked=0,
        prompt_tokens=longest // BYTES_PER_TOKEN,
        max_tokens=1,
        usual=EMBED_CONTEXT_TOKENS,
        window=about.context_tokens,
    )
    return ChildPlan(
        model=about.path,
        alias=about.name,
        context_tokens=context,
        embedding=True,
        pooling=about.pooling if about.pooling not in {"", "none"} else "mean",
    )

"""Embeddings: by the model that was named, at the one place that has it; nothing stands in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from localfirst.cascade import classify
from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.errors import (
    CascadeExhausted,
    InvalidRequest,
    LocalFirstError,
    PrivacyRefused,
    UnknownModel,
    UpstreamError,
)
from localfirst.models import names
from localfirst.runtime.entries import EmbedReply
from localfirst.settings import Privacy
from localfirst.types import Attempt, Json

if TYPE_CHECKING:
    from localfirst.runtime.runtime import Runtime

MOST_TEXTS = 2048
"""OpenAI's own limit on one request."""


class Embedder(Protocol):
    """Whoever makes vectors."""

    async def embed(
        self, model: str, texts: list[str], options: dict[str, Json]
    ) -> list[list[float]]:
        """Vectors of *texts* in order."""
        ...


async def embed(
    runtime: Runtime, model: str, texts: list[str], options: dict[str, Json]
) -> EmbedReply:
    """
    Vectors of *texts*; unlike an answer, a vector of another model is worthless.

    Raises:
        InvalidRequest: no text, or too many.
        UnknownModel: nobody has the model.
        CascadeExhausted: who has it cannot answer now.
    """
    if not 0 < len(texts) <= MOST_TEXTS:
        raise InvalidRequest(
            f"between 1 and {MOST_TEXTS} texts are embedded at once", field="input"
        )
    provider, _, rest = model.partition("/")
    cloud = runtime.clouds.providers.get(provider)
    if cloud is not None and rest:
        if (
            not runtime.clouds.views[provider].own
            and runtime.settings.privacy is Privacy.LOCAL_ONLY
        ):
            raise PrivacyRefused(f"`{provider}` is not on this machine, and `local-only` is set")
        backend = runtime.clouds.embedders.get(provider)
        if backend is None:
            raise UnknownModel(f"`{provider}` cannot be asked for embeddings: {cloud.reason}")
        return await ask(runtime, backend, provider, rest, texts, options)
    found = choose(await runtime.engine.status(), model.removeprefix("local/"))
    return await ask(runtime, runtime.engine, "local", found.name, texts, options)


def choose(status: EngineStatus, wanted: str) -> LocalModel:
    """The installed model of that name; for `auto` the smallest that is made for embedding."""
    if wanted in {"auto", "local", ""}:
        made_for_it = [model for model in status.models if "embedding" in model.capabilities]
        if not made_for_it:
            raise UnknownModel(
                "no embedding model is installed",
                hint="run `localfirst pull nomic-embed-text`, or name `provider/model`",
            )
        return min(made_for_it, key=lambda model: model.size_bytes)
    key = names.parse(wanted).key
    for model in status.models:
        if names.parse(model.name).key == key:
            return model
    raise UnknownModel(f"`{wanted}` is not installed", nearest=[m.name for m in status.models][:5])


async def ask(
    runtime: Runtime,
    backend: Embedder,
    provider: str,
    model: str,
    texts: list[str],
    options: dict[str, Json],
) -> EmbedReply:
    """One request, its failure told as the cascade tells failures."""
    try:
        async with asyncio.timeout(runtime.settings.cascade.deadline_s):
            vectors = await backend.embed(model, texts, options)
    except LocalFirstError:
        raise
    except (UpstreamError, TimeoutError, OSError) as error:
        failure = classify.failure(provider, error, model=model, now_unix=runtime.clock.unix())
        attempt = Attempt(
            provider=provider, model=model, outcome=failure.cls, message=failure.message
        )
        raise CascadeExhausted(
            f"`{provider}/{model}` made no embeddings: {failure.message}",
            attempts=[attempt],
            dominating=failure.cls,
            retry_after_s=failure.retry_after_s,
        ) from error
    return EmbedReply(vectors=vectors, model=model, route=f"{provider}/{model}")

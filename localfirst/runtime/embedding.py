"""Embeddings: by the model that was named, at the one place that has it; nothing stands in."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from localfirst.cascade import classify, exits, plan_names, report
from localfirst.cascade.health import NEVER, Cooldown
from localfirst.cascade.ladder import TRANSIENT
from localfirst.cascade.plan_names import close_to
from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.errors import (
    CascadeExhausted,
    InvalidRequest,
    LocalFirstError,
    PrivacyRefused,
    UnknownModel,
    UpstreamError,
    UpstreamNonsense,
)
from localfirst.events import Usage, Vectors
from localfirst.models import names
from localfirst.providers.openai import OpenAIBackend
from localfirst.runtime.entries import EmbedReply
from localfirst.settings import Privacy
from localfirst.types import Attempt, Failure, Json, Rung, Target, Texts

if TYPE_CHECKING:
    from localfirst.runtime.runtime import Runtime

MOST_TEXTS = 2048
"""OpenAI's own limit on one request."""

MOST_TEXTS_HERE = 256
"""So many a processor makes within a deadline, and others have their turn between."""

_ANY = frozenset({"auto", "", *plan_names.LOCAL_NAMES})
"""Names that leave the choice of a model to us."""

Work = Callable[[Texts, Target], Awaitable[Vectors]]
"""Asks one target for the vectors of some texts."""


async def embed(
    runtime: Runtime,
    model: str,
    texts: Texts,
    options: dict[str, Json],
    *,
    local_only: bool = False,
) -> EmbedReply:
    """
    Vectors of *texts*; unlike an answer, a vector of another model is worthless.

    Raises:
        InvalidRequest: no text, or token ids for who has not their tokenizer, or the cloud
            says that they are wrong.
        UnknownModel: nobody has the model.
        PrivacyRefused: the model is outside, and *local_only* or the settings forbid that.
        CascadeExhausted: who has it cannot answer now.
    """
    if not texts:
        raise InvalidRequest("there is no text to embed", field="input")
    local_only = local_only or runtime.settings.privacy is Privacy.LOCAL_ONLY
    provider, _, name = model.partition("/")
    if name and provider in runtime.clouds.views:
        return await _by_cloud(runtime, provider, name, texts, options, local_only=local_only)
    status = await runtime.engine.status()
    if owner := _owner(runtime, status, model):
        return await _by_cloud(runtime, owner, model, texts, options, local_only=local_only)
    found = choose(status, name if provider in plan_names.LOCAL_NAMES and name else model)
    if found.remote and local_only:
        raise PrivacyRefused(f"`{found.name}` runs in Ollama's cloud, and `local-only` is set")
    target = Target(rung=Rung.LOCAL, provider="local", model=found.name)
    return await _Asking(runtime).of(
        (target,),
        lambda some, _: runtime.engine.embed(found.name, _words(some, found.name), options),
        texts,
        most=MOST_TEXTS_HERE,
    )


def _owner(runtime: Runtime, status: EngineStatus, model: str) -> str:
    """The cloud whose model a bare name is, or "" for a name that is looked for here."""
    if model in _ANY or plan_names.is_installed(model, [one.name for one in status.models]):
        return ""
    views = runtime.clouds.views
    owner = plan_names.owner_of(model, {name: view.known_models for name, view in views.items()})
    order = [name for name in runtime.settings.order if name in views]
    have = [name for name in order if name == owner or model in views[name].known_models]
    if owner and not have:
        raise UnknownModel(
            f"`{model}` is a model of `{owner}`, which `order` does not name",
            hint=f"ask for `{owner}/{model}`, or name it in `order`",
        )
    return next((name for name in have if name in runtime.clouds.embedders), owner)


def _words(texts: Texts, model: str) -> list[str]:
    """*texts* where they are that; raises `InvalidRequest` for token ids."""
    words = [text for text in texts if isinstance(text, str)]
    if len(words) < len(texts):
        raise InvalidRequest(
            f"`input` holds token ids, which `{model}` cannot read: they are another tokenizer's",
            field="input",
            hint="send texts (LangChain: `OpenAIEmbeddings(check_embedding_ctx_length=False)`)",
        )
    return words


async def _by_cloud(
    runtime: Runtime,
    provider: str,
    model: str,
    texts: Texts,
    options: dict[str, Json],
    *,
    local_only: bool,
) -> EmbedReply:
    view = runtime.clouds.views[provider]
    if local_only and not view.own:
        raise PrivacyRefused(f"`{provider}` is not on this machine, and `local-only` is set")
    backend = runtime.clouds.embedders.get(provider)
    if backend is None:
        reason = runtime.clouds.providers[provider].reason or "it makes none"
        raise UnknownModel(f"`{provider}` cannot be asked for embeddings: {reason}")
    if not view.near and runtime.connectivity.online() is False:
        raise report.exhausted([], [(provider, runtime.connectivity.reason())])
    targets = tuple(
        Target(rung=view.rung, provider=provider, model=model, key_label=label)
        for label in view.key_labels or ("",)
    )

    def work(some: Texts, target: Target) -> Awaitable[Vectors]:
        label = target.key_label
        if isinstance(backend, OpenAIBackend):
            return backend.embed(model, some, options, key_label=label, local_only=local_only)
        words = _words(some, target.route)
        return backend.embed(model, words, options, key_label=label, local_only=local_only)

    asking = _Asking(runtime, egress=() if view.own else (provider,))
    return await asking.of(targets, work, texts, most=MOST_TEXTS)


class _Asking:
    """
    Requests for vectors, one after the other: key by key, a second try where that may help, all
    of it told.
    """

    def __init__(self, runtime: Runtime, *, egress: tuple[str, ...] = ()) -> None:
        self._runtime = runtime
        self._egress = egress
        self._attempts: list[Attempt] = []
        self._skipped: list[tuple[str, str]] = []
        self._cooling: list[Cooldown] = []
        self._model: str | None = None

    async def of(
        self, targets: Sequence[Target], work: Work, texts: Texts, *, most: int
    ) -> EmbedReply:
        """Vectors of *texts*, of which *most* are sent at once."""
        made, target = Vectors(), targets[0]
        for start in range(0, len(texts), most):
            some = texts[start : start + most]
            target, vectors = await self._first(targets, functools.partial(work, some))
            made.extend(vectors)
            made.prompt_tokens += vectors.prompt_tokens
        return self._reply(target, made)

    async def _first(
        self, targets: Sequence[Target], work: Callable[[Target], Awaitable[Vectors]]
    ) -> tuple[Target, Vectors]:
        """The first target that makes them, and its vectors."""
        limits = self._runtime.settings.cascade
        async with self._bounded(limits.deadline_s):
            for target in targets:
                for turn in range(limits.attempts_per_provider):
                    if not self._may_ask(target):
                        break
                    if turn and limits.backoff_s:
                        await self._runtime.clock.sleep(limits.backoff_s[0])
                    vectors = await self._ask(target, work)
                    if vectors is not None:
                        return target, vectors
                    if self._attempts[-1].outcome not in TRANSIENT:
                        break
        raise self._nobody()

    @asynccontextmanager
    async def _bounded(self, seconds: float) -> AsyncGenerator[None, None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise self._nobody() from None

    async def _ask(
        self, target: Target, work: Callable[[Target], Awaitable[Vectors]]
    ) -> Vectors | None:
        runtime, began = self._runtime, self._runtime.clock.monotonic()
        failure = None
        try:
            vectors = await work(target)
            self._alike(vectors)
        except LocalFirstError:
            runtime.health.left(target)
            raise
        except (UpstreamError, TimeoutError, OSError) as error:
            vectors, now_unix = None, runtime.clock.unix()
            failure = classify.failure(
                target.provider, error, model=target.model, now_unix=now_unix
            )
        except BaseException:
            runtime.health.left(target)
            raise
        attempt = Attempt(
            provider=target.provider,
            model=target.model,
            key_label=target.key_label,
            outcome=failure.cls if failure else "ok",
            status=failure.status if failure else None,
            message=failure.message if failure else "",
            retry_after_s=failure.retry_after_s if failure else None,
            started_unix=runtime.clock.unix(),
            duration_s=runtime.clock.monotonic() - began,
        )
        self._note(target, attempt, failure, vectors)
        return vectors

    def _alike(self, vectors: Vectors) -> None:
        """Raises `UpstreamNonsense` where another model made them than those before."""
        if self._model not in {None, vectors.model}:
            raise UpstreamNonsense(f"`{vectors.model}` answered after `{self._model}`")
        self._model = vectors.model

    def _note(
        self, target: Target, attempt: Attempt, failure: Failure | None, vectors: Vectors | None
    ) -> None:
        """Remember it as the cascade remembers answers; raises for the request's own fault."""
        runtime, now_unix = self._runtime, self._runtime.cascade.now_unix()
        self._attempts.append(attempt)
        usage = Usage(prompt_tokens=vectors.prompt_tokens) if vectors else None
        breakage = failure.breakage if failure else ""
        runtime.records.record_attempt(attempt, target=target, usage=usage, breakage=breakage)
        if failure is None:
            runtime.ledger.drop_cooldowns(runtime.health.succeeded(target))
            return
        entry = runtime.health.failed(target, failure, now_unix)
        if entry is not None:
            runtime.ledger.save_cooldown(entry)
        fault = exits.at_fault(failure, target.provider)
        if fault is not None:
            fault.attempts, fault.egress = tuple(self._attempts), self._egress
            raise fault

    def _may_ask(self, target: Target) -> bool:
        """Whether health and budget let it be asked; nobody stands in, so a guess does not bar."""
        now_unix = self._runtime.cascade.now_unix()
        barred = [
            entry
            for entry in self._runtime.health.view().blockers(target, now_unix)
            if entry.fact or entry.cls not in TRANSIENT
        ]
        no = f"cooling down after {barred[0].cls}" if barred else ""
        self._cooling += barred[:1]
        no = no or (self._runtime.budget.refusal(target) if self._egress else "")
        if no:
            self._skipped.append((target.provider, no))
        return not no

    def _reply(self, target: Target, vectors: Vectors) -> EmbedReply:
        return EmbedReply(
            vectors=vectors,
            prompt_tokens=vectors.prompt_tokens,
            model=self._model or target.model,
            route=target.route,
            rung=target.rung,
            attempts=tuple(self._attempts),
            egress=self._egress,
        )

    def _nobody(self) -> CascadeExhausted:
        now_unix = self._runtime.cascade.now_unix()
        waits = [one.retry_after_s for one in self._attempts if one.retry_after_s is not None]
        waits += [one.until_unix - now_unix for one in self._cooling if one.until_unix < NEVER]
        error = report.exhausted(
            self._attempts,
            self._skipped,
            cooling=[entry.cls for entry in self._cooling],
            retry_after_s=min(waits, default=None),
        )
        error.egress = self._egress if self._attempts else ()
        return error


def choose(status: EngineStatus, wanted: str) -> LocalModel:
    """The installed model of that name; for `auto` the smallest that is made for embedding."""
    if wanted in _ANY:
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
    nearest = close_to(wanted, [model.name for model in status.models])
    raise UnknownModel(f"`{wanted}` is not installed", nearest=nearest)

"""The clouds of one runtime: who is configured, how a plan sees them, who speaks to them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import urlsplit

import msgspec

from localfirst.cascade.plan import ProviderView
from localfirst.machine.recommend import catalogue
from localfirst.providers import catalog
from localfirst.providers.anthropic import AnthropicBackend
from localfirst.providers.catalog import Provider
from localfirst.providers.cloud import CloudBackend
from localfirst.providers.gemini import GeminiBackend
from localfirst.providers.listing import ModelLists
from localfirst.providers.openai import OpenAIBackend
from localfirst.settings import Privacy, Settings
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Clock, Dialect, Rung

LOOK_S = 60.0
"""How often it is looked whether a list is due."""

BACKENDS: Mapping[Dialect, type[CloudBackend]] = {
    Dialect.OPENAI: OpenAIBackend,
    Dialect.ANTHROPIC: AnthropicBackend,
    Dialect.GEMINI: GeminiBackend,
}


class Clouds:
    """Providers by id, as the configuration left them."""

    def __init__(self, settings: Settings, *, upstream: UpstreamClient, clock: Clock) -> None:
        self.providers = catalog.configured(settings)
        self.views: Mapping[str, ProviderView] = {
            name: view_of(provider, offline=settings.offline)
            for name, provider in self.providers.items()
        }
        self.backends: dict[str, CloudBackend] = {
            name: BACKENDS[provider.dialect](provider, upstream, clock)
            for name, provider in self.providers.items()
            if provider.ready
        }
        self._clock = clock
        private = settings.privacy is Privacy.LOCAL_ONLY
        self.lists = ModelLists(
            {
                name: backend
                for name, backend in self.backends.items()
                if not private or is_own(self.providers[name])
            },
            clock,
            local_only=private,
        )
        # Anthropic has no embeddings.
        self.embedders = {
            name: backend
            for name, backend in self.backends.items()
            if isinstance(backend, OpenAIBackend | GeminiBackend)
        }
        self.hosts = {
            name: host_of(provider)
            for name, provider in self.providers.items()
            if provider.ready and not provider.private
        }
        self.own = frozenset(p.id for p in self.providers.values() if is_own(p))
        # What answers on this machine never cools for long.
        self.near = frozenset(
            {"local", *(p.id for p in self.providers.values() if p.rung is Rung.LOCAL)}
        )
        self.concurrency = {p.id: p.concurrency for p in self.providers.values() if p.concurrency}
        self.marks = marks(self.providers)

    async def keep_fresh(self) -> None:
        """
        Read the clouds' model lists once a day, for ever; a task that its owner cancels.

        A default that its provider does not list any more steps behind the next one.
        """
        while True:
            # Not at once: a start asks nobody anything that no request needs.
            await self._clock.sleep(LOOK_S)
            if not self.lists.due():
                continue
            await self.lists.refresh_due()
            self.views = {
                name: self._with_list(view, self.providers[name])
                for name, view in self.views.items()
            }

    def gone(self, provider: str, model: str) -> None:
        """*provider* answered that it has no *model*: from now on another default stands in."""
        if provider in self.views and model in self.providers[provider].default_models:
            self.lists.drop(provider, model)
            view = self._with_list(self.views[provider], self.providers[provider])
            self.views = {**self.views, provider: view}

    def _with_list(self, view: ProviderView, provider: Provider) -> ProviderView:
        """A view with the defaults that are alive, and what its list adds to its models."""
        listed = self.lists.listed(provider.id).models
        alive = self.lists.defaults(provider)
        return msgspec.structs.replace(
            view,
            default_models=alive.models,
            known_models=frozenset((*alive.models, *provider.windows, *listed)),
            reason=alive.note or view.reason,
        )

    def configured_models(self, settings: Settings) -> frozenset[str]:
        """The models that a request gets without naming one: ours to keep right, not its own."""
        routed = [target for route in settings.routes.values() for target in route.targets]
        return frozenset((
            settings.local.model,
            settings.local.last_resort,
            *(entry.name for entry in catalogue().models),
            *(model for provider in self.providers.values() for model in provider.default_models),
            *routed,
            *(target.partition("/")[2] for target in routed),
        ))  # fmt: skip

    async def aclose(self) -> None:
        """Close every backend."""
        for backend in self.backends.values():
            await backend.aclose()


def host_of(provider: Provider) -> str:
    """`host:port` of a provider's address."""
    parts = urlsplit(provider.base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.hostname}:{port}" if parts.hostname else ""


def is_own(provider: Provider) -> bool:
    """
    Whether asking it counts as asking this machine.

    Only what is on loopback can be. A server there that the user named is; a cloud's name
    on a loopback address may well be a proxy to that cloud, and is believed only when
    `rung = "local"` says so.
    """
    return provider.loopback and (provider.custom or provider.rung is Rung.LOCAL)


def view_of(provider: Provider, *, offline: bool = False) -> ProviderView:
    """
    A provider as a plan sees it: labels of keys, never the keys.

    A server in the same house answers while the internet is gone; with *offline* nothing
    but this machine does.
    """
    return ProviderView(
        id=provider.id,
        rung=provider.rung,
        enabled=provider.ready,
        reason=provider.reason,
        key_labels=provider.key_labels,
        default_models=provider.default_models,
        known_models=frozenset((*provider.default_models, *provider.windows)),
        context_tokens=provider.context_tokens,
        windows=provider.windows,
        capabilities=provider.capabilities,
        near=provider.loopback or (provider.private and not offline),
        own=is_own(provider),
        timeout_s=provider.timeout_s,
    )


def marks(providers: Mapping[str, Provider]) -> dict[str, str]:
    """
    For each key's label and provider what identifies its present configuration.

    A key that was refused is tried again when its mark changes: another key stands there.
    """
    found: dict[str, str] = {}
    for provider in providers.values():
        found[provider.id] = mark(provider.base_url)
        found |= {key.label: mark(key.reveal()) for key in provider.keys}
    return found


def mark(text: str) -> str:
    """A short, one-way name of *text*."""
    return sha256(text.encode()).hexdigest()[:12]

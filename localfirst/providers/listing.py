"""
Which models the clouds still have: their lists, read once a day, and what that makes of
our defaults.

Models rot in months. A default that its provider no longer lists, or that an answer called
unknown, steps behind the next one, and a note says so. A list that cannot be read changes
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from localfirst.errors import LocalFirstError, UpstreamError
from localfirst.providers.cloud import CloudBackend
from localfirst.providers.spec import Provider
from localfirst.types import Clock

FRESH_S = 24 * 3600.0
AGAIN_S = 3600.0
"""After a list could not be read."""

MODELS_MOST = 5000


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """What one provider listed, or why it did not."""

    models: frozenset[str] = frozenset()
    read_unix: float = 0.0
    failure: str = ""


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """The default models that are alive, in order, and what was replaced by what."""

    models: tuple[str, ...]
    note: str = ""


class ModelLists:
    """
    The lists of all providers that can be asked, read when their owner says so.

    Args:
        backends: by provider id; only these are ever asked.
        clock: wall time says what is a day old.
        local_only: ask nobody beyond this machine.
    """

    def __init__(
        self, backends: Mapping[str, CloudBackend], clock: Clock, *, local_only: bool = False
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._local_only = local_only
        self._lists: dict[str, Listed] = {}
        self._gone: dict[str, set[str]] = {}

    def listed(self, provider: str) -> Listed:
        """What is known of one provider's list."""
        return self._lists.get(provider, Listed())

    def due(self) -> list[str]:
        """Providers whose list is missing, a day old, or failed an hour ago."""
        now = self._clock.unix()
        found = []
        for name in self._backends:
            seen = self._lists.get(name)
            age_s = now - seen.read_unix if seen else FRESH_S
            # A clock that was set back must not keep a list for ever.
            if not 0 <= age_s < (AGAIN_S if seen and seen.failure else FRESH_S):
                found.append(name)
        return found

    async def refresh(self, provider: str) -> Listed:
        """Read one list now; a failure keeps the models of the last one."""
        before = self.listed(provider)
        now = self._clock.unix()
        try:
            found = await self._backends[provider].models(local_only=self._local_only)
        except (UpstreamError, LocalFirstError) as error:
            said = msgspec.structs.replace(before, read_unix=now, failure=str(error))
        else:
            said = Listed(models=frozenset(found[:MODELS_MOST]), read_unix=now)
            if said.models:
                self._gone.pop(provider, None)
        self._lists[provider] = said
        return said

    async def refresh_due(self) -> None:
        """Read every list that is due, side by side; never raises."""
        await asyncio.gather(*(self.refresh(name) for name in self.due()))

    def drop(self, provider: str, model: str) -> None:
        """Remember that *provider* answered that it does not have *model*."""
        self._gone.setdefault(provider, set()).add(model)

    def defaults(self, provider: Provider) -> Defaults:
        """
        The provider's default models without the dead ones.

        All of them when every one seems dead: a list may leave out what works.
        """
        alive = tuple(model for model in provider.default_models if self.has(provider, model))
        if not alive or alive == provider.default_models:
            return Defaults(models=provider.default_models)
        wanted = provider.default_models[0]
        note = ""
        if wanted != alive[0]:
            note = f"`{wanted}` is no longer listed by {provider.title}; `{alive[0]}` stands in"
        return Defaults(models=alive, note=note)

    def has(self, provider: Provider, model: str) -> bool:
        """Whether *model* may be asked of *provider*, as far as is known."""
        if model in self._gone.get(provider.id, ()):
            return False
        models = self.listed(provider.id).models
        if not models or model in models or model in provider.spec.unlisted:
            return True
        # A suffix chooses a route (`:cheapest`, `:free`), not another model.
        return model.partition(":")[0] in models

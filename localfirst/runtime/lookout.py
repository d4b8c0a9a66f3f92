"""
The lookout: one `World` for the plan, built from what every room says of itself.

Looking is cheap and never waits on the network: the engine's status is refreshed in the
background while a fresh enough one is at hand, and the same world is handed out as the
same object while nothing changed. Only who asks for a model that is not there waits: it may
have come since, by a pull that nobody here knows of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from localfirst.cascade import plan_names
from localfirst.cascade.plan import ProviderView, World
from localfirst.cascade.plan_names import Asked
from localfirst.engines.base import Engine, EngineStatus
from localfirst.engines.gap import Gap
from localfirst.errors import UnknownModel
from localfirst.machine.connectivity import Connectivity
from localfirst.machine.recommend import Choice, catalogue
from localfirst.machine.serverless import Verdict
from localfirst.providers import prices
from localfirst.settings import Privacy, Settings
from localfirst.types import Call, Clock

FRESH_S = 2.0
"""A status this old is used as it is."""

STALE_S = 30.0
"""A status this old is still used, while a new one is fetched beside the request."""

LACKING_S, NAMES_KEPT = 0.2, 256
"""How long it is believed that a model is not there, and of how many names that is kept."""


class Lookout:
    """Builds worlds; owns the one task that refreshes the engine's status."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine,
        providers: Callable[[], Mapping[str, ProviderView]],
        connectivity: Connectivity,
        verdict: Verdict,
        clock: Clock,
        over_budget: Callable[[], str],
        last_resort: Callable[[], Choice],
    ) -> None:
        self._engine = engine
        self._connectivity = connectivity
        self._clock = clock
        self._over_budget = over_budget
        self._providers = providers
        self._last_resort = last_resort
        self._status: EngineStatus | None = None
        self._looked = float("-inf")
        self._gap = Gap(clock)
        self._changes = 0
        self._lacks: dict[str, bool] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._world = World(
            order=settings.order,
            local_only=settings.privacy is Privacy.LOCAL_ONLY,
            fallback=settings.cascade.fallback,
            local_model=settings.local.model,
            last_resort=settings.local.last_resort,
            abilities={one.name: frozenset(one.capabilities) for one in catalogue().models},
            windows={one.name: one.context_tokens for one in catalogue().models},
            auto_pull=settings.local.auto_pull,
            skip_pull=verdict.skip_pull,
            skip_pull_reason=verdict.reason,
            providers=providers(),
            routes=settings.routes,
            priced=prices.blended(),
        )

    async def look(self, call: Call) -> World:
        """The world now; the very object of the last look when nothing changed."""
        if self._gap.passed():  # nothing that was seen before a suspend is known now
            self.forget()
        status = self._status
        age = self._clock.monotonic() - self._looked
        if status is None or age > FRESH_S:
            status = await self._renewed(age)
        online = self._connectivity.online()
        over = self._over_budget()
        providers = self._providers()
        choice = self._last_resort()
        world = self._world
        if status is world.local and age > LACKING_S and self._lacking(call.model):
            await self._refresh(0.0)
            status = self._status
        if (
            status is not world.local
            or online is not world.online
            or over != world.over_budget
            or providers is not world.providers
            or choice.name != world.last_resort
        ):
            self._world = msgspec.structs.replace(
                world,
                local=status,
                online=online,
                offline_reason=self._connectivity.reason(),
                over_budget=over,
                providers=providers,
                last_resort=choice.name,
                last_resort_for=choice.requested,
                last_resort_reason=choice.reason,
            )
            self._lacks.clear()
        return self._world

    def _lacking(self, name: str) -> bool:
        """Whether *name* asks for a model of this machine that its engine did not have."""
        found = self._lacks.get(name)
        if found is None:
            if len(self._lacks) >= NAMES_KEPT:
                self._lacks.clear()
            found = self._lacks[name] = lacking(name, self._world)
        return found

    def forget(self) -> None:
        """Something changed at the engine (a model came or went): look again next time."""
        self._looked = float("-inf")
        self._changes += 1

    async def _renewed(self, age: float) -> EngineStatus:
        """The status now, or a stale one while a new one is fetched."""
        if self._status is None or age > STALE_S:
            await self._refresh()
        elif self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        assert self._status is not None, "a refresh leaves a status"
        return self._status

    async def _refresh(self, max_age_s: float = FRESH_S) -> None:
        forgotten, changes = self._looked == float("-inf"), self._changes
        status = await self._engine.status(max_age_s=0.0 if forgotten else max_age_s)
        if changes == self._changes:  # else what was seen is older than the last change
            self._looked = self._clock.monotonic()
        if status != self._status:
            self._status = status

    async def aclose(self) -> None:
        """End the background refresh."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)


def lacking(name: str, world: World) -> bool:
    """Whether *name* asks for a model that the engine of *world*, which is ready, has not."""
    engine = world.local
    # Of several hosts one that is down may be long in saying so, and may have it.
    if not engine.ready or engine.partial or "local" not in world.order:
        return False
    try:
        wanted = plan_names.read(name, world)
    except UnknownModel:
        return True
    if wanted.kind in {Asked.LADDER, Asked.LOCAL}:
        named = world.local_model
    elif wanted.kind is Asked.LOCAL_MODEL or wanted.provider == "local":
        named = wanted.model
    else:
        return False
    installed = world.installed
    return not (any(installed) if named == "auto" else plan_names.is_installed(named, installed))

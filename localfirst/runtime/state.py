"""What a runtime says of itself: the names it answers to, and its state without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from localfirst.cascade.plan import ProviderView
from localfirst.engines.base import EngineStatus
from localfirst.runtime import past
from localfirst.runtime.entries import ModelEntry
from localfirst.settings import Settings
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime.runtime import Runtime


def entries(
    settings: Settings, status: EngineStatus, providers: Mapping[str, ProviderView]
) -> list[ModelEntry]:
    """Every name a request may use, this machine's own first."""
    found = [ModelEntry(id="auto", owned_by="localfirst")]
    found += [ModelEntry(id=name, owned_by="localfirst") for name in settings.routes]
    found += [
        ModelEntry(id=model.name, owned_by="local", created=int(model.modified_unix), local=model)
        for model in status.models
    ]
    for view in providers.values():
        if view.enabled:
            found += [
                ModelEntry(id=f"{view.id}/{model}", owned_by=view.id)
                for model in dict.fromkeys((*view.default_models, *sorted(view.known_models)))
            ]
    return found


async def of(runtime: Runtime) -> dict[str, Json]:
    """The state as JSON: engine, ladder, providers, cooldowns, alarms, downloads, machine."""
    status = await runtime.engine.status()
    return {
        "privacy": str(runtime.settings.privacy),
        "order": list(runtime.settings.order),
        "engine": msgspec.to_builtins(status),
        "providers": [provider(view) for view in runtime.clouds.views.values()],
        "cooldowns": msgspec.to_builtins(runtime.cascade.health.cooling(runtime.clock.unix())),
        "escalations": [
            {"at_unix": one.at_unix, "reason": one.reason, "file": one.file}
            for one in await past.escalations(runtime, only_open=True)
        ],
        "pulls": [msgspec.to_builtins(job.snapshot()) for job in runtime.puller.jobs()],
        "network": {
            "online": runtime.connectivity.online(),
            "reason": runtime.connectivity.reason(),
        },
        "serverless": msgspec.to_builtins(runtime.serverless),
        "hardware": msgspec.to_builtins(runtime.hardware()),
    }


def provider(view: ProviderView) -> dict[str, Json]:
    """One provider: names of keys, never their values."""
    return {
        "id": view.id,
        "rung": str(view.rung),
        "enabled": view.enabled,
        "reason": view.reason,
        "keys": list(view.key_labels),
        "models": list(view.default_models),
    }

"""The doctor's facts gathered from an open runtime, and models recommended for its machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localfirst.engines import launch
from localfirst.engines.llamacpp import installed
from localfirst.errors import EngineUnavailable
from localfirst.machine import doctor, recommend
from localfirst.machine.doctor import (
    Engine,
    Facts,
    Finding,
    Key,
    Mirror,
    Proof,
    Report,
    StoreFacts,
)
from localfirst.machine.recommend import Recommendation
from localfirst.models import names, pulls, sources
from localfirst.transport import files

if TYPE_CHECKING:
    from localfirst.runtime.runtime import Runtime

__all__ = [
    "Finding",
    "Proof",
    "Recommendation",
    "Report",
    "abilities",
    "as_json",
    "examine",
    "recommended",
]

as_json = doctor.as_json


async def examine(
    runtime: Runtime,
    *,
    offline: bool = False,
    proof: Proof | None = None,
    damaged: tuple[str, ...] = (),
) -> Report:
    """
    Every finding about this machine; opens connections to clouds' hosts and sends nothing.

    With *offline* the report is about a life without a network: *proof* is an answer made
    without one, *damaged* the models whose bytes do not match their digests.
    """
    status = await runtime.engine.status(max_age_s=0)
    online, why = (False, runtime.connectivity.reason()) if offline else await _online(runtime)
    hardware, settings = runtime.hardware(), runtime.settings
    facts = Facts(
        hardware=hardware,
        settings=settings,
        serverless=runtime.serverless,
        engine=Engine.of(status),
        embedded=installed(),
        ollama_installed=_ollama_installed(runtime),
        keys=tuple(_key(one) for one in runtime.providers.values()),
        mirrors=_mirrors(runtime),
        online=online,
        online_reason=why,
        store=await asyncio.to_thread(_store, runtime, damaged),
        last_resort=recommend.last_resort(
            hardware,
            settings.local.last_resort,
            reserve_disk_bytes=settings.pull.reserve_disk_bytes,
        ),
        state_unwritable=_unwritable(Path(settings.state_dir)),
        proof=proof,
    )
    return doctor.examine(facts, offline=offline)


async def recommended(
    runtime: Runtime, *, needs: tuple[str, ...] = ("completion",), everything: bool = False
) -> tuple[str, list[Recommendation]]:
    """The catalogue's date, and its models ranked for this machine."""
    status = await runtime.engine.status(max_age_s=0)
    known = recommend.catalogue()
    ranked = recommend.rank(
        runtime.hardware(),
        known,
        needs=needs,
        installed={model.name for model in status.models},
        measured=await runtime.engine.measured(),
        reserve_disk_bytes=runtime.settings.pull.reserve_disk_bytes,
        everything=everything,
    )
    return known.dated, ranked


def abilities() -> set[str]:
    """What models of the catalogue can do, in Ollama's words."""
    return {word for model in recommend.catalogue().models for word in model.capabilities}


async def _online(runtime: Runtime) -> tuple[bool, str]:
    """
    Whether anybody takes a connection whom a question asked now would go to, and the evidence.

    They are the clouds that have a key and, where nothing else may be asked, the registry.
    """
    settings, hosts = runtime.settings, list(runtime.clouds.hosts.values())
    if settings.local.auto_pull and "pull" in settings.order and not runtime.serverless.skip_pull:
        registry = names.parse(settings.local.last_resort).host
        if registry not in settings.pull.mirrors:
            hosts.append(registry if ":" in registry else f"{registry}:443")
    way, before = runtime.connectivity.reason(), runtime.connectivity.online()
    online = await runtime.connectivity.probe(hosts)
    if online or before is False or not hosts:
        return online, runtime.connectivity.reason()
    asked = ", ".join(f"`{host.removesuffix(':443')}`" for host in hosts)
    return online, f"{way}, and no connection to {asked}"


def _ollama_installed(runtime: Runtime) -> bool:
    try:
        launch.find_program(runtime.environ)
    except EngineUnavailable:
        return False
    return True


def _mirrors(runtime: Runtime) -> tuple[Mirror, ...]:
    asked = runtime.puller.registry.sources
    return tuple(
        Mirror(
            registry=registry,
            host=sources.host_of(url),
            backed=bool(asked.mirror(names.parse(f"{registry}/library/any"))),
        )
        for registry, url in runtime.settings.pull.mirrors.items()
    )


def _key(provider: Any) -> Key:
    return Key(
        provider=provider.id,
        state=str(provider.state),
        reason=provider.reason,
        variables=provider.spec.key_vars,
        unset=provider.unset,
        wanting=provider.wanting,
    )


def _store(runtime: Runtime, damaged: tuple[str, ...]) -> StoreFacts:
    store = runtime.store
    return StoreFacts(
        root=str(store.root),
        unwritable=store.writable(),
        models=len(store.models()),
        damaged=(*damaged, *(str(path) for path, _ in store.damaged())),
        partial_bytes=sum(item.completed_bytes for item in pulls.pending(store)),
    )


def _unwritable(folder: Path) -> str:
    """Why the state folder, or the nearest one that exists above it, takes nothing."""
    folder = files.existing_parent(folder)
    return "" if os.access(folder, os.W_OK) else f"`{folder}` cannot be written"

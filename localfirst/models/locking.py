"""Locks made, kept and compared: what `lock`, `pull -f` and `outdated` do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec

from localfirst.errors import ConfigError, LocalFirstError
from localfirst.models import lock as locks
from localfirst.models import manifest as manifests
from localfirst.models import names
from localfirst.models.lock import Lock, LockedModel
from localfirst.models.registry import Registry
from localfirst.models.store import Store, StoredModel
from localfirst.transport import files

LOCK_LIMIT_BYTES = 16 * 2**20
AT_ONCE = 8


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """
    A stored model and its tag in the registry.

    `latest` is the registry's digest, "" when it could not be asked (`error` says why).
    """

    name: str
    digest: str
    latest: str = ""
    error: str = ""

    @property
    def outdated(self) -> bool:
        """Whether the tag names other bytes now."""
        return bool(self.latest) and self.latest != self.digest


def read_file(path: Path) -> Lock:
    """A lock file, which may be a pipe; raises `ConfigError` for none, or one not to be read."""
    try:
        with path.open("rb") as stream:
            text = stream.read(LOCK_LIMIT_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`{path}` cannot be read: {getattr(error, 'strerror', '') or error}",
            setting=str(path),
            hint="`localfirst lock` writes one",
            code="lock-invalid",
        ) from error
    return locks.read(text, source=str(path))


def write_file(path: Path, lock: Lock) -> None:
    """Write a lock file, whole or not at all, readable by others."""
    files.write_atomic(path, locks.write(lock).encode(), mode=0o644)


async def resolve(
    wanted: Iterable[str],
    *,
    store: Store,
    registry: Registry,
    latest: bool = False,
    insecure: bool = False,
    any_host: bool = False,
) -> Lock:
    """
    Pin models: to the stored version where there is one, else to the registry's.

    *latest* asks the registry for all. Raises what the registry raises.
    """

    async def pin(name: str) -> LockedModel:
        stored = None if latest else store.find(name)
        if stored is not None:
            return locks.locked(stored.name, stored.manifest)
        ref = names.parse(name)
        data, _ = await registry.manifest(ref, insecure=insecure, any_host=any_host)
        return locks.locked(ref.display, manifests.parse(data))

    return locks.of(await asyncio.gather(*(pin(name) for name in wanted)))


async def compare(
    models: Iterable[StoredModel], registry: Registry, *, insecure: bool = False
) -> list[Moved]:
    """For each model, whether its tag has moved: one HEAD each, eight at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(stored: StoredModel) -> Moved:
        async with gate:
            try:
                latest = await registry.digest(stored.ref, insecure=insecure, any_host=True)
            except LocalFirstError as error:
                return Moved(name=stored.name, digest=stored.digest, error=error.message)
        return Moved(name=stored.name, digest=stored.digest, latest=latest)

    return list(await asyncio.gather(*(ask(stored) for stored in models)))

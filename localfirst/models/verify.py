"""
Is the store what it says? Every blob re-hashed, its size first; and what is not, fetched anew.

Ollama trusts a blob because its file exists. Copies break off, disks flip bits, people
remove files: this finds out which, and whose models they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum
from pathlib import Path

import msgspec

from localfirst.errors import LocalFirstError
from localfirst.models import pull_partial
from localfirst.models.chore import BLOCK_BYTES, Chore
from localfirst.models.manifest import Layer
from localfirst.models.pull import Puller
from localfirst.models.pull_job import PullJob
from localfirst.models.pull_ranges import Ranges
from localfirst.models.store import Store, StoredModel
from localfirst.transport import files

BAD = "bad"


class BlobState(StrEnum):
    """What a blob turned out to be."""

    OK = "ok"
    MISSING = "missing"
    TRUNCATED = "truncated"
    OVERSIZE = "oversize"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"
    ORPHANED = "orphaned"


class BlobVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One blob: `size_bytes` should be, `actual_bytes` is; `models` are those that need it."""

    digest: str
    state: BlobState
    size_bytes: int
    actual_bytes: int
    models: tuple[str, ...] = ()
    kind: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a verification found.

    `damaged` are manifests that cannot be read (path and reason); `orphaned` blobs that no
    model needs, which are no fault but take space.
    """

    blobs: tuple[BlobVerdict, ...]
    damaged: tuple[tuple[str, str], ...] = ()

    @property
    def bad(self) -> tuple[BlobVerdict, ...]:
        """The blobs that some model needs and that are not right."""
        fine = {BlobState.OK, BlobState.ORPHANED}
        return tuple(blob for blob in self.blobs if blob.state not in fine)

    @property
    def orphaned(self) -> tuple[BlobVerdict, ...]:
        """The blobs that no model needs."""
        return tuple(blob for blob in self.blobs if blob.state is BlobState.ORPHANED)

    @property
    def bad_models(self) -> tuple[str, ...]:
        """The names of the models that are touched, sorted."""
        return tuple(sorted({name for blob in self.bad for name in blob.models}))

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.bad and not self.damaged


class Verification(Chore[Report]):
    """
    A check of the whole store, or of some models (raises `UnknownModel` for a name unknown).

    `async for progress in verification.watch()`, then `verification.result` is the report.
    """

    def __init__(self, store: Store, names: Iterable[str] = ()) -> None:
        wanted = list(names)
        self.store = store
        self.models = [store.get(name) for name in wanted] if wanted else store.models()
        self._whole = not wanted
        self._needs = needed_by(self.models)
        super().__init__(sum(layer.size_bytes for layer, _ in self._needs.values()))

    def work(self) -> Report:
        """Check everything."""
        verdicts = [self._judge(layer, users) for layer, users in self._needs.values()]
        damaged: list[tuple[str, str]] = []
        if self._whole:
            damaged = [(str(path), reason) for path, reason in self.store.damaged()]
            verdicts += orphans(self.store, set(self._needs))
        return Report(blobs=tuple(verdicts), damaged=tuple(damaged))

    def _judge(self, layer: Layer, users: tuple[str, ...]) -> BlobVerdict:
        path = self.store.blob_path(layer.digest)
        self.turn(layer.digest)
        before = self.completed_bytes
        actual = 0
        try:
            actual = path.stat().st_size
            if actual != layer.size_bytes:
                shorter = actual < layer.size_bytes
                state = BlobState.TRUNCATED if shorter else BlobState.OVERSIZE
            else:
                same = self._hash(path) == layer.digest
                state = BlobState.OK if same else BlobState.CORRUPT
        except FileNotFoundError:
            state = BlobState.MISSING
        except OSError:
            state = BlobState.UNREADABLE
        self.advance(before + layer.size_bytes - self.completed_bytes)
        return BlobVerdict(
            digest=layer.digest,
            state=state,
            size_bytes=layer.size_bytes,
            actual_bytes=actual,
            models=users,
            kind=layer.kind,
        )

    def _hash(self, path: Path) -> str:
        sha = hashlib.sha256()
        buffer = memoryview(bytearray(BLOCK_BYTES))
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                sha.update(buffer[:count])
                self.advance(count)
        return "sha256:" + sha.hexdigest()


def needed_by(models: Iterable[StoredModel]) -> dict[str, tuple[Layer, tuple[str, ...]]]:
    """Every blob of *models* once, with the names of the models that need it."""
    needs: dict[str, tuple[Layer, tuple[str, ...]]] = {}
    for stored in models:
        for layer in stored.manifest.blobs:
            _, users = needs.get(layer.digest, (layer, ()))
            needs[layer.digest] = (layer, (*users, stored.name))
    return needs


def orphans(store: Store, needed: set[str]) -> list[BlobVerdict]:
    """Files in `blobs/` that no model names; none while a manifest cannot be read."""
    if store.damaged() or not store.blobs.is_dir():
        return []
    found = []
    for path in sorted(store.blobs.iterdir()):
        digest = path.name.replace("-", ":", 1)
        if digest not in needed and path.is_file():
            size = path.stat().st_size
            found.append(
                BlobVerdict(
                    digest=digest, state=BlobState.ORPHANED, size_bytes=size, actual_bytes=size
                )
            )
    return found


async def repair(
    store: Store, puller: Puller, report: Report, *, insecure: bool = False
) -> AsyncIterator[PullJob]:
    """
    Fetch what is bad anew, model by model; yields each job as it begins.

    Only the bad blobs are fetched, by the digests that the stored manifests name: a tag that
    has moved meanwhile changes nothing. A truncated file's beginning is kept and judged by
    the digest at the end. A bad file comes back if nothing better could be had.
    """
    aside: dict[str, Path] = {}
    for verdict in report.bad:
        aside[verdict.digest] = _set_aside(store, verdict)
    try:
        for name in report.bad_models:
            job = puller.refetch(store.get(name), insecure=insecure)
            yield job
            with contextlib.suppress(LocalFirstError):
                await job.wait()
    finally:
        for digest, path in aside.items():
            _put_back(store, digest, path)


def _set_aside(store: Store, verdict: BlobVerdict) -> Path:
    """Take a bad blob out of the way; a truncated one becomes a partial download."""
    path = store.blob_path(verdict.digest)
    place = store.prepare(BAD) / path.name
    if not path.is_file():
        return place
    if verdict.state is BlobState.TRUNCATED and verdict.actual_bytes:
        layer = Layer(media_type="", digest=verdict.digest, size_bytes=verdict.size_bytes)
        if pull_partial.look(pull_partial.folder_of(store, layer.digest)) is None:
            _salvage(store, layer, path, verdict.actual_bytes)
            return place
    files.replace(path, place)
    return place


def _salvage(store: Store, layer: Layer, path: Path, size: int) -> None:
    folder = pull_partial.folder_of(store, layer.digest)
    store.prepare(pull_partial.PARTIAL, folder.name)
    path.replace(folder / "data")
    (folder / "data").chmod(0o600)
    partial = pull_partial.Partial(store, layer)
    try:
        os.ftruncate(partial.descriptor, layer.size_bytes)
        partial.sync(Ranges([(0, size)]))
    finally:
        partial.close()


def _put_back(store: Store, digest: str, aside: Path) -> None:
    """Remove the bad file, or restore it where no good one has come."""
    path = store.blob_path(digest)
    if not aside.exists():
        return
    if path.exists():
        aside.unlink()
    else:
        files.replace(aside, path)


def remove_orphans(store: Store, report: Report, *, now_unix: float) -> int:
    """
    Remove orphaned blobs that are older than an hour; returns the bytes freed.

    Younger ones may belong to a pull that has not written its manifest yet; Ollama waits
    the same hour (ollama/ollama `server/images.go`).
    """
    freed = 0
    for verdict in report.orphaned:
        path = store.blobs / verdict.digest.replace(":", "-")
        with contextlib.suppress(OSError):
            if now_unix - path.stat().st_mtime > 3600:
                path.unlink()
                freed += verdict.actual_bytes
    return freed

"""
Pulls that are not finished: what lies in `.localfirst/`, by model, with size and age.

A pull notes its model's name when it begins and forgets it at the end; partial blobs that
no note names (another process's, or of a note that was lost) are listed by their digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import msgspec

from localfirst.errors import LocalFirstError, PullError, UnknownModel
from localfirst.models import manifest as manifests
from localfirst.models import names, pull_partial
from localfirst.models.manifest import Layer, Manifest
from localfirst.models.names import ModelName
from localfirst.models.store import Store
from localfirst.transport import files
from localfirst.wire.forgiving import UNREADABLE

NOTES = "pulls"
NOTE_LIMIT_BYTES = manifests.LIMIT_BYTES + 2**16


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A pull's note on disk: the model's full name and its manifest's text."""

    name: str
    manifest: str
    started_unix: float


class PendingPull(msgspec.Struct, frozen=True, kw_only=True):
    """
    A download that can be gone on with.

    `name` is a model's, or `sha256:…` where nothing tells; `completed_bytes` are on disk
    already; `active` when a process is transferring one of its blobs now.
    """

    name: str
    size_bytes: int
    completed_bytes: int
    started_unix: float
    modified_unix: float
    digests: tuple[str, ...]
    active: bool = False


def note(store: Store, ref: ModelName, manifest: Manifest, now_unix: float) -> None:
    """Note that *ref* is being pulled; an earlier note's start is kept."""
    path = _path(store, ref)
    before = _read(path)
    started = before.started_unix if before else now_unix
    text = manifest.data.decode(errors="replace")
    written = Note(name=ref.full, manifest=text, started_unix=started)
    store.prepare(NOTES)
    files.write_atomic(path, msgspec.json.encode(written))


def forget(store: Store, ref: ModelName) -> None:
    """The pull is finished."""
    with contextlib.suppress(OSError):
        _path(store, ref).unlink(missing_ok=True)


def pending(store: Store) -> list[PendingPull]:
    """Every unfinished pull, the latest first."""
    claimed: set[str] = set()
    found: list[PendingPull] = []
    for path in sorted((store.ours / NOTES).glob("*.json")):
        if (note := _read(path)) and (item := _of_note(store, note, path)):
            claimed.update(item.digests)
            found.append(item)
    for folder in sorted((store.ours / pull_partial.PARTIAL).glob("sha256-*")):
        info = pull_partial.look(folder)
        digest = folder.name.replace("-", ":", 1)
        if digest in claimed:
            continue
        changed = _modified(folder)
        found.append(
            PendingPull(
                name=digest,
                size_bytes=info.size_bytes if info else 0,
                completed_bytes=info.completed_bytes if info else 0,
                started_unix=changed,
                modified_unix=changed,
                digests=(digest,),
                active=is_active(store, digest),
            )
        )
    return sorted(found, key=lambda item: -item.modified_unix)


def remove(store: Store, name: str) -> int:
    """
    Remove an unfinished pull's partial blobs by model name or digest; returns bytes freed.

    Raises:
        UnknownModel: nothing of that name is unfinished.
        PullError: it is being downloaded at this moment.
    """
    wanted = name if name.startswith("sha256:") else names.parse(name).display
    item = next((item for item in pending(store) if item.name == wanted), None)
    if item is None:
        raise UnknownModel(f"no unfinished pull of `{wanted}`", hint="run `localfirst pulls`")
    if item.active:
        raise PullError(
            f"`{wanted}` is being downloaded now", hint="cancel it first", code="pull-active"
        )
    for digest in item.digests:
        _remove_partial(store, digest)
    if not name.startswith("sha256:"):
        forget(store, names.parse(name))
    return item.completed_bytes


def is_active(store: Store, digest: str) -> bool:
    """Whether some process holds the blob's transfer lock."""
    path = store.ours / "locks" / f"{digest[7:]}.lock"
    if not path.exists():
        return False
    with contextlib.suppress(OSError), files.FileLock(path).tried() as free:
        return not free
    return False


def _remove_partial(store: Store, digest: str) -> None:
    """Remove a partial unless a process takes it up at this very moment."""
    lock = files.FileLock(store.prepare("locks") / f"{digest[7:]}.lock")
    with lock.tried() as mine:
        if mine:
            shutil.rmtree(pull_partial.folder_of(store, digest), ignore_errors=True)


def _of_note(store: Store, note: Note, path: Path) -> PendingPull | None:
    try:
        manifest = manifests.parse(note.manifest.encode())
        name = names.parse(note.name).display
    except LocalFirstError:
        return None
    partials = {
        layer.digest: info
        for layer in manifest.blobs
        if (info := pull_partial.look(pull_partial.folder_of(store, layer.digest)))
    }
    here = sum(_here(store, layer, partials) for layer in manifest.blobs)
    times = [path.stat().st_mtime, *(info.modified_unix for info in partials.values())]
    return PendingPull(
        name=name,
        size_bytes=sum(layer.size_bytes for layer in manifest.blobs),
        completed_bytes=here,
        started_unix=note.started_unix,
        modified_unix=max(times),
        digests=tuple(partials),
        active=any(is_active(store, layer.digest) for layer in manifest.blobs),
    )


def _here(store: Store, layer: Layer, partials: dict[str, pull_partial.PartialInfo]) -> int:
    if store.has_blob(layer):
        return layer.size_bytes
    info = partials.get(layer.digest)
    return info.completed_bytes if info else 0


def _path(store: Store, ref: ModelName) -> Path:
    return store.ours / NOTES / (hashlib.sha256(ref.key.encode()).hexdigest()[:32] + ".json")


def _read(path: Path) -> Note | None:
    try:
        return msgspec.json.decode(files.read_bounded(path, NOTE_LIMIT_BYTES), type=Note)
    except (OSError, *UNREADABLE):
        return None


def _modified(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0

"""
`models.lock`: the exact bytes that a set of machines is to have.

TOML, written in one fixed form so that two locks of the same models are the same file.
Pure: no files, no network.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable

import msgspec

from localfirst.errors import ConfigError, ModelNameInvalid
from localfirst.models import names
from localfirst.models.manifest import Manifest, ManifestInvalid, normal_digest

VERSION = 1
FILE_NAME = "models.lock"
_HEX = re.compile(r"[0-9a-f]{64}")
_HEAD = (
    "# written by `localfirst lock`; `localfirst pull -f models.lock` fetches exactly these bytes"
)


class LockedBlob(msgspec.Struct, frozen=True, kw_only=True):
    """A blob of a locked model."""

    digest: str
    size_bytes: int
    kind: str = ""


class LockedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model pinned: `digest` is the 64 hex digits of its manifest's SHA-256."""

    name: str
    digest: str
    size_bytes: int
    blobs: tuple[LockedBlob, ...] = ()


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """The models of a lock file, sorted by name."""

    models: tuple[LockedModel, ...]


def locked(name: str, manifest: Manifest) -> LockedModel:
    """Pin *name* to the very bytes of *manifest*."""
    return LockedModel(
        name=names.parse(name).display,
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        blobs=tuple(
            LockedBlob(digest=blob.digest, size_bytes=blob.size_bytes, kind=blob.kind)
            for blob in manifest.blobs
        ),
    )


def of(models: Iterable[LockedModel]) -> Lock:
    """A lock of *models*; of two with one name the later counts."""
    latest = {names.parse(model.name).key: model for model in models}
    return Lock(models=tuple(latest[key] for key in sorted(latest)))


def write(lock: Lock) -> str:
    """The lock as TOML."""
    lines = [_HEAD, f"version = {VERSION}"]
    for model in lock.models:
        lines += [
            "",
            "[[model]]",
            f"name = {json.dumps(model.name)}",
            f"digest = {json.dumps(model.digest)}",
            f"size_bytes = {model.size_bytes}",
            "blobs = [",
        ]
        lines += [
            f"  {{ digest = {json.dumps(blob.digest)}, size_bytes = {blob.size_bytes}, "
            f"kind = {json.dumps(blob.kind)} }},"
            for blob in model.blobs
        ]
        lines.append("]")
    return "\n".join(lines) + "\n"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    model: list[LockedModel] = []


def read(text: str, *, source: str = FILE_NAME) -> Lock:
    """
    Read a lock.

    Raises:
        ConfigError: naming *source* and what is wrong in it.
    """
    try:
        file = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise _wrong(source, str(error)) from None
    if file.version != VERSION:
        raise _wrong(source, f"version {file.version} is not understood, only {VERSION}")
    for model in file.model:
        _check(model, source)
    return of(file.model)


def _check(model: LockedModel, source: str) -> None:
    try:
        names.parse(model.name)
        for blob in model.blobs:
            normal_digest(blob.digest)
    except (ModelNameInvalid, ManifestInvalid) as error:
        raise _wrong(source, error.message) from None
    if not _HEX.fullmatch(model.digest):
        raise _wrong(source, f"the digest of `{model.name}` is not 64 hex digits")


def _wrong(source: str, reason: str) -> ConfigError:
    return ConfigError(
        f"`{source}` is no lock: {reason}",
        setting=source,
        source=source,
        hint="write it anew with `localfirst lock MODEL…`",
        code="lock-invalid",
    )

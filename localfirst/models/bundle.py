"""
Models in one file, to be carried where no network is.

A plain tar (`tar tf` lists it): first an index, then every manifest verbatim, then every
blob once. Nothing is compressed again and nothing is rewritten, so that a model has the
same digest on the other side. A bundle may be split into parts `NAME.001`, `NAME.002` …
for filesystems with a largest file.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Annotated

import msgspec

from localfirst.errors import VerificationFailed
from localfirst.models.chore import Chore
from localfirst.models.manifest import Layer
from localfirst.models.parts import FAT32_BYTES, PartWriter
from localfirst.models.store import Store, StoredModel
from localfirst.models.verify import needed_by

INDEX = "localfirst-bundle.json"
FORMAT = 1
INDEX_LIMIT_BYTES = 16 * 2**20


class BundledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a bundle; `name` is complete (`host/namespace/model:tag`)."""

    name: str
    digest: str
    size_bytes: int


class BundledBlob(msgspec.Struct, frozen=True, kw_only=True):
    """A blob of a bundle."""

    digest: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class BundleIndex(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle holds; its first member."""

    format: int
    models: tuple[BundledModel, ...]
    blobs: tuple[BundledBlob, ...]

    @property
    def size_bytes(self) -> int:
        """All blobs together."""
        return sum(blob.size_bytes for blob in self.blobs)


class Export(Chore[Path]):
    """
    Write *names* of *store* into the bundle *target*; the file appears when it is whole.

    Every blob is hashed on its way (`VerificationFailed` if it is not what it says). With
    *split_bytes* the result is `target.001` and so on. Raises `UnknownModel`, `OSError`.
    """

    stage = "pulling"

    def __init__(
        self, store: Store, names: Iterable[str], target: Path, *, split_bytes: int = 0
    ) -> None:
        self.store = store
        self.target = target
        self.models = list({stored.name: stored for stored in map(store.get, names)}.values())
        self._split_bytes = min(split_bytes, FAT32_BYTES) if split_bytes else 0
        self._blobs = [layer for layer, _ in needed_by(self.models).values()]
        super().__init__(sum(layer.size_bytes for layer in self._blobs))

    def work(self) -> Path:
        """Write it."""
        parts = PartWriter(self.target, self._split_bytes)
        try:
            with tarfile.open(fileobj=parts, mode="w", format=tarfile.PAX_FORMAT) as tar:
                add(tar, INDEX, index_of(self.models, self._blobs))
                for stored in self.models:
                    add(tar, f"manifests/{stored.ref.path}", stored.manifest.data)
                for layer in self._blobs:
                    self._blob(tar, layer)
            return parts.finish()
        except BaseException:
            parts.discard()
            raise

    def _blob(self, tar: tarfile.TarFile, layer: Layer) -> None:
        self.turn(layer.digest)
        path = self.store.blob_path(layer.digest)
        if not self.store.has_blob(layer):
            raise VerificationFailed(f"blob {layer.short} is absent or of the wrong size")
        with path.open("rb") as stream:
            hashing = _Hashing(stream, self)
            tar.addfile(member(f"blobs/{path.name}", layer.size_bytes), hashing)
        if hashing.digest != layer.digest:
            raise VerificationFailed(f"blob {layer.short} is corrupt")


class _Hashing(io.RawIOBase):
    """A file that is hashed and counted while it is read."""

    def __init__(self, stream: IO[bytes], chore: Chore[Path]) -> None:
        self._stream = stream
        self._chore = chore
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        return "sha256:" + self._sha.hexdigest()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._sha.update(data)
        self._chore.advance(len(data))
        return data


def index_of(models: Iterable[StoredModel], blobs: Iterable[Layer]) -> bytes:
    """The index of a bundle, the same bytes for the same models."""
    index = BundleIndex(
        format=FORMAT,
        models=tuple(
            BundledModel(name=m.ref.full, digest=m.digest, size_bytes=m.size_bytes) for m in models
        ),
        blobs=tuple(BundledBlob(digest=b.digest, size_bytes=b.size_bytes) for b in blobs),
    )
    return msgspec.json.format(msgspec.json.encode(index), indent=1)


def member(name: str, size: int) -> tarfile.TarInfo:
    """A tar header that tells nothing of the machine it was made on."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a small member."""
    tar.addfile(member(name, len(data)), io.BytesIO(data))

"""
A bundle read, on a machine that does not trust it.

The index says which members there are; anything else, anything twice, anything that is not
a plain file ends the reading. Paths are made from parsed names and digests, never from what
the tar says. No model becomes visible before every digest has been checked.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from localfirst.errors import InsufficientResources, ModelNameInvalid
from localfirst.machine.fit import shown
from localfirst.models import manifest as manifests
from localfirst.models import names
from localfirst.models.bundle import (
    FORMAT,
    INDEX,
    INDEX_LIMIT_BYTES,
    BundleIndex,
)
from localfirst.models.chore import BLOCK_BYTES, Chore
from localfirst.models.manifest import Layer, Manifest, ManifestInvalid
from localfirst.models.names import ModelName
from localfirst.models.parts import BundleInvalid, PartReader, parts_of
from localfirst.models.store import Store
from localfirst.transport import files
from localfirst.wire.forgiving import UNREADABLE

IMPORT = "import"


def info(path: Path) -> BundleIndex:
    """What a bundle says it holds; only its beginning is read. Raises `BundleInvalid`."""
    with _opened(path) as tar:
        index = _index(tar)
        _expected(index)
        return index


class BundleCheck(Chore[BundleIndex]):
    """Read a whole bundle and check every digest; raises `BundleInvalid` at the first fault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = info(path)
        super().__init__(self.index.size_bytes)

    def work(self) -> BundleIndex:
        """Check it."""
        for _, _ in self.manifests_and_blobs():
            pass
        return self.index

    def wanted(self, layer: Layer) -> bool:
        """Whether a blob's bytes are to be read; the check wants all."""
        return True

    def keep(self, layer: Layer) -> IO[bytes] | None:
        """Where to put a blob's bytes while they are checked; nowhere."""
        return None

    def checked(self, layer: Layer) -> None:
        """Called for each blob whose digest is right."""

    def manifests_and_blobs(self) -> Iterator[tuple[ModelName, Manifest]]:
        """Go through the bundle; yields the models once everything in it has been checked."""
        with _opened(self.path) as tar:
            index = _index(tar)
            expected = _expected(index)
            found: dict[str, Manifest] = {}
            while (item := tar.next()) is not None:
                name = _plain(item, expected)
                stream = tar.extractfile(item)
                assert stream is not None, "a plain member has content"
                layer = expected.pop(name)
                if isinstance(layer, Layer):
                    self._blob(item, layer, stream)
                else:
                    found[layer.full] = _manifest(item, index, layer, stream)
        if expected:
            raise BundleInvalid(f"the bundle lacks `{next(iter(expected))}`")
        _complete(index, found)
        for model in index.models:
            yield names.parse(model.name), found[model.name]

    def _blob(self, item: tarfile.TarInfo, layer: Layer, stream: IO[bytes]) -> None:
        if item.size != layer.size_bytes:
            raise BundleInvalid(f"blob {layer.short} is not of the size the index says")
        self.turn(layer.digest)
        if not self.wanted(layer):
            self.advance(layer.size_bytes)
            return
        sha, sink = hashlib.sha256(), self.keep(layer)
        try:
            while data := stream.read(BLOCK_BYTES):
                sha.update(data)
                if sink is not None:
                    sink.write(data)
                self.advance(len(data))
            if "sha256:" + sha.hexdigest() != layer.digest:
                raise BundleInvalid(f"blob {layer.short} is corrupt")
            if sink is not None:
                sink.flush()
                os.fsync(sink.fileno())
        finally:
            if sink is not None:
                sink.close()
        self.checked(layer)


class Import(BundleCheck):
    """
    Bring a bundle's models into *store*, without a network and without a daemon.

    Blobs wait under `.localfirst/import/` until all are checked; an import that was ended
    goes on with those that were. `result` is the index. Raises `BundleInvalid`,
    `InsufficientResources`, `OSError`.
    """

    def __init__(self, store: Store, path: Path, *, reserve_bytes: int = 0) -> None:
        super().__init__(path)
        self.store = store
        self._reserve_bytes = reserve_bytes
        self._waiting = store.ours / IMPORT

    def work(self) -> BundleIndex:
        """Import it."""
        self._check_disk()
        self._waiting = self.store.prepare(IMPORT)
        models = list(self.manifests_and_blobs())
        for _, manifest in models:
            for layer in manifest.blobs:
                if not self.store.has_blob(layer):
                    self.store.put_blob(self._path(layer), layer.digest)
        for ref, manifest in models:
            self.store.put_manifest(ref, manifest.data)
        return self.index

    def wanted(self, layer: Layer) -> bool:
        """A blob of the store, or one that an earlier import checked, is passed over."""
        if self.store.has_blob(layer):
            return False
        path = self._path(layer)
        return not (path.is_file() and path.stat().st_size == layer.size_bytes)

    def keep(self, layer: Layer) -> IO[bytes]:
        """A file that counts as nothing until it is renamed."""
        path = self._path(layer).with_suffix(".part")
        path.unlink(missing_ok=True)
        return os.fdopen(files.open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")

    def checked(self, layer: Layer) -> None:
        """Give it the name that a later import trusts."""
        path = self._path(layer)
        files.replace(path.with_suffix(".part"), path)

    def _path(self, layer: Layer) -> Path:
        return self._waiting / layer.digest.replace(":", "-")

    def _check_disk(self) -> None:
        layers = [_layer(blob.digest, blob.size_bytes) for blob in self.index.blobs]
        needed = sum(layer.size_bytes for layer in layers if self.wanted(layer))
        free = files.free_bytes(self.store.root)
        if needed and free < needed + self._reserve_bytes:
            raise InsufficientResources(
                f"the bundle needs {shown(needed)} on `{self.store.root}` and "
                f"{shown(self._reserve_bytes)} in reserve; {shown(free)} are free",
                kind="disk",
                needed_bytes=needed + self._reserve_bytes,
                available_bytes=free,
                hint="free some space, then import again",
            )


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A bundle's tar; whatever tarfile says of a broken one becomes `BundleInvalid`."""
    source = PartReader(parts_of(path))
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BundleInvalid(f"`{path}` is no whole bundle: {error}") from error
    finally:
        source.close()


def _index(tar: tarfile.TarFile) -> BundleIndex:
    item = tar.next()
    if item is None or item.name != INDEX or not item.isreg() or item.size > INDEX_LIMIT_BYTES:
        raise BundleInvalid("the file does not begin with a bundle's index")
    stream = tar.extractfile(item)
    assert stream is not None, "a plain member has content"
    try:
        index = msgspec.json.decode(stream.read(item.size), type=BundleIndex)
    except UNREADABLE as error:
        raise BundleInvalid(f"the bundle's index is not readable: {error}") from None
    if index.format != FORMAT:
        raise BundleInvalid(f"bundle format {index.format} is not understood, only {FORMAT}")
    return index


def _expected(index: BundleIndex) -> dict[str, ModelName | Layer]:
    """The members an index announces, by the only names they may have."""
    expected: dict[str, ModelName | Layer] = {}
    try:
        for model in index.models:
            ref = names.parse(model.name)
            if ref.full != model.name:
                raise BundleInvalid(f"the index names `{ref.full}` incompletely")
            expected[f"manifests/{ref.path}"] = ref
        for blob in index.blobs:
            layer = _layer(blob.digest, blob.size_bytes)
            expected["blobs/" + layer.digest.replace(":", "-")] = layer
    except (ModelNameInvalid, ManifestInvalid) as error:
        raise BundleInvalid(f"the bundle's index is wrong: {error.message}") from None
    if len(expected) != len(index.models) + len(index.blobs):
        raise BundleInvalid("the bundle's index names something twice")
    return expected


def _plain(item: tarfile.TarInfo, expected: dict[str, ModelName | Layer]) -> str:
    """The member's name, if it is a plain file that the index announces and is not yet read."""
    shown = item.name[:100].encode("unicode_escape").decode()
    if item.name == INDEX:
        return _again(shown)
    if not item.isreg() or item.issparse():
        raise BundleInvalid(f"`{shown}` in the bundle is not a plain file")
    if item.name not in expected:
        return _again(shown)
    return item.name


def _again(shown: str) -> str:
    raise BundleInvalid(f"`{shown}` in the bundle is not in its index, or is there twice")


def _manifest(
    item: tarfile.TarInfo, index: BundleIndex, ref: ModelName, stream: IO[bytes]
) -> Manifest:
    if item.size > manifests.LIMIT_BYTES:
        raise BundleInvalid(f"the manifest of `{ref.display}` is too large")
    try:
        manifest = manifests.parse(stream.read(item.size))
    except ManifestInvalid as error:
        raise BundleInvalid(f"`{ref.display}`: {error.message}") from None
    wanted = next(model.digest for model in index.models if model.name == ref.full)
    if manifest.digest != wanted:
        raise BundleInvalid(f"the manifest of `{ref.display}` is corrupt")
    return manifest


def _complete(index: BundleIndex, found: dict[str, Manifest]) -> None:
    """Every blob that a model needs is in the bundle, with the size its manifest says."""
    there = {(blob.digest, blob.size_bytes) for blob in index.blobs}
    for name, manifest in found.items():
        for layer in manifest.blobs:
            if (layer.digest, layer.size_bytes) not in there:
                raise BundleInvalid(
                    f"`{name}` needs blob {layer.short}, which is not in the bundle"
                )


def _layer(digest: str, size: int) -> Layer:
    return Layer(media_type="", digest=manifests.normal_digest(digest), size_bytes=size)

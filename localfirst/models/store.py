"""
Ollama's store: `manifests/HOST/NAMESPACE/MODEL/TAG` and `blobs/sha256-HEX`.

Either program can use what the other fetched. Ours alone is `.localfirst/` beside the two,
where partial downloads, locks and temporary files are: Ollama prunes foreign files in
`blobs/` and takes any file four levels deep in `manifests/` for a model, and leaves
everything else alone (ollama/ollama `server/images.go`, `manifest/manifest.go`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

import msgspec

from localfirst.config.faults import homeless
from localfirst.errors import ModelNameInvalid, UnknownModel, VerificationFailed
from localfirst.models import manifest as manifests
from localfirst.models import names
from localfirst.models.manifest import Layer, Manifest, ManifestInvalid
from localfirst.models.names import ModelName
from localfirst.transport import files
from localfirst.types import Json
from localfirst.wire.forgiving import UNREADABLE

OURS = ".localfirst"
SMALL_LIMIT_BYTES = 4 * 2**20
STALE_S = 86_400.0
FILE_MODE, FOLDER_MODE = 0o644, 0o755


def default_root(
    environ: Mapping[str, str], platform: str = sys.platform, home: Path | None = None
) -> Path:
    """
    Where Ollama, run by this user, keeps its models.

    `OLLAMA_MODELS`, with the spaces and quotes trimmed that Ollama trims, else
    `.ollama/models` in the home folder, on every platform (ollama `envconfig/config.go`).
    """
    said = environ.get("OLLAMA_MODELS", "").strip().strip("\"'").strip()
    if said:
        return Path(said)
    if home is None:
        variable = "USERPROFILE" if platform == "win32" else "HOME"
        home = Path(environ[variable]) if environ.get(variable) else _user_home()
    return home / ".ollama" / "models"


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """
    A model in the store, with the numbers `ollama list` prints.

    `name` is the shortest spelling, `digest` the SHA-256 of the manifest's bytes in hex,
    `size_bytes` what the manifest declares, `modified_unix` the manifest file's time.
    """

    name: str
    ref: ModelName
    digest: str
    size_bytes: int
    modified_unix: float
    manifest: Manifest


class Store:
    """One store; opening it touches nothing, and reading a store that is not there is empty."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests = root / "manifests"
        self.blobs = root / "blobs"
        self.ours = root / OURS

    # --- reading -----------------------------------------------------------------------

    def models(self) -> list[StoredModel]:
        """Every readable model, newest first; what Ollama would not list is left out."""
        found = [
            stored for path, ref in self._manifest_files() if (stored := self._read(path, ref))
        ]
        return sorted(found, key=lambda stored: (-stored.modified_unix, stored.name))

    def damaged(self) -> list[tuple[Path, str]]:
        """Manifest files that cannot be read, with the reason; they switch Ollama's pruning off."""
        wrong: list[tuple[Path, str]] = []
        for path in self._four_deep():
            try:
                names.from_parts(*path.relative_to(self.manifests).parts)
                manifests.parse(files.read_bounded(path, manifests.LIMIT_BYTES))
            except ModelNameInvalid:
                wrong.append((path, "its path is no model name"))
            except ManifestInvalid as error:
                wrong.append((path, error.message))
            except OSError as error:
                wrong.append((path, error.strerror or str(error)))
        return wrong

    def find(self, name: str | ModelName) -> StoredModel | None:
        """The model of that name, whatever the case of its letters, or None."""
        ref = names.parse(name) if isinstance(name, str) else name
        exact = self.manifest_path(ref)
        if exact.is_file():
            return self._read(exact, ref)
        for path, other in self._manifest_files():
            if other.key == ref.key:
                return self._read(path, other)
        return None

    def get(self, name: str | ModelName) -> StoredModel:
        """As `find`, but raises `UnknownModel` with the nearest names."""
        stored = self.find(name)
        if stored is not None:
            return stored
        known = [model.name for model in self.models()]
        near = get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = "run `localfirst list`"
        raise UnknownModel(f"model `{name}` is not in the store", nearest=near, hint=hint)

    def manifest(self, name: str | ModelName) -> Manifest:
        """A model's manifest; raises `UnknownModel`."""
        return self.get(name).manifest

    def manifest_path(self, ref: ModelName) -> Path:
        """Where a name's manifest lies."""
        return self.manifests.joinpath(*ref.path.parts)

    def blob_path(self, digest: str) -> Path:
        """Where a digest's blob lies; takes `sha256:…` and `sha256-…`."""
        return self.blobs / manifests.normal_digest(digest).replace(":", "-")

    def has_blob(self, layer: Layer) -> bool:
        """Whether the blob is there with the declared size; its content is not read."""
        try:
            return self.blob_path(layer.digest).stat().st_size == layer.size_bytes
        except OSError:
            return False

    def missing(self, manifest: Manifest) -> tuple[Layer, ...]:
        """The blobs of a manifest that are absent or of the wrong size."""
        return tuple(layer for layer in manifest.blobs if not self.has_blob(layer))

    def model_file(self, name: str | ModelName) -> Path:
        """
        The GGUF of a model.

        Raises:
            UnknownModel: no such model.
            VerificationFailed: it has no GGUF, or its file is absent or of the wrong size.
        """
        stored = self.get(name)
        weights = stored.manifest.weights
        if weights is None:
            raise VerificationFailed(
                f"`{stored.name}` has no GGUF", hint="choose a model in GGUF form"
            )
        if not self.has_blob(weights):
            raise VerificationFailed(
                f"the file of `{stored.name}` is absent or cut short",
                hint=f"run `localfirst verify --repair {stored.name}`",
            )
        return self.blob_path(weights.digest)

    def text(self, name: str | ModelName, kind: str) -> str:
        """The text layers of a kind ("template", "system", "license"), joined; "" if none."""
        layers = self.manifest(name).layers
        wanted = [layer for layer in layers if layer.kind == kind]
        return "\n".join(self._small(layer).decode(errors="replace") for layer in wanted)

    def params(self, name: str | ModelName) -> dict[str, Json]:
        """A model's own options (`stop`, `temperature` …)."""
        layer = self.manifest(name).first("params")
        return self._json(layer) if layer else {}

    def config(self, name: str | ModelName) -> dict[str, Json]:
        """A model's config blob (`model_family`, `file_type` …); {} when it is not readable."""
        layer = self.manifest(name).config
        return self._json(layer) if layer else {}

    # --- writing -----------------------------------------------------------------------

    def can_hold(self, ref: ModelName) -> bool:
        """Whether this system's file names can spell *ref*; Windows knows no colon in them."""
        return os.name != "nt" or ":" not in ref.host

    def writable(self) -> str:
        """Empty when models can be added here, else the reason for people."""
        place = files.existing_parent(self.root)
        if not place.is_dir():
            return f"`{place}` is not a folder"
        for folder in (place, self.manifests, self.blobs, self.ours):
            if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
                return f"`{folder}` belongs to {_owner(folder)} and cannot be written"
        return ""

    def prepare(self, *below: str) -> Path:
        """Make the store's folders, and `.localfirst/BELOW`, which is returned."""
        for folder in (self.root, self.blobs, self.manifests):
            self._folder(folder)
        ours = self.ours.joinpath(*below)
        files.ensure_dir(self.ours)
        if below:
            ours.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ours

    def sweep(self, now_unix: float) -> None:
        """Remove temporary files that a killed process left more than a day ago."""
        for path in (self.ours / "tmp").glob("*"):
            with contextlib.suppress(OSError):
                if now_unix - path.lstat().st_mtime > STALE_S:
                    path.unlink()

    def put_blob(self, source: Path, digest: str) -> Path:
        """
        Make a verified file of ours a blob; it appears whole.

        The caller has checked the digest and flushed the bytes. The time is set to now:
        Ollama removes unreferenced blobs older than an hour when it starts.
        """
        target = self.blob_path(digest)
        source.chmod(FILE_MODE)
        os.utime(source)
        self._give_to_owner(source)
        files.replace(source, target)
        return target

    def put_bytes(self, data: bytes, digest: str) -> Path:
        """Make *data* a blob; raises `VerificationFailed` when its digest is another."""
        actual = "sha256:" + hashlib.sha256(data).hexdigest()
        if actual != manifests.normal_digest(digest):
            raise VerificationFailed(f"want {digest}, got {actual}")
        temporary = self._temporary(data, 0o600)
        return self.put_blob(temporary, digest)

    def put_manifest(self, ref: ModelName, data: bytes) -> Path:
        """Make a model visible: write its manifest's bytes verbatim. Blobs come before this."""
        target = self.manifest_path(ref)
        temporary = self._temporary(data, FILE_MODE)
        self._give_to_owner(temporary)
        self._folder(target.parent)
        files.replace(temporary, target)
        return target

    def remove(self, name: str | ModelName) -> list[str]:
        """
        Remove a model and the blobs that no other needs; returns the digests removed.

        While any manifest is unreadable no blob is removed, as it may need them.
        Raises `UnknownModel`.
        """
        stored = self.get(name)
        path = self.manifest_path(stored.ref)
        path.unlink()
        for folder in list(path.parents)[:3]:
            with contextlib.suppress(OSError):
                folder.rmdir()
        return self.remove_unused(stored.manifest.blobs)

    def remove_unused(self, layers: Iterable[Layer]) -> list[str]:
        """Remove those of *layers* that no model needs; returns the digests removed."""
        if self.damaged():
            return []
        needed = self.referenced()
        removed = []
        for layer in layers:
            if layer.digest not in needed:
                with contextlib.suppress(FileNotFoundError):
                    self.blob_path(layer.digest).unlink()
                    removed.append(layer.digest)
        return removed

    def referenced(self) -> set[str]:
        """The digests that some model names."""
        return {layer.digest for stored in self.models() for layer in stored.manifest.blobs}

    # --- inside ------------------------------------------------------------------------

    def _four_deep(self) -> Iterator[Path]:
        for path in sorted(self.manifests.glob("*/*/*/*")):
            if path.is_file():
                yield path

    def _manifest_files(self) -> Iterator[tuple[Path, ModelName]]:
        for path in self._four_deep():
            with contextlib.suppress(ModelNameInvalid):
                yield path, names.from_parts(*path.relative_to(self.manifests).parts)

    def _read(self, path: Path, ref: ModelName) -> StoredModel | None:
        try:
            modified = path.stat().st_mtime
            read = manifests.parse(files.read_bounded(path, manifests.LIMIT_BYTES))
        except (OSError, ManifestInvalid):
            return None
        return StoredModel(
            name=ref.display,
            ref=ref,
            digest=read.digest,
            size_bytes=read.size_bytes,
            modified_unix=modified,
            manifest=read,
        )

    def _small(self, layer: Layer) -> bytes:
        try:
            # A blob may be a link: people share blobs between stores by hand.
            return files.read_bounded(self.blob_path(layer.digest).resolve(), SMALL_LIMIT_BYTES)
        except OSError:
            return b""

    def _json(self, layer: Layer) -> dict[str, Json]:
        try:
            read = msgspec.json.decode(self._small(layer))
        except UNREADABLE:
            return {}
        return read if isinstance(read, dict) else {}

    def _temporary(self, data: bytes, mode: int) -> Path:
        """A flushed file of ours; its name is unlike any other process's."""
        temporary = self.prepare("tmp") / secrets.token_hex(12)
        files.write_atomic(temporary, data, mode)
        return temporary

    def _folder(self, folder: Path) -> None:
        for path in reversed([folder, *folder.parents]):
            if not path.exists():
                path.mkdir(mode=FOLDER_MODE, exist_ok=True)
                self._give_to_owner(path)

    def _give_to_owner(self, path: Path) -> None:
        """As root, hand what we wrote to the store's owner, so that a service can read it."""
        if sys.platform != "win32" and os.geteuid() == 0 and self.root.exists():
            owner = self.root.stat()
            if (owner.st_uid, owner.st_gid) != (0, 0):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _user_home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise homeless("OLLAMA_MODELS") from error


def _owner(path: Path) -> str:
    try:
        return f"`{path.owner()}`"
    except (KeyError, NotImplementedError, OSError):
        return "another user"

"""
A manifest: which blobs make a model.

The format is Docker's image manifest, version 2, with Ollama's media types. A model's
identity is the SHA-256 of the manifest's bytes, so the bytes are kept as they came and
never written anew. Pure.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from localfirst.errors import RegistryRefused
from localfirst.wire.forgiving import UNREADABLE

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_PREFIX = "application/vnd.ollama.image."
LIMIT_BYTES = 4 * 2**20  # a tensor-per-layer model has thousands of layers
SIZE_LIMIT_BYTES = 2**46

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


class ManifestInvalid(RegistryRefused):
    """Raised when bytes that should be a manifest are not one."""

    code = "manifest-invalid"
    hint = "check the registry, mirror or proxy: it sent something else than a manifest"


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A blob's place in a model; `digest` is `sha256:` and 64 lower-case hex digits."""

    media_type: str
    digest: str
    size_bytes: int

    @property
    def kind(self) -> str:
        """The last word of Ollama's media type ("model", "params" …), or the whole type."""
        return self.media_type.removeprefix(LAYER_PREFIX)

    @property
    def short(self) -> str:
        """The twelve digits that progress lines show."""
        return self.digest[7:19]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest read; `digest` is 64 hex digits of the bytes it was read from."""

    config: Layer | None
    layers: tuple[Layer, ...]
    digest: str
    data: bytes

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """Every blob once, in the order Ollama fetches them: layers, then the config."""
        seen: dict[str, Layer] = {}
        for layer in (*self.layers, *((self.config,) if self.config else ())):
            seen.setdefault(layer.digest, layer)
        return tuple(seen.values())

    @property
    def size_bytes(self) -> int:
        """The size that `ollama list` prints: all layers and the config, as declared."""
        config = self.config.size_bytes if self.config else 0
        return config + sum(layer.size_bytes for layer in self.layers)

    def first(self, kind: str) -> Layer | None:
        """The first layer of a kind ("model", "template", …)."""
        return next((layer for layer in self.layers if layer.kind == kind), None)

    @property
    def weights(self) -> Layer | None:
        """The GGUF layer, or None for a model kept in another form."""
        return self.first("model")


class _WireLayer(msgspec.Struct):
    mediaType: str = ""  # noqa: N815 - the format's own spelling
    digest: str = ""
    size: int = 0


class _WireManifest(msgspec.Struct):
    schemaVersion: int = 0  # noqa: N815 - the format's own spelling
    mediaType: str = ""  # noqa: N815 - the format's own spelling
    config: _WireLayer | None = None
    layers: list[_WireLayer] | None = None


def parse(data: bytes) -> Manifest:
    """
    Read a manifest's bytes; whoever fetches them takes no more than `LIMIT_BYTES`.

    Raises:
        ManifestInvalid: not JSON, no layers, a digest that is none, an impossible size.
    """
    try:
        wire = msgspec.json.decode(data, type=_WireManifest)
    except UNREADABLE as error:
        raise ManifestInvalid(f"the manifest is not readable: {error}") from None
    if wire.schemaVersion not in {0, 2}:
        raise ManifestInvalid(f"manifest schema {wire.schemaVersion} is unknown; 2 is understood")
    layers = tuple(_layer(item) for item in wire.layers or ())
    if not layers:
        raise ManifestInvalid("the manifest names no layers")
    config = _layer(wire.config) if wire.config and wire.config.digest else None
    digest = hashlib.sha256(data).hexdigest()
    return Manifest(config=config, layers=layers, digest=digest, data=data)


def normal_digest(text: str) -> str:
    """`sha256:` and lower-case hex from either spelling (`sha256-…`); raises `ManifestInvalid`."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise ManifestInvalid(f"`{text[:80]!a}` is no sha256 digest")
    return f"sha256:{match[1].lower()}"


def _layer(wire: _WireLayer) -> Layer:
    if not 0 <= wire.size <= SIZE_LIMIT_BYTES:
        raise ManifestInvalid(f"a layer of {wire.size} bytes is impossible")
    return Layer(
        media_type=wire.mediaType,
        digest=normal_digest(wire.digest),
        size_bytes=wire.size,
    )


def build(config: Layer, layers: tuple[Layer, ...]) -> bytes:
    """The bytes of a new manifest, spelled as Ollama's `create` spells its own."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _wire(config),
        "layers": [_wire(layer) for layer in layers],
    }
    return msgspec.json.encode(document)


def _wire(layer: Layer) -> dict[str, str | int]:
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size_bytes}

"""What is guarded: identity is the bytes, and nothing that is no manifest passes for one."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from localfirst.models import manifest

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
GOOD = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
    b'"config":{"digest":"' + B.encode() + b'","mediaType":"application/vnd.docker.container.image'
    b'.v1+json","size":5},"layers":[{"digest":"' + A.encode() + b'","mediaType":'
    b'"application/vnd.ollama.image.model","size":100},{"digest":"sha256-' + b"A" * 64 + b'",'
    b'"mediaType":"application/vnd.ollama.image.license","size":7}]}\n'
)


def test_a_manifest_keeps_its_bytes_and_its_digest_is_theirs() -> None:
    read = manifest.parse(GOOD)
    assert read.data == GOOD
    assert read.digest == hashlib.sha256(GOOD).hexdigest()
    assert read.size_bytes == 112
    assert [layer.kind for layer in read.layers] == ["model", "license"]
    assert read.weights is not None and read.weights.size_bytes == 100


def test_a_digest_named_twice_is_one_blob_and_the_config_comes_last() -> None:
    assert [blob.digest for blob in manifest.parse(GOOD).blobs] == [A, B]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>sign in</html>",
        b"{}",
        b"[]",
        b'{"layers":[]}',
        b'{"layers":[{"digest":"md5:1","size":1}]}',
        b'{"layers":[{"digest":"sha256:../../etc/passwd","size":1}]}',
        b'{"layers":[{"digest":"' + A.encode() + b'\\n","size":1}]}',
        b'{"layers":[{"digest":"' + A.encode() + b'","size":-1}]}',
        b'{"layers":[{"digest":"' + A.encode() + b'","size":1e300}]}',
        b'{"schemaVersion":1,"layers":[{"digest":"' + A.encode() + b'","size":1}]}',
        GOOD[:100],
        b"\xff\xfe",
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(manifest.ManifestInvalid):
        manifest.parse(data)


def test_what_old_registries_leave_out_is_not_missed() -> None:
    layer = b'{"digest":"' + A.encode() + b'","size":0}'
    for config in (b"null", b"{}"):
        read = manifest.parse(b'{"config":' + config + b',"layers":[' + layer + b"]}")
        assert read.config is None
        assert (read.size_bytes, [blob.short for blob in read.blobs]) == (0, ["a" * 12])


def test_a_built_manifest_reads_back() -> None:
    layer = manifest.Layer(media_type=manifest.LAYER_PREFIX + "model", digest=A, size_bytes=3)
    config = manifest.Layer(media_type=manifest.CONFIG_TYPE, digest=B, size_bytes=4)
    built = manifest.build(config, (layer,))
    assert manifest.parse(built).blobs == (layer, config)
    assert list(msgspec.json.decode(built)) == ["schemaVersion", "mediaType", "config", "layers"]

"""What is guarded: the store is Ollama's own, listed as Ollama lists it, and never half-written."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path

import pytest

from localfirst.errors import UnknownModel, VerificationFailed
from localfirst.models import manifest, names
from localfirst.models.manifest import CONFIG_TYPE, LAYER_PREFIX, Layer
from localfirst.models.store import Store, default_root


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(kind: str, data: bytes) -> Layer:
    media = CONFIG_TYPE if kind == "config" else LAYER_PREFIX + kind
    return Layer(media_type=media, digest=digest(data), size_bytes=len(data))


def add(store: Store, name: str, **blobs: bytes) -> bytes:
    """Put a model of small blobs into *store* and return its manifest's bytes."""
    blobs.setdefault("config", b'{"model_family":"llama"}')
    for data in blobs.values():
        store.put_bytes(data, digest(data))
    layers = tuple(layer(kind, data) for kind, data in blobs.items() if kind != "config")
    built = manifest.build(layer("config", blobs["config"]), layers)
    store.put_manifest(names.parse(name), built)
    return built


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({"HOME": "/home/u"}, "linux", "/home/u/.ollama/models"),
        ({"HOME": "/Users/u"}, "darwin", "/Users/u/.ollama/models"),
        ({"USERPROFILE": "/C/u", "HOME": "/h"}, "win32", "/C/u/.ollama/models"),
        ({"HOME": "/home/u", "OLLAMA_MODELS": "/data/models"}, "linux", "/data/models"),
        ({"HOME": "/home/u", "OLLAMA_MODELS": ' "/my models" '}, "linux", "/my models"),
        ({"HOME": "/home/u", "OLLAMA_MODELS": "  "}, "linux", "/home/u/.ollama/models"),
    ],
)
def test_the_default_place_is_ollamas(
    environ: dict[str, str], platform: str, expected: str
) -> None:
    assert default_root(environ, platform) == Path(expected)


def test_a_store_that_is_not_there_is_empty_and_stays_absent(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.models() == [] and store.damaged() == [] and store.writable() == ""
    assert not store.root.exists()


def test_a_model_is_listed_with_the_digest_and_size_that_ollama_prints(tmp_path: Path) -> None:
    store = Store(tmp_path)
    built = add(store, "me/tiny:v1", model=b"GGUF" * 10, template=b"{{ .Prompt }}")
    (stored,) = store.models()
    assert stored.name == "me/tiny:v1"
    assert stored.digest == hashlib.sha256(built).hexdigest()
    assert stored.size_bytes == 40 + 13 + 24
    assert stored.manifest.data == built
    on_disk = tmp_path / "manifests" / "registry.ollama.ai" / "me" / "tiny" / "v1"
    assert on_disk.read_bytes() == built
    assert stored.modified_unix == on_disk.stat().st_mtime


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_modes_are_those_ollama_writes_and_ours_are_private(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = Store(tmp_path / "models")
        add(store, "tiny", model=b"x")
    finally:
        os.umask(before)
    (path,) = list(store.manifests.glob("*/*/*/*"))
    blob = store.blob_path(digest(b"x"))
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, blob)] == [0o644, 0o644]
    assert stat.S_IMODE(store.ours.stat().st_mode) == 0o700
    assert not list(store.blobs.glob(".*")) and not list((store.ours / "tmp").iterdir())


def test_parts_of_a_model_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "tiny", model=b"GGUF", params=b'{"stop":["x"]}', system=b"be brief")
    assert store.model_file("tiny").read_bytes() == b"GGUF"
    assert store.params("tiny") == {"stop": ["x"]}
    assert store.text("tiny", "system") == "be brief"
    assert store.text("tiny", "template") == ""
    assert store.config("tiny") == {"model_family": "llama"}


def test_a_name_is_found_whatever_its_case_and_near_ones_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "UPPER:Case", model=b"x")
    assert store.get("upper:case").name == "UPPER:Case"
    add(store, "llama3.2:3b", model=b"x")
    with pytest.raises(UnknownModel) as caught:
        store.get("llama3.2:3c")
    assert caught.value.nearest == ("llama3.2:3b",)


def test_a_blob_of_the_wrong_size_is_not_trusted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "tiny", model=b"GGUF" * 10)
    store.blob_path(digest(b"GGUF" * 10)).write_bytes(b"GGUF")
    assert [item.kind for item in store.missing(store.manifest("tiny"))] == ["model"]
    with pytest.raises(VerificationFailed, match="cut short"):
        store.model_file("tiny")


def test_a_model_that_cannot_be_run_says_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "words:v1", template=b"{{ .Prompt }}")
    with pytest.raises(VerificationFailed, match="has no GGUF") as caught:
        store.model_file("words:v1")
    assert "GGUF" in caught.value.hint
    add(store, "torn:v1", model=b"GGUF")
    store.blob_path(digest(b"GGUF")).unlink()
    with pytest.raises(VerificationFailed, match="absent or cut short") as caught:
        store.model_file("torn:v1")
    assert "verify --repair torn:v1" in caught.value.hint
    with pytest.raises(UnknownModel) as missed:
        store.model_file("quite-another")
    assert missed.value.nearest == () and "localfirst list" in missed.value.hint


def test_a_text_that_is_no_utf_8_is_shown_as_far_as_it_can_be(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "odd:v1", model=b"GGUF", license=b"\xff free")
    assert store.text("odd:v1", "license") == "\ufffd free"


@pytest.mark.parametrize("folder", ["", "manifests", "blobs", ".localfirst"])
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_each_folder_of_a_store_must_be_writable(tmp_path: Path, folder: str) -> None:
    store = Store(tmp_path)
    store.prepare()
    assert store.writable() == ""
    (tmp_path / folder).chmod(0o500)
    try:
        assert "cannot be written" in store.writable()
    finally:
        (tmp_path / folder).chmod(0o700)


def test_stray_files_are_no_models_and_are_named(tmp_path: Path) -> None:
    """The very files of the recorded case `store/odd_manifest_files`."""
    store = Store(tmp_path)
    add(store, "short:tag", model=b"x")
    folder = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "short"
    (folder / "deep").mkdir()
    for stray in (".DS_Store", "._latest", "deep/er", "latest.tmp"):
        (folder / stray).write_bytes(b"{")
    (folder.parent / "loose").write_bytes(b"x")
    assert [stored.name for stored in store.models()] == ["short:tag"]
    assert sorted(path.name for path, _ in store.damaged()) == [
        ".DS_Store",
        "._latest",
        "latest.tmp",
    ]


def test_removing_keeps_what_another_model_needs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "one", model=b"shared", template=b"mine")
    add(store, "two", model=b"shared")
    assert store.remove("one") == [digest(b"mine")]
    assert store.model_file("two").read_bytes() == b"shared"
    assert store.find("one") is None
    assert sorted(store.remove("two")) == sorted([digest(b"shared"), *_config()])
    assert list(store.blobs.iterdir()) == [] and list(store.manifests.iterdir()) == []


def _config() -> list[str]:
    return [digest(b'{"model_family":"llama"}')]


def test_removing_keeps_every_blob_while_a_manifest_is_unreadable(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "one", model=b"x")
    add(store, "bad", model=b"x")
    store.manifest_path(names.parse("bad")).write_bytes(b'{"half')
    assert store.remove("one") == []
    assert store.blob_path(digest(b"x")).exists()


def test_bytes_of_another_digest_never_become_a_blob(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(VerificationFailed):
        store.put_bytes(b"x", digest(b"y"))
    assert not store.blobs.exists() or list(store.blobs.iterdir()) == []


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_store_of_another_user_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir(mode=0o555)
    assert "cannot be written" in Store(tmp_path).writable()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX owners")
def test_a_store_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "not a folder" in Store(tmp_path / "file" / "models").writable()


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root gives files away"
)
def test_root_hands_what_it_writes_to_the_stores_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    store = Store(tmp_path)
    add(store, "tiny", model=b"x")
    written = [*store.manifests.rglob("*"), *store.blobs.rglob("*")]
    assert {path.stat().st_uid for path in written} == {12345}

"""What is guarded: a bundle carries models digest for digest, and nothing else gets in."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from localfirst.errors import (
    InsufficientResources,
    InvalidRequest,
    UnknownModel,
    VerificationFailed,
)
from localfirst.models import bundle, bundle_read, manifest, names, parts
from localfirst.models.bundle import Export
from localfirst.models.bundle_read import BundleCheck, Import
from localfirst.models.manifest import CONFIG_TYPE, LAYER_PREFIX, Layer
from localfirst.models.parts import BundleInvalid, PartReader, parts_of
from localfirst.models.store import Store

WEIGHTS = random.Random(5).randbytes(300_000)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def add(store: Store, name: str, **blobs: bytes) -> None:
    blobs.setdefault("config", b"{}")
    layers = []
    for kind, data in blobs.items():
        store.put_bytes(data, digest(data))
        media = CONFIG_TYPE if kind == "config" else LAYER_PREFIX + kind
        layers.append(Layer(media_type=media, digest=digest(data), size_bytes=len(data)))
    config = layers.pop()
    store.put_manifest(names.parse(name), manifest.build(config, tuple(layers)))


@pytest.fixture
def source(tmp_path: Path) -> Store:
    store = Store(tmp_path / "source")
    add(store, "tiny", model=WEIGHTS, template=b"shared")
    add(store, "hf.co/user/repo-GGUF:Q4_K_M", model=b"other", template=b"shared")
    return store


ALL = ("tiny", "hf.co/user/repo-GGUF:Q4_K_M")


def test_models_arrive_with_the_same_digests_on_the_other_side(
    source: Store, tmp_path: Path
) -> None:
    path = Export(source, ALL, tmp_path / "models.lfb").run()
    target = Store(tmp_path / "target")
    Import(target, path).run()
    there = {model.name: model.digest for model in target.models()}
    assert there == {model.name: model.digest for model in source.models()}
    assert target.model_file("tiny").read_bytes() == WEIGHTS
    assert list((target.ours / "import").iterdir()) == []


def test_the_same_models_give_the_same_bytes_and_plain_tar_reads_them(
    source: Store, tmp_path: Path
) -> None:
    one = Export(source, ALL, tmp_path / "one.lfb").run()
    two = Export(source, ALL, tmp_path / "two.lfb").run()
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as tar:
        listed = tar.getnames()
    assert listed[0] == "localfirst-bundle.json"
    assert sum(name.startswith("blobs/") for name in listed) == 4  # the shared one once


def test_info_tells_what_is_inside_and_check_reads_it_all(source: Store, tmp_path: Path) -> None:
    path = Export(source, ("tiny",), tmp_path / "models.lfb").run()
    index = bundle_read.info(path)
    assert [model.name for model in index.models] == ["registry.ollama.ai/library/tiny:latest"]
    check = BundleCheck(path)
    assert check.run() == index
    assert check.completed_bytes == check.total_bytes == index.size_bytes


@pytest.mark.parametrize("limit", [1, 1000, 4096, 100_000, 10_000_000])
def test_a_split_bundle_is_read_as_one(source: Store, tmp_path: Path, limit: int) -> None:
    if limit == 1:
        limit = 10_240  # a part a tar record
    first = Export(source, ALL, tmp_path / "models.lfb", split_bytes=limit).run()
    assert first.name == "models.lfb.001"
    found = parts_of(tmp_path / "models.lfb")
    assert found == parts_of(first)
    assert all(path.stat().st_size <= limit for path in found)
    target = Store(tmp_path / "target")
    Import(target, tmp_path / "models.lfb").run()
    assert target.model_file("tiny").read_bytes() == WEIGHTS


def test_a_part_is_never_larger_than_fat32_holds(source: Store, tmp_path: Path) -> None:
    assert Export(source, ALL, tmp_path / "x", split_bytes=4 * 2**30)._split_bytes == 2**32 - 1


def test_a_missing_part_is_noticed(source: Store, tmp_path: Path) -> None:
    Export(source, ALL, tmp_path / "models.lfb", split_bytes=100_000).run()
    parts.part_path(tmp_path / "models.lfb", 1).unlink()
    target = Store(tmp_path / "target")
    with pytest.raises(BundleInvalid):
        Import(target, tmp_path / "models.lfb").run()
    assert target.models() == []


def test_a_corrupt_blob_is_not_exported_and_no_file_is_left(source: Store, tmp_path: Path) -> None:
    blob = source.blob_path(digest(WEIGHTS))
    blob.write_bytes(b"x" + WEIGHTS[1:])
    with pytest.raises(VerificationFailed, match="corrupt"):
        Export(source, ALL, tmp_path / "models.lfb").run()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_export_that_is_given_up_leaves_no_file(source: Store, tmp_path: Path) -> None:
    add(source, "large", model=random.Random(1).randbytes(40_000_000))

    async def scene() -> Export:
        export = Export(source, ("large",), tmp_path / "models.lfb")
        async with aclosing(export.watch()) as seen:
            async for progress in seen:
                if progress.completed_bytes:
                    break
        return export

    export = asyncio.run(scene())
    assert export.result is None
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_progress_of_an_import_grows_to_the_whole(source: Store, tmp_path: Path) -> None:
    path = Export(source, ALL, tmp_path / "models.lfb").run()

    async def scene() -> list[int]:
        work = Import(Store(tmp_path / "target"), path)
        seen = [progress.completed_bytes async for progress in work.watch()]
        assert work.result is not None and seen[-1] == work.total_bytes
        return seen

    seen = asyncio.run(scene())
    assert seen == sorted(seen)


def test_an_unknown_model_is_not_exported(source: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        Export(source, ("nope",), tmp_path / "models.lfb")


@pytest.mark.parametrize("seed", range(12))
def test_a_bundle_cut_or_bent_anywhere_imports_nothing(
    source: Store, tmp_path: Path, seed: int
) -> None:
    path = Export(source, ALL, tmp_path / "models.lfb").run()
    data = bytearray(path.read_bytes())
    rng = random.Random(seed)
    if seed % 2:
        del data[rng.randrange(512, 300_000) :]
    else:
        with tarfile.open(path) as tar:
            item = rng.choice([m for m in tar.getmembers() if m.size])
        data[item.offset_data + rng.randrange(item.size)] ^= 0x55
    path.write_bytes(data)
    target = Store(tmp_path / "target")
    with pytest.raises(BundleInvalid):
        Import(target, path).run()
    assert target.models() == [] and list(target.blobs.glob("*")) == []


def test_an_import_that_was_ended_goes_on_with_what_was_checked(
    source: Store, tmp_path: Path
) -> None:
    path = Export(source, ALL, tmp_path / "models.lfb").run()
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(whole[: last.offset_data])
    target = Store(tmp_path / "target")
    with pytest.raises(BundleInvalid):
        Import(target, path).run()
    waiting = {entry.name: entry.stat().st_ino for entry in (target.ours / "import").iterdir()}
    assert len(waiting) >= 3
    path.write_bytes(whole)
    Import(target, path).run()
    inodes = {entry.name: entry.stat().st_ino for entry in target.blobs.iterdir()}
    assert all(inodes[name] == inode for name, inode in waiting.items() if name in inodes)
    assert len(target.models()) == 2


def test_importing_again_changes_nothing(source: Store, tmp_path: Path) -> None:
    path = Export(source, ALL, tmp_path / "models.lfb").run()
    target = Store(tmp_path / "target")
    Import(target, path).run()
    before = {entry.name: entry.stat().st_mtime_ns for entry in target.blobs.iterdir()}
    Import(target, path).run()
    assert before == {entry.name: entry.stat().st_mtime_ns for entry in target.blobs.iterdir()}


def test_a_full_disk_refuses_before_the_first_byte(source: Store, tmp_path: Path) -> None:
    path = Export(source, ALL, tmp_path / "models.lfb").run()
    with pytest.raises(InsufficientResources):
        Import(Store(tmp_path / "target"), path, reserve_bytes=2**60).run()
    assert not (tmp_path / "target").exists()


# --- hostile bundles -----------------------------------------------------------------------


def index(**changes: object) -> bytes:
    words = {"format": 1, "models": [], "blobs": []}
    return json.dumps({**words, **changes}).encode()


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for item, data in members:
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return path


def file(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, link
    return item


BLOB = b"payload"
ONE = index(blobs=[{"digest": digest(BLOB), "size_bytes": len(BLOB)}])
NAME = "blobs/" + digest(BLOB).replace(":", "-")
FIRST = (bundle.INDEX, ONE)

HOSTILE: dict[str, Callable[[], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "absolute path": lambda: [(file("/etc/passwd"), b"x")],
    "path upwards": lambda: [(file("../../x"), b"x")],
    "path upwards inside": lambda: [(file("blobs/../../x"), b"x")],
    "a name not in the index": lambda: [(file("blobs/extra"), b"x")],
    "symbolic link": lambda: [(special(NAME, tarfile.SYMTYPE, "/etc/passwd"), b"")],
    "hard link": lambda: [(special(NAME, tarfile.LNKTYPE, "/etc/passwd"), b"")],
    "device": lambda: [(special(NAME, tarfile.CHRTYPE), b"")],
    "pipe": lambda: [(special(NAME, tarfile.FIFOTYPE), b"")],
    "folder": lambda: [(special("blobs", tarfile.DIRTYPE), b"")],
    "twice the same": lambda: [(file(NAME), BLOB), (file(NAME), BLOB)],
    "a second index": lambda: [(file(NAME), BLOB), (file(bundle.INDEX), ONE)],
    "other content": lambda: [(file(NAME), b"PAYLOAD")],
    "other size": lambda: [(file(NAME), b"payload+")],
    "missing": list,
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_a_bundle_that_plays_tricks_is_refused(tmp_path: Path, trick: str) -> None:
    path = tar_of(tmp_path / "x.lfb", (file(FIRST[0]), FIRST[1]), *HOSTILE[trick]())
    target = Store(tmp_path / "target")
    with pytest.raises(BundleInvalid):
        Import(target, path).run()
    assert list(target.blobs.glob("*")) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) in (
        ["target", "x.lfb"],
        ["x.lfb"],
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        index(format=2),
        index(extra=1),
        index(blobs=[{"digest": "sha256:../x", "size_bytes": 1}]),
        index(models=[{"name": "../../x", "digest": "0" * 64, "size_bytes": 1}]),
        index(models=[{"name": "tiny", "digest": "0" * 64, "size_bytes": 1}]),
        index(blobs=[{"digest": digest(BLOB), "size_bytes": 7}] * 2),
        index(blobs=[{"digest": digest(BLOB), "size_bytes": -1}]),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tar_of(tmp_path / "x.lfb", (file(bundle.INDEX), text), (file(NAME), BLOB))
    with pytest.raises(BundleInvalid):
        Import(Store(tmp_path / "target"), path).run()


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(os.urandom(5000))
    with pytest.raises(BundleInvalid):
        bundle_read.info(tmp_path / "x")
    with pytest.raises(InvalidRequest, match="is not there"):
        bundle_read.info(tmp_path / "absent")


def test_a_header_that_asks_for_everything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with PartReader([tmp_path / "x"]) as reader, pytest.raises(BundleInvalid):
        reader.read(2**62)


def test_a_model_whose_blob_is_not_in_the_bundle_is_refused(source: Store, tmp_path: Path) -> None:
    stored = source.get("tiny")
    announced = index(models=[{"name": stored.ref.full, "digest": stored.digest, "size_bytes": 1}])
    path = tar_of(
        tmp_path / "x.lfb",
        (file(bundle.INDEX), announced),
        (file(f"manifests/{stored.ref.path}"), stored.manifest.data),
    )
    with pytest.raises(BundleInvalid, match="not in the bundle"):
        Import(Store(tmp_path / "target"), path).run()

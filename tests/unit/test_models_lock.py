"""What is guarded: a lock pins bytes, is one file for one content, and says what has moved."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from localfirst.errors import ConfigError, LocalFirstError
from localfirst.models import lock, locking, manifest, names
from localfirst.models.lock import Lock, LockedBlob, LockedModel
from localfirst.models.pull import Puller
from localfirst.models.store import Store
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock
from tests.fakes.registry import FakeRegistry, running

MODEL = LockedModel(
    name="llama3.2:3b",
    digest="ab" * 32,
    size_bytes=12,
    blobs=(LockedBlob(digest="sha256:" + "cd" * 32, size_bytes=12, kind="model"),),
)
OTHER = LockedModel(name="qwen3:4b", digest="ef" * 32, size_bytes=1)


def test_a_lock_reads_back_as_it_was_written() -> None:
    written = lock.write(lock.of([OTHER, MODEL]))
    assert lock.read(written) == Lock(models=(MODEL, OTHER))
    assert lock.write(lock.read(written)) == written
    assert lock.write(lock.of([MODEL, OTHER])) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 2",
        "version = 1\nextra = 1",
        "version = 1\n[[model]]\nname = 'x'",
        "version = 1\n[[model]]\nname = '../x'\ndigest = '" + "ab" * 32 + "'\nsize_bytes = 1",
        "version = 1\n[[model]]\nname = 'x'\ndigest = 'short'\nsize_bytes = 1",
        "version = 1\n[[model]]\nname = 'x'\ndigest = 7\nsize_bytes = 1",
        "version = 1\n[[model]]\nname = 'x'\ndigest = '" + "ab" * 32 + "'\nsize_bytes = 1\n"
        "blobs = [{digest = 'sha256:../x', size_bytes = 1, kind = 'model'}]",
        "not toml",
    ],
)
def test_what_is_no_lock_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lock.read(text, source="models.lock")
    assert "models.lock" in caught.value.message and caught.value.exit_code == 2
    assert "localfirst lock" in caught.value.hint and caught.value.code == "lock-invalid"


def test_a_lock_says_what_it_is_and_names_every_blob() -> None:
    layer = manifest.Layer(
        media_type=manifest.LAYER_PREFIX + "model", digest="sha256:" + "cd" * 32, size_bytes=12
    )
    config = manifest.Layer(
        media_type=manifest.CONFIG_TYPE, digest="sha256:" + "ef" * 32, size_bytes=3
    )
    one = lock.locked("llama3.2:3b", manifest.parse(manifest.build(config, (layer,))))
    assert (one.name, one.size_bytes) == ("llama3.2:3b", 15)
    assert [(blob.kind, blob.size_bytes) for blob in one.blobs] == [
        ("model", 12), (manifest.CONFIG_TYPE, 3),
    ]  # fmt: skip
    assert lock.write(lock.of([one])).startswith("# ")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    with running(tmp_path_factory.mktemp("registry")) as running_one:
        running_one.publish(model=random.Random(1).randbytes(1_500_000))
        yield running_one


def puller_into(folder: Path) -> Puller:
    return Puller(
        store=Store(folder),
        settings=PullSettings(reserve_disk_bytes=0),
        clock=SystemClock(),
        environ={},
        pauses_s=(0.01,),
    )


def test_two_machines_get_the_same_bytes_and_a_moved_tag_is_refused(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def machine(name: str, locked: Lock) -> str:
        puller = puller_into(tmp_path / name)
        try:
            for model in locked.models:
                await puller.start(model.name, digest=model.digest, any_host=True).wait()
            return puller.store.get(fake.name()).digest
        finally:
            await puller.aclose()

    async def scene() -> None:
        maker = puller_into(tmp_path / "maker")
        made = await locking.resolve([fake.name()], store=maker.store, registry=maker.registry)
        await maker.aclose()
        path = tmp_path / "models.lock"
        locking.write_file(path, made)
        locked = locking.read_file(path)
        assert await machine("one", locked) == locked.models[0].digest
        fake.knobs(reset=True)
        assert await machine("one", locked) == locked.models[0].digest
        assert fake.requests() == []  # the second run asks nobody
        fake.publish(model=b"other" * 300_000)
        with pytest.raises(LocalFirstError) as caught:
            await machine("two", locked)
        assert (caught.value.code, caught.value.exit_code) == ("lock-moved", 5)
        store = Store(tmp_path / "one")
        asking = puller_into(tmp_path / "one")
        (moved,) = await locking.compare(store.models(), asking.registry)
        await asking.aclose()
        assert moved.outdated and moved.digest == locked.models[0].digest
        assert {entry["method"] for entry in fake.requests()[-1:]} == {"HEAD"}

    asyncio.run(scene())


def test_a_registry_that_tells_nothing_by_head_is_asked_by_get(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene() -> tuple[str, str]:
        puller = puller_into(tmp_path)
        await puller.start(fake.name()).wait()
        fake.knobs(reset=True, no_head=True)
        (same,) = await locking.compare(puller.store.models(), puller.registry)
        await puller.aclose()
        return same.latest, same.digest

    latest, digest = asyncio.run(scene())
    assert latest == digest


def test_a_registry_that_is_down_is_told_for_each_model(tmp_path: Path) -> None:
    async def scene() -> list[locking.Moved]:
        puller = puller_into(tmp_path)
        store = puller.store
        ref_manifest = manifest.build(
            manifest.Layer(media_type="c", digest="sha256:" + "a" * 64, size_bytes=1),
            (manifest.Layer(media_type="m", digest="sha256:" + "b" * 64, size_bytes=1),),
        )
        store.put_manifest(names.parse("127.0.0.1:1/library/x"), ref_manifest)
        found = await locking.compare(store.models(), puller.registry)
        await puller.aclose()
        return found

    (moved,) = asyncio.run(scene())
    assert moved.error and not moved.outdated


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"\xff\xfe", "decode"), (b"[", "some.lock")]
)
def test_an_unreadable_lock_names_itself(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "some.lock"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        locking.read_file(path)
    assert "some.lock" in caught.value.message
    assert caught.value.code == "lock-invalid"
    assert "localfirst lock" in caught.value.hint


def test_a_lock_is_there_for_others_to_read(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    locking.write_file(path, lock.of([MODEL]))
    assert path.stat().st_mode & 0o777 == 0o644
    assert locking.read_file(path) == lock.of([MODEL])


def test_what_is_stored_is_pinned_as_it_is_unless_the_latest_is_wanted(tmp_path: Path) -> None:
    async def scene(fake: FakeRegistry) -> None:
        puller = puller_into(tmp_path / "store")
        await puller.start(fake.name()).wait()
        stored = puller.store.get(fake.name()).digest
        fake.publish(model=b"newer" * 1000)
        fake.knobs(reset=True)
        digests = []
        for latest in (False, True):
            found = await locking.resolve(
                [fake.name()], store=puller.store, registry=puller.registry, latest=latest
            )
            digests += [model.digest for model in found.models]
            assert bool(fake.requests()) is latest
        assert digests[0] == stored != digests[1]
        await puller.aclose()

    with running(tmp_path / "registry") as fake:
        fake.publish(model=b"older" * 1000)
        asyncio.run(scene(fake))

"""What is guarded: every kind of damage is found, told by model, and mended by what is bad only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from localfirst.errors import UnknownModel
from localfirst.events import Progress
from localfirst.models.pull import Puller
from localfirst.models.store import Store
from localfirst.models.verify import BlobState, Report, Verification, remove_orphans, repair
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock
from tests.fakes.registry import FakeRegistry, running

WEIGHTS = random.Random(4).randbytes(3_000_000)
OTHER = random.Random(5).randbytes(1_200_000)
TEMPLATE = b"{{ .Prompt }}"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    with running(tmp_path_factory.mktemp("registry")) as fake:
        fake.publish(model=WEIGHTS, template=TEMPLATE)
        fake.publish("library/other", model=OTHER, template=TEMPLATE)
        yield fake


@pytest.fixture
def fake(shared: FakeRegistry) -> FakeRegistry:
    shared.knobs(reset=True)
    return shared


async def pulled(folder: Path, fake: FakeRegistry) -> Puller:
    puller = Puller(
        store=Store(folder),
        settings=PullSettings(reserve_disk_bytes=0),
        clock=SystemClock(),
        environ={},
        pauses_s=(0.01, 0.01),
    )
    await puller.start(fake.name()).wait()
    await puller.start(fake.name("library/other")).wait()
    fake.knobs(reset=True)
    return puller


def damage(store: Store, kind: str) -> None:
    path = store.blob_path(digest(WEIGHTS))
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        os.truncate(path, 2_000_000)
    elif kind == "oversize":
        path.write_bytes(WEIGHTS + b"x")
    elif kind == "corrupt":
        path.write_bytes(WEIGHTS[:-1] + b"!")


@pytest.mark.parametrize("kind", ["missing", "truncated", "oversize", "corrupt"])
def test_damage_is_found_and_mended(tmp_path: Path, fake: FakeRegistry, kind: str) -> None:
    async def scene() -> tuple[Report, list[str], Report]:
        puller = await pulled(tmp_path, fake)
        damage(puller.store, kind)
        before = Verification(puller.store).run()
        jobs = [job.name async for job in repair(puller.store, puller, before)]
        after = Verification(puller.store).run()
        await puller.aclose()
        return before, jobs, after

    before, jobs, after = asyncio.run(scene())
    (bad,) = before.bad
    assert (bad.state, bad.digest, bad.models) == (kind, digest(WEIGHTS), (fake.name(),))
    assert jobs == [fake.name()]
    assert after.ok and not after.orphaned
    assert Store(tmp_path).model_file(fake.name()).read_bytes() == WEIGHTS
    blobs = {entry["path"].split("/")[-1] for entry in fake.requests("registry")}
    assert blobs == {digest(WEIGHTS)}  # nothing but the bad blob was asked for
    ranges = [entry["range"] for entry in fake.requests("cdn")]
    if kind == "truncated":
        assert "bytes=2000000-2999999" in ranges  # what was there is kept


def test_a_truncated_file_with_a_false_beginning_is_fetched_whole(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene() -> bool:
        puller = await pulled(tmp_path, fake)
        puller.store.blob_path(digest(WEIGHTS)).write_bytes(b"?" * 2_000_000)
        report = Verification(puller.store).run()
        async for job in repair(puller.store, puller, report):
            await job.wait()
        await puller.aclose()
        return Verification(puller.store).run().ok

    assert asyncio.run(scene())


def test_a_bad_file_comes_back_when_nothing_better_can_be_had(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene() -> None:
        puller = await pulled(tmp_path, fake)
        damage(puller.store, "corrupt")
        report = Verification(puller.store).run()
        fake.knobs(down=True)
        async for _ in repair(puller.store, puller, report):
            pass
        await puller.aclose()

    asyncio.run(scene())
    assert Store(tmp_path).blob_path(digest(WEIGHTS)).read_bytes() == WEIGHTS[:-1] + b"!"


def test_a_blob_that_two_models_share_names_both(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene() -> Report:
        puller = await pulled(tmp_path, fake)
        puller.store.blob_path(digest(TEMPLATE)).unlink()
        await puller.aclose()
        return Verification(puller.store).run()

    report = asyncio.run(scene())
    assert report.bad_models == (fake.name("library/other"), fake.name())


def test_one_model_alone_is_checked(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene() -> Puller:
        puller = await pulled(tmp_path, fake)
        damage(puller.store, "corrupt")
        await puller.aclose()
        return puller

    store = asyncio.run(scene()).store
    assert Verification(store, [fake.name("library/other")]).run().ok
    assert not Verification(store, [fake.name()]).run().ok
    with pytest.raises(UnknownModel):
        Verification(store, ["nope"])


def test_progress_grows_to_the_whole_and_then_the_report_is_there(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene() -> tuple[list[Progress], Verification]:
        puller = await pulled(tmp_path, fake)
        check = Verification(puller.store)
        seen = [progress async for progress in check.watch()]
        await puller.aclose()
        return seen, check

    seen, check = asyncio.run(scene())
    assert check.result is not None and check.result.ok
    done = [progress.completed_bytes for progress in seen]
    assert done == sorted(done)
    assert check.completed_bytes == check.total_bytes


def test_stray_files_are_orphans_and_only_old_ones_are_removed(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene() -> Store:
        puller = await pulled(tmp_path, fake)
        await puller.aclose()
        return puller.store

    store = asyncio.run(scene())
    old, new = store.blobs / ("sha256-" + "1" * 64), store.blobs / ".hidden"
    for path in (old, new):
        path.write_bytes(b"12345")
    os.utime(old, (0, 0))
    report = Verification(store).run()
    assert report.ok and len(report.orphaned) == 2
    assert remove_orphans(store, report, now_unix=new.stat().st_mtime + 10) == 5
    assert not old.exists() and new.exists()


def test_while_a_manifest_is_unreadable_nothing_counts_as_orphaned(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene() -> Store:
        puller = await pulled(tmp_path, fake)
        await puller.aclose()
        return puller.store

    store = asyncio.run(scene())
    stored = store.get(fake.name())
    store.manifest_path(stored.ref).write_bytes(b"{")
    report = Verification(store).run()
    assert not report.ok and len(report.damaged) == 1
    assert all(blob.state is not BlobState.ORPHANED for blob in report.blobs)

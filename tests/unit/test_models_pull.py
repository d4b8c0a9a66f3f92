"""What is guarded: a pull from a real registry ends in Ollama's store, whole and verified."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from localfirst.errors import (
    InsufficientResources,
    PrivacyRefused,
    PullCancelled,
    RegistryRefused,
)
from localfirst.events import Progress
from localfirst.models import pulls
from localfirst.models.manifest import Manifest
from localfirst.models.pull import Puller
from localfirst.models.pull_job import JobState
from localfirst.models.pull_plan import PullPlan
from localfirst.models.pull_worker import Limiter
from localfirst.models.store import Store
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock
from tests.fakes.registry import FakeRegistry, running

T = TypeVar("T")
WEIGHTS = random.Random(7).randbytes(5_000_000)
SMALL = {"template": b"{{ .Prompt }}", "params": b'{"stop":["x"]}'}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    with running(tmp_path_factory.mktemp("registry")) as fake:
        fake.publish(model=WEIGHTS, **SMALL)
        yield fake


@pytest.fixture
def fake(shared: FakeRegistry) -> FakeRegistry:
    shared.knobs(reset=True)
    return shared


def pulling(
    tmp_path: Path,
    scene: Callable[[Puller], Awaitable[T]],
    *,
    settings: PullSettings | None = None,
    **options: Any,
) -> T:
    """Run *scene* with a puller into an empty store below *tmp_path*."""

    async def main() -> T:
        options.setdefault("environ", {"HOME": str(tmp_path)})
        puller = Puller(
            store=Store(tmp_path / "models"),
            settings=settings or PullSettings(stall_s=5.0, reserve_disk_bytes=0),
            clock=SystemClock(),
            pauses_s=(0.01, 0.02, 0.02, 0.02),
            **options,
        )
        try:
            async with asyncio.timeout(30):
                return await scene(puller)
        finally:
            await puller.aclose()

    return asyncio.run(main())


def test_a_model_lands_in_the_store_as_ollama_would_have_put_it(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene(puller: Puller) -> list[Progress]:
        return [progress async for progress in puller.start(fake.name()).watch()]

    seen = pulling(tmp_path, scene)
    store = Store(tmp_path / "models")
    stored = store.get(fake.name())
    published = fake.folder / "manifests/registry.ollama.ai/library/tiny/latest"
    assert stored.manifest.data == published.read_bytes()
    assert store.model_file(fake.name()).read_bytes() == WEIGHTS
    assert store.params(fake.name()) == {"stop": ["x"]}
    assert {path.name for path in store.blobs.iterdir()} == {
        blob.digest.replace(":", "-") for blob in stored.manifest.blobs
    }
    assert not list((store.ours / "partial").iterdir()) and not list(
        (store.ours / "pulls").iterdir()
    )
    total = sum(blob.size_bytes for blob in stored.manifest.blobs)
    assert (seen[-1].completed_bytes, seen[-1].total_bytes) == (total, total)
    completed = [progress.completed_bytes for progress in seen]
    assert completed == sorted(completed)


def test_a_second_pull_asks_for_the_manifest_only(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene(puller: Puller) -> None:
        await puller.start(fake.name()).wait()
        fake.knobs(reset=True)
        await puller.start(fake.name()).wait()

    pulling(tmp_path, scene)
    assert [entry["path"] for entry in fake.requests()] == ["/v2/library/tiny/manifests/latest"]


def test_two_starts_are_one_job(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene(puller: Puller) -> bool:
        one, two = puller.start(fake.name()), puller.start(fake.name().upper())
        await asyncio.gather(one.wait(), two.wait())
        return one is two

    assert pulling(tmp_path, scene)


def test_two_models_that_share_a_blob_transfer_it_once(tmp_path: Path, fake: FakeRegistry) -> None:
    fake.publish("library/twin", model=WEIGHTS, template=b"another")
    fake.knobs(rate=5_000_000)

    async def scene(puller: Puller) -> None:
        jobs = [puller.start(fake.name()), puller.start(fake.name("library/twin"))]
        await asyncio.gather(*(job.wait() for job in jobs))

    pulling(tmp_path, scene)
    probes = [entry for entry in fake.requests("cdn") if entry["range"] == "bytes=0-0"]
    assert len(probes) == 1
    store = Store(tmp_path / "models")
    assert store.model_file(fake.name("library/twin")) == store.model_file(fake.name())


def test_a_watcher_that_leaves_does_not_stop_the_pull(tmp_path: Path, fake: FakeRegistry) -> None:
    fake.knobs(rate=8_000_000)

    async def scene(puller: Puller) -> JobState:
        job = puller.start(fake.name())
        async for progress in job.watch():
            if progress.completed_bytes:
                break
        assert not job.ended
        await asyncio.gather(job.wait(), job.wait())
        return job.state

    assert pulling(tmp_path, scene) is JobState.DONE


def test_a_plan_tells_what_a_pull_would_need_and_fetches_the_header_only(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene(puller: Puller) -> tuple[PullPlan, PullPlan, PullPlan]:
        first = await puller.plan(fake.name())
        fake.knobs(stall_after=500_000)
        job = puller.start(fake.name())
        async for progress in job.watch():
            if progress.completed_bytes > 900_000:
                job.cancel()
                break
        with pytest.raises(PullCancelled):
            await job.wait()
        fake.knobs(reset=True)
        second = await puller.plan(fake.name())
        await puller.start(fake.name()).wait()
        return first, second, await puller.plan(fake.name())

    first, second, third = pulling(tmp_path, scene)
    total = first.total_bytes
    assert first.needed_bytes == total > len(WEIGHTS) and first.header == WEIGHTS[:262_144]
    assert second.partial_bytes > 900_000
    assert second.needed_bytes == total - second.partial_bytes
    assert (third.needed_bytes, third.total_bytes, third.disk_fits) == (0, total, True)


def test_local_only_asks_no_registry_beyond_this_machine(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene(puller: Puller) -> None:
        await puller.start(fake.name()).wait()
        with pytest.raises(PrivacyRefused):
            await puller.start("llama2:7b").wait()

    pulling(tmp_path, scene, local_only=True)


def test_a_pull_sweeps_up_after_a_killed_process(tmp_path: Path, fake: FakeRegistry) -> None:
    temporary = Store(tmp_path / "models").prepare("tmp")
    old, new = temporary / "old", temporary / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))

    async def scene(puller: Puller) -> None:
        await puller.start(fake.name()).wait()

    pulling(tmp_path, scene)
    assert list(temporary.iterdir()) == [new]


class Stopped:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def unix(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing sleeps here")


def test_the_rate_limit_is_shared_by_all_connections() -> None:
    clock = Stopped()
    limiter = Limiter(1_000_000, clock)
    assert limiter.take(100_000) == pytest.approx(0.1)
    assert limiter.take(100_000) == pytest.approx(0.2)  # another connection, right after
    clock.now += 0.2
    assert limiter.take(50_000) == pytest.approx(0.05)
    clock.now += 60
    assert limiter.take(1_000_000) == pytest.approx(1.0)  # an idle minute is not saved up
    assert limiter.buffer_bytes == 50_000
    assert Limiter(0, clock).take(10**9) == 0


def test_without_the_fit_check_the_disk_is_still_asked(tmp_path: Path, fake: FakeRegistry) -> None:
    async def check(manifest: Manifest, header: bytes) -> None:
        raise InsufficientResources("no", kind="ram", needed_bytes=2, available_bytes=1)

    async def scene(puller: Puller) -> None:
        await puller.start(fake.name(), fit_check=False).wait()

    pulling(tmp_path / "good", scene, check=check)
    with pytest.raises(InsufficientResources) as caught:
        pulling(tmp_path / "full", scene, settings=PullSettings(reserve_disk_bytes=2**60))
    assert caught.value.kind == "disk"


def test_the_check_sees_the_header_before_any_blob_is_asked_for_and_may_refuse(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    seen: list[tuple[Manifest, bytes]] = []

    async def check(manifest: Manifest, header: bytes) -> None:
        seen.append((manifest, header))
        raise InsufficientResources("no", kind="ram", needed_bytes=2, available_bytes=1)

    async def scene(puller: Puller) -> None:
        await puller.start(fake.name()).wait()

    with pytest.raises(InsufficientResources):
        pulling(tmp_path, scene, check=check)
    ((manifest, header),) = seen
    assert header == WEIGHTS[: 256 * 1024] and manifest.weights is not None
    ranges = {entry["range"] for entry in fake.requests("cdn")}
    assert ranges == {"bytes=0-262143"}
    assert not list((tmp_path / "models").glob("blobs/*"))


def test_a_disk_that_is_too_small_refuses_before_the_first_byte(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene(puller: Puller) -> None:
        await puller.start(fake.name()).wait()

    with pytest.raises(InsufficientResources) as caught:
        pulling(tmp_path, scene, settings=PullSettings(reserve_disk_bytes=2**60))
    assert caught.value.code == "insufficient-disk" and caught.value.exit_code == 4
    assert caught.value.needed_bytes > 2**60
    assert fake.requests("cdn") == []


def test_a_cancelled_pull_keeps_its_bytes_and_the_next_goes_on(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    fake.knobs(stall_after=500_000)

    async def scene(puller: Puller) -> int:
        job = puller.start(fake.name())
        async for progress in job.watch():
            if progress.completed_bytes > 900_000:
                break
        job.cancel()
        with pytest.raises(PullCancelled):
            await job.wait()
        kept = job.completed_bytes
        fake.knobs(reset=True)
        await puller.start(fake.name()).wait()
        return kept

    kept = pulling(tmp_path, scene)
    store = Store(tmp_path / "models")
    assert store.model_file(fake.name()).read_bytes() == WEIGHTS
    assert kept > 900_000
    first = next(entry for entry in fake.requests("cdn") if entry["range"] != "bytes=0-0")
    assert first["range"] != "bytes=0-4999999"


def test_a_pull_that_is_cancelled_twice_still_notes_what_it_has(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    """Its own cancellation, then the closing of the puller: as at the end of every program."""
    fake.knobs(stall_after=500_000)

    async def scene(puller: Puller) -> None:
        job = puller.start(fake.name())
        async for progress in job.watch():
            if progress.completed_bytes > 900_000:
                break
        job.cancel()
        await puller.aclose()
        assert job.state is JobState.CANCELLED

    pulling(tmp_path, scene)
    (left,) = pulls.pending(Store(tmp_path / "models"))
    assert left.completed_bytes > 900_000


def test_a_pull_that_waits_for_its_registry_is_cancelled_at_once(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    async def scene(puller: Puller) -> float:
        job = puller.start(fake.name())
        async for snapshot in job.snapshots():
            if snapshot.state is JobState.PULLING:
                fake.knobs(latency_s=20)
                job.cancel()
                break
        began = asyncio.get_running_loop().time()
        with pytest.raises(PullCancelled):
            await job.wait()
        return asyncio.get_running_loop().time() - began

    assert pulling(tmp_path, scene) < 5


def test_a_puller_goes_on_with_what_another_one_pulls(tmp_path: Path, fake: FakeRegistry) -> None:
    """A gateway that read its configuration again dropped its downloads without a word."""
    fake.publish("library/later", model=WEIGHTS[:100])
    fake.knobs(rate=2_000_000)

    async def scene(old: Puller) -> None:
        await old.start(fake.name("library/later")).wait()
        job = old.start(fake.name())
        async for progress in job.watch():
            if progress.completed_bytes > 1_000_000:
                break
        waits = old.start(fake.name("library/none"))
        waits.pause()
        new = Puller(
            store=old.store, settings=old.settings, clock=SystemClock(), environ={}, pauses_s=(0.0,)
        )
        try:
            new.go_on_with(old)
            states = {one.name: one.state for one in new.jobs()}
            assert states[fake.name("library/later")] is JobState.DONE
            await old.aclose()
            fake.knobs(rate=0)
            went_on, done, paused = sorted(new.jobs(), key=lambda one: one.ref.model != "tiny")
            await went_on.wait()
            assert (job.state, went_on.state) == (JobState.CANCELLED, JobState.DONE)
            assert {done.state, paused.state} == {JobState.DONE, JobState.PAUSED}
        finally:
            await new.aclose()

    pulling(tmp_path, scene)
    assert Store(tmp_path / "models").model_file(fake.name()).read_bytes() == WEIGHTS


@pytest.mark.parametrize("word", ["pause", "cancel"])
def test_a_pull_hears_what_is_said_before_its_first_step(
    tmp_path: Path, fake: FakeRegistry, word: str
) -> None:
    async def scene(puller: Puller) -> JobState:
        job = puller.start(fake.name())
        getattr(job, word)()
        other = puller.start(fake.name("library/none"))
        with pytest.raises(RegistryRefused):
            await other.wait()
        return job.state

    state = pulling(tmp_path, scene)
    assert state is {"pause": JobState.PAUSED, "cancel": JobState.CANCELLED}[word]


def test_a_paused_pull_keeps_its_watchers_and_goes_on(tmp_path: Path, fake: FakeRegistry) -> None:
    fake.knobs(stall_after=500_000)

    async def scene(puller: Puller) -> list[JobState]:
        job = puller.start(fake.name())
        states = []
        async for snapshot in job.snapshots():
            if not states or states[-1] is not snapshot.state:
                states.append(snapshot.state)
            early = JobState.PAUSED not in states
            if early and snapshot.state is JobState.PULLING and job.completed_bytes > 500_000:
                job.pause()
            if snapshot.state is JobState.PAUSED:
                fake.knobs(reset=True)
                job.resume()
        return states

    states = pulling(tmp_path, scene)
    assert JobState.PAUSED in states and states[-1] is JobState.DONE


@pytest.mark.parametrize("stop", ["pause", "cancel"])
def test_a_pull_that_is_wanted_again_while_it_stops_goes_on(
    tmp_path: Path, fake: FakeRegistry, stop: str
) -> None:
    """Transfers take a moment to stop: it ended as one that was cancelled, or stayed paused."""
    fake.knobs(stall_after=500_000)

    async def scene(puller: Puller) -> JobState:
        job = puller.start(fake.name())
        async for progress in job.watch():
            if progress.completed_bytes > 400_000:
                break
        getattr(job, stop)()
        fake.knobs(reset=True)
        assert puller.start(fake.name()) is job
        await asyncio.wait_for(job.wait(), 10.0)
        return job.state

    assert pulling(tmp_path, scene) is JobState.DONE
    assert Store(tmp_path / "models").model_file(fake.name()).read_bytes() == WEIGHTS


def test_the_last_of_several_words_to_a_pull_counts(tmp_path: Path, fake: FakeRegistry) -> None:
    fake.knobs(stall_after=500_000)

    async def ends_after(puller: Puller, *words: str) -> JobState:
        job = puller.start(fake.name())
        async for progress in job.watch():
            if progress.completed_bytes > 400_000:
                break
        for word in words:
            getattr(job, word)()
        async for snapshot in job.snapshots():
            if snapshot.state is JobState.PAUSED:
                break
        return job.state

    async def scene(puller: Puller) -> None:
        assert await ends_after(puller, "pause", "resume", "pause") is JobState.PAUSED
        with pytest.raises(PullCancelled):
            await ends_after(puller, "pause", "resume", "cancel")

    pulling(tmp_path, scene)


def test_an_unknown_model_says_so_at_once(tmp_path: Path, fake: FakeRegistry) -> None:
    async def scene(puller: Puller) -> None:
        await puller.start(fake.name("library/nope")).wait()

    with pytest.raises(RegistryRefused) as caught:
        pulling(tmp_path, scene)
    assert (caught.value.status, caught.value.code) == (404, "model-not-in-registry")
    assert not (tmp_path / "models").exists()

"""What is guarded: an Ollama that pulls for us is believed only when it says and shows success."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from localfirst.errors import (
    DigestMismatch,
    InsufficientResources,
    LocalFirstError,
    PullCancelled,
    PullStalled,
)
from localfirst.models import daemon_route, manifest, names
from localfirst.models.daemon_pull import DaemonPull
from localfirst.models.pull import Puller
from localfirst.models.pull_job import JobState, PullJob
from localfirst.models.store import Store
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock
from tests.fakes.pull_daemon import PullDaemon, running

RECORDED = Path(__file__).parents[1] / "data" / "ollama_pull"
REF = names.parse("tiny")
DIGEST = "sha256:" + "a" * 64


def pulling(completed: int, total: int = 100) -> str:
    words = {"status": "pulling aaaaaaaaaaaa", "digest": DIGEST, "total": total}
    return json.dumps({**words, "completed": completed})


START, END = '{"status":"pulling manifest"}', '{"status":"success"}'
GOOD = [START, pulling(50), pulling(100), END]


async def drive(daemon: PullDaemon, stall_s: float = 5.0) -> PullJob:
    job = PullJob(REF, SystemClock())
    through = DaemonPull(daemon.url, clock=SystemClock(), stall_s=stall_s, pause_s=0.01)
    async with asyncio.timeout(20):
        await through.pull(job, REF)
    return job


def driven(*tries: list[Any], lists: tuple[str, ...] = ("tiny:latest",), **kw: float) -> PullJob:
    with running(*tries, lists=lists) as daemon:
        return asyncio.run(drive(daemon, **kw))


@pytest.mark.parametrize("name", ["again", "updated"])
def test_what_a_real_ollama_said_is_understood(name: str) -> None:
    said = (RECORDED / f"{name}.ndjson").read_text().splitlines()
    job = driven(said)
    assert job.completed_bytes == job.total_bytes > 60_000_000


def test_a_model_that_is_not_there_is_told_as_such() -> None:
    said = (RECORDED / "not_found.ndjson").read_text().splitlines()
    with pytest.raises(LocalFirstError) as caught:
        driven(said)
    assert caught.value.code == "model-not-in-registry"


def test_numbers_that_go_backwards_are_not_shown() -> None:
    seen = []

    async def scene(daemon: PullDaemon) -> None:
        job = PullJob(REF, SystemClock())
        through = DaemonPull(daemon.url, clock=SystemClock())
        work = asyncio.ensure_future(through.pull(job, REF))
        while not work.done():
            seen.append(job.completed_bytes)
            await asyncio.sleep(0)
        await work

    lines = [START, pulling(60), pulling(10), pulling(0), pulling(100, 90), END]
    with running(lines, lists=("tiny:latest",)) as daemon:
        asyncio.run(scene(daemon))
    assert seen == sorted(seen)


STRANGE = [
    START,
    "",
    '{"status":"a word nobody knows"}',
    '{"status":"pulling x","digest":"../../etc","total":5,"completed":5}',
    '{"status":"pulling x","digest":"' + DIGEST + '","total":-5,"completed":-9}',
    END,
]


def test_lines_of_unknown_kind_are_passed_over() -> None:
    assert driven(STRANGE).error is None


AGAIN: dict[str, list[list[Any]]] = {
    "end without success": [[START, pulling(50)], GOOD],
    "abrupt end": [[START, pulling(50), {"cut": True}], GOOD],
    "silence": [[START, pulling(50), {"wait": True}], GOOD],
    "joined a dying download": [[START, '{"error":"context canceled"}'], GOOD],
    "retries exceeded": [[START, '{"error":"max retries exceeded: EOF"}'], GOOD],
    "digest mismatch once": [[START, '{"error":"digest mismatch, file must be …"}'], GOOD],
    "twice cut": [[START, {"cut": True}], [START, {"cut": True}], GOOD],
}


@pytest.mark.parametrize("trouble", AGAIN)
def test_passing_trouble_is_tried_again(trouble: str) -> None:
    job = driven(*AGAIN[trouble], stall_s=0.3 if trouble == "silence" else 5.0)
    assert job.completed_bytes == 100


ENDS: dict[str, tuple[list[Any], type[LocalFirstError], str]] = {
    "never a success": ([START, pulling(50)], LocalFirstError, "pull-incomplete"),
    "silence": ([START, {"wait": True}], PullStalled, "pull-stalled"),
    "false bytes": ([START, '{"error":"digest mismatch, x"}'], DigestMismatch, "digest-mismatch"),
    "disk full": (
        [START, '{"error":"write /m/x-partial: no space left on device"}'],
        InsufficientResources,
        "insufficient-disk",
    ),
    "offline": (
        [START, '{"error":"pull model manifest: dial tcp: lookup x: no such host"}'],
        LocalFirstError,
        "registry-dns",
    ),
    "too old": (
        [START, '{"error":"The model requires a newer version of Ollama."}'],
        LocalFirstError,
        "ollama-too-old",
    ),
    "refused": (
        [{"http": 400, "body": '{"error":"invalid model name"}'}],
        LocalFirstError,
        "ollama-refused",
    ),
    "not Ollama": (["<html>hello</html>"], LocalFirstError, "pull-failed"),
}


@pytest.mark.parametrize("trouble", ENDS)
def test_each_end_has_its_code(trouble: str) -> None:
    steps, kind, code = ENDS[trouble]
    with pytest.raises(kind) as caught:
        driven(steps, stall_s=0.2 if trouble == "silence" else 5.0)
    assert caught.value.code == code


def test_lines_that_repeat_are_no_progress() -> None:
    with pytest.raises(PullStalled):
        driven([START, *[pulling(50)] * 300, {"wait": True}], stall_s=0.2)


def test_success_of_a_model_that_is_not_listed_is_none() -> None:
    with pytest.raises(LocalFirstError) as caught:
        driven(GOOD, lists=("other:latest",))
    assert caught.value.code == "pull-not-listed"


def test_a_daemon_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    async def scene() -> None:
        job = PullJob(REF, SystemClock())
        through = DaemonPull("http://127.0.0.1:1", clock=SystemClock(), pause_s=0.01)
        await through.pull(job, REF)

    with pytest.raises(LocalFirstError) as caught:
        asyncio.run(scene())
    assert caught.value.code == "ollama-unreachable"


def through_puller(tmp_path: Path, daemon: PullDaemon) -> Puller:
    async def to(ref: names.ModelName) -> str:
        return daemon.url

    return Puller(
        store=Store(tmp_path / "models"),
        settings=PullSettings(mirrors={"registry.ollama.ai": "http://127.0.0.1:1"}, registries=()),
        clock=SystemClock(),
        environ={},
        daemon=to,
        pauses_s=(0.01,),
    )


def test_a_puller_hands_a_model_to_the_daemon_that_will_serve_it(tmp_path: Path) -> None:
    async def scene(daemon: PullDaemon) -> PullJob:
        puller = through_puller(tmp_path, daemon)
        job = puller.start("tiny")
        await job.wait()
        await puller.aclose()
        return job

    with running(GOOD, lists=("tiny:latest",)) as daemon:
        job = asyncio.run(scene(daemon))
        posted = daemon.posted()
    assert job.state is JobState.DONE and job.completed_bytes == 100
    assert posted == [{"model": "tiny:latest", "insecure": False, "stream": True}]
    assert not (tmp_path / "models").exists()


# --- whose turn it is ----------------------------------------------------------------------


def store_with(folder: Path, name: str) -> tuple[Store, str]:
    """A store that holds a model of that name, and its digest."""
    layer = manifest.Layer(media_type="m", digest=DIGEST, size_bytes=1)
    store = Store(folder)
    store.put_manifest(names.parse(name), manifest.build(layer, (layer,)))
    return store, store.get(name).digest


def routed(store: Store, daemon: PullDaemon) -> bool:
    """Whether the daemon is to pull."""
    return asyncio.run(daemon_route.route(daemon.url, store)) == daemon.url


def test_a_daemon_that_lists_what_lies_here_reads_this_store(tmp_path: Path) -> None:
    store, digest = store_with(tmp_path, "tiny")
    with running([], lists=("tiny:latest",), digests=(digest,)) as daemon:
        assert not routed(store, daemon)


def test_a_daemon_that_lists_other_models_reads_another_store(tmp_path: Path) -> None:
    store, _ = store_with(tmp_path, "tiny")
    with running([], lists=("tiny:latest",), digests=("0" * 64,)) as daemon:
        assert routed(store, daemon)
    with running([]) as daemon:
        assert routed(store, daemon)
    with running([], lists=("tiny:latest",), digests=("0" * 64,)) as daemon:
        assert routed(Store(tmp_path / "empty"), daemon)


def test_where_nothing_tells_the_daemon_pulls(tmp_path: Path) -> None:
    with running([]) as daemon:  # both empty, and its process is no `ollama serve`
        assert routed(Store(tmp_path / "empty"), daemon)


def test_without_a_daemon_we_pull(tmp_path: Path) -> None:
    assert asyncio.run(daemon_route.route("http://127.0.0.1:1", Store(tmp_path))) == ""


def test_a_store_that_cannot_be_written_is_the_daemons(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with running([]) as daemon:
        assert routed(Store(tmp_path / "file" / "models"), daemon)


def test_cancelling_hangs_up(tmp_path: Path) -> None:
    async def scene(daemon: PullDaemon) -> None:
        puller = through_puller(tmp_path, daemon)
        job = puller.start("tiny")
        async for progress in job.watch():
            if progress.completed_bytes == 50:
                job.cancel()
                break
        with pytest.raises(PullCancelled):
            await job.wait()
        await puller.aclose()

    with running([START, pulling(50), {"wait": True}]) as daemon:
        asyncio.run(scene(daemon))

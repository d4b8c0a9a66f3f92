"""A mirror that fails in any way does not end a pull that its registry can answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localfirst.engines.launch import free_port
from localfirst.errors import (
    DigestMismatch,
    LocalFirstError,
    PrivacyRefused,
    VerificationFailed,
)
from localfirst.models import pull_ndjson
from localfirst.models.pull import Puller
from localfirst.models.store import Store
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock
from tests.fakes.registry import FakeRegistry, running

WEIGHTS = random.Random(9).randbytes(9_000_000)
DIGEST = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()
TEMPLATE = b"{{ .Prompt }}"
PAUSES_S = (0.01, 0.02, 0.03, 0.04)


class Pair:
    """A mirror and its registry, both with the same model."""

    def __init__(self, mirror: FakeRegistry, origin: FakeRegistry) -> None:
        self.mirror = mirror
        self.origin = origin
        self.name = origin.name()
        self.mirrors = {origin.host: f"http://{mirror.host}"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        running(tmp_path_factory.mktemp("mirror")) as mirror,
        running(tmp_path_factory.mktemp("origin")) as origin,
    ):
        for one in (mirror, origin):
            one.publish(model=WEIGHTS, template=TEMPLATE)
        yield Pair(mirror, origin)


@pytest.fixture
def pair(both: Pair) -> Pair:
    both.mirror.knobs(reset=True)
    both.origin.knobs(reset=True)
    return both


class Scene:
    """A store, and one pull into it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "models")
        self.environ = {"HOME": str(folder)}
        self.notes: tuple[str, ...] = ()
        self.lines: list[bytes] = []
        self.on_progress: Callable[[int], object] = lambda done: None

    def pull(
        self, name: str, mirrors: dict[str, str], *, local_only: bool = False, **changes: Any
    ) -> None:
        """Pull *name*; raises what the job raises."""
        options = {key: changes.pop(key) for key in ("digest", "any_host") if key in changes}
        usual: dict[str, Any] = {"stall_s": 0.5, "reserve_disk_bytes": 0, "mirrors": mirrors}

        async def main() -> None:
            puller = Puller(
                store=self.store,
                settings=PullSettings(**usual | changes),
                clock=SystemClock(),
                environ=self.environ,
                local_only=local_only,
                pauses_s=PAUSES_S,
            )
            job, before = puller.start(name, **options), None
            try:
                async with asyncio.timeout(30):
                    async for shot in job.snapshots():
                        self.lines += pull_ndjson.lines(before, shot)
                        before = shot
                        self.on_progress(job.completed_bytes)
            finally:
                self.notes = job.notes
                await puller.aclose()

        asyncio.run(main())

    def dies_midway(self, mirror: FakeRegistry) -> None:
        """Let *mirror* go down for good when it has brought two megabytes."""
        mirror.knobs(rate=3_000_000)

        def die(done: int) -> None:
            if done > 2_000_000:
                mirror.knobs(down=True)
                self.on_progress = lambda done: None

        self.on_progress = die

    def is_whole(self, name: str) -> bool:
        return self.store.model_file(name).read_bytes() == WEIGHTS


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_healthy_mirror_is_all_that_is_asked(scene: Scene, pair: Pair) -> None:
    scene.pull(pair.name, pair.mirrors)
    assert scene.is_whole(pair.name)
    assert scene.notes == ()
    assert pair.origin.requests() == []


FAILING: dict[str, dict[str, Any]] = {
    "every answer a 503": {"down": True},
    "no such model": {"manifest_status": 404},
    "no such blob": {"registry_status": 404},
    "a password that nobody gave": {"auth": "basic"},
    "a page instead of a manifest": {"manifest_body": "<html>"},
    "blobs' host down": {"cdn_status": 503},
    "signed addresses that never work": {"cdn_status": 403},
    "every body cut at once": {"cut_after": 0},
    "bodies of another size": {"wrong_total": 1},
    "bodies of other bytes": {"wrong_start": 1},
    "one byte always false": {"corrupt_at": 4_000_000},
    "silence": {"stall_after": 100_000},
    "comes back in an hour": {"registry_status": 429, "retry_after": "3600"},
    "a redirect into nowhere": {"redirect_to": "file:///etc/passwd"},
}


@pytest.mark.parametrize("fault", FAILING)
def test_the_registry_stands_in_for_its_mirror(fault: str, scene: Scene, pair: Pair) -> None:
    pair.mirror.knobs(**FAILING[fault])
    scene.pull(pair.name, pair.mirrors)
    assert scene.is_whole(pair.name)
    assert scene.notes, "nobody was told"
    said = [json.loads(line)["status"] for line in scene.lines]
    assert set(scene.notes) <= set(said)
    assert said[-1] == "success"


def test_a_mirror_that_nobody_listens_at_is_passed_over(scene: Scene, pair: Pair) -> None:
    scene.pull(pair.name, {pair.origin.host: f"http://127.0.0.1:{free_port()}"})
    assert scene.is_whole(pair.name)
    assert "broke the connection" in scene.notes[0]


def test_a_mirror_that_dies_within_a_blob_leaves_its_bytes(scene: Scene, pair: Pair) -> None:
    scene.dies_midway(pair.mirror)
    scene.pull(pair.name, pair.mirrors, connections=1)
    assert scene.is_whole(pair.name)
    assert scene.notes
    # What the mirror brought before is kept, and only the rest is fetched.
    assert 0 < pair.origin.fetched_bytes(DIGEST) <= len(WEIGHTS) - 1_000_000
    assert [one["path"] for one in pair.origin.requests() if "manifests" in one["path"]] == []


def test_what_an_interrupted_pull_had_from_a_mirror_is_gone_on_with(
    scene: Scene, pair: Pair
) -> None:
    scene.dies_midway(pair.mirror)
    pair.origin.knobs(registry_status=503)
    with pytest.raises(LocalFirstError):
        scene.pull(pair.name, pair.mirrors, connections=1)
    pair.origin.knobs(reset=True)
    scene.pull(pair.name, pair.mirrors, connections=1)
    assert scene.is_whole(pair.name)
    assert pair.origin.fetched_bytes(DIGEST) <= len(WEIGHTS) - 1_000_000


def test_false_bytes_are_not_fetched_from_the_same_mirror_again(scene: Scene, pair: Pair) -> None:
    pair.mirror.knobs(corrupt_at=4_000_000)
    scene.pull(pair.name, pair.mirrors)
    assert pair.origin.fetched_bytes(DIGEST) >= len(WEIGHTS)
    pair.mirror.knobs(reset=True, corrupt_at=4_000_000)
    pair.origin.knobs(reset=True, corrupt_at=4_000_000)
    other = Scene(scene.store.root / "other")
    with pytest.raises(DigestMismatch):
        other.pull(pair.name, pair.mirrors)


def test_a_mirrors_old_version_is_not_taken_for_a_pinned_one(
    scene: Scene, pair: Pair, tmp_path: Path
) -> None:
    with running(tmp_path / "old") as old:
        old.publish(model=b"old" * 1000, template=TEMPLATE)
        wanted = next((pair.origin.folder / "manifests").rglob("latest")).read_bytes()
        digest = hashlib.sha256(wanted).hexdigest()
        scene.pull(pair.name, {pair.origin.host: f"http://{old.host}"}, digest=digest)
    assert scene.is_whole(pair.name)
    assert "another version" in scene.notes[0]


def test_a_mirrors_other_version_is_a_moved_tag_where_the_registry_is_away(
    scene: Scene, pair: Pair
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    mirrors = {nowhere: f"http://{pair.mirror.host}"}
    with pytest.raises(VerificationFailed, match="is now"):
        scene.pull(f"{nowhere}/library/tiny", mirrors, digest="0" * 64)


def test_when_both_fail_each_says_why(scene: Scene, pair: Pair) -> None:
    pair.mirror.knobs(manifest_status=401)
    with pytest.raises(LocalFirstError) as caught:
        scene.pull(f"{pair.origin.host}/library/none", pair.mirrors)
    assert caught.value.code == "model-not-in-registry"
    assert "answered 404" in caught.value.message and "answered 401" in caught.value.message
    # Where the registry cannot be reached, what the mirror said is what counts.
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(LocalFirstError) as caught:
        scene.pull(f"{nowhere}/library/tiny", {nowhere: f"http://{pair.mirror.host}"})
    assert caught.value.code == "registry-unauthorized"


@pytest.mark.parametrize(
    "asked",
    [
        {"registries": ()},
        {"registries": (), "any_host": True},
        {"local_only": True},
    ],
    ids=["a client", "a person", "nothing may leave"],
)
def test_a_registry_that_may_not_be_asked_does_not_stand_in(
    scene: Scene, pair: Pair, asked: dict[str, Any]
) -> None:
    pair.mirror.knobs(down=True)
    mirrors = {"registry.ollama.ai": f"http://{pair.mirror.host}"}
    with pytest.raises(LocalFirstError) as caught:
        scene.pull("tiny", mirrors, **asked)
    assert not isinstance(caught.value, PrivacyRefused)
    assert caught.value.message.count("`127.0.0.1` answered 503") == 1
    assert "registry.ollama.ai" not in caught.value.message.replace("`tiny", "")
    assert scene.notes == ()


def test_insecure_was_said_of_the_mirror_and_not_of_the_world_outside(pair: Pair) -> None:
    from localfirst.models import names
    from localfirst.models.sources import Sources

    settings = PullSettings(mirrors={"registry.ollama.ai": "http://mirror.example"})
    found = Sources(settings, clock=SystemClock(), local_only=False)
    assert found.of(names.parse("tiny"), insecure=True) == (
        "http://mirror.example",
        "https://registry.ollama.ai",
    )
    # A name that asks for http has no other way than its mirror.
    plain = names.parse("http://registry.ollama.ai/library/tiny")
    assert found.of(plain, insecure=True) == ("http://mirror.example",)


def localfirst(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line with the configuration in *folder*."""
    return subprocess.run(
        [sys.executable, "-m", "localfirst", *words],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LOCALFIRST_CONFIG": str(folder / "config.toml"),
            "LOCALFIRST_STATE_DIR": str(folder / "state"),
            "LOCALFIRST_LOCAL_ENGINE": "llamacpp",
            "OLLAMA_MODELS": str(folder / "models"),
        },
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_the_command_line_says_that_somebody_else_is_asked(tmp_path: Path, pair: Pair) -> None:
    pair.mirror.knobs(down=True)
    (tmp_path / "config.toml").write_text(
        f'[pull]\nreserve_disk = "0"\nmirrors = {{ "{pair.origin.host}" = '
        f'"http://{pair.mirror.host}" }}\n'
    )
    ran = localfirst(tmp_path, "pull", "--force", pair.name)
    assert ran.returncode == 0, ran.stderr
    assert f"going on at `{pair.origin.host}`" in ran.stderr


def test_the_doctor_says_whether_a_registry_stands_in(tmp_path: Path) -> None:
    mirrors = '{ "registry.ollama.ai" = "https://m.corp/a", "own.corp" = "https://n.corp" }'
    (tmp_path / "config.toml").write_text(f"offline = true\n[pull]\nmirrors = {mirrors}\n")
    ran = localfirst(tmp_path, "doctor", "--json")
    found = {one["code"]: one["evidence"] for one in json.loads(ran.stdout)["findings"]}
    assert found["mirror"].startswith("`m.corp` is asked first")
    assert found["mirror-alone"].startswith("`n.corp`; `own.corp` is not asked")

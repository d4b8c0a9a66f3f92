"""
What is guarded: no moment of death, doubling or full disk costs a model or more than a stretch.

`LOCALFIRST_KILLS=50 pytest tests/faults/test_pull_kill.py -s` is the long run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localfirst.models import pull_partial, pulls
from localfirst.models.manifest import Layer
from localfirst.models.store import Store
from tests.fakes import registry
from tests.fakes.registry import FakeRegistry

CHILD = Path(__file__).parents[1] / "fakes" / "pulling.py"
KILLS = int(os.environ.get("LOCALFIRST_KILLS", "6"))
SEED = int(os.environ.get("LOCALFIRST_SEED", "20261121"))
CONNECTIONS = 4
RATE_BYTES_S = 5_000_000
STRETCH_BYTES = 8 * 2**20

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeRegistry]:
    with registry.running(tmp_path / "registry") as running:
        yield running


def child(store: Store, name: str, *more: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, str(CHILD), str(store.root), name, *more]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Read to the end; the last line."""
    with process:
        return list(lines(process))[-1]


def visible_is_true(store: Store) -> bool:
    """Whatever Ollama could see now is whole and right."""
    for path in store.blobs.glob("*"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name.removeprefix("sha256-"):
            return False
    return not store.damaged() and all(not store.missing(m.manifest) for m in store.models())


def killed_after(process: subprocess.Popen[bytes], wait_s: float) -> int:
    """Kill *process* that long after its first bytes; what it had reported."""
    reported, timer = 0, None
    with process:
        for line in lines(process):
            reported = max(reported, line.get("completed", 0))
            if timer is None and line.get("state") == "pulling":
                timer = threading.Timer(wait_s, process.send_signal, [signal.SIGKILL])
                timer.start()
        if timer is not None:
            timer.join()
    return reported


def test_a_pull_that_is_killed_again_and_again_ends_in_a_correct_store(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    rng = random.Random(SEED)
    weights = rng.randbytes(max(24, 4 * KILLS) * 1_000_000)
    digest = fake.publish(model=weights, template=b"t")["model"]
    fake.knobs(rate=RATE_BYTES_S)
    store = Store(tmp_path / "models")
    lost: list[int] = []
    kills = 0
    while kills < KILLS:
        reported = killed_after(child(store, fake.name()), rng.uniform(0, 0.3))
        kills += 1
        assert visible_is_true(store)
        info = pull_partial.look(pull_partial.folder_of(store, digest))
        assert store.models() == []
        lost.append(max(0, reported - (info.completed_bytes if info else 0)))
    fake.knobs(rate=0)
    assert finish(child(store, fake.name())) == {"end": "ok"}
    assert store.model_file(fake.name()).read_bytes() == weights
    assert visible_is_true(store) and pulls.pending(store) == []
    print(
        f"{kills} kills, seed {SEED}: 0 models lost; re-fetched per kill at most "
        f"{max(lost):,} bytes, {sum(lost):,} in all ({CONNECTIONS} connections)"
    )
    assert max(lost) <= STRETCH_BYTES * CONNECTIONS


def power_cut(store: Store, layer: Layer) -> int:
    """What a power cut may leave at worst: of what was not flushed, nothing; its bytes kept."""
    folder = pull_partial.folder_of(store, layer.digest)
    if not (folder / "journal").exists():
        return 0
    safe, _ = pull_partial.read_journal(folder / "journal", layer, "another boot")
    data = (folder / "data").read_bytes()
    left = bytearray(len(data))
    for start, end in safe:
        left[start:end] = data[start:end]
    (folder / "data").write_bytes(left)
    lines = (folder / "journal").read_text().splitlines(keepends=True)
    (folder / "journal").write_text("".join(x for x in lines if not x.startswith("B")) + "W 0 9")
    return safe.total


def test_power_cuts_cost_what_was_not_flushed_and_no_more(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    rng = random.Random(SEED + 1)
    weights = rng.randbytes(30_000_000)
    digest = fake.publish(model=weights)["model"]
    layer = Layer(media_type="", digest=digest, size_bytes=len(weights))
    fake.knobs(rate=RATE_BYTES_S)
    store = Store(tmp_path / "models")
    kept = [0]
    for _ in range(2):
        killed_after(child(store, fake.name()), rng.uniform(0.3, 0.6))
        kept.append(power_cut(store, layer))
    assert kept == sorted(kept)
    fake.knobs(rate=0)
    with child(store, fake.name()) as process:
        said = list(lines(process))
    assert said[-1] == {"end": "ok"}
    assert max(x.get("completed", 0) for x in said[:5]) >= kept[-1]
    assert store.model_file(fake.name()).read_bytes() == weights


def test_a_kill_while_blobs_become_visible_leaves_nothing_half(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    """Fast pulls of a small model, so that most kills fall into the checks and the commit."""
    rng = random.Random(SEED)
    weights = rng.randbytes(3_000_000)
    fake.publish(model=weights, template=b"t", params=b"{}")
    for number in range(KILLS // 2):
        store = Store(tmp_path / f"models{number}")
        process = child(store, fake.name())
        with process:
            next(lines(process))
            timer = threading.Timer(rng.uniform(0, 0.08), process.send_signal, [signal.SIGKILL])
            timer.start()
            list(lines(process))
            timer.join()
        assert visible_is_true(store)
        assert finish(child(store, fake.name())) == {"end": "ok"}
        assert store.model_file(fake.name()).read_bytes() == weights


def test_two_processes_pull_one_model_with_one_transfer(tmp_path: Path, fake: FakeRegistry) -> None:
    weights = random.Random(1).randbytes(12_000_000)
    digest = fake.publish(model=weights)["model"]
    fake.knobs(rate=RATE_BYTES_S)
    store = Store(tmp_path / "models")
    both = [child(store, fake.name()) for _ in range(2)]
    reports = []
    for process in both:
        with process:
            reports.append(list(lines(process)))
    assert [report[-1] for report in reports] == [{"end": "ok"}, {"end": "ok"}]
    states = [{line.get("state") for line in report} for report in reports]
    assert sum("following" in state for state in states) == 1
    follower = next(r for r in reports if any(x.get("state") == "following" for x in r))
    assert len({line.get("completed") for line in follower}) > 2  # it shows progress
    probes = [e for e in fake.requests("cdn") if digest[7:] in e["path"]]
    assert sum(entry["range"] == "bytes=0-0" for entry in probes) == 1
    assert store.model_file(fake.name()).read_bytes() == weights


def test_a_follower_takes_over_when_the_one_that_transfers_is_killed(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    weights = random.Random(2).randbytes(12_000_000)
    fake.publish(model=weights)
    fake.knobs(rate=2_000_000)
    store = Store(tmp_path / "models")
    first = child(store, fake.name())
    with first:
        source = lines(first)
        while next(source).get("completed", 0) < 1_000_000:
            pass
        second = child(store, fake.name())
        following = lines(second)
        while next(following).get("state") != "following":
            pass
        first.kill()
    fake.knobs(rate=0)
    with second:
        assert list(following)[-1] == {"end": "ok"}
    assert store.model_file(fake.name()).read_bytes() == weights


def test_a_filesystem_that_ends_at_a_size_is_named_as_such(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    fake.publish(model=random.Random(4).randbytes(5_000_000))
    store = Store(tmp_path / "models")
    said = finish(child(store, fake.name(), "--file-limit", "3000000"))
    assert said["end"] == "store-file-limit" and "FAT32" in said["hint"]
    assert finish(child(store, fake.name())) == {"end": "ok"}


def on_tiny_disk(folder: Path, size: str, argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run *argv* where *folder* is a filesystem of *size*, in a namespace of its own."""
    shell = f'mount -t tmpfs -o size={size} none "$0" && cp -a "$1"/. "$0" ; shift; "$@"; code=$?'
    shell += '; cp -a "$0"/. "$KEEP" ; exit $code'
    keep = folder.parent / "keep"
    keep.mkdir(exist_ok=True)
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, str(folder), str(keep), *argv],
        capture_output=True,
        timeout=60,
        env={**os.environ, "KEEP": str(keep)},
    )


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return on_tiny_disk(folder, "1m", ["true"]).returncode == 0


def test_a_disk_that_fills_up_ends_the_pull_and_the_next_goes_on(
    tmp_path: Path, fake: FakeRegistry
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("this user may not mount a small filesystem")
    weights = random.Random(3).randbytes(12_000_000)
    fake.publish(model=weights)
    argv = [sys.executable, str(CHILD), str(disk / "models"), fake.name()]
    refused = on_tiny_disk(disk, "6m", argv)
    assert b'"end": "insufficient-disk"' in refused.stdout and refused.returncode == 4
    assert fake.requests("cdn") == []
    filled = on_tiny_disk(disk, "6m", [*argv, "--force"])
    said = [json.loads(line) for line in filled.stdout.splitlines()]
    assert said[-1]["end"] == "insufficient-disk" and said[-1]["hint"]
    store = Store(tmp_path / "keep" / "models")
    (waiting,) = pulls.pending(store)
    assert waiting.completed_bytes > 3_000_000
    fake.knobs(reset=True)
    assert finish(child(store, fake.name())) == {"end": "ok"}
    assert store.model_file(fake.name()).read_bytes() == weights

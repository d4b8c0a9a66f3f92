"""What a load really took is remembered, across processes, and only makes us more careful."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from localfirst.engines.experience import Experience
from localfirst.machine.fit import Fit, Measured, Placement, Verdict

GB = 10**9
PREDICTED = Fit(
    verdict=Verdict.FITS,
    reason="",
    placement=Placement.CPU,
    context_tokens=4096,
    needed_bytes=4 * GB,
    ram_bytes=4 * GB,
    available_bytes=int(4.6 * GB),
)
MODEL = "/store/blobs/sha256-abc"


def test_a_load_that_took_more_than_predicted_changes_the_next_verdict(tmp_path: Path) -> None:
    path = tmp_path / "state" / "measured.json"
    first = Experience(path)
    assert first.applied(PREDICTED, MODEL) == PREDICTED
    assert first.note(PREDICTED, MODEL, 1, int(4.8 * GB))
    again = Experience(path).applied(PREDICTED, MODEL)
    assert again.needed_bytes == int(4.8 * GB)
    assert again.verdict is not Verdict.FITS
    assert path.stat().st_mode & 0o777 == 0o600


def test_memory_that_was_not_touched_yet_proves_nothing(tmp_path: Path) -> None:
    known = Experience(tmp_path / "measured.json")
    assert not known.note(PREDICTED, MODEL, 1, 2 * GB)
    assert known.applied(PREDICTED, MODEL) == PREDICTED


def test_a_process_on_a_gpu_tells_nothing_by_its_resident_size(tmp_path: Path) -> None:
    known = Experience(tmp_path / "measured.json")
    on_gpu = msgspec.structs.replace(PREDICTED, placement=Placement.GPU)
    assert not known.note(on_gpu, MODEL, 1, 9 * GB)


def test_a_broken_file_costs_the_experience_only(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_bytes(b'{"half')
    known = Experience(path)
    assert known.note(PREDICTED, MODEL, 1, 5 * GB)
    assert msgspec.json.decode(path.read_bytes(), type=dict[str, Measured])


def test_an_embedded_model_that_answered_is_compared_with_its_prediction(tmp_path: Path) -> None:
    """On the real engine: the runner carries the prediction, and the process can be asked."""
    from localfirst import AsyncClient
    from localfirst.config import load
    from localfirst.models import toy
    from localfirst.transport import process

    toy.publish(tmp_path / "models")
    settings = load(
        environ={
            "LOCALFIRST_CONFIG": "/dev/null",
            "LOCALFIRST_STATE_DIR": str(tmp_path / "state"),
            "OLLAMA_MODELS": str(tmp_path / "models"),
            "LOCALFIRST_LOCAL_ENGINE": "llamacpp",
        }
    ).settings

    async def scenario() -> None:
        async with AsyncClient(settings) as client:
            await client.chat("hello", max_tokens=4)
            engine = (await client.opened()).engine._llamacpp
            assert engine is not None
            ((_, runner),) = engine._pool.loaded()
            assert runner.predicted is not None and runner.child is not None
            resident = process.resident_bytes(runner.child.pid)
            assert 0.5 < resident / runner.predicted.needed_bytes < 1.5

    asyncio.run(scenario())

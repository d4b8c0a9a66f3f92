"""What is guarded: Ollama's own clients read our pulls as they read Ollama's."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from localfirst.errors import DigestMismatch, InsufficientResources, RegistryRefused
from localfirst.models.pull_job import JobState, LayerProgress, Snapshot
from localfirst.models.pull_ndjson import error_line, lines

RECORDED = Path(__file__).parents[1] / "data" / "ollama_pull"


def recorded(name: str) -> list[bytes]:
    return (RECORDED / f"{name}.ndjson").read_bytes().splitlines(keepends=True)


def layers_of(said: list[bytes]) -> tuple[LayerProgress, ...]:
    words = [json.loads(line) for line in said if b'"digest"' in line]
    return tuple(
        LayerProgress(
            digest=line["digest"], total_bytes=line["total"], completed_bytes=line["completed"]
        )
        for line in words
    )


@pytest.mark.parametrize(("name", "removed"), [("again", 0), ("updated", 1)])
def test_the_lines_are_byte_for_byte_those_of_a_real_ollama(name: str, removed: int) -> None:
    expected = recorded(name)
    done = Snapshot(
        name="tiny", state=JobState.DONE, layers=layers_of(expected), removed_layers=removed
    )
    start = Snapshot(name="tiny", state=JobState.RESOLVING)
    assert lines(None, start) + lines(start, done) == expected


def test_a_model_that_is_not_there_ends_as_with_ollama() -> None:
    start = Snapshot(name="tiny", state=JobState.RESOLVING)
    error = RegistryRefused("no", status=404, code="model-not-in-registry")
    assert [*lines(None, start), error_line(error)] == recorded("not_found")


A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def shot(one: int, two: int, *, current: str = A, state: JobState = JobState.PULLING) -> Snapshot:
    layers = (
        LayerProgress(digest=A, total_bytes=100, completed_bytes=one),
        LayerProgress(digest=B, total_bytes=10, completed_bytes=two),
    )
    return Snapshot(name="tiny", state=state, layers=layers, current=current)


def test_a_blob_begins_without_completed_and_then_counts() -> None:
    first, then = shot(0, 0), shot(40, 0)
    head = {"status": "pulling aaaaaaaaaaaa", "digest": A, "total": 100}
    assert [json.loads(line) for line in lines(shot(0, 0, current=""), first)] == [head]
    assert [json.loads(line) for line in lines(first, then)] == [{**head, "completed": 40}]
    assert lines(then, then) == []


def test_a_blob_that_ends_between_two_looks_is_told_before_the_next() -> None:
    said = [json.loads(line)["status"] for line in lines(shot(40, 0), shot(100, 5, current=B))]
    assert said == ["pulling aaaaaaaaaaaa", "pulling bbbbbbbbbbbb"]


def test_success_comes_once_and_last() -> None:
    end = msgspec.structs.replace(shot(100, 10), state=JobState.DONE)
    assert lines(shot(100, 10), end)[-1] == b'{"status":"success"}\n'
    assert lines(end, end) == []


def test_errors_keep_the_words_that_clients_look_for() -> None:
    full = InsufficientResources("x", kind="disk", needed_bytes=2, available_bytes=1)
    assert b"no space left on device" in error_line(full)
    assert b"digest mismatch, file must be downloaded again" in error_line(DigestMismatch("x"))
    assert json.loads(error_line(RegistryRefused('say "no"')))["error"] == 'say "no"'

"""
A pull in the lines of Ollama's `/api/pull`, so that Ollama's own clients show their bars.

    {"status":"pulling manifest"}
    {"status":"pulling 8934d96d3f08","digest":"sha256:…","total":N,"completed":M}    per blob
    {"status":"`mirror.corp` answered 503 …: going on at `registry.ollama.ai`"}      if it did
    {"status":"verifying sha256 digest"}
    {"status":"writing manifest"}
    {"status":"removing unused layers"}                 only if the old version left some
    {"status":"success"}                                or {"error":"…"}

`lines` is pure: what a job's snapshot adds to the one before it. Spelling, order and what
is left out follow ollama/ollama `server/routes.go`, `server/download.go` (0.33).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from localfirst.errors import DigestMismatch, InsufficientResources, LocalFirstError
from localfirst.models.pull_job import JobState, LayerProgress, PullJob, Snapshot

FIRST = b'{"status":"pulling manifest"}\n'
LAST = ("verifying sha256 digest", "writing manifest", "removing unused layers", "success")


def lines(before: Snapshot | None, now: Snapshot) -> list[bytes]:
    """The lines to send at *now*, when those of *before* have been sent; an error is none."""
    said = [FIRST] if before is None else []
    told = len(before.notes) if before else 0
    said += [_line({"status": note}) for note in now.notes[told:]]
    known = {layer.digest: layer for layer in before.layers} if before else {}
    for layer in now.layers:
        old = known.get(layer.digest)
        active = layer.digest == now.current or layer.completed_bytes >= layer.total_bytes
        if active and (old is None or _moved(old, layer) or _begun(before, now, layer)):
            said.append(_pulling(layer))
    if now.state is JobState.DONE and (before is None or before.state is not JobState.DONE):
        skipped = set() if now.removed_layers else {"removing unused layers"}
        said += [_line({"status": status}) for status in LAST if status not in skipped]
    return said


def error_line(error: LocalFirstError) -> bytes:
    """How a failed pull ends; the status of the answer stays 200."""
    return _line({"error": error_text(error)})


def error_text(error: LocalFirstError) -> str:
    """A failure in Ollama's words where clients look for them, else in ours."""
    if error.code == "model-not-in-registry":
        return "pull model manifest: file does not exist"
    if isinstance(error, InsufficientResources) and error.kind == "disk":
        return f"no space left on device: {error.message}"
    if isinstance(error, DigestMismatch):
        return f"digest mismatch, file must be downloaded again: {error.message}"
    return error.message


async def stream(job: PullJob) -> AsyncGenerator[bytes, None]:
    """The whole sequence for one watcher of *job*; leaving it does not end the job."""
    before: Snapshot | None = None
    try:
        async for now in job.snapshots():
            for line in lines(before, now):
                yield line
            before = now
    except LocalFirstError as error:
        yield error_line(error)


async def last(job: PullJob) -> tuple[int, bytes]:
    """
    The answer to `"stream": false`: 200 with success, or the error with its own status.

    Ollama says 500 whatever went wrong, and clients look at nothing but the text.
    """
    try:
        await job.wait()
    except LocalFirstError as error:
        return error.http_status, error_line(error).rstrip()
    return 200, b'{"status":"success"}'


def _moved(old: LayerProgress, new: LayerProgress) -> bool:
    return old.completed_bytes != new.completed_bytes or old.total_bytes != new.total_bytes


def _begun(before: Snapshot | None, now: Snapshot, layer: LayerProgress) -> bool:
    """The first line of a blob comes before its first byte, without `completed`."""
    started = before is None or before.current != layer.digest
    return started and now.current == layer.digest and layer.completed_bytes < layer.total_bytes


def _pulling(layer: LayerProgress) -> bytes:
    words: dict[str, str | int] = {
        "status": f"pulling {layer.digest[7:19]}",
        "digest": layer.digest,
        "total": layer.total_bytes,
    }
    if layer.completed_bytes:
        words["completed"] = layer.completed_bytes
    return _line(words)


def _line(words: dict[str, str] | dict[str, str | int]) -> bytes:
    return msgspec.json.encode(words) + b"\n"

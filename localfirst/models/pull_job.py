"""
A pull as others see it: a job with a state, a progress that never falls, and an end.

Any number of watchers may come and go; the job goes on without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from enum import StrEnum

import msgspec

from localfirst.errors import LocalFirstError, PullCancelled
from localfirst.events import Progress
from localfirst.models.manifest import Layer, Manifest
from localfirst.models.names import ModelName
from localfirst.types import Clock

WAKE_EVERY_S = 0.05
MOST_NOTES = 16


class JobState(StrEnum):
    """Where a pull is; the last three are ends."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    CHECKING = "checking"
    PULLING = "pulling"
    FOLLOWING = "following"
    VERIFYING = "verifying"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Wish(StrEnum):
    """What was last said to a pull; the last word counts, also while the one before is done."""

    GO_ON = "go on"
    PAUSE = "pause"
    CANCEL = "cancel"


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


class LayerProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far one blob is; `cached` when it was there before this pull."""

    digest: str
    total_bytes: int
    completed_bytes: int = 0
    cached: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything about a job at one moment, for lists and for Ollama's progress lines.

    `notes` say in the order of their coming what a person should know although it goes on.
    """

    name: str
    state: JobState
    layers: tuple[LayerProgress, ...] = ()
    current: str = ""
    removed_layers: int = 0
    error: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()
    started_unix: float = 0.0
    rate_bytes_s: float = 0.0
    eta_s: float | None = None


class PullJob:
    """
    One model on its way into the store. Made by `Puller.start`, written to by the puller.

    `progress` and `snapshot()` may be read at any time. `pause` keeps the job and its
    watchers, `cancel` ends it; both keep what was fetched.
    """

    def __init__(self, ref: ModelName, clock: Clock) -> None:
        self.ref = ref
        self.name = ref.display
        self.state = JobState.QUEUED
        self.error: LocalFirstError | None = None
        self.manifest: Manifest | None = None
        self.removed_layers = 0
        self.notes: tuple[str, ...] = ()
        self.current = ""
        self.started_unix = clock.unix()
        self._clock = clock
        self._layers: dict[str, LayerProgress] = {}
        self._highest = 0
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] = self._loop.create_future()
        self._wake_due = False
        self._window: list[tuple[float, int]] = []
        self.watchers = 0
        self.wish = Wish.GO_ON
        self.interrupted = False
        self._resumed = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    # --- looking -----------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED

    @property
    def completed_bytes(self) -> int:
        """Bytes here; never falls."""
        now = sum(layer.completed_bytes for layer in self._layers.values())
        self._highest = max(self._highest, now)
        return self._highest

    @property
    def total_bytes(self) -> int:
        """Bytes of all blobs; 0 until the manifest is known."""
        return sum(layer.total_bytes for layer in self._layers.values())

    @property
    def progress(self) -> Progress:
        """The job as an event of an answer."""
        stage = {JobState.QUEUED: "queued", JobState.VERIFYING: "verifying"}.get(
            self.state, "pulling"
        )
        return Progress(
            stage=stage,
            detail=self.name,
            completed_bytes=self.completed_bytes,
            total_bytes=self.total_bytes,
            note=self.notes[-1] if self.notes else "",
        )

    def snapshot(self) -> Snapshot:
        """The job now."""
        rate = self._rate()
        left = self.total_bytes - self.completed_bytes
        return Snapshot(
            name=self.name,
            state=self.state,
            layers=tuple(self._layers.values()),
            current=self.current,
            removed_layers=self.removed_layers,
            error=self.error.message if self.error else "",
            hint=self.error.hint if self.error else "",
            notes=self.notes,
            started_unix=self.started_unix,
            rate_bytes_s=rate,
            eta_s=left / rate if rate and not self.ended else None,
        )

    async def watch(self) -> AsyncGenerator[Progress, None]:
        """
        Each change until the end, the first at once.

        Raises:
            PullError, InsufficientResources, VerificationFailed: why the job failed.
        """
        last: Progress | None = None
        async with aclosing(self.snapshots()) as snapshots:
            async for _ in snapshots:
                if self.progress != last:
                    last = self.progress
                    yield last

    async def snapshots(self) -> AsyncGenerator[Snapshot, None]:
        """As `watch`, with every blob's own progress."""
        self.watchers += 1
        try:
            while True:
                wake = self._wake
                yield self.snapshot()
                if self.ended:
                    break
                if not wake.done():
                    await asyncio.shield(wake)
        finally:
            self.watchers -= 1
        if self.error is not None:
            raise self.error

    async def wait(self) -> None:
        """Wait for the end; raises as `watch` does."""
        async for _ in self.snapshots():
            pass

    # --- steering ----------------------------------------------------------------------

    def cancel(self) -> None:
        """End the job; what was fetched is kept for the next pull."""
        if not self.ended:
            self.wish = Wish.CANCEL
            if self._work is None:
                self.end(JobState.CANCELLED, PullCancelled(f"the pull of `{self.name}` was ended"))
            self._resumed.set()
            self._interrupt()

    def pause(self) -> None:
        """Stop fetching and keep the job."""
        if not self.ended and self.wish is not Wish.PAUSE:
            self.wish = Wish.PAUSE
            self._resumed.clear()
            self._interrupt()

    def resume(self) -> None:
        """Go on after a pause."""
        self.wish = Wish.GO_ON
        self._resumed.set()

    # --- for the puller ----------------------------------------------------------------

    def works_in(self, task: asyncio.Task[None] | None) -> None:
        """Tell which task to cancel for a pause or an end; a pause may have come before it."""
        self._work = task
        self.interrupted = False
        if self.wish is Wish.PAUSE:
            self._interrupt()

    async def paused(self) -> None:
        """Wait for `resume` or `cancel`."""
        await self._resumed.wait()

    def set_layers(self, blobs: tuple[Layer, ...]) -> None:
        """Name the blobs, in the order in which they are fetched."""
        self._layers = {
            blob.digest: self._layers.get(blob.digest)
            or LayerProgress(digest=blob.digest, total_bytes=blob.size_bytes)
            for blob in blobs
        }

    def add_layer(self, blob: Layer) -> None:
        """Name one more blob, or a size that was not known before."""
        before = self._layers.get(blob.digest)
        if before is None:
            self._layers[blob.digest] = LayerProgress(
                digest=blob.digest, total_bytes=blob.size_bytes
            )
        elif blob.size_bytes > before.total_bytes:
            self._layers[blob.digest] = msgspec.structs.replace(before, total_bytes=blob.size_bytes)

    def fill(self) -> None:
        """Every blob is here, also those that were too quick to be told."""
        for layer in list(self._layers.values()):
            self.set_completed(layer.digest, layer.total_bytes)

    def set_completed(self, digest: str, completed: int, *, cached: bool = False) -> None:
        """Note how much of a blob is here; a smaller number than before is not shown."""
        before = self._layers[digest]
        self._layers[digest] = msgspec.structs.replace(
            before,
            completed_bytes=max(before.completed_bytes, min(completed, before.total_bytes)),
            cached=before.cached or cached,
        )

    def note(self, told: str) -> None:
        """Tell the watchers something, once."""
        if told not in self.notes and len(self.notes) < MOST_NOTES:
            self.notes = (*self.notes, told)
            self.wake()

    def turn(self, state: JobState, current: str = "") -> None:
        """Enter a state and tell the watchers."""
        self.state = state
        self.current = current
        self.wake()

    def end(self, state: JobState, error: LocalFirstError | None = None) -> None:
        """Reach an end."""
        self.error = error
        self.turn(state)

    def wake(self) -> None:
        """Tell the watchers; on the loop."""
        self._wake_due = False
        if not self._wake.done():
            self._wake.set_result(None)
        self._wake = self._loop.create_future()

    def wake_soon(self) -> None:
        """Tell the watchers within 50 ms, and no more often; from any thread."""
        if not self._wake_due:
            self._wake_due = True
            self._loop.call_soon_threadsafe(self._loop.call_later, WAKE_EVERY_S, self.wake)

    def _interrupt(self) -> None:
        if self._work is not None:
            self.interrupted = True
            self._work.cancel()

    def _rate(self) -> float:
        """Bytes a second over the last ten seconds; 0 in the first moments."""
        now = self._clock.monotonic()
        self._window = [point for point in self._window if now - point[0] <= 10.0]
        self._window.append((now, self.completed_bytes))
        began, had = self._window[0]
        return (self.completed_bytes - had) / (now - began) if now - began >= 1.0 else 0.0

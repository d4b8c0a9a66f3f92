"""
One blob of a pull: in one piece when it is small, by a transfer when it is not.

A transfer holds the digest's lock; whoever does not get it follows the holder's journal
and goes on with the partial file if the holder dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event

from localfirst.errors import DigestMismatch, PullCancelled, PullError, VerificationFailed
from localfirst.models import pull_partial
from localfirst.models.manifest import Layer
from localfirst.models.pull_job import JobState, PullJob
from localfirst.models.pull_plan import Want
from localfirst.models.pull_transfer import Transfer
from localfirst.models.pull_worker import Limiter
from localfirst.models.registry import Location, Registry
from localfirst.models.store import Store
from localfirst.settings import PullSettings
from localfirst.transport import files
from localfirst.transport.bulk import tls_context
from localfirst.types import Clock

LOG = logging.getLogger(__name__)
# Smaller blobs (templates, parameters, licences) come in one piece, without a journal.
SMALL_BYTES = 2**20
FOLLOW_S = 0.25
LOCATE_S = 300.0
LOCATE_POLL_S = 0.2


class Blobs:
    """Fetches blobs into *store*; one for all jobs, as the rate limit is."""

    def __init__(
        self,
        *,
        store: Store,
        registry: Registry,
        settings: PullSettings,
        clock: Clock,
        environ: Mapping[str, str],
        pauses_s: tuple[float, ...],
    ) -> None:
        self.store = store
        self.registry = registry
        self.settings = settings
        self._clock = clock
        self._environ = environ
        self._pauses_s = pauses_s
        self._limiter = Limiter(settings.limit_rate_bytes_s, clock)
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="pull")

    def close(self) -> None:
        """Let the threads go; no transfer runs any more."""
        self._pool.shutdown(wait=False)

    async def fetch(self, job: PullJob, want: Want, layer: Layer) -> None:
        """Have *layer* in the store, verified and visible."""
        if self.store.has_blob(layer):
            job.set_completed(layer.digest, layer.size_bytes, cached=True)
            job.wake()
            return
        job.turn(JobState.PULLING, layer.digest)
        try:
            await self._fetch(job, want, layer)
        except DigestMismatch as error:
            LOG.warning("blob %s was false; fetching it once more", layer.short)
            mirror = self.registry.sources.mirror(want.ref)
            if mirror:
                self.registry.sources.failed(mirror, error)
                job.note(f"blob {layer.short} was false: fetching it from `{want.ref.host}`")
            await self._fetch(job, want, layer, without=frozenset({mirror}))
        job.set_completed(layer.digest, layer.size_bytes)
        job.wake()

    async def _fetch(
        self,
        job: PullJob,
        want: Want,
        layer: Layer,
        *,
        without: frozenset[str] = frozenset(),
    ) -> None:
        if layer.size_bytes > SMALL_BYTES:
            await self._large(job, want, layer, without)
            return
        data = await self.registry.piece(
            want.ref,
            layer,
            layer.size_bytes,
            insecure=want.insecure,
            any_host=want.any_host,
            without=without,
            tell=job.note,
        )
        try:
            self.store.put_bytes(data, layer.digest)
        except VerificationFailed as error:
            raise DigestMismatch(error.message) from error

    async def _large(self, job: PullJob, want: Want, layer: Layer, without: frozenset[str]) -> None:
        """Transfer a blob, or follow the process that does and take over if it ends."""
        lock = files.FileLock(self.store.prepare("locks") / f"{layer.digest[7:]}.lock")
        while not lock.try_acquire():
            job.turn(JobState.FOLLOWING, layer.digest)
            job.set_completed(layer.digest, pull_partial.completed_bytes(self.store, layer))
            await self._clock.sleep(FOLLOW_S)
        try:
            if not self.store.has_blob(layer):
                job.turn(JobState.PULLING, layer.digest)
                await self._transfer(job, want, layer, without)
        finally:
            lock.release()

    async def _transfer(
        self, job: PullJob, want: Want, layer: Layer, without: frozenset[str]
    ) -> None:
        loop = asyncio.get_running_loop()
        partial = pull_partial.Partial(self.store, layer)

        def locate(stale: Location | None) -> Location:
            asked = self.registry.locate(
                want.ref,
                layer,
                insecure=want.insecure,
                any_host=want.any_host,
                without=without | transfer.left,
                tell=job.note,
            )
            return _awaited(asyncio.run_coroutine_threadsafe(asked, loop), transfer.stopped)

        def moved() -> None:
            job.set_completed(layer.digest, transfer.completed_bytes)
            job.wake_soon()

        def moved_on(location: Location, error: PullError) -> None:
            self.registry.sources.failed(location.source, error)
            loop.call_soon_threadsafe(job.note, f"{error.message}: going on elsewhere")

        transfer = Transfer(
            partial,
            locate=locate,
            clock=self._clock,
            environ=self._environ,
            tls=tls_context(self._environ),
            connections=self.settings.connections,
            stall_s=self.settings.stall_s,
            limiter=self._limiter,
            pauses_s=self._pauses_s,
            on_progress=moved,
            on_leaving=moved_on,
        )
        moved()
        try:
            await _in_thread(transfer, self._pool)
            partial.close()
            self.store.put_blob(partial.data, layer.digest)
            partial.remove()
        finally:
            partial.close()


def _awaited(future: Future[Location], stopped: Event) -> Location:
    """What the loop finds out, for a thread that must not outwait its transfer."""
    for _ in range(int(LOCATE_S / LOCATE_POLL_S)):
        wait((future,), LOCATE_POLL_S)
        if future.done():
            return future.result()
        if stopped.is_set():
            break
    future.cancel()
    raise PullCancelled("the download was stopped before its blob was found")


async def _in_thread(transfer: Transfer, pool: ThreadPoolExecutor) -> None:
    """Run a transfer; a cancelled wait ends it first."""
    future = asyncio.get_running_loop().run_in_executor(pool, transfer.run)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        transfer.cancel()
        while not future.done():
            # Who cancels twice must not have the file closed under the thread's last journal.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if not future.cancelled():
            future.exception()
        raise

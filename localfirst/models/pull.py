"""
A model into the store: manifest, checks, blobs, and the manifest last.

    start -> resolve the manifest -> disk and memory checked -> each blob fetched, hashed,
    made visible -> the manifest written -> blobs of the version before removed

A killed or failed pull leaves partial files that the next one goes on with. One transfer a
digest, however many jobs and processes ask for it: the others follow its progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from localfirst.errors import (
    InsufficientResources,
    LocalFirstError,
    PullCancelled,
    PullError,
    RegistryRefused,
    VerificationFailed,
)
from localfirst.machine.fit import shown
from localfirst.models import manifest as manifests
from localfirst.models import names, pull_partial, pulls
from localfirst.models.daemon_pull import DaemonPull
from localfirst.models.manifest import Layer, Manifest
from localfirst.models.names import ModelName
from localfirst.models.pull_blob import Blobs
from localfirst.models.pull_errors import broken
from localfirst.models.pull_job import JobState, PullJob, Wish
from localfirst.models.pull_plan import PullPlan, Want
from localfirst.models.pull_transfer import PAUSES_S
from localfirst.models.registry import Registry
from localfirst.models.sources import Tell, silent
from localfirst.models.store import Store, StoredModel
from localfirst.settings import PullSettings
from localfirst.transport import files
from localfirst.types import Clock

LOG = logging.getLogger(__name__)
# Enough for every architecture key of a GGUF, which come before its tokenizer.
HEADER_BYTES = 256 * 2**10

Check = Callable[[Manifest, bytes], Awaitable[None]]


class Puller:
    """
    Fetches models into *store*; lives on one event loop.

    *check* is called with the manifest and the first 256 KiB of the GGUF (empty where the
    model has none) before the first byte of a blob, and may raise `InsufficientResources`.
    *daemon* gives the URL of the Ollama that is to pull a model into a store of its own, or
    "" where this store is read by whoever will answer. *daemon_idle* says that no Ollama is
    writing here, so that its interrupted downloads may be taken over at once. *local_only*
    refuses registries beyond this machine.
    """

    def __init__(
        self,
        *,
        store: Store,
        settings: PullSettings,
        clock: Clock,
        environ: Mapping[str, str],
        check: Check | None = None,
        daemon: Callable[[ModelName], Awaitable[str]] | None = None,
        daemon_idle: Callable[[], Awaitable[bool]] | None = None,
        local_only: bool = False,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self.store = store
        self.settings = settings
        self.registry = Registry(
            settings,
            environ=environ,
            clock=clock,
            pauses_s=pauses_s[:4],
            local_only=local_only,
        )
        self._clock = clock
        self._check = check
        self._daemon = daemon
        self._daemon_idle = daemon_idle
        self._blobs = Blobs(
            store=store,
            registry=self.registry,
            settings=settings,
            clock=clock,
            environ=environ,
            pauses_s=pauses_s,
        )
        self._jobs: dict[str, PullJob] = {}
        self._wants: dict[str, Want] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- public ------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *,
        insecure: bool = False,
        any_host: bool = False,
        digest: str = "",
        force: bool = False,
        fit_check: bool = True,
    ) -> PullJob:
        """
        Begin to pull *name*, or join the job that already does.

        Args:
            name: a model's name; `http://` in front means the same as *insecure*.
            insecure: allow plain http beyond this machine.
            any_host: ask registries that are not in `pull.registries` (a person typed it).
            digest: 64 hex digits that the manifest must have (`VerificationFailed` else).
            force: go on although *check* or the disk say no.
            fit_check: False leaves *check* out; the disk is asked all the same.

        Raises:
            ModelNameInvalid: *name* is none.
        """
        ref = names.parse(name)
        want = Want(
            ref=ref,
            insecure=insecure,
            any_host=any_host,
            digest=digest,
            force=force,
            fit_check=fit_check,
        )
        return self._begin(want)

    def refetch(self, stored: StoredModel, *, insecure: bool = False) -> PullJob:
        """Fetch the blobs that *stored* lacks, by its own manifest, wherever the tag is now."""
        return self._begin(
            Want(
                ref=stored.ref,
                insecure=insecure,
                any_host=True,
                force=True,
                manifest=stored.manifest,
            )
        )

    def _begin(self, want: Want) -> PullJob:
        """Join the job for that name, or start one."""
        job = self._jobs.get(want.ref.key)
        if job is not None and not job.ended:
            job.resume()
            return job
        job = PullJob(want.ref, self._clock)
        self._jobs[want.ref.key], self._wants[want.ref.key] = job, want
        task = asyncio.get_running_loop().create_task(self._run(job, want))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def jobs(self) -> list[PullJob]:
        """Every job since the start, the running ones first."""
        return sorted(self._jobs.values(), key=lambda job: (job.ended, -job.started_unix))

    def go_on_with(self, other: Puller) -> None:
        """
        Pull what *other* is pulling, by this one's settings, and list what it has pulled.

        *other* may be closed: what it has fetched by then is gone on with here. As long as it
        is not, it has the transfers, and they are followed.
        """
        for key, job in other._jobs.items():
            if job.ended or job.wish is Wish.CANCEL:
                self._jobs.setdefault(key, job)
                continue
            mine = self._begin(other._wants[key])
            if job.wish is Wish.PAUSE:
                mine.pause()

    async def plan(self, name: str, *, insecure: bool = False, any_host: bool = False) -> PullPlan:
        """What pulling *name* would need; fetches the manifest and the GGUF's header only."""
        want = Want(ref=names.parse(name), insecure=insecure, any_host=any_host)
        return await self._plan(want, await self._manifest(want))

    async def aclose(self) -> None:
        """Stop every job (what was fetched is kept) and close the connections."""
        for job in self._jobs.values():
            job.cancel()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.registry.aclose()
        self._blobs.close()

    # --- a job -------------------------------------------------------------------------

    async def _run(self, job: PullJob, want: Want) -> None:
        """A job's life, through its pauses, to one of its ends."""
        work: asyncio.Task[None] | None = None
        try:
            while not job.ended:
                work = asyncio.get_running_loop().create_task(self._pull(job, want))
                job.works_in(work)
                await asyncio.wait({work})
                if not (work.cancelled() and job.interrupted) or job.wish is Wish.CANCEL:
                    break
                job.works_in(None)
                if job.wish is Wish.PAUSE:
                    job.turn(JobState.PAUSED)
                    await job.paused()
            if job.ended or work is None:
                return
            if work.cancelled():
                raise asyncio.CancelledError
            work.result()
            job.end(JobState.DONE)
        except asyncio.CancelledError:
            await _ended(work)
            job.end(JobState.CANCELLED, PullCancelled(f"the pull of `{job.name}` was ended"))
        except LocalFirstError as error:
            job.end(JobState.FAILED, error)
        except OSError as error:
            job.end(JobState.FAILED, broken(error, job.ref.host))
        except Exception as error:
            LOG.exception("a pull failed for a reason nobody foresaw")
            job.end(JobState.FAILED, PullError(f"{type(error).__name__}: {error}"))

    async def _pull(self, job: PullJob, want: Want) -> None:
        job.turn(JobState.RESOLVING)
        if self._already_there(job, want):
            return
        through = await self._daemon(want.ref) if self._daemon and not want.manifest else ""
        if through:
            await self._pull_through(through, job, want)
            return
        manifest = await self._manifest(want, job.note)
        job.manifest = manifest
        job.set_layers(manifest.blobs)
        job.turn(JobState.CHECKING)
        await self._prepare(want, manifest)
        old = self.store.find(want.ref)
        pulls.note(self.store, want.ref, manifest, self._clock.unix())
        for layer in manifest.blobs:
            await self._blobs.fetch(job, want, layer)
        job.turn(JobState.VERIFYING)
        for layer in self.store.missing(manifest):  # removed meanwhile by someone else
            await self._blobs.fetch(job, want, layer)
        if old is None or old.digest != manifest.digest:
            self.store.put_manifest(old.ref if old else want.ref, manifest.data)
        pulls.forget(self.store, want.ref)
        if old is not None and old.digest != manifest.digest:
            job.removed_layers = len(self.store.remove_unused(old.manifest.blobs))

    async def _pull_through(self, url: str, job: PullJob, want: Want) -> None:
        """Have another's Ollama pull; its memory is checked as ours, its disk is its own."""
        try:
            manifest = await self._manifest(want, job.note)
        except RegistryRefused as error:
            if error.status is not None:
                raise
        else:
            job.set_layers(manifest.blobs)
            if self._check is not None and want.fit_check and not want.force:
                job.turn(JobState.CHECKING)
                await self._check(manifest, await self._header(want, manifest.weights))
        job.turn(JobState.PULLING)
        await DaemonPull(url, clock=self._clock).pull(job, want.ref, insecure=want.insecure)

    def _already_there(self, job: PullJob, want: Want) -> bool:
        """A pinned model that is in the store needs no network at all."""
        stored = self.store.find(want.ref) if want.digest else None
        if stored is None or stored.digest != want.digest or self.store.missing(stored.manifest):
            return False
        job.manifest = stored.manifest
        job.set_layers(stored.manifest.blobs)
        for layer in stored.manifest.blobs:
            job.set_completed(layer.digest, layer.size_bytes, cached=True)
        return True

    async def _manifest(self, want: Want, tell: Tell = silent) -> Manifest:
        if want.manifest is not None:
            return want.manifest
        if want.ref.is_remote and want.ref.host == names.DEFAULT_HOST:
            raise PullError(
                f"`{want.ref.display}` runs in Ollama's cloud: there is nothing to download",
                hint="choose a tag without `cloud`",
                code="model-is-remote",
            )
        data, digest = await self.registry.manifest(
            want.ref,
            digest=want.digest,
            insecure=want.insecure,
            any_host=want.any_host,
            tell=tell,
        )
        if want.digest and digest != want.digest:
            raise VerificationFailed(
                f"`{want.ref.display}` is now {digest[:12]}, the lock says {want.digest[:12]}",
                hint="the tag has moved: `localfirst pull -f models.lock --update` takes it",
                code="lock-moved",
            )
        manifest = manifests.parse(data)
        if manifest.weights is None and manifest.first("tensor"):
            raise PullError(
                f"`{want.ref.display}` is in safetensors form, which needs Apple's MLX",
                hint="choose a tag in GGUF form",
                code="model-format-unsupported",
            )
        return manifest

    async def _plan(self, want: Want, manifest: Manifest, *, with_header: bool = True) -> PullPlan:
        missing = self.store.missing(manifest)
        partial = sum(pull_partial.completed_bytes(self.store, layer) for layer in missing)
        absent = sum(layer.size_bytes for layer in missing)
        return PullPlan(
            name=want.ref.display,
            manifest=manifest,
            total_bytes=sum(layer.size_bytes for layer in manifest.blobs),
            partial_bytes=partial,
            needed_bytes=absent - partial,
            free_bytes=files.free_bytes(self.store.root),
            reserve_bytes=self.settings.reserve_disk_bytes,
            header=await self._header(want, manifest.weights) if with_header else b"",
        )

    async def _header(self, want: Want, weights: Layer | None) -> bytes:
        """The beginning of the GGUF, from the store if it is there."""
        if weights is None:
            return b""
        if self.store.has_blob(weights):
            with self.store.blob_path(weights.digest).open("rb") as stream:
                return stream.read(HEADER_BYTES)
        return await self.registry.piece(
            want.ref, weights, HEADER_BYTES, insecure=want.insecure, any_host=want.any_host
        )

    async def _prepare(self, want: Want, manifest: Manifest) -> None:
        """Refuse now what could not end well."""
        reason = self.store.writable()
        if reason:
            raise PullError(
                reason,
                hint="set `OLLAMA_MODELS` to a folder of yours, or let a running Ollama pull",
                code="store-not-writable",
            )
        if not self.store.can_hold(want.ref):
            raise PullError(
                f"Windows cannot store a model of `{want.ref.host}`: its name has a colon",
                hint="serve the registry at its scheme's own port",
                code="store-cannot-hold",
            )
        if not self.store.missing(manifest):
            return
        self.store.prepare("locks")
        self.store.sweep(self._clock.unix())
        await self._take_over(manifest)
        if want.force:
            return
        check = self._check if want.fit_check else None
        plan = await self._plan(want, manifest, with_header=check is not None)
        if not plan.disk_fits:
            raise InsufficientResources(
                f"`{plan.name}` needs {shown(plan.needed_bytes)} more on `{self.store.root}` and "
                f"{shown(plan.reserve_bytes)} in reserve; {shown(plan.free_bytes)} are free",
                kind="disk",
                needed_bytes=plan.needed_bytes + plan.reserve_bytes,
                available_bytes=plan.free_bytes,
                hint="free some space, lower `pull.reserve_disk`, or choose a smaller model",
            )
        if check is not None:
            await check(manifest, plan.header)

    async def _take_over(self, manifest: Manifest) -> None:
        idle = await self._daemon_idle() if self._daemon_idle is not None else False
        for layer in self.store.missing(manifest):
            with contextlib.suppress(OSError):
                pull_partial.take_over(
                    self.store, layer, now_unix=self._clock.unix(), daemon_idle=idle
                )


async def _ended(work: asyncio.Task[None] | None) -> None:
    """Cancel a task and see it to its end."""
    if work is None:
        return
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()

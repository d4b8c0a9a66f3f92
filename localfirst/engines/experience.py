"""
What models really took and how fast they spoke on this machine: noted, and used at the next look.

Two kinds of evidence, and they prove different things:

    allocated   a daemon's own statement of its buffers (`size` in Ollama's `/api/ps`). It
                counts what is reserved, touched or not: right when it is more than was
                predicted, and right when it is less.
    resident    how much of a process the system holds in RAM. What was reserved and not
                touched yet, and mapped pages of a file that were not read, are not in it: it
                proves a need when it is more, and nothing when it is less.

Kept in one small file of the state folder by engine, model file, context, slots, cache type
and layers on the GPU, so that a gateway and a command see the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from localfirst.machine.fit import BELIEVED, CONTEXT_BYTES, Fit, Measured, Placement, corrected
from localfirst.transport import files
from localfirst.wire.forgiving import UNREADABLE

FILE_BYTES = 2**20
MOST_MODELS, MOST_LOADS = 200, 8
"""Models remembered, and loads of each; the oldest go first."""

EMBEDS = "/embedding"
LEAST_TOKENS = 8  # of an answer that tells a speed; a few say little
FASTEST_TOKENS_PER_S = 1e5  # of one answer on one machine: more is somebody's wrong clock
FADING = 0.3  # weight of the last answer in the speed
WORTH_WRITING = 0.1  # a speed that changed by less is not written again


class Loading(msgspec.Struct, frozen=True, kw_only=True):
    """A model as an engine loads it; `model` is a digest, its manifest's or its file's."""

    engine: str
    model: str
    parallel: int = 1
    cache_type: str = "f16"
    embedding: bool = False

    @property
    def name(self) -> str:
        """The key that all loads of the model by this engine share."""
        return f"{self.engine}/{self.model}"

    def at(self, found: Fit) -> str:
        """The key of this load at the context and on the layers of *found*."""
        kind = EMBEDS if self.embedding else ""
        where = f"{self.cache_type}/{found.gpu_layers}{kind}"
        return f"{found.context_tokens}*{self.parallel}/{where}"


class Known(msgspec.Struct, kw_only=True):
    """One model's loads by `Loading.at`, and its speed over the last answers (0 none yet)."""

    loads: dict[str, Measured] = {}
    tokens_per_s: float = 0.0


class Experience:
    """Measured loads and speeds; *path* None remembers while it runs. Safe in threads."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, Known] = {}
        self._changed: set[str] = set()
        self._written: dict[str, float] = {}
        self._seen = 0
        self.refresh()

    # --- used ----------------------------------------------------------------------------------

    def applied(self, found: Fit, loading: Loading) -> Fit:
        """
        *found* as what this machine knows of the model changes it.

        The very load's figure stands; that of the most alike, at another context say,
        carries its error over.
        """
        return corrected(found, self.measured(loading, found))

    def measured(self, loading: Loading, found: Fit | None = None) -> Measured | None:
        """The load most like *found*'s (the last one when None), with the model's speed."""
        with self._lock:
            known = self._known.get(loading.name)
            if known is None:
                return None
            exact = known.loads.get(loading.at(found)) if found else None
            load = exact or _most_alike(known.loads, loading, found)
            if load is None and not known.tokens_per_s:
                return None
            load = load or Measured(context_tokens=0, predicted_bytes=0, measured_bytes=0)
            return msgspec.structs.replace(load, tokens_per_s=known.tokens_per_s)

    # --- noted ----------------------------------------------------------------------------------

    def note_allocated(
        self, predicted: Fit, loading: Loading, *, size_bytes: int, vram_bytes: int
    ) -> bool:
        """
        Keep what a daemon says it allocated: *size_bytes*, of which *vram_bytes* on GPUs.

        *predicted* is for the same context. What a daemon leaves out (its process, a GPU's
        context) is added as predicted. False when it lies elsewhere than predicted, or the
        figure is beyond belief, or nothing new. Less than weights and cache, whose sizes are
        arithmetic, is no allocation: a daemon that cannot read its engine's report tells the
        size of the file.
        """
        on_gpu = predicted.placement is not Placement.CPU
        least = predicted.weights_bytes + predicted.kv_bytes
        least = int(least * 0.98) if predicted.layers else int(least * 1.02)
        if size_bytes < max(least, 1) or on_gpu != (vram_bytes > 0):
            return False
        beside = predicted.overhead_bytes
        seen = Measured(
            context_tokens=predicted.context_tokens,
            predicted_bytes=predicted.needed_bytes,
            measured_bytes=size_bytes + beside,
            measured_vram_bytes=vram_bytes + CONTEXT_BYTES if on_gpu else 0,
        )
        return self._keep(seen, predicted, loading)

    def note_resident(self, predicted: Fit, loading: Loading, resident_bytes: int) -> bool:
        """
        Keep how much of a process is in RAM, if that is more than predicted or known.

        Only for models that lie in RAM alone: a resident size knows no GPU.
        """
        with self._lock:
            known = self._known.get(loading.name, Known())
            before = known.loads.get(loading.at(predicted))
        least = max(predicted.needed_bytes, before.measured_bytes if before else 0)
        if predicted.placement is not Placement.CPU or resident_bytes <= least:
            return False
        seen = Measured(
            context_tokens=predicted.context_tokens,
            predicted_bytes=predicted.needed_bytes,
            measured_bytes=resident_bytes,
        )
        return self._keep(seen, predicted, loading)

    def note_speed(self, loading: Loading, tokens: int, seconds: float) -> bool:
        """Count an answer's generated *tokens* into the model's speed; whether it could be."""
        if tokens < LEAST_TOKENS or seconds <= tokens / FASTEST_TOKENS_PER_S:
            return False
        with self._lock:
            known = self._known.setdefault(loading.name, Known())
            before, now = known.tokens_per_s, tokens / seconds
            known.tokens_per_s = round(before + FADING * (now - before) if before else now, 2)
            written = self._written.get(loading.name, 0.0)
            if abs(known.tokens_per_s - written) > WORTH_WRITING * written:
                self._changed.add(loading.name)
        return True

    def _keep(self, seen: Measured, predicted: Fit, loading: Loading) -> bool:
        low, high = BELIEVED
        if not low <= seen.ratio <= high:
            return False
        with self._lock:
            known = self._known.pop(loading.name, Known())
            self._known[loading.name] = known
            at = loading.at(predicted)
            if known.loads.get(at) == seen:
                return False
            known.loads.pop(at, None)
            known.loads[at] = seen
            _forget_oldest(known.loads, MOST_LOADS)
            _forget_oldest(self._known, MOST_MODELS)
            self._changed.add(loading.name)
        return True

    # --- kept -----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what other processes wrote; not on an event loop. A broken file is no file."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, *UNREADABLE):
            stamp = self._path.stat().st_mtime_ns
            if stamp == self._seen:
                return
            read = msgspec.json.decode(
                files.read_bounded(self._path, FILE_BYTES), type=dict[str, Known]
            )
            with self._lock:
                kept = {name: self._known[name] for name in self._changed & set(self._known)}
                self._known = {**read, **kept}
                self._written = {name: known.tokens_per_s for name, known in read.items()}
                self._seen = stamp

    def save(self) -> None:
        """Write what is new, beside what others wrote; losing it costs no answer. Blocks."""
        if self._path is None or not self._changed:
            return
        self.refresh()
        with self._lock:
            data = msgspec.json.encode(self._known)
            self._written = {name: known.tokens_per_s for name, known in self._known.items()}
            self._changed.clear()
        with contextlib.suppress(OSError):
            files.ensure_dir(self._path.parent)
            files.write_atomic(self._path, data)
            self._seen = self._path.stat().st_mtime_ns


def _most_alike(
    loads: Mapping[str, Measured], loading: Loading, found: Fit | None
) -> Measured | None:
    """Of the last loads: with the same slots and cache if there are any, the nearest context."""
    like = f"*{loading.parallel}/{loading.cache_type}/"
    same = {at: seen for at, seen in loads.items() if at.endswith(EMBEDS) == loading.embedding}
    near = [seen for at, seen in same.items() if like in at] or list(same.values())
    if not near or found is None:
        return near[-1] if near else None
    return min(near, key=lambda seen: abs(seen.context_tokens - found.context_tokens))


def _forget_oldest(kept: dict[str, Measured] | dict[str, Known], most: int) -> None:
    while len(kept) > most:
        del kept[next(iter(kept))]

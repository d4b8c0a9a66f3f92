"""The prediction: will this model run here at this context, where, and how fast."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from localfirst.machine.fit.facts import Fit, Hardware, ModelShape, Placement, Scarce, Verdict
from localfirst.machine.fit.memory import (
    CELLS,
    MIB,
    STREAM_COPIES,
    checkpoint_bytes,
    compute_bytes,
    default_batch,
    graph_bytes,
    kv_bytes,
    work_bytes,
)
from localfirst.machine.fit.pools import Parts, Share, parts_of, share
from localfirst.machine.fit.room import at_rest
from localfirst.machine.fit.speed import tokens_per_s

SURE, PERHAPS = 0.9, 1.1  # the prediction's own accuracy is ±10 %
PROCESS_BYTES = 19 * MIB  # a llama-server without a model, measured on Linux
WORD_BYTES = 180  # what the engine's process keeps for each word of the vocabulary, measured
ASSUMED_CONTEXT = 1 << 17  # how far a model that does not say its window is searched


class Loading(msgspec.Struct, frozen=True, kw_only=True):
    """
    How an engine will load a model.

    `parallel` sequences of the context each; `batch` 0 is Ollama's own choice; `mmap` maps
    the file, and then weights that are rewritten for the CPU are held twice; `embedding`
    asks for vectors, of every token at once;
    `process_bytes` is what the engine's process takes before any model; `stream_copies` how
    often its llama.cpp holds the residual stream.
    """

    parallel: int = 1
    batch: int = 0
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: bool = True
    mmap: bool = False
    embedding: bool = False
    process_bytes: int = PROCESS_BYTES
    stream_copies: int = STREAM_COPIES


OLLAMA = Loading(stream_copies=4)
"""As Ollama 0.33 starts `llama-server`: its own batch size, weights read, not mapped."""

EMBEDDED = Loading(batch=512, mmap=True, process_bytes=38 * MIB)
"""As the embedded engine loads: llama.cpp's defaults inside a Python process."""


def predict(
    shape: ModelShape,
    hardware: Hardware,
    *,
    context_tokens: int,
    loading: Loading = OLLAMA,
    download_bytes: int = 0,
    reserve_disk_bytes: int = 0,
) -> Fit:
    """
    Predict whether *shape* runs on *hardware* with *context_tokens* of context.

    Args:
        shape: from `shape_from_gguf`, or `shape_from_size` when no more is known.
        hardware: a snapshot of `hardware.measure()`.
        context_tokens: the context of one sequence; cut to the model's own window.
        loading: how the engine loads it.
        download_bytes: bytes still to be fetched; checked against the disk.
        reserve_disk_bytes: bytes that must stay free on it.

    Raises:
        KeyError: a cache type that `memory.CACHE_BYTES` does not have.
    """
    context = min(context_tokens, shape.context_tokens or context_tokens)
    if download_bytes and hardware.disk.in_memory:
        # What is written to such a disk is taken from the memory it will be loaded into.
        left = max(0, hardware.ram_available_bytes - download_bytes)
        hardware = msgspec.structs.replace(hardware, ram_available_bytes=left)
    if not shape.known:
        found = _by_size(shape, hardware, context)
    elif not hardware.known:
        found = _of_unknown_machine(shape, context, loading)
    else:
        found = _of_known(shape, hardware, context, loading)
    return _with_disk(found, hardware, download_bytes, reserve_disk_bytes)


def shown(size_bytes: float) -> str:
    """Bytes for people, in decimal units as disks and `ollama list` print them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if abs(size_bytes) >= scale:
            value = size_bytes / scale
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{int(size_bytes)} B"


def _parts(shape: ModelShape, context: int, loading: Loading) -> Parts:
    batch = loading.batch or default_batch(context * loading.parallel)
    return parts_of(
        shape,
        kv=kv_bytes(
            shape,
            context,
            parallel=loading.parallel,
            batch=batch,
            cache_type_k=loading.cache_type_k,
            cache_type_v=loading.cache_type_v,
        ),
        compute=compute_bytes(
            shape,
            context,
            parallel=loading.parallel,
            batch=batch,
            flash_attention=loading.flash_attention,
            stream_copies=loading.stream_copies,
            embedding=loading.embedding,
        ),
        process=_beside(shape, context, loading, batch),
        copies=shape.repack_bytes if loading.mmap else 0,
    )


def _beside(shape: ModelShape, context: int, loading: Loading, batch: int) -> int:
    """What the engine's process takes that it does not report as a buffer."""
    beside = loading.process_bytes + WORD_BYTES * shape.vocab
    beside += checkpoint_bytes(shape, context, parallel=loading.parallel)
    beside += graph_bytes(shape, context, batch=batch)
    if loading.embedding:
        # The answers' buffer holds logits of a whole batch, wanted or not (output_reserve).
        beside += 4 * shape.vocab * min(batch, context)
    if not loading.flash_attention:
        beside += work_bytes(shape, context, parallel=loading.parallel, batch=batch)
    return beside


def _of_known(shape: ModelShape, hardware: Hardware, context: int, loading: Loading) -> Fit:
    parts = _parts(shape, context, loading)
    spread = share(parts, hardware)
    verdict, scarce, available = _judge(spread, hardware)
    could = verdict is not Verdict.NO or _could_fit(parts, hardware)
    longest = _longest_context(shape, hardware, loading, spread.placement, context, verdict)
    return Fit(
        verdict=verdict,
        reason=_reason(spread, hardware, available, busy=verdict is Verdict.NO and could),
        placement=spread.placement,
        context_tokens=context,
        needed_bytes=spread.ram_bytes + spread.vram_bytes,
        available_bytes=available,
        scarce=scarce,
        ram_bytes=spread.ram_bytes,
        vram_bytes=spread.vram_bytes,
        weights_bytes=parts.weights + (parts.copies if spread.pool is None else 0),
        kv_bytes=parts.kv,
        compute_bytes=parts.compute,
        projector_bytes=parts.projector,
        overhead_bytes=spread.overhead_bytes,
        gpu_layers=spread.gpu_layers,
        layers=parts.layers,
        max_context_tokens=longest,
        could_fit=could,
        tokens_per_s=tokens_per_s(shape, hardware, spread, kv_bytes=parts.kv),
    )


def _judge(spread: Share, hardware: Hardware) -> tuple[Verdict, Scarce, int]:
    """The verdict, the memory that decided it, and how much of that is free."""
    pool = spread.pool
    ram = hardware.ram_available_bytes
    if pool is not None and pool.unified:
        return band(spread.ram_bytes + spread.vram_bytes, ram), Scarce.SHARED, ram
    verdict = band(spread.ram_bytes, ram)
    if pool is None or verdict is not Verdict.FITS:
        return verdict, Scarce.RAM, ram
    # What lies on the devices was chosen to fit there, margin included.
    return verdict, Scarce.GPU, pool.free_bytes


def _could_fit(parts: Parts, hardware: Hardware) -> bool:
    idle = at_rest(hardware)
    return _judge(share(parts, idle), idle)[0] is not Verdict.NO


def band(needed_bytes: int, free_bytes: int) -> Verdict:
    """The verdict on a need and what is free, with the prediction's own accuracy in mind."""
    if needed_bytes <= SURE * free_bytes:
        return Verdict.FITS
    return Verdict.TIGHT if needed_bytes <= PERHAPS * free_bytes else Verdict.NO


def _reason(spread: Share, hardware: Hardware, available: int, *, busy: bool) -> str:
    ram = f"{shown(spread.ram_bytes)} of {shown(hardware.ram_available_bytes)} free memory"
    if spread.pool is None:
        text = f"needs {ram}, on the processor"
    elif spread.pool.unified:
        total = shown(spread.ram_bytes + spread.vram_bytes)
        text = f"needs {total} of {shown(available)} free memory that GPU and processor share"
    else:
        device = f"{shown(spread.vram_bytes)} of {shown(spread.pool.free_bytes)} GPU memory"
        text = f"needs {device} and {ram}"
        if spread.placement is Placement.SPLIT:
            text += f", with {spread.gpu_layers} layers on the GPU"
    if busy:
        text += "; closing other programs could make room"
    return text


def _longest_context(
    shape: ModelShape,
    hardware: Hardware,
    loading: Loading,
    placement: Placement,
    context: int,
    verdict: Verdict,
) -> int:
    """The longest context that fits, and when this one does, fits where this one lies."""

    def good(tokens: int) -> bool:
        spread = share(_parts(shape, tokens, loading), hardware)
        if verdict is Verdict.FITS and spread.placement is not placement:
            return False
        return _judge(spread, hardware)[0] is Verdict.FITS

    limit = shape.context_tokens or max(context, ASSUMED_CONTEXT)
    return _last_good(good, limit)


def _last_good(good: Callable[[int], bool], limit: int) -> int:
    if good(limit):
        return limit
    low, high = 0, limit // CELLS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle * CELLS) else (low, middle)
    return low * CELLS


def _of_unknown_machine(shape: ModelShape, context: int, loading: Loading) -> Fit:
    parts = _parts(shape, context, loading)
    return Fit(
        verdict=Verdict.UNKNOWN,
        reason=f"needs {shown(parts.on_host)}; this machine's memory could not be measured",
        context_tokens=context,
        needed_bytes=parts.on_host,
        ram_bytes=parts.on_host,
        weights_bytes=parts.weights + parts.copies,
        kv_bytes=parts.kv,
        compute_bytes=parts.compute,
        projector_bytes=parts.projector,
        overhead_bytes=parts.process,
        layers=parts.layers,
    )


def _by_size(shape: ModelShape, hardware: Hardware, context: int) -> Fit:
    """Only the weights are known: certain when they alone are too much, or all is ample."""
    weights = shape.weights_bytes + shape.projector_bytes
    generous = weights + weights // 2 + 1024 * MIB
    devices = sum(gpu.free_bytes or 0 for gpu in hardware.gpus if gpu.usable and not gpu.unified)
    free = hardware.ram_available_bytes + devices
    verdict = Verdict.UNKNOWN
    if hardware.known and weights > PERHAPS * free:
        verdict = Verdict.NO
    elif hardware.known and generous <= SURE * hardware.ram_available_bytes:
        verdict = Verdict.FITS
    largest = hardware.ram_usable_bytes + sum(gpu.total_bytes for gpu in hardware.gpus)
    return Fit(
        verdict=verdict,
        could_fit=verdict is not Verdict.NO or weights <= largest,
        reason=f"weights of {shown(weights)}, {shown(free)} free; the model's shape is not known",
        context_tokens=context,
        needed_bytes=weights,
        available_bytes=free,
        ram_bytes=weights,
        weights_bytes=weights,
        projector_bytes=shape.projector_bytes,
    )


def _with_disk(found: Fit, hardware: Hardware, download_bytes: int, reserve_bytes: int) -> Fit:
    disk = hardware.disk
    needed = download_bytes + reserve_bytes if download_bytes else 0
    changes: dict[str, object] = {"disk_needed_bytes": needed, "disk_free_bytes": disk.free_bytes}
    if needed and disk.total_bytes and needed > disk.free_bytes:
        changes["verdict"] = Verdict.NO
        changes["reason"] = (
            f"needs {shown(needed)} of disk where {shown(disk.free_bytes)} are free"
            f" (`{disk.path}`); {found.reason}"
        )
    return msgspec.structs.replace(found, **changes)

"""Where a model's parts may lie: the memory of each GPU, of GPUs together, and the RAM."""

from __future__ import annotations

import msgspec

from localfirst.machine.fit.facts import Gpu, Hardware, ModelShape, Placement
from localfirst.machine.fit.memory import MIB

MARGIN_BYTES = 1024 * MIB  # llama.cpp leaves this free on each device (`--fit-target`)
CONTEXT_BYTES = 457 * MIB  # a CUDA, ROCm or Vulkan context (Ollama, ml/device.go MinimumMemory)
METAL_CONTEXT_BYTES = 512 * MIB
VISION_BYTES = 1024 * MIB  # what an image encoder works in; Ollama raises its margin by as much
HOST_BYTES = 512 * MIB  # buffers beside a fully offloaded model
SPLIT_LOSS = 0.05  # whole layers never fill several devices evenly


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """
    A model's bytes at one context, and what its process takes beside them.

    `copies` are weights that the processor holds a second time, and a GPU does not.
    """

    weights: int
    copies: int
    embedding: int
    tied: bool
    kv: int
    compute: int
    projector: int
    process: int
    layers: int

    @property
    def on_device(self) -> int:
        """Weights that a GPU holds when every layer lies there."""
        return self.weights if self.tied else self.weights - self.embedding

    @property
    def vision(self) -> int:
        """Room for the image encoder's own work."""
        return VISION_BYTES if self.projector else 0

    @property
    def on_host(self) -> int:
        """All of it without a GPU."""
        parts = self.weights + self.copies + self.kv + self.compute + self.projector
        return parts + self.vision + self.process


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """
    Device memory that one model can use as a whole.

    `free_bytes` what is free now, `usable_bytes` of it for layers, cache and compute once
    margin and contexts are taken off. `unified`: it is taken from the RAM.
    """

    gpus: tuple[Gpu, ...]
    free_bytes: int
    usable_bytes: int
    context_bytes: int
    unified: bool

    @property
    def bandwidth_bytes_s(self) -> float:
        """Of the slowest device that says; layers run one after the other."""
        return min((gpu.bandwidth_bytes_s for gpu in self.gpus if gpu.bandwidth_bytes_s), default=0)


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is spread: bytes in RAM and on devices, and how many layers on the latter."""

    placement: Placement
    ram_bytes: int
    vram_bytes: int
    gpu_layers: int
    overhead_bytes: int
    pool: Pool | None = None


def pools(hardware: Hardware) -> list[Pool]:
    """
    Each usable GPU alone, the roomiest first, then all of one library together.

    Libraries never mix in one model. A GPU whose free memory is unknown offers nothing.
    """
    usable = [gpu for gpu in hardware.gpus if gpu.usable and gpu.free_bytes is not None]
    alone = [_pool((gpu,), hardware) for gpu in usable]
    alone.sort(key=lambda pool: (pool.unified, -pool.usable_bytes))
    groups = []
    for library in sorted({gpu.library for gpu in usable}):
        members = tuple(gpu for gpu in usable if gpu.library == library and not gpu.unified)
        if len(members) > 1:
            groups.append(_pool(members, hardware))
    groups.sort(key=lambda pool: -pool.usable_bytes)
    return alone + groups


def _pool(gpus: tuple[Gpu, ...], hardware: Hardware) -> Pool:
    unified = gpus[0].unified
    free = sum(gpu.free_bytes or 0 for gpu in gpus)
    context = sum(METAL_CONTEXT_BYTES if gpu.library == "metal" else CONTEXT_BYTES for gpu in gpus)
    if unified:
        free = min(free, hardware.ram_available_bytes)
        usable = free - context
    else:
        usable = free - context - MARGIN_BYTES * len(gpus)
    if len(gpus) > 1:
        usable = int(usable * (1 - SPLIT_LOSS))
    return Pool(
        gpus=gpus,
        free_bytes=free,
        usable_bytes=max(usable, 0),
        context_bytes=context,
        unified=unified,
    )


def share(parts: Parts, hardware: Hardware) -> Share:
    """Spread *parts* as llama.cpp would: on one GPU, else on several, else split, else CPU."""
    choices = pools(hardware)
    for pool in choices:
        if _device_need(parts, pool) <= pool.usable_bytes:
            return _whole(parts, pool)
    if choices:
        best = max(choices, key=lambda pool: pool.usable_bytes)
        layers = _layers_that_fit(parts, best)
        if layers > 0:
            return _split(parts, best, layers)
    return Share(
        placement=Placement.CPU,
        ram_bytes=parts.on_host,
        vram_bytes=0,
        gpu_layers=0,
        overhead_bytes=parts.process + parts.vision,
    )


def _device_need(parts: Parts, pool: Pool) -> int:
    # Every device has a compute buffer of its own.
    compute = parts.compute * len(pool.gpus)
    return parts.on_device + parts.kv + compute + parts.projector + parts.vision


def _whole(parts: Parts, pool: Pool) -> Share:
    # With unified memory the host's copy of the input table is the same memory's.
    return Share(
        placement=Placement.GPU,
        ram_bytes=parts.embedding + parts.process + HOST_BYTES,
        vram_bytes=_device_need(parts, pool) + pool.context_bytes,
        gpu_layers=parts.layers + 1,
        overhead_bytes=parts.process + parts.vision + HOST_BYTES + pool.context_bytes,
        pool=pool,
    )


def _layers_that_fit(parts: Parts, pool: Pool) -> int:
    if not parts.layers:
        return 0
    room = pool.usable_bytes - parts.compute * len(pool.gpus) - parts.projector - parts.vision
    per_layer = parts.on_device / (parts.layers + 1) + parts.kv / parts.layers
    return max(0, min(int(room / per_layer), parts.layers)) if per_layer else 0


def _split(parts: Parts, pool: Pool, layers: int) -> Share:
    weights = parts.on_device * layers // (parts.layers + 1)
    cache = parts.kv * layers // parts.layers
    copies = parts.copies * layers // parts.layers
    compute = parts.compute * len(pool.gpus)
    beside = parts.projector + parts.vision + pool.context_bytes
    return Share(
        placement=Placement.SPLIT,
        ram_bytes=parts.on_host
        - weights
        - cache
        - copies
        - parts.projector
        - parts.vision
        + HOST_BYTES,
        vram_bytes=weights + cache + compute + beside,
        gpu_layers=layers,
        overhead_bytes=parts.process + parts.vision + HOST_BYTES + pool.context_bytes,
        pool=pool,
    )


def parts_of(shape: ModelShape, *, kv: int, compute: int, process: int, copies: int) -> Parts:
    """The parts of *shape*; *copies* are bytes of weights that are held twice."""
    return Parts(
        weights=shape.weights_bytes,
        copies=copies,
        embedding=shape.embedding_bytes,
        tied=shape.tied,
        kv=kv,
        compute=compute,
        projector=shape.projector_bytes,
        process=process,
        layers=len(shape.layers),
    )

"""
What a prediction is made from, and what it says: the machine, the model, the fit.

Plain values without a reader or a formula. Bytes are bytes; 0 means unknown for a total,
and `None` for what may honestly be 0.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """
    The processor: `cores` physical, `threads` logical, `quota` cores a container may use.

    `features` are the instruction sets that decide how fast a model runs (avx2, avx512f,
    amx_int8, f16c, neon, dotprod, …). 0 and "" are unknown.
    """

    model: str = ""
    architecture: str = ""
    cores: int = 0
    threads: int = 0
    quota: float = 0.0
    features: tuple[str, ...] = ()

    @property
    def usable(self) -> float:
        """Cores that work for us at once; at least 1."""
        known = [float(count) for count in (self.cores or self.threads, self.quota) if count]
        return max(1.0, min(known, default=1.0))


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """Where models are kept. `in_memory`: what is written there is taken from the RAM."""

    path: str
    free_bytes: int = 0
    total_bytes: int = 0
    filesystem: str = ""
    read_only: bool = False

    @property
    def in_memory(self) -> bool:
        """True on tmpfs and its like."""
        return self.filesystem in {"tmpfs", "ramfs", "devtmpfs"}


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """
    One accelerator that a model may use.

    `vendor` is nvidia, amd, apple or intel; `library` what drives it (cuda, rocm, metal,
    vulkan). `unified` memory is the machine's own RAM: `total_bytes` is then what the GPU
    may take of it. `free_bytes` None: unknown. `bandwidth_bytes_s` 0: unknown.
    `usable` False: it is there, and `reason` says why it cannot serve.
    """

    index: int
    vendor: str
    name: str = ""
    library: str = ""
    id: str = ""
    total_bytes: int = 0
    free_bytes: int | None = None
    unified: bool = False
    driver: str = ""
    compute: str = ""
    bandwidth_bytes_s: float = 0.0
    usable: bool = True
    reason: str = ""


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """
    This machine at one moment.

    `ram_available_bytes` is what can be taken now without swapping, the container's limit
    already counted in; `limit_bytes` is that limit (0 none). `kind` is "", "container",
    "vm" or "wsl". `notes` tell, for people, what could not be found out and why.
    """

    platform: str = ""
    machine: str = ""
    kind: str = ""
    ram_total_bytes: int = 0
    ram_available_bytes: int = 0
    limit_bytes: int = 0
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    cpu: Cpu = Cpu()
    disk: Disk = Disk(path="")
    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ram_usable_bytes(self) -> int:
        """All that this process could ever have: the RAM, or its container's share."""
        known = [size for size in (self.ram_total_bytes, self.limit_bytes) if size]
        return min(known, default=0)

    @property
    def known(self) -> bool:
        """True when the memory could be measured at all."""
        return self.ram_total_bytes > 0


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """
    What one block keeps per sequence.

    `key` and `value` are elements per cached token, `window` the tokens that are kept (0
    all), `state_bytes` a recurrent state that does not grow with the context.
    """

    key: int = 0
    value: int = 0
    window: int = 0
    state_bytes: int = 0


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """
    A model as the formulas see it; 0 is unknown, `known` False when only a size is known.

    `weights_bytes` all tensors; `embedding_bytes` the input table, which stays in RAM even
    with every layer on a GPU, `tied` when it serves as the output too; `repack_bytes` the
    weights that llama.cpp rewrites for the CPU; `active_bytes` what one token reads;
    `work` the values that the widest step of a layer holds per token, beside the stream;
    `tensors` how many there are. An encoder's layers keep nothing.
    """

    architecture: str = ""
    weights_bytes: int = 0
    embedding_bytes: int = 0
    repack_bytes: int = 0
    active_bytes: int = 0
    tied: bool = False
    layers: tuple[Layer, ...] = ()
    embedding: int = 0
    work: int = 0
    heads: int = 0
    vocab: int = 0
    context_tokens: int = 0
    parameters: int = 0
    quantization: str = ""
    projector_bytes: int = 0
    tensors: int = 0
    known: bool = True

    @property
    def encoder(self) -> bool:
        """True for a model that sees a text as a whole, and keeps nothing of it."""
        kept = any(layer.key or layer.state_bytes for layer in self.layers)
        return bool(self.layers) and not kept


class Verdict(StrEnum):
    """Whether a model runs here: need up to 90 % of what is free, up to 110 %, or more."""

    FITS = "fits"
    TIGHT = "tight"
    NO = "no"
    UNKNOWN = "unknown"


class Placement(StrEnum):
    """Where the layers lie."""

    GPU = "gpu"
    SPLIT = "split"
    CPU = "cpu"


class Scarce(StrEnum):
    """The memory that decides: the RAM, a GPU's own, or one that both share."""

    RAM = "ram"
    GPU = "gpu"
    SHARED = "shared"


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """
    A prediction for one model at one context on one machine.

    `needed_bytes` is the sum of the parts and equals `ram_bytes` + `vram_bytes`;
    `available_bytes` is what the `scarce` one of the two had to offer. `gpu_layers` counts the
    output layer, as llama.cpp does. `max_context_tokens` is the longest context that
    fits where this one lies (0: none, or unknown). `tokens_per_s` is (low, high), or None
    when nothing is known. `disk_needed_bytes` is what a download would write.
    `could_fit`: the machine is large enough once other programs make room; False only
    where no closing of programs helps. `measured_bytes` and `measured_tokens_per_s` are 0
    where only the formula speaks; else they are what this machine saw, and `needed_bytes`
    and `tokens_per_s` follow them.
    """

    verdict: Verdict
    reason: str
    placement: Placement = Placement.CPU
    context_tokens: int = 0
    needed_bytes: int = 0
    available_bytes: int = 0
    scarce: Scarce = Scarce.RAM
    ram_bytes: int = 0
    vram_bytes: int = 0
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    projector_bytes: int = 0
    overhead_bytes: int = 0
    gpu_layers: int = 0
    layers: int = 0
    max_context_tokens: int = 0
    tokens_per_s: tuple[float, float] | None = None
    disk_needed_bytes: int = 0
    disk_free_bytes: int = 0
    could_fit: bool = True
    measured_bytes: int = 0
    measured_tokens_per_s: float = 0.0

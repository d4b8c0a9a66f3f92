"""Whether a model fits this machine, before a byte of it is downloaded. Pure."""

from localfirst.machine.fit.facts import (
    Cpu,
    Disk,
    Fit,
    Gpu,
    Hardware,
    Layer,
    ModelShape,
    Placement,
    Verdict,
)
from localfirst.machine.fit.layers import ENCODERS
from localfirst.machine.fit.measured import BELIEVED, Measured, corrected
from localfirst.machine.fit.memory import (
    checkpoint_bytes,
    checkpoints,
    compute_bytes,
    default_batch,
    embedding_batch,
    kv_bytes,
)
from localfirst.machine.fit.pools import CONTEXT_BYTES
from localfirst.machine.fit.room import at_rest, freed
from localfirst.machine.fit.shape import shape_from_gguf, shape_from_size
from localfirst.machine.fit.verdict import EMBEDDED, OLLAMA, Loading, predict, shown

__all__ = [
    "BELIEVED",
    "CONTEXT_BYTES",
    "EMBEDDED",
    "ENCODERS",
    "OLLAMA",
    "Cpu",
    "Disk",
    "Fit",
    "Gpu",
    "Hardware",
    "Layer",
    "Loading",
    "Measured",
    "ModelShape",
    "Placement",
    "Verdict",
    "at_rest",
    "checkpoint_bytes",
    "checkpoints",
    "compute_bytes",
    "corrected",
    "default_batch",
    "embedding_batch",
    "freed",
    "kv_bytes",
    "predict",
    "shape_from_gguf",
    "shape_from_size",
    "shown",
]

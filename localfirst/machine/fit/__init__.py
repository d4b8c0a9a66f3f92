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
from localfirst.machine.fit.memory import compute_bytes, default_batch, kv_bytes
from localfirst.machine.fit.shape import shape_from_gguf, shape_from_size
from localfirst.machine.fit.verdict import Loading, predict, shown

__all__ = [
    "Cpu",
    "Disk",
    "Fit",
    "Gpu",
    "Hardware",
    "Layer",
    "Loading",
    "ModelShape",
    "Placement",
    "Verdict",
    "compute_bytes",
    "default_batch",
    "kv_bytes",
    "predict",
    "shape_from_gguf",
    "shape_from_size",
    "shown",
]

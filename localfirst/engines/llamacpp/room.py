"""Whether and how a model's child fits the memory there is. Pure."""

from __future__ import annotations

import msgspec

from localfirst.engines.llamacpp.plan import (
    MIN_CONTEXT_TOKENS,
    ChildPlan,
    embedding_batch,
    threads_for,
)
from localfirst.errors import InsufficientResources
from localfirst.machine import fit
from localfirst.machine.fit import Fit, Hardware, ModelShape

GENEROUS = 0.5
"""More slots than one are worth at most this share of the free memory."""


def predict(plan: ChildPlan, shape: ModelShape, hardware: Hardware) -> Fit | None:
    """What loading *plan* will take; None when nothing is known of the model."""
    if not shape.known:
        return None
    loading = msgspec.structs.replace(
        fit.EMBEDDED,
        parallel=plan.parallel,
        mmap=plan.mapped,
        batch=plan.batch or fit.EMBEDDED.batch,
        embedding=plan.embedding,
    )
    return fit.predict(shape, hardware, context_tokens=plan.context_tokens, loading=loading)


def arranged(plan: ChildPlan, shape: ModelShape, hardware: Hardware) -> ChildPlan:
    """*plan* with as many slots as fit easily, each has a context of its own; batch, threads."""
    threads = threads_for(hardware.cpu, shape.weights_bytes)
    # llama.cpp rewrites such weights for the CPU; of a mapped file they would be held twice.
    mapped = not shape.repack_bytes or bool(hardware.gpus)
    batch = embedding_batch(plan.context_tokens, plan.pooling) if plan.embedding else 0
    kept = fit.checkpoints(plan.context_tokens)
    plan = msgspec.structs.replace(plan, mapped=mapped, batch=batch, checkpoints=kept)
    for parallel in (plan.parallel, 2):
        fewer = msgspec.structs.replace(
            plan, threads=threads, parallel=min(parallel, plan.parallel)
        )
        found = predict(fewer, shape, hardware)
        if found is not None and _easy(found):
            return fewer
    return msgspec.structs.replace(plan, threads=threads, parallel=1)


def _easy(found: Fit) -> bool:
    return (
        found.verdict is fit.Verdict.FITS and found.needed_bytes <= GENEROUS * found.available_bytes
    )


def fits(found: Fit | None) -> bool:
    """Whether there is no reason not to try."""
    return found is None or found.verdict is not fit.Verdict.NO


def tight(found: Fit | None) -> bool:
    """Whether it barely fits."""
    return found is not None and found.verdict is fit.Verdict.TIGHT


def placed(plan: ChildPlan, found: Fit | None) -> ChildPlan:
    """As many layers on a GPU as were predicted to fit; llama.cpp's own choice when all do."""
    if found is None or found.placement is not fit.Placement.SPLIT:
        return plan
    return msgspec.structs.replace(plan, gpu_layers=found.gpu_layers)


def shortened(plan: ChildPlan, found: Fit) -> ChildPlan:
    """
    *plan* with a context that fits.

    Raises:
        InsufficientResources: not even a short one does.
    """
    if found.max_context_tokens >= MIN_CONTEXT_TOKENS:
        smaller = min(plan.context_tokens, found.max_context_tokens)
        return msgspec.structs.replace(plan, context_tokens=smaller, parallel=1)
    raise InsufficientResources(
        f"`{plan.alias}` does not fit: {found.reason}",
        kind="vram" if found.placement is fit.Placement.GPU else "ram",
        needed_bytes=found.needed_bytes,
        available_bytes=found.available_bytes,
    )

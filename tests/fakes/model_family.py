"""
The models that the constants of `machine.fit` were fitted with, and how each is loaded.

What the formulas say of shapes that nobody looked at while writing them is in
`model_family_held_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from localfirst.machine import fit
from localfirst.machine.fit import Fit, Hardware
from localfirst.models import gguf
from tests.fakes.engine_memory import Taken, measure
from tests.fakes.model_shapes import delta, gemma3, hybrid, latent, llama, mamba, mixture


@dataclass(frozen=True)
class Member:
    """One model of the family, and how it is loaded."""

    name: str
    make: Callable[[Path], int]
    context: int
    parallel: int = 1
    cache_type: str = "f16"
    flash_attention: bool = True
    mmap: bool = False
    embedding: bool = False
    prompt_tokens: int = 1200  # enough to touch every buffer once


def predicted(member: Member, path: Path) -> Fit:
    """Write *member* to *path* and predict what it takes on a machine without a GPU."""
    size_bytes = member.make(path)
    shape = fit.shape_from_gguf(gguf.read_file(path), size_bytes)
    loading = msgspec.structs.replace(
        fit.EMBEDDED,
        parallel=member.parallel,
        cache_type_k=member.cache_type,
        cache_type_v=member.cache_type,
        flash_attention=member.flash_attention,
        mmap=member.mmap,
    )
    machine = Hardware(ram_total_bytes=64 * 2**30, ram_available_bytes=48 * 2**30)
    return fit.predict(shape, machine, context_tokens=member.context, loading=loading)


def weighed(member: Member, path: Path) -> Taken:
    """Load the file that `predicted` wrote; raises `NotMeasured`."""
    return measure(
        path,
        context=member.context,
        parallel=member.parallel,
        cache_type=member.cache_type,
        flash_attention=member.flash_attention,
        mmap=member.mmap,
        embedding=member.embedding,
        prompt_tokens=member.prompt_tokens,
    )


WIDE = {"embedding": 1024, "feed_forward": 2816, "heads": 16}
FAMILY = (
    Member(
        "dense, every head its own key",
        llama(**WIDE, layers=8, kv_heads=16, tensor_type="F16"),
        4096,
    ),
    Member("grouped keys 16:4", llama(**WIDE, layers=8, kv_heads=4, tensor_type="F16"), 8192),
    Member("one key for all heads", llama(**WIDE, layers=8, kv_heads=1, tensor_type="F16"), 32768),
    Member("float32", llama(**WIDE, layers=4, kv_heads=4), 2048),
    Member("Q8_0", llama(**WIDE, layers=12, kv_heads=4, tensor_type="Q8_0"), 4096),
    Member(
        "Q4_0, rewritten for the CPU",
        llama(**WIDE, layers=16, kv_heads=4, tensor_type="Q4_0"),
        4096,
    ),
    Member(
        "the same, mapped: held twice",
        llama(**WIDE, layers=16, kv_heads=4, tensor_type="Q4_0"),
        4096,
        mmap=True,
    ),
    Member(
        "Q4_K, rewritten for the CPU",
        llama(**WIDE, layers=16, kv_heads=4, tensor_type="Q4_K"),
        4096,
    ),
    Member("Q6_K", llama(**WIDE, layers=12, kv_heads=8, tensor_type="Q6_K"), 4096),
    Member(
        "large vocabulary",
        llama(**WIDE, layers=4, kv_heads=4, vocab=64000, tensor_type="Q8_0"),
        2048,
    ),
    Member(
        "deep and narrow",
        llama(embedding=512, feed_forward=1408, heads=8, layers=32, kv_heads=2, tensor_type="F16"),
        8192,
    ),
    Member(
        "cache in q8_0",
        llama(**WIDE, layers=8, kv_heads=16, tensor_type="Q8_0"),
        8192,
        cache_type="q8_0",
    ),
    Member(
        "cache in q4_0",
        llama(**WIDE, layers=8, kv_heads=16, tensor_type="Q8_0"),
        8192,
        cache_type="q4_0",
    ),
    Member(
        "four sequences", llama(**WIDE, layers=8, kv_heads=4, tensor_type="Q8_0"), 4096, parallel=4
    ),
    Member(
        "without flash attention",
        llama(**WIDE, layers=8, kv_heads=4, tensor_type="Q8_0"),
        2048,
        flash_attention=False,
        prompt_tokens=2032,
    ),
    Member(
        "sliding windows, tied tables",
        gemma3(layers=12, wide=768, deep=3072, count=4, kv=2, size=256, window=512),
        16384,
    ),
    Member(
        "sliding windows, two sequences",
        gemma3(layers=12, wide=768, deep=3072, count=4, kv=2, size=256, window=512),
        8192,
        parallel=2,
    ),
    Member(
        "mixture of experts",
        mixture(layers=6, wide=768, deep=384, count=12, kv=4, size=64, experts=16, used=4),
        4096,
    ),
    Member(
        "latent attention",
        latent(layers=8, wide=1024, deep=2816, count=16, rank=256, rope=32),
        16384,
    ),
    Member("recurrent only", mamba(layers=8, wide=768, inner=1536, state=16), 4096),
    Member(
        "recurrent and attention",
        hybrid(layers=8, wide=768, deep=2048, count=12, kv=4, size=64, inner=1536, state=16),
        8192,
    ),
    Member(
        "delta nets and attention",
        delta(layers=8, wide=768, deep=2048, count=8, kv=2, size=128, inner=1536),
        8192,
    ),
)

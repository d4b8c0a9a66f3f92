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
from tests.fakes.model_shapes_more import bert, dense, mixtral, qwen3, starcoder2


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
        embedding=member.embedding,
        batch=fit.embedding_batch(member.context) if member.embedding else fit.EMBEDDED.batch,
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
    Member(
        "heads wider than the stream",
        qwen3(layers=7, wide=512, deep=1024, count=16, kv=4, size=128, kind="Q8_0"),
        12288,
    ),
    Member(
        "shorter than a batch", dense(layers=6, wide=768, deep=2048, count=12, kv=4, size=64), 256
    ),
    Member(
        "few large experts (mixtral)",
        mixtral(layers=4, wide=768, deep=1792, count=12, kv=4, size=64, experts=8, used=2),
        4096,
    ),
    Member(
        "many small experts",
        mixture(layers=5, wide=640, deep=192, count=10, kv=2, size=128, experts=48, used=8),
        6144,
    ),
    Member(
        "delta nets, other sizes",
        delta(layers=12, wide=640, deep=1728, count=5, kv=1, size=256, inner=2048),
        4096,
    ),
    Member(
        "no gate (starcoder2)",
        starcoder2(layers=6, wide=768, deep=3072, count=12, kv=2, size=64),
        4096,
    ),
    Member(
        "encoder (bert)",
        bert(layers=6, wide=384, deep=1536, count=12, context=512, vocab=30522),
        512,
        embedding=True,
        prompt_tokens=2040,
    ),
    Member(
        "encoder of long texts (bert)",
        bert(layers=12, wide=768, deep=3072, count=12, context=2048, vocab=30522),
        2048,
        embedding=True,
        prompt_tokens=2040,
    ),
    Member(
        "decoder that embeds (qwen3)",
        qwen3(layers=8, wide=640, deep=1920, count=10, kv=5, size=64, kind="Q8_0"),
        2048,
        embedding=True,
        prompt_tokens=2040,
    ),
)

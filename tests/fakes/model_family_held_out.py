"""
Models that no constant of `machine.fit` was fitted to: other sizes, types and architectures.

They tell how far the formulas may be trusted, which the models they were fitted with cannot.
"""

from __future__ import annotations

from tests.fakes.model_family import Member
from tests.fakes.model_shapes import delta, gemma3, hybrid, latent, mamba, mixture
from tests.fakes.model_shapes_more import (
    bert,
    dense,
    gemma2,
    gemma_embedding,
    gpt_oss,
    mixtral,
    nomic_bert,
    phi3,
    qwen2,
    qwen3,
    starcoder2,
)

SMALL = {"layers": 6, "wide": 768, "deep": 2048, "count": 12, "kv": 4, "size": 64}

HELD_OUT = (
    Member(
        "20:5 heads, deep steps",
        dense(layers=5, wide=1280, deep=5120, count=20, kv=5, size=64, vocab=8000),
        6144,
    ),
    Member(
        "vocabulary of 128256, Q4_0",
        dense(**SMALL | {"layers": 3}, vocab=128256, kind="Q4_0"),
        1024,
    ),
    Member(
        "Q4_0 with a cache in q8_0",
        dense(layers=10, wide=768, deep=2048, count=12, kv=12, size=64, kind="Q4_0"),
        10240,
        cache_type="q8_0",
    ),
    Member(
        "Q8_0 with a cache in q8_0, two sequences",
        dense(layers=9, wide=640, deep=1728, count=10, kv=5, size=64, kind="Q8_0"),
        5120,
        parallel=2,
        cache_type="q8_0",
    ),
    Member(
        "Q5_K, shifted keys",
        qwen2(layers=6, wide=1536, deep=8960, count=12, kv=2, size=128, kind="Q5_K"),
        3072,
    ),
    Member(
        "BF16, three sequences",
        dense(layers=6, wide=896, deep=4864, count=14, kv=2, size=64, kind="BF16"),
        2560,
        parallel=3,
    ),
    Member(
        "IQ4_NL, head size 96",
        dense(layers=11, wide=960, deep=2560, count=10, kv=5, size=96, kind="IQ4_NL"),
        7168,
    ),
    Member(
        "Q3_K", dense(layers=6, wide=1024, deep=3584, count=8, kv=8, size=128, kind="Q3_K"), 1536
    ),
    Member(
        "a long context, cache in q4_0",
        dense(layers=3, wide=512, deep=1536, count=4, kv=2, size=64),
        10240,
        cache_type="q4_0",
        prompt_tokens=10000,
    ),
    Member(
        "without flash attention, longer",
        dense(layers=5, wide=640, deep=1792, count=10, kv=2, size=64, kind="Q8_0"),
        4096,
        flash_attention=False,
        prompt_tokens=4080,
    ),
    Member(
        "every other layer a window (gemma2)",
        gemma2(layers=8, wide=1152, deep=4608, count=8, kv=4, size=256, window=1024),
        5120,
    ),
    Member(
        "three sequences of windows (gemma3)",
        gemma3(layers=9, wide=640, deep=2560, count=6, kv=1, size=128, window=1024),
        6144,
        parallel=3,
    ),
    Member(
        "windows, sinks and experts (gpt-oss)",
        gpt_oss(
            layers=6, wide=576, deep=576, count=16, kv=2, size=64, window=128, experts=8, used=4
        ),
        8192,
    ),
    Member(
        "latent attention, rank 512",
        latent(layers=5, wide=1280, deep=3456, count=10, rank=512, rope=64),
        8192,
    ),
    Member("recurrent only, longer state", mamba(layers=12, wide=512, inner=1024, state=32), 2048),
    Member(
        "recurrent and attention, other sizes",
        hybrid(layers=12, wide=640, deep=1792, count=10, kv=2, size=64, inner=1280, state=32),
        6144,
        parallel=2,
    ),
    Member(
        "fused matrices (phi3)",
        phi3(layers=6, wide=768, deep=2304, count=8, kv=8, size=96),
        3072,
    ),
    Member(
        "queries half as wide again as the stream",
        qwen3(layers=5, wide=768, deep=768, count=9, kv=3, size=128, kind="Q8_0"),
        4608,
    ),
    Member(
        "few tokens of context, two sequences",
        dense(layers=4, wide=896, deep=2432, count=14, kv=2, size=64, kind="Q8_0"),
        160,
        parallel=2,
    ),
    Member(
        "four large experts in use (mixtral)",
        mixtral(layers=3, wide=640, deep=1280, count=10, kv=5, size=64, experts=6, used=4),
        3072,
    ),
    Member(
        "hundred tiny experts",
        mixture(layers=4, wide=896, deep=128, count=7, kv=1, size=128, experts=100, used=6),
        2560,
    ),
    Member(
        "delta nets, deep and narrow",
        delta(layers=16, wide=512, deep=1024, count=4, kv=1, size=128, inner=1024),
        10240,
    ),
    Member(
        "no gate, wide (starcoder2)",
        starcoder2(layers=4, wide=1024, deep=6144, count=16, kv=4, size=64),
        6144,
    ),
    Member(
        "encoder of other sizes (bert)",
        bert(layers=9, wide=576, deep=2304, count=9, context=1024, vocab=12000),
        1024,
        embedding=True,
        prompt_tokens=1020,
    ),
    Member(
        "gated encoder (nomic-bert)",
        nomic_bert(layers=8, wide=768, deep=3072, count=12, context=2048, vocab=30522),
        2048,
        embedding=True,
        prompt_tokens=2040,
    ),
    Member(
        "encoder with windows (gemma-embedding)",
        gemma_embedding(layers=12, wide=768, deep=1152, count=3, kv=1, size=256, window=512),
        2048,
        embedding=True,
        prompt_tokens=2040,
    ),
    Member(
        "decoder that embeds, large vocabulary (qwen3)",
        qwen3(layers=4, wide=512, deep=1536, count=8, kv=4, size=64, vocab=40000, kind="Q8_0"),
        1024,
        embedding=True,
        prompt_tokens=1016,
    ),
)

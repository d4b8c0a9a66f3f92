"""
Bytes by part, as llama.cpp allocates them.

KV cache: src/llama-kv-cache.cpp and llama-kv-cache-iswa.cpp. Compute buffer: measured on
dense llamas (`scripts/bench fit` prints the table) and exact there for large shapes.
"""

from __future__ import annotations

from localfirst.machine.fit.facts import Layer, ModelShape

MIB = 2**20

CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of one cached element by `cache_type_k`, `cache_type_v`."""

CELLS = 256  # the cache grows in steps of this many tokens (llama.cpp, GGML_PAD of n_ctx)


def default_batch(context_tokens: int) -> int:
    """Tokens computed at once: what Ollama passes as `-ub`; never more than the context."""
    return min(1024 if context_tokens > 4096 else 512, max(context_tokens, 1))


def padded(tokens: int) -> int:
    """*tokens* rounded up to whole steps of the cache."""
    return -(-tokens // CELLS) * CELLS


def kv_bytes(
    shape: ModelShape,
    context_tokens: int,
    *,
    parallel: int = 1,
    batch: int = 0,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
) -> int:
    """
    Bytes of all layers' caches for *parallel* sequences of *context_tokens* each.

    Raises:
        KeyError: a cache type that is not in `CACHE_BYTES`.
    """
    batch = batch or default_batch(context_tokens * parallel)
    per_key, per_value = CACHE_BYTES[cache_type_k], CACHE_BYTES[cache_type_v]
    total = 0.0
    for layer in shape.layers:
        cells = _cells(layer, context_tokens, parallel, batch)
        total += cells * (layer.key * per_key + layer.value * per_value)
        total += layer.state_bytes * parallel
    return int(total)


def _cells(layer: Layer, context_tokens: int, parallel: int, batch: int) -> int:
    whole = padded(context_tokens * parallel)
    if not layer.window:
        return whole
    return min(whole, padded(min(context_tokens * parallel, layer.window * parallel + batch)))


def compute_bytes(
    shape: ModelShape,
    context_tokens: int,
    *,
    parallel: int = 1,
    batch: int = 0,
    flash_attention: bool = True,
) -> int:
    """Bytes of the buffer that intermediate results live in, for one batch."""
    total_tokens = context_tokens * parallel
    batch = batch or default_batch(total_tokens)
    dense = batch * (12 * shape.feed_forward + 16 * shape.embedding + 20)
    if flash_attention:
        return dense + 2 * batch * context_tokens
    attention = 4 * batch * (1 + 4 * shape.embedding + total_tokens * (1 + shape.heads))
    return max(dense, attention, 4 * batch * (shape.embedding + shape.vocab))

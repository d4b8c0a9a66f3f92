"""
Bytes by part, as llama.cpp allocates them.

KV cache: src/llama-kv-cache.cpp and llama-kv-cache-iswa.cpp. Compute buffers: fitted to
what the engine reports, which `scripts/bench fit` prints beside the predictions.
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

STREAM_COPIES = 5  # of the residual stream, live at once; Ollama 0.33's llama.cpp has 4
CELLS = 256  # the cache grows in steps of this many tokens (llama.cpp, GGML_PAD of n_ctx)


MANY_NODES = {"qwen3next", "qwen35", "qwen35moe", "kimi-linear", "deepseek4"}
LEAST_NODES = 1024
NODE_BYTES = 1280  # a tensor's description in two graphs, and the scheduler's tables, measured


def default_batch(context_tokens: int) -> int:
    """Tokens computed at once: what Ollama passes as `-ub`; never more than the context."""
    return min(1024 if context_tokens > 4096 else 512, max(context_tokens, 1))


def embedding_batch(context_tokens: int) -> int:
    """Tokens computed at once by the embedded engine for vectors: a text must be in one batch."""
    return max(512, min(context_tokens, 8192))


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
    """Cells of all sequences; each has its own stream (llama-server without `--kv-unified`)."""
    whole = padded(context_tokens)
    if layer.window:
        whole = min(whole, padded(layer.window + batch))
    return whole * parallel


def compute_bytes(
    shape: ModelShape,
    context_tokens: int,
    *,
    parallel: int = 1,
    batch: int = 0,
    flash_attention: bool = True,
    stream_copies: int = STREAM_COPIES,
    embedding: bool = False,
) -> int:
    """
    Bytes of the buffers that intermediate results live in, for one batch.

    The residual stream is held *stream_copies* times over, and the widest step of a layer
    comes on top; then the attention mask (half precision), or without flash attention the
    scores themselves; last the logits of each sequence. With *embedding* a decoder's
    logits are wanted of every token, and can be the widest step.
    """
    batch = min(batch or default_batch(context_tokens * parallel), context_tokens * parallel)
    stream = 4 * stream_copies * shape.embedding + 20
    cells = [_cells(layer, context_tokens, 1, batch) for layer in shape.layers if layer.key]
    seen = sum(set(cells))
    if shape.encoder:  # the batch itself, and once more where windows look at less of it
        seen = 2 * batch if any(layer.window for layer in shape.layers) else batch
    work = max(shape.work, shape.vocab) if embedding and not shape.encoder else shape.work
    if flash_attention:
        steps = batch * (4 * work + stream + 2 * seen)
    else:
        scores = 4 * max(cells, default=0) * (shape.heads + 1)
        narrow = 2 * max((layer.key for layer in shape.layers), default=0)
        steps = batch * max(4 * work + stream, scores + 4 * narrow + 4 * shape.embedding + stream)
    return steps + 4 * shape.vocab * parallel


def work_bytes(shape: ModelShape, context_tokens: int, *, parallel: int = 1, batch: int = 0) -> int:
    """
    RAM that the CPU's kernels borrow without flash attention: the scores in half precision.

    Not in the engine's report (ggml-cpu allocates its plan's work buffer on first use).
    """
    batch = batch or default_batch(context_tokens * parallel)
    cells = max((_cells(layer, context_tokens, 1, batch) for layer in shape.layers), default=0)
    return 2 * batch * cells * shape.heads


def checkpoints(context_tokens: int) -> int:
    """How many copies of its state a sequence of this length makes in one go; at most 32."""
    return min(2 + max(0, context_tokens - 1) // 8192, 32)


def checkpoint_bytes(shape: ModelShape, context_tokens: int, *, parallel: int = 1) -> int:
    """
    RAM for copies of what cannot be rolled back: windows and recurrent states.

    llama-server keeps one every 8192 tokens and two at a prompt's end, so that a changed
    conversation need not be read from its start; unless told otherwise (`--ctx-checkpoints`)
    up to 32 as the conversation goes on.
    """
    one = sum(
        min(layer.window, context_tokens) * (layer.key + layer.value) * 2 + layer.state_bytes
        for layer in shape.layers
        if layer.window or layer.state_bytes
    )
    return one * parallel * checkpoints(context_tokens)


def graph_bytes(shape: ModelShape, context_tokens: int, *, batch: int) -> int:
    """
    RAM for the plan of a computation beyond the smallest: its nodes, several times over.

    Not in the engine's report. How many nodes: `llama_context::graph_max_nodes` in
    src/llama-context.cpp; delta nets need tens for each token of a batch.
    """
    nodes = 8 * shape.tensors
    if shape.architecture in MANY_NODES:
        nodes = max(40 * min(batch, context_tokens), 32 * shape.tensors)
    return NODE_BYTES * max(0, nodes - LEAST_NODES)

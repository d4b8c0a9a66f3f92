"""
From a GGUF header to the numbers that the formulas need.

What a header leaves out is assumed so that the prediction comes out too large rather than
too small.
"""

from __future__ import annotations

from localfirst.machine.fit.facts import ModelShape
from localfirst.machine.fit.layers import CACHELESS, heads_of, layers_of, size, sizes
from localfirst.models.gguf import GgufHeader, LongArray
from localfirst.models.gguf_types import TensorType

# Types that llama.cpp rewrites into an interleaved copy for the CPU
# (ggml/src/ggml-cpu/repack.cpp, `ggml_repack_get_optimal_repack_type`).
_REPACKED = {TensorType.Q4_0, TensorType.IQ4_NL, TensorType.Q4_K, TensorType.Q2_K}


def shape_from_gguf(
    header: GgufHeader, file_size_bytes: int, *, projector_bytes: int = 0
) -> ModelShape:
    """
    The shape that *header* tells; *file_size_bytes* stands in for tensors not seen.

    *projector_bytes* is the size of a separate image encoder. A header without an
    architecture, a layer count, or anything to say of its cache gives `shape_from_size`.
    """
    layers = layers_of(header)
    encodes = bool(layers) and header.architecture in CACHELESS
    if not encodes and not any(layer.key or layer.state_bytes for layer in layers):
        return shape_from_size(file_size_bytes + projector_bytes)
    weights = sum(tensor.size_bytes for tensor in header.tensors)
    if not header.complete or not weights:
        weights = file_size_bytes
    return ModelShape(
        architecture=header.architecture,
        weights_bytes=weights,
        embedding_bytes=min(_embedding_bytes(header), weights),
        repack_bytes=_repack_bytes(header),
        active_bytes=_active_bytes(header, weights),
        tied=header.complete and not _tensor_bytes(header, "output.weight"),
        layers=layers,
        embedding=size(header, "embedding_length"),
        work=_work(header),
        heads=max(sizes(header, "attention.head_count"), default=0),
        vocab=_vocab(header),
        context_tokens=max(header.number("context_length"), 0),
        parameters=_parameters(header),
        quantization=header.quantization,
        projector_bytes=projector_bytes,
        tensors=len(header.tensors) if header.complete else 12 * len(layers),
    )


def shape_from_size(size_bytes: int) -> ModelShape:
    """A model of which only the size is known; predictions for it say `unknown` when close."""
    return ModelShape(weights_bytes=size_bytes, active_bytes=size_bytes, known=False)


def _work(header: GgufHeader) -> int:
    """Float32 values per token of the widest step: feed-forward, attention or state."""
    return max(_feed_forward(header), _attention(header), _state_work(header), 0)


def _feed_forward(header: GgufHeader) -> int:
    """
    Of a feed-forward: gate, up and their product; without a gate one matrix's, in place.

    What comes down takes the room of gate and up again, where that is enough: buffers are
    not moved together (ggml/src/ggml-alloc.c). Many small experts have not enough.
    """
    embedding = size(header, "embedding_length")
    dense = max(sizes(header, "feed_forward_length"), default=0)
    used = size(header, "expert_used_count") if size(header, "expert_count") else 0
    expert = used * (size(header, "expert_feed_forward_length") or dense)
    if not _gated(header):
        return max(dense, expert, embedding * used)
    down = 0 if 2 * expert >= embedding * used else embedding * used
    return max(3 * dense, 3 * expert + down)


def _gated(header: GgufHeader) -> bool:
    """Whether the feed-forward has a gate, of its own or in one matrix with `up`."""
    if not header.complete or not header.tensors:
        return True
    deep = max(sizes(header, "feed_forward_length"), default=0)
    return any(
        "ffn_gate" in tensor.name or ("ffn_up." in tensor.name and max(tensor.shape) == 2 * deep)
        for tensor in header.tensors
    )


def _attention(header: GgufHeader) -> int:
    """Of an attention: queries, keys and values; then the queries beside the result."""
    heads = max(sizes(header, "attention.head_count"), default=0)
    rank = size(header, "attention.kv_lora_rank")
    if rank:
        latent = rank + size(header, "rope.dimension_count", 64)
        return heads * (2 * latent + size(header, "attention.value_length_mla", 128))
    if header.architecture in CACHELESS:
        # Of the stream's copies fewer live beside them; keys and values in half precision.
        return 3 * size(header, "embedding_length") // 2
    kv_heads = max(sizes(header, "attention.head_count_kv"), default=0)
    return heads_of(header).key * max(heads + 2 * kv_heads, 2 * heads)


def _state_work(header: GgufHeader) -> int:
    """Of a recurrent block: Mamba's scan, or the gated delta net of the Qwen family."""
    inner = size(header, "ssm.inner_size")
    if size(header, "ssm.group_count"):
        return 4 * inner + inner // 8
    return 6 * inner - 2 * size(header, "embedding_length")


def _vocab(header: GgufHeader) -> int:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, LongArray):
        return tokens.count
    return len(tokens) if isinstance(tokens, tuple) else size(header, "vocab_size")


def _tensor_bytes(header: GgufHeader, name: str) -> int:
    return sum(tensor.size_bytes for tensor in header.tensors if tensor.name == name)


def _embedding_bytes(header: GgufHeader) -> int:
    seen = _tensor_bytes(header, "token_embd.weight")
    # Unseen, half a byte a weight: no common quantisation of this table is smaller.
    return seen or _vocab(header) * size(header, "embedding_length") // 2


def _repack_bytes(header: GgufHeader) -> int:
    return sum(
        tensor.size_bytes
        for tensor in header.tensors
        if tensor.type in _REPACKED and len(tensor.shape) > 1 and tensor.name != "token_embd.weight"
    )


def _active_bytes(header: GgufHeader, weights: int) -> int:
    """What one token reads: all but the input table, and of the experts those in use."""
    experts, used = size(header, "expert_count"), size(header, "expert_used_count")
    mixture = sum(tensor.size_bytes for tensor in header.tensors if "_exps" in tensor.name)
    if experts > 0 and header.complete:
        weights -= mixture - mixture * min(used, experts) // experts
    elif experts > 0:
        # Attention and shared parts of the common mixtures are about a tenth.
        weights = weights // 10 + weights * min(used, experts) // experts * 9 // 10
    if header.complete and _tensor_bytes(header, "output.weight"):
        weights -= _tensor_bytes(header, "token_embd.weight")
    return max(weights, 1)


def _parameters(header: GgufHeader) -> int:
    stated = header.metadata.get("general.parameter_count")
    if isinstance(stated, int) and stated > 0:
        return stated
    if not header.complete:
        return 0
    total = 0
    for tensor in header.tensors:
        elements = 1
        for length in tensor.shape:
            elements *= length
        total += elements
    return total

"""
From a GGUF header to the numbers that the formulas need.

Key names: github.com/ggml-org/llama.cpp, src/llama-arch.cpp. What a header leaves out is
assumed so that the prediction comes out too large rather than too small.
"""

from __future__ import annotations

from collections.abc import Callable

from localfirst.machine.fit.facts import Layer, ModelShape
from localfirst.models.gguf import GgufHeader, LongArray
from localfirst.models.gguf_types import TensorType

# Layer i attends within the window only, for architectures whose older files do not say it
# (llama.cpp, `set_swa_pattern` in src/llama-model.cpp).
_WINDOWED: dict[str, Callable[[int], bool]] = {
    "gemma2": lambda i: i % 2 == 0,
    "gemma3": lambda i: (i + 1) % 6 != 0,
    "gemma3n": lambda i: (i + 1) % 5 != 0,
    "gpt-oss": lambda i: i % 2 == 0,
    "llama4": lambda i: (i + 1) % 4 != 0,
    "olmo2": lambda i: (i + 1) % 4 != 0,
    "olmo3": lambda i: (i + 1) % 4 != 0,
    "cohere2": lambda i: (i + 1) % 4 != 0,
    "exaone4": lambda i: (i + 1) % 4 != 0,
}

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
    count = header.number("block_count")
    layers = tuple(_layer(header, index) for index in range(count if 0 < count <= 4096 else 0))
    if not header.architecture or not any(layer.key or layer.state_bytes for layer in layers):
        return shape_from_size(file_size_bytes + projector_bytes)
    weights = sum(tensor.size_bytes for tensor in header.tensors)
    if not header.complete or not weights:
        weights = file_size_bytes
    heads = [number for number in header.numbers("attention.head_count") if number > 0]
    return ModelShape(
        architecture=header.architecture,
        weights_bytes=weights,
        embedding_bytes=_embedding_bytes(header),
        repack_bytes=_repack_bytes(header),
        active_bytes=_active_bytes(header, weights),
        tied=header.complete and not _tensor_bytes(header, "output.weight"),
        layers=layers,
        embedding=header.number("embedding_length"),
        work=_work(header),
        heads=max(heads, default=0),
        vocab=_vocab(header),
        context_tokens=header.number("context_length"),
        parameters=_parameters(header),
        quantization=header.quantization,
        projector_bytes=projector_bytes,
    )


def shape_from_size(size_bytes: int) -> ModelShape:
    """A model of which only the size is known; predictions for it say `unknown` when close."""
    return ModelShape(weights_bytes=size_bytes, active_bytes=size_bytes, known=False)


def _layer(header: GgufHeader, index: int) -> Layer:
    if _recurrent(header, index):
        return Layer(state_bytes=_state_bytes(header))
    rank = header.number("attention.kv_lora_rank")
    if rank and header.number("attention.key_length_mla"):
        # Multi-head latent attention: one shared head of the latent and the rotary part;
        # the values are a view into the keys.
        return Layer(key=rank + header.number("rope.dimension_count", 64))
    kv_heads = _kv_heads(header, index)
    head = _head_size(header)
    return Layer(
        key=kv_heads * header.number("attention.key_length", head),
        value=kv_heads * header.number("attention.value_length", head),
        window=header.number("attention.sliding_window") if _windowed(header, index) else 0,
    )


def _head_size(header: GgufHeader) -> int:
    heads = [number for number in header.numbers("attention.head_count") if number > 0]
    return header.number("embedding_length") // min(heads) if heads else 0


def _kv_heads(header: GgufHeader, index: int) -> int:
    for key in ("attention.head_count_kv", "attention.head_count"):
        values = header.numbers(key)
        if values:
            return values[index] if index < len(values) else values[-1]
    return 0


def _recurrent(header: GgufHeader, index: int) -> bool:
    if not _state_bytes(header):
        return False
    interval = header.number("full_attention_interval")
    if interval > 0:
        return (index + 1) % interval != 0
    return _kv_heads(header, index) == 0


def _state_bytes(header: GgufHeader) -> int:
    """Convolution and state of one recurrent block, float32 (llama-hparams.cpp, n_embd_r, _s)."""
    short = header.number("shortconv.l_cache")
    if short:
        return 4 * header.number("embedding_length") * (short - 1)
    inner, state = header.number("ssm.inner_size"), header.number("ssm.state_size")
    kernel, groups = header.number("ssm.conv_kernel"), header.number("ssm.group_count")
    if not inner or not state:
        return 0
    return 4 * (max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner)


def _windowed(header: GgufHeader, index: int) -> bool:
    architecture = header.architecture
    if not header.number("attention.sliding_window"):
        return False
    pattern = header.metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and pattern:
        return bool(pattern[index % len(pattern)])
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        if architecture in {"gemma2", "gpt-oss"}:
            return index % pattern < pattern - 1
        return (index + 1) % pattern != 0
    rule = _WINDOWED.get(architecture)
    return rule is not None and rule(index)


def _work(header: GgufHeader) -> int:
    """Float32 values per token of the widest step: feed-forward, attention or state."""
    embedding = header.number("embedding_length")
    heads = max(header.numbers("attention.head_count"), default=0)
    used = header.number("expert_used_count")
    steps = [
        # Gate, up, and their product.
        3 * max(header.numbers("feed_forward_length"), default=0),
        3 * header.number("expert_feed_forward_length") * used,
        embedding * used,
        _state_work(header),
    ]
    rank = header.number("attention.kv_lora_rank")
    if rank:
        latent = rank + header.number("rope.dimension_count", 64)
        steps.append(heads * (2 * latent + header.number("attention.value_length_mla", 128)))
    else:
        key = header.number("attention.key_length", _head_size(header))
        steps.append(key * (heads + 2 * max(header.numbers("attention.head_count_kv"), default=0)))
    return max(0, *steps)


def _state_work(header: GgufHeader) -> int:
    """Of a recurrent block: Mamba's scan, or the gated delta net of the Qwen family."""
    inner = header.number("ssm.inner_size")
    if header.number("ssm.group_count"):
        return 4 * inner + inner // 8
    return 6 * inner - 2 * header.number("embedding_length")


def _vocab(header: GgufHeader) -> int:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, LongArray):
        return tokens.count
    return len(tokens) if isinstance(tokens, tuple) else header.number("vocab_size")


def _tensor_bytes(header: GgufHeader, name: str) -> int:
    return sum(tensor.size_bytes for tensor in header.tensors if tensor.name == name)


def _embedding_bytes(header: GgufHeader) -> int:
    seen = _tensor_bytes(header, "token_embd.weight")
    # Unseen, half a byte a weight: no common quantisation of this table is smaller.
    return seen or _vocab(header) * header.number("embedding_length") // 2


def _repack_bytes(header: GgufHeader) -> int:
    return sum(
        tensor.size_bytes
        for tensor in header.tensors
        if tensor.type in _REPACKED and len(tensor.shape) > 1 and tensor.name != "token_embd.weight"
    )


def _active_bytes(header: GgufHeader, weights: int) -> int:
    """What one token reads: all but the input table, and of the experts those in use."""
    experts, used = header.number("expert_count"), header.number("expert_used_count")
    mixture = sum(tensor.size_bytes for tensor in header.tensors if "_exps" in tensor.name)
    if experts > 0 and header.complete:
        weights -= mixture - mixture * min(used, experts) // experts
    elif experts > 0:
        # Attention and shared parts of the common mixtures are about a tenth.
        weights = weights // 10 + weights * min(used, experts) // experts * 9 // 10
    if header.complete and _tensor_bytes(header, "output.weight"):
        weights -= _tensor_bytes(header, "token_embd.weight")
    return weights


def _parameters(header: GgufHeader) -> int:
    stated = header.metadata.get("general.parameter_count")
    if isinstance(stated, int) and stated > 0:
        return stated
    if not header.complete:
        return 0
    total = 0
    for tensor in header.tensors:
        size = 1
        for length in tensor.shape:
            size *= length
        total += size
    return total

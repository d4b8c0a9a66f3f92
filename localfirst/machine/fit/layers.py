"""
What each block of a model keeps per token, read out of a GGUF header.

Key names: github.com/ggml-org/llama.cpp, src/llama-arch.cpp. Numbers come from strangers:
each is bounded here, so that no product of them can make a large model look small.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from localfirst.machine.fit.facts import Layer
from localfirst.models.gguf import GgufHeader

MOST_LAYERS = 4096
MOST = 2**24  # of any one dimension; the widest models known are 2**18

# They embed and do not speak (llama.cpp, src/llama-arch.cpp).
ENCODERS = {
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "t5encoder",
}
# With those that write a whole text at once, all that have no cache (llama.cpp,
# `create_memory` in src/llama-model.cpp).
CACHELESS = ENCODERS | {"dream", "llada", "llada-moe", "rnd1"}

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


def size(header: GgufHeader, key: str, default: int = 0) -> int:
    """A dimension: never negative, never beyond belief."""
    return min(max(header.number(key, default), 0), MOST)


def sizes(header: GgufHeader, key: str) -> tuple[int, ...]:
    """Dimensions that may differ from layer to layer."""
    return tuple(min(max(number, 0), MOST) for number in header.numbers(key))


class Heads(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of one head's key and value, in full and in windowed layers."""

    key: int
    value: int
    key_windowed: int
    value_windowed: int


def layers_of(header: GgufHeader) -> tuple[Layer, ...]:
    """Every block in order; () when the header does not say how many there are."""
    count = size(header, "block_count")
    if not 0 < count <= MOST_LAYERS:
        return ()
    if header.architecture in CACHELESS:
        return (Layer(window=size(header, "attention.sliding_window")),) * count
    latent = _latent(header)
    kv_heads, heads = _kv_heads(header, count), heads_of(header)
    window, windowed = size(header, "attention.sliding_window"), _windowed(header)
    state, interval = state_bytes(header), size(header, "full_attention_interval")
    # The last layers of some models read an earlier layer's cache.
    own = count - min(size(header, "attention.shared_kv_layers"), count)
    found = []
    for index in range(count):
        recurrent = (index + 1) % interval != 0 if interval else kv_heads[index] == 0
        if state and recurrent:
            found.append(Layer(state_bytes=state))
        elif index >= own:
            found.append(Layer())
        elif latent:
            found.append(Layer(key=latent))
        else:
            narrow = window if windowed(index) else 0
            found.append(_attention(kv_heads[index], heads, narrow))
    return tuple(found)


def heads_of(header: GgufHeader) -> Heads:
    """Head sizes, by default an even share of the embedding."""
    counts = [number for number in sizes(header, "attention.head_count") if number > 0]
    share = size(header, "embedding_length") // min(counts) if counts else 0
    key = size(header, "attention.key_length", share)
    value = size(header, "attention.value_length", share)
    return Heads(
        key=key,
        value=value,
        key_windowed=size(header, "attention.key_length_swa", key),
        value_windowed=size(header, "attention.value_length_swa", value),
    )


def state_bytes(header: GgufHeader) -> int:
    """Convolution and state of one recurrent block, float32 (llama-hparams.cpp, n_embd_r, _s)."""
    short = size(header, "shortconv.l_cache")
    if short:
        return 4 * size(header, "embedding_length") * (short - 1)
    inner, state = size(header, "ssm.inner_size"), size(header, "ssm.state_size")
    kernel, groups = size(header, "ssm.conv_kernel"), size(header, "ssm.group_count")
    if not inner or not state:
        return 0
    return 4 * (max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner)


def _attention(kv_heads: int, heads: Heads, window: int) -> Layer:
    if window:
        key, value = heads.key_windowed, heads.value_windowed
    else:
        key, value = heads.key, heads.value
    return Layer(key=kv_heads * key, value=kv_heads * value, window=window)


def _latent(header: GgufHeader) -> int:
    """
    Width of a compressed key, 0 without multi-head latent attention.

    One shared head of the latent and the rotary part; the values are a view into it.
    """
    rank = size(header, "attention.kv_lora_rank")
    if not rank or not size(header, "attention.key_length_mla"):
        return 0
    return rank + size(header, "rope.dimension_count", 64)


def _kv_heads(header: GgufHeader, count: int) -> tuple[int, ...]:
    for key in ("attention.head_count_kv", "attention.head_count"):
        values = sizes(header, key)[:count]
        if values:
            return values + (values[-1],) * (count - len(values))
    return (0,) * count


def _windowed(header: GgufHeader) -> Callable[[int], bool]:
    architecture = header.architecture
    pattern = header.metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and pattern:
        flags = tuple(map(bool, pattern))
        return lambda index: flags[index % len(flags)]
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        period = pattern
        if architecture in {"gemma2", "gpt-oss"}:
            return lambda index: index % period < period - 1
        return lambda index: (index + 1) % period != 0
    return _WINDOWED.get(architecture, lambda index: False)

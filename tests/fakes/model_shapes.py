"""
Synthetic models of many shapes and architectures, to weigh predictions against an engine.

Weights are noise or zeros, which makes no difference here; key names and tensor names are
those that llama.cpp's converters write (gguf-py/gguf/constants.py); sizes are small enough
to make and load in a second.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from localfirst.models import toy, toy_gguf
from localfirst.models.gguf_types import TensorType
from localfirst.models.toy_gguf import Tensor, Value

F32 = TensorType.F32


def llama(**shape: object) -> Callable[[Path], int]:
    """A dense llama of this shape."""
    return lambda path: toy.write(path, **{"context": 65536, **shape})  # type: ignore[arg-type]


def common(arch: str, layers: int, wide: int, deep: int, vocab: int) -> dict[str, Value]:
    """The keys that every architecture needs."""
    return {
        "general.architecture": arch,
        "general.file_type": 1,
        f"{arch}.context_length": 65536,
        f"{arch}.embedding_length": wide,
        f"{arch}.block_count": layers,
        f"{arch}.feed_forward_length": deep,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.vocab_size": vocab,
        **toy.tokenizer(vocab),
    }


def heads(arch: str, count: int, kv: int | list[int], size: int) -> dict[str, Value]:
    """The keys of ordinary attention."""
    return {
        f"{arch}.attention.head_count": count,
        f"{arch}.attention.head_count_kv": kv,
        f"{arch}.attention.key_length": size,
        f"{arch}.attention.value_length": size,
        f"{arch}.rope.dimension_count": size,
    }


def attention(at: str, wide: int, count: int, kv: int, size: int, kind: TensorType) -> list[Tensor]:
    """The matrices of ordinary attention."""
    return [
        (f"{at}.attn_q.weight", (wide, count * size), kind),
        (f"{at}.attn_k.weight", (wide, kv * size), kind),
        (f"{at}.attn_v.weight", (wide, kv * size), kind),
        (f"{at}.attn_output.weight", (count * size, wide), kind),
    ]


def mlp(at: str, wide: int, deep: int, kind: TensorType) -> list[Tensor]:
    """A gated feed-forward."""
    return [
        (f"{at}.ffn_gate.weight", (wide, deep), kind),
        (f"{at}.ffn_up.weight", (wide, deep), kind),
        (f"{at}.ffn_down.weight", (deep, wide), kind),
    ]


def norms(at: str, wide: int, *names: str) -> list[Tensor]:
    """Vectors of the model's width."""
    return [(f"{at}.{name}.weight", (wide,), F32) for name in names]


def ends(wide: int, vocab: int, kind: TensorType, *, tied: bool = False) -> list[Tensor]:
    """The tables at both ends."""
    tables = [
        ("token_embd.weight", (wide, vocab), kind),
        ("output_norm.weight", (wide,), F32),
    ]
    return tables if tied else [*tables, ("output.weight", (wide, vocab), kind)]


def zeros(tensor: Tensor, _: random.Random) -> Iterator[bytes]:
    """Nothing but zeros, in pieces."""
    left = toy_gguf.size_bytes(tensor)
    while left > 0:
        yield bytes(min(left, 2**20))
        left -= 2**20


def save(keys: dict[str, Value], tensors: list[Tensor]) -> Callable[[Path], int]:
    """A function that writes this model."""
    return lambda path: toy_gguf.write(path, keys, tensors, fill=zeros)


def gemma3(
    *, layers: int, wide: int, deep: int, count: int, kv: int, size: int, window: int
) -> Callable[[Path], int]:
    """Five of six layers see only a window; input and output share a table."""
    kind, vocab = TensorType.F16, 4096
    keys = common("gemma3", layers, wide, deep, vocab) | heads("gemma3", count, kv, size)
    keys |= {"gemma3.attention.sliding_window": window}
    tensors = ends(wide, vocab, kind, tied=True)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += attention(at, wide, count, kv, size, kind) + mlp(at, wide, deep, kind)
        tensors += norms(
            at, wide, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"
        ) + norms(at, size, "attn_q_norm", "attn_k_norm")
    return save(keys, tensors)


def mixture(
    *, layers: int, wide: int, deep: int, count: int, kv: int, size: int, experts: int, used: int
) -> Callable[[Path], int]:
    """Experts, of which a few are used for a token (qwen3moe)."""
    kind, vocab, arch = TensorType.F16, 2048, "qwen3moe"
    keys = common(arch, layers, wide, deep, vocab) | heads(arch, count, kv, size)
    keys |= {
        f"{arch}.expert_count": experts,
        f"{arch}.expert_used_count": used,
        f"{arch}.expert_feed_forward_length": deep,
    }
    tensors = ends(wide, vocab, kind)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += attention(at, wide, count, kv, size, kind)
        tensors += norms(at, wide, "attn_norm", "ffn_norm")
        tensors += norms(at, size, "attn_q_norm", "attn_k_norm")
        tensors += [
            (f"{at}.ffn_gate_inp.weight", (wide, experts), F32),
            (f"{at}.ffn_gate_exps.weight", (wide, deep, experts), kind),
            (f"{at}.ffn_up_exps.weight", (wide, deep, experts), kind),
            (f"{at}.ffn_down_exps.weight", (deep, wide, experts), kind),
        ]
    return save(keys, tensors)


def latent(
    *, layers: int, wide: int, deep: int, count: int, rank: int, rope: int
) -> Callable[[Path], int]:
    """Multi-head latent attention: one compressed key for all heads (deepseek2)."""
    kind, vocab, arch = TensorType.F16, 2048, "deepseek2"
    plain, value, query = 64, 64, 256
    keys = common(arch, layers, wide, deep, vocab) | heads(arch, count, 1, rank + rope)
    keys |= {
        f"{arch}.attention.value_length": rank,
        f"{arch}.attention.key_length_mla": plain + rope,
        f"{arch}.attention.value_length_mla": value,
        f"{arch}.attention.kv_lora_rank": rank,
        f"{arch}.attention.q_lora_rank": query,
        f"{arch}.rope.dimension_count": rope,
        f"{arch}.leading_dense_block_count": layers,
        f"{arch}.expert_count": 0,
        f"{arch}.expert_used_count": 0,
        f"{arch}.expert_feed_forward_length": deep,
        f"{arch}.expert_shared_count": 0,
        f"{arch}.expert_weights_scale": 1.0,
    }
    tensors = ends(wide, vocab, kind)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += norms(at, wide, "attn_norm", "ffn_norm") + mlp(at, wide, deep, kind)
        tensors += norms(at, query, "attn_q_a_norm") + norms(at, rank, "attn_kv_a_norm")
        tensors += [
            (f"{at}.attn_q_a.weight", (wide, query), kind),
            (f"{at}.attn_q_b.weight", (query, count * (plain + rope)), kind),
            (f"{at}.attn_kv_a_mqa.weight", (wide, rank + rope), kind),
            (f"{at}.attn_k_b.weight", (plain, rank, count), kind),
            (f"{at}.attn_v_b.weight", (rank, value, count), kind),
            (f"{at}.attn_output.weight", (count * value, wide), kind),
        ]
    return save(keys, tensors)


def state_keys(arch: str, inner: int, state: int, rank: int) -> dict[str, Value]:
    """The keys of a recurrent block."""
    return {
        f"{arch}.ssm.conv_kernel": 4,
        f"{arch}.ssm.inner_size": inner,
        f"{arch}.ssm.state_size": state,
        f"{arch}.ssm.time_step_rank": rank,
    }


def state_block(at: str, wide: int, inner: int, state: int, rank: int) -> Iterator[Tensor]:
    """The tensors of a Mamba block."""
    kind = TensorType.F16
    yield f"{at}.ssm_in.weight", (wide, 2 * inner), kind
    yield f"{at}.ssm_conv1d.weight", (4, inner), F32
    yield f"{at}.ssm_conv1d.bias", (inner,), F32
    yield f"{at}.ssm_x.weight", (inner, rank + 2 * state), kind
    yield f"{at}.ssm_dt.weight", (rank, inner), kind
    yield f"{at}.ssm_dt.bias", (inner,), F32
    yield f"{at}.ssm_a", (state, inner), F32
    yield f"{at}.ssm_d", (inner,), F32
    yield f"{at}.ssm_out.weight", (inner, wide), kind


def mamba(*, layers: int, wide: int, inner: int, state: int) -> Callable[[Path], int]:
    """No attention at all: a state that does not grow."""
    vocab, rank = 4096, 32
    keys = common("mamba", layers, wide, 0, vocab) | state_keys("mamba", inner, state, rank)
    keys |= {"mamba.attention.head_count": 0}
    tensors = ends(wide, vocab, TensorType.F16)
    for layer in range(layers):
        tensors += norms(f"blk.{layer}", wide, "attn_norm")
        tensors += state_block(f"blk.{layer}", wide, inner, state, rank)
    return save(keys, tensors)


def hybrid(
    *, layers: int, wide: int, deep: int, count: int, kv: int, size: int, inner: int, state: int
) -> Callable[[Path], int]:
    """Every fourth layer attends, the others are recurrent (jamba)."""
    vocab, rank, arch, kind = 4096, 32, "jamba", TensorType.F16
    attends = [(layer + 1) % 4 == 0 for layer in range(layers)]
    keys = common(arch, layers, wide, deep, vocab) | state_keys(arch, inner, state, rank)
    keys |= heads(arch, count, [kv if yes else 0 for yes in attends], size)
    keys |= {f"{arch}.expert_count": 0, f"{arch}.expert_used_count": 0}
    tensors = ends(wide, vocab, kind)
    for layer, yes in enumerate(attends):
        at = f"blk.{layer}"
        tensors += norms(at, wide, "attn_norm", "ffn_norm") + mlp(at, wide, deep, kind)
        if yes:
            tensors += attention(at, wide, count, kv, size, kind)
        else:
            tensors += state_block(at, wide, inner, state, rank)
            tensors += norms(at, rank, "ssm_dt_norm")
            tensors += norms(at, state, "ssm_b_norm", "ssm_c_norm")
    return save(keys, tensors)


def delta(
    *, layers: int, wide: int, deep: int, count: int, kv: int, size: int, inner: int
) -> Callable[[Path], int]:
    """Three gated delta nets to one attention, as in Qwen 3.5 (qwen35)."""
    vocab, arch, kind, state = 4096, "qwen35", TensorType.F16, 64
    values, keys_ = inner // state, inner // state // 2
    keys = common(arch, layers, wide, deep, vocab) | heads(arch, count, kv, size)
    keys |= {
        f"{arch}.ssm.conv_kernel": 4,
        f"{arch}.ssm.state_size": state,
        f"{arch}.ssm.group_count": keys_,
        f"{arch}.ssm.time_step_rank": values,
        f"{arch}.ssm.inner_size": inner,
        f"{arch}.full_attention_interval": 4,
        f"{arch}.rope.dimension_count": size // 4,
        f"{arch}.rope.dimension_sections": [size // 16, size // 16, 0, 0],
    }
    mixed = inner + 2 * keys_ * state
    tensors = ends(wide, vocab, kind)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += norms(at, wide, "attn_norm", "post_attention_norm") + mlp(at, wide, deep, kind)
        if (layer + 1) % 4 == 0:
            tensors += attention(at, wide, count, kv, size, kind)
            tensors += norms(at, size, "attn_q_norm", "attn_k_norm")
            # The query carries its gate.
            tensors[:] = [
                (name, (wide, 2 * count * size), kind)
                if name == f"{at}.attn_q.weight"
                else (name, shape, of)
                for name, shape, of in tensors
            ]
        else:
            tensors += norms(at, state, "ssm_norm")
            tensors += [
                (f"{at}.attn_qkv.weight", (wide, mixed), kind),
                (f"{at}.attn_gate.weight", (wide, inner), kind),
                (f"{at}.ssm_conv1d.weight", (4, mixed), F32),
                (f"{at}.ssm_dt.bias", (values,), F32),
                (f"{at}.ssm_a", (values,), F32),
                (f"{at}.ssm_beta.weight", (wide, values), kind),
                (f"{at}.ssm_alpha.weight", (wide, values), kind),
                (f"{at}.ssm_out.weight", (inner, wide), kind),
            ]
    return save(keys, tensors)

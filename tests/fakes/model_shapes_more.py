"""
More architectures, all of one skeleton: attention, feed-forward, and what each adds to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from localfirst.models.gguf_types import TensorType
from localfirst.models.toy_gguf import Tensor, Value
from tests.fakes.model_shapes import F32, attention, common, ends, heads, mlp, norms, save

Maker = Callable[[Path], int]


def biases(at: str, *named: tuple[str, int]) -> list[Tensor]:
    """Vectors that are added."""
    return [(f"{at}.{name}.bias", (size,), F32) for name, size in named]


def dense(
    arch: str = "llama",
    *,
    layers: int,
    wide: int,
    deep: int,
    count: int,
    kv: int,
    size: int,
    vocab: int = 4096,
    kind: str = "F16",
    tied: bool = False,
    more: dict[str, Value] | None = None,
    block: Callable[[str], list[Tensor]] = lambda _: [],
) -> Maker:
    """Ordinary attention and a gated feed-forward; *block* adds what an architecture has more."""
    matrix = TensorType[kind]
    keys = common(arch, layers, wide, deep, vocab) | heads(arch, count, kv, size)
    keys |= {f"{arch}.{name}": value for name, value in (more or {}).items()}
    tensors = ends(wide, vocab, matrix, tied=tied)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += attention(at, wide, count, kv, size, matrix) + mlp(at, wide, deep, matrix)
        tensors += norms(at, wide, "attn_norm", "ffn_norm") + block(at)
    return save(keys, tensors)


def qwen2(*, wide: int, count: int, kv: int, size: int, **shape: object) -> Maker:
    """Keys, queries and values are shifted."""

    def shifted(at: str) -> list[Tensor]:
        return biases(at, ("attn_q", count * size), ("attn_k", kv * size), ("attn_v", kv * size))

    own = {"wide": wide, "count": count, "kv": kv, "size": size, "block": shifted}
    return dense("qwen2", **own, **shape)  # type: ignore[arg-type]


def qwen3(*, size: int, **shape: object) -> Maker:
    """Keys and queries are normed; heads may be wider together than the stream."""
    return dense(
        "qwen3",
        size=size,
        block=lambda at: norms(at, size, "attn_q_norm", "attn_k_norm"),
        **shape,  # type: ignore[arg-type]
    )


def gemma2(*, wide: int, window: int, **shape: object) -> Maker:
    """Every other layer sees a window only; scores and logits are capped; tied tables."""
    more = {
        "attention.sliding_window": window,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    return dense(
        "gemma2",
        wide=wide,
        tied=True,
        more=more,
        block=lambda at: norms(at, wide, "post_attention_norm", "post_ffw_norm"),
        **shape,  # type: ignore[arg-type]
    )


def mixtral(
    *, layers: int, wide: int, deep: int, count: int, kv: int, size: int, experts: int, used: int
) -> Maker:
    """A llama whose feed-forward is a choice of a few large experts."""
    kind, vocab = TensorType.Q8_0, 4096
    keys = common("llama", layers, wide, deep, vocab) | heads("llama", count, kv, size)
    keys |= {"llama.expert_count": experts, "llama.expert_used_count": used}
    tensors = ends(wide, vocab, kind)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += attention(at, wide, count, kv, size, kind)
        tensors += norms(at, wide, "attn_norm", "ffn_norm")
        tensors += [
            (f"{at}.ffn_gate_inp.weight", (wide, experts), F32),
            (f"{at}.ffn_gate_exps.weight", (wide, deep, experts), kind),
            (f"{at}.ffn_up_exps.weight", (wide, deep, experts), kind),
            (f"{at}.ffn_down_exps.weight", (deep, wide, experts), kind),
        ]
    return save(keys, tensors)


def gpt_oss(
    *,
    layers: int,
    wide: int,
    deep: int,
    count: int,
    kv: int,
    size: int,
    window: int,
    experts: int,
    used: int,
) -> Maker:
    """Windows in every other layer, attention sinks, shifted experts."""
    kind, vocab, arch = TensorType.Q8_0, 4096, "gpt-oss"
    keys = common(arch, layers, wide, deep, vocab) | heads(arch, count, kv, size)
    keys |= {
        f"{arch}.attention.sliding_window": window,
        f"{arch}.expert_count": experts,
        f"{arch}.expert_used_count": used,
        f"{arch}.expert_feed_forward_length": deep,
    }
    tensors = ends(wide, vocab, kind)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += attention(at, wide, count, kv, size, kind)
        tensors += norms(at, wide, "attn_norm", "post_attention_norm")
        tensors += norms(at, count, "attn_sinks")
        tensors += biases(
            at,
            ("attn_q", count * size),
            ("attn_k", kv * size),
            ("attn_v", kv * size),
            ("attn_output", wide),
            ("ffn_gate_inp", experts),
        )
        tensors += [
            (f"{at}.ffn_gate_inp.weight", (wide, experts), F32),
            (f"{at}.ffn_gate_exps.weight", (wide, deep, experts), kind),
            (f"{at}.ffn_up_exps.weight", (wide, deep, experts), kind),
            (f"{at}.ffn_down_exps.weight", (deep, wide, experts), kind),
            (f"{at}.ffn_gate_exps.bias", (deep, experts), F32),
            (f"{at}.ffn_up_exps.bias", (deep, experts), F32),
            (f"{at}.ffn_down_exps.bias", (wide, experts), F32),
        ]
    return save(keys, tensors)


def phi3(*, layers: int, wide: int, deep: int, count: int, kv: int, size: int) -> Maker:
    """Queries, keys and values in one matrix, gate and up in another."""
    kind, vocab, arch = TensorType.Q8_0, 4096, "phi3"
    keys = common(arch, layers, wide, deep, vocab) | heads(arch, count, kv, size)
    keys |= {f"{arch}.rope.scaling.original_context_length": 65536}
    tensors = ends(wide, vocab, kind)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += norms(at, wide, "attn_norm", "ffn_norm")
        tensors += [
            (f"{at}.attn_qkv.weight", (wide, (count + 2 * kv) * size), kind),
            (f"{at}.attn_output.weight", (count * size, wide), kind),
            (f"{at}.ffn_up.weight", (wide, 2 * deep), kind),
            (f"{at}.ffn_down.weight", (deep, wide), kind),
        ]
    return save(keys, tensors)


def starcoder2(*, layers: int, wide: int, deep: int, count: int, kv: int, size: int) -> Maker:
    """No gate: one matrix up, one down, all shifted, layer norms."""
    kind, vocab, arch = TensorType.F16, 4096, "starcoder2"
    keys = common(arch, layers, wide, deep, vocab) | heads(arch, count, kv, size)
    keys |= {f"{arch}.attention.layer_norm_epsilon": 1e-5}
    tensors = [*ends(wide, vocab, kind), ("output_norm.bias", (wide,), F32)]
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += attention(at, wide, count, kv, size, kind)
        tensors += norms(at, wide, "attn_norm", "ffn_norm")
        tensors += [
            (f"{at}.ffn_up.weight", (wide, deep), kind),
            (f"{at}.ffn_down.weight", (deep, wide), kind),
        ]
        tensors += biases(
            at,
            ("attn_norm", wide),
            ("ffn_norm", wide),
            ("attn_q", count * size),
            ("attn_k", kv * size),
            ("attn_v", kv * size),
            ("attn_output", wide),
            ("ffn_up", deep),
            ("ffn_down", wide),
        )
    return save(keys, tensors)


def bert(*, layers: int, wide: int, deep: int, count: int, context: int, vocab: int) -> Maker:
    """An encoder: it sees the text as a whole, and keeps nothing of it."""
    kind, arch = TensorType.F16, "bert"
    keys = common(arch, layers, wide, deep, vocab)
    keys |= {
        f"{arch}.context_length": context,
        f"{arch}.attention.head_count": count,
        f"{arch}.attention.layer_norm_epsilon": 1e-12,
        f"{arch}.attention.causal": False,
        f"{arch}.pooling_type": 1,
        "tokenizer.ggml.token_type_count": 2,
    }
    tensors: list[Tensor] = [
        ("token_embd.weight", (wide, vocab), kind),
        ("position_embd.weight", (wide, context), F32),
        ("token_types.weight", (wide, 2), F32),
        ("token_embd_norm.weight", (wide,), F32),
        ("token_embd_norm.bias", (wide,), F32),
    ]
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += attention(at, wide, count, count, wide // count, kind)
        tensors += [
            (f"{at}.ffn_up.weight", (wide, deep), kind),
            (f"{at}.ffn_down.weight", (deep, wide), kind),
        ]
        tensors += norms(at, wide, "attn_output_norm", "layer_output_norm")
        tensors += biases(
            at,
            ("attn_output_norm", wide),
            ("layer_output_norm", wide),
            *((name, wide) for name in ("attn_q", "attn_k", "attn_v", "attn_output")),
            ("ffn_up", deep),
            ("ffn_down", wide),
        )
    return save(keys, tensors)


def nomic_bert(*, layers: int, wide: int, deep: int, count: int, context: int, vocab: int) -> Maker:
    """An encoder with turned positions and a gate (nomic-embed-text)."""
    kind, arch = TensorType.F16, "nomic-bert"
    keys = common(arch, layers, wide, deep, vocab)
    keys |= {
        f"{arch}.context_length": context,
        f"{arch}.attention.head_count": count,
        f"{arch}.attention.layer_norm_epsilon": 1e-12,
        f"{arch}.attention.causal": False,
        f"{arch}.pooling_type": 1,
        f"{arch}.rope.freq_base": 1000.0,
        "tokenizer.ggml.token_type_count": 2,
    }
    tensors: list[Tensor] = [
        ("token_embd.weight", (wide, vocab), kind),
        ("token_types.weight", (wide, 2), F32),
        ("token_embd_norm.weight", (wide,), F32),
        ("token_embd_norm.bias", (wide,), F32),
    ]
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += [
            (f"{at}.attn_qkv.weight", (wide, 3 * wide), kind),
            (f"{at}.attn_output.weight", (wide, wide), kind),
            *mlp(at, wide, deep, kind),
        ]
        tensors += norms(at, wide, "attn_output_norm", "layer_output_norm")
        tensors += biases(at, ("attn_output_norm", wide), ("layer_output_norm", wide))
    return save(keys, tensors)


def gemma_embedding(*, wide: int, size: int, window: int, **shape: object) -> Maker:
    """A gemma that looks both ways (embeddinggemma)."""

    def more(at: str) -> list[Tensor]:
        own = norms(at, wide, "post_attention_norm", "post_ffw_norm")
        return own + norms(at, size, "attn_q_norm", "attn_k_norm")

    return dense(
        "gemma-embedding",
        wide=wide,
        size=size,
        tied=True,
        more={"attention.sliding_window": window, "attention.causal": False, "pooling_type": 1},
        block=more,
        **shape,  # type: ignore[arg-type]
    )

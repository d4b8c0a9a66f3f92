"""Guards the memory formulas: published vectors, recorded loads, and a real engine."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.machine import fit
from localfirst.machine.fit import Hardware, Layer, ModelShape, Verdict
from localfirst.models import gguf, toy

MIB = 2**20
GIB = 2**30
RECORDED = json.loads((Path(__file__).parent.parent / "data" / "ollama_memory.json").read_text())


def dense(layers: int, kv_heads: int, head: int, **more: Any) -> ModelShape:
    width = kv_heads * head
    return ModelShape(layers=(Layer(key=width, value=width),) * layers, **more)


# --- KV cache: layers, heads and head sizes from the public model cards ---------------------

VECTORS = [
    ("llama2:7b", dense(32, 32, 128), 4096, 2048, 1088, 576),
    ("llama3.1:8b", dense(32, 8, 128), 8192, 1024, 544, 288),
    ("llama3.2:3b", dense(28, 8, 128), 4096, 448, 238, 126),
    ("llama3.2:1b", dense(16, 8, 64), 4096, 128, 68, 36),
    ("qwen2.5:7b", dense(28, 4, 128), 32768, 1792, 952, 504),
]


@pytest.mark.parametrize(("name", "shape", "context", "f16", "q8", "q4"), VECTORS)
def test_cache_of_well_known_models(
    name: str, shape: ModelShape, context: int, f16: int, q8: int, q4: int
) -> None:
    found = [
        fit.kv_bytes(shape, context, cache_type_k=kind, cache_type_v=kind)
        for kind in ("f16", "q8_0", "q4_0")
    ]
    assert found == [f16 * MIB, q8 * MIB, q4 * MIB], name


def test_cache_of_gemma3_4b_counts_windows() -> None:
    wide = 4 * 256
    layers = tuple(
        Layer(key=wide, value=wide, window=0 if (i + 1) % 6 == 0 else 1024) for i in range(34)
    )
    assert fit.kv_bytes(ModelShape(layers=layers), 8192, batch=512) == 350_224_384


@pytest.mark.parametrize(("context", "expected_mib"), [(4096, 296), (2048, 164)])
def test_llama2_without_flash_attention_is_near_the_published_formula(
    context: int, expected_mib: int
) -> None:
    """Ollama's `GraphSize` leaves out what the recorded engines below really take."""
    shape = dense(32, 32, 128, embedding=4096, heads=32, work=3 * 11008)
    found = fit.compute_bytes(shape, context, batch=512, flash_attention=False, stream_copies=4)
    assert expected_mib * MIB <= found <= expected_mib * MIB * 1.16


# --- recorded loads of a real Ollama --------------------------------------------------------


def recorded_shape(row: dict[str, Any]) -> ModelShape:
    head = row["embedding"] // row["heads"]
    repacked = row["quant"] == "q4_0"
    return dense(
        row["layers"],
        row["kv_heads"],
        head,
        weights_bytes=row["file_bytes"],
        repack_bytes=row["file_bytes"] * 5 // 6 if repacked else 0,
        embedding=row["embedding"],
        work=3 * row["feed_forward"],
        heads=row["heads"],
        vocab=row["vocab"],
        context_tokens=1 << 20,
    )


def recorded_loading(row: dict[str, Any]) -> fit.Loading:
    return msgspec.structs.replace(
        fit.OLLAMA,
        parallel=row["parallel"],
        cache_type_k=row["cache_type"],
        cache_type_v=row["cache_type"],
        flash_attention=row["flash_attention"],
        mmap=row["mmap"] and row["cpu"] == "avx2",
    )


def label(row: dict[str, Any]) -> str:
    return f"{row['cpu']}-{row['file']}-{row['num_ctx']}x{row['parallel']}-{row['cache_type']}"


@pytest.mark.parametrize("row", RECORDED["rows"], ids=label)
def test_recorded_loads_of_ollama_are_predicted(row: dict[str, Any]) -> None:
    machine = Hardware(ram_total_bytes=24 * GIB, ram_available_bytes=20 * GIB)
    found = fit.predict(
        recorded_shape(row),
        machine,
        context_tokens=row["num_ctx"],
        loading=recorded_loading(row),
    )
    tokens = row["num_ctx"] * row["parallel"]
    assert fit.default_batch(tokens) == min(row["batch"], tokens)
    taken = row["mib"]
    assert found.kv_bytes == pytest.approx(taken["kv"] * MIB, rel=0.001, abs=0.01 * MIB)
    compute = (taken["compute"] + taken["output"]) * MIB
    assert found.compute_bytes == pytest.approx(compute, rel=0.10, abs=0.25 * MIB)
    everything = sum(taken.values()) * MIB
    buffers = found.weights_bytes + found.kv_bytes + found.compute_bytes
    # AMX keeps Q8_0 with its sums, an eighth larger, and mapped weights in copies of its own.
    amx_copies = row["cpu"] == "amx" and (row["mmap"] or row["quant"] == "q8_0")
    if not row["mmap"] and not amx_copies:
        assert buffers == pytest.approx(everything, rel=0.02, abs=0.4 * MIB)
    # Long contexts, quantised caches, and scores without flash attention leave pages untouched.
    touched = row["num_ctx"] <= 8192 and row["flash_attention"] and row["parallel"] == 1
    if touched and row["cache_type"] == "f16" and not amx_copies:
        assert found.needed_bytes == pytest.approx(row["rss"], rel=0.10)
    else:
        assert found.needed_bytes > row["rss"] * (0.55 if amx_copies else 0.98)


# --- shapes from headers ---------------------------------------------------------------------


def header(arch: str, **keys: Any) -> gguf.GgufHeader:
    metadata = {"general.architecture": arch} | {
        name if "." in name and name.startswith("general") else f"{arch}.{name}": value
        for name, value in keys.items()
    }
    return gguf.GgufHeader(version=3, metadata=metadata, tensors=(), complete=False)


BASE = {
    "block_count": 6,
    "embedding_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}


@pytest.mark.parametrize(
    ("arch", "windowed"),
    [
        ("gemma2", [0, 2, 4]),
        ("gemma3", [0, 1, 2, 3, 4]),
        ("gpt-oss", [0, 2, 4]),
        ("llama4", [0, 1, 2, 4, 5]),
        ("llama", []),
    ],
)
def test_which_layers_see_a_window_by_architecture(arch: str, windowed: list[int]) -> None:
    shape = fit.shape_from_gguf(header(arch, **BASE, **{"attention.sliding_window": 128}), 10**9)
    assert [i for i, layer in enumerate(shape.layers) if layer.window] == windowed


@pytest.mark.parametrize(
    ("pattern", "windowed"),
    [
        ((True, False, True, False, True, True), [0, 2, 4, 5]),
        (3, [0, 1, 3, 4]),
    ],
)
def test_a_stated_window_pattern_wins(pattern: Any, windowed: list[int]) -> None:
    keys = {"attention.sliding_window": 128, "attention.sliding_window_pattern": pattern}
    shape = fit.shape_from_gguf(header("gemma3", **BASE, **keys), 10**9)
    assert [i for i, layer in enumerate(shape.layers) if layer.window] == windowed


def test_hybrids_have_a_state_where_they_have_no_heads() -> None:
    keys = BASE | {
        "attention.head_count_kv": (0, 0, 2, 0, 0, 2),
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 1024,
        "ssm.state_size": 16,
        "ssm.group_count": 1,
    }
    shape = fit.shape_from_gguf(header("granitehybrid", **keys), 10**9)
    state = 4 * (3 * (1024 + 2 * 16) + 16 * 1024)
    assert [layer.state_bytes for layer in shape.layers] == [state, state, 0, state, state, 0]
    assert [layer.key for layer in shape.layers] == [0, 0, 128, 0, 0, 128]


def test_every_nth_layer_attends_where_an_interval_says_so() -> None:
    keys = BASE | {
        "full_attention_interval": 3,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 64,
        "ssm.state_size": 16,
    }
    shape = fit.shape_from_gguf(header("qwen3next", **keys), 10**9)
    assert [bool(layer.key) for layer in shape.layers] == [False, False, True] * 2


def test_layers_that_share_an_earlier_cache_have_none() -> None:
    keys = BASE | {"attention.shared_kv_layers": 2}
    shape = fit.shape_from_gguf(header("gemma3n", **keys), 10**9)
    assert [bool(layer.key) for layer in shape.layers] == [True] * 4 + [False] * 2


def test_windowed_layers_may_have_heads_of_another_size() -> None:
    keys = BASE | {
        "attention.sliding_window": 128,
        "attention.sliding_window_pattern": (True, False),
        "attention.key_length": 512,
        "attention.value_length": 512,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "attention.head_count_kv": (8, 2, 8, 2, 8, 2),
    }
    shape = fit.shape_from_gguf(header("gemma4", **keys), 10**9)
    assert [(layer.key, layer.window) for layer in shape.layers] == [(2048, 128), (1024, 0)] * 3


def test_latent_attention_caches_one_compressed_key() -> None:
    keys = BASE | {
        "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192,
        "rope.dimension_count": 64,
    }
    shape = fit.shape_from_gguf(header("deepseek2", **keys), 10**9)
    assert {(layer.key, layer.value) for layer in shape.layers} == {(576, 0)}


def test_a_head_cut_short_still_predicts_from_the_files_size(tmp_path: Path) -> None:
    size = toy.write(tmp_path / "t.gguf", embedding=256, feed_forward=704, vocab=8000)
    whole = (tmp_path / "t.gguf").read_bytes()
    full = fit.shape_from_gguf(gguf.read_header(whole), size)
    cut = fit.shape_from_gguf(gguf.read_header(whole[:4096]), size)
    assert cut.layers == full.layers
    assert cut.weights_bytes == size
    assert full.weights_bytes == pytest.approx(size, rel=0.15)
    assert cut.vocab == full.vocab == 8000


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"block_count": 0},
        {"block_count": 10**9, "embedding_length": 512},
        {"block_count": 4},
        {"block_count": 4, "attention.head_count": 0, "embedding_length": 512},
        {"block_count": 4, "attention.head_count": (), "embedding_length": 512},
        {"block_count": 2, "attention.head_count": -8, "embedding_length": -1},
    ],
)
def test_headers_without_sense_never_raise(keys: dict[str, Any]) -> None:
    shape = fit.shape_from_gguf(header("llama", **keys), 10**9)
    machine = Hardware(ram_total_bytes=16 * GIB, ram_available_bytes=8 * GIB)
    found = fit.predict(shape, machine, context_tokens=4096)
    assert found.needed_bytes >= 10**9
    assert math.isfinite(found.needed_bytes)


KEYS = (
    "block_count",
    "embedding_length",
    "context_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.shared_kv_layers",
    "rope.dimension_count",
    "expert_count",
    "expert_used_count",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.group_count",
    "full_attention_interval",
    "shortconv.l_cache",
    "vocab_size",
)
NUMBERS = st.integers(min_value=-(2**63), max_value=2**64 - 1) | st.integers(0, 64)


@settings(max_examples=300, deadline=None)
@given(
    arch=st.sampled_from(["llama", "gemma3", "qwen3next", "deepseek2", "mamba", "x"]),
    keys=st.dictionaries(
        st.sampled_from(KEYS), NUMBERS | st.lists(NUMBERS, max_size=8).map(tuple), max_size=12
    ),
)
def test_no_numbers_of_a_stranger_make_a_large_model_small(arch: str, keys: dict[str, Any]) -> None:
    shape = fit.shape_from_gguf(header(arch, **keys), 8 * GIB)
    machine = Hardware(ram_total_bytes=16 * GIB, ram_available_bytes=8 * GIB)
    found = fit.predict(shape, machine, context_tokens=4096)
    assert found.verdict is not Verdict.FITS
    assert found.needed_bytes >= 8 * GIB
    assert found.kv_bytes >= 0
    assert found.compute_bytes >= 0


def test_thousands_of_layers_with_sizes_of_their_own_are_read_at_once() -> None:
    keys = {
        "block_count": 4096,
        "embedding_length": 4096,
        "attention.head_count": (32,) * 4096,
        "attention.head_count_kv": (8, 0) * 2048,
        "ssm.inner_size": 4096,
        "ssm.state_size": 16,
    }
    start = time.process_time()
    shape = fit.shape_from_gguf(header("x", **keys), 10**9)
    assert time.process_time() - start < 1.0
    assert len(shape.layers) == 4096


def test_an_unknown_cache_type_is_named() -> None:
    with pytest.raises(KeyError, match="q3_0"):
        fit.kv_bytes(dense(1, 1, 64), 256, cache_type_k="q3_0")


def test_verdict_words_are_what_the_engines_list() -> None:
    assert [str(verdict) for verdict in Verdict] == ["fits", "tight", "no", "unknown"]

"""Guards the verdict: where layers lie, what decides, and that it never gets better by chance."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.machine import fit
from localfirst.machine.fit import (
    Cpu,
    Disk,
    Fit,
    Gpu,
    Hardware,
    Layer,
    Loading,
    Measured,
    ModelShape,
    Placement,
    Verdict,
)

MIB = 2**20
GIB = 2**30

LLAMA2_7B = ModelShape(
    architecture="llama",
    weights_bytes=3_825_065_984,
    embedding_bytes=73_728_000,
    repack_bytes=3_600_000_000,
    active_bytes=3_750_000_000,
    layers=(Layer(key=4096, value=4096),) * 32,
    embedding=4096,
    work=3 * 11008,
    heads=32,
    vocab=32000,
    context_tokens=4096,
)
LLAMA31_8B = ModelShape(
    architecture="llama",
    weights_bytes=4_912_898_304,
    embedding_bytes=295_501_824,
    active_bytes=4_600_000_000,
    layers=(Layer(key=1024, value=1024),) * 32,
    embedding=4096,
    work=3 * 14336,
    heads=32,
    vocab=128_256,
    context_tokens=131_072,
)


def machine(ram_gib: float, *gpus: Gpu, free_gib: float = 0.0, **more: Any) -> Hardware:
    return Hardware(
        platform="linux",
        ram_total_bytes=int(ram_gib * GIB),
        ram_available_bytes=int((free_gib or ram_gib * 0.75) * GIB),
        cpu=Cpu(cores=8, threads=16),
        gpus=gpus,
        **more,
    )


def card(gib: float, *, index: int = 0, free: float | None = None, **more: Any) -> Gpu:
    room = int((gib - 0.3 if free is None else free) * GIB)
    return Gpu(
        **{
            "index": index,
            "vendor": "nvidia",
            "name": f"card {index}",
            "library": "cuda",
            "total_bytes": int(gib * GIB),
            "free_bytes": room,
            "bandwidth_bytes_s": 360e9,
        }
        | more
    )


# --- placement -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gib", "placement", "layers"),
    [(12.0, Placement.GPU, 33), (8.0, Placement.GPU, 33), (6.0, Placement.SPLIT, None)],
)
def test_llama2_on_cards_of_common_sizes(
    gib: float, placement: Placement, layers: int | None
) -> None:
    """An 8 GB card holds all of it, a 6 GB card a part (Ollama's own observation)."""
    found = fit.predict(LLAMA2_7B, machine(16, card(gib)), context_tokens=4096)
    assert (found.verdict, found.placement) == (Verdict.FITS, placement)
    if layers is not None:
        assert found.gpu_layers == layers
    else:
        assert 15 <= found.gpu_layers < 32


def test_without_a_gpu_all_is_ram() -> None:
    found = fit.predict(LLAMA2_7B, machine(16), context_tokens=4096)
    assert (found.placement, found.gpu_layers, found.vram_bytes) == (Placement.CPU, 0, 0)
    assert found.needed_bytes == found.ram_bytes
    parts = (
        found.weights_bytes
        + found.kv_bytes
        + found.compute_bytes
        + found.projector_bytes
        + found.overhead_bytes
    )
    assert found.needed_bytes == parts
    assert found.verdict is Verdict.FITS


@pytest.mark.parametrize(
    ("free_gib", "verdict"),
    [(8.0, Verdict.FITS), (6.0, Verdict.TIGHT), (5.6, Verdict.TIGHT), (4.0, Verdict.NO)],
)
def test_three_bands_around_what_is_free(free_gib: float, verdict: Verdict) -> None:
    """About 5.8 GiB are needed."""
    found = fit.predict(LLAMA2_7B, machine(16, free_gib=free_gib), context_tokens=4096)
    assert found.verdict is verdict


def test_one_gpu_that_suffices_is_used_alone_else_both() -> None:
    large = machine(64, card(24), card(12, index=1))
    found = fit.predict(LLAMA31_8B, large, context_tokens=8192)
    assert found.placement is Placement.GPU
    alone = found.vram_bytes
    two = machine(64, card(8), card(8, index=1))
    found = fit.predict(LLAMA31_8B, two, context_tokens=32_768)
    assert found.placement is Placement.GPU
    assert found.vram_bytes > alone + 457 * MIB


def test_libraries_never_mix() -> None:
    mixed = machine(32, card(6), card(6, index=0, vendor="amd", library="rocm"))
    found = fit.predict(LLAMA31_8B, mixed, context_tokens=8192)
    assert found.placement is Placement.SPLIT


def test_a_gpu_whose_free_memory_is_unknown_is_not_counted_on() -> None:
    blind = machine(32, msgspec.structs.replace(card(16), free_bytes=None))
    assert fit.predict(LLAMA2_7B, blind, context_tokens=4096).placement is Placement.CPU


def test_a_gpu_that_cannot_serve_is_not_counted_on() -> None:
    unusable = machine(32, card(16, usable=False))
    assert fit.predict(LLAMA2_7B, unusable, context_tokens=4096).placement is Placement.CPU


def test_unified_memory_is_one_pool() -> None:
    apple = Gpu(
        index=0,
        vendor="apple",
        library="metal",
        total_bytes=int(10.67 * GIB),
        free_bytes=int(10.67 * GIB),
        unified=True,
    )
    roomy = fit.predict(LLAMA2_7B, machine(16, apple, free_gib=11), context_tokens=4096)
    assert (roomy.verdict, roomy.placement) == (Verdict.FITS, Placement.GPU)
    busy = fit.predict(LLAMA2_7B, machine(16, apple, free_gib=5), context_tokens=4096)
    assert busy.verdict is Verdict.NO
    assert "share" in busy.reason


def test_a_full_card_falls_back_to_the_processor() -> None:
    found = fit.predict(LLAMA2_7B, machine(32, card(12, free=0.8)), context_tokens=4096)
    assert (found.placement, found.verdict) == (Placement.CPU, Verdict.FITS)


def test_what_the_ram_cannot_take_is_no_even_with_layers_on_the_gpu() -> None:
    big = msgspec.structs.replace(LLAMA31_8B, weights_bytes=40 * GIB, active_bytes=40 * GIB)
    found = fit.predict(big, machine(16, card(12)), context_tokens=4096)
    assert (found.verdict, found.placement) == (Verdict.NO, Placement.SPLIT)


def test_a_tied_table_is_held_on_both_sides() -> None:
    tied = msgspec.structs.replace(LLAMA31_8B, tied=True)
    machine_ = machine(32, card(12))
    plain = fit.predict(LLAMA31_8B, machine_, context_tokens=4096)
    both = fit.predict(tied, machine_, context_tokens=4096)
    assert both.vram_bytes - plain.vram_bytes == LLAMA31_8B.embedding_bytes
    assert both.ram_bytes == plain.ram_bytes


def test_a_projector_goes_to_the_gpu_and_counts() -> None:
    seeing = msgspec.structs.replace(LLAMA31_8B, projector_bytes=900 * MIB)
    plain = fit.predict(LLAMA31_8B, machine(32, card(12)), context_tokens=4096)
    found = fit.predict(seeing, machine(32, card(12)), context_tokens=4096)
    assert found.projector_bytes == 900 * MIB
    # And a gigabyte for the encoder to work in.
    assert found.vram_bytes - plain.vram_bytes == (900 + 1024) * MIB


# --- context, cache, disk, unknowns -----------------------------------------------------------


def test_the_longest_context_fits_and_one_step_more_does_not() -> None:
    box = machine(16, card(12))
    found = fit.predict(LLAMA31_8B, box, context_tokens=4096)
    longest = found.max_context_tokens
    assert 4096 < longest < 131_072
    again = fit.predict(LLAMA31_8B, box, context_tokens=longest)
    assert (again.verdict, again.placement) == (Verdict.FITS, Placement.GPU)
    beyond = fit.predict(LLAMA31_8B, box, context_tokens=longest + 256)
    assert (beyond.verdict, beyond.placement) != (Verdict.FITS, Placement.GPU)


def test_a_context_beyond_the_models_window_is_cut_to_it() -> None:
    found = fit.predict(LLAMA2_7B, machine(64), context_tokens=100_000)
    assert (found.context_tokens, found.max_context_tokens) == (4096, 4096)


def test_a_model_that_fits_with_no_context_has_none() -> None:
    found = fit.predict(LLAMA2_7B, machine(4, free_gib=2.5), context_tokens=4096)
    assert (found.verdict, found.max_context_tokens) == (Verdict.NO, 0)


def test_a_smaller_cache_type_allows_a_longer_context() -> None:
    box = machine(16, card(8))
    plain = fit.predict(LLAMA31_8B, box, context_tokens=4096)
    loading = msgspec.structs.replace(fit.OLLAMA, cache_type_k="q8_0", cache_type_v="q8_0")
    small = fit.predict(LLAMA31_8B, box, context_tokens=4096, loading=loading)
    assert small.max_context_tokens > plain.max_context_tokens


def test_a_mapped_file_holds_rewritten_weights_twice() -> None:
    mapped = msgspec.structs.replace(fit.OLLAMA, mmap=True)
    once = fit.predict(LLAMA2_7B, machine(32), context_tokens=4096)
    twice = fit.predict(LLAMA2_7B, machine(32), context_tokens=4096, loading=mapped)
    assert twice.needed_bytes - once.needed_bytes == LLAMA2_7B.repack_bytes


def test_a_gpu_holds_no_second_copy_of_mapped_weights() -> None:
    mapped = msgspec.structs.replace(fit.OLLAMA, mmap=True)
    box = machine(32, card(12))
    plain = fit.predict(LLAMA2_7B, box, context_tokens=4096)
    found = fit.predict(LLAMA2_7B, box, context_tokens=4096, loading=mapped)
    assert (found.placement, found.needed_bytes) == (Placement.GPU, plain.needed_bytes)


def test_a_disk_that_is_too_small_is_no_whatever_the_memory() -> None:
    disk = Disk(path="/models", free_bytes=5 * 10**9, total_bytes=10**11)
    box = machine(64, disk=disk)
    fine = fit.predict(LLAMA2_7B, box, context_tokens=4096, download_bytes=3_826_793_677)
    assert (fine.verdict, fine.disk_needed_bytes) == (Verdict.FITS, 3_826_793_677)
    short = fit.predict(
        LLAMA2_7B,
        box,
        context_tokens=4096,
        download_bytes=3_826_793_677,
        reserve_disk_bytes=2 * 10**9,
    )
    assert short.verdict is Verdict.NO
    assert "5.8 GB of disk" in short.reason
    assert "`/models`" in short.reason


def test_a_disk_in_memory_takes_its_bytes_from_the_memory() -> None:
    disk = Disk(path="/tmp/m", free_bytes=10**10, total_bytes=10**10, filesystem="tmpfs")
    box = machine(16, free_gib=8, disk=disk)
    assert fit.predict(LLAMA2_7B, box, context_tokens=4096).verdict is Verdict.FITS
    found = fit.predict(LLAMA2_7B, box, context_tokens=4096, download_bytes=3_826_793_677)
    assert found.verdict is Verdict.NO


def test_a_disk_in_memory_is_nothing_special_where_nothing_is_fetched() -> None:
    disk = Disk(path="/dev/shm", total_bytes=8 * GIB, free_bytes=8 * GIB, filesystem="tmpfs")
    plain, there = machine(8), machine(8, disk=disk)
    before = fit.predict(LLAMA2_7B, plain, context_tokens=2048)
    found = fit.predict(LLAMA2_7B, there, context_tokens=2048)
    assert (found.verdict, found.reason) == (before.verdict, before.reason)
    # Nor is less than nothing left of it.
    flood = fit.predict(LLAMA2_7B, there, context_tokens=2048, download_bytes=100 * GIB)
    assert flood.verdict is Verdict.NO and "of 0 B free memory" in flood.reason


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (1e6, "1.0 MB"), (2.55e9, "2.5 GB"),
     (99.4e9, "99.4 GB"), (100e9, "100 GB"), (1234e9, "1234 GB"), (-2e6, "-2.0 MB")],
)  # fmt: skip
def test_a_size_is_told_as_disks_tell_it(size: float, told: str) -> None:
    assert fit.shown(size) == told


def test_a_reason_says_where_the_model_lies_and_what_it_takes_there() -> None:
    def reason(*gpus: Gpu, ram: float = 16) -> str:
        return fit.predict(LLAMA2_7B, machine(ram, *gpus), context_tokens=2048).reason

    assert reason().endswith("free memory, on the processor")
    whole, split = reason(card(12)), reason(card(6))
    assert "GPU memory and" in whole and "layers on the GPU" not in whole
    found = fit.predict(LLAMA2_7B, machine(16, card(6)), context_tokens=2048)
    assert split.endswith(f"free memory, with {found.gpu_layers} layers on the GPU")
    assert 0 < found.gpu_layers < 33
    # What decides is the memory that is short.
    short = fit.predict(LLAMA2_7B, machine(2, card(6, free=2.0)), context_tokens=2048)
    assert (short.verdict, short.available_bytes) == (Verdict.NO, int(1.5 * GIB))


@pytest.mark.parametrize(
    "loading",
    [Loading(embedding=True), Loading(flash_attention=False), Loading(batch=4096)],
    ids=["embedding", "without flash attention", "large batches"],
)
def test_a_way_of_loading_that_takes_more_is_counted(loading: Loading) -> None:
    plain = fit.predict(LLAMA2_7B, machine(16), context_tokens=4096, loading=Loading())
    found = fit.predict(LLAMA2_7B, machine(16), context_tokens=4096, loading=loading)
    assert found.needed_bytes > plain.needed_bytes + 4 * MIB
    assert found.max_context_tokens <= plain.max_context_tokens


def test_an_unknown_disk_does_not_block() -> None:
    found = fit.predict(LLAMA2_7B, machine(64), context_tokens=4096, download_bytes=10**10)
    assert found.verdict is Verdict.FITS


def test_an_unmeasured_machine_is_unknown_with_bytes() -> None:
    found = fit.predict(LLAMA2_7B, Hardware(), context_tokens=4096)
    assert found.verdict is Verdict.UNKNOWN
    assert found.needed_bytes > 5 * 10**9


@pytest.mark.parametrize(
    ("size_gib", "verdict"), [(2, Verdict.FITS), (9, Verdict.UNKNOWN), (40, Verdict.NO)]
)
def test_a_model_of_unknown_shape_is_judged_only_where_size_decides(
    size_gib: int, verdict: Verdict
) -> None:
    shape = fit.shape_from_size(size_gib * GIB)
    assert fit.predict(shape, machine(16), context_tokens=4096).verdict is verdict


def test_a_busy_machine_is_told_to_close_programs() -> None:
    found = fit.predict(LLAMA2_7B, machine(16, free_gib=3), context_tokens=4096)
    assert found.verdict is Verdict.NO
    assert "closing other programs" in found.reason


def test_what_a_busy_machine_refuses_it_could_run_once_it_is_idle() -> None:
    busy = fit.predict(LLAMA2_7B, machine(16, free_gib=3), context_tokens=4096)
    assert (busy.verdict, busy.could_fit) == (Verdict.NO, True)
    small = fit.predict(LLAMA2_7B, machine(4, free_gib=3), context_tokens=4096)
    assert (small.verdict, small.could_fit) == (Verdict.NO, False)
    assert "closing" not in small.reason
    crowded = fit.predict(LLAMA2_7B, machine(6, card(12, free=1), free_gib=3), context_tokens=4096)
    assert (crowded.verdict, crowded.could_fit) == (Verdict.NO, True)


@pytest.mark.parametrize(("size_gib", "could"), [(14, True), (40, False)])
def test_a_large_model_of_unknown_shape_may_fit_a_machine_at_rest(
    size_gib: int, could: bool
) -> None:
    shape = fit.shape_from_size(size_gib * GIB)
    found = fit.predict(shape, machine(16, free_gib=4), context_tokens=4096)
    assert (found.verdict, found.could_fit) == (Verdict.NO, could)


# --- another moment ------------------------------------------------------------------------------


def test_a_loaded_models_memory_counts_as_free_for_what_takes_its_place() -> None:
    box = machine(16, card(12, free=2), card(12, index=1, free=11), free_gib=4)
    freed = fit.freed(box, ram_bytes=2 * GIB, vram_bytes=8 * GIB)
    assert freed.ram_available_bytes == 6 * GIB
    assert [gpu.free_bytes for gpu in freed.gpus] == [10 * GIB, 11 * GIB]
    assert fit.predict(LLAMA2_7B, freed, context_tokens=4096).placement is Placement.GPU


def test_never_more_is_freed_than_there_is() -> None:
    box = machine(16, card(12, free=11), free_gib=15)
    freed = fit.freed(box, ram_bytes=10**12, vram_bytes=10**12)
    assert freed.ram_available_bytes == freed.ram_usable_bytes == 16 * GIB
    assert [gpu.free_bytes for gpu in freed.gpus] == [12 * GIB]


def test_unified_memory_is_freed_for_both() -> None:
    apple = Gpu(
        index=0,
        vendor="apple",
        library="metal",
        total_bytes=10 * GIB,
        free_bytes=4 * GIB,
        unified=True,
    )
    freed = fit.freed(machine(16, apple, free_gib=5), vram_bytes=3 * GIB)
    assert (freed.ram_available_bytes, freed.gpus[0].free_bytes) == (8 * GIB, 7 * GIB)


# --- speed -------------------------------------------------------------------------------------


def test_speed_is_a_range_from_bandwidth_over_what_a_token_reads() -> None:
    found = fit.predict(LLAMA2_7B, machine(32, card(12)), context_tokens=4096).tokens_per_s
    assert found is not None
    low, high = found
    # An RTX 3060 speaks llama2:7b Q4_0 at 50 to 75 tokens/s in public reports.
    assert low < 50 < 75 < high
    assert high < 360e9 / LLAMA2_7B.active_bytes


def test_a_split_model_is_slower_than_a_whole_one_and_faster_than_the_processor() -> None:
    def high(*gpus: Gpu) -> float:
        speed = fit.predict(LLAMA2_7B, machine(32, *gpus), context_tokens=4096).tokens_per_s
        assert speed is not None
        return speed[1]

    assert high(card(12)) > high(card(6)) > high()


# --- several devices --------------------------------------------------------------------------


@pytest.mark.parametrize("cards", [(card(6),), (card(4), card(4, index=1))])
@pytest.mark.parametrize("projector", [0, 600 * MIB])
def test_what_lies_on_cards_is_gone_from_the_ram_and_fills_them(
    cards: tuple[Gpu, ...], projector: int
) -> None:
    shape = msgspec.structs.replace(LLAMA31_8B, projector_bytes=projector)
    alone = fit.predict(shape, machine(64), context_tokens=8192)
    split = fit.predict(shape, machine(64, *cards), context_tokens=8192)
    assert (alone.placement, split.placement) == (Placement.CPU, Placement.SPLIT)
    # Each card has a context and a compute buffer of its own, the host its buffers beside.
    beside = (alone.compute_bytes + 457 * MIB) * len(cards) + 512 * MIB
    assert split.needed_bytes == alone.needed_bytes + beside
    assert split.overhead_bytes == alone.overhead_bytes + 457 * MIB * len(cards) + 512 * MIB
    room = sum(one.free_bytes or 0 for one in cards) - 1024 * MIB * len(cards)
    layer = (alone.weights_bytes + alone.kv_bytes) // 32
    assert 0 <= room - split.vram_bytes < layer + 0.05 * room * (len(cards) > 1)


def test_weights_held_twice_for_the_processor_are_not_on_a_card() -> None:
    loading = msgspec.structs.replace(fit.EMBEDDED, batch=0)
    alone = fit.predict(LLAMA2_7B, machine(64), context_tokens=4096, loading=loading)
    split = fit.predict(LLAMA2_7B, machine(64, card(5)), context_tokens=4096, loading=loading)
    copies = LLAMA2_7B.repack_bytes * split.gpu_layers // 32
    beside = alone.compute_bytes + (457 + 512) * MIB
    assert 0 < split.gpu_layers < 32
    assert split.needed_bytes == alone.needed_bytes + beside - copies


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_cards_that_do_the_roomier_is_taken_and_before_shared_memory(turned: bool) -> None:
    small, large = card(12), card(16, index=1)
    shared = card(48, index=2, unified=True, vendor="amd", library="rocm")
    cards = [large, shared, small] if turned else [small, shared, large]
    found = fit.predict(LLAMA31_8B, machine(64, *cards), context_tokens=8192)
    assert (found.placement, found.available_bytes) == (Placement.GPU, large.free_bytes)


def test_cards_that_do_only_together_are_as_fast_as_the_slower_one() -> None:
    def on(*cards: Gpu) -> Fit:
        found = fit.predict(LLAMA31_8B, machine(64, *cards), context_tokens=8192)
        assert found.placement is Placement.GPU
        return found

    pair = on(card(6), card(6, index=1, bandwidth_bytes_s=180e9))
    slow = on(card(12, bandwidth_bytes_s=180e9))
    assert pair.tokens_per_s == slow.tokens_per_s != on(card(12)).tokens_per_s
    assert pair.vram_bytes == slow.vram_bytes + slow.compute_bytes + 457 * MIB
    assert pair.ram_bytes == slow.ram_bytes


# --- experience -------------------------------------------------------------------------------


def predicted(**more: Any) -> Fit:
    return fit.predict(LLAMA2_7B, machine(16, **more), context_tokens=4096)


def test_a_measured_load_replaces_the_prediction_at_its_context() -> None:
    found = predicted()
    seen = Measured(
        context_tokens=4096,
        predicted_bytes=found.needed_bytes,
        measured_bytes=found.needed_bytes + 300 * MIB,
        tokens_per_s=10.0,
    )
    better = fit.corrected(found, seen)
    assert better.needed_bytes == better.measured_bytes == found.needed_bytes + 300 * MIB
    assert (better.ram_bytes, better.vram_bytes) == (better.needed_bytes, 0)
    assert better.tokens_per_s == (8.5, 11.5)
    assert "took" in better.reason


def test_at_another_context_the_error_is_carried_over() -> None:
    found = predicted()
    seen = Measured(context_tokens=2048, predicted_bytes=1000, measured_bytes=1100)
    assert fit.corrected(found, seen).needed_bytes == pytest.approx(found.needed_bytes * 1.1)
    split = fit.predict(LLAMA2_7B, machine(16, card(5)), context_tokens=4096)
    after = fit.corrected(split, seen)
    assert after.ram_bytes == pytest.approx(split.ram_bytes * 1.1)
    assert after.vram_bytes == pytest.approx(split.vram_bytes * 1.1)
    assert after.needed_bytes == after.ram_bytes + after.vram_bytes


def test_experience_can_turn_a_verdict() -> None:
    found = predicted(free_gib=6.8)
    assert found.verdict is Verdict.FITS
    seen = Measured(context_tokens=2048, predicted_bytes=1000, measured_bytes=1200)
    turned = fit.corrected(found, seen)
    assert turned.verdict is Verdict.TIGHT
    assert "tight where the formula says fits" in turned.reason


@pytest.mark.parametrize("measured_bytes", [0, 10, 10**15])
def test_an_absurd_measurement_is_not_believed(measured_bytes: int) -> None:
    found = predicted()
    seen = Measured(context_tokens=2048, predicted_bytes=10**9, measured_bytes=measured_bytes)
    assert fit.corrected(found, seen).needed_bytes == found.needed_bytes


SIZES = st.integers(min_value=64, max_value=65_536)
ROOMS = st.integers(min_value=1, max_value=96)
CARDS = st.sampled_from(
    [(), (card(4),), (card(8),), (card(24),), (card(12), card(12, index=1))]
) | st.builds(
    lambda gib: (card(gib, free=gib * 0.9, unified=True, vendor="apple", library="metal"),), ROOMS
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(ram=ROOMS, free=st.floats(0.1, 1.0), cards=CARDS, context=SIZES, told=st.booleans())
def test_a_load_that_took_what_was_predicted_changes_no_verdict(
    ram: int, free: float, cards: tuple[Gpu, ...], context: int, told: bool
) -> None:
    """What had run on card and processor was too large then; on a Mac what is too large was not."""
    box = machine(ram, *cards, free_gib=ram * free)
    found = fit.predict(LLAMA31_8B, box, context_tokens=context)
    seen = Measured(
        context_tokens=found.context_tokens,
        predicted_bytes=found.needed_bytes,
        measured_bytes=found.needed_bytes,
        measured_vram_bytes=found.vram_bytes if told else None,
    )
    after = fit.corrected(found, seen)
    assert (after.verdict, after.placement) == (found.verdict, found.placement)
    assert (after.ram_bytes, after.vram_bytes) == (found.ram_bytes, found.vram_bytes)


@pytest.mark.parametrize(
    ("more_mib", "verdict"),
    [(0, Verdict.FITS), (900, Verdict.FITS), (1500, Verdict.TIGHT), (4000, Verdict.NO)],
)
def test_what_a_load_took_on_the_card_is_held_against_the_card(
    more_mib: int, verdict: Verdict
) -> None:
    found = fit.predict(LLAMA31_8B, machine(64, card(10)), context_tokens=8192)
    assert found.placement is Placement.GPU and found.available_bytes < 10 * GIB
    on_card = found.available_bytes - 1000 * MIB + more_mib * MIB
    seen = Measured(
        context_tokens=8192,
        predicted_bytes=found.needed_bytes,
        measured_bytes=on_card + found.ram_bytes,
        measured_vram_bytes=on_card,
    )
    after = fit.corrected(found, seen)
    assert (after.vram_bytes, after.ram_bytes) == (on_card, found.ram_bytes)
    assert after.verdict is verdict


@pytest.mark.parametrize("free_bytes", [0, 10**9])
def test_no_experience_makes_room_on_a_disk(free_bytes: int) -> None:
    """A disk that was full to the last byte was taken for one that nothing is known of."""
    disk = Disk(path="/models", free_bytes=free_bytes, total_bytes=10**12)
    found = fit.predict(
        LLAMA2_7B, machine(64, disk=disk), context_tokens=4096, download_bytes=4 * 10**9
    )
    seen = Measured(context_tokens=4096, predicted_bytes=1000, measured_bytes=900)
    assert (found.verdict, fit.corrected(found, seen).verdict) == (Verdict.NO, Verdict.NO)


def test_a_speed_alone_says_nothing_of_memory() -> None:
    found = predicted()
    seen = Measured(context_tokens=0, predicted_bytes=0, measured_bytes=0, tokens_per_s=10.0)
    after = fit.corrected(found, seen)
    assert (after.needed_bytes, after.measured_bytes) == (found.needed_bytes, 0)
    assert (after.tokens_per_s, after.measured_tokens_per_s) == ((8.5, 11.5), 10.0)
    silent = msgspec.structs.replace(seen, tokens_per_s=0.0)
    assert fit.corrected(found, silent).tokens_per_s == found.tokens_per_s


def test_what_another_program_holds_of_a_card_could_be_had() -> None:
    small, busy = machine(4), machine(4, card(24, free=0.5))
    for box, could in ((small, False), (busy, True)):
        found = fit.predict(LLAMA31_8B, box, context_tokens=8192)
        assert (found.verdict, found.could_fit) == (Verdict.NO, could)


def test_without_experience_nothing_changes() -> None:
    found = predicted()
    assert fit.corrected(found, None) is found


# --- laws --------------------------------------------------------------------------------------

ORDER = [Verdict.NO, Verdict.TIGHT, Verdict.FITS]


@settings(max_examples=150, deadline=None)
@given(ram=ROOMS, more=ROOMS, context=SIZES)
def test_more_ram_never_makes_a_verdict_worse(ram: int, more: int, context: int) -> None:
    small = fit.predict(LLAMA31_8B, machine(ram), context_tokens=context)
    large = fit.predict(LLAMA31_8B, machine(ram + more), context_tokens=context)
    assert ORDER.index(large.verdict) >= ORDER.index(small.verdict)
    assert large.max_context_tokens >= small.max_context_tokens


@settings(max_examples=150, deadline=None)
@given(ram=ROOMS, vram=ROOMS, context=SIZES, longer=SIZES)
def test_a_longer_context_never_needs_less(ram: int, vram: int, context: int, longer: int) -> None:
    box = machine(ram, card(vram))
    short = fit.predict(LLAMA31_8B, box, context_tokens=context)
    long = fit.predict(LLAMA31_8B, box, context_tokens=context + longer)
    assert long.kv_bytes >= short.kv_bytes
    assert long.compute_bytes >= short.compute_bytes
    assert long.gpu_layers <= short.gpu_layers


@settings(max_examples=150, deadline=None)
@given(ram=ROOMS, first=ROOMS, second=ROOMS, context=SIZES)
def test_parts_sum_up_and_devices_are_never_overfilled(
    ram: int, first: int, second: int, context: int
) -> None:
    box = machine(ram, card(first), card(second, index=1))
    found = fit.predict(LLAMA31_8B, box, context_tokens=context)
    assert found.needed_bytes == found.ram_bytes + found.vram_bytes
    assert found.vram_bytes <= sum(gpu.free_bytes or 0 for gpu in box.gpus)
    assert 0 <= found.gpu_layers <= found.layers + 1
    assert found.max_context_tokens <= LLAMA31_8B.context_tokens
    if found.verdict is Verdict.FITS and found.placement is Placement.CPU:
        assert found.ram_bytes <= box.ram_available_bytes

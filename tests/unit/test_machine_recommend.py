"""Guards the recommendation: only what fits, usable before slow, best first, and never silent."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.machine import fit, recommend
from localfirst.machine.fit import Cpu, Disk, Hardware, Measured, Placement, Verdict
from localfirst.machine.recommend import Catalogue, Entry
from localfirst.models import names
from tests.unit.test_machine_fit_verdict import LLAMA2_7B, card, machine
from tests.unit.test_machine_hardware import MACHINES, measured

GIB = 2**30
KNOWN = recommend.catalogue()


def entry(name: str) -> Entry:
    found = KNOWN.find(name)
    assert found is not None
    return found


# --- the catalogue -----------------------------------------------------------------------------


def test_the_catalogue_is_dated_and_every_entry_is_whole() -> None:
    date.fromisoformat(KNOWN.dated)
    assert len({one.name for one in KNOWN.models}) == len(KNOWN.models) >= 15
    for one in KNOWN.models:
        parsed = names.parse(one.name)
        assert parsed.model
        assert one.source.startswith("https://")
        assert one.licence
        assert one.capabilities
        assert 10**8 < one.size_bytes < 10**11
        assert one.active_parameters <= one.parameters
        assert one.released <= KNOWN.dated[:7]
        assert 0 < one.quality <= 100


def test_every_download_is_between_three_and_sixteen_bits_a_parameter() -> None:
    """A slip of a digit in the data would fall out of this range."""
    for one in KNOWN.models:
        bits = one.size_bytes * 8 / one.parameters
        assert 3.5 < bits < 17, f"{one.name}: {bits:.1f} bits"


def test_the_data_file_has_no_fields_that_nobody_reads() -> None:
    path = Path(recommend.__file__).parent / "data" / "catalogue.json"
    fields = set(Entry.__struct_fields__)
    for one in json.loads(path.read_bytes())["models"]:
        assert set(one) <= fields


def test_the_catalogues_llama2_agrees_with_the_formulas_vectors() -> None:
    shape = entry("llama2:7b").shape
    assert fit.kv_bytes(shape, 4096) == 2_147_483_648


@pytest.mark.parametrize("cards", [(), (24.0,)])
@pytest.mark.parametrize("flash_attention", [True, False])
def test_an_entry_is_judged_as_the_models_own_header_is(
    cards: tuple[float, ...], flash_attention: bool
) -> None:
    loading = msgspec.structs.replace(fit.OLLAMA, flash_attention=flash_attention)
    ours, theirs = (
        fit.predict(shape, machine(64, *map(card, cards)), context_tokens=10**5, loading=loading)
        for shape in (entry("llama2:7b").shape, LLAMA2_7B)
    )
    assert (ours.context_tokens, ours.placement) == (4096, theirs.placement)
    for part in ("ram_bytes", "vram_bytes", "compute_bytes", "overhead_bytes"):
        assert getattr(ours, part) == pytest.approx(getattr(theirs, part), rel=0.04), part


def test_an_entrys_cache_is_what_grows_and_what_does_not() -> None:
    for one in KNOWN.models:
        told = one.kv_fixed_bytes + 2048 * one.kv_bytes_per_token
        assert fit.kv_bytes(one.shape, 2048) == pytest.approx(told, rel=0.01), one.name


def test_a_mixture_reads_a_part_of_itself() -> None:
    mixture = entry("qwen3.6:35b").shape
    assert mixture.active_bytes * 5 < mixture.weights_bytes
    dense = entry("qwen3.6:27b").shape
    assert dense.active_bytes == dense.weights_bytes


def test_the_ranking_is_of_the_engine_that_will_load_them() -> None:
    box = machine(32)
    for loading in (fit.OLLAMA, fit.EMBEDDED):
        for one in recommend.rank(box, loading=loading):
            alone = fit.predict(
                one.model.shape, box, context_tokens=recommend.CONTEXT_TOKENS, loading=loading
            )
            assert one.fit.needed_bytes == alone.needed_bytes


# --- ranking -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("laptop-8gb", "qwen3.5:2b"),
        ("apple-m1-16gb", "qwen3.5:9b"),
        ("apple-m3-max-64gb", "qwen3.8:27b"),
        ("rtx4090", "qwen3.8:27b"),
        ("raspberry-pi-5-8gb", "qwen3:4b"),
        ("old-kernel", "qwen3.5:0.8b"),
    ],
)
def test_what_well_known_machines_are_told(name: str, first: str, tmp_path: Path) -> None:
    ranked = recommend.rank(measured(MACHINES[name], tmp_path))
    assert ranked[0].model.name == first, ranked[0].why


@pytest.mark.parametrize("name", MACHINES)
def test_every_recorded_machine_gets_a_first_choice_that_fits(name: str, tmp_path: Path) -> None:
    ranked = recommend.rank(measured(MACHINES[name], tmp_path))
    best = ranked[0]
    assert best.fit.verdict is Verdict.FITS
    assert not best.slow
    assert "to download" in best.why
    assert "tokens/s" in best.why
    order = [Verdict.FITS, Verdict.TIGHT, Verdict.UNKNOWN]
    assert [order.index(one.fit.verdict) for one in ranked] == sorted(
        order.index(one.fit.verdict) for one in ranked
    )


def test_a_dense_giant_on_a_processor_comes_after_what_can_be_read_along() -> None:
    ranked = [one.model.name for one in recommend.rank(machine(64))]
    assert ranked.index("qwen3.6:27b") > ranked.index("qwen3.5:4b")
    assert ranked.index("qwen3.6:35b") < ranked.index("qwen3.5:4b")


def test_needs_are_met_or_the_model_is_left_out() -> None:
    box = machine(32, card(12))
    for needs in (("vision",), ("tools", "thinking"), ("embedding",)):
        ranked = recommend.rank(box, needs=needs)
        assert ranked
        assert all(set(needs) <= set(one.model.capabilities) for one in ranked)
    assert recommend.rank(box, needs=("telepathy",)) == []
    assert "nomic-embed-text" not in [one.model.name for one in recommend.rank(box)]


def test_the_reason_says_where_it_lies_and_what_to_expect() -> None:
    places = {
        Placement.GPU: "all of it on the GPU",
        Placement.SPLIT: "layers on the GPU",
        Placement.CPU: "on the processor",
    }
    boxes = [machine(gib) for gib in (4, 6, 8, 12, 16, 24, 48)]
    ranked = [one for box in (*boxes, machine(64, card(12))) for one in recommend.rank(box)]
    for one in ranked:
        assert [place for place in places if places[place] in one.why] == [one.fit.placement]
        assert ("slower than reading" in one.why) is one.slow
        assert ("barely" in one.why) is (one.fit.verdict is Verdict.TIGHT)
        assert f"{fit.shown(one.fit.needed_bytes)} of memory" in one.why
    assert {one.fit.placement for one in ranked} == set(places)
    assert {one.slow for one in ranked} == {True, False}
    assert Verdict.TIGHT in {one.fit.verdict for one in ranked}
    parts = {one.model.name for one in ranked if "reads a part of itself" in one.why}
    mixtures = {"gpt-oss:20b", "gpt-oss:120b", "gemma4:26b", "qwen3.6:35b"}
    assert parts == mixtures | {"gemma4:e2b"}  # which looks its per-layer embeddings up


def test_what_does_not_fit_is_left_out_or_last_with_the_reason() -> None:
    box = machine(8, free_gib=4)
    names_ = [one.model.name for one in recommend.rank(box)]
    assert "gpt-oss:120b" not in names_
    everything = recommend.rank(box, everything=True)
    assert len(everything) > len(names_)
    assert everything[-1].fit.verdict is Verdict.NO
    assert "needs" in everything[-1].why


def test_an_installed_model_needs_no_disk() -> None:
    full = Disk(path="/m", free_bytes=10**8, total_bytes=10**12)
    box = machine(32, card(12), disk=full)
    assert recommend.rank(box) == []
    (only,) = recommend.rank(box, installed=["qwen3.5:9b"])
    assert (only.model.name, only.installed) == ("qwen3.5:9b", True)
    assert only.why.endswith("installed")


def test_experience_outweighs_the_formula() -> None:
    box = machine(16, free_gib=8)
    before = recommend.rank(box)[0]
    seen = Measured(
        context_tokens=8192,
        predicted_bytes=before.fit.needed_bytes,
        measured_bytes=before.fit.needed_bytes,
        tokens_per_s=1.0,
    )
    after = recommend.rank(box, measured={before.model.name: seen})
    assert after[0].model.name != before.model.name


def test_an_unmeasured_machine_is_told_nothing_for_certain() -> None:
    ranked = recommend.rank(Hardware())
    assert {one.fit.verdict for one in ranked} == {Verdict.UNKNOWN}


@settings(max_examples=60, deadline=None)
@given(gib=st.integers(min_value=2, max_value=200), more=st.integers(min_value=1, max_value=200))
def test_more_memory_never_recommends_a_worse_model(gib: int, more: int) -> None:
    def best(total: int) -> int:
        disk = Disk(path="/m", free_bytes=10**12, total_bytes=10**12)
        box = Hardware(
            ram_total_bytes=total * GIB,
            ram_available_bytes=total * GIB * 3 // 4,
            cpu=Cpu(cores=16, threads=32),
            disk=disk,
        )
        ranked = recommend.rank(box)
        return ranked[0].model.quality if ranked else 0

    assert best(gib + more) >= best(gib)


# --- the last resort ---------------------------------------------------------------------------


def test_the_configured_last_resort_stands_where_it_fits() -> None:
    choice = recommend.last_resort(machine(16))
    assert (choice.name, choice.requested) == ("llama2:7b", "")


def test_where_it_does_not_fit_the_best_that_does_takes_its_place_and_says_so() -> None:
    choice = recommend.last_resort(machine(8, free_gib=4))
    assert choice.requested == "llama2:7b"
    assert choice.name
    assert choice.name != "llama2:7b"
    assert "`llama2:7b` does not fit" in choice.reason
    assert f"`{choice.name}` is the best that fits" in choice.reason
    assert choice.fit is not None
    assert choice.fit.verdict is Verdict.FITS


def test_auto_takes_the_best_of_bearable_size() -> None:
    choice = recommend.last_resort(machine(64, card(24)), "auto")
    assert choice.requested == ""
    assert entry(choice.name).size_bytes <= recommend.LAST_RESORT_BYTES
    assert choice.fit is not None
    assert choice.fit.placement is Placement.GPU


def test_a_tight_last_resort_is_tried_as_it_is() -> None:
    choice = recommend.last_resort(machine(16, free_gib=5.8))
    assert choice.name == "llama2:7b"
    assert choice.fit is not None
    assert choice.fit.verdict is Verdict.TIGHT


def test_a_model_outside_the_catalogue_is_left_to_its_own_header() -> None:
    choice = recommend.last_resort(machine(2, free_gib=1), "myorg/mine:7b")
    assert (choice.name, choice.fit) == ("myorg/mine:7b", None)


def test_where_nothing_fits_no_name_is_given_and_the_reason_stands() -> None:
    choice = recommend.last_resort(machine(1, free_gib=0.2))
    assert (choice.name, choice.requested) == ("", "llama2:7b")
    assert "does not fit" in choice.reason
    nothing = recommend.last_resort(machine(1, free_gib=0.2), "auto")
    assert nothing.name == ""
    assert nothing.reason


def test_a_disk_too_small_for_it_takes_a_smaller_one() -> None:
    small = Disk(path="/m", free_bytes=4 * 10**9, total_bytes=10**11)
    choice = recommend.last_resort(machine(32, disk=small), reserve_disk_bytes=2 * 10**9)
    assert choice.requested == "llama2:7b"
    assert entry(choice.name).size_bytes <= 2 * 10**9
    assert "of disk" in choice.reason


def test_a_catalogue_of_ones_own_is_used() -> None:
    own = Catalogue(dated="2026-01-01", models=(entry("gemma3:1b"),))
    assert [one.model.name for one in recommend.rank(machine(16), own)] == ["gemma3:1b"]
    assert recommend.last_resort(machine(16), "auto", own).name == "gemma3:1b"


def test_a_recommendation_is_json() -> None:
    first = recommend.rank(machine(16))[0]
    shown = json.loads(msgspec.json.encode(first))
    assert shown["model"]["name"] == first.model.name
    assert shown["fit"]["verdict"] == "fits"


def test_there_are_models_for_every_ability_people_ask_for() -> None:
    from localfirst.runtime import checkup

    assert {"completion", "tools", "vision", "thinking", "embedding"} <= checkup.abilities()
    embedding = recommend.rank(machine(16), needs=("embedding",))
    assert [one.model.name for one in embedding][:2] == [
        "qwen3-embedding:0.6b",
        "embeddinggemma:300m",
    ]

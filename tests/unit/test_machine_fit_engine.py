"""Guards the prediction against what a real engine takes: fitted shapes, and held-out ones."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from localfirst.engines.llamacpp import room
from localfirst.engines.llamacpp.plan import ChildPlan
from localfirst.machine import fit
from localfirst.machine.fit import Hardware, Layer, ModelShape
from localfirst.models import gguf
from tests.fakes.model_family import FAMILY, Member, predicted, weighed
from tests.fakes.model_family_held_out import HELD_OUT
from tests.fakes.model_shapes import mixture
from tests.fakes.model_shapes_more import bert, starcoder2

MIB = 2**20
QUICK = {
    "shorter than a batch",
    "few large experts (mixtral)",
    "recurrent and attention",
    "Q8_0 with a cache in q8_0, two sequences",
    "windows, sinks and experts (gpt-oss)",
    "hundred tiny experts",
    "encoder of other sizes (bert)",
    "decoder that embeds, large vocabulary (qwen3)",
}
"""Of the fifty-odd that `scripts/bench fit` weighs."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "member",
    [member for member in (*FAMILY, *HELD_OUT) if member.name in QUICK],
    ids=lambda member: member.name,
)
def test_the_prediction_is_what_a_real_engine_takes(member: Member, tmp_path: Path) -> None:
    """By the engine's own report of its buffers, and by its process' resident size: ±10 %."""
    pytest.importorskip("xllamacpp")
    if sys.platform != "linux":
        pytest.skip("the resident size is read from /proc")
    if not member.embedding:
        member = replace(member, prompt_tokens=600)  # a batch and a bit: all buffers are touched
    path = tmp_path / "model.gguf"
    found, taken = predicted(member, path), weighed(member, path)
    assert found.weights_bytes == pytest.approx(taken.model, rel=0.01)
    assert found.kv_bytes == pytest.approx(taken.kv, rel=0.01, abs=0.1 * MIB)
    buffers = found.weights_bytes + found.kv_bytes + found.compute_bytes
    assert buffers == pytest.approx(taken.buffers, rel=0.10)
    assert found.needed_bytes == pytest.approx(taken.resident, rel=0.10)


def test_every_quick_member_exists() -> None:
    assert {member.name for member in (*FAMILY, *HELD_OUT)} >= QUICK
    assert not {member.name for member in FAMILY} & {member.name for member in HELD_OUT}


# --- why each of them takes what it takes ------------------------------------------------------


def work_of(make: object, tmp_path: Path) -> tuple[ModelShape, int]:
    path = tmp_path / "model.gguf"
    size = make(path)  # type: ignore[operator]
    shape = fit.shape_from_gguf(gguf.read_file(path), size)
    return shape, shape.work


def test_small_experts_have_no_room_for_what_comes_down(tmp_path: Path) -> None:
    sizes = {"layers": 1, "count": 4, "kv": 2, "size": 64, "experts": 8, "used": 4}
    _, large = work_of(mixture(wide=256, deep=128, **sizes), tmp_path)
    assert large == 3 * 128 * 4
    _, small = work_of(mixture(wide=256, deep=64, **sizes), tmp_path)
    assert small == 3 * 64 * 4 + 256 * 4


def test_a_feed_forward_without_a_gate_works_in_place(tmp_path: Path) -> None:
    _, work = work_of(starcoder2(layers=1, wide=256, deep=1024, count=4, kv=2, size=64), tmp_path)
    assert work == 1024


def test_an_encoder_keeps_nothing_and_is_still_known(tmp_path: Path) -> None:
    make = bert(layers=2, wide=128, deep=512, count=4, context=512, vocab=400)
    shape, _ = work_of(make, tmp_path)
    assert shape.known and shape.encoder
    assert fit.kv_bytes(shape, 512) == 0


def test_a_batch_is_never_longer_than_the_context() -> None:
    shape = ModelShape(layers=(Layer(key=64, value=64),), embedding=256, work=768)
    short = fit.compute_bytes(shape, 128, batch=512)
    assert short == pytest.approx(fit.compute_bytes(shape, 512, batch=512) / 4, rel=0.2)


# --- how the embedded engine loads ----------------------------------------------------------

MACHINE = Hardware(ram_total_bytes=16 * 2**30, ram_available_bytes=12 * 2**30)
VECTORS = ModelShape(
    weights_bytes=600 * MIB,
    layers=(Layer(key=1024, value=1024),) * 28,
    embedding=1024,
    work=9216,
    heads=16,
    vocab=151_669,
    context_tokens=32_768,
)
PLAN = ChildPlan(model="/m", alias="m", context_tokens=2048, embedding=True, pooling="mean")


def test_vectors_of_a_large_vocabulary_need_gigabytes_unless_the_last_token_speaks() -> None:
    whole = room.arranged(PLAN, VECTORS, MACHINE)
    assert whole.batch == 2048
    last = room.arranged(msgspec.structs.replace(PLAN, pooling="last"), VECTORS, MACHINE)
    assert last.batch == 512
    needs = [room.predict(plan, VECTORS, MACHINE) for plan in (whole, last)]
    assert needs[0] is not None and needs[1] is not None
    # Logits of 1536 tokens, once as a step and once as the answer.
    assert needs[0].needed_bytes - needs[1].needed_bytes > 2 * 4 * 1536 * 151_669


@pytest.mark.parametrize(("context", "kept"), [(512, 2), (8192, 2), (8193, 3), (65536, 9)])
def test_as_many_states_are_kept_as_were_predicted(context: int, kept: int) -> None:
    plan = msgspec.structs.replace(PLAN, embedding=False, context_tokens=context)
    assert room.arranged(plan, VECTORS, MACHINE).checkpoints == kept
    windowed = msgspec.structs.replace(
        VECTORS, layers=(Layer(key=1024, value=1024, window=256),) * 28
    )
    one = 256 * 2048 * 2 * 28
    assert fit.checkpoint_bytes(windowed, context, parallel=1) == kept * one

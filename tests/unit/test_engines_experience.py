"""What loads really took is remembered across processes: both ways where the evidence is sound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.engines.experience import MOST_LOADS, MOST_MODELS, Experience, Known, Loading
from localfirst.engines.judge import Judge
from localfirst.engines.llamacpp.about import Shelf
from localfirst.engines.llamacpp.exchange import spoken
from localfirst.events import Event, Finished, FinishReason, Relayed, TextDelta, Usage
from localfirst.machine import fit
from localfirst.machine.fit import Fit, Gpu, Hardware, Placement, Verdict
from localfirst.models import manifest, names, toy
from localfirst.models.store import Store
from localfirst.runtime import fitness
from tests.fakes.engine_bench import NO_REAL, REAL, ask, collect, fake_daemon, real_daemon, run
from tests.faults.test_engine_local import bench

GB = 10**9
MIB = 2**20
RECORDED = json.loads((Path(__file__).parent.parent / "data" / "ollama_memory.json").read_text())
PREDICTED = Fit(
    verdict=Verdict.FITS,
    reason="",
    placement=Placement.CPU,
    context_tokens=4096,
    layers=32,
    needed_bytes=4 * GB,
    ram_bytes=4 * GB,
    weights_bytes=3 * GB,
    overhead_bytes=GB // 50,
    available_bytes=int(4.6 * GB),
)
EMBEDDED = Loading(engine="llamacpp", model="sha256-abc")
OLLAMA = Loading(engine="ollama", model="abc")


# --- a resident size ------------------------------------------------------------------------


def test_a_load_that_took_more_than_predicted_changes_the_next_verdict(tmp_path: Path) -> None:
    path = tmp_path / "state" / "measured.json"
    first = Experience(path)
    assert first.applied(PREDICTED, EMBEDDED) == PREDICTED
    assert first.note_resident(PREDICTED, EMBEDDED, int(4.8 * GB))
    first.save()
    again = Experience(path).applied(PREDICTED, EMBEDDED)
    assert again.needed_bytes == again.measured_bytes == int(4.8 * GB)
    assert again.verdict is not Verdict.FITS
    assert path.stat().st_mode & 0o777 == 0o600


def test_memory_that_was_not_touched_yet_proves_nothing() -> None:
    known = Experience(None)
    assert not known.note_resident(PREDICTED, EMBEDDED, 3 * GB)
    assert known.applied(PREDICTED, EMBEDDED) == PREDICTED


def test_a_process_on_a_gpu_tells_nothing_by_its_resident_size() -> None:
    on_gpu = msgspec.structs.replace(PREDICTED, placement=Placement.GPU)
    assert not Experience(None).note_resident(on_gpu, EMBEDDED, 9 * GB)


# --- a daemon's statement -----------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [int(3.4 * GB), int(4.4 * GB)])
def test_what_a_daemon_allocated_is_believed_when_it_is_more_and_when_it_is_less(
    size_bytes: int,
) -> None:
    known = Experience(None)
    assert known.note_allocated(PREDICTED, OLLAMA, size_bytes=size_bytes, vram_bytes=0)
    found = known.applied(PREDICTED, OLLAMA)
    assert found.measured_bytes == size_bytes + PREDICTED.overhead_bytes
    assert found.verdict is (Verdict.FITS if size_bytes < 4 * GB else Verdict.TIGHT)


def test_the_size_of_the_file_is_not_taken_for_an_allocation() -> None:
    known = Experience(None)
    with_cache = msgspec.structs.replace(PREDICTED, kv_bytes=GB // 2)
    assert not known.note_allocated(with_cache, OLLAMA, size_bytes=3 * GB, vram_bytes=0)
    unknown = msgspec.structs.replace(PREDICTED, layers=0, needed_bytes=3 * GB)
    assert not known.note_allocated(unknown, OLLAMA, size_bytes=3 * GB, vram_bytes=0)
    assert known.note_allocated(unknown, OLLAMA, size_bytes=int(3.5 * GB), vram_bytes=0)


def test_a_model_that_lies_elsewhere_than_predicted_is_another_load() -> None:
    known = Experience(None)
    assert not known.note_allocated(PREDICTED, OLLAMA, size_bytes=4 * GB, vram_bytes=4 * GB)
    on_gpu = msgspec.structs.replace(PREDICTED, placement=Placement.GPU)
    assert not known.note_allocated(on_gpu, OLLAMA, size_bytes=4 * GB, vram_bytes=0)


def test_what_lies_on_the_gpu_is_told_apart() -> None:
    known = Experience(None)
    on_gpu = msgspec.structs.replace(
        PREDICTED, placement=Placement.GPU, gpu_layers=33, ram_bytes=GB, vram_bytes=3 * GB
    )
    assert known.note_allocated(on_gpu, OLLAMA, size_bytes=int(3.5 * GB), vram_bytes=int(3.3 * GB))
    found = known.applied(on_gpu, OLLAMA)
    assert found.vram_bytes == int(3.3 * GB) + fit.CONTEXT_BYTES
    assert found.ram_bytes + found.vram_bytes == found.measured_bytes


@pytest.mark.parametrize("row", RECORDED["rows"], ids=lambda row: row["file"])
def test_recorded_loads_of_a_real_ollama_are_learnt_from(row: dict[str, Any]) -> None:
    """`size` of a real `/api/ps` beside what was predicted for that very load."""
    from tests.unit.test_machine_fit import recorded_loading, recorded_shape

    machine = Hardware(ram_total_bytes=24 * 2**30, ram_available_bytes=20 * 2**30)
    predicted = fit.predict(
        recorded_shape(row), machine, context_tokens=row["num_ctx"], loading=recorded_loading(row)
    )
    size = int(sum(row["mib"].values()) * MIB)
    known = Experience(None)
    if not known.note_allocated(predicted, OLLAMA, size_bytes=size, vram_bytes=0):
        assert row["mmap"]  # weights twice in one of the two, by the processor
        return
    learnt = known.applied(predicted, OLLAMA)
    assert learnt.needed_bytes == size + predicted.overhead_bytes


# --- other contexts, slots, cache types -----------------------------------------------------------


def test_the_nearest_load_speaks_for_one_that_was_not_seen() -> None:
    known = Experience(None)
    for context, ratio in ((2048, 1.1), (32768, 1.2)):
        at = msgspec.structs.replace(PREDICTED, context_tokens=context)
        assert known.note_resident(at, EMBEDDED, int(4 * GB * ratio))
    for context, ratio in ((4096, 1.1), (30000, 1.2)):
        found = known.applied(msgspec.structs.replace(PREDICTED, context_tokens=context), EMBEDDED)
        assert found.needed_bytes == pytest.approx(4 * GB * ratio, rel=0.001)


def test_slots_cache_types_engines_and_layers_are_kept_apart() -> None:
    known = Experience(None)
    assert known.note_resident(PREDICTED, EMBEDDED, int(4.1 * GB))
    four = msgspec.structs.replace(EMBEDDED, parallel=4)
    assert known.note_resident(PREDICTED, four, int(4.4 * GB))
    quantised = msgspec.structs.replace(EMBEDDED, cache_type="q8_0")
    assert known.note_resident(PREDICTED, quantised, int(4.7 * GB))
    found = [known.applied(PREDICTED, one).needed_bytes for one in (EMBEDDED, four, quantised)]
    assert found == [int(4.1 * GB), int(4.4 * GB), int(4.7 * GB)]
    assert known.applied(PREDICTED, OLLAMA) == PREDICTED
    split = msgspec.structs.replace(PREDICTED, gpu_layers=12)
    assert EMBEDDED.at(split) != EMBEDDED.at(PREDICTED)


def test_what_a_model_takes_for_vectors_says_nothing_of_what_it_takes_to_speak() -> None:
    known = Experience(None)
    vectors = msgspec.structs.replace(EMBEDDED, embedding=True)
    assert known.note_resident(PREDICTED, vectors, 6 * GB)
    assert known.applied(PREDICTED, EMBEDDED) == PREDICTED
    assert known.applied(PREDICTED, vectors).measured_bytes == 6 * GB


# --- the file ------------------------------------------------------------------------------------


def test_a_broken_file_costs_the_experience_only(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_bytes(b'{"half')
    known = Experience(path)
    assert known.note_resident(PREDICTED, EMBEDDED, 5 * GB)
    known.save()
    assert msgspec.json.decode(path.read_bytes(), type=dict[str, Known])


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    one, two = Experience(path), Experience(path)
    assert one.note_resident(PREDICTED, EMBEDDED, 5 * GB)
    assert two.note_allocated(PREDICTED, OLLAMA, size_bytes=5 * GB, vram_bytes=0)
    one.save()
    two.save()
    one.refresh()
    for seen in (one, two, Experience(path)):
        assert seen.applied(PREDICTED, EMBEDDED).measured_bytes
        assert seen.applied(PREDICTED, OLLAMA).measured_bytes


def test_the_file_stays_small(tmp_path: Path) -> None:
    known = Experience(tmp_path / "measured.json")
    for number in range(MOST_MODELS + 5):
        one = Loading(engine="ollama", model=f"{number:064x}")
        for context in range(1, MOST_LOADS + 3):
            at = msgspec.structs.replace(PREDICTED, context_tokens=context * 1024)
            assert known.note_allocated(at, one, size_bytes=4 * GB + number, vram_bytes=0)
    known.save()
    assert (tmp_path / "measured.json").stat().st_size < 2**20
    assert Experience(tmp_path / "measured.json").measured(one)
    assert not known.measured(Loading(engine="ollama", model=f"{0:064x}"))


# --- speed ---------------------------------------------------------------------------------------


def test_a_measured_speed_stands_in_for_the_predicted_range() -> None:
    known = Experience(None)
    assert not known.note_speed(OLLAMA, 3, 0.2)
    assert known.note_speed(OLLAMA, 140, 10.0)
    found = known.applied(PREDICTED, OLLAMA)
    assert found.measured_tokens_per_s == 14.0
    assert found.tokens_per_s == (11.9, 16.1)
    assert not found.measured_bytes and found.needed_bytes == PREDICTED.needed_bytes


def test_a_speed_follows_the_machine_and_is_written_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    known = Experience(path)
    known.note_speed(OLLAMA, 100, 10.0)
    known.save()
    stamp = path.stat().st_mtime_ns
    known.note_speed(OLLAMA, 101, 10.0)
    known.save()
    assert path.stat().st_mtime_ns == stamp
    for _ in range(20):
        known.note_speed(OLLAMA, 400, 10.0)
    known.save()
    assert Experience(path).applied(PREDICTED, OLLAMA).measured_tokens_per_s > 39


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (b'data: {"choices":[],"timings":{"predicted_n":40,"predicted_ms":8.28}}', (40, 0.00828)),
        (b'data: {"timings":{"predicted_n": 3, "predicted_ms": 100}}', (3, 0.1)),
        (b'data: {"choices":[{"delta":{"content":"timings"}}]}', (0, 0.0)),
    ],
)
def test_the_embedded_engine_tells_its_speed(chunk: bytes, expected: tuple[int, float]) -> None:
    assert spoken(chunk) == pytest.approx(expected)


# --- judged --------------------------------------------------------------------------------------

ROOMY = Hardware(ram_total_bytes=16 * 2**30, ram_available_bytes=8 * 2**30)


def listed(store: Path, **more: Any) -> EngineStatus:
    published = toy.publish(store)
    model = LocalModel(
        name="tiny:latest", digest=published.digest.removeprefix("sha256:"), size_bytes=469_624
    )
    model = msgspec.structs.replace(model, **more)
    return EngineStatus(
        kind="ollama",
        state="ready",
        ready=True,
        endpoint="http://127.0.0.1:11434",
        models=(model,),
    )


def judged(judge: Judge, status: EngineStatus) -> LocalModel:
    return asyncio.run(judge.judged(status)).models[0]


LOADED: dict[str, Any] = {
    "loaded": True,
    "loaded_bytes": 9_000_000,
    "loaded_context_tokens": 2048,
}


def test_a_loaded_models_size_is_used_once_it_is_gone_again(tmp_path: Path) -> None:
    judge = Judge(Shelf(Store(tmp_path)), lambda: ROOMY)
    before = judged(judge, listed(tmp_path))
    assert before.needed_bytes and not before.measured_bytes
    judged(judge, listed(tmp_path, **LOADED))
    after = judged(judge, listed(tmp_path))
    assert after.measured_bytes == after.needed_bytes > before.needed_bytes


def test_another_machines_daemon_teaches_nothing(tmp_path: Path) -> None:
    judge = Judge(Shelf(Store(tmp_path)), lambda: ROOMY)
    there = msgspec.structs.replace(listed(tmp_path, **LOADED), endpoint="http://192.168.1.9:11434")
    judged(judge, there)
    assert not judged(judge, listed(tmp_path)).measured_bytes


def test_a_processors_own_buffers_are_no_gpu(tmp_path: Path) -> None:
    """With AMX, Ollama counts them in `size_vram` where there is no GPU at all."""
    judge = Judge(Shelf(Store(tmp_path)), lambda: ROOMY)
    judged(judge, listed(tmp_path, **LOADED, loaded_vram_bytes=4_000_000))
    assert judged(judge, listed(tmp_path)).measured_bytes


def test_a_gpu_that_holds_the_model_is_counted_as_free_for_the_comparison(tmp_path: Path) -> None:
    gpu = Gpu(index=0, vendor="nvidia", library="cuda", total_bytes=8 * 2**30, free_bytes=10)
    full = msgspec.structs.replace(ROOMY, gpus=(gpu,))
    held = msgspec.structs.replace(full, gpus=(msgspec.structs.replace(gpu, free_bytes=7 * 2**30),))
    judge = Judge(Shelf(Store(tmp_path)), lambda: held)
    loaded = LOADED | {"loaded_vram_bytes": 8_500_000}
    judged(judge, listed(tmp_path, **loaded))
    found = judged(judge, listed(tmp_path))
    assert found.measured_bytes and judge.expects_gpu("tiny:latest")


def endings() -> Sequence[Event]:
    usage = Usage(prompt_tokens=5, completion_tokens=28)
    line = b'{"done":true,"eval_count":28,"eval_duration":2000000000}\n'
    return (
        Finished(FinishReason.STOP, usage, "", {"eval_duration": 2_000_000_000}),
        Relayed(line, final=True, usage=usage),
    )


@pytest.mark.parametrize("event", endings(), ids=["read", "relayed"])
def test_the_speed_of_an_answer_is_shown_with_its_model(event: Event, tmp_path: Path) -> None:
    judge = Judge(Shelf(Store(tmp_path)), lambda: ROOMY)
    for told in (TextDelta("a"), event):
        judge.heard("tiny", told)
    found = judged(judge, listed(tmp_path))
    assert found.measured_tokens_per_s == 14.0


def test_a_model_that_embeds_is_judged_as_it_will_be_loaded(tmp_path: Path) -> None:
    """Logits of a whole batch are held, more of them in the embedded engine than in Ollama."""
    judge = Judge(Shelf(Store(tmp_path)), lambda: ROOMY)
    speaks = listed(tmp_path)
    embeds = listed(tmp_path, capabilities=("embedding",))
    here = msgspec.structs.replace(embeds, kind="llamacpp")
    found = [judged(judge, one).needed_bytes for one in (speaks, embeds, here)]
    assert found[0] < found[1] < found[2]


def test_how_ollama_loads_is_taken_from_its_settings(tmp_path: Path) -> None:
    plain = judged(Judge(Shelf(Store(tmp_path)), lambda: ROOMY), listed(tmp_path))
    environ = {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KV_CACHE_TYPE": "q8_0"}
    four = Judge(Shelf(Store(tmp_path)), lambda: ROOMY, environ=environ)
    assert judged(four, listed(tmp_path)).needed_bytes > plain.needed_bytes
    odd = {"OLLAMA_NUM_PARALLEL": "many", "OLLAMA_KV_CACHE_TYPE": "q9"}
    none = Judge(Shelf(Store(tmp_path)), lambda: ROOMY, environ=odd)
    assert judged(none, listed(tmp_path)) == plain


@pytest.mark.parametrize(
    ("configured", "own", "environ"),
    [(65536, 0, {}), (0, 65536, {}), (0, 0, {"OLLAMA_CONTEXT_LENGTH": "65536"})],
    ids=["local.num_ctx", "the model's own", "the daemon's"],
)
def test_a_context_that_somebody_chose_is_the_one_that_is_judged(
    configured: int, own: int, environ: dict[str, str], tmp_path: Path
) -> None:
    """Ollama loads it so, and does not look first whether the memory will do."""
    params: dict[str, object] = {"num_ctx": own} if own else {}
    published = toy.publish(tmp_path, shape=toy.Shape(context=131_072), params=params)
    model = LocalModel(name="tiny:latest", digest=published.digest.removeprefix("sha256:"))
    endpoint = "http://127.0.0.1:11434"
    status = EngineStatus(
        kind="ollama", state="ready", ready=True, endpoint=endpoint, models=(model,)
    )
    lean = msgspec.structs.replace(ROOMY, ram_available_bytes=70 * MIB)  # 4096 tokens take 27
    judge = Judge(Shelf(Store(tmp_path)), lambda: lean, num_ctx=configured, environ=environ)
    found = judged(judge, status)
    assert found.fit == "no" and found.needed_bytes > lean.ram_available_bytes
    kept_short = msgspec.structs.replace(status, kind="llamacpp")
    assert judged(judge, kept_short).needed_bytes < lean.ram_available_bytes


# --- the whole way -------------------------------------------------------------------------------


def test_an_embedded_model_that_answered_is_compared_with_its_prediction(tmp_path: Path) -> None:
    """On the real engine: the process can be asked, and its speed is known to the next process."""
    from localfirst import AsyncClient
    from localfirst.config import load
    from localfirst.transport import process

    pytest.importorskip("xllamacpp")
    toy.publish(tmp_path / "models")
    settings = load(
        environ={
            "LOCALFIRST_CONFIG": "/dev/null",
            "LOCALFIRST_STATE_DIR": str(tmp_path / "state"),
            "OLLAMA_MODELS": str(tmp_path / "models"),
            "LOCALFIRST_LOCAL_ENGINE": "llamacpp",
        }
    ).settings

    async def scenario() -> None:
        async with AsyncClient(settings) as client:
            await client.chat("hello", max_tokens=40)
            engine = (await client.opened()).engine._llamacpp
            assert engine is not None
            ((_, runner),) = engine._pool.loaded()
            assert runner.predicted is not None and runner.child is not None
            resident = process.resident_bytes(runner.child.pid)
            assert 0.5 < resident / runner.predicted.needed_bytes < 1.5
        async with AsyncClient(settings) as client:
            (model,) = (await (await client.opened()).engine.status(max_age_s=0)).models
            assert model.measured_tokens_per_s > 100

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "kind",
    [
        "fake",
        pytest.param(
            "real",
            marks=[
                pytest.mark.real_ollama,
                pytest.mark.skipif(not REAL.exists(), reason=NO_REAL),
            ],
        ),
    ],
)
def test_an_ollamas_answer_teaches_its_speed(kind: str, tmp_path: Path) -> None:
    toy.publish(tmp_path / "store")
    daemon = (
        fake_daemon({"models": {"tiny": {}}})
        if kind == "fake"
        else real_daemon(tmp_path, tmp_path / "store")
    )

    async def test() -> None:
        async with daemon as served, bench(tmp_path, host=served.endpoint) as made:
            await collect(made.engine, ask(max_tokens=40))
            (model,) = (await made.engine.status(max_age_s=0)).models
            assert model.measured_tokens_per_s > 100
            assert model.tokens_per_s is not None
            assert model.tokens_per_s[0] < model.measured_tokens_per_s < model.tokens_per_s[1]
        assert (tmp_path / "state" / "measured.json").exists()

    run(test)


def test_what_an_ollama_allocated_decides_once_the_model_is_gone(tmp_path: Path) -> None:
    """Through the socket: `/api/ps` while it is loaded, and the verdict and plan after it."""
    digest = toy.publish(tmp_path / "store").digest.removeprefix("sha256:")
    script = {"models": {"tiny": {"digest": digest, "bytes": 9_000_000}}}

    async def test() -> None:
        async with fake_daemon(script) as served, bench(tmp_path, host=served.endpoint) as made:
            await collect(made.engine, ask(), "tiny")
            (loaded,) = (await made.engine.status(max_age_s=0)).models
            assert loaded.loaded and loaded.loaded_context_tokens and loaded.fit == "fits"
            assert await made.engine.unload("tiny")
            (gone,) = (await made.engine.status(max_age_s=0)).models
            assert not gone.loaded and gone.measured_bytes == gone.needed_bytes > 9_000_000
            # Room for what the formula says, and not for what it took.
            room = int(gone.measured_bytes / 1.12)
            made.hardware = msgspec.structs.replace(ROOMY, ram_available_bytes=room)
            made.engine.forget()
            (tight,) = (await made.engine.status(max_age_s=0)).models
            assert tight.fit == "no"
            plain = Judge(Shelf(Store(tmp_path / "store")), lambda: made.hardware)
            by_formula = await plain.judged(listed(tmp_path / "store"))
            assert by_formula.models[0].fit != "no"
            assert (await made.engine.measured())["tiny:latest"].measured_bytes

    run(test)


def test_answers_that_share_the_machine_teach_no_speed(tmp_path: Path) -> None:
    async def test() -> None:
        script = {"models": {"tiny": {"word_delay_s": 0.01}}}
        async with fake_daemon(script) as served, bench(tmp_path, host=served.endpoint) as made:
            await asyncio.gather(*(collect(made.engine, ask()) for _ in range(3)))
            (model,) = (await made.engine.status(max_age_s=0)).models
            assert not model.measured_tokens_per_s

    run(test)


def test_an_image_encoder_counts_for_the_list_and_for_the_download(tmp_path: Path) -> None:
    """It lies in a blob of its own, and works in a gigabyte of its own."""
    blind = listed(tmp_path)
    store = Store(tmp_path)
    plain = store.get("tiny").manifest
    assert plain.config is not None and plain.weights is not None
    encoder = manifest.Layer(
        media_type=f"{manifest.LAYER_PREFIX}projector",
        digest="sha256:" + "ab" * 32,
        size_bytes=600 * MIB,
    )
    seeing = manifest.build(plain.config, (*plain.layers, encoder))
    head = store.blob_path(plain.weights.digest).read_bytes()
    expected = 600 * MIB + 1024 * MIB
    downloads = [fitness.predict(one, head, ROOMY) for one in (plain, manifest.parse(seeing))]
    assert downloads[1].needed_bytes - downloads[0].needed_bytes == expected
    judge = Judge(Shelf(store), lambda: ROOMY)
    before = judged(judge, blind).needed_bytes
    store.put_manifest(names.parse("tiny"), seeing)
    digest = store.get("tiny").digest
    status = msgspec.structs.replace(
        blind, models=(msgspec.structs.replace(blind.models[0], digest=digest),)
    )
    assert judged(judge, status).needed_bytes - before == expected

"""Guards the doctor: each trouble is named once, with what was seen and what to do."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.machine import doctor, recommend
from localfirst.machine.doctor import Engine, Facts, Finding, Key, Mirror, Model, Proof, Severity
from localfirst.machine.fit import Cpu, Disk, Gpu, Hardware
from localfirst.machine.serverless import verdict
from localfirst.settings import (
    GatewaySettings,
    LocalSettings,
    Privacy,
    Secret,
    Settings,
)

GIB = 2**30
FINE = Hardware(
    platform="linux",
    ram_total_bytes=16 * GIB,
    ram_available_bytes=12 * GIB,
    cpu=Cpu(model="a processor", architecture="x86_64", cores=8, threads=16, features=("avx2",)),
    disk=Disk(path="/models", free_bytes=200 * 10**9, total_bytes=500 * 10**9, filesystem="ext4"),
    gpus=(
        Gpu(
            index=0,
            vendor="nvidia",
            name="RTX 3060",
            library="cuda",
            total_bytes=12 * GIB,
            free_bytes=11 * GIB,
        ),
    ),
)
MODEL = Model(name="qwen3:4b", size_bytes=2_500_000_000, fit="fits")
RUNNING = Engine(
    kind="ollama", state="ready", ready=True, version="0.33.0", adopted=True, models=(MODEL,)
)
GROQ = Key(provider="groq", state="ready", variables=("GROQ_API_KEY",))
LOCAL = verdict({}, platform="linux")
LAMBDA = verdict({"AWS_LAMBDA_RUNTIME_API": "x"}, platform="linux")


def healthy(**changes: Any) -> Facts:
    facts = Facts(
        hardware=FINE,
        settings=Settings(),
        serverless=LOCAL,
        engine=RUNNING,
        keys=(GROQ,),
        online=True,
        store=doctor.StoreFacts(root="/models", models=1),
        last_resort=recommend.last_resort(FINE),
    )
    return msgspec.structs.replace(facts, **changes)


def found(facts: Facts, code: str, *, offline: bool = False) -> Finding:
    findings = doctor.examine(facts, offline=offline).findings
    matching = [finding for finding in findings if finding.code == code]
    assert len(matching) == 1, [finding.code for finding in findings]
    return matching[0]


def machine(**changes: Any) -> Hardware:
    return msgspec.structs.replace(FINE, **changes)


def test_a_healthy_machine_is_all_well() -> None:
    report = doctor.examine(healthy())
    assert {finding.severity for finding in report.findings} == {Severity.OK}
    assert (report.healthy, report.exit_code) == (True, 0)
    assert report.findings[0].evidence == (
        "locally with qwen3:4b; else from groq; else after downloading llama2:7b"
    )


TROUBLES: list[tuple[str, Severity, Facts, str]] = [
    (
        "memory-low",
        Severity.WARN,
        healthy(hardware=machine(ram_available_bytes=GIB)),
        "free of 17.2 GB",
    ),
    ("memory-unknown", Severity.WARN, healthy(hardware=Hardware(notes=("memory: gone",))), "gone"),
    (
        "memory-low",
        Severity.WARN,
        healthy(hardware=machine(ram_available_bytes=GIB, limit_bytes=2 * GIB)),
        "the container's limit",
    ),
    (
        "cpu-slow",
        Severity.WARN,
        healthy(hardware=machine(cpu=Cpu(architecture="x86_64", cores=2, features=("sse4_2",)))),
        "2 cores",
    ),
    ("cpu-slow", Severity.WARN, healthy(hardware=machine(cpu=Cpu(cores=8, quota=0.5))), "0.5"),
    ("gpu-none", Severity.INFO, healthy(hardware=machine(gpus=())), "processor"),
    (
        "gpu-unused",
        Severity.INFO,
        healthy(
            hardware=machine(
                gpus=(Gpu(index=0, vendor="intel", usable=False, reason="integrated; no"),)
            )
        ),
        "integrated",
    ),
    (
        "gpu-hidden",
        Severity.INFO,
        healthy(hardware=machine(notes=("`CUDA_VISIBLE_DEVICES` hides RTX 3060",))),
        "CUDA_VISIBLE_DEVICES",
    ),
    (
        "gpu-driver",
        Severity.WARN,
        healthy(hardware=machine(gpus=(), notes=("NVML: NVMLError: version mismatch",))),
        "mismatch",
    ),
    (
        "store-unwritable",
        Severity.ERROR,
        healthy(store=doctor.StoreFacts(root="/models", unwritable="owned by another user")),
        "owned by",
    ),
    (
        "disk-full",
        Severity.WARN,
        healthy(hardware=machine(disk=Disk(path="/m", free_bytes=10**9, total_bytes=10**11))),
        "needed",
    ),
    ("disk-unknown", Severity.INFO, healthy(hardware=machine(disk=Disk(path="/m"))), "/m"),
    (
        "disk-in-memory",
        Severity.WARN,
        healthy(
            hardware=machine(
                disk=Disk(path="/t", free_bytes=10**11, total_bytes=10**11, filesystem="tmpfs")
            )
        ),
        "tmpfs",
    ),
    (
        "disk-network",
        Severity.WARN,
        healthy(
            hardware=machine(
                disk=Disk(path="/n", free_bytes=10**11, total_bytes=10**11, filesystem="nfs4")
            )
        ),
        "nfs4",
    ),
    ("engine-absent", Severity.WARN, healthy(engine=None), "nothing was found"),
    ("engine-absent", Severity.ERROR, healthy(engine=None, keys=()), "nothing was found"),
    (
        "engine-absent",
        Severity.WARN,
        healthy(
            engine=Engine(
                kind="ollama", state="crash_loop", ready=False, reason="died 5 times: SIGILL"
            )
        ),
        "SIGILL",
    ),
    (
        "engine-off",
        Severity.INFO,
        healthy(settings=Settings(local=LocalSettings(engine="none"))),
        "none",
    ),
    (
        "models-none",
        Severity.WARN,
        healthy(
            engine=msgspec.structs.replace(RUNNING, models=()),
            store=doctor.StoreFacts(root="/models"),
        ),
        "/models",
    ),
    (
        "models-too-large",
        Severity.WARN,
        healthy(
            engine=msgspec.structs.replace(
                RUNNING, models=(MODEL, Model(name="big:70b", size_bytes=40 * 10**9, fit="no"))
            )
        ),
        "big:70b (40.0 GB)",
    ),
    (
        "models-damaged",
        Severity.ERROR,
        healthy(store=doctor.StoreFacts(root="/m", models=1, damaged=("a:1b",))),
        "a:1b",
    ),
    (
        "models-partial",
        Severity.INFO,
        healthy(store=doctor.StoreFacts(root="/m", models=1, partial_bytes=10**9)),
        "1.0 GB",
    ),
    (
        "model-on-cpu",
        Severity.WARN,
        healthy(
            engine=msgspec.structs.replace(
                RUNNING,
                models=(
                    msgspec.structs.replace(
                        MODEL, loaded=True, loaded_bytes=4 * 10**9, loaded_vram_bytes=10**9
                    ),
                ),
            )
        ),
        "1.0 GB of 4.0 GB",
    ),
    ("clouds-none", Severity.INFO, healthy(keys=()), "without a key"),
    (
        "key-placeholder",
        Severity.ERROR,
        healthy(
            keys=(Key(provider="openai", state="placeholder key", variables=("OPENAI_API_KEY",)),)
        ),
        "OPENAI_API_KEY",
    ),
    (
        "key-unset",
        Severity.WARN,
        healthy(
            keys=(
                Key(
                    provider="openai",
                    state="key not set",
                    unset=("NOPE",),
                    wanting="`providers.openai.keys` names `NOPE`, not set",
                ),
            )
        ),
        "names `NOPE`, not set",
    ),
    ("network-offline", Severity.INFO, healthy(online=False, online_reason="no route"), "no route"),
    ("network-unknown", Severity.INFO, healthy(online=None), "routing table"),
    ("serverless", Severity.INFO, healthy(serverless=LAMBDA), "AWS_LAMBDA_RUNTIME_API"),
    (
        "gateway-open",
        Severity.ERROR,
        healthy(settings=Settings(gateway=GatewaySettings(host="0.0.0.0"))),
        "0.0.0.0",
    ),
    (
        "local-host-remote",
        Severity.ERROR,
        healthy(
            settings=Settings(
                privacy=Privacy.LOCAL_ONLY, local=LocalSettings(host="http://10.0.0.9:11434")
            )
        ),
        "10.0.0.9",
    ),
    (
        "mirror",
        Severity.OK,
        healthy(mirrors=(Mirror(registry="registry.ollama.ai", host="m.corp", backed=True),)),
        "`m.corp` is asked first, `registry.ollama.ai` where it fails",
    ),
    (
        "mirror-alone",
        Severity.INFO,
        healthy(mirrors=(Mirror(registry="registry.ollama.ai", host="m.corp"),)),
        "`registry.ollama.ai` is not asked where it fails: not in `pull.registries`",
    ),
    (
        "state-unwritable",
        Severity.WARN,
        healthy(state_unwritable="read-only file system"),
        "read-only",
    ),
    (
        "last-resort-substituted",
        Severity.INFO,
        healthy(last_resort=recommend.last_resort(machine(gpus=(), ram_available_bytes=3 * GIB))),
        "does not fit",
    ),
    (
        "last-resort-none",
        Severity.WARN,
        healthy(last_resort=recommend.last_resort(machine(gpus=(), ram_available_bytes=2**27))),
        "does not fit",
    ),
    (
        "answer-none",
        Severity.ERROR,
        healthy(engine=None, keys=(), online=False),
        "no engine",
    ),
]


@pytest.mark.parametrize(
    ("code", "severity", "facts", "evidence"), TROUBLES, ids=[row[0] for row in TROUBLES]
)
def test_each_trouble_is_named_with_evidence(
    code: str, severity: Severity, facts: Facts, evidence: str
) -> None:
    finding = found(facts, code)
    assert finding.severity is severity
    assert evidence in finding.evidence


@pytest.mark.parametrize("facts", [row[2] for row in TROUBLES], ids=[row[0] for row in TROUBLES])
def test_every_warning_and_error_says_what_to_do(facts: Facts) -> None:
    for finding in doctor.examine(facts).findings:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", finding.code)
        if finding.severity in {Severity.WARN, Severity.ERROR}:
            assert finding.fix, finding.code
        assert len(finding.title) <= 80
    codes = [finding.code for finding in doctor.examine(facts).findings]
    assert len(codes) == len(set(codes))


def test_exit_codes_tell_unanswerable_from_other_errors() -> None:
    assert doctor.examine(healthy(engine=None, keys=(), online=False)).exit_code == 3
    damaged = healthy(store=doctor.StoreFacts(root="/m", models=1, damaged=("a",)))
    assert doctor.examine(damaged).exit_code == 1


def test_local_only_counts_no_cloud() -> None:
    facts = healthy(settings=Settings(privacy=Privacy.LOCAL_ONLY), engine=None, online=False)
    assert found(facts, "privacy-local-only").severity is Severity.OK
    assert found(facts, "engine-absent").severity is Severity.ERROR
    assert found(facts, "answer-none").severity is Severity.ERROR


@pytest.mark.parametrize(
    ("more", "step"),
    [
        ({"embedded": False}, "install an engine, as is told below, or set a cloud's key"),
        ({"embedded": True}, "connect to a network, or carry a model here"),
        ({"embedded": True, "settings": Settings(offline=True)}, "carry a model here"),
        (
            {"embedded": True, "online": True, "settings": Settings(order=("local",))},
            "install a model (`localfirst recommend --pull`), or set a cloud's key",
        ),
        (
            {"embedded": False, "settings": Settings(privacy=Privacy.LOCAL_ONLY)},
            "install an engine, as is told below",
        ),
    ],
)
def test_the_next_step_is_one_that_helps(more: dict[str, object], step: str) -> None:
    """A model was to be installed without a network, and where nothing could run it."""
    facts = healthy(**{"engine": None, "keys": (), "online": False, **more})
    fix = found(facts, "answer-none").fix
    assert fix == step or fix.startswith(f"{step} (")


def test_a_cloud_that_the_order_does_not_name_does_not_count() -> None:
    facts = healthy(settings=Settings(order=("local",)), engine=None)
    assert found(facts, "clouds-none")
    assert found(facts, "answer-none")


def test_ollamas_cloud_models_are_no_local_models() -> None:
    remote = Model(name="gpt-oss:120b-cloud", remote=True)
    facts = healthy(
        engine=msgspec.structs.replace(RUNNING, models=(remote,)),
        store=doctor.StoreFacts(root="/m"),
    )
    assert found(facts, "models-none")


def test_serverless_without_keys_cannot_answer_by_downloading() -> None:
    facts = healthy(serverless=LAMBDA, engine=None, keys=(), embedded=True)
    assert found(facts, "answer-none")
    own = healthy(engine=None, keys=(), embedded=True)
    assert "after downloading" in found(own, "answer").evidence


def test_a_gateway_with_a_key_may_be_open() -> None:
    guarded = GatewaySettings(host="0.0.0.0", keys=(Secret("hush", "gateway key"),))
    report = doctor.examine(healthy(settings=Settings(gateway=guarded)))
    assert "gateway-open" not in {finding.code for finding in report.findings}
    assert "hush" not in json.dumps(doctor.as_json(report))


def test_an_engines_own_status_is_taken_as_it_is() -> None:
    status = EngineStatus(
        kind="ollama",
        state="ready",
        ready=True,
        models=(LocalModel(name="a:1b", size_bytes=7, fit="tight", digest="sha256:1"),),
    )
    taken = Engine.of(status)
    assert taken.models == (Model(name="a:1b", size_bytes=7, fit="tight"),)
    assert taken.ready


# --- a life offline ----------------------------------------------------------------------------

PROOF = Proof(model="qwen3:4b", tokens=1, duration_s=0.4)


def test_a_real_answer_with_the_network_shut_off_is_the_proof() -> None:
    finding = found(healthy(proof=PROOF, online=False), "offline-proven", offline=True)
    assert finding.severity is Severity.OK
    assert "said 1 token in" in finding.evidence
    assert doctor.examine(healthy(proof=PROOF), offline=True).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, "a real answer"),
        ({"proof": Proof(model="a", tokens=0)}, "a real answer"),
        ({"proof": Proof(model="a", error="timed out")}, "timed out"),
        ({"proof": PROOF, "engine": None}, "an engine"),
        (
            {
                "proof": PROOF,
                "engine": msgspec.structs.replace(
                    RUNNING, models=(msgspec.structs.replace(MODEL, fit="no"),)
                ),
            },
            "an installed model that fits",
        ),
        (
            {"proof": PROOF, "store": doctor.StoreFacts(root="/m", models=1, damaged=("b:2b",))},
            "b:2b",
        ),
    ],
)
def test_whatever_is_missing_for_a_life_offline_is_named(
    changes: dict[str, Any], missing: str
) -> None:
    facts = healthy(**changes)
    finding = found(facts, "offline-unproven", offline=True)
    assert finding.severity is Severity.ERROR
    assert missing in finding.evidence
    assert doctor.examine(facts, offline=True).exit_code == 3


# --- JSON --------------------------------------------------------------------------------------


def test_the_json_shape_is_stable() -> None:
    shown = json.loads(json.dumps(doctor.as_json(doctor.examine(healthy(proof=PROOF)))))
    assert set(shown) == {
        "healthy",
        "findings",
        "serverless",
        "network",
        "hardware",
        "engine",
        "providers",
        "store",
        "last_resort",
        "proof",
    }
    assert shown["serverless"] == {
        "rule": None,
        "category": "local",
        "skip_pull": False,
        "reason": "no variable of a hosting platform is set",
    }
    assert set(shown["findings"][0]) == {"code", "area", "severity", "title", "evidence", "fix"}
    assert shown["providers"] == {"groq": {"state": "ready", "reason": ""}}
    assert shown["last_resort"]["name"] == "llama2:7b"


def test_a_matched_rule_is_named_in_the_json() -> None:
    shown = doctor.as_json(doctor.examine(healthy(serverless=LAMBDA)))["serverless"]
    assert (shown["rule"], shown["category"], shown["skip_pull"]) == (
        "aws-lambda",
        "serverless",
        True,
    )


def test_without_an_engine_the_json_says_null() -> None:
    shown = doctor.as_json(doctor.examine(healthy(engine=None, last_resort=None)))
    assert (shown["engine"], shown["last_resort"], shown["proof"]) == (None, None, None)


def test_what_was_measured_is_the_evidence() -> None:
    seen = msgspec.structs.replace(MODEL, measured_tokens_per_s=14.2)
    large = msgspec.structs.replace(
        MODEL, name="big:70b", fit="no", needed_bytes=44 * 10**9, measured_bytes=44 * 10**9
    )
    engine = msgspec.structs.replace(RUNNING, models=(seen, large))
    facts = healthy(engine=engine)
    assert "qwen3:4b (14 tokens/s measured)" in found(facts, "models").evidence
    assert found(facts, "models-too-large").evidence == "big:70b (took 44.0 GB of memory here)"
    told = doctor.as_json(doctor.examine(facts))["engine"]["models"]
    assert told[0]["measured_tokens_per_s"] == 14.2


@pytest.mark.parametrize("facts", [healthy(), healthy(proof=PROOF, online=False)])
def test_every_finding_has_a_severity_a_title_and_evidence(facts: Facts) -> None:
    for offline in (False, True):
        for finding in doctor.examine(facts, offline=offline).findings:
            assert finding.code and finding.area and finding.title and finding.evidence, finding
            if finding.severity in {Severity.WARN, Severity.ERROR}:
                assert finding.fix, finding

"""Guards what is measured: thirty recorded machines, and drivers that lie, raise and hang."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from localfirst.machine import fit, hardware, probe, readers
from localfirst.machine.fit import Hardware
from localfirst.machine.gpu import known_bandwidth, parse_smi
from localfirst.machine.gpu_sysfs import gfx_name
from localfirst.machine.readers import NvmlDevice, Ram, Readers, Space
from tests.unit.test_machine_fit_verdict import LLAMA2_7B

GIB = 2**30
FOLDER = Path(__file__).parent.parent / "data" / "machines"
MACHINES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


class BrokenDriver(Exception):
    """What a recorded driver raised."""


def lay_out(record: dict[str, Any], root: Path) -> None:
    """Write the recorded files and links under *root*."""
    for name, text in record["files"].items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, target in record["links"].items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


def raising(text: str) -> Callable[[], Any]:
    def ask() -> Any:
        raise BrokenDriver(text)

    return ask


def stand_in(record: dict[str, Any]) -> Readers:
    """The recorded answers of drivers and system calls."""
    if "nvml" in record:
        devices = msgspec.convert(record["nvml"], list[NvmlDevice])

        def nvml() -> list[NvmlDevice]:
            return devices
    else:
        nvml = raising(record["nvml_error"])
    ram = record.get("ram")
    free, total, read_only = record["space"]
    return Readers(
        platform=record["platform"],
        machine=record["machine"],
        ram=lambda: Ram(total=ram[0], available=ram[1], swap_total=ram[2], swap_free=ram[3]),
        space=lambda path: Space(free=free, total=total, read_only=read_only),
        nvml=nvml,
        nvidia_smi=lambda: str(record["nvidia_smi"]),
        sysctl=lambda name: str(record["sysctl"].get(name, "")),
        adapters=lambda: list(record["adapters"]),
        affinity=lambda: int(record["affinity"]),
    )


def measured(record: dict[str, Any], root: Path) -> Hardware:
    lay_out(record, root)
    return hardware.measure(
        store=Path(record["store"]),
        environ=record["environ"],
        root=root,
        readers=stand_in(record),
    )


def near(gib: float) -> Any:
    return pytest.approx(gib * GIB, rel=1e-3, abs=2**20)


@pytest.mark.parametrize("name", MACHINES)
def test_a_recorded_machine_is_what_it_is(name: str, tmp_path: Path) -> None:
    record = MACHINES[name]
    found, expect = measured(record, tmp_path), record["expect"]
    assert found.ram_total_bytes == near(expect["ram_total_gib"])
    assert found.ram_available_bytes == near(expect["ram_available_gib"])
    assert found.limit_bytes == near(expect["limit_gib"])
    assert found.swap_total_bytes == near(expect["swap_gib"])
    assert (found.cpu.cores, found.cpu.threads) == (expect["cores"], expect["threads"])
    assert found.cpu.quota == expect.get("quota", 0)
    assert set(expect.get("features", ())) <= set(found.cpu.features)
    assert (found.kind, found.disk.filesystem) == (expect["kind"], expect["filesystem"])
    assert found.disk.in_memory == (expect["filesystem"] == "tmpfs")


@pytest.mark.parametrize("name", MACHINES)
def test_a_recorded_machines_gpus_are_seen_as_they_are(name: str, tmp_path: Path) -> None:
    record = MACHINES[name]
    found, expect = measured(record, tmp_path), record["expect"]
    assert len(found.gpus) == len(expect["gpus"])
    for gpu, wanted in zip(found.gpus, expect["gpus"], strict=True):
        for key, value in wanted.items():
            match key:
                case "total_gib":
                    assert gpu.total_bytes == near(value)
                case "free_gib":
                    assert gpu.free_bytes == near(value)
                case "bandwidth_gb_s":
                    assert gpu.bandwidth_bytes_s == pytest.approx(value * 1e9, rel=0.01)
                case "reason":
                    assert value in gpu.reason
                case _:
                    assert getattr(gpu, key) == value, key
    for word in expect.get("notes", ()):
        assert any(word in note for note in found.notes), found.notes
    if "notes" not in expect:
        assert found.notes == ()


@pytest.mark.parametrize("name", MACHINES)
def test_the_last_resort_is_judged_on_every_recorded_machine(name: str, tmp_path: Path) -> None:
    record = MACHINES[name]
    found = fit.predict(LLAMA2_7B, measured(record, tmp_path), context_tokens=4096)
    assert [found.verdict, found.placement] == record["expect"]["llama2_7b"], found.reason


def test_there_are_machines_of_every_kind() -> None:
    assert len(MACHINES) >= 12
    assert {record["platform"] for record in MACHINES.values()} == {"linux", "darwin", "win32"}
    assert {record["expect"]["kind"] for record in MACHINES.values()} >= {
        "",
        "container",
        "vm",
        "wsl",
    }


# --- visibility --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, ["3060", "3090"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ["3090"]),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["3060"]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, ["3060", "3090"]),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, ["3090"]),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "GPU-cccc1"}, ["3060"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-cccc"}, []),
        ({"CUDA_VISIBLE_DEVICES": "nonsense"}, []),
        ({"HIP_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}, ["3060", "3090"]),
    ],
)
def test_cuda_visible_devices_hides_as_cuda_does(
    environ: dict[str, str], names: list[str], tmp_path: Path
) -> None:
    record = MACHINES["dual-gpu"] | {"environ": environ}
    found = measured(record, tmp_path)
    assert [gpu.name[-4:] for gpu in found.gpus] == names
    assert len(found.notes) == 2 - len(names)


def test_hip_counts_what_rocr_left(tmp_path: Path) -> None:
    environ = {"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"}
    found = measured(MACHINES["rx7900xtx"] | {"environ": environ}, tmp_path)
    assert [gpu.compute for gpu in found.gpus] == ["gfx1100"]


# --- drivers that fail -------------------------------------------------------------------------


def test_every_driver_raising_leaves_an_empty_machine_with_notes(tmp_path: Path) -> None:
    broken = Readers(
        platform="linux",
        machine="x86_64",
        ram=raising("no memory"),
        space=lambda path: raising("no disk")(),
        nvml=raising("no nvml"),
        nvidia_smi=raising("no smi"),
        sysctl=lambda name: str(raising("no sysctl")()),
        adapters=raising("no registry"),
        affinity=raising("no affinity"),
    )
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    found = hardware.measure(store=Path("/models"), environ={}, root=tmp_path, readers=broken)
    assert (found.known, found.ram_total_bytes, found.gpus) == (False, 0, ())
    said = " ".join(found.notes)
    for word in ("no memory", "no disk", "no smi", "no affinity"):
        assert word in said
    assert fit.predict(LLAMA2_7B, found, context_tokens=4096).verdict is fit.Verdict.UNKNOWN


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_raising_never_raises(platform: str, tmp_path: Path) -> None:
    record = MACHINES["apple-m1-16gb"] | {"platform": platform}
    answers = stand_in(record)
    import msgspec

    broken = msgspec.structs.replace(
        answers,
        sysctl=lambda name: str(raising("gone")()),
        adapters=raising("gone"),
        affinity=raising("gone"),
    )
    found = hardware.measure(store=Path("/m"), environ={}, root=tmp_path, readers=broken)
    assert found.ram_total_bytes == 16 * GIB
    assert found.gpus == ()


def test_a_question_that_hangs_costs_its_limit_once_and_is_not_asked_again() -> None:
    release, asked = threading.Event(), []

    def hang() -> str:
        asked.append(1)
        release.wait(30)
        return "late"

    questions = {
        "hung driver": probe.Question(ask=hang, timeout_s=0.05),
        "quick": probe.Question(ask=lambda: 7, timeout_s=5.0),
    }
    try:
        first = probe.ask_all(questions)
        second = probe.ask_all(questions)
    finally:
        release.set()
    assert first["quick"].value == second["quick"].value == 7
    assert "no answer within" in first["hung driver"].note
    assert "still no answer" in second["hung driver"].note
    assert asked == [1]


def test_a_driver_that_came_back_is_asked_again() -> None:
    release = threading.Event()
    hung = {"recovering": probe.Question(ask=lambda: release.wait(30), timeout_s=0.05)}
    probe.ask_all(hung)
    release.set()
    for thread in threading.enumerate():
        if thread.name == "probe-recovering":
            thread.join(5)
    again = {"recovering": probe.Question(ask=lambda: "well", timeout_s=5.0)}
    assert probe.ask_all(again)["recovering"].value == "well"


def test_damaged_files_of_the_kernel_never_raise(tmp_path: Path) -> None:
    record = json.loads(json.dumps(MACHINES["rx7900xtx"]))
    for name in record["files"]:
        record["files"][name] = "\x00\xff garbage \n: :: -1 0x max\n" * 3
    found = measured(record, tmp_path)
    assert found.gpus == ()
    assert not found.known


# --- this machine, really ----------------------------------------------------------------------


def test_this_machine_is_measured() -> None:
    found = hardware.measure(store=Path("/nowhere/at/all"), environ={})
    assert found.known
    assert 0 < found.ram_available_bytes <= found.ram_total_bytes
    assert found.cpu.usable >= 1
    assert found.disk.total_bytes >= found.disk.free_bytes > 0


def test_a_store_behind_a_link_is_on_the_disk_that_it_leads_to(tmp_path: Path) -> None:
    """People move `.ollama` to another disk and leave a link behind."""
    there, link = tmp_path / "mnt" / "models", tmp_path / "link"
    there.mkdir(parents=True)
    link.symlink_to(there)
    mounts = tmp_path / "proc" / "self" / "mountinfo"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:40 / {tmp_path.resolve() / 'mnt'} rw - tmpfs tmpfs rw\n"
    )
    found = hardware.measure(store=link / "new", environ={}, root=tmp_path)
    assert (found.disk.path, found.disk.filesystem) == (str(link / "new"), "tmpfs")
    assert found.disk.in_memory


def test_the_real_readers_answer_or_raise_but_never_hang() -> None:
    real = readers.this_machine()
    outcomes = probe.ask_all(
        {
            "nvml": probe.Question(ask=real.nvml, timeout_s=10),
            "smi": probe.Question(ask=real.nvidia_smi, timeout_s=10),
            "ram": probe.Question(ask=real.ram, timeout_s=10),
        }
    )
    assert outcomes["ram"].value.total > 0
    assert "no answer within" not in outcomes["nvml"].note + outcomes["smi"].note


# --- small parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "name"),
    [(100300, "gfx1030"), (90010, "gfx90a"), (110000, "gfx1100"), (90402, "gfx942")],
)
def test_instruction_sets_are_named_as_rocm_names_them(version: int, name: str) -> None:
    assert gfx_name(version) == name


def test_nvidia_smi_lines_without_numbers_are_unknown() -> None:
    text = "0, NVIDIA GB10, GPU-1, [N/A], [N/A], 580.95\nError: no device\n\n1, short\n"
    assert parse_smi(text) == [
        NvmlDevice(
            index=0, name="NVIDIA GB10", uuid="GPU-1", driver="580.95", memory="not supported"
        )
    ]


def test_the_longest_name_decides_the_bandwidth() -> None:
    assert known_bandwidth("NVIDIA GeForce RTX 4070 Ti SUPER") == 672e9
    assert known_bandwidth("Apple M2 Max") == 400e9
    assert known_bandwidth("Voodoo 2") == 0

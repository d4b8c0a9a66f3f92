"""Which GPUs an engine may use: variables that hide them, slices, and drivers that half answer."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from localfirst.machine import readers
from localfirst.machine.fit import Gpu
from localfirst.machine.gpu import nvidia, parse_smi, visible
from localfirst.machine.gpu_sysfs import sysfs_gpus
from localfirst.machine.memory import container_limit
from localfirst.machine.probe import Question, ask_all
from localfirst.machine.readers import NOT_SUPPORTED, NvmlDevice, Readers, Tree

GIB = 2**30


def card(index: int, library: str = "cuda", ident: str = "", **more: Any) -> Gpu:
    return Gpu(
        index=index,
        vendor="nvidia" if library == "cuda" else "amd",
        name=f"{library} {index}",
        library=library,
        id=ident or f"GPU-{index}aaa",
        total_bytes=8 * GIB,
        free_bytes=7 * GIB,
        **more,
    )


THREE = tuple(card(index) for index in range(3))
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("0", [0]),
        ("2,1", [2, 1]),
        (" 1 , 0 ", [1, 0]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("0,2,-1,1", [0, 2]),  # the example of NVIDIA's programming guide
        ("1,7,0", [1]),
        ("7", []),
        ("GPU-1aaa", [1]),
        ("GPU-2", [2]),
        ("GPU-", []),  # not unique
        ("G", []),
        ("GPU-1aaa,0", [1, 0]),
        ("GPU-missing,0", []),
        ("MIG-0000", []),
    ],
)
def test_cuda_shows_what_is_named_up_to_the_first_wrong_one(value: str, kept: list[int]) -> None:
    found = visible(THREE, {"CUDA_VISIBLE_DEVICES": value, **ORDER})
    assert [gpu.index for gpu in found.gpus] == kept
    assert len(found.notes) == 3 - len(kept)


RADEONS = tuple(card(index, "rocm", f"GPU-{index:016x}") for index in range(3))


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({"ROCR_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-0000000000000002"}, [0, 2]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"HIP_VISIBLE_DEVICES": ""}, [0, 1, 2]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": ""}, [0, 1, 2]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "2"}, []),
        ({"GPU_DEVICE_ORDINAL": "1"}, [0, 1, 2]),
    ],
)
def test_rocm_hides_as_its_runtimes_do(environ: dict[str, str], kept: list[int]) -> None:
    assert [gpu.index for gpu in visible(RADEONS, environ).gpus] == kept


def test_a_variable_of_one_maker_leaves_the_others_alone() -> None:
    both = (card(0), card(0, "vulkan"))
    found = visible(both, {"CUDA_VISIBLE_DEVICES": "-1"})
    assert [gpu.library for gpu in found.gpus] == ["vulkan"]
    assert not visible(both, {"GGML_VK_VISIBLE_DEVICES": "", **ORDER}).gpus[1:]


def test_a_radeon_is_named_as_rocr_names_it(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    for name, text in (
        ("vendor", "0x1002"),
        ("mem_info_vram_total", str(16 * GIB)),
        ("mem_info_vram_used", "0"),
        ("mem_info_vram_vendor", "samsung"),
        ("unique_id", "f3b2a1908070605"),
    ):
        (device / name).write_text(text + "\n")
    (gpu,) = sysfs_gpus(Tree(tmp_path), {}).gpus
    assert gpu.id == "GPU-0f3b2a1908070605"
    hidden = visible((gpu,), {"ROCR_VISIBLE_DEVICES": "GPU-0f3b2a1908070605"})
    assert len(hidden.gpus) == 1 or gpu.library != "rocm"


def test_a_window_that_is_no_number_does_not_hide_the_other_cards(tmp_path: Path) -> None:
    for name, vendor in (("card0", "0x8086"), ("card1", "0x1002")):
        device = tmp_path / "sys/class/drm" / name / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor)
        (device / "resource").write_text("0x0 garbage 0x2000\none two three\n")
    assert [gpu.vendor for gpu in sysfs_gpus(Tree(tmp_path), {}).gpus] == ["intel", "amd"]


# --- NVML -------------------------------------------------------------------------------------


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__({3: "Not Supported", 15: "GPU is lost", 6: "Not Found"}[value])
        self.value = value


class Memory:
    total, free = 12 * GIB, 11 * GIB


def driver(**answers: Any) -> types.ModuleType:
    """A `pynvml` of two cards; an answer is a value, or an error's number for the second."""
    module = types.ModuleType("pynvml")

    def answer(name: str, usual: Any) -> Any:
        def ask(device: int, *_: Any) -> Any:
            if device == 1 and name in answers:
                raise NVMLError(answers[name])
            return usual

        return ask

    usual: dict[str, Any] = {
        "nvmlDeviceGetName": "NVIDIA GeForce RTX 3060",
        "nvmlDeviceGetUUID": b"GPU-1",
        "nvmlDeviceGetMemoryInfo": Memory,
        "nvmlDeviceGetCudaComputeCapability": (8, 6),
        "nvmlDeviceGetMemoryBusWidth": 192,
        "nvmlDeviceGetMaxClockInfo": 7501,
        "nvmlDeviceGetMigMode": (0, 0),
    }
    for name, value in usual.items():
        setattr(module, name, answer(name, value))
    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    module.NVML_ERROR_NOT_SUPPORTED = 3  # type: ignore[attr-defined]
    handle = answer("nvmlDeviceGetHandleByIndex", None)
    module.nvmlDeviceGetHandleByIndex = lambda index: (handle(index), index)[1]  # type: ignore[attr-defined]
    return module


def two(**answers: Any) -> list[NvmlDevice]:
    module = driver(**answers)
    return [readers._nvml_device(module, index, "580.1") for index in (0, 1)]


def gpus_of(devices: list[NvmlDevice], smi: str = "", error: str = "") -> Any:
    def nvml() -> list[NvmlDevice]:
        if error:
            raise OSError(error)
        return devices

    fakes = Readers(
        platform="win32",
        machine="x86_64",
        ram=lambda: readers.Ram(total=0, available=0),
        space=lambda _: readers.Space(free=0, total=0),
        nvml=nvml,
        nvidia_smi=lambda: smi,
        sysctl=lambda _: "",
        adapters=list,
        affinity=lambda: 1,
    )
    return nvidia(fakes, Tree(Path("/nowhere")))


def test_a_card_that_fell_off_the_bus_does_not_take_the_other_with_it() -> None:
    whole, lost = gpus_of(two(nvmlDeviceGetHandleByIndex=15)).gpus
    assert whole.usable and whole.total_bytes == 12 * GIB
    assert not lost.usable and "GPU is lost" in lost.reason


def test_a_card_that_answers_half_is_used_as_far_as_it_answers() -> None:
    answers = dict.fromkeys(("nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetUUID"), 3)
    _, half = gpus_of(two(**answers)).gpus
    assert half.usable and half.bandwidth_bytes_s == 360e9 and not half.id


@pytest.mark.parametrize("number", [3, 15])
def test_a_card_that_does_not_tell_its_memory_is_not_believed_to_have_the_machines(
    number: int,
) -> None:
    _, silent = gpus_of(two(nvmlDeviceGetMemoryInfo=number)).gpus
    assert not silent.usable and not silent.unified
    assert "does not tell its memory" in silent.reason


def test_a_chip_without_memory_of_its_own_has_the_machines() -> None:
    spark = NvmlDevice(index=0, name="NVIDIA GB10", memory=NOT_SUPPORTED)
    (gpu,) = gpus_of([spark]).gpus
    assert gpu.usable and gpu.unified


def test_a_process_uses_one_slice_of_a_card() -> None:
    slices = tuple(
        NvmlDevice(index=n, name="A100 MIG", uuid=f"MIG-{n}", total=n * GIB, free=n * GIB)
        for n in (20, 10)
    )
    whole = NvmlDevice(index=0, name="A100", uuid="GPU-a", total=40 * GIB, slices=slices)
    found = gpus_of([whole]).gpus
    assert [gpu.id for gpu in found] == ["MIG-20", "MIG-10"]
    assert [gpu.id for gpu in visible(found, {}).gpus] == ["MIG-20"]
    for value in ("MIG-10", "1"):
        assert [g.id for g in visible(found, {"CUDA_VISIBLE_DEVICES": value, **ORDER}).gpus] == [
            "MIG-10"
        ]


def test_slices_are_found_by_the_driver() -> None:
    module: Any = driver()
    module.nvmlDeviceGetMigMode = lambda _: (1, 1)
    module.nvmlDeviceGetMaxMigDeviceCount = lambda _: 7

    def handle(device: int, number: int) -> int:
        if number > 1:
            raise NVMLError(6)
        return device

    module.nvmlDeviceGetMigDeviceHandleByIndex = handle
    found = readers._nvml_device(module, 0, "550")
    assert len(found.slices) == 2 and found.slices[0].compute == "8.6"


# --- nvidia-smi ---------------------------------------------------------------------------------

SMI = """Unable to determine the device handle for GPU 0000:0B:00.0: Unknown Error
0, NVIDIA GeForce RTX 2080 Ti, GPU-67a5, 11264, 10900, 520.61.05
1, NVIDIA GB10, GPU-2dee, [N/A], [N/A], 580.173.02
2, Tesla K80, GPU-3e34, [Unknown Error], [Unknown Error], 470.57
3, NVIDIA A10, GPU-4a, [Not Supported], [Not Supported], 535.1
4, half a line
No devices were found
"""


def test_every_line_of_nvidia_smi_is_believed_alone() -> None:
    found = parse_smi(SMI)
    assert [(one.index, one.memory) for one in found] == [
        (0, ""),
        (1, NOT_SUPPORTED),
        (2, "unknown error"),
        (3, NOT_SUPPORTED),
    ]
    gpus = gpus_of([], smi=SMI, error="no NVML").gpus
    assert [(gpu.usable, gpu.unified) for gpu in gpus] == [
        (True, False),
        (True, True),
        (False, False),
        (False, False),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_what_nvidia_smi_said_before_it_failed_is_used(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, NVIDIA A10, GPU-1, 23028, 22000, 535.1'\nexit 15\n")
    program.chmod(0o755)
    silent = tmp_path / "silent"
    silent.write_text("not a program")
    said = readers._nvidia_smi((str(tmp_path / "missing"), str(silent), str(program)))
    assert parse_smi(said)[0].total == 23028 * 2**20


# --- containers ----------------------------------------------------------------------------------


def groups(folder: Path, own: str, files: dict[str, str]) -> Tree:
    for name, text in {"/proc/self/cgroup": own, **files}.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(folder)


V2 = {"/sys/fs/cgroup/cgroup.controllers": "memory", "/sys/fs/cgroup/a/cgroup.controllers": "m"}


@pytest.mark.parametrize(
    ("files", "swap"),
    [
        ({"memory.max": "4294967296", "memory.swap.max": "0"}, 0),
        ({"memory.max": "4294967296", "memory.swap.max": "max"}, None),
        ({"memory.max": "max", "memory.swap.max": "1048576"}, 1048576),
        ({}, None),
    ],
)
def test_swap_that_a_group_may_not_use_is_none(
    files: dict[str, str], swap: int | None, tmp_path: Path
) -> None:
    named = {f"/sys/fs/cgroup/a/{name}": text for name, text in files.items()}
    assert container_limit(groups(tmp_path, "0::/a/b", {**V2, **named})).swap_bytes == swap


def test_version_1_counts_swap_with_the_memory(tmp_path: Path) -> None:
    top = "/sys/fs/cgroup/memory"
    files = {
        f"{top}/cgroup.procs": "1",
        f"{top}/memory.limit_in_bytes": str(4 * GIB),
        f"{top}/memory.memsw.limit_in_bytes": str(5 * GIB),
        f"{top}/memory.stat": "hierarchical_memory_limit 3221225472\n",
    }
    found = container_limit(groups(tmp_path, "4:memory:/docker/x", files))
    assert found.limit_bytes == 3 * GIB and found.swap_bytes == 2 * GIB


def test_a_soft_limit_above_counts_as_much_as_a_hard_one(tmp_path: Path) -> None:
    files = {
        "/sys/fs/cgroup/a/memory.high": str(2 * GIB),
        "/sys/fs/cgroup/a/memory.max": "max",
        "/sys/fs/cgroup/a/memory.current": str(GIB),
    }
    found = container_limit(groups(tmp_path, "0::/a/b/c", {**V2, **files}))
    assert (found.limit_bytes, found.left_bytes) == (2 * GIB, GIB)


# --- time ----------------------------------------------------------------------------------------


def test_probes_that_hang_together_cost_the_longest_limit_once() -> None:
    import threading
    import time

    never = threading.Event()
    questions = {
        f"hanging-{number}": Question(ask=never.wait, timeout_s=0.2 + number / 100)
        for number in range(10)
    }
    began = time.monotonic()
    outcomes = ask_all(questions)
    took_s = time.monotonic() - began
    never.set()
    assert all("no answer within" in outcome.note for outcome in outcomes.values())
    assert took_s < 1.5

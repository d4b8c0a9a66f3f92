"""
Accelerators: what the drivers tell, brought to one form, and what the user lets us see.

What cannot be found out stays unknown and is said so in a note: a GPU that is wrongly
believed in makes a model fail to load, one that is overlooked only makes it slow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from localfirst.machine.fit import Gpu
from localfirst.machine.readers import NOT_SUPPORTED, NvmlDevice, Readers, Tree

MIB = 2**20
GIB = 2**30


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of one maker, and what is to be said about them."""

    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def _bandwidths() -> dict[str, float]:
    data = (Path(__file__).parent / "data" / "bandwidth.json").read_bytes()
    table: dict[str, float] = msgspec.json.decode(data)["gb_s"]
    return {name.lower(): number * 1e9 for name, number in table.items()}


def known_bandwidth(*names: str) -> float:
    """Bytes per second of the longest table entry that occurs in one of *names*, or 0."""
    said = " | ".join(names).lower()
    matches = [name for name in _bandwidths() if name in said]
    return _bandwidths()[max(matches, key=len)] if matches else 0.0


# --- NVIDIA --------------------------------------------------------------------------------


def nvidia(readers: Readers, tree: Tree) -> Found:
    """NVIDIA devices by NVML, else by `nvidia-smi`, else a Jetson by its device tree."""
    board = jetson(tree)
    notes: list[str] = []
    try:
        devices = readers.nvml()
    except Exception as broken:  # noqa: BLE001 - bindings raise what they like; noted below
        devices = []
        if not board and _driver_expected(tree):
            notes.append(f"NVML: {type(broken).__name__}: {str(broken)[:120]}")
    if not devices and not board and (notes or readers.platform == "win32"):
        devices = parse_smi(readers.nvidia_smi())
        if devices:
            notes.append("memory of the GPUs read from `nvidia-smi`, because NVML did not answer")
    if board and not devices:
        return Found(gpus=(_jetson_gpu(board),))
    gpus = tuple(gpu for device in devices for gpu in _of_nvml(device))
    return Found(gpus=gpus, notes=tuple(notes))


def _driver_expected(tree: Tree) -> bool:
    """A machine without an NVIDIA driver needs no note that NVML is missing."""
    places = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/nvidia-smi")
    return any(tree.exists(place) for place in places)


# No memory of their own, which both NVML and `nvidia-smi` say by "not supported"; of any
# other card that is a fault (https://github.com/wookayin/gpustat/pull/179).
_SHARES_MEMORY = re.compile(r"GB10|N1X|Orin|Thor|Xavier|Tegra|nvgpu|Jetson", re.IGNORECASE)


def _of_nvml(device: NvmlDevice) -> tuple[Gpu, ...]:
    """The device, or the slices that it is cut into: to CUDA each of those is one."""
    if not device.slices:
        return (_whole(device),)
    parent = _whole(device)
    return tuple(_slice(one, device, parent) for one in device.slices)


def _whole(device: NvmlDevice) -> Gpu:
    unified = device.memory == NOT_SUPPORTED and bool(_SHARES_MEMORY.search(device.name))
    width, clock = device.bus_width_bits or 0, device.memory_clock_mhz or 0
    # Two transfers a clock, on every kind of memory NVML reports a clock for.
    measured = 2.0 * clock * 1e6 * width / 8
    known = device.total is not None or unified
    return Gpu(
        index=device.index,
        vendor="nvidia",
        name=device.name or f"NVIDIA GPU {device.index}",
        library="cuda",
        id=device.uuid,
        total_bytes=device.total or 0,
        free_bytes=device.free,
        unified=unified,
        driver=device.driver,
        compute=device.compute,
        bandwidth_bytes_s=measured or known_bandwidth(device.name),
        usable=known and not device.trouble,
        reason=_why_not(device, known=known),
    )


def _why_not(device: NvmlDevice, *, known: bool) -> str:
    if device.trouble:
        return f"its driver cannot reach it: {device.trouble}"
    return "" if known else f"its driver does not tell its memory: {device.memory}"


def _slice(device: NvmlDevice, card: NvmlDevice, parent: Gpu) -> Gpu:
    """A MIG instance: its own memory, and of the card's bandwidth as much as of its memory."""
    share = (device.total or 0) / card.total if card.total else 0.0
    return msgspec.structs.replace(
        _whole(device), index=card.index, bandwidth_bytes_s=parent.bandwidth_bytes_s * share
    )


def parse_smi(output: str) -> list[NvmlDevice]:
    """
    `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`, one device a line, in MiB.

    What is not a line of a device (a warning, an error, a card that is lost) is passed over.
    """
    devices = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < 6 or not cells[0].isdigit():
            continue
        total, free = (int(cell) * MIB if cell.isdigit() else None for cell in cells[3:5])
        word = cells[3].strip("[]").lower()
        absent = NOT_SUPPORTED if word in {"n/a", "not supported", "not available"} else word
        devices.append(
            NvmlDevice(
                index=int(cells[0]),
                name=cells[1],
                uuid=cells[2],
                total=total,
                free=free,
                driver=cells[5],
                memory="" if total is not None else absent,
            )
        )
    return devices


def jetson(tree: Tree) -> str:
    """The board's name on an NVIDIA Jetson, whose GPU has no memory of its own, or ""."""
    for place in ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"):
        model = tree.text(place)
        if "jetson" in model.lower() or "tegra" in model.lower():
            return model
    return ""


def _jetson_gpu(board: str) -> Gpu:
    return Gpu(
        index=0,
        vendor="nvidia",
        name=board,
        library="cuda",
        unified=True,
        bandwidth_bytes_s=known_bandwidth(board),
    )


# --- Apple and Windows ---------------------------------------------------------------------


def apple(readers: Readers, ram_total_bytes: int) -> Found:
    """Apple's GPU takes what Metal recommends of the unified memory, or what the user set."""
    # A Python made for Intel runs translated on Apple's processors, and is told "x86_64".
    if readers.machine != "arm64" and readers.sysctl("sysctl.proc_translated") != "1":
        return Found(notes=("Intel Macs have no GPU that Ollama or llama.cpp can use well",))
    limit_mb = readers.sysctl("iogpu.wired_limit_mb")
    limit = int(limit_mb) * MIB if limit_mb.isdigit() and int(limit_mb) else 0
    # recommendedMaxWorkingSetSize: two thirds up to 36 GB, three quarters above.
    share = 2 / 3 if ram_total_bytes <= 36 * GIB else 3 / 4
    total = limit or int(ram_total_bytes * share)
    name = readers.sysctl("machdep.cpu.brand_string")
    gpu = Gpu(
        index=0,
        vendor="apple",
        name=name,
        library="metal",
        total_bytes=total,
        free_bytes=total,
        unified=True,
        bandwidth_bytes_s=known_bandwidth(name),
    )
    return Found(gpus=(gpu,))


def windows(readers: Readers) -> Found:
    """AMD and Intel cards by the registry, which tells their size and not what is free."""
    found: list[Gpu] = []
    for adapter in readers.adapters():
        name, size = str(adapter.get("name", "")), int(adapter.get("bytes", 0))
        vendor = _vendor_of(name)
        if vendor and size:
            found.append(
                Gpu(
                    index=len(found),
                    vendor=vendor,
                    name=name,
                    library="vulkan",
                    total_bytes=size,
                    bandwidth_bytes_s=known_bandwidth(name),
                    reason="Windows does not tell how much of its memory is free",
                )
            )
    return Found(gpus=tuple(found))


def _vendor_of(name: str) -> str:
    lower = name.lower()
    if "radeon" in lower or "amd" in lower:
        return "amd"
    return "intel" if "arc" in lower.split() or "intel" in lower else ""


# --- what may be seen ----------------------------------------------------------------------


def visible(gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> Found:
    """
    Leave out what `CUDA_VISIBLE_DEVICES` and its kin hide from the engines we start.

    ROCm applies `ROCR_VISIBLE_DEVICES` first, then HIP its own variable to what is left.
    """
    kept = list(gpus)
    notes: list[str] = []
    for library, variable in _variables(environ):
        members = [gpu for gpu in kept if gpu.library == library]
        if not members:
            continue
        if library == "cuda":
            members = _cuda_order(members, environ)
        chosen = _chosen(members, environ[variable])
        hidden = [gpu for gpu in members if gpu not in chosen]
        kept = [gpu for gpu in kept if gpu.library != library] + chosen
        notes += [f"`{variable}` hides {gpu.name or f'GPU {gpu.index}'}" for gpu in hidden]
    return Found(gpus=tuple(_one_slice(kept)), notes=tuple(notes))


def _variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """
    The variables that are in force, in their order.

    CUDA and ROCr see an empty one as "none"; HIP passes over it, and takes CUDA's where its
    own says nothing (ROCm/clr, rocclr/device/rocm/rocdevice.cpp, `Device::init`, which reads
    `GPU_DEVICE_ORDINAL` for OpenCL only).
    """
    found = [
        (library, variable)
        for library, variable in (
            ("cuda", "CUDA_VISIBLE_DEVICES"),
            ("rocm", "ROCR_VISIBLE_DEVICES"),
            ("vulkan", "GGML_VK_VISIBLE_DEVICES"),
        )
        if variable in environ
    ]
    for variable in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if environ.get(variable):
            return [*found, ("rocm", variable)]
    return found


def _one_slice(kept: list[Gpu]) -> list[Gpu]:
    """A process uses one MIG instance: the first it sees (NVIDIA MIG User Guide)."""
    slices = [gpu for gpu in kept if gpu.id.startswith("MIG-")]
    return [gpu for gpu in kept if gpu not in slices[1:]]


def _cuda_order(members: list[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """CUDA counts the fastest first unless told to count as NVML does, by PCI bus."""
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return members

    def rank(gpu: Gpu) -> tuple[float, float]:
        major, _, minor = gpu.compute.partition(".")
        version = float(f"{major or 0}.{minor or 0}") if major.isdigit() else 0.0
        return (-gpu.bandwidth_bytes_s, -version)

    return sorted(members, key=rank)


def _chosen(members: list[Gpu], value: str) -> list[Gpu]:
    """CUDA's rules: indices or UUID prefixes; the first wrong one hides itself and the rest."""
    chosen: list[Gpu] = []
    for word in value.split(","):
        gpu = _named(members, word.strip())
        if gpu is None:
            break
        if gpu in chosen:
            return []
        chosen.append(gpu)
    return chosen


def _named(members: list[Gpu], word: str) -> Gpu | None:
    if word.isdigit():
        return members[int(word)] if int(word) < len(members) else None
    if not word.startswith(("GPU-", "MIG-")):
        return None
    matching = [gpu for gpu in members if gpu.id.startswith(word)]
    return matching[0] if len(matching) == 1 else None

"""
The ways into this machine that are not files: drivers, system calls, the registry.

All of them answer with plain values, so that a recording of another machine can stand in
for each. Files are read through `Tree`, whose root can be a recorded one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from localfirst.transport import files, process

READ_BYTES = 2**20  # /proc/cpuinfo of a machine with 512 threads is half of this
SMI_FIELDS = ("index", "name", "uuid", "memory.total", "memory.free", "driver_version")
TEXT_SYSCTLS = {"machdep.cpu.brand_string", "hw.model"}
NOT_SUPPORTED = "not supported"
SMI_PLACES = ("nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi")


class Tree:
    """Text files under a root; what is absent or unreadable reads as nothing."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        """Where the absolute *name* lies under the root."""
        return self._root / name.lstrip("/")

    def text(self, name: str) -> str:
        """The file's first megabyte, or ""."""
        with contextlib.suppress(OSError), self.path(name).open("rb") as file:
            return file.read(READ_BYTES).decode("utf-8", "replace").strip("\0\n ")
        return ""

    def number(self, name: str) -> int | None:
        """The file's whole number, decimal or 0x, or None."""
        with contextlib.suppress(ValueError):
            return int(self.text(name), 0)
        return None

    def exists(self, name: str) -> bool:
        """Say whether *name* is there."""
        return self.path(name).exists()

    def names(self, folder: str) -> list[str]:
        """The names in *folder*, sorted."""
        with contextlib.suppress(OSError):
            return sorted(entry.name for entry in self.path(folder).iterdir())
        return []

    def target(self, link: str) -> str:
        """What *link* leads to in the end, as a name that identifies it."""
        return os.path.realpath(self.path(link))


class Ram(msgspec.Struct, frozen=True, kw_only=True):
    """Memory and swap in bytes."""

    total: int
    available: int
    swap_total: int = 0
    swap_free: int = 0


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """A file system's room, as an unprivileged user has it; `place` is the folder without links."""

    free: int
    total: int
    read_only: bool = False
    place: str = ""


class NvmlDevice(msgspec.Struct, frozen=True, kw_only=True):
    """
    What NVML says of one device; None and "" where it says nothing.

    `memory` is why it tells no memory: `NOT_SUPPORTED` where there is none of its own to
    tell, else the error. `trouble` why the device itself does not answer. `slices` are its
    MIG instances, each a device to CUDA.
    """

    index: int
    name: str = ""
    uuid: str = ""
    total: int | None = None
    free: int | None = None
    compute: str = ""
    bus_width_bits: int | None = None
    memory_clock_mhz: int | None = None
    driver: str = ""
    memory: str = ""
    trouble: str = ""
    slices: tuple[NvmlDevice, ...] = ()


class Readers(msgspec.Struct, frozen=True, kw_only=True):
    """This machine's drivers and calls; each may raise or hang, and the caller expects it."""

    platform: str
    machine: str
    ram: Callable[[], Ram]
    space: Callable[[Path], Space]
    nvml: Callable[[], list[NvmlDevice]]
    nvidia_smi: Callable[[], str]
    sysctl: Callable[[str], str]
    adapters: Callable[[], list[dict[str, Any]]]
    affinity: Callable[[], int]


def this_machine() -> Readers:
    """The real ones."""
    return Readers(
        platform=sys.platform,
        machine=platform.machine(),
        ram=_ram,
        space=_space,
        nvml=_nvml,
        nvidia_smi=_nvidia_smi,
        sysctl=_sysctl,
        adapters=_adapters,
        affinity=_affinity,
    )


def _ram() -> Ram:
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Ram(
        total=memory.total, available=memory.available, swap_total=swap.total, swap_free=swap.free
    )


def _space(path: Path) -> Space:
    import shutil

    folder = files.existing_parent(path)
    usage = shutil.disk_usage(folder)
    # `disk_usage` counts what is reserved for root as used, which is what a user has.
    return Space(
        free=usage.free,
        total=usage.total,
        read_only=not os.access(folder, os.W_OK),
        place=os.path.realpath(path),
    )


def _affinity() -> int:
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 0


def _nvml() -> list[NvmlDevice]:
    import pynvml

    pynvml.nvmlInit()
    try:
        driver = _say(pynvml.nvmlSystemGetDriverVersion()) or ""
        count = pynvml.nvmlDeviceGetCount()
        return [_nvml_device(pynvml, index, driver) for index in range(count)]
    finally:
        pynvml.nvmlShutdown()


def _nvml_device(pynvml: Any, index: int, driver: str) -> NvmlDevice:
    """One device; a card that fell off the bus does not take the others with it."""
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return NvmlDevice(index=index, driver=driver, trouble=str(error)[:120])
    found = _nvml_facts(pynvml, device, index, driver)
    return msgspec.structs.replace(found, slices=tuple(_slices(pynvml, device, found)))


def _nvml_facts(pynvml: Any, device: Any, index: int, driver: str) -> NvmlDevice:
    def tell(name: str, *arguments: Any) -> Any:
        try:
            return getattr(pynvml, name)(device, *arguments)
        except (pynvml.NVMLError, AttributeError):
            return None

    memory, why = None, ""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    except pynvml.NVMLError as error:
        unsupported = getattr(error, "value", None) == pynvml.NVML_ERROR_NOT_SUPPORTED
        why = NOT_SUPPORTED if unsupported else str(error)[:120]
    compute = tell("nvmlDeviceGetCudaComputeCapability")
    return NvmlDevice(
        index=index,
        name=_say(tell("nvmlDeviceGetName")) or "",
        uuid=_say(tell("nvmlDeviceGetUUID")) or "",
        total=memory.total if memory else None,
        free=memory.free if memory else None,
        compute=".".join(map(str, compute)) if compute else "",
        bus_width_bits=tell("nvmlDeviceGetMemoryBusWidth"),
        memory_clock_mhz=tell("nvmlDeviceGetMaxClockInfo", 2),  # NVML_CLOCK_MEM
        driver=driver,
        memory=why,
    )


def _slices(pynvml: Any, device: Any, parent: NvmlDevice) -> Iterator[NvmlDevice]:
    """A card's MIG instances, if it is cut into any."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(device)
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(device) if current else 0
    except (pynvml.NVMLError, AttributeError):
        return
    for number in range(most):
        with contextlib.suppress(pynvml.NVMLError):
            slice_ = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, number)
            found = _nvml_facts(pynvml, slice_, number, parent.driver)
            yield msgspec.structs.replace(found, compute=parent.compute)


def _say(value: Any) -> str | None:
    """Old bindings answer bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _nvidia_smi(places: Sequence[str] = SMI_PLACES) -> str:
    arguments = [f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    for program in places:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            done = process.run([program, *arguments], timeout_s=4.0)
            # With one card lost it fails, and has told of the others.
            if said := done.stdout.decode("utf-8", "replace").strip():
                return said
    return ""


def _sysctl(name: str) -> str:
    library = ctypes.CDLL("libc.dylib" if sys.platform == "darwin" else None, use_errno=True)
    size = ctypes.c_size_t(256)
    buffer = ctypes.create_string_buffer(size.value)
    if library.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0) != 0:
        return ""
    raw = buffer.raw[: size.value]
    if name in TEXT_SYSCTLS:
        return raw.rstrip(b"\0").decode("utf-8", "replace")
    return str(int.from_bytes(raw, sys.byteorder))


def _adapters() -> list[dict[str, Any]]:
    """Windows' display adapters; WMI's AdapterRAM stops at 4 GiB, the registry does not."""
    import winreg  # type: ignore[import-not-found,unused-ignore]

    registry: Any = winreg
    place = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
    found = []
    for number in range(16):
        with (
            contextlib.suppress(OSError),
            registry.OpenKey(registry.HKEY_LOCAL_MACHINE, rf"{place}\{number:04d}") as key,
        ):
            name = registry.QueryValueEx(key, "DriverDesc")[0]
            size = registry.QueryValueEx(key, "HardwareInformation.qwMemorySize")[0]
            found.append({"name": str(name), "bytes": int(size)})
    return found

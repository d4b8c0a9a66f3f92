"""
What this computer is: one snapshot, from independent probes that cannot hurt each other.

    memory   /proc/meminfo or psutil, then every control group's limit on the way up
    cpu      /proc/cpuinfo or sysctl, quotas, affinity
    disk     the file system that models are kept on
    gpus     NVIDIA by NVML, AMD and Intel by sysfs, Apple by sysctl, else the registry
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import msgspec

from localfirst.machine.fit import Cpu, Disk, Gpu, Hardware
from localfirst.machine.gpu import Found, apple, nvidia, visible, windows
from localfirst.machine.gpu_sysfs import sysfs_gpus
from localfirst.machine.memory import Limit, container_limit, meminfo
from localfirst.machine.probe import Outcome, Question, ask_all
from localfirst.machine.processor import processor
from localfirst.machine.readers import Ram, Readers, Space, Tree, this_machine

FILES_S = 1.0  # files of the kernel's own answer in microseconds
DISK_S = 2.0  # a network drive may be gone
DRIVER_S = 6.0  # a cold NVIDIA driver takes 2 to 4 s to come up without persistence mode


def measure(
    *,
    store: Path,
    environ: Mapping[str, str],
    root: Path = Path("/"),
    readers: Readers | None = None,
) -> Hardware:
    """
    Measure this machine; at most `DRIVER_S` seconds, usually a few milliseconds.

    Never raises: what a probe could not find out is 0, empty or None, and in `notes`.

    Args:
        store: where models are or will be kept; need not exist.
        environ: read for what hides GPUs from the engines.
        root: where `/proc` and `/sys` lie.
        readers: the drivers; this machine's when None.
    """
    readers = readers or this_machine()
    tree = Tree(root)
    answers = ask_all(
        {
            "memory": Question(ask=lambda: _ram(tree, readers), timeout_s=FILES_S),
            "limit": Question(ask=lambda: container_limit(tree), timeout_s=FILES_S),
            "cpu": Question(ask=lambda: processor(tree, readers), timeout_s=FILES_S),
            "disk": Question(ask=lambda: readers.space(store), timeout_s=DISK_S),
            "nvidia": Question(ask=lambda: nvidia(readers, tree), timeout_s=DRIVER_S),
            "gpu": Question(ask=lambda: _other_gpus(tree, readers, environ), timeout_s=DRIVER_S),
        }
    )
    return _assemble(answers, store=store, environ=environ, tree=tree, readers=readers)


def _ram(tree: Tree, readers: Readers) -> Ram:
    return meminfo(tree) or readers.ram()


def _other_gpus(tree: Tree, readers: Readers, environ: Mapping[str, str]) -> Found:
    if readers.platform == "darwin":
        return apple(readers, readers.ram().total)
    if readers.platform == "win32":
        return windows(readers)
    return sysfs_gpus(tree, environ)


def _assemble(
    answers: Mapping[str, Outcome],
    *,
    store: Path,
    environ: Mapping[str, str],
    tree: Tree,
    readers: Readers,
) -> Hardware:
    ram = answers["memory"].value or Ram(total=0, available=0)
    limit: Limit = answers["limit"].value or Limit()
    available = ram.available
    if 0 < limit.limit_bytes < ram.total:
        available = min(available, limit.left_bytes)
    else:
        limit = Limit(swap_bytes=limit.swap_bytes)
    swap = ram.swap_total if limit.swap_bytes is None else min(limit.swap_bytes, ram.swap_total)
    found = [answers[name].value or Found() for name in ("nvidia", "gpu")]
    shown = visible(tuple(gpu for group in found for gpu in group.gpus), environ)
    notes = [outcome.note for outcome in answers.values() if outcome.note]
    notes += [note for group in [*found, shown] for note in group.notes]
    return Hardware(
        platform=readers.platform,
        machine=readers.machine,
        kind=_kind(tree, limited=bool(limit.limit_bytes)),
        ram_total_bytes=ram.total,
        ram_available_bytes=available,
        limit_bytes=limit.limit_bytes,
        swap_total_bytes=swap,
        swap_free_bytes=min(ram.swap_free, swap),
        cpu=answers["cpu"].value or Cpu(architecture=readers.machine),
        disk=_disk(tree, store, answers["disk"].value),
        gpus=tuple(_with_ram(gpu, ram.total, available) for gpu in shown.gpus),
        notes=tuple(notes),
    )


def _with_ram(gpu: Gpu, total: int, available: int) -> Gpu:
    """A unified GPU that told no size has the machine's own memory."""
    if not gpu.unified or not gpu.usable:
        return gpu
    free = available if gpu.free_bytes is None else gpu.free_bytes
    return msgspec.structs.replace(gpu, total_bytes=gpu.total_bytes or total, free_bytes=free)


def _disk(tree: Tree, store: Path, space: Space | None) -> Disk:
    if space is None:
        return Disk(path=str(store))
    return Disk(
        path=str(store),
        free_bytes=space.free,
        total_bytes=space.total,
        filesystem=_filesystem(tree, Path(space.place) if space.place else store),
        read_only=space.read_only,
    )


def _filesystem(tree: Tree, folder: Path) -> str:
    """The type of the mount that holds *folder*, from /proc/self/mountinfo (proc(5))."""
    best, kind = -1, ""
    place = PurePosixPath(folder.as_posix())
    for line in tree.text("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = PurePosixPath(fields[4].replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _kind(tree: Tree, *, limited: bool) -> str:
    version = tree.text("/proc/version").lower()
    if "microsoft" in version:
        return "wsl"
    marks = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")
    groups = tree.text("/proc/self/cgroup")
    boxes = ("docker", "kubepods", "/lxc", "containerd", "libpod")
    if any(tree.exists(mark) for mark in marks) or any(box in groups for box in boxes):
        return "container"
    if limited and tree.exists("/proc/1/cgroup") and not tree.exists("/sys/class/dmi"):
        return "container"
    words = (
        f"{tree.text('/sys/class/dmi/id/sys_vendor')} {tree.text('/sys/class/dmi/id/product_name')}"
    )
    virtual = ("qemu", "kvm", "vmware", "virtualbox", "amazon ec2", "google", "virtual machine")
    return "vm" if any(name in words.lower() for name in virtual) else ""

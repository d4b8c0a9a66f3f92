"""Findings on the computer: memory, processor, GPUs, disk."""

from __future__ import annotations

from collections.abc import Iterator

from localfirst.machine.doctor.facts import Facts, Finding, Severity
from localfirst.machine.fit import Cpu, Gpu, shown

GB = 10**9
SMALLEST_USEFUL_BYTES = 2 * GB  # the smallest model of the catalogue with its context
NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "drvfs"}


def memory(facts: Facts) -> Iterator[Finding]:
    """RAM, and what a container leaves of it."""
    machine = facts.hardware
    if not machine.known:
        yield Finding(
            code="memory-unknown",
            area="memory",
            severity=Severity.WARN,
            title="the memory could not be measured",
            evidence="; ".join(machine.notes) or "no probe answered",
            fix="models are not refused for their size; watch the memory yourself",
        )
        return
    free = f"{shown(machine.ram_available_bytes)} free of {shown(machine.ram_usable_bytes)}"
    if machine.limit_bytes:
        free += f" (the container's limit; the machine has {shown(machine.ram_total_bytes)})"
    small = machine.ram_available_bytes < SMALLEST_USEFUL_BYTES
    yield Finding(
        code="memory-low" if small else "memory",
        area="memory",
        severity=Severity.WARN if small else Severity.OK,
        title="little memory is free" if small else "memory",
        evidence=free,
        fix="close other programs, or raise the container's limit" if small else "",
    )


def processor(facts: Facts) -> Iterator[Finding]:
    """Cores and instruction sets."""
    cpu = facts.hardware.cpu
    cores = f"{cpu.cores or cpu.threads or '?'} cores"
    if cpu.quota:
        cores += f", of which the container may use {cpu.quota:g}"
    slow = _why_slow(cpu)
    yield Finding(
        code="cpu-slow" if slow else "cpu",
        area="cpu",
        severity=Severity.WARN if slow else Severity.OK,
        title=f"the processor is slow for models: {slow}" if slow else "processor",
        evidence=f"{cpu.model or cpu.architecture or 'unknown'}, {cores}",
        fix="prefer models of 1 to 2 billion parameters, or a cloud" if slow else "",
    )


def _why_slow(cpu: Cpu) -> str:
    if cpu.quota and cpu.quota < 1:
        return "less than one core may be used"
    if cpu.architecture.lower() in {"x86_64", "amd64"} and cpu.features:
        return "" if "avx2" in cpu.features else "it has no AVX2"
    return ""


def gpus(facts: Facts) -> Iterator[Finding]:
    """Each GPU, and drivers that did not answer."""
    machine = facts.hardware
    for gpu in machine.gpus:
        yield _gpu(gpu)
    for note in machine.notes:
        if "_VISIBLE_DEVICES" in note:
            yield Finding(
                code="gpu-hidden",
                area="gpu",
                severity=Severity.INFO,
                title="a GPU is hidden from the engines",
                evidence=note,
                fix="unset the variable to use it",
            )
        elif note.startswith(("NVML", "nvidia", "gpu")):
            yield Finding(
                code="gpu-driver",
                area="gpu",
                severity=Severity.WARN,
                title="a GPU driver does not answer",
                evidence=note,
                fix="restart the machine, or install the driver again; until then the"
                " processor is used",
            )
    if not machine.gpus:
        yield Finding(
            code="gpu-none",
            area="gpu",
            severity=Severity.INFO,
            title="no GPU that models can use",
            evidence="models run on the processor",
        )


def _gpu(gpu: Gpu) -> Finding:
    free = "unknown" if gpu.free_bytes is None else shown(gpu.free_bytes)
    kind = "shared with the processor" if gpu.unified else "its own"
    name = gpu.name or f"{gpu.vendor} GPU {gpu.index}"
    if not gpu.usable and gpu.vendor == "nvidia":
        return Finding(
            code="gpu-lost",
            area="gpu",
            severity=Severity.WARN,
            title=f"{name} cannot be used",
            evidence=gpu.reason,
            fix="restart the machine; if it stays so, seat the card anew or install its driver",
        )
    return Finding(
        code="gpu" if gpu.usable else "gpu-unused",
        area="gpu",
        severity=Severity.OK if gpu.usable else Severity.INFO,
        title=name,
        evidence=gpu.reason
        or f"{free} free of {shown(gpu.total_bytes)} {kind}, by {gpu.library or gpu.driver}",
    )


def disk(facts: Facts) -> Iterator[Finding]:
    """The store's disk: room, kind, and whether it can be written."""
    place, store = facts.hardware.disk, facts.store
    room = f"{shown(place.free_bytes)} free of {shown(place.total_bytes)} at `{place.path}`"
    if store.unwritable:
        yield Finding(
            code="store-unwritable",
            area="disk",
            severity=Severity.ERROR if facts.settings.local.auto_pull else Severity.WARN,
            title="models cannot be written to the store",
            evidence=f"`{store.root}`: {store.unwritable}",
            fix="set `OLLAMA_MODELS` to a folder of yours, or make this one writable",
        )
    yield _room(facts, room)
    if place.in_memory:
        yield Finding(
            code="disk-in-memory",
            area="disk",
            severity=Severity.WARN,
            title="the store lies in memory",
            evidence=f"`{place.path}` is on {place.filesystem}: a model there takes its size twice",
            fix="set `OLLAMA_MODELS` to a folder on a disk",
        )
    if place.filesystem in NETWORK_FILESYSTEMS:
        yield Finding(
            code="disk-network",
            area="disk",
            severity=Severity.WARN,
            title="the store lies on a network drive",
            evidence=f"`{place.path}` is on {place.filesystem}; loading a model reads all of it",
            fix="set `OLLAMA_MODELS` to a folder on a local disk",
        )


def _room(facts: Facts, room: str) -> Finding:
    place, choice = facts.hardware.disk, facts.last_resort
    if not place.total_bytes:
        return Finding(
            code="disk-unknown",
            area="disk",
            severity=Severity.INFO,
            title="the store's disk could not be measured",
            evidence=f"`{place.path}`",
        )
    needed = choice.fit.disk_needed_bytes if choice and choice.fit else 0
    needed = needed or facts.settings.pull.reserve_disk_bytes
    short = place.free_bytes < needed
    return Finding(
        code="disk-full" if short else "disk",
        area="disk",
        severity=Severity.WARN if short else Severity.OK,
        title="little room for models" if short else "disk",
        evidence=f"{room}; {shown(needed)} needed" if short else room,
        fix="remove models with `localfirst rm`, or set `OLLAMA_MODELS` to a larger disk"
        if short
        else "",
    )

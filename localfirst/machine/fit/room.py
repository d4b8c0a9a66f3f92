"""The same machine in another moment: its idle models unloaded, or with nothing else running."""

from __future__ import annotations

import msgspec

from localfirst.machine.fit.facts import Gpu, Hardware

AT_REST = 0.93  # of all memory; the rest is the system's own on a machine that does nothing


def freed(hardware: Hardware, *, ram_bytes: int = 0, vram_bytes: int = 0) -> Hardware:
    """
    *hardware* as it would be with loaded models of this size unloaded.

    A model that is loaded, or could take an idle one's place, is judged on this. GPU memory
    goes back to the devices that have the most of it in use.
    """
    left = vram_bytes
    gpus: dict[int, Gpu] = dict(enumerate(hardware.gpus))
    for place in sorted(gpus, key=lambda place: -_used(gpus[place])):
        gpu = gpus[place]
        back = min(left, _used(gpu))
        if back > 0 and gpu.free_bytes is not None:
            gpus[place] = msgspec.structs.replace(gpu, free_bytes=gpu.free_bytes + back)
            left -= back
            ram_bytes += back if gpu.unified else 0
    available = min(hardware.ram_available_bytes + ram_bytes, hardware.ram_usable_bytes)
    return msgspec.structs.replace(
        hardware, ram_available_bytes=available, gpus=tuple(gpus.values())
    )


def at_rest(hardware: Hardware) -> Hardware:
    """*hardware* as it would be if nothing else ran on it."""
    available = max(hardware.ram_available_bytes, int(hardware.ram_usable_bytes * AT_REST))
    gpus = tuple(
        gpu
        if gpu.free_bytes is None
        else msgspec.structs.replace(
            gpu, free_bytes=max(gpu.free_bytes, int(gpu.total_bytes * AT_REST))
        )
        for gpu in hardware.gpus
    )
    return msgspec.structs.replace(hardware, ram_available_bytes=available, gpus=gpus)


def _used(gpu: Gpu) -> int:
    return max(0, gpu.total_bytes - (gpu.free_bytes or 0)) if gpu.usable else 0

"""
The same machine in another moment: with its idle models unloaded, or with nothing else running.

Also what Ollama makes of a machine's size when nobody tells it a context.
"""

from __future__ import annotations

import msgspec

from localfirst.machine.fit.facts import Gpu, Hardware

GIB = 2**30
AT_REST = 0.93  # of all memory; the rest is the system's own on a machine that does nothing

# GPU memory to context, from the top (Ollama, server/routes.go, `defaultNumCtx`).
DEFAULT_CONTEXTS = ((47 * GIB, 262_144), (23 * GIB, 32_768))
SMALL_CONTEXT = 4096


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


def default_context_tokens(hardware: Hardware, *, model_tokens: int = 0) -> int:
    """
    The context that Ollama loads a model with when nobody says one.

    By the GPUs' memory together; cut to the model's own window when that is given. Not
    where `OLLAMA_CONTEXT_LENGTH` or the model's own parameters say otherwise.
    """
    total = sum(gpu.total_bytes for gpu in hardware.gpus if gpu.usable)
    found = next((size for least, size in DEFAULT_CONTEXTS if total >= least), SMALL_CONTEXT)
    return min(found, model_tokens) if model_tokens else found


def _used(gpu: Gpu) -> int:
    return max(0, gpu.total_bytes - (gpu.free_bytes or 0)) if gpu.usable else 0

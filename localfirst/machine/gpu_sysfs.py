"""
AMD and Intel GPUs as Linux shows them in files: no library, no driver call.

AMD: `amdgpu` writes sizes in bytes (kernel documentation, gpu/amdgpu/driver-misc.rst), KFD
the instruction set. Intel: the card's memory is its largest prefetchable PCI window.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from localfirst.machine.fit import Gpu
from localfirst.machine.gpu import GIB, Found, known_bandwidth
from localfirst.machine.readers import Tree

AMD, INTEL = 0x1002, 0x8086
PREFETCH = 0x2000  # linux/ioport.h, IORESOURCE_PREFETCH
# Integrated GPUs that Ollama uses without being asked to (discover/gpu.go): Strix Halo.
WELCOME_INTEGRATED = {"gfx1151"}


def sysfs_gpus(tree: Tree, environ: Mapping[str, str]) -> Found:
    """Every AMD and Intel card once, in the order of their card numbers."""
    seen: set[str] = set()
    gpus: list[Gpu] = []
    targets = _gfx_by_minor(tree)
    for name in tree.names("/sys/class/drm"):
        device = f"/sys/class/drm/{name}/device"
        # Connectors (card0-HDMI-A-1) are entries too.
        if not re.fullmatch(r"card\d+", name) or tree.target(device) in seen:
            continue
        seen.add(tree.target(device))
        vendor = tree.number(f"{device}/vendor")
        index = sum(gpu.vendor == ("amd" if vendor == AMD else "intel") for gpu in gpus)
        if vendor == AMD:
            gpus.append(_amd(tree, device, index, targets, environ))
        elif vendor == INTEL:
            gpus.append(_intel(tree, device, index))
    return Found(gpus=tuple(gpus))


def _gfx_by_minor(tree: Tree) -> dict[int, str]:
    """Render node to instruction set, from KFD's topology: {128: "gfx1100"}."""
    found: dict[int, str] = {}
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    for node in tree.names(nodes):
        values: dict[str, int] = {}
        for line in tree.text(f"{nodes}/{node}/properties").splitlines():
            name, _, number = line.partition(" ")
            if number.strip().isdigit():
                values[name] = int(number)
        version = values.get("gfx_target_version", 0)
        if version:
            found[values.get("drm_render_minor", 0)] = gfx_name(version)
    return found


def gfx_name(version: int) -> str:
    """100300 is gfx1030: decimal pairs, of which the last two are written in hexadecimal."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _amd(
    tree: Tree, device: str, index: int, targets: Mapping[int, str], environ: Mapping[str, str]
) -> Gpu:
    total = tree.number(f"{device}/mem_info_vram_total") or 0
    used = tree.number(f"{device}/mem_info_vram_used")
    shared = tree.number(f"{device}/mem_info_gtt_total") or 0
    gfx = _gfx(tree, device, targets)
    integrated = _integrated(tree, device, total, shared)
    allowed = (
        not integrated or gfx in WELCOME_INTEGRATED or environ.get("OLLAMA_IGPU_ENABLE") == "1"
    )
    if integrated:
        shared_used = tree.number(f"{device}/mem_info_gtt_used") or 0
        total, used = total + shared, (used or 0) + shared_used
    label = tree.text(f"{device}/product_name") or "AMD GPU"
    return Gpu(
        index=index,
        vendor="amd",
        name=f"{label} ({gfx})" if gfx else label,
        library="rocm" if gfx else "vulkan",
        id=_uuid(tree.text(f"{device}/unique_id")),
        total_bytes=total,
        free_bytes=max(0, total - used) if total and used is not None else None,
        unified=integrated,
        driver="amdgpu",
        compute=gfx,
        bandwidth_bytes_s=known_bandwidth(label, gfx),
        usable=allowed and total > 0,
        reason="" if allowed else "integrated; Ollama uses it only with OLLAMA_IGPU_ENABLE=1",
    )


def _uuid(unique_id: str) -> str:
    """As `ROCR_VISIBLE_DEVICES` names it and `rocminfo` prints it: GPU-<16 digits>."""
    return f"GPU-{unique_id.removeprefix('0x').lower().zfill(16)}" if unique_id else ""


def _gfx(tree: Tree, device: str, targets: Mapping[int, str]) -> str:
    for name in tree.names(f"{device}/drm"):
        if name.startswith("renderD") and name[7:].isdigit():
            return targets.get(int(name[7:]), "")
    return ""


def _integrated(tree: Tree, device: str, vram: int, shared: int) -> bool:
    """
    Ollama's rule (discover/gpu_linux.go): little of its own, much of the machine's.

    A gigabyte or less of its own is no card's either, though a 16 GB machine shares less
    than the 8 GB that Ollama asks for.
    """
    if tree.text(f"{device}/mem_info_vram_vendor") or tree.text(f"{device}/board_info"):
        return False
    much = shared >= 8 * GIB or vram <= GIB
    return vram <= 4 * GIB and shared >= 4 * vram and much


def _intel(tree: Tree, device: str, index: int) -> Gpu:
    own = _largest_window(tree, device)
    discrete = own >= 2 * GIB and not tree.target(device).endswith("0000:00:02.0")
    return Gpu(
        index=index,
        vendor="intel",
        name="Intel Arc GPU" if discrete else "Intel integrated GPU",
        library="vulkan",
        total_bytes=own if discrete else 0,
        unified=not discrete,
        driver="xe" if tree.target(f"{device}/driver").endswith("/xe") else "i915",
        usable=discrete,
        reason="its driver does not tell how much of its memory is free"
        if discrete
        else "integrated; Ollama uses it only with OLLAMA_IGPU_ENABLE=1",
    )


def _largest_window(tree: Tree, device: str) -> int:
    sizes = [0]
    for line in tree.text(f"{device}/resource").splitlines():
        words = line.split()
        with contextlib.suppress(ValueError):
            start, end, flags = (int(word, 16) for word in words)
            if flags & PREFETCH:
                sizes.append(end - start + 1)
    return max(sizes)

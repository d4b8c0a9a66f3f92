"""
How fast a model will speak: memory bandwidth over the bytes that one token reads.

Always a range. Generation is bound by memory on every machine people run models on; what
share of the bandwidth an engine reaches varies, and the RAM's own is rarely known.
"""

from __future__ import annotations

from localfirst.machine.fit.facts import Hardware, ModelShape, Placement
from localfirst.machine.fit.pools import Share

# Shares of the nominal bandwidth that llama.cpp reaches on a GPU, small to large models.
DEVICE_SHARE = (0.45, 0.9)
# What one core streams through quantised kernels, and what common two-channel memory gives
# (DDR4-2400 half used to DDR5-6400): bytes per second.
CORE_BYTES_S = (2.0e9, 10.0e9)
RAM_BYTES_S = (10.0e9, 70.0e9)
# A GPU that does not say: integrated to the fastest consumer card.
UNKNOWN_DEVICE_BYTES_S = (100e9, 1000e9)


def tokens_per_s(
    shape: ModelShape, hardware: Hardware, share: Share, *, kv_bytes: int
) -> tuple[float, float] | None:
    """
    (low, high) generated tokens per second, or None for a model of unknown size.

    The fast end is an empty conversation; half the cache is read on average as the context
    fills, which the slow end counts.
    """
    if not shape.active_bytes:
        return None
    work, filled = shape.active_bytes, shape.active_bytes + kv_bytes / 2
    on_device = _device_part(share, len(shape.layers))
    slow_device, fast_device = _device_bandwidth(share)
    slow_host, fast_host = host_bandwidth(hardware)
    slowest = filled * on_device / slow_device + filled * (1 - on_device) / slow_host
    fastest = work * on_device / fast_device + work * (1 - on_device) / fast_host
    # Launch and sampling alone take this long, however small the model.
    floor_s = 0.5e-3
    return round(1 / (slowest + floor_s), 1), round(1 / (fastest + floor_s), 1)


def _device_part(share: Share, layers: int) -> float:
    if share.placement is Placement.GPU:
        return 1.0
    return share.gpu_layers / (layers + 1) if share.placement is Placement.SPLIT else 0.0


def _device_bandwidth(share: Share) -> tuple[float, float]:
    stated = share.pool.bandwidth_bytes_s if share.pool else 0.0
    if not stated:
        return UNKNOWN_DEVICE_BYTES_S
    return stated * DEVICE_SHARE[0], stated * DEVICE_SHARE[1]


def host_bandwidth(hardware: Hardware) -> tuple[float, float]:
    """(low, high) bytes per second that the processor reads weights with."""
    cores = hardware.cpu.usable
    shared = [gpu.bandwidth_bytes_s for gpu in hardware.gpus if gpu.unified]
    top = max(max(shared, default=0.0), RAM_BYTES_S[1])
    return min(RAM_BYTES_S[0], cores * CORE_BYTES_S[0]), min(top, cores * CORE_BYTES_S[1])

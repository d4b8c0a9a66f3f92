"""
Writing GGUF: keys, tensor table, and weights that are noise of a sensible size.

Any architecture's: the toy llama is made with it, and so are the models that the memory
predictions are measured against. Pure Python, at some hundred megabytes a second.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from localfirst.models.gguf_types import BLOCK, TensorType

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
Tensor = tuple[str, tuple[int, ...], TensorType]
"""Name, shape in ggml's order (fastest first), type."""
Fill = Callable[[Tensor, random.Random], Iterator[bytes]]

ALIGNMENT = 32

# One block of each type: the bits that may be random, and the bits that are fixed. Fixed
# exponents and scales keep every weight's size near 0.05, as training would.
_MASKS = {
    TensorType.F32: (b"\xff\xff\x7f\x80", b"\x00\x00\x00\x3d"),
    TensorType.F16: (b"\xff\x83", b"\x00\x28"),
    TensorType.Q8_0: (bytes(2) + b"\xff" * 32, struct.pack("<e", 7e-4) + bytes(32)),
    TensorType.Q4_0: (bytes(2) + b"\xff" * 16, struct.pack("<e", 1e-2) + bytes(16)),
    TensorType.Q4_K: (
        bytes(4) + b"\xff" * 140,
        struct.pack("<ee", 3e-4, 2e-3) + bytes(140),
    ),
    TensorType.Q6_K: (b"\xff" * 208 + bytes(2), bytes(208) + struct.pack("<e", 4e-5)),
}
_CHUNK_BYTES = 2**20


def write(
    path: Path,
    pairs: Mapping[str, Value],
    tensors: Sequence[Tensor],
    *,
    fill: Fill,
    seed: int = 0,
) -> int:
    """Write a GGUF file; returns its size in bytes. Each tensor's noise has its own seed."""
    written = 0
    with path.open("wb") as file:
        head = _head(pairs, tensors)
        written += file.write(head + bytes(-len(head) % ALIGNMENT))
        for index, tensor in enumerate(tensors):
            source = random.Random(f"{seed}/{index}")
            for piece in fill(tensor, source):
                written += file.write(piece)
            written += file.write(bytes(-size_bytes(tensor) % ALIGNMENT))
    return written


def noise(tensor: Tensor, source: random.Random) -> Iterator[bytes]:
    """Random weights of the tensor's type; ones for a vector, which norms are."""
    _, dimensions, kind = tensor
    if len(dimensions) == 1 and kind is TensorType.F32:
        yield struct.pack(f"<{dimensions[0]}f", *([1.0] * dimensions[0]))
        return
    mask, fixed = _MASKS[kind]
    left, step = size_bytes(tensor), _CHUNK_BYTES // len(mask) * len(mask)
    while left > 0:
        length = min(step, left)
        blocks = length // len(mask)
        loose = int.from_bytes(mask * blocks) & source.getrandbits(8 * length)
        yield (loose | int.from_bytes(fixed * blocks)).to_bytes(length)
        left -= length


def size_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's data."""
    elements, block_bytes = BLOCK[tensor[2]]
    size = block_bytes
    for length in tensor[1]:
        size *= length
    return size // elements


def _head(pairs: Mapping[str, Value], tensors: Sequence[Tensor]) -> bytes:
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    out += [_string(key) + _value(value) for key, value in pairs.items()]
    offset = 0
    for tensor in tensors:
        name, dimensions, kind = tensor
        out.append(_string(name) + struct.pack("<I", len(dimensions)))
        out.append(struct.pack(f"<{len(dimensions)}QIQ", *dimensions, kind, offset))
        offset += -(-size_bytes(tensor) // ALIGNMENT) * ALIGNMENT
    return b"".join(out)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """Type code and bytes; whole numbers are u32, those in lists i32, as converters write."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    first = value[0]
    if isinstance(first, str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(
            _string(str(item)) for item in value
        )
    code, form = (6, "f") if isinstance(first, float) else (5, "i")
    return struct.pack(f"<IIQ{len(value)}{form}", 9, code, len(value), *value)

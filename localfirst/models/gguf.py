"""
The head of a GGUF file: what a model says of itself, before a gigabyte of it is fetched.

Reads bytes that a stranger wrote. Every count and length is checked against a bound and
against the bytes at hand before anything is allocated; a file cut short is no error but a
header with `complete=False` and a hint how many bytes would have helped.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from localfirst.errors import VerificationFailed
from localfirst.models.gguf_types import BLOCK, FILE_TYPES

MAX_HEADER_BYTES = 64 * 2**20
MAX_KEYS = 100_000
MAX_TENSORS = 1_000_000
MAX_NAME_BYTES = 65_535  # the format's own bound for keys
MAX_STRING_BYTES = 16 * 2**20  # chat templates reach 100 KB; vocabularies are arrays
MAX_KEPT_ITEMS = 4_096  # per-layer arrays are kept, vocabularies only counted
MAX_DIMENSIONS = 8
MAX_DEPTH = 4
NUMBER = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


class GgufInvalid(VerificationFailed):
    """Raised when bytes are no GGUF header, or one that no honest writer makes."""

    code = "gguf-invalid"
    hint = "the file is damaged or no GGUF model; run `localfirst verify --repair`"


class GgufTruncated(GgufInvalid):
    """Raised when not even the counts are there; `needed_bytes` from the start would help."""

    code = "gguf-truncated"
    hint = "read more of the file"

    def __init__(self, message: str, *, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class LongArray(msgspec.Struct, frozen=True, kw_only=True):
    """An array that was counted and passed over, such as a vocabulary; `type` is its items'."""

    count: int
    type: int


Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...] | LongArray


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: `shape` in ggml's order (fastest first), `offset` from the data's start."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its data; 0 when the type is not one we know."""
        elements = 1
        for length in self.shape:
            elements *= length
        per_block, block_bytes = BLOCK.get(self.type, (1, 0))
        return elements * block_bytes // per_block


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """
    What could be read of a header.

    `complete` says that every key and every tensor was seen, and then `data_offset` is
    where tensor data starts; else `needed_bytes` is how many bytes from the file's start
    would have carried reading further (a lower bound).
    """

    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    complete: bool
    data_offset: int = 0
    needed_bytes: int = 0

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" when it was not seen."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """The whole number at `<architecture>.KEY`, or of a bare key that holds a dot-path."""
        value = self.metadata.get(f"{self.architecture}.{key}", self.metadata.get(key))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return default
        return int(value) if abs(value) < 2**63 else default

    def numbers(self, key: str) -> tuple[int, ...]:
        """The numbers at `<architecture>.KEY`: one for a scalar, () when absent."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        items = value if isinstance(value, tuple) else (value,)
        return tuple(int(item) for item in items if isinstance(item, int))

    def text(self, key: str) -> str:
        """The string at *key*, or ""."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    @property
    def quantization(self) -> str:
        """The file type's common name ("Q4_K_M"), or "" when it says none."""
        kind = self.metadata.get("general.file_type")
        return FILE_TYPES.get(kind, "") if isinstance(kind, int) else ""


class _End(Exception):
    """The bytes at hand are used up; `needed` counts from the file's start."""

    def __init__(self, needed: int) -> None:
        super().__init__()
        self.needed = needed


class _Cursor:
    """Reads forward through bytes; counts of version 1 are 32 bits wide."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.count_format = "<Q"

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise _End(end)
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        end = self.at + size
        if end > len(self.data):
            raise _End(end)
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at = end
        return value  # type: ignore[no-any-return]

    def count(self, limit: int, what: str) -> int:
        value = self.number(self.count_format)
        if value > limit:
            raise GgufInvalid(f"the GGUF header says {value} {what}; at most {limit} are believed")
        return value

    def string(self, limit: int, what: str) -> str:
        return self.take(self.count(limit, f"bytes of {what}")).decode("utf-8", "replace")

    def skip(self, length: int) -> None:
        end = self.at + length
        if end > len(self.data):
            raise _End(end)
        self.at = end


def read_header(data: bytes) -> GgufHeader:
    """
    Read as much of a GGUF header as *data*, a file's first bytes, holds.

    Raises:
        GgufTruncated: fewer bytes than the fixed part has.
        GgufInvalid: wrong magic, unknown version, big-endian, or counts beyond belief.
    """
    cursor = _Cursor(data)
    try:
        version, tensor_count, key_count = _fixed_part(cursor)
    except _End as end:
        raise GgufTruncated(
            f"{len(data)} bytes are too few for a GGUF header", needed_bytes=max(end.needed, 24)
        ) from None
    metadata: dict[str, Value] = {}
    tensors: list[TensorInfo] = []
    needed = 0
    try:
        for _ in range(key_count):
            _read_pair(cursor, metadata)
        for _ in range(tensor_count):
            tensors.append(_read_tensor(cursor))
    except _End as end:
        needed = end.needed
    if not needed and len({tensor.name for tensor in tensors}) != len(tensors):
        raise GgufInvalid("two tensors of the GGUF header share a name")
    return GgufHeader(
        version=version,
        metadata=metadata,
        tensors=tuple(tensors),
        complete=not needed,
        data_offset=0 if needed else _aligned(cursor.at, metadata),
        needed_bytes=needed,
    )


def read_file(path: Path, *, limit_bytes: int = MAX_HEADER_BYTES) -> GgufHeader:
    """
    Read the header of the file at *path*, at most *limit_bytes* of it.

    Raises:
        GgufInvalid: no GGUF, or its header is longer than the limit or than the file.
        OSError: the file cannot be read.
    """
    size = 2**18
    with path.open("rb") as file:
        while True:
            file.seek(0)
            data = file.read(size)
            header = read_header(data)
            if header.complete:
                return header
            if len(data) < size:
                raise GgufTruncated(
                    f"the file `{path.name}` ends inside its GGUF header",
                    needed_bytes=header.needed_bytes,
                )
            if size >= limit_bytes:
                raise GgufInvalid(f"the GGUF header is longer than {limit_bytes} bytes")
            size = min(max(size * 4, header.needed_bytes), limit_bytes)


def _fixed_part(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4)
    if magic != b"GGUF":
        raise GgufInvalid("the first bytes are not `GGUF`: this is no GGUF model")
    version = cursor.number("<I")
    if version not in {1, 2, 3}:
        if version & 0xFFFF == 0 and version:
            raise GgufInvalid("this GGUF file is big-endian, which no engine here can run")
        raise GgufInvalid(f"GGUF version {version} is not one of 1, 2, 3")
    cursor.count_format = "<I" if version == 1 else "<Q"
    return version, cursor.count(MAX_TENSORS, "tensors"), cursor.count(MAX_KEYS, "keys")


def _read_pair(cursor: _Cursor, metadata: dict[str, Value]) -> None:
    key = cursor.string(MAX_NAME_BYTES, "a key")
    kind = cursor.number("<I")
    _read_value(cursor, kind, lambda value: metadata.__setitem__(key, value))


def _read_value(cursor: _Cursor, kind: int, keep: Callable[[Value], None]) -> None:
    if kind == STRING:
        keep(cursor.string(MAX_STRING_BYTES, "a string"))
    elif kind == ARRAY:
        _read_array(cursor, keep)
    elif kind in NUMBER:
        keep(cursor.number(f"<{NUMBER[kind]}"))
    else:
        raise GgufInvalid(f"the GGUF header has a value of the unknown type {kind}")


def _read_array(cursor: _Cursor, keep: Callable[[Value], None]) -> None:
    kind = cursor.number("<I")
    # A vocabulary entry costs its eight length bytes at least, so this bounds the work too.
    count = cursor.count(MAX_HEADER_BYTES, "array items")
    if kind in NUMBER:
        item_bytes = struct.calcsize(f"<{NUMBER[kind]}")
        if count > MAX_KEPT_ITEMS:
            keep(LongArray(count=count, type=kind))
            cursor.skip(count * item_bytes)
        else:
            keep(struct.unpack(f"<{count}{NUMBER[kind]}", cursor.take(count * item_bytes)))
        return
    # Noted before its items are passed, so that a cut file still tells its vocabulary.
    keep(LongArray(count=count, type=kind))
    _skip_items(cursor, kind, count, depth=1)


def _skip_items(cursor: _Cursor, kind: int, count: int, *, depth: int) -> None:
    if kind in NUMBER:
        cursor.skip(count * struct.calcsize(f"<{NUMBER[kind]}"))
    elif kind == STRING:
        for _ in range(count):
            cursor.skip(cursor.count(MAX_STRING_BYTES, "bytes of a string"))
    elif kind == ARRAY and depth < MAX_DEPTH:
        for _ in range(count):
            inner = cursor.number("<I")
            _skip_items(
                cursor, inner, cursor.count(MAX_HEADER_BYTES, "array items"), depth=depth + 1
            )
    else:
        raise GgufInvalid(f"the GGUF header has an array of type {kind}, nested {depth} deep")


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.string(MAX_NAME_BYTES, "a tensor's name")
    dimensions = cursor.number("<I")
    if dimensions > MAX_DIMENSIONS:
        raise GgufInvalid(f"a tensor of the GGUF header has {dimensions} dimensions")
    # Version 1 has 32-bit dimensions, but the offset always has 64.
    shape = tuple(cursor.number(cursor.count_format) for _ in range(dimensions))
    kind = cursor.number("<I")
    offset = cursor.number("<Q")
    if max(shape, default=0) >= 2**48 or offset >= 2**62:
        raise GgufInvalid(f"tensor `{name[:80]}` of the GGUF header is larger than any disk")
    return TensorInfo(name=name, shape=shape, type=kind, offset=offset)


def _aligned(position: int, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise GgufInvalid("`general.alignment` of the GGUF header is no sensible number")
    return -(-position // alignment) * alignment

"""Guards reading GGUF headers that strangers wrote: every bound, every cut, every flipped byte."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from localfirst.models import gguf, toy
from localfirst.models.gguf import GgufInvalid, GgufTruncated, LongArray, read_header
from localfirst.models.gguf_types import BLOCK, FILE_TYPES, TensorType

SEED = 20261121


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    toy.write(path, kv_heads=2)
    return path


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def header(*pairs: bytes, tensors: int = 0, keys: int | None = None, version: int = 3) -> bytes:
    count = len(pairs) if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + b"".join(pairs)


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def test_reads_what_the_writer_wrote(toy_file: Path) -> None:
    found = gguf.read_file(toy_file)
    assert (found.version, found.complete, found.architecture) == (3, True, "llama")
    assert found.number("block_count") == 2
    assert found.numbers("attention.head_count_kv") == (2,)
    assert found.quantization == "F32"
    assert found.metadata["tokenizer.ggml.tokens"] == LongArray(count=259, type=8)
    assert len(found.tensors) == 2 * 9 + 3
    last = found.tensors[-1]
    assert found.data_offset + last.offset + last.size_bytes == toy_file.stat().st_size


def test_the_reference_reader_agrees(toy_file: Path) -> None:
    """The `gguf` package of llama.cpp reads the same names, shapes, types and offsets."""
    from gguf import GGUFReader

    theirs, ours = GGUFReader(toy_file), gguf.read_file(toy_file)
    assert [
        (tensor.name, tuple(map(int, tensor.shape)), int(tensor.tensor_type), tensor.n_bytes)
        for tensor in theirs.tensors
    ] == [(tensor.name, tensor.shape, tensor.type, tensor.size_bytes) for tensor in ours.tensors]
    assert [int(tensor.data_offset) for tensor in theirs.tensors] == [
        ours.data_offset + tensor.offset for tensor in ours.tensors
    ]


def test_block_sizes_are_ggmls() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    theirs = {int(GGMLQuantizationType[kind.name]): kind for kind in GGML_QUANT_SIZES}
    for kind, sizes in BLOCK.items():
        # Q8_1 never lies in a file, and the package counts its scales as they once were.
        if kind in theirs and kind != TensorType.Q8_1:
            assert GGML_QUANT_SIZES[theirs[kind]] == sizes, TensorType(kind).name
    assert len(set(BLOCK) & set(theirs)) >= 30


def test_file_type_names_are_llama_cpps() -> None:
    from gguf.constants import LlamaFileType

    theirs = {int(kind): kind.name for kind in LlamaFileType}
    for number, name in FILE_TYPES.items():
        if number in theirs:
            assert theirs[number].removeprefix("MOSTLY_").removeprefix("ALL_") == name


def test_a_head_cut_anywhere_is_incomplete_and_says_what_would_help(toy_file: Path) -> None:
    whole = toy_file.read_bytes()
    full = read_header(whole)
    for cut in range(24, full.data_offset - 31, 37):
        found = read_header(whole[:cut])
        assert not found.complete
        assert cut < found.needed_bytes <= full.data_offset
        assert set(found.metadata) <= set(full.metadata)


def test_too_few_bytes_for_the_fixed_part_ask_for_more() -> None:
    for length in range(24):
        with pytest.raises(GgufTruncated) as caught:
            read_header((b"GGUF" + struct.pack("<IQQ", 3, 0, 0))[:length])
        assert length < caught.value.needed_bytes <= 24


def test_the_vocabulary_is_counted_even_when_the_head_is_cut_inside_it() -> None:
    data = header(
        pair("general.architecture", 8, string("llama")),
        pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 128_256) + string("<unk>")),
    )
    found = read_header(data)
    assert not found.complete
    assert found.metadata["tokenizer.ggml.tokens"] == LongArray(count=128_256, type=8)


@pytest.mark.parametrize("version", [2, 3])
def test_versions_with_wide_counts(version: int) -> None:
    data = header(pair("a", 4, struct.pack("<I", 7)), version=version)
    assert read_header(data).metadata == {"a": 7}


def test_version_one_has_narrow_counts() -> None:
    key = struct.pack("<I", 1) + b"a"
    data = b"GGUF" + struct.pack("<III", 1, 0, 1) + key + struct.pack("<II", 4, 7)
    # The fixed part is eight bytes shorter there.
    assert read_header(data).metadata == {"a": 7}


def test_every_scalar_type_is_read() -> None:
    values = [
        (0, "B", 255),
        (1, "b", -1),
        (2, "H", 65535),
        (3, "h", -2),
        (4, "I", 2**32 - 1),
        (5, "i", -3),
        (6, "f", 0.5),
        (7, "?", True),
        (10, "Q", 2**64 - 1),
        (11, "q", -4),
        (12, "d", 0.25),
    ]
    data = header(*(pair(f"k{kind}", kind, struct.pack(f"<{form}", v)) for kind, form, v in values))
    assert read_header(data).metadata == {f"k{kind}": value for kind, _, value in values}


def test_arrays_of_numbers_are_kept_and_long_ones_counted() -> None:
    data = header(
        pair("short", 9, struct.pack("<IQ3i", 5, 3, 8, 0, 8)),
        pair("long", 9, struct.pack("<IQ5000B", 0, 5000, *bytes(5000))),
        pair("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ2B", 0, 2, 1, 2)),
    )
    found = read_header(data).metadata
    assert found == {
        "short": (8, 0, 8),
        "long": LongArray(count=5000, type=0),
        "nested": LongArray(count=1, type=9),
    }


BEYOND = 2**63
HOSTILE = {
    "wrong magic": b"<!DOCTYPE html><html><body>404</body></html>",
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "unknown version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "tensor count": b"GGUF" + struct.pack("<IQQ", 3, BEYOND, 0),
    "key count": b"GGUF" + struct.pack("<IQQ", 3, 0, BEYOND),
    "key length": header(struct.pack("<Q", BEYOND) + b"x"),
    "string length": header(string("k") + struct.pack("<IQ", 8, BEYOND)),
    "array count": header(string("k") + struct.pack("<IIQ", 9, 4, BEYOND)),
    "unknown type": header(pair("k", 99, b"")),
    "array of unknown type": header(pair("k", 9, struct.pack("<IQ", 99, 1))),
    "deep nesting": header(pair("k", 9, struct.pack("<IQ", 9, 1) * 9)),
    "dimensions": header(tensors=1) + string("t") + struct.pack("<I", 10**6),
    "huge shape": header(tensors=1) + string("t") + struct.pack("<IQQIQ", 2, 2**60, 2**60, 0, 0),
    "huge offset": header(tensors=1) + string("t") + struct.pack("<IQIQ", 1, 1, 0, BEYOND),
    "alignment zero": header(pair("general.alignment", 4, struct.pack("<I", 0))),
    "twice the same tensor": header(tensors=2)
    + (string("t") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused_without_allocating(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(GgufInvalid) as caught:
            read_header(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.code in {"gguf-invalid", "gguf-truncated"}
    assert caught.value.hint


def test_billions_of_empty_items_end_where_the_bytes_end() -> None:
    """The largest believed count costs no more than the bytes that are there."""
    count = gguf.MAX_HEADER_BYTES
    data = header(pair("k", 9, struct.pack("<IQ", 8, count) + bytes(8 * 1000)))
    found = read_header(data)
    assert not found.complete
    assert found.metadata == {"k": LongArray(count=count, type=8)}


def test_flipped_bytes_never_raise_anything_else(toy_file: Path) -> None:
    """Ten thousand damaged heads: each reads, is incomplete, or is refused by name."""
    whole = toy_file.read_bytes()
    head = whole[: read_header(whole).data_offset]
    source = random.Random(SEED)
    for _ in range(3000):
        damaged = bytearray(head)
        for _ in range(source.choice((1, 1, 2, 8))):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        cut = source.choice((len(damaged), source.randrange(len(damaged))))
        try:
            found = read_header(bytes(damaged[:cut]))
        except GgufInvalid:
            continue
        assert found.complete or found.needed_bytes > cut
        assert all(tensor.size_bytes >= 0 for tensor in found.tensors)


def test_random_bytes_behind_the_magic_never_raise_anything_else() -> None:
    source = random.Random(SEED + 1)
    for length in range(24, 600):
        data = b"GGUF" + struct.pack("<IQQ", 3, source.randrange(9), source.randrange(9))
        with contextlib.suppress(GgufInvalid):
            found = read_header(data + source.randbytes(length))
            assert found.complete or found.needed_bytes > length


def test_a_file_that_ends_inside_its_header_says_so(tmp_path: Path, toy_file: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(toy_file.read_bytes()[:1000])
    with pytest.raises(GgufTruncated, match="ends inside"):
        gguf.read_file(cut)


def test_a_header_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    item = string("x" * 100)
    path.write_bytes(header(pair("k", 9, struct.pack("<IQ", 8, 10_000) + item * 10_000)))
    assert gguf.read_file(path).complete
    with pytest.raises(GgufInvalid, match="longer than"):
        gguf.read_file(path, limit_bytes=2**18)


def test_numbers_of_the_wrong_kind_fall_back() -> None:
    data = header(
        pair("general.architecture", 8, string("llama")),
        pair("llama.block_count", 8, string("many")),
        pair("llama.context_length", 7, b"\x01"),
        pair("llama.embedding_length", 12, struct.pack("<d", float("nan"))),
        pair("llama.vocab_size", 12, struct.pack("<d", float("inf"))),
    )
    found = read_header(data)
    names = ("block_count", "context_length", "embedding_length", "vocab_size")
    assert [found.number(name) for name in names] == [0, 0, 0, 0]

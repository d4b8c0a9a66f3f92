"""
A toy model: a whole language model of half a megabyte that knows nothing.

Random weights, one token a byte, so that selftest, demonstrations and tests can run real
inference on real engines without a download. Its words are noise. Pure Python; writes the
formats that llama.cpp and Ollama read, and Ollama's store layout.

Shapes and types are free, so the same writer makes the models that the memory
predictions are measured against.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from localfirst.models import toy_gguf
from localfirst.models.gguf_types import BLOCK, TensorType
from localfirst.models.manifest import CONFIG_TYPE, LAYER_PREFIX, Layer, build

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "</s>")
VOCAB = len(SPECIAL) + 256
FILE_TYPE = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15, "Q6_K": 18}
"""The tensor types that can be written, and the `general.file_type` each makes."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """
    The dimensions of a toy llama.

    `tensor_type` is the type of its matrices, one of `FILE_TYPE`; norms stay F32. `vocab`
    is at least 259, the bytes and three specials; what is more are unused words.
    """

    layers: int = 2
    embedding: int = 64
    heads: int = 4
    kv_heads: int = 4
    feed_forward: int = 128
    context: int = 2048
    vocab: int = VOCAB
    tensor_type: str = "F32"

    @property
    def head_size(self) -> int:
        """Length of one head's key and value."""
        return self.embedding // self.heads


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """
    A toy model laid out as Ollama's store keeps it.

    `manifest` and its `digest` as a registry serves them; `blobs` maps each digest
    (`sha256:…`) to its file.
    """

    name: str
    manifest: bytes
    digest: str
    blobs: dict[str, Path]
    model: str


def write(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    embedding: int = 64,
    heads: int = 4,
    kv_heads: int = 4,
    feed_forward: int = 128,
    context: int = 2048,
    vocab: int = VOCAB,
    tensor_type: str = "F32",
    template: str = CHAT_TEMPLATE,
) -> int:
    """
    Write a GGUF llama of these dimensions to *path*; the same arguments give the same bytes.

    Returns:
        The file's size in bytes.

    Raises:
        ValueError: dimensions that make no llama.
    """
    shape = Shape(
        layers=layers,
        embedding=embedding,
        heads=heads,
        kv_heads=kv_heads,
        feed_forward=feed_forward,
        context=context,
        vocab=vocab,
        tensor_type=tensor_type,
    )
    _check(shape)
    tensors = list(_tensors(shape))
    return toy_gguf.write(path, keys(shape, template), tensors, fill=_fill(shape), seed=seed)


def config_json(shape: Shape = Shape(), *, digest: str = "") -> bytes:  # noqa: B008
    """The config blob that Ollama stores beside a GGUF of this shape; *digest* its sha256."""
    config = {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": f"{_parameters(shape) / 1000:.2f}K",
        "file_type": shape.tensor_type,
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest] if digest else []},
    }
    return json.dumps(config, separators=(",", ":")).encode()


def publish(
    folder: Path,
    *,
    name: str = "library/tiny",
    tag: str = "latest",
    host: str = "registry.ollama.ai",
    seed: int = 0,
    shape: Shape = Shape(),  # noqa: B008
    params: dict[str, object] | None = None,
    template: str = "",
    system: str = "",
) -> Published:
    """
    Write a toy model into *folder* as an Ollama store (`manifests/`, `blobs/`).

    The folder then is a store that an engine can run from, and holds every byte a
    registry needs to serve `name:tag`. *template* and *system* become layers when given;
    without a template Ollama takes the GGUF's own.
    """
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    raw = blobs / "toy.gguf.part"
    write(raw, seed=seed, **msgspec.structs.asdict(shape))
    layers = [_moved(blobs, raw)]
    given = params if params is not None else {"stop": ["</s>"]}
    told = json.dumps(given, separators=(",", ":"))
    for kind, text in (("template", template), ("system", system), ("params", told)):
        if text:
            layers.append(_blob(blobs, LAYER_PREFIX + kind, text.encode()))
    config = _blob(blobs, CONFIG_TYPE, config_json(shape, digest=layers[0].digest))
    manifest = build(config, tuple(layers))
    place = folder / "manifests" / host / name / tag
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(manifest)
    digests = [part.digest for part in (*layers, config)]
    return Published(
        name=f"{name}:{tag}",
        manifest=manifest,
        digest=f"sha256:{hashlib.sha256(manifest).hexdigest()}",
        blobs={digest: blobs / digest.replace(":", "-") for digest in digests},
        model=digests[0],
    )


# --- the store ---------------------------------------------------------------------------


def _moved(blobs: Path, raw: Path) -> Layer:
    """The model's file, by its digest's name from now on."""
    with raw.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size_bytes = raw.stat().st_size
    raw.replace(blobs / f"sha256-{digest}")
    return Layer(
        media_type=f"{LAYER_PREFIX}model", digest=f"sha256:{digest}", size_bytes=size_bytes
    )


def _blob(blobs: Path, media_type: str, data: bytes) -> Layer:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / f"sha256-{digest}").write_bytes(data)
    return Layer(media_type=media_type, digest=f"sha256:{digest}", size_bytes=len(data))


# --- the file ----------------------------------------------------------------------------


def _check(shape: Shape) -> None:
    if shape.tensor_type not in FILE_TYPE:
        raise ValueError(f"`tensor_type` is {shape.tensor_type!r}, not one of {list(FILE_TYPE)}")
    if shape.embedding % shape.heads or shape.heads % shape.kv_heads or shape.head_size % 2:
        raise ValueError("`embedding` must split evenly over `heads`, and those over `kv_heads`")
    if shape.vocab < VOCAB:
        raise ValueError(f"`vocab` is {shape.vocab}; bytes and specials alone are {VOCAB}")
    block = BLOCK[TensorType[shape.tensor_type]][0]
    if shape.embedding % block or shape.feed_forward % block:
        raise ValueError(
            f"{shape.tensor_type} needs `embedding` and `feed_forward` in multiples of {block}"
        )


def _parameters(shape: Shape) -> int:
    total = 0
    for _, dimensions, _ in _tensors(shape):
        size = 1
        for length in dimensions:
            size *= length
        total += size
    return total


def _tensors(shape: Shape) -> Iterator[toy_gguf.Tensor]:
    wide, narrow, deep = shape.embedding, shape.kv_heads * shape.head_size, shape.feed_forward
    matrix = TensorType[shape.tensor_type]
    yield "token_embd.weight", (wide, shape.vocab), matrix
    for layer in range(shape.layers):
        for name, dimensions in (
            ("attn_q", (wide, wide)),
            ("attn_k", (wide, narrow)),
            ("attn_v", (wide, narrow)),
            ("attn_output", (wide, wide)),
            ("ffn_gate", (wide, deep)),
            ("ffn_up", (wide, deep)),
            ("ffn_down", (deep, wide)),
        ):
            yield f"blk.{layer}.{name}.weight", dimensions, matrix
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (wide,), TensorType.F32
    yield "output_norm.weight", (wide,), TensorType.F32
    yield "output.weight", (wide, shape.vocab), matrix


def _fill(shape: Shape) -> toy_gguf.Fill:
    """How each tensor is filled; only float32 models are made to speak readably."""

    def fill(tensor: toy_gguf.Tensor, source: random.Random) -> Iterator[bytes]:
        name, dimensions, kind = tensor
        if kind is not TensorType.F32 or not name.startswith(("token_embd", "output.")):
            yield from toy_gguf.noise(tensor, source)
        elif name == "token_embd.weight":
            yield from _marked(toy_gguf.noise(tensor, source), dimensions)
        else:
            yield from _letters_only(dimensions, source)

    return fill


def _marked(noise: Iterator[bytes], dimensions: tuple[int, ...]) -> Iterator[bytes]:
    """Every word's first component is 1, so that the last layer can lean on it."""
    wide, words = dimensions
    data = bytearray(b"".join(noise))
    for word in range(words):
        struct.pack_into("<f", data, 4 * wide * word, 1.0)
    yield bytes(data)


def _letters_only(dimensions: tuple[int, ...], source: random.Random) -> Iterator[bytes]:
    """
    Rows of the last layer that make printable ASCII likely and all else impossible.

    A byte above 127 alone is no UTF-8, which Ollama answers by ending the stream; and an
    end token at random would make one answer in a hundred empty.
    """
    wide, words = dimensions
    for word in range(words):
        printable = 32 <= word - len(SPECIAL) < 127
        first = 0.0 if printable else -8.0
        rest = [source.gauss(0.0, 0.6) if printable else 0.0 for _ in range(wide - 1)]
        yield struct.pack(f"<{wide}f", first, *rest)


def keys(shape: Shape, template: str = CHAT_TEMPLATE) -> dict[str, toy_gguf.Value]:
    """The metadata of a llama of this shape."""
    return {
        "general.architecture": "llama",
        "general.name": "localfirst toy",
        "general.file_type": FILE_TYPE[shape.tensor_type],
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.embedding,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_size,
        "llama.vocab_size": shape.vocab,
        **tokenizer(shape.vocab, template),
    }


def tokenizer(vocab: int, template: str = CHAT_TEMPLATE) -> dict[str, toy_gguf.Value]:
    """A tokenizer of single bytes, filled up to *vocab* with words that are never used."""
    extra = vocab - VOCAB
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"<unused{number}>" for number in range(extra)]
    # Token types: 2 unknown, 3 control, 6 byte, 5 unused (llama.h, `llama_token_type`).
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [0.0] * len(words),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [5] * extra,
        # A space is three byte tokens here, which a grammar that replays the prompt's end
        # (llama.cpp, structured output) does not know as a space: none may stand there.
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": template,
    }

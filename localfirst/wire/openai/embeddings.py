"""
Embeddings in OpenAI's dialect, asked and answered.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import array
import base64
import binascii
import sys
from typing import Any

import msgspec

from localfirst.errors import UpstreamNonsense
from localfirst.types import Json
from localfirst.wire import strict_json
from localfirst.wire.fields import Fields, refuse, wrong
from localfirst.wire.openai.answers import ENCODER
from localfirst.wire.options import keep_alive_of, options_of
from localfirst.wire.refusal import in_band, is_error_object

MAX_TEXTS = 2048
MAX_DIMENSIONS = 65_536


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    Texts to embed. `single` says that the client sent one text and not a list;
    `encoding` is "float" or "base64" (little-endian float32). `options` are Ollama's.
    """

    model: str
    texts: tuple[str, ...]
    single: bool = False
    dimensions: int | None = None
    encoding: str = "float"
    truncate: bool | None = None
    keep_alive: str | float | None = None
    options: dict[str, Json] = {}


class EmbedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors in the order of the texts, and the tokens of the prompt as counted."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int = 0


def decode(body: bytes) -> EmbedRequest:
    """
    A body of `/v1/embeddings`.

    Raises:
        InvalidRequest: naming the field that is missing or wrong; token ids are not taken.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    texts, single = input_of(fields)
    if not texts:
        raise wrong("input", "a text or a non-empty list of texts")
    return EmbedRequest(
        model=fields.text("model") or "auto",
        texts=texts,
        single=single,
        dimensions=fields.integer("dimensions", 1, MAX_DIMENSIONS),
        encoding=fields.choice("encoding_format", ("float", "base64")) or "float",
        keep_alive=keep_alive_of(fields),
        options=options_of(fields),
    )


def input_of(fields: Fields) -> tuple[tuple[str, ...], bool]:
    """`input` as texts, and whether it was a single one."""
    value = fields.get("input")
    if isinstance(value, str):
        return (value,), True
    texts = fields.items("input", MAX_TEXTS)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"input[{index}]", "a text")
    return tuple(texts), False


def encode(request: EmbedRequest, model: str) -> bytes:
    """The body of `POST …/embeddings` at a backend; numbers are asked for as numbers."""
    fields: dict[str, Json] = {"model": model, "input": list(request.texts)}
    if request.dimensions is not None:
        fields["dimensions"] = request.dimensions
    return ENCODER.encode(fields)


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int = 0


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: _Counts | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def read(body: bytes) -> EmbedAnswer:
    """
    A backend's answer.

    Raises:
        UpstreamRefused: an error in spite of the status.
        UpstreamNonsense: no embeddings in it.
    """
    try:
        answer = _ANSWER.decode(body)
        vectors = sorted(answer.data, key=lambda item: item.index)
        floats = tuple(_floats(item.embedding) for item in vectors)
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as exc:
        if is_error_object(body):
            raise in_band(body) from exc
        raise UpstreamNonsense(f"no embeddings in the answer: {exc}") from exc
    counts = answer.usage or _Counts()
    return EmbedAnswer(
        vectors=floats, prompt_tokens=counts.prompt_tokens or counts.total_tokens or 0
    )


def answer(
    vectors: list[list[float]], *, model: str, prompt_tokens: int, encoding: str = "float"
) -> bytes:
    """The body that answers `/v1/embeddings`."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": as_base64(vector) if encoding == "base64" else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return ENCODER.encode({"object": "list", "data": data, "model": model, "usage": usage})


def as_base64(vector: list[float]) -> str:
    """A vector as base64 of little-endian float32, whatever this machine's order is."""
    return base64.b64encode(_little_endian(array.array("f", vector)).tobytes()).decode()


def _floats(given: list[float] | str) -> tuple[float, ...]:
    if isinstance(given, list):
        return tuple(given)
    try:
        packed = binascii.a2b_base64(given, strict_mode=True)
    except binascii.Error as exc:
        raise ValueError("not base64") from exc
    floats = array.array("f")
    floats.frombytes(packed)
    return tuple(_little_endian(floats))


def _little_endian(floats: array.array[Any]) -> array.array[Any]:
    if sys.byteorder == "big":
        floats.byteswap()
    return floats

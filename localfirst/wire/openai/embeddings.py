"""
Embeddings in OpenAI's dialect, asked and answered.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import array
import base64
import binascii
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from localfirst.errors import UpstreamNonsense
from localfirst.events import Vectors
from localfirst.types import Json, Texts
from localfirst.wire import strict_json
from localfirst.wire.fields import MAX_TOKENS, Fields, refuse, wrong
from localfirst.wire.forgiving import tokens
from localfirst.wire.openai.answers import ENCODER
from localfirst.wire.options import keep_alive_of, options_of
from localfirst.wire.refusal import in_band, is_error_object

MAX_TEXTS = 2048
MAX_DIMENSIONS = 65_536
MAX_ID = 2**31

_KNOWN = frozenset({"model", "input", "dimensions", "encoding_format", "keep_alive", "options"})


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    Texts to embed, or their token ids. `encoding` is "float" or "base64" (little-endian
    float32). `options` are Ollama's; `extra` are fields that only the dialect they came in
    understands.
    """

    model: str
    texts: Texts
    dimensions: int | None = None
    encoding: str = "float"
    truncate: bool | None = None
    keep_alive: str | float | None = None
    options: dict[str, Json] = {}
    extra: dict[str, Json] = {}


def decode(body: bytes) -> EmbedRequest:
    """
    A body of `/v1/embeddings`.

    Raises:
        InvalidRequest: naming the field that is missing or wrong.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    texts = ids_of(fields) or texts_of(fields)
    if not texts:
        raise wrong("input", "a text or a non-empty list of texts")
    return EmbedRequest(
        model=fields.text("model") or "auto",
        texts=texts,
        dimensions=fields.integer("dimensions", 1, MAX_DIMENSIONS),
        encoding=fields.choice("encoding_format", ("float", "base64")) or "float",
        keep_alive=keep_alive_of(fields),
        options=options_of(fields),
        extra=fields.rest(_KNOWN),
    )


def texts_of(fields: Fields, most: int = MAX_TEXTS) -> list[str]:
    """`input` as texts, at *most* so many."""
    value = fields.get("input")
    if isinstance(value, str):
        return [value]
    texts = fields.items("input", most)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"input[{index}]", "a text")
    return texts


def ids_of(fields: Fields) -> list[list[int]]:
    """`input` as token ids, one list of them or several; empty where it starts otherwise."""
    value = fields.get("input")
    match value:
        case [int(), *_]:
            return [_ids(value, "input")]
        case [list(), *_]:
            texts = fields.items("input", MAX_TEXTS)
            return [_ids(text, f"input[{index}]") for index, text in enumerate(texts)]
    return []


def _ids(value: Json, path: str) -> list[int]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TOKENS:
        raise wrong(path, "a list of token ids")
    for index, token in enumerate(value):
        if type(token) is not int or not 0 <= token < MAX_ID:
            raise wrong(f"{path}[{index}]", "a token id")
    return value


def encode(model: str, texts: Texts, options: Mapping[str, Json], encoding: str = "float") -> bytes:
    """
    The body of `POST …/embeddings` at a backend; *encoding* is how numbers are asked for.

    Of *options*, `dimensions` and `extra` have a place in it.
    """
    fields: dict[str, Json] = {**options.get("extra", {}), "model": model, "input": texts}
    fields["encoding_format"] = encoding
    if options.get("dimensions") is not None:
        fields["dimensions"] = options["dimensions"]
    return ENCODER.encode(fields)


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int = 0


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Vector]
    model: str | None = None
    usage: _Counts | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def read(body: bytes, count: int) -> Vectors:
    """
    A backend's answer for *count* texts.

    Raises:
        UpstreamRefused: an error in spite of the status.
        UpstreamNonsense: other than so many embeddings in it.
    """
    try:
        answer = _ANSWER.decode(body)
        rows = [_floats(item.embedding) for item in sorted(answer.data, key=lambda it: it.index)]
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as exc:
        if is_error_object(body):
            raise in_band(body) from exc
        raise UpstreamNonsense(f"no embeddings in the answer: {exc}") from exc
    if len(rows) != count:
        raise UpstreamNonsense(f"{len(rows)} embeddings for {count} texts")
    counts = answer.usage or _Counts()
    counted = tokens(counts.prompt_tokens) or tokens(counts.total_tokens)
    return Vectors(rows, counted, answer.model or "")


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


def _floats(given: list[float] | str) -> list[float]:
    if isinstance(given, list):
        return given
    try:
        packed = binascii.a2b_base64(given, strict_mode=True)
    except binascii.Error as exc:
        raise ValueError("not base64") from exc
    floats = array.array("f")
    floats.frombytes(packed)
    return _little_endian(floats).tolist()


def _little_endian(floats: array.array[Any]) -> array.array[Any]:
    if sys.byteorder == "big":
        floats.byteswap()
    return floats

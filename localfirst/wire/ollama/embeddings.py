"""
Embeddings in Ollama's dialect: `/api/embed`, and the older `/api/embeddings`.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings
"""

from __future__ import annotations

import msgspec

from localfirst.errors import UpstreamNonsense
from localfirst.events import Vectors
from localfirst.wire import strict_json
from localfirst.wire.fields import Fields, refuse
from localfirst.wire.forgiving import tokens
from localfirst.wire.ollama.answers import NANOSECONDS
from localfirst.wire.ollama.decode import model_of
from localfirst.wire.openai.answers import ENCODER
from localfirst.wire.openai.embeddings import (
    MAX_DIMENSIONS,
    EmbedRequest,
    texts_of,
)
from localfirst.wire.options import keep_alive_of, options_of
from localfirst.wire.refusal import in_band, is_error_object

MAX_TEXTS = 10_000
"""Ollama has no limit, and its clients send all that they have at once; here memory is one."""


def decode(body: bytes) -> EmbedRequest:
    """
    A body of `/api/embed`; an empty `input` is legal and has no vectors.

    Raises:
        InvalidRequest: naming the field that is wrong.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    texts = texts_of(fields, MAX_TEXTS)
    return EmbedRequest(
        model=model_of(fields),
        texts=[] if texts == [""] else texts,
        dimensions=fields.integer("dimensions", 1, MAX_DIMENSIONS),
        # This endpoint cuts what is too long unless told not to, and its users know.
        truncate=fields.flag("truncate") is not False,
        keep_alive=keep_alive_of(fields),
        options=options_of(fields),
    )


def decode_legacy(body: bytes) -> EmbedRequest:
    """A body of `/api/embeddings`, which has one `prompt`."""
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    prompt = fields.text("prompt")
    return EmbedRequest(
        model=model_of(fields),
        texts=[prompt] if prompt else [],
        keep_alive=keep_alive_of(fields),
        options=options_of(fields),
    )


class _Answer(msgspec.Struct):
    embeddings: list[list[float]]
    prompt_eval_count: int | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def read(body: bytes, count: int) -> Vectors:
    """
    A daemon's answer to `/api/embed` for *count* texts.

    Raises:
        UpstreamRefused: an error in spite of the status.
        UpstreamNonsense: other than so many embeddings in it.
    """
    try:
        found = _ANSWER.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        if is_error_object(body):
            raise in_band(body) from exc
        raise UpstreamNonsense(f"no embeddings in the answer: {exc}") from exc
    if len(found.embeddings) != count:
        raise UpstreamNonsense(f"{len(found.embeddings)} embeddings for {count} texts")
    return Vectors(found.embeddings, tokens(found.prompt_eval_count))


def answer(
    vectors: list[list[float]], *, model: str, prompt_tokens: int, elapsed_s: float = 0.0
) -> bytes:
    """The body that answers `/api/embed`."""
    return ENCODER.encode(
        {
            "model": model,
            "embeddings": vectors,
            "total_duration": round(elapsed_s * NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": prompt_tokens,
        }
    )


def answer_legacy(vectors: list[list[float]]) -> bytes:
    """The body that answers `/api/embeddings`."""
    return ENCODER.encode({"embedding": vectors[0] if vectors else []})

"""
Embeddings in Ollama's dialect: `/api/embed`, and the older `/api/embeddings`.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings
"""

from __future__ import annotations

import msgspec

from localfirst.errors import UpstreamNonsense
from localfirst.types import Json
from localfirst.wire import strict_json
from localfirst.wire.fields import Fields, refuse
from localfirst.wire.ollama.answers import NANOSECONDS
from localfirst.wire.ollama.decode import model_of
from localfirst.wire.openai.answers import ENCODER
from localfirst.wire.openai.embeddings import (
    MAX_DIMENSIONS,
    EmbedAnswer,
    EmbedRequest,
    input_of,
)
from localfirst.wire.options import keep_alive_of, options_of
from localfirst.wire.refusal import in_band, is_error_object


def decode(body: bytes) -> EmbedRequest:
    """
    A body of `/api/embed`; an empty `input` is legal and has no vectors.

    Raises:
        InvalidRequest: naming the field that is wrong.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    texts, single = input_of(fields)
    return EmbedRequest(
        model=model_of(fields),
        texts=() if texts == ("",) else texts,
        single=single,
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
        texts=(prompt,) if prompt else (),
        single=True,
        keep_alive=keep_alive_of(fields),
        options=options_of(fields),
    )


def encode(request: EmbedRequest, model: str) -> bytes:
    """The body of `/api/embed` at a daemon; a text is cut only for who asked for that."""
    fields: dict[str, Json] = {
        "model": model,
        "input": list(request.texts),
        "truncate": bool(request.truncate),
    }
    if request.dimensions is not None:
        fields["dimensions"] = request.dimensions
    if request.keep_alive is not None:
        fields["keep_alive"] = request.keep_alive
    if request.options:
        fields["options"] = request.options
    return ENCODER.encode(fields)


class _Answer(msgspec.Struct):
    embeddings: list[list[float]]
    prompt_eval_count: int | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def read(body: bytes) -> EmbedAnswer:
    """
    A daemon's answer to `/api/embed`.

    Raises:
        UpstreamRefused: an error in spite of the status.
        UpstreamNonsense: no embeddings in it.
    """
    try:
        found = _ANSWER.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        if is_error_object(body):
            raise in_band(body) from exc
        raise UpstreamNonsense(f"no embeddings in the answer: {exc}") from exc
    return EmbedAnswer(
        vectors=tuple(map(tuple, found.embeddings)), prompt_tokens=found.prompt_eval_count or 0
    )


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

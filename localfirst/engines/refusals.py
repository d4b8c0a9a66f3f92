"""
What an engine's refusal means, and the refusals that need no engine to be asked. Pure.

A prompt that is too long is told in several ways, all of which have to be known: an engine
that could take it with a larger context is asked again. What a model cannot do is refused
here, because engines notice some of it late, as a fault of theirs, or not at all.
"""

from __future__ import annotations

import re

import msgspec

from localfirst.engines.base import LocalModel
from localfirst.errors import UpstreamRefused
from localfirst.types import Json, Needs
from localfirst.wire.forgiving import UNREADABLE

_TOO_LARGE = re.compile(
    r"input \((\d+) tokens\) is too large to process.*?current batch size: (\d+)"
)


class Overflow(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt that did not fit: what it needs and what there was, 0 when not told."""

    prompt_tokens: int = 0
    context_tokens: int = 0


def overflow(body: bytes) -> Overflow | None:
    """
    Whether an error says that the prompt is too long.

    llama-server's own JSON comes inside the string `error`; the daemon's own wording says
    no numbers (ollama/ollama `server/routes.go`, issue 17889). A text that is too long to be
    embedded is a 500 of llama.cpp's (ggml-org/llama.cpp `tools/server/server-context.cpp`).
    """
    text = body.decode("utf-8", "replace")
    if found := _TOO_LARGE.search(text):
        return Overflow(prompt_tokens=int(found[1]), context_tokens=int(found[2]))
    if "is longer than the context length" in text or "exceeds the context length" in text:
        return Overflow()
    if "exceed_context_size_error" not in text:
        return None
    inner = unwrapped(body)
    return Overflow(
        prompt_tokens=_whole(inner.get("n_prompt_tokens")),
        context_tokens=_whole(inner.get("n_ctx")),
    )


def unwrapped(body: bytes) -> dict[str, Json]:
    """The innermost error object of a body whose `error` may be JSON in a string, in JSON."""
    found: Json = body
    result: dict[str, Json] = {}
    for _ in range(4):
        if isinstance(found, str | bytes):
            try:
                found = msgspec.json.decode(found)
            except UNREADABLE:
                return result or {"message": found if isinstance(found, str) else ""}
        if not isinstance(found, dict):
            return result
        result = found
        if "error" not in found:
            return result
        found = found["error"]
    return result


def _whole(value: Json) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def missing(model: LocalModel, needs: Needs) -> str:
    """The capability in Ollama's word that *needs* asks for and *model* lacks; "" for none."""
    if not model.capabilities:
        return ""
    wanted = (("vision", needs.vision), ("tools", needs.tools))
    if "completion" not in model.capabilities and "embedding" in model.capabilities:
        return "completion"
    return next((word for word, asked in wanted if asked and word not in model.capabilities), "")


def unsaid(model: LocalModel, needs: Needs) -> bool:
    """Whether *needs* has a need or a wish that *model* is not known to meet."""
    wishes = (("vision", needs.vision), ("tools", needs.tools), ("thinking", needs.thinking))
    return any(asked and word not in model.capabilities for word, asked in wishes)


def refuse_capability(name: str, word: str) -> UpstreamRefused:
    """The daemon's own refusal, said before anything is sent."""
    body = {"error": f"{name} does not support {word}"}
    return UpstreamRefused(400, msgspec.json.encode(body), unsent=True)


def no_grammar(error: UpstreamRefused) -> bool:
    """Whether a schema is refused because llama.cpp makes no grammar of it."""
    words = (b"JSON schema", b"parse grammar")
    return error.status in {400, 500} and any(word in error.body for word in words)


def cannot_embed(error: UpstreamRefused) -> bool:
    """
    Whether a model makes no vectors, which an Ollama says as a fault of its server's
    (ggml-org/llama.cpp `tools/server/server-context.cpp`), and which no second try mends.
    """
    return error.status == 501 and b"does not support embeddings" in error.body


def too_long(found: Overflow) -> UpstreamRefused:
    """An overflow as the one error that everybody knows for one."""
    error = {
        "code": 400,
        "message": f"request ({found.prompt_tokens} tokens) exceeds the available context size "
        f"({found.context_tokens} tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": found.prompt_tokens,
        "n_ctx": found.context_tokens,
    }
    return UpstreamRefused(400, msgspec.json.encode({"error": error}))


def lost_its_file(error: UpstreamRefused) -> bool:
    """
    Whether a daemon refuses a model whose file is gone.

    One that started after the file was lost says 400, as if the request were wrong, and goes
    on listing the model; one that started before says 404 (ollama/ollama server/routes.go).
    """
    said = re.search(rb"does not support (chat|generate)", error.body)
    return error.status == 400 and said is not None

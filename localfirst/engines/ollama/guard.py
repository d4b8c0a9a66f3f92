"""
What is settled before a request goes to Ollama. Pure.

The context: one size per model, because another size reloads it, and none so small that
the prompt is cut without a word. The capabilities: asked here, because the daemon notices
some of them late or not at all.
"""

from __future__ import annotations

import msgspec

from localfirst.engines.base import LocalModel
from localfirst.errors import UpstreamRefused
from localfirst.types import Json, Needs

ANSWER_TOKENS = 256
DEFAULT_CONTEXT_TOKENS = 4096
"""What the daemon takes on machines without much GPU memory (ollama/ollama docs/faq.mdx)."""


def stable_context(
    *, settled: int, asked: int, prompt_tokens: int, max_tokens: int, window: int
) -> int:
    """
    The `num_ctx` to send, 0 for the daemon's own choice.

    Args:
        settled: the size this model has had so far; sizes only ever grow, so that two
            callers with different wishes do not reload it in turn.
        asked: what the request says, 0 nothing.
        prompt_tokens: an estimate.
        max_tokens: the answer's limit, 0 not said.
        window: the model's own, 0 unknown.
    """
    size = max(settled, asked)
    needed = prompt_tokens + (max_tokens or ANSWER_TOKENS)
    if needed > (size or DEFAULT_CONTEXT_TOKENS):
        size = size or DEFAULT_CONTEXT_TOKENS
        while size < needed:
            size = 2 ** size.bit_length()
    return min(size, window) if window else size


class Overflow(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt that did not fit: what it needs and what there was, 0 when not told."""

    prompt_tokens: int = 0
    context_tokens: int = 0


def overflow(body: bytes) -> Overflow | None:
    """
    Whether an error says that the prompt is too long.

    llama-server's own JSON comes inside the string `error`; the daemon's own wording says
    no numbers (ollama/ollama `server/routes.go`, issue 17889).
    """
    text = body.decode("utf-8", "replace")
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
            except (msgspec.DecodeError, UnicodeError):
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


def refuse_capability(name: str, word: str) -> UpstreamRefused:
    """The daemon's own refusal, said before anything is sent."""
    body = {"error": f"{name} does not support {word}"}
    return UpstreamRefused(400, msgspec.json.encode(body))


def prepared(body: bytes, *, model: str, num_ctx: int, drop_think: bool = False) -> bytes:
    """
    A native request with what the guard settled; all else stays as it came.

    Without `truncate: false` the daemon drops the oldest messages or half of the prompt and
    answers 200; without `shift: false` it drops them while it writes.
    """
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields |= {"model": _raw(model), "stream": _raw(True)}
    fields |= {"truncate": _raw(False), "shift": _raw(False)}
    if num_ctx:
        options = msgspec.json.decode(fields.get("options") or b"{}", type=dict[str, msgspec.Raw])
        fields["options"] = _raw(options | {"num_ctx": _raw(num_ctx)})
    if drop_think:
        fields.pop("think", None)
    return msgspec.json.encode(fields)


def _raw(value: Json) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))

"""
What is settled before a request goes to Ollama. Pure.

The context: one size per model, because another size reloads it, and none so small that
the prompt is cut without a word.
"""

from __future__ import annotations

import msgspec

from localfirst.types import Json

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


def prepared(body: bytes, *, model: str, num_ctx: int, drop_think: bool = False) -> bytes:
    """
    A native request with what the guard settled; all else stays as it came.

    Without `truncate: false` the daemon drops the oldest messages or half of the prompt and
    answers 200; without `shift: false` it drops them while it writes.
    """
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields |= {"model": _raw(model), "stream": _raw(True)}
    fields |= {"truncate": _raw(False), "shift": _raw(False)}
    options = msgspec.json.decode(fields.get("options") or b"{}", type=dict[str, msgspec.Raw])
    # Zero and less would be taken for four tokens.
    options.pop("num_ctx", None)
    if num_ctx:
        options["num_ctx"] = _raw(num_ctx)
    if options or "options" in fields:
        fields["options"] = _raw(options)
    if drop_think:
        fields.pop("think", None)
    return msgspec.json.encode(fields)


def _raw(value: Json) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))

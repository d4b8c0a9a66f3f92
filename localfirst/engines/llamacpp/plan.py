"""
How a model is loaded: the settings of its child. Pure.

What the manifest says about a model (`params`, `system`, a Go template) holds here as it
does in Ollama, so that the same model answers alike in either engine.
"""

from __future__ import annotations

import msgspec

from localfirst.machine import fit
from localfirst.machine.fit import Cpu
from localfirst.types import ChatRequest, Json, Message

DEFAULT_CONTEXT_TOKENS = 4096
"""Ollama's own default without a large GPU (ollama/ollama docs/faq.mdx)."""

MIN_CONTEXT_TOKENS = 512


SMALL_BYTES = 64 * 2**20
"""Below this a second thread costs more in waiting for the other than it computes."""


class ChildPlan(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a child needs to know; `context_tokens` is the window of each of `parallel` slots.

    `gpu_layers` −1 lets llama.cpp fill what memory there is; `pooling` "" leaves the model's.
    `batch` 0 is llama.cpp's own; of a state that cannot be rolled back `checkpoints` copies
    are kept (32 would be, which is gigabytes for wide windows); `mapped` maps the file
    instead of reading it.
    """

    model: str
    alias: str
    context_tokens: int
    parallel: int = 1
    gpu_layers: int = -1
    template: str = ""
    projector: str = ""
    embedding: bool = False
    pooling: str = ""
    batch: int = 0
    checkpoints: int = 2
    threads: int = 0
    mapped: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """What the model is, as its manifest says: a name may mean another one tomorrow."""
        return self.model, self.projector, self.template, self.pooling


def embedding_batch(context_tokens: int, pooling: str) -> int:
    """
    Tokens computed at once for vectors; memory for logits of each is taken along.

    A text must lie in one batch, unless only its last token speaks for it (llama.cpp,
    tools/server/server-context.cpp, `can_split`): with a large vocabulary that is gigabytes less.
    """
    return fit.EMBEDDED.batch if pooling == "last" else fit.embedding_batch(context_tokens)


def context_for(*, asked: int, prompt_tokens: int, max_tokens: int, usual: int, window: int) -> int:
    """
    The context to load with, in tokens.

    Args:
        asked: `num_ctx` of the request, 0 when it did not say.
        prompt_tokens: an estimate of the prompt's length.
        max_tokens: room wanted for the answer, 0 when not said.
        usual: the configured or customary size.
        window: what the model was trained for, 0 unknown.

    Sizes above the usual are powers of two, so that requests of many lengths share one load.
    """
    wanted = max(asked, usual)
    needed = prompt_tokens + (max_tokens or 256)
    while wanted < needed:
        wanted = 2 ** wanted.bit_length()
    if window:
        wanted = min(wanted, window)
    return max(wanted, min(MIN_CONTEXT_TOKENS, window or MIN_CONTEXT_TOKENS))


def threads_for(cpu: Cpu, weights_bytes: int) -> int:
    """
    Threads to compute with, 0 for llama.cpp's own choice.

    llama.cpp counts the machine's cores, not a container's share of them, and its threads
    wait for each other by spinning: one more than can run at once makes all of them slow.
    From four cores on, one is left for everything else.
    """
    if not (cpu.cores or cpu.threads or cpu.quota):
        return 0
    if 0 < weights_bytes < SMALL_BYTES:
        return 1
    usable = int(cpu.usable)
    return usable - 1 if usable >= 4 else usable


def with_model_defaults(request: ChatRequest, params: dict[str, Json], system: str) -> ChatRequest:
    """
    *request* with what the model's own manifest says where the caller said nothing.

    Precedence as in Ollama: request, then `params`, then the engine. The manifest's system
    prompt stands in when the request has none.
    """
    filled: dict[str, Json] = {
        field: params[name]
        for name, field in _PARAMS.items()
        if params.get(name) is not None and getattr(request, field) is None
    }
    if not request.stop and isinstance(params.get("stop"), list):
        filled["stop"] = tuple(str(word) for word in params["stop"])
    if filled.get("max_tokens", 1) < 1:  # −1: until the model stops or the window is full
        del filled["max_tokens"]
    messages = request.messages
    if system and request.prompt is None and not any(m.role == "system" for m in messages):
        filled["messages"] = (Message(role="system", content=system), *messages)
    return msgspec.structs.replace(request, **filled) if filled else request


_PARAMS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "num_predict": "max_tokens",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repeat_penalty",
}

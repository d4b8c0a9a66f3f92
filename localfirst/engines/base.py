"""
What the cascade asks of whatever answers: a `Backend`, and of a local one: an `Engine`.

Protocols only. Clouds (`providers/`), Ollama and the embedded engine all look like this
from above, and so do the fakes of the unit tests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

import msgspec

from localfirst.events import Event, Vectors
from localfirst.types import Call, Json, Target


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """
    The waits of one attempt, in seconds.

    The cascade itself watches `first_token_s` (restarted by `Progress`) and `stall_s`
    between events. A backend owns `connect_s`, `load_s` and, as a second line of defence,
    the same limits on its socket.
    """

    connect_s: float = 5.0
    first_token_s: float = 60.0
    stall_s: float = 60.0
    load_s: float = 600.0


@runtime_checkable
class Backend(Protocol):
    """Something that can answer a `Call` at a `Target`."""

    def answer(self, call: Call, target: Target, limits: Limits) -> AsyncGenerator[Event, None]:
        """
        Send one generation request and yield its events.

        Yields `Opened` once the success status is in, any `Progress`, deltas, and last
        exactly one `Finished` (or a final `Relayed`). Closing the generator closes the
        upstream connection at once.

        Raises:
            UpstreamError: this attempt failed; before or after content alike.
        """
        ...

    async def aclose(self) -> None:
        """Give every connection back; idempotent."""
        ...


@runtime_checkable
class Replying(Backend, Protocol):
    """A `Backend` that gives the events of a whole (not streamed) answer in one piece."""

    async def reply(self, call: Call, target: Target, limits: Limits) -> list[Event]:
        """What `answer` would yield for a call without `stream`, `Opened` first."""
        ...


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """
    A model that a local engine lists.

    `size_bytes` and `digest` as `ollama list` prints them; `context_tokens` is the model's
    own window and `loaded_context_tokens` the one it was loaded with (0 unknown);
    `capabilities` in Ollama's words ("completion", "tools", "vision", "thinking",
    "embedding", …), empty = unknown, and `partial` when there may be more of them; `fit` is
    a verdict of `machine.fit`; `remote` marks Ollama's `:cloud` models. `needed_bytes` and
    `tokens_per_s` (low, high) are predicted for this machine (0 and None unknown); where
    this machine has seen them, `measured_bytes` and `measured_tokens_per_s` are not 0.
    """

    name: str
    digest: str = ""
    size_bytes: int = 0
    context_tokens: int = 0
    capabilities: tuple[str, ...] = ()
    family: str = ""
    parameters: str = ""
    quantization: str = ""
    modified_unix: float = 0.0
    fit: str = "unknown"
    loaded: bool = False
    loaded_vram_bytes: int = 0
    loaded_bytes: int = 0
    loaded_context_tokens: int = 0
    expires_unix: float = 0.0
    remote: bool = False
    partial: bool = False
    needed_bytes: int = 0
    tokens_per_s: tuple[float, float] | None = None
    measured_bytes: int = 0
    measured_tokens_per_s: float = 0.0


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """
    A snapshot of a local engine.

    `kind` is "ollama", "llamacpp" or "none"; `state` a word of the supervisor ("ready",
    "starting", "stopped", "backoff", "crash_loop", "absent"); `ready` says that a request
    sent now is answered or loads a model; `can_start` that the first request may start it.
    `reason` is one line for people; `partial` says that a host whose models are not listed
    is down.
    """

    kind: str
    state: str
    ready: bool
    can_start: bool = False
    version: str = ""
    endpoint: str = ""
    adopted: bool = False
    reason: str = ""
    models: tuple[LocalModel, ...] = ()
    partial: bool = False


class Engine(Backend, Protocol):
    """A local engine: a backend that also lists, loads and unloads models."""

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        """The engine now, at most `max_age_s` old; never raises and never takes over 2 s."""
        ...

    async def embed(self, model: str, texts: list[str], options: dict[str, Json]) -> Vectors:
        """Embeddings of `texts`, in order; raises `UpstreamError`."""
        ...

    async def load(self, model: str) -> None:
        """Have `model` in memory; raises `UpstreamError` or `LocalFirstError`."""
        ...

    async def unload(self, model: str) -> bool:
        """Take `model` out of memory; False when it was not there."""
        ...

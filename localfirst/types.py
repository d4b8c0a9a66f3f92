"""
What flows through localfirst: one request in, events out, a reply and its attempts.

Every surface (OpenAI, Anthropic, Ollama) is decoded into `ChatRequest` and encoded from
`Event`s; every backend does the reverse. This file imports nothing of ours, opens nothing
and knows no dialect's spelling.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal, Protocol

import msgspec

Json = Any
"""A value that came out of a JSON document; the only place where `Any` is meant."""


class Dialect(StrEnum):
    """The wire language of a surface or a backend."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    GEMINI = "gemini"


class Rung(StrEnum):
    """A step of the ladder, spelled as in `x-localfirst-rung`."""

    LOCAL = "local"
    CLOUD = "cloud"
    PULL = "pull"


class FailureClass(StrEnum):
    """Why an attempt failed: the vocabulary of `x-localfirst-trail` and of every report."""

    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    AUTH = "auth"
    TIMEOUT = "timeout"
    NETWORK = "network"
    UNAVAILABLE = "unavailable"
    MODEL_NOT_FOUND = "model_not_found"
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"
    INVALID_REQUEST = "invalid_request"
    INVALID_RESPONSE = "invalid_response"
    CONFIG = "config"
    UNKNOWN = "unknown"


class Scope(StrEnum):
    """What a failure speaks of, and so what cools down; nothing wider is ever punished."""

    REQUEST = "request"
    MODEL = "model"
    KEY = "key"
    KEY_MODEL = "key_model"
    PROVIDER = "provider"


# --- the request -----------------------------------------------------------------------


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """A stretch of text inside a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """An image: base64 `data` with its media type, or a `url` that only a cloud may fetch."""

    media_type: str = "image/png"
    data: str = ""
    url: str = ""
    detail: str = ""


Part = TextPart | ImagePart


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A model's wish to call a tool; `arguments` is JSON text, exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """
    One turn. `content` is text or parts; `role` "tool" answers `tool_call_id`. `own_role` is
    the role of a turn that one model's template alone knows, and that is "system" elsewhere.

    `reasoning_signature` is Anthropic's opaque proof of a thinking block; without it the
    block is not sent back.
    """

    role: Literal["system", "user", "assistant", "tool"]
    own_role: str = ""
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""
    reasoning_signature: str = ""
    is_error: bool = False

    @property
    def text(self) -> str:
        """The message's text parts joined; images are left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def result(self) -> str:
        """A tool's result in words alone, which say that it failed where nothing else can."""
        text = self.text
        if not self.is_error or text[:5].lower() == "error":
            return text
        return f"Error: {text}" if text else "Error"

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The message's images in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if isinstance(part, ImagePart))


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """
    A function the model may call; `parameters` is a JSON schema.

    Its client may know it as `own_name` of a `namespace`, and be called in a way of its `kind`:
    a "custom" one is given the text of its one parameter `input`, "tool_search" finds more tools.
    """

    name: str
    description: str = ""
    parameters: dict[str, Json] = {}
    strict: bool | None = None
    namespace: str = ""
    own_name: str = ""
    kind: Literal["function", "custom", "tool_search"] = "function"


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    A generation request in no dialect at all. `None` always means "not said".

    `tool_choice` is "auto", "none", "required" or a tool's name. `think` is False, True or
    an effort ("minimal" … "max"). `json_mode` asks for any JSON object, `schema` for one
    that validates. `num_ctx` and `options` are Ollama's. `prompt` is set instead of
    `messages` for completion, `suffix` for fill-in-the-middle. `generate` says that the
    messages are one turn which Ollama is asked for as such, and answers with its `context`.
    `extra` keeps fields that only the dialect they came in understands (never destinations or
    keys), which is `dialect`; without one they are for whoever knows them.
    """

    model: str = "auto"
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    suffix: str | None = None
    generate: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    json_mode: bool = False
    schema: dict[str, Json] | None = None
    schema_name: str = ""
    think: bool | str | None = None
    thinking_budget_tokens: int | None = None
    num_ctx: int | None = None
    keep_alive: str | float | None = None
    options: dict[str, Json] = {}
    user: str = ""
    stream: bool = False
    include_usage: bool = False
    extra: dict[str, Json] = {}
    dialect: Dialect | None = None


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate must be able to do for one request; `prompt_tokens` is an estimate."""

    tools: bool = False
    vision: bool = False
    schema: bool = False
    thinking: bool = False
    prompt_tokens: int = 0
    max_tokens: int = 0


class Call(msgspec.Struct, kw_only=True):
    """
    One request on its way through the cascade.

    `body` is the request's own bytes in `dialect`, and `relay` says that the caller can
    take `Relayed` events (bytes of that dialect, untouched): a backend of the same dialect
    then forwards without decoding. `decode` turns `body` into a `ChatRequest` the first
    time `chat` is asked for; exactly one of `body`+`decode` or a given request is needed.

    `fields` are those of `body`, their values unread, where somebody has them already.

    `deadline_s` bounds the whole ladder; None leaves it to the settings. `betas` are the names
    of Anthropic's unfinished features that the body makes use of.
    """

    model: str
    stream: bool
    dialect: Dialect
    request_id: str
    needs: Needs = Needs()
    body: bytes = b""
    fields: dict[str, msgspec.Raw] | None = None
    relay: bool = False
    decode: Callable[[bytes], ChatRequest] | None = None
    request: ChatRequest | None = None
    local_only: bool = False
    fallback: bool = True
    deadline_s: float | None = None
    betas: str = ""

    @property
    def chat(self) -> ChatRequest:
        """The decoded request; raises `InvalidRequest` when the body does not decode."""
        if self.request is None:
            assert self.decode is not None, "a Call carries a request or the means to decode one"
            self.request = self.decode(self.body)
        return self.request


Texts = list[str] | list[list[int]]
"""What to embed: texts, or each as the ids of a tokenizer, which only its own model can read."""


# --- where it goes ---------------------------------------------------------------------


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """
    One candidate: a model at a provider, with the key to use.

    `provider` is "local", a cloud's id or "pull"; `key_label` names a key ("GROQ_API_KEY#2"),
    never its value. `requested` is what the caller asked for when `model` is a stand-in.
    """

    rung: Rung
    provider: str
    model: str
    key_label: str = ""
    requested: str = ""

    @property
    def route(self) -> str:
        """The spelling of `x-localfirst-route`."""
        return f"{self.provider}/{self.model}"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """
    One request that was really sent, or refused before sending.

    `outcome` is a class, "ok", or "left" where its caller did not wait for the end.
    """

    provider: str
    model: str
    outcome: str
    key_label: str = ""
    status: int | None = None
    message: str = ""
    started_unix: float = 0.0
    duration_s: float = 0.0
    retry_after_s: float | None = None
    sent: bool = True


# --- failures as data ------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """
    A classified failure: what the health, the ladder and the report need to know.

    `retry_after_s` counts from now; `retry_is_fact` when a header or body said so, else it
    is a guess and is probed early. `field` is the request field an upstream complained of,
    `breakage` what broke below HTTP, in the words of `errors.Breakage`.
    """

    cls: FailureClass
    scope: Scope
    message: str = ""
    status: int | None = None
    retry_after_s: float | None = None
    retry_is_fact: bool = False
    field: str = ""
    breakage: str = ""


# --- the world -------------------------------------------------------------------------


class Clock(Protocol):
    """Time, injected; the real one is `transport.clock.SystemClock`."""

    def monotonic(self) -> float:
        """Seconds that never run backwards; stops during suspend on some systems."""
        ...

    def unix(self) -> float:
        """Seconds since 1970, which may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait, and be cancellable."""
        ...

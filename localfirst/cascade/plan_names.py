"""
What a model's name asks for: the ladder, a rung, a route, a provider, or a model by name.

The rules of the README's table, in the order in which they are asked. Pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Protocol

import msgspec

from localfirst.errors import UnknownModel

LOCAL_NAMES = frozenset({"local", "ollama"})
PULL = "pull"
# Families in Ollama's library (ollama.com/library) that people name without a tag. A name
# that is neither installed, nor tagged, nor here is more likely a slip than a model.
FAMILIES = (
    "all-minilm", "bge-m3", "codegemma", "codellama", "command-r", "deepseek-coder",
    "deepseek-r1", "deepseek-v3", "devstral", "dolphin3", "falcon3", "gemma", "gemma2", "gemma3",
    "gemma3n", "gpt-oss", "granite3.3", "granite4", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "llava", "magistral", "minicpm-v", "mistral", "mistral-nemo",
    "mistral-small", "mixtral", "mxbai-embed-large", "nomic-embed-text", "olmo2", "openthinker",
    "phi3", "phi3.5", "phi4", "phi4-mini", "qwen", "qwen2", "qwen2.5", "qwen2.5-coder", "qwen3",
    "qwen3-coder", "qwq", "smollm", "smollm2", "snowflake-arctic-embed", "starcoder2", "tinyllama",
    "vicuna", "yi", "zephyr",
)  # fmt: skip
# Bare names that only a cloud can mean, and whose they are.
CLOUD_NAMES = (
    (re.compile(r"(?:gpt-(?!oss)|chatgpt-|o[1-9](?:-|$)|text-embedding-[3a])"), "openai"),
    (re.compile(r"claude-"), "anthropic"),
    (re.compile(r"gemini-"), "gemini"),
    (re.compile(r"grok-"), "xai"),
    (re.compile(r"(?:mistral|codestral)-embed"), "mistral"),
    (re.compile(r"deepseek-(?:chat|reasoner)$"), "deepseek"),
)
# `[host[:port]/][namespace/]model[:tag]`, as Ollama's types/model/name.go bounds its parts.
_OLLAMA = re.compile(
    r"(?:[\w.-]+(?::\d{1,5})?/)?(?:[\w-][\w.-]*/)?[A-Za-z0-9_][\w.-]{0,79}(?::[\w][\w.-]{0,79})?"
)


class Asked(StrEnum):
    """The kinds of names."""

    LADDER = "ladder"
    LOCAL = "local"
    ROUTE = "route"
    PROVIDER = "provider"
    CLOUD_MODEL = "cloud model"
    LOCAL_MODEL = "local model"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a name means: `provider` is set for PROVIDER and, as far as known, CLOUD_MODEL."""

    kind: Asked
    model: str = ""
    provider: str = ""


class Known(Protocol):
    """What the names are looked up in."""

    @property
    def installed(self) -> Iterable[str]:
        """Names as `ollama list` prints them."""
        ...

    @property
    def route_names(self) -> Iterable[str]:
        """The configured routes."""
        ...

    @property
    def cloud_models(self) -> Mapping[str, Iterable[str]]:
        """Model ids by provider; its keys are all providers there are."""
        ...


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """The one model that a request named, and what it is looked up in should nobody have it."""

    name: str
    known: Known

    @property
    def installed(self) -> tuple[str, ...]:
        """Up to three installed models that may have been meant instead."""
        return close_to(self.name, self.known.installed)

    def unknown(self, told: str) -> UnknownModel:
        """The error when nobody has it; *told* says who was asked."""
        error = unknown(self.name, self.known)
        return UnknownModel(f"{error.message}\n{told}", nearest=error.nearest)


def read(name: str, known: Known) -> Wanted:
    """
    Say what *name* asks for.

    Raises:
        UnknownModel: nothing has that name; carries the nearest ones.
    """
    name = name.strip()
    if name in {"", "auto"}:
        return Wanted(kind=Asked.LADDER)
    if name in known.route_names:
        return Wanted(kind=Asked.ROUTE, model=name)
    if name in LOCAL_NAMES:
        return Wanted(kind=Asked.LOCAL)
    found = at_provider(name, known) or _by_model(name, known)
    if found is None:
        raise unknown(name, known)
    return found


def named(wanted: Wanted, known: Known) -> Named | None:
    """The model that a request named, unless it left the choice to us."""
    if wanted.kind in {Asked.LADDER, Asked.LOCAL, Asked.ROUTE} or wanted.model == "auto":
        return None
    at_cloud = wanted.kind is Asked.PROVIDER and wanted.provider in known.cloud_models
    name = f"{wanted.provider}/{wanted.model}" if at_cloud else wanted.model
    return Named(name=name, known=known)


def at_provider(name: str, known: Known) -> Wanted | None:
    """What `provider/model` asks for; None where *name* is not that."""
    provider, slash, model = name.partition("/")
    if not slash or not model:
        return None
    if provider in LOCAL_NAMES:
        return Wanted(kind=Asked.PROVIDER, provider="local", model=model)
    if provider in known.cloud_models or provider == PULL:
        return Wanted(kind=Asked.PROVIDER, provider=provider, model=model)
    return None


def _by_model(name: str, known: Known) -> Wanted | None:
    if is_installed(name, known.installed):
        return Wanted(kind=Asked.LOCAL_MODEL, model=name)
    owner = owner_of(name, known.cloud_models)
    if owner:
        return Wanted(kind=Asked.CLOUD_MODEL, model=name, provider=owner)
    if not _OLLAMA.fullmatch(name):
        return None
    if ":" in name or "/" in name or name.lower() in FAMILIES:
        return Wanted(kind=Asked.LOCAL_MODEL, model=name)
    return None


def owner_of(name: str, cloud_models: Mapping[str, Iterable[str]]) -> str:
    """The provider whose model *name* is: by its lists, else by the name's look; or ""."""
    looks = next((owner for shape, owner in CLOUD_NAMES if shape.match(name)), "")
    if looks and looks in cloud_models:
        return looks
    holder = next((owner for owner, models in cloud_models.items() if name in models), "")
    # `llama3.1:8b` is Ollama's spelling even where a cloud lists it as well.
    return holder or looks


def is_installed(name: str, installed: Iterable[str]) -> bool:
    """Whether the engine lists *name*, with or without `:latest`; names fold case."""
    return canonical(name) in {canonical(one) for one in installed}


def canonical(name: str) -> str:
    """One spelling for one model: registry's default parts and `:latest` written out or not."""
    name = name.lower()
    for prefix in ("registry.ollama.ai/", "library/"):
        name = name.removeprefix(prefix)
    last = name.rsplit("/", 1)[-1]
    return name if ":" in last else f"{name}:latest"


def unknown(name: str, known: Known) -> UnknownModel:
    """The error for a name that nothing has, with what it may have meant."""
    shown = name if len(name) <= 80 else name[:79] + "…"
    return UnknownModel(f"model `{shown}` not found", nearest=nearest_to(name, known))


def nearest_to(name: str, known: Known) -> tuple[str, ...]:
    """Up to three names that *name* may have meant; those that answer at once come first."""
    names = {"auto", "local", *known.route_names, *known.installed}
    for provider, models in known.cloud_models.items():
        for model in models:
            names.update((model, f"{provider}/{model}"))
    return tuple(dict.fromkeys((*close_to(name, names), *close_to(name, FAMILIES))))[:3]


def close_to(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Up to three of *names* that look like *name*, the likest first; it is none of them."""
    short = {one.lower().removesuffix(":latest"): one for one in sorted(names)}
    short.pop(name.lower().removesuffix(":latest"), None)
    close = difflib.get_close_matches(name[:100].lower(), list(short), n=3, cutoff=0.6)
    return tuple(short[one] for one in close)

"""What the catalogue says of a cloud, and what the settings make of it: frozen data."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from localfirst.settings import Secret
from localfirst.types import Dialect, Json, Rung
from localfirst.wire.quirks import NONE, Quirks


class ModelTiers(msgspec.Struct, frozen=True, kw_only=True):
    """Default models, each tier in the order to try: `fast` is cheap, `best` is not."""

    fast: tuple[str, ...] = ()
    best: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every default once, the fast ones first."""
        return tuple(dict.fromkeys((*self.fast, *self.best)))


class ProviderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """
    One cloud as the catalogue knows it.

    - base_url: `/chat/completions` (Anthropic: `/messages`, Gemini: `/models/…`) is appended;
      may hold `{account}`.
    - key_vars: variables that hold its keys, the canonical one first.
    - dated: the day the models and limits were true, YYYY-MM-DD; models rot in months.
    - windows: context in tokens by model; `context_tokens` is the first default's.
    - capabilities: of the default models, in the words of `Needs`; empty = unknown.
    - quirks: for every model; `model_quirks` adds by a pattern that the model's name
      begins with; `unless_thinking` fills fields of requests that ask for no thinking.
    - concurrency: requests at once, 0 unlimited; `first_token_s` where a cloud is known to
      be slower than the general limit.
    - models_path: where its model list is, "" where it has none; `unlisted` are names that
      work although the list does not show them.
    - embedding: its default embedding model, "" for none known.
    """

    id: str
    title: str
    base_url: str
    key_vars: tuple[str, ...]
    models: ModelTiers
    dated: str
    dialect: Dialect = Dialect.OPENAI
    context_tokens: int = 0
    windows: dict[str, int] = {}
    capabilities: frozenset[str] = frozenset()
    headers: tuple[tuple[str, str], ...] = ()
    quirks: Quirks = NONE
    model_quirks: tuple[tuple[str, Quirks], ...] = ()
    unless_thinking: dict[str, Json] = {}
    concurrency: int = 0
    first_token_s: float = 0.0
    models_path: str = "/models"
    unlisted: frozenset[str] = frozenset()
    embedding: str = ""
    free_tier: str = ""
    docs: str = ""
    notes: str = ""


class State(StrEnum):
    """Whether a provider can be asked, in words that `localfirst providers` prints."""

    READY = "ready"
    NO_KEY = "no key"
    UNSET = "key not set"
    PLACEHOLDER = "placeholder key"
    NO_ACCOUNT = "no account"
    DISABLED = "disabled"


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """
    One provider as it is configured here; `keys` shows labels only.

    `default_models` stand in for names it does not know, the first one first. `loopback`
    says that its address is this machine, `private` that it is in no public network. `reason`
    is one line for people, `unset` are variables that should hold further keys.
    """

    id: str
    title: str
    base_url: str
    dialect: Dialect
    state: State
    spec: ProviderSpec
    reason: str = ""
    keys: tuple[Secret, ...] = ()
    unset: tuple[str, ...] = ()
    default_models: tuple[str, ...] = ()
    context_tokens: int = 0
    windows: dict[str, int] = {}
    capabilities: frozenset[str] = frozenset()
    concurrency: int = 0
    timeout_s: float = 0.0
    rung: Rung = Rung.CLOUD
    loopback: bool = False
    private: bool = False
    custom: bool = False

    @property
    def ready(self) -> bool:
        """Whether it can be asked."""
        return self.state is State.READY

    @property
    def wanting(self) -> str:
        """Which keys it should have and has not, in words; or ""."""
        return wanting(self.id, self.unset)

    @property
    def key_labels(self) -> tuple[str, ...]:
        """The names of its keys, in the order to try."""
        return tuple(secret.label for secret in self.keys)

    def quirks(self, model: str) -> Quirks:
        """What requests for *model* need, by the catalogue."""
        merged = self.spec.quirks
        for pattern, more in self.spec.model_quirks:
            if re.match(pattern, model):
                merged = merge(merged, more)
        return merged


def wanting(provider: str, unset: tuple[str, ...]) -> str:
    """The variables that are named for keys of *provider* and hold none, in words; or ""."""
    told = ", ".join(f"`{name}`" for name in unset)
    return f"`providers.{provider}.keys` names {told}, not set" if told else ""


def merge(base: Quirks, more: Quirks) -> Quirks:
    """*base* with *more* on top: sets and maps are joined, what *more* changes wins."""
    changed: dict[str, Json] = {}
    for name in Quirks.__struct_fields__:
        old, new = getattr(base, name), getattr(more, name)
        if new == getattr(NONE, name):
            continue
        changed[name] = old | new if isinstance(new, frozenset | dict) else new
    return msgspec.structs.replace(base, **changed) if changed else base

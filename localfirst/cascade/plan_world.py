"""
The world as a plan sees it: one frozen snapshot of everything that decides who answers.

Whoever builds it has asked the engine, the settings, the keys and the network; a plan asks
nobody. Building the same world again while nothing changed should give the same object:
plans are kept as long as their world is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from localfirst.cascade.health import HealthView
from localfirst.cascade.quota import Quota
from localfirst.settings import ORDER, RouteSettings
from localfirst.types import Rung


class LocalModelView(Protocol):
    """What a plan reads of an installed model; `engines.base.LocalModel` has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def size_bytes(self) -> int: ...  # noqa: D102
    @property
    def context_tokens(self) -> int: ...  # noqa: D102
    @property
    def capabilities(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def fit(self) -> str: ...  # noqa: D102
    @property
    def loaded(self) -> bool: ...  # noqa: D102
    @property
    def remote(self) -> bool: ...  # noqa: D102
    @property
    def partial(self) -> bool: ...  # noqa: D102


class EngineView(Protocol):
    """What a plan reads of the local engine; `engines.base.EngineStatus` has it."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def ready(self) -> bool: ...  # noqa: D102
    @property
    def can_start(self) -> bool: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def models(self) -> Sequence[LocalModelView]: ...  # noqa: D102
    @property
    def partial(self) -> bool: ...  # noqa: D102


class NoEngine(msgspec.Struct, frozen=True, kw_only=True):
    """The engine of a world that has none."""

    kind: str = "none"
    state: str = "absent"
    ready: bool = False
    can_start: bool = False
    reason: str = "no local engine is installed"
    models: tuple[LocalModelView, ...] = ()
    partial: bool = False


class ProviderView(msgspec.Struct, frozen=True, kw_only=True):
    """
    One provider as a plan sees it.

    `key_labels` are the keys to take turns with; an empty tuple with `enabled` means that
    none is needed. `default_models` stand in, the best first. `known_models` may be empty
    (unknown); `context_tokens` is the default model's window, `windows` those of others.
    `capabilities` in the words of `Needs` ("tools", "vision", "schema", "thinking"), empty
    = unknown. `near`: it is reached without the internet; `own`: it counts as this
    machine, so that privacy and budget do not speak of it. `timeout_s` replaces the wait
    for the first token.
    """

    id: str
    rung: Rung = Rung.CLOUD
    enabled: bool = True
    reason: str = ""
    key_labels: tuple[str, ...] = ()
    default_models: tuple[str, ...] = ()
    known_models: frozenset[str] = frozenset()
    context_tokens: int = 0
    windows: Mapping[str, int] = {}
    capabilities: frozenset[str] = frozenset()
    near: bool = False
    own: bool = False
    timeout_s: float = 0.0


class World(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything that decides who answers.

    `health`, `quota`, `now_unix` and the three measured maps are filled by the cascade
    itself; the rest comes from `look`. `last_resort_for` is set when `last_resort` stands in
    for the configured one, which does not fit; `last_resort_reason` says so. `online` None
    means "worth a try". `over_budget` is empty or says why nothing more may be spent today.
    `priced` is USD per million tokens by route, `abilities` and `windows` what models can do
    that are not here yet and how long a prompt they take, all as far as known.
    """

    order: tuple[str, ...] = ORDER
    local_only: bool = False
    fallback: bool = True
    local: EngineView = NoEngine()
    local_model: str = "auto"
    last_resort: str = "llama2:7b"
    last_resort_for: str = ""
    last_resort_reason: str = ""
    abilities: Mapping[str, frozenset[str]] = {}
    windows: Mapping[str, int] = {}
    auto_pull: bool = True
    skip_pull: bool = False
    skip_pull_reason: str = ""
    providers: Mapping[str, ProviderView] = {}
    routes: Mapping[str, RouteSettings] = {}
    online: bool | None = None
    offline_reason: str = "the network is not reachable"
    over_budget: str = ""
    priced: Mapping[str, float] = {}
    health: HealthView = HealthView()
    quota: Quota | None = None
    in_flight: Mapping[str, int] = {}
    first_token_s: Mapping[str, float] = {}
    now_unix: float = 0.0

    @property
    def installed(self) -> Iterable[str]:
        """Names of the installed models."""
        return [model.name for model in self.local.models]

    @property
    def route_names(self) -> Iterable[str]:
        """Names of the routes."""
        return self.routes

    @property
    def cloud_models(self) -> Mapping[str, Iterable[str]]:
        """Model ids by provider."""
        return {
            view.id: (*view.default_models, *view.known_models) for view in self.providers.values()
        }

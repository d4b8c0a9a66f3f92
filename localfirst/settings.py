"""
What a configured localfirst holds: frozen values, no reading and no defaults elsewhere.

`config.load()` fills these from flags, environment, files; tests build them by hand. Units
are in the names; sizes are bytes, rates bytes per second (0 = unlimited).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from localfirst.errors import ConfigError

ORDER = (
    "local",
    "groq",
    "gemini",
    "openrouter",
    "together",
    "mistral",
    "openai",
    "deepseek",
    "anthropic",
    "huggingface",
    "pull",
)


class Privacy(StrEnum):
    """Whether a request may leave this machine."""

    ALLOW_CLOUD = "allow-cloud"
    LOCAL_ONLY = "local-only"


class Secret:
    """A value that shows itself only through `reveal()`: not by repr, str, format or pickle."""

    __slots__ = ("_value", "label")

    def __init__(self, value: str, label: str) -> None:
        self._value = value
        self.label = label

    def reveal(self) -> str:
        """The secret itself; called where a header is built or a key compared, nowhere else."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.label})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Secret, ("", self.label))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.label == self.label

    def __hash__(self) -> int:
        return hash(self.label)


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The local engine. `engine` is auto, ollama, llamacpp or none; `model` a name or "auto"."""

    engine: str = "auto"
    model: str = "auto"
    last_resort: str = "llama2:7b"
    auto_pull: bool = True
    host: str = "http://127.0.0.1:11434"
    hosts: tuple[str, ...] = ()
    models_dir: str = ""
    num_ctx: int = 0
    start: bool = True
    queue_limit: int = 64
    queue_spill_s: float = 0.0
    keep_alive_s: float = 300.0


class CascadeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the ladder is climbed down."""

    attempts_per_provider: int = 2
    backoff_s: tuple[float, ...] = (0.5, 1.0)
    deadline_s: float = 120.0
    wait_for_cooldown_s: float = 5.0
    hedge_after_s: float = 0.0
    continue_cut_streams: bool = False
    fallback: bool = True
    cache_ttl_s: float = 0.0
    cache_bytes: int = 64 * 2**20


class TimeoutSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Waits of one attempt, each of another kind."""

    connect_s: float = 5.0
    first_token_s: float = 60.0
    stall_s: float = 60.0
    load_s: float = 600.0
    local_first_token_s: float = 300.0


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    One provider as the user set it; empty values leave the catalogue's in force.

    `keys` are revealed only in `providers/`. A provider that the catalogue does not know
    needs a `base_url`; `rung` "local" makes it count as this machine's own; `account` fills
    Cloudflare's base URL. `why_off` says why `enabled` is false where the user did not, and
    `unset` are the variables that `keys` names and that hold nothing.
    """

    model: str = ""
    base_url: str = ""
    dialect: str = ""
    keys: tuple[Secret, ...] = ()
    concurrency: int = 0
    enabled: bool = True
    timeout_s: float = 0.0
    rung: str = ""
    account: str = ""
    why_off: str = ""
    unset: tuple[str, ...] = ()


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A named ladder used as a model's name; `strategy` orders its targets."""

    targets: tuple[str, ...] = ()
    strategy: str = "order"
    weights: tuple[float, ...] = ()


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The server. `hosts` and `origins` are allowed beside loopback; `keys` open the door."""

    host: str = "127.0.0.1"
    port: int = 11435
    keys: tuple[Secret, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    workers: int = 1
    drain_s: float = 8.0  # containers are killed ten seconds after they are told to stop
    max_connections: int = 2048
    max_body_bytes: int = 32 * 2**20


class PullSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    Downloads. `mirrors` maps a registry's host to a base URL that is asked first; only
    `registries` are asked, also where a mirror fails.
    """

    connections: int = 4
    limit_rate_bytes_s: int = 0
    reserve_disk_bytes: int = 2 * 10**9
    mirrors: dict[str, str] = {}
    registries: tuple[str, ...] = ("registry.ollama.ai", "hf.co", "huggingface.co")
    stall_s: float = 30.0


class BudgetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Daily limits on what leaves the machine; 0 is off."""

    usd_per_day: float = 0.0
    cloud_requests_per_day: int = 0


class EscalationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a human is told, and where. `telegram` is `BOT_TOKEN@CHAT_ID`, a secret."""

    same_error: int = 5
    failures: int = 10
    window_s: float = 600.0
    webhook: str = ""
    telegram: Secret | None = None
    include_prompts: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything; `state_dir` and `local.models_dir` are absolute paths once loaded."""

    order: tuple[str, ...] = ORDER
    privacy: Privacy = Privacy.ALLOW_CLOUD
    temperature: float | None = None
    max_tokens: int | None = None
    state_dir: str = ""
    serverless: str = "auto"
    offline: bool = False
    local: LocalSettings = LocalSettings()
    cascade: CascadeSettings = CascadeSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    providers: dict[str, ProviderSettings] = {}
    routes: dict[str, RouteSettings] = {}
    gateway: GatewaySettings = GatewaySettings()
    pull: PullSettings = PullSettings()
    budget: BudgetSettings = BudgetSettings()
    escalation: EscalationSettings = EscalationSettings()

    def __post_init__(self) -> None:
        """Take `privacy` in words too: compared with a member, they would allow everything."""
        try:
            privacy = Privacy(self.privacy)
        except ValueError:
            forms = " or ".join(f"`{one}`" for one in Privacy)
            raise ConfigError(f"`privacy` must be {forms}", setting="privacy") from None
        msgspec.structs.force_setattr(self, "privacy", privacy)

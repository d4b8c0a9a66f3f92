"""The one table of settings; README's table and `localfirst config` are made from it."""

from __future__ import annotations

from typing import Any

import msgspec

from localfirst.settings import Settings

DEFAULTS = Settings()


class Setting(msgspec.Struct, frozen=True):
    """
    One setting.

    `path` is its place in config.toml and, upper-cased after `LOCALFIRST_`, its variable;
    `variables` are the names people already have; `field` its name in `settings` where a
    unit was added.
    """

    path: str
    kind: str
    doc: str
    variables: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    field: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def variable(self) -> str:
        """The setting's own environment variable."""
        return "LOCALFIRST_" + self.path.upper().replace(".", "_")

    def default(self, place: msgspec.Struct = DEFAULTS) -> Any:
        """What holds where nobody said anything: the default in its *place* of `settings`."""
        section, _, name = self.path.rpartition(".")
        return getattr(getattr(place, section) if section else place, self.field or name)

    @property
    def secret(self) -> bool:
        """Whether its value is never shown."""
        return self.kind in {"secret", "secrets"}


S = Setting
ENGINES = ("auto", "ollama", "llamacpp", "none")

SETTINGS: tuple[Setting, ...] = (
    S("order", "list", "the ladder, top first", variables=("LLM_FALLBACK_ORDER",)),
    S(
        "privacy",
        "choice",
        "whether a request may leave this machine",
        choices=("allow-cloud", "local-only"),
    ),
    S(
        "temperature",
        "float",
        "when a request does not say",
        variables=("LLM_TEMPERATURE",),
        least=0,
        most=2,
    ),
    S("max_tokens", "int", "when a request does not say", variables=("LLM_MAX_TOKENS",), least=1),
    S("state_dir", "path", "history, cooldowns, logs, escalations"),
    S("serverless", "choice", "override the detection", choices=("auto", "1", "0")),
    S("offline", "bool", "treat the network as absent"),
    S("local.engine", "choice", "which local engine answers", choices=ENGINES),
    S("local.model", "model", "the local default model", variables=("OLLAMA_MODEL",)),
    S("local.last_resort", "model", "pulled when nothing else answers"),
    S("local.auto_pull", "bool", "whether the ladder may download"),
    S(
        "local.host",
        "ollama_host",
        "the Ollama to use",
        variables=("OLLAMA_HOST", "OLLAMA_BASE_URL"),
    ),
    S("local.hosts", "ollama_hosts", "further Ollama hosts"),
    S("local.models_dir", "path", "Ollama's model store", variables=("OLLAMA_MODELS",)),
    S("local.num_ctx", "int", "context in tokens, 0 chooses", least=0),
    S("local.start", "bool", "start an installed Ollama when none runs"),
    S("local.queue_limit", "int", "requests that may wait for the engine", least=1),
    S("local.queue_spill_s", "float", "wait before the next rung is tried, 0 off", least=0),
    S("local.keep_alive_s", "float", "seconds an idle model stays loaded", least=0),
    S("cascade.attempts_per_provider", "int", "tries for a passing fault", least=1, most=10),
    S("cascade.backoff_s", "floats", "waits between those tries"),
    S("cascade.deadline_s", "float", "for the whole ladder", least=0.1),
    S("cascade.wait_for_cooldown_s", "float", "when all are cooling", least=0),
    S("cascade.hedge_after_s", "float", "second request beside a slow one, 0 off", least=0),
    S("cascade.continue_cut_streams", "bool", "go on at the next provider"),
    S(
        "cascade.fallback",
        "bool",
        "false ends the ladder after its first rung",
        variables=("LLM_AUTO_FALLBACK",),
    ),
    S("cascade.cache_ttl_s", "float", "answer cache, 0 off", least=0),
    S("cascade.cache_bytes", "bytes", "size of the answer cache"),
    S("timeouts.connect_s", "float", "to open a connection", least=0.05),
    S("timeouts.first_token_s", "float", "to a cloud's first content", least=0.05),
    S("timeouts.stall_s", "float", "between two pieces of an answer", least=0.05),
    S("timeouts.load_s", "float", "for a local model to load", least=0.05),
    S(
        "timeouts.local_first_token_s",
        "float",
        "to a loaded local model's first content",
        variables=("OLLAMA_TIMEOUT",),
        least=0.05,
    ),
    S("gateway.host", "text", "address to listen on"),
    S("gateway.port", "int", "port to listen on, 0 chooses one", least=0, most=65535),
    S("gateway.keys", "secrets", "keys that open the door"),
    S("gateway.origins", "origins", "web pages that may ask"),
    S("gateway.hosts", "host_names", "Host names accepted beside loopback"),
    S("gateway.workers", "int", "processes", least=1, most=64),
    S("gateway.drain_s", "float", "for running answers at stop", least=0),
    S("gateway.max_connections", "int", "open connections", least=8),
    S("gateway.max_body_bytes", "bytes", "largest request"),
    S("pull.connections", "int", "parallel ranges", least=1, most=32),
    S("pull.limit_rate", "rate", "bytes per second, 0 unlimited", field="limit_rate_bytes_s"),
    S("pull.reserve_disk", "bytes", "left free on disk", field="reserve_disk_bytes"),
    S("pull.mirrors", "mirrors", "registry host to a base URL asked first"),
    S(
        "pull.registries",
        "list",
        "hosts a gateway client may pull from; asked where their mirror fails",
    ),
    S("pull.stall_s", "float", "without a byte before a part is asked again", least=0.1),
    S("budget.usd_per_day", "float", "spent on clouds, 0 off", least=0),
    S("budget.cloud_requests_per_day", "int", "sent to clouds, 0 off", least=0),
    S("escalation.same_error", "int", "times one error before a human is told", least=1),
    S("escalation.failures", "int", "failures in the window before", least=1),
    S("escalation.window_s", "float", "that window", least=1),
    S("escalation.webhook", "url", "URL to post to"),
    S("escalation.telegram", "secret", "`TOKEN@CHAT`"),
    S("escalation.include_prompts", "bool", "put prompts into the file"),
)

PROVIDER_FIELDS: tuple[Setting, ...] = (
    S("model", "text", "default model"),
    S("base_url", "text", "where `/chat/completions` is appended"),
    S("dialect", "choice", "wire dialect", choices=("openai", "anthropic", "gemini")),
    S("keys", "secrets", "`env:NAME` or the key"),
    S("concurrency", "int", "requests at once, 0 the catalogue's", least=0),
    S("enabled", "bool", "false takes it off the ladder"),
    S("timeout_s", "float", "to the first content, 0 the general one", least=0),
    S("rung", "choice", "`local` counts as this machine", choices=("local", "cloud")),
    S("account", "text", "account id in the base URL"),
)

ROUTE_FIELDS: tuple[Setting, ...] = (
    S("targets", "list", "`provider/model` in order"),
    S(
        "strategy",
        "choice",
        "how they are ordered",
        choices=("order", "balance", "fastest", "cheapest", "cloud_first"),
    ),
    S("weights", "floats", "for `balance`"),
)

# Provider id → the variables that hold its keys; the first is canonical. Sources: each
# provider's own quick-start and SDK.
PROVIDER_VARIABLES: dict[str, tuple[str, ...]] = {
    "groq": ("GROQ_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"),
    "openrouter": ("OPENROUTER_API_KEY",),
    "together": ("TOGETHER_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "openai": ("OPENAI_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "huggingface": ("HF_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "HUGGINGFACE_API_KEY"),
    "cerebras": ("CEREBRAS_API_KEY",),
    "nvidia": ("NVIDIA_API_KEY",),
    "cloudflare": ("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY"),
    "xai": ("XAI_API_KEY",),
    "fireworks": ("FIREWORKS_API_KEY",),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "ollama-cloud": ("OLLAMA_API_KEY",),
}

OWN_VARIABLES = {"LOCALFIRST_CONFIG", "LOCALFIRST_DEBUG"}
"""Variables of ours that are no settings."""

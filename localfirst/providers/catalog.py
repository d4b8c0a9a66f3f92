"""
The catalogue, and what the settings make of it.

`CATALOG` is data (`clouds`); `configured` lays the user's settings over it and says of each
provider whether it can be asked, and if not, why not and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from localfirst.errors import ConfigError
from localfirst.providers import keys
from localfirst.providers.address import check_base_url, is_private
from localfirst.providers.clouds import CLOUDS, PLAIN, native_gemini
from localfirst.providers.spec import ModelTiers as ModelTiers
from localfirst.providers.spec import Provider as Provider
from localfirst.providers.spec import ProviderSpec as ProviderSpec
from localfirst.providers.spec import State as State
from localfirst.providers.spec import wanting
from localfirst.settings import ProviderSettings, Settings
from localfirst.transport.http import is_loopback
from localfirst.types import Dialect, Rung

CATALOG: Mapping[str, ProviderSpec] = {spec.id: spec for spec in CLOUDS}

_NOT_CLOUDS = {"local", "ollama", "pull"}


def configured(settings: Settings) -> dict[str, Provider]:
    """
    Every provider by id: the catalogue's, then the user's own in the order of the settings.

    Raises:
        ConfigError: a base URL that cannot be meant, or a provider without one.
    """
    own = [name for name in settings.providers if name not in CATALOG]
    return {
        name: _provider(name, settings.providers.get(name, ProviderSettings()))
        for name in (*CATALOG, *own)
        if name not in _NOT_CLOUDS
    }


def _provider(name: str, given: ProviderSettings) -> Provider:
    custom = name not in CATALOG
    spec = CATALOG.get(name) or _custom(name, given)
    dialect = _dialect(spec, given)
    if dialect is Dialect.GEMINI:
        spec = native_gemini(spec)
    base_url = given.base_url or spec.base_url.replace("{account}", given.account or "{account}")
    missing_account = "{account}" in base_url
    if given.base_url:
        base_url = check_base_url(name, given.base_url)
        if dialect is Dialect.GEMINI:
            base_url = base_url.removesuffix("/openai")
    host = urlsplit(base_url).hostname or ""
    loopback = is_loopback(host)
    usable = keys.usable(given.keys, own_server=custom or loopback)
    state, reason = _state(spec, given, bool(usable), loopback, missing_account)
    models = ((given.model,) if given.model else ()) + spec.models.all
    return Provider(
        id=name,
        title=spec.title,
        base_url=base_url,
        dialect=dialect,
        spec=spec,
        state=state,
        reason=reason,
        keys=usable,
        unset=given.unset,
        default_models=tuple(dict.fromkeys(models)),
        context_tokens=spec.windows.get(given.model, 0) if given.model else spec.context_tokens,
        windows=spec.windows,
        # What the catalogue knows of its own models says nothing about another one.
        capabilities=spec.capabilities if given.model in {"", *spec.models.all} else frozenset(),
        concurrency=given.concurrency or spec.concurrency,
        timeout_s=given.timeout_s or spec.first_token_s,
        rung=Rung.LOCAL if given.rung == "local" else Rung.CLOUD,
        loopback=loopback,
        private=is_private(host),
        custom=custom,
    )


def _dialect(spec: ProviderSpec, given: ProviderSettings) -> Dialect:
    """What is said, else what the address says: Gemini's own API is at `…/v1beta`."""
    if given.dialect:
        return Dialect(given.dialect)
    if spec.dialect is Dialect.OPENAI and given.base_url.rstrip("/").endswith("/v1beta"):
        return Dialect.GEMINI
    return spec.dialect


def _custom(name: str, given: ProviderSettings) -> ProviderSpec:
    """A spec for a server that only the user knows, OpenAI-compatible unless it says else."""
    if not given.base_url:
        setting = f"providers.{name}.base_url"
        raise ConfigError(f"`{setting}` is needed: `{name}` is no known cloud", setting=setting)
    stem = name.upper().replace("-", "_")
    return ProviderSpec(
        id=name,
        title=name,
        base_url=given.base_url,
        key_vars=(f"{stem}_API_KEY",),
        models=ModelTiers(),
        dated="",
        quirks=PLAIN,
    )


def _state(
    spec: ProviderSpec, given: ProviderSettings, has_key: bool, loopback: bool, no_account: bool
) -> tuple[State, str]:
    variable = spec.key_vars[0]
    if not given.enabled:
        return State.DISABLED, given.why_off or f"`providers.{spec.id}.enabled` is false"
    if given.unset and not has_key:
        return State.UNSET, wanting(spec.id, given.unset)
    if given.keys and not has_key:
        labels = ", ".join(secret.label for secret in given.keys)
        return State.PLACEHOLDER, f"{labels} holds a placeholder, not a key"
    # A server on this machine, or one that only the user knows, may want no key at all.
    if not has_key and not loopback and not (spec.id not in CATALOG and not given.keys):
        return State.NO_KEY, f"set {variable}"
    if no_account:
        return State.NO_ACCOUNT, f"set {spec.id.upper()}_ACCOUNT_ID"
    return State.READY, ""

"""Read the layers, choose the highest of each setting, and remember where it stood."""

from __future__ import annotations

import codecs
import io
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from localfirst.config import exposure, table, values
from localfirst.config.faults import homeless, unknown, wrong
from localfirst.config.providers import load_providers, points_at
from localfirst.config.routes import load_routes
from localfirst.config.table import SETTINGS, Setting
from localfirst.settings import ProviderSettings, RouteSettings, Secret, Settings

LOOP = "its `base_url` is this gateway"
CONFIG_BYTES = 2**20
"""A configuration larger than this is no configuration."""


class Source(msgspec.Struct, frozen=True):
    """A value as it may be shown, and where it came from."""

    shown: str
    source: str


class Layer(msgspec.Struct, frozen=True):
    """Raw values by setting path, each with the name it was given under."""

    values: dict[str, tuple[Any, str]]


class Loaded(msgspec.Struct, frozen=True):
    """Settings, for every path its shown value and source, and what to tell the user of it."""

    settings: Settings
    sources: dict[str, Source]
    config_file: str = ""
    warnings: tuple[str, ...] = ()


def load(
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    cwd: Path | None = None,
) -> Loaded:
    """
    Read every layer once.

    Args:
        environ: variables; the process' own when None.
        overrides: setting paths from flags or call arguments (`{"gateway.port": 8080}`).
        cwd: where `.env` is looked for; the working directory when None.

    Raises:
        ConfigError: an unknown key or a bad value, naming setting, source and accepted form.
    """
    own = dict(os.environ if environ is None else environ)
    explicit = own.get("LOCALFIRST_CONFIG", "")
    config_file = Path(explicit).expanduser() if explicit else user_config()
    document = read_toml(config_file, required=bool(explicit))
    dotenv_file = (cwd or Path.cwd()) / ".env"
    dotenv = {} if explicit else read_dotenv(dotenv_file)
    environment = {**{k: (v, f".env {k}") for k, v in dotenv.items()}}
    environment |= {k: (v, f"env {k}") for k, v in own.items()}

    layers = [
        from_document(document, str(config_file)),
        from_environment(environment),
        Layer({path: (value, "argument") for path, value in (overrides or {}).items()}),
    ]
    refuse_unknown_variables(environment)
    chosen, sources = choose(layers, environment)
    providers, shown_providers = load_providers(document, str(config_file), environment)
    rungs = {"local", *table.PROVIDER_VARIABLES, *providers}
    routes, shown_routes = load_routes(document, str(config_file), rungs)
    settings = build(chosen, providers, routes)
    settings = adjust(settings, environment, order_source=sources["order"].source)
    sources |= effective(settings, sources, environment)
    sources |= {path: Source(*pair) for path, pair in (shown_providers | shown_routes).items()}
    told = tuple(exposure.warnings(config_file, document, dotenv_file, dotenv))
    return Loaded(settings, sources, str(config_file), told)


def variable(name: str) -> str:
    """A variable that is no setting and that terminals have always known, such as `NO_COLOR`."""
    return os.environ.get(name, "")


def user_config() -> Path:
    """The user's own config.toml, by platform."""
    import platformdirs

    try:
        folder = platformdirs.user_config_dir("localfirst", appauthor=False)
    except RuntimeError as error:
        raise homeless("LOCALFIRST_CONFIG") from error
    return Path(folder) / "config.toml"


def read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    """The document, empty when a file nobody asked for is absent."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES + 1)
    except FileNotFoundError:
        if required:
            form = f"a TOML file that is there, unlike `{path}`"
            raise wrong("LOCALFIRST_CONFIG", "the environment", form) from None
        return {}
    except OSError as error:
        raise wrong("config.toml", str(path), f"a readable TOML file ({error.strerror})") from error
    try:
        if len(data) > CONFIG_BYTES:
            raise ValueError("larger than 1 MiB")
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise wrong("config.toml", str(path), f"a TOML document: {error}") from error


def read_dotenv(path: Path) -> dict[str, str]:
    """
    The variables of a `.env`; nothing is expanded into the process.

    It may be another program's, so that what is not UTF-8 in it is no reason to stop; what
    Windows' PowerShell writes is UTF-16.
    """
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        data = path.read_bytes()
    except OSError as error:
        raise wrong(".env", str(path), f"a readable file ({error.strerror})") from error
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf_16 else "utf-8-sig", "replace")
    found = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in found.items() if value}


def from_document(document: Mapping[str, Any], source: str) -> Layer:
    """Flatten config.toml, refusing what no setting is called."""
    known = {setting.path for setting in SETTINGS}
    sections = {path.partition(".")[0] for path in known if "." in path}
    found: dict[str, tuple[Any, str]] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            path = f"{prefix}{name}"
            if path in known:
                found[path] = (value, source)
            elif path in {"providers", "routes"}:
                continue
            elif path in sections and isinstance(value, Mapping):
                walk(value, f"{path}.")
            elif path in sections:
                raise wrong(path, source, f"a table, `[{path}]`")
            else:
                raise unknown(path, source, ["providers", "routes", *sections, *known])

    walk(document, "")
    return Layer(found)


def from_environment(environment: Mapping[str, tuple[str, str]]) -> Layer:
    """Own variables first, then the names people already have; empty counts as unset."""
    found: dict[str, tuple[Any, str]] = {}
    for setting in SETTINGS:
        for name in (setting.variable, *setting.variables):
            value, source = environment.get(name, ("", ""))
            if value.strip():
                found[setting.path] = (value, source)
                break
    return Layer(found)


def refuse_unknown_variables(environment: Mapping[str, tuple[str, str]]) -> None:
    """A misspelt `LOCALFIRST_…` would otherwise be silently ignored."""
    known = {setting.variable for setting in SETTINGS} | table.OWN_VARIABLES
    for name, (_, source) in environment.items():
        if not name.startswith("LOCALFIRST_") or name in known:
            continue
        if not name.startswith(("LOCALFIRST_PROVIDERS_", "LOCALFIRST_TEST_")):
            raise unknown(name, source, sorted(known))


def choose(
    layers: Iterable[Layer], environment: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, Any], dict[str, Source]]:
    """For each setting the highest layer's value, parsed."""
    chosen: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    ordered = list(layers)
    for path in (path for layer in ordered for path in layer.values):
        if path not in {setting.path for setting in SETTINGS}:
            raise unknown(path, "argument", [setting.path for setting in SETTINGS])
    for setting in SETTINGS:
        value, source = setting.default(), "default"
        for layer in ordered:
            value, source = layer.values.get(setting.path, (value, source))
        if source != "default":
            value = parsed(setting, value, source, environment)
        chosen[setting.path] = value
        sources[setting.path] = Source(shown(setting, value), source)
    return chosen, sources


def parsed(
    setting: Setting, value: Any, source: str, environment: Mapping[str, tuple[str, str]]
) -> Any:
    """One value, or the error that names it."""
    try:
        result = values.parse(setting, value)
    except ValueError as error:
        raise wrong(setting.path, source, str(error)) from None
    if setting.kind == "secrets":
        return tuple(resolve(secret, setting.path, source, environment) for secret in result)
    if setting.kind == "secret" and result is not None:
        secret = resolve(result, setting.path, source, environment)
        if "@" not in secret.reveal():
            raise wrong(setting.path, source, setting.doc)
        return secret
    return result


def resolve(
    secret: Secret, path: str, source: str, environment: Mapping[str, tuple[str, str]]
) -> Secret:
    """Follow `env:NAME`, and label the secret by where it stands."""
    written = secret.reveal()
    if not written.startswith("env:"):
        return Secret(written, source.removeprefix("env ").removeprefix(".env "))
    name = written.removeprefix("env:")
    value, _ = environment.get(name, ("", ""))
    if not value.strip():
        raise wrong(path, source, f"`{written}`, but the variable `{name}` is not set")
    return Secret(value.strip(), name)


def shown(setting: Setting, value: Any) -> str:
    """A value for people; a secret is only ever `set`."""
    if setting.secret:
        return "set" if value else "not set"
    return values.shown(value)


def build(
    chosen: Mapping[str, Any],
    providers: dict[str, ProviderSettings],
    named: dict[str, RouteSettings],
) -> Settings:
    """Nest the flat values into the structs."""
    nested: dict[str, Any] = {"providers": providers, "routes": named}
    types = {field.name: type(field.default) for field in msgspec.structs.fields(Settings)}
    sections: dict[str, dict[str, Any]] = {}
    for setting in SETTINGS:
        section, _, name = setting.path.rpartition(".")
        place = sections.setdefault(section, {})
        place[setting.field or name] = chosen[setting.path]
    for section, content in sections.items():
        if section:
            nested[section] = types[section](**content)
        else:
            nested |= content
    return Settings(**nested)


def adjust(
    settings: Settings, environment: Mapping[str, tuple[str, str]], *, order_source: str
) -> Settings:
    """Apply what concerns several settings: the ladder's names and first rung, loops, folders."""
    order = tuple({"ollama": "local"}.get(rung.lower(), rung.lower()) for rung in settings.order)
    known = ["local", *table.PROVIDER_VARIABLES, *settings.providers, "pull"]
    for rung in order:
        if rung not in known:
            raise unknown(rung, order_source, known)
    # Without a ladder, routes and models named with their provider can still be asked for.
    if not order and not settings.routes and not settings.providers:
        raise wrong("order", order_source, "at least one rung")
    if len(set(order)) != len(order):
        raise wrong("order", order_source, "each rung at most once")
    if order_source == "default":
        order = joined(order, settings.providers)
    first, source = environment.get("LLM_DEFAULT_PROVIDER", ("", ""))
    first = {"ollama": "local"}.get(first.strip().lower(), first.strip().lower())
    if first:
        if first not in known:
            raise wrong("LLM_DEFAULT_PROVIDER", source, "one of " + ", ".join(known))
        order = (first, *(rung for rung in order if rung != first))
    return msgspec.structs.replace(
        settings,
        order=order,
        providers=without_loops(settings),
        state_dir=settings.state_dir or state_dir(),
    )


def effective(
    settings: Settings, sources: Mapping[str, Source], environment: Mapping[str, tuple[str, str]]
) -> dict[str, Source]:
    """What `adjust` has chosen, with who had a say in it."""
    first, named = environment.get("LLM_DEFAULT_PROVIDER", ("", ""))
    order = sources["order"].source + (f", {named}" if first.strip() else "")
    return {
        "order": Source(values.shown(settings.order), order),
        "state_dir": Source(settings.state_dir, sources["state_dir"].source),
    }


def joined(order: tuple[str, ...], providers: Mapping[str, ProviderSettings]) -> tuple[str, ...]:
    """Nobody wrote an order: every provider with a key or an address joins the default one."""
    extra = [name for name in providers if name not in order]
    near = [name for name in extra if providers[name].rung == "local"]
    far = [name for name in extra if name not in near and usable(providers[name])]
    head = [rung for rung in order if rung == "local"]
    body = [rung for rung in order if rung not in {"local", "pull"}]
    tail = [rung for rung in order if rung == "pull"]
    return (*head, *near, *body, *far, *tail)


def usable(provider: ProviderSettings) -> bool:
    """Whether there is anything to ask it with, or would be if its variable were set."""
    return bool(provider.keys or provider.base_url or provider.unset)


def without_loops(settings: Settings) -> dict[str, ProviderSettings]:
    """Switch a provider off whose base URL is this very gateway: it would ask itself for ever."""
    gateway = settings.gateway
    return {
        name: msgspec.structs.replace(provider, enabled=False, why_off=LOOP)
        if points_at(provider.base_url, gateway.host, gateway.port)
        else provider
        for name, provider in settings.providers.items()
    }


def state_dir() -> str:
    """Where history lives unless said otherwise."""
    import platformdirs

    try:
        return platformdirs.user_state_dir("localfirst", appauthor=False)
    except RuntimeError as error:
        raise homeless("LOCALFIRST_STATE_DIR") from error

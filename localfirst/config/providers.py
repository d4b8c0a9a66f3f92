"""The clouds' part of the configuration: keys, models and addresses from files and variables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from localfirst.config import values
from localfirst.config.faults import unknown, wrong
from localfirst.config.loopback import is_loopback
from localfirst.config.table import PROVIDER_FIELDS, PROVIDER_VARIABLES
from localfirst.settings import ProviderSettings, Secret

Environment = Mapping[str, tuple[str, str]]
"""Variable → its value and the source to name (`env X`, `.env X`)."""

MOST_KEYS = 16
FIELDS = {setting.path: setting for setting in PROVIDER_FIELDS}
PLAIN_VARIABLES = {"model": "MODEL", "base_url": "BASE_URL", "timeout_s": "TIMEOUT"}


def load_providers(
    document: Mapping[str, Any], source: str, environment: Environment
) -> tuple[dict[str, ProviderSettings], dict[str, tuple[str, str]]]:
    """
    Every provider that a file or a variable speaks of.

    Returns:
        settings by provider id, and for each `providers.ID.FIELD` its shown value and source.
    """
    tables = document.get("providers", {})
    if not isinstance(tables, Mapping):
        raise wrong("providers", source, "a table such as `[providers.groq]`")
    refuse_misspelt_variables([*PROVIDER_VARIABLES, *tables], environment)
    found: dict[str, ProviderSettings] = {}
    shown: dict[str, tuple[str, str]] = {}
    for provider in [
        *PROVIDER_VARIABLES,
        *(name for name in tables if name not in PROVIDER_VARIABLES),
    ]:
        check_table(provider, tables.get(provider, {}), source)
        given = collect(provider, tables.get(provider, {}), source, environment)
        if given:
            found[provider] = ProviderSettings(
                **{name: value for name, (value, _) in given.items()}
            )
        for name, (value, where) in given.items():
            if name != "unset":
                text = labels(value) if name == "keys" else values.shown(value)
                shown[f"providers.{provider}.{name}"] = (text, where)
            elif "keys" not in given:
                told = ", ".join(value)
                shown[f"providers.{provider}.keys"] = (f"not set ({told})", where)
    return found, shown


def collect(
    provider: str, table: Mapping[str, Any], source: str, environment: Environment
) -> dict[str, tuple[Any, str]]:
    """The fields of one provider that somebody set, highest layer first."""
    given: dict[str, tuple[Any, str]] = {}
    for name, setting in FIELDS.items():
        if name == "keys":
            continue
        raw, where = variable_of(provider, name, environment) or (table.get(name), source)
        if raw is None or raw == "":
            continue
        try:
            given[name] = (values.parse(setting, raw), where)
        except ValueError as error:
            raise wrong(f"providers.{provider}.{name}", where, str(error)) from None
    keys, unset, where = keys_of(provider, table, source, environment)
    if keys:
        given["keys"] = (keys, where)
    if unset:
        given["unset"] = (unset, where)
    return given


def variable_of(provider: str, field: str, environment: Environment) -> tuple[str, str] | None:
    """Our own variable for a field, else the one the provider's users know."""
    for name in names_of(provider, field):
        value, where = environment.get(name, ("", ""))
        if value.strip():
            return value, where
    return None


def names_of(provider: str, field: str) -> list[str]:
    """The variables that a field is read from, the first that is set wins."""
    stem = provider.upper().replace("-", "_")
    names = [f"LOCALFIRST_PROVIDERS_{stem}_{field.upper()}"]
    if field in PLAIN_VARIABLES:
        names.append(f"{stem}_{PLAIN_VARIABLES[field]}")
    if field == "account":
        names.append(f"{stem}_ACCOUNT_ID")
    return names


def keys_of(
    provider: str, table: Mapping[str, Any], source: str, environment: Environment
) -> tuple[tuple[Secret, ...], tuple[str, ...], str]:
    """
    The keys of one provider, labelled by where they stand; variables win over the file.

    With them the variables that should hold further ones and hold nothing, and the source.
    """
    stem = provider.upper().replace("-", "_")
    own = f"LOCALFIRST_PROVIDERS_{stem}_KEYS"
    written, where = environment.get(own, ("", ""))
    if "env:" in written:
        return *followed(provider, written, where, environment), where
    for name in (own, *PROVIDER_VARIABLES.get(provider, (f"{stem}_API_KEY",))):
        found = keys_in(name, environment)
        if found:
            return unique(found), (), environment[found[0].label.split("#")[0]][1]
    return *followed(provider, table.get("keys", ()), source, environment), source


def followed(
    provider: str, written: Any, source: str, environment: Environment
) -> tuple[tuple[Secret, ...], tuple[str, ...]]:
    """The keys that are *written*, out or as `env:NAME`, and the names that hold none."""
    try:
        listed = values.words(written)
    except ValueError as error:
        raise wrong(f"providers.{provider}.keys", source, str(error)) from None
    found: list[Secret] = []
    unset: list[str] = []
    for number, word in enumerate(listed, 1):
        if not word.startswith("env:"):
            found.append(Secret(word, f"{provider}#{number}"))
        elif held := keys_in(word.removeprefix("env:"), environment):
            found += held
        else:
            unset.append(word.removeprefix("env:"))
    return unique(found), tuple(unset)


def keys_in(name: str, environment: Environment) -> list[Secret]:
    """`NAME=a,b,c` and `NAME_2` … as labelled secrets."""
    found: list[Secret] = []
    for variable in (name, *(f"{name}_{number}" for number in range(1, MOST_KEYS))):
        words = [
            word
            for word in (clean(w) for w in environment.get(variable, ("", ""))[0].split(","))
            if word
        ]
        for number, word in enumerate(words, 1):
            found.append(Secret(word, variable if len(words) == 1 else f"{variable}#{number}"))
    return found[:MOST_KEYS]


def clean(word: str) -> str:
    """A key without the quotes and blanks that copies bring along."""
    return word.strip().strip("'\"").strip()


def unique(secrets: list[Secret]) -> tuple[Secret, ...]:
    """Each key once; the first label stays."""
    seen: dict[str, Secret] = {}
    for secret in secrets:
        seen.setdefault(secret.reveal(), secret)
    return tuple(seen.values())


def labels(secrets: tuple[Secret, ...]) -> str:
    """`set (GROQ_API_KEY, GROQ_API_KEY_2)`: names, never values."""
    return "set (" + ", ".join(secret.label for secret in secrets) + ")"


def check_table(provider: str, table: Any, source: str) -> None:
    """Refuse a provider's name or field that cannot be meant."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", provider) or provider in {
        "local",
        "pull",
        "ollama",
    }:
        raise wrong(f"providers.{provider}", source, "a name of lower-case letters, digits and `-`")
    if not isinstance(table, Mapping):
        raise wrong(f"providers.{provider}", source, "a table")
    for field in table:
        if field not in FIELDS:
            raise unknown(
                f"providers.{provider}.{field}",
                source,
                [f"providers.{provider}.{name}" for name in FIELDS],
            )
    if provider not in PROVIDER_VARIABLES and not table.get("base_url"):
        near = difflib.get_close_matches(provider, PROVIDER_VARIABLES, n=1)
        meant = f" (did you mean `{near[0]}`?)" if near else ""
        raise wrong(
            f"providers.{provider}.base_url",
            source,
            f"a URL, since localfirst does not know this provider{meant}",
        )


def refuse_misspelt_variables(providers: list[str], environment: Environment) -> None:
    """`LOCALFIRST_PROVIDERS_…` must name a provider and a field."""
    known = {
        f"LOCALFIRST_PROVIDERS_{provider.upper().replace('-', '_')}_{field.upper()}"
        for provider in providers
        for field in FIELDS
    }
    for name, (_, where) in environment.items():
        if name.startswith("LOCALFIRST_PROVIDERS_") and name not in known:
            raise unknown(name, where, sorted(known))


def points_at(base_url: str, host: str, port: int) -> bool:
    """Whether *base_url* is this very gateway: `OPENAI_BASE_URL` often is, and would loop."""
    try:
        parts = urlsplit(base_url)
        named = parts.hostname or ""
        return (named == host or is_loopback(named)) and parts.port == port
    except ValueError:  # no URL at all, which `providers.address` says better
        return False

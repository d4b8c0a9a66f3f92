"""What a program that starts later must be given, so that it reads what was read here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from localfirst.config.load import Loaded, variable
from localfirst.config.providers import names_of
from localfirst.config.table import PROVIDER_FIELDS, SETTINGS

WAY_OUT = tuple(
    spelling
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for spelling in (name, name.lower())
)
"""No settings of ours: every program on a network with a proxy reads them."""
AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# A proxy may be written without its `http://`.
_PASSWORD = re.compile(r"//[^/@\s]+@|^[^/@\s]+:[^/@\s]+@")


class Carried(msgspec.Struct, frozen=True):
    """
    The variables that count and are no secrets, and the folder of a `.env` that was read.

    `secrets` names the variables with keys, `passwords` those of proxies with one in their
    address: they do not belong into another program's file.
    """

    variables: dict[str, str]
    secrets: tuple[str, ...]
    passwords: tuple[str, ...]
    folder: Path | None


def carried(loaded: Loaded) -> Carried:
    """What *loaded* took from this process' environment and working directory."""
    where = Path.cwd()
    held = {name: value for name in open_variables(loaded) if (value := variable(name)).strip()}
    plain = {name: value for name, value in held.items() if not _PASSWORD.search(value)}
    if config := plain.get("LOCALFIRST_CONFIG"):
        plain["LOCALFIRST_CONFIG"] = str(where / Path(config).expanduser())
    for name in AUTHORITIES:
        if name in plain:
            plain[name] = str(where / plain[name])
    read = [source.source for source in loaded.sources.values()]
    named = {source.removeprefix("env ") for source in read if source.startswith("env ")}
    dotenv = any(source.startswith(".env ") for source in read)
    return Carried(
        variables=plain,
        secrets=tuple(sorted(named - set(plain))),
        passwords=tuple(name for name in WAY_OUT if name in held and name not in plain),
        folder=where if dotenv else None,
    )


def open_variables(loaded: Loaded) -> Iterator[str]:
    """Every variable that is read and holds no key."""
    yield from ("LOCALFIRST_CONFIG", "LLM_DEFAULT_PROVIDER", *WAY_OUT, *AUTHORITIES)
    for setting in SETTINGS:
        if not setting.secret:
            yield from (setting.variable, *setting.variables)
    for path in loaded.sources:
        kind, _, rest = path.partition(".")
        if kind == "providers":
            for field in PROVIDER_FIELDS:
                if not field.secret:
                    yield from names_of(rest.partition(".")[0], field.path)

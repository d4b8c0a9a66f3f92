"""What a program that starts later must be given, so that it reads what was read here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from localfirst.config.load import Loaded, variable
from localfirst.config.providers import names_of
from localfirst.config.table import PROVIDER_FIELDS, SETTINGS


class Carried(msgspec.Struct, frozen=True):
    """
    The variables that count and are no secrets, and the folder of a `.env` that was read.

    `secrets` names the variables with keys: they do not belong into another program's file.
    """

    variables: dict[str, str]
    secrets: tuple[str, ...]
    folder: Path | None


def carried(loaded: Loaded) -> Carried:
    """What *loaded* took from this process' environment and working directory."""
    where = Path.cwd()
    plain = {name: value for name in open_variables(loaded) if (value := variable(name)).strip()}
    if config := plain.get("LOCALFIRST_CONFIG"):
        plain["LOCALFIRST_CONFIG"] = str(where / Path(config).expanduser())
    read = [source.source for source in loaded.sources.values()]
    named = {source.removeprefix("env ") for source in read if source.startswith("env ")}
    dotenv = any(source.startswith(".env ") for source in read)
    return Carried(plain, tuple(sorted(named - set(plain))), where if dotenv else None)


def open_variables(loaded: Loaded) -> Iterator[str]:
    """Every variable that is read and holds no key."""
    yield from ("LOCALFIRST_CONFIG", "LLM_DEFAULT_PROVIDER")
    for setting in SETTINGS:
        if not setting.secret:
            yield from (setting.variable, *setting.variables)
    for path in loaded.sources:
        kind, _, rest = path.partition(".")
        if kind == "providers":
            for field in PROVIDER_FIELDS:
                if not field.secret:
                    yield from names_of(rest.partition(".")[0], field.path)

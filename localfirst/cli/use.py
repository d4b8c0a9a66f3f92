"""`localfirst use`: put a rung first, in the configuration file."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path

from localfirst.cli import drafts, render, session
from localfirst.config import PROVIDER_VARIABLES
from localfirst.errors import ConfigError
from localfirst.settings import ORDER

ORDER_LINE = re.compile(r"^order\s*=\s*\[[^\]]*\][^\n]*\n?", re.MULTILINE)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="`local`, a provider, or `auto` for default")


def run(given: argparse.Namespace) -> int:
    """Write `order` with NAME first; the rest of the file stays as it is."""
    found = session.loaded(given)
    name = {"ollama": "local"}.get(given.name, given.name)
    file = Path(found.config_file)
    settings = found.settings
    order = () if name == "auto" else first(name, settings.order, set(settings.providers))
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    try:
        drafts.write(file, changed(text, order), mode=0o600)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"`order` in `{file}` is written in a way that cannot be changed here",
            setting="order",
            source=str(file),
            hint=f"put `{name}` first there yourself",
        ) from error
    now = session.loaded(given)
    render.say(f"{file}: order is {', '.join(now.settings.order)}")
    source = now.sources["order"].source
    if source not in {"default", str(file)}:
        render.warn(f"`order` is set by {source}, which goes before the file")
    return 0


def first(name: str, order: tuple[str, ...], own: set[str]) -> tuple[str, ...]:
    """*order* with *name* first; raises for a name that is no rung."""
    known = {*order, *ORDER, *PROVIDER_VARIABLES, *own}
    if name not in known:
        raise ConfigError(
            f"`{name}` is no rung of the ladder",
            setting="order",
            hint="one of " + ", ".join(f"`{one}`" for one in sorted(known)),
            code="usage",
        )
    return (name, *(rung for rung in order if rung != name))


def changed(text: str, order: tuple[str, ...]) -> str:
    """The file's text with another `order`, at its top where it had none."""
    head, mark, tables = text.partition("\n[") if not text.startswith("[") else ("", "", text)
    head = ORDER_LINE.sub("", head + "\n" if head else "").rstrip("\n")
    line = f"order = {json.dumps(list(order))}\n" if order else ""
    made = line + (head + "\n" if head else "") + (mark.lstrip("\n") if mark else "") + tables
    tomllib.loads(made)
    return made

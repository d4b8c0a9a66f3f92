"""`localfirst config`: every setting, its value, and where it comes from."""

from __future__ import annotations

import argparse

from localfirst.cli import render, session
from localfirst.config import SETTINGS, Loaded
from localfirst.config.values import NOTHING


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", nargs="?", default="", help="only this setting or section")
    parser.add_argument("--changed", action="store_true", help="only what is not the default")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(given: argparse.Namespace) -> int:
    """Show the table; exit code 2 comes from a setting that is wrong."""
    found = session.loaded(given)
    rows = chosen(found, given.path, changed=given.changed)
    if not rows and given.path:
        render.problem(
            f"`{given.path}` is not a setting", hint="run `localfirst config`", code="usage"
        )
        return 2
    if given.json:
        written = {NOTHING: None}
        render.as_json(
            {path: {"value": written.get(v, v), "source": source} for path, v, source, _ in rows}
        )
        return 0
    render.table([row[:3] for row in rows], head=("setting", "value", "source"))
    render.say()
    render.say(f"config file: {found.config_file}")
    return 0


def chosen(found: Loaded, path: str, *, changed: bool) -> list[tuple[str, str, str, str]]:
    """`(path, value, source, doc)` of the settings asked for, in the table's order."""
    docs = {setting.path: setting.doc for setting in SETTINGS}
    return [
        (name, source.shown, source.source, docs.get(name, ""))
        for name, source in found.sources.items()
        if (not path or name == path or name.startswith(f"{path}."))
        and not (changed and source.source == "default")
    ]

"""The named ladders of `[routes.NAME]`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from localfirst.config import values
from localfirst.config.faults import nearest, unknown, wrong
from localfirst.config.table import ROUTE_FIELDS
from localfirst.models import names
from localfirst.settings import RouteSettings

FIELDS = {setting.path: setting for setting in ROUTE_FIELDS}
TAKEN = {"auto", "local"}
"""Names of models that mean something already."""


def load_routes(
    document: Mapping[str, Any], source: str, rungs: Collection[str]
) -> tuple[dict[str, RouteSettings], dict[str, tuple[str, str]]]:
    """
    Every route of *document*; *rungs* are the providers that a target may name.

    Returns:
        routes by name, and for each `routes.NAME.FIELD` its shown value and source.
    """
    tables = document.get("routes", {})
    if not isinstance(tables, Mapping):
        raise wrong("routes", source, "a table such as `[routes.fast]`")
    found: dict[str, RouteSettings] = {}
    shown: dict[str, tuple[str, str]] = {}
    for name, given in tables.items():
        if name in TAKEN:
            raise wrong(f"routes.{name}", source, f"another name: `{name}` means a ladder already")
        given = given if isinstance(given, Mapping) else {"targets": given}
        built = {field: parsed(f"routes.{name}", field, given[field], source) for field in given}
        check_targets(f"routes.{name}.targets", built.get("targets", ()), source, rungs)
        found[name] = RouteSettings(**built)
        for field, value in built.items():
            shown[f"routes.{name}.{field}"] = (values.shown(value), source)
    return found, shown


def parsed(route: str, field: str, value: Any, source: str) -> Any:
    """One field of a route, or the error that names it."""
    if field not in FIELDS:
        raise unknown(f"{route}.{field}", source, [f"{route}.{name}" for name in FIELDS])
    try:
        return values.parse(FIELDS[field], value)
    except ValueError as error:
        raise wrong(f"{route}.{field}", source, str(error)) from None


def check_targets(path: str, targets: tuple[str, ...], source: str, rungs: Collection[str]) -> None:
    """
    Refuse a target that names no provider, or nothing that could be installed here.

    Taken for a model's name it would open the whole ladder, which a route is there to close.
    """
    if not targets:
        raise wrong(path, source, "at least one `provider/model`")
    for target in targets:
        provider, _, model = target.partition("/")
        if provider not in rungs or not model:
            near = "" if provider in rungs else nearest(provider, rungs)
            form = f"`provider/model` in place of `{target}`"
            raise wrong(path, source, form + (f"; did you mean `{near}/{model}`?" if near else ""))
        # What a cloud calls its models is its own matter.
        if provider == "local" and not names.is_valid(model):
            form = "a model's name such as `local/llama3.2:3b`"
            raise wrong(path, source, f"{form} in place of `{target}`")

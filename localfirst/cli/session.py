"""A command's way into the house: settings with its own flags on top, and a client on them."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from localfirst import config
from localfirst.cli import render
from localfirst.config import Loaded
from localfirst.errors import ConfigError

if TYPE_CHECKING:
    from localfirst.client import AsyncClient


def loaded(given: argparse.Namespace, extra: Mapping[str, object] | None = None) -> Loaded:
    """
    The settings of this run: files, variables, *extra*, then `--set`.

    Raises:
        ConfigError: a value is wrong, or a `--set` is not `PATH=VALUE`.
    """
    overrides = {path: value for path, value in (extra or {}).items() if value is not None}
    for word in given.set:
        path, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(
                f"`--set {word}` has no value",
                source="--set",
                hint="write it as `--set PATH=VALUE`, for example `--set privacy=local-only`",
                code="usage",
            )
        overrides[path.strip()] = value
    found = config.load(overrides=overrides)
    for line in found.warnings:
        render.warn(line)
    return found


@asynccontextmanager
async def client(
    given: argparse.Namespace, extra: Mapping[str, object] | None = None
) -> AsyncIterator[AsyncClient]:
    """An `AsyncClient` on this run's settings, closed with all that it started."""
    settings = loaded(given, extra).settings
    from localfirst.client import AsyncClient

    async with AsyncClient(settings) as opened:
        yield opened

"""Whether a file that holds keys can be read by others on this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from localfirst.config.table import SETTINGS

KEY_ENDINGS = ("_KEY", "_KEYS", "_TOKEN")
_SECRET = frozenset(setting.path.rpartition(".")[2] for setting in SETTINGS if setting.secret)
_SECRET_VARIABLES = frozenset(setting.variable for setting in SETTINGS if setting.secret)


def warnings(
    config_file: Path, document: Mapping[str, Any], dotenv_file: Path, dotenv: Mapping[str, str]
) -> Iterator[str]:
    """A line for each file whose keys others can read, with the command that closes it."""
    if _holds_keys(document):
        yield from _readable(config_file)
    if any(_names_key(name.upper()) for name in dotenv):
        yield from _readable(dotenv_file)


def _names_key(variable: str) -> bool:
    return variable in _SECRET_VARIABLES or variable.rstrip("_0123456789").endswith(KEY_ENDINGS)


def _holds_keys(node: Mapping[str, Any]) -> bool:
    """Whether a document has a key written out; `env:NAME` only says where one is."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            if _holds_keys(value):
                return True
        elif name in _SECRET or name == "keys":
            words = value if isinstance(value, list) else [value]
            if any(word and not str(word).startswith("env:") for word in words):
                return True
    return False


def _readable(path: Path) -> Iterator[str]:
    if os.name != "posix":
        return
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        yield f"others on this machine can read the keys in `{path}`: `chmod 600 {path}`"

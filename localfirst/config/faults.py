"""The two ways a setting can be wrong, worded once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from localfirst.errors import ConfigError


def wrong(setting: str, source: str, accepted: str) -> ConfigError:
    """A bad value: names the setting, its source and the accepted form."""
    return ConfigError(
        f"`{setting}` from {source} is not valid: expected {accepted}",
        setting=setting,
        source=source,
        hint=f"correct `{setting}` in {source}, then run `localfirst config`",
    )


def unknown(name: str, source: str, known: Iterable[str]) -> ConfigError:
    """A name nobody knows, with the nearest that somebody does."""
    near = nearest(name, known)
    meant = f"; did you mean `{near}`?" if near else ""
    return ConfigError(
        f"`{name}` from {source} is not a setting{meant}",
        setting=name,
        source=source,
        hint="run `localfirst config` to see every setting",
        code="config-unknown",
    )


def homeless(variable: str) -> ConfigError:
    """Neither `HOME` nor the system's users name a home, as in a container with any user's id."""
    return ConfigError(
        f"this user has no home folder, and `{variable}` is not set",
        setting=variable,
        hint="set `HOME` to a folder of yours, or `LOCALFIRST_CONFIG`, `LOCALFIRST_STATE_DIR` "
        "and `OLLAMA_MODELS`",
        code="no-home",
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant, "" when nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else ""

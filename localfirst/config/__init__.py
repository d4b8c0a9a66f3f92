"""
Every setting, every environment variable, and where a value came from.

    call argument > CLI flag > environment > .env > config.toml > default

With `LOCALFIRST_CONFIG` set, that file and the environment are all that is read. Nothing is
read at import; `load()` reads once.
"""

from localfirst.config.carry import carried
from localfirst.config.load import Loaded, Source, load, state_dir, variable
from localfirst.config.table import PROVIDER_VARIABLES, SETTINGS, Setting

__all__ = [
    "PROVIDER_VARIABLES",
    "SETTINGS",
    "Loaded",
    "Setting",
    "Source",
    "carried",
    "load",
    "state_dir",
    "variable",
]

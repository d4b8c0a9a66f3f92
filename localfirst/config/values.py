"""From what people write to typed values; a `ValueError`'s text is the accepted form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from localfirst.config.table import Setting
from localfirst.models import names
from localfirst.settings import Secret

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off"}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse(setting: Setting, value: Any) -> Any:
    """*value* as *setting*'s kind; raises ValueError with the accepted form."""
    parsed = PARSERS[setting.kind](value)
    if setting.choices and parsed not in setting.choices:
        raise ValueError("one of " + ", ".join(f"`{choice}`" for choice in setting.choices))
    check_range(setting, parsed)
    return parsed


def check_range(setting: Setting, value: Any) -> None:
    """Refuse a number outside the setting's bounds; each of a list's."""
    if setting.kind == "floats":
        if any(one < 0 for one in value):
            raise ValueError("numbers of at least 0")
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if setting.least is not None and value < setting.least:
        raise ValueError(f"at least {setting.least:g}")
    if setting.most is not None and value > setting.most:
        raise ValueError(f"at most {setting.most:g}")


def text(value: Any) -> str:
    """Text, unquoted as shells and .env files leave it."""
    if not isinstance(value, str):
        raise ValueError("text")
    return value.strip()


def model(value: Any) -> str:
    """A model that can be installed here, or `auto`."""
    written = text(value)
    if written and not names.is_valid(written):
        raise ValueError("a model's name such as `llama3.2:3b`, or `auto`")
    return written


def choice(value: Any) -> str:
    """A word; `true` and `1` of TOML become words."""
    return str(int(value)) if isinstance(value, bool | int) else text(value).lower()


def flag(value: Any) -> bool:
    """A yes or no; anything else is refused (Ollama reads `flase` as true)."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ValueError("`true` or `false`")


def number(value: Any) -> float:
    """A finite number; `60s` is understood as seconds."""
    if isinstance(value, bool):
        raise ValueError("a number")
    try:
        parsed = float(value.strip().removesuffix("s") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a number") from None
    if not math.isfinite(parsed):
        raise ValueError("a finite number")
    return parsed


def whole(value: Any) -> int:
    """A whole number."""
    parsed = number(value)
    if parsed != int(parsed):
        raise ValueError("a whole number")
    return int(parsed)


def size(value: Any) -> int:
    """Bytes: `2 GB`, `512MiB`, `1000`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return whole(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?(?:b|b/s)?", str(value).strip().lower())
    if not match:
        raise ValueError("a size such as `2 GB` or `512MiB`")
    return int(number(float(match[1]) * (UNITS | BINARY)[match[2] or ""]))


def words(value: Any) -> tuple[str, ...]:
    """A list, or words between commas."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        raise ValueError("a list, or words between commas")
    items = [item.get("url", "") if isinstance(item, Mapping) else item for item in value]
    return tuple(item for item in (text(item) for item in items) if item)


def numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers, or numbers between commas."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("a list of numbers")
    return tuple(number(item) for item in value)


def mapping(value: Any) -> dict[str, str]:
    """A table of text, or `a=b` pairs between commas."""
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError("`name=value` pairs between commas")
        return {name.strip(): rest.strip() for name, _, rest in pairs}
    if not isinstance(value, Mapping):
        raise ValueError("a table")
    return {str(name): text(rest) for name, rest in value.items()}


def folder(value: Any) -> str:
    """An absolute path; `~` is the home."""
    written = text(value)
    try:
        return str(Path(written).expanduser().absolute()) if written else ""
    except RuntimeError:
        raise ValueError("an absolute path, since this user has no home folder") from None


def ollama_host(value: Any) -> str:
    """
    Ollama's own grammar for OLLAMA_HOST: scheme, host and port all optional.

    A wildcard address means "this machine" for a client. Source: ollama envconfig.Host().
    """
    written = text(value).strip("'\"").strip()
    scheme, separator, rest = written.partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("http", written)
    if scheme not in {"http", "https"}:
        raise ValueError("`http://HOST:PORT`")
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError:
        raise ValueError("`http://HOST:PORT`") from None
    if parts.username or parts.query or parts.fragment:
        raise ValueError("`http://HOST:PORT` without user, query or fragment")
    host = parts.hostname or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    default = {"http": 80, "https": 443}[scheme] if separator else 11434
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port or default}{parts.path.rstrip('/')}"


def ollama_hosts(value: Any) -> tuple[str, ...]:
    """Several of them."""
    return tuple(map(ollama_host, words(value)))


def url(value: Any) -> str:
    """A web address."""
    written = text(value)
    try:
        parts = urlsplit(written)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if written and not good:
        raise ValueError("`https://HOST/PATH`")
    return written


def mirrors(value: Any) -> dict[str, str]:
    """Base URLs by a registry's host."""
    try:
        found = {host: url(base) for host, base in mapping(value).items()}
    except ValueError:
        found = {"": ""}
    if not all(host and base and "/" not in host for host, base in found.items()):
        raise ValueError("`registry.host=https://HOST/PATH`")
    return found


def origins(value: Any) -> tuple[str, ...]:
    """Pages' origins as browsers send them: no path, small letters, no port that goes unsaid."""
    return tuple(dict.fromkeys(map(_origin, words(value))))


def _origin(written: str) -> str:
    origin = written.rstrip("/")
    scheme, _, rest = origin.partition("://")
    if origin != "null" and (not rest or not rest.isascii() or set(rest) & set("/?#@ *")):
        raise ValueError("`https://HOST` without a path, a name's letters as `xn--…`")
    if scheme.lower() not in {"http", "https"}:
        return origin
    default = {"http": ":80", "https": ":443"}[scheme.lower()]
    return origin.lower().removesuffix(default)


def host_names(value: Any) -> tuple[str, ...]:
    """Names of a server as clients send them: `HOST` or `HOST:PORT`."""
    return tuple(dict.fromkeys(map(_host_name, words(value))))


def _host_name(written: str) -> str:
    name = written.lower()
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    if not re.fullmatch(r"(\[[0-9a-f:.%a-z]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", name):
        raise ValueError("`HOST` or `HOST:PORT`, a name's letters as `xn--…`")
    return name


def unrevealed(value: Any) -> Secret | None:
    """One secret, its label filled in by the loader."""
    return Secret(text(value), "") if value else None


def secrets(value: Any) -> tuple[Secret, ...]:
    """Several secrets; labels are filled in by the loader."""
    return tuple(Secret(word, "") for word in words(value))


NOTHING = "–"
"""How a setting without a value is shown; nobody writes it."""


def shown(value: Any) -> str:
    """A value as people write it."""
    if value is None or value in ("", (), {}):
        return NOTHING
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={rest}" for name, rest in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


PARSERS: dict[str, Callable[[Any], Any]] = {
    "text": text,
    "model": model,
    "choice": choice,
    "bool": flag,
    "float": number,
    "int": whole,
    "bytes": size,
    "rate": size,
    "list": words,
    "floats": numbers,
    "mirrors": mirrors,
    "origins": origins,
    "host_names": host_names,
    "url": url,
    "path": folder,
    "ollama_host": ollama_host,
    "ollama_hosts": ollama_hosts,
    "secret": unrevealed,
    "secrets": secrets,
}

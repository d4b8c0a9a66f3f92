"""
Reading the fields of a decoded request, with an error that names the field.

`Fields` wraps one JSON object and the path it was found at. `null` counts as not said, and
`true` is never a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from localfirst.errors import InvalidRequest
from localfirst.types import Json

REFUSED = frozenset(
    {
        "api_base",
        "api_key",
        "base_url",
        "extra_body",
        "extra_headers",
        "organization",
        "proxy",
    }
)
"""Fields that would choose where a request goes or with which key (as in CVE-2024-6587)."""

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_IMAGES = 256
MAX_TOOLS = 512
MAX_STOPS = 64
MAX_TOKENS = 10_000_000
MAX_CONTEXT_TOKENS = 16_777_216
MAX_SEED = 2**63 - 1
MAX_NAME_CHARS = 512


def wrong(path: str, expected: str) -> InvalidRequest:
    """The error for a field that is not what was *expected*."""
    return InvalidRequest(f"`{path}` must be {expected}", field=path)


def refuse(names: Iterable[str]) -> None:
    """Raises `InvalidRequest` (`field-not-allowed`) when a request chooses its destination."""
    found = sorted(REFUSED.intersection(names))
    if found:
        raise InvalidRequest(
            f"`{found[0]}` is not allowed in a request: destinations and keys are configured",
            field=found[0],
            code="field-not-allowed",
            hint="remove the field; set providers in `config.toml`, see `localfirst config`",
        )


class Fields:
    """One JSON object of a request and the path to it."""

    __slots__ = ("path", "values")

    def __init__(self, values: Json, path: str = "") -> None:
        if not isinstance(values, dict):
            raise wrong(path or "body", "an object")
        self.values = cast("dict[str, Json]", values)
        self.path = path

    def at(self, name: str) -> str:
        """The path of a field, as errors name it."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Json:
        """The raw value, or None."""
        return self.values.get(name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise wrong(self.at(name), "a string")
        return value

    def required_text(self, name: str) -> str:
        """A string that is there and not empty."""
        value = self.text(name)
        if not value:
            raise wrong(self.at(name), "a non-empty string")
        return value

    def flag(self, name: str) -> bool | None:
        """A boolean or None."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(self.at(name), "true or false")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer within *low*…*high*, or None; `10.0` is taken as 10."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(self.at(name), f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number within *low*…*high*, or None."""
        value = self.values.get(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise wrong(self.at(name), f"a number from {low:g} to {high:g}")
        return float(value)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of *allowed*, or None."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise wrong(self.at(name), "one of " + ", ".join(f"`{word}`" for word in allowed))
        return cast("str | None", value)

    def items(self, name: str, limit: int) -> list[Json]:
        """A list of at most *limit* items; absent is empty."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise wrong(self.at(name), "a list")
        if len(value) > limit:
            raise wrong(self.at(name), f"a list of at most {limit} items")
        return value

    def objects(self, name: str, limit: int) -> list[Fields]:
        """A list of objects, each with its own path."""
        return [
            Fields(value, f"{self.at(name)}[{index}]")
            for index, value in enumerate(self.items(name, limit))
        ]

    def object(self, name: str) -> Fields | None:
        """An object, or None."""
        value = self.values.get(name)
        return None if value is None else Fields(value, self.at(name))

    def mapping(self, name: str) -> dict[str, Json]:
        """An object as a plain dict; absent is empty."""
        found = self.object(name)
        return {} if found is None else found.values

    def texts(self, name: str, limit: int) -> tuple[str, ...]:
        """A string or a list of strings, as a tuple without empty ones."""
        value = self.values.get(name)
        if isinstance(value, str):
            return (value,) if value else ()
        found = self.items(name, limit)
        for index, item in enumerate(found):
            if not isinstance(item, str):
                raise wrong(f"{self.at(name)}[{index}]", "a string")
        return tuple(item for item in found if item)

    def rest(self, known: frozenset[str]) -> dict[str, Json]:
        """The fields that are not *known* and not null."""
        return {
            name: value
            for name, value in self.values.items()
            if name not in known and value is not None
        }

"""What a daemon's lists say, read into our own words. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from localfirst.engines.base import LocalModel
from localfirst.errors import UpstreamNonsense
from localfirst.types import Json
from localfirst.wire.forgiving import UNREADABLE

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What Go's `int` and `int64` hold; more was not written by Ollama, and no float takes it."""


class Details(msgspec.Struct):
    """`details` of a listed model; every field may be missing in some version."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: Int64 = 0


class Listed(msgspec.Struct):
    """One entry of `/api/tags` or `/api/ps` (ollama/ollama `api/types.go`)."""

    name: str
    digest: str = ""
    size: Int64 = 0
    modified_at: str = ""
    details: Details | None = None
    capabilities: list[str] | None = None
    remote_model: str = ""
    remote_host: str = ""
    expires_at: str = ""
    size_vram: Int64 = 0
    context_length: Int64 = 0


class Listing(msgspec.Struct):
    """`/api/tags` and `/api/ps`; `models` is null for none in some versions."""

    models: list[Listed] | None = None


class Shown(msgspec.Struct):
    """What we need of `/api/show`."""

    capabilities: list[str] = []
    model_info: dict[str, Json] | None = None
    parameters: str = ""
    remote_host: str = ""

    @property
    def context_tokens(self) -> int:
        """The model's own window, 0 unknown."""
        info = self.model_info or {}
        value = info.get(f"{info.get('general.architecture', '')}.context_length")
        return value if isinstance(value, int) and 0 < value < 2**32 else 0

    @property
    def num_ctx(self) -> int:
        """`num_ctx` of the model's own parameters, 0 when it has none."""
        for line in self.parameters.splitlines():
            name, _, value = line.strip().partition(" ")
            if name == "num_ctx" and value.strip().isdecimal():
                return int(value.strip()[:9])
        return 0


def listing(body: bytes) -> list[Listed]:
    """Read a list; raises `UpstreamNonsense`."""
    try:
        return msgspec.json.decode(body, type=Listing).models or []
    except UNREADABLE as error:
        raise UpstreamNonsense(f"a model list that is none: {error}") from error


def is_remote(name: str) -> bool:
    """Whether a name is one of Ollama's own cloud models (`internal/modelref`)."""
    tag = name.rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
    return tag == "cloud" or tag.endswith("-cloud")


def full_name(name: str) -> str:
    """*name* with its tag, lower-case: the daemon matches names without regard to case."""
    return (name if ":" in name.rpartition("/")[2] else f"{name}:latest").lower()


def models(tags: list[Listed], loaded: list[Listed]) -> tuple[LocalModel, ...]:
    """What is installed, with what is known of what is loaded."""
    running = {full_name(entry.name): entry for entry in loaded}
    return tuple(_model(entry, running.get(full_name(entry.name))) for entry in tags)


def _model(entry: Listed, running: Listed | None) -> LocalModel:
    details = entry.details or Details()
    remote = bool(entry.remote_host or entry.remote_model) or is_remote(entry.name)
    return LocalModel(
        name=entry.name,
        digest=entry.digest.removeprefix("sha256:"),
        size_bytes=entry.size,
        context_tokens=details.context_length,
        capabilities=tuple(entry.capabilities or ()),
        family=details.family,
        parameters=details.parameter_size,
        quantization=details.quantization_level,
        modified_unix=unix(entry.modified_at),
        loaded=running is not None,
        loaded_bytes=running.size if running else 0,
        loaded_context_tokens=running.context_length if running else 0,
        loaded_vram_bytes=running.size_vram if running else 0,
        expires_unix=unix(running.expires_at) if running else 0.0,
        remote=remote,
        # What a GGUF's own template can do is not listed (server/model_list_cache.go).
        partial="completion" in (entry.capabilities or ()) and not remote,
    )


def unix(stamp: str) -> float:
    """A Go time stamp in seconds since 1970; 0 for none, for the year 1 and for nonsense."""
    head, dot, rest = stamp.partition(".")
    if dot:  # Go writes nanoseconds; Python reads at most six digits before 3.11's leniency ends
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        stamp = f"{head}.{digits[:6]}{rest[len(digits) :]}"
    try:
        return max(0.0, datetime.fromisoformat(stamp).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0.0

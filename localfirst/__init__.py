"""
localfirst: LLM answers from this machine first.

    import localfirst
    reply = localfirst.chat("Why is the sky blue?")
    print(reply.text, reply.route)

Names are resolved on first use: importing localfirst opens no socket, starts no thread and
imports no third-party package.
"""

from __future__ import annotations

# `typing` itself costs half of what a bare Python takes to start; checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from localfirst.client import AsyncClient, AsyncStream
    from localfirst.config import load as load_settings
    from localfirst.errors import (
        CascadeExhausted,
        ConfigError,
        DeadlineExceeded,
        InsufficientResources,
        InvalidRequest,
        LocalFirstError,
        PrivacyRefused,
        PullError,
        StreamInterrupted,
        Unavailable,
    )
    from localfirst.events import (
        Finished,
        Progress,
        ReasoningDelta,
        Reply,
        TextDelta,
        ToolCallDelta,
        Usage,
    )
    from localfirst.settings import Settings
    from localfirst.sync import Client, Stream, chat, embed, pull, stream
    from localfirst.types import Attempt, ImagePart, Message, TextPart, Tool, ToolCall

    __version__: str

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Attempt",
    "CascadeExhausted",
    "Client",
    "ConfigError",
    "DeadlineExceeded",
    "Finished",
    "ImagePart",
    "InsufficientResources",
    "InvalidRequest",
    "LocalFirstError",
    "Message",
    "PrivacyRefused",
    "Progress",
    "PullError",
    "ReasoningDelta",
    "Reply",
    "Settings",
    "Stream",
    "StreamInterrupted",
    "TextDelta",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Unavailable",
    "Usage",
    "chat",
    "embed",
    "load_settings",
    "pull",
    "stream",
]

# Public name → the module it lives in, and its name there when another.
_HOMES = {
    "client": ("AsyncClient", "AsyncStream"),
    "config": ("load_settings",),
    "errors": (
        "CascadeExhausted",
        "ConfigError",
        "DeadlineExceeded",
        "InsufficientResources",
        "InvalidRequest",
        "LocalFirstError",
        "PrivacyRefused",
        "PullError",
        "StreamInterrupted",
        "Unavailable",
    ),
    "events": (
        "Finished",
        "Progress",
        "ReasoningDelta",
        "Reply",
        "TextDelta",
        "ToolCallDelta",
        "Usage",
    ),
    "settings": ("Settings",),
    "sync": ("Client", "Stream", "chat", "embed", "pull", "stream"),
    "types": ("Attempt", "ImagePart", "Message", "TextPart", "Tool", "ToolCall"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
_RENAMED = {"load_settings": "load"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("localfirst-runtime")
    if name not in _MODULES:
        raise AttributeError(f"module `localfirst` has no attribute `{name}`")
    from importlib import import_module

    value = getattr(import_module(f"localfirst.{_MODULES[name]}"), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

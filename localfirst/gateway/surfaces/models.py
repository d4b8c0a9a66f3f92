"""The names a request may use, as OpenAI lists them, or Anthropic where its client asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from localfirst.cascade.plan_names import close_to
from localfirst.errors import UnknownModel
from localfirst.gateway.request import Request
from localfirst.models import names
from localfirst.types import Json
from localfirst.wire.ollama.answers import stamp

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway
    from localfirst.runtime import ModelEntry

PREFIX = b"/v1/models/"


async def listing(gateway: Gateway, request: Request) -> None:
    """`GET /v1/models`."""
    found = await gateway.runtime.models()
    if b"anthropic-version" in request.fields:
        await request.struct(_page([_anthropic(entry) for entry in found]))
    else:
        await request.struct({"object": "list", "data": [_openai(entry) for entry in found]})


async def one(gateway: Gateway, request: Request) -> None:
    """`GET /v1/models/{id}`; the id may hold slashes, encoded or not."""
    name = unquote_to_bytes(request.path.removeprefix(PREFIX)).decode("utf-8", "replace")
    entry = _named(name, await gateway.runtime.models())
    anthropic = b"anthropic-version" in request.fields
    await request.struct({**(_anthropic(entry) if anthropic else _openai(entry)), "id": name})


def _named(name: str, entries: Sequence[ModelEntry]) -> ModelEntry:
    """The entry of that name; an installed model's may be short, as in every request."""
    key = names.parse(name).key if names.is_valid(name) else None
    for entry in entries:
        if entry.id == name or (entry.local is not None and names.parse(entry.id).key == key):
            return entry
    nearest = close_to(name, [entry.id for entry in entries])
    raise UnknownModel(f"model `{name[:80]}` is not known here", nearest=nearest)


def _openai(entry: ModelEntry) -> dict[str, Json]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": entry.owned_by,
    }


def _anthropic(entry: ModelEntry) -> dict[str, Json]:
    return {
        "type": "model",
        "id": entry.id,
        "display_name": entry.id,
        "created_at": stamp(entry.created),
    }


def _page(entries: list[dict[str, Json]]) -> dict[str, Json]:
    """Everything on one page."""
    return {
        "data": entries,
        "has_more": False,
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
    }

"""Ollama's own surface: chat and generate with load and unload, and what is installed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from localfirst.cascade.plan_names import close_to
from localfirst.errors import EngineUnavailable, UnknownModel, UpstreamError
from localfirst.events import Reply
from localfirst.gateway.request import Request
from localfirst.gateway.surfaces import relay
from localfirst.gateway.surfaces.description import describe, details
from localfirst.gateway.surfaces.surface import NDJSON, Asked, Surface, Writer
from localfirst.gateway.views import Installed
from localfirst.models import names
from localfirst.types import ChatRequest, Dialect, Json
from localfirst.wire.fields import Fields, wrong
from localfirst.wire.ollama import answers, requests
from localfirst.wire.ollama.decode import model_of
from localfirst.wire.strict_json import load_object

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway
    from localfirst.runtime import Runtime

API_VERSION = "0.33.0"
"""Clients refuse what is older than they know: VS Code, below 0.6.4; and read numbers alone."""

FOREVER_UNIX = 253402300799.0
"""Year 9999: how a model that is never unloaded expires."""


def _name(asked: Asked) -> str:
    """The name as the client gave it, as Ollama echoes it; a real one for `auto`."""
    return asked.model if asked.call.model == "auto" else asked.call.model


def _writer(asked: Asked, *, generate: bool = False) -> Writer:
    return answers.StreamWriter(
        model=_name(asked), created=asked.created, generate=generate, now_unix=asked.unix
    )


def _reply(reply: Reply, asked: Asked, *, generate: bool = False) -> bytes:
    now_unix = asked.unix()
    return answers.reply(
        msgspec.structs.replace(reply, model=_name(asked)),
        created=now_unix,
        generate=generate,
        elapsed_s=now_unix - asked.created,
    )


CHAT = Surface(
    dialect=Dialect.OLLAMA,
    peek=requests.peek,
    decode=requests.decode,
    writer=_writer,
    reply=_reply,
    stream_lines=NDJSON,
)

GENERATE = Surface(
    dialect=Dialect.OLLAMA,
    peek=requests.peek,
    decode=requests.decode_generate,
    writer=lambda asked: _writer(asked, generate=True),
    reply=lambda reply, asked: _reply(reply, asked, generate=True),
    stream_lines=NDJSON,
)


async def chat(gateway: Gateway, request: Request) -> None:
    """`POST /api/chat`; without messages it loads or unloads the model."""
    await _answer(gateway, request, CHAT, generate=False)


async def generate(gateway: Gateway, request: Request) -> None:
    """`POST /api/generate`; without a prompt it loads or unloads the model."""
    await _answer(gateway, request, GENERATE, generate=True)


async def _answer(gateway: Gateway, request: Request, surface: Surface, *, generate: bool) -> None:
    body = await request.body()
    call = relay.look(body, request, surface)
    if requests.asks_to_load(call.chat):
        await _load(gateway.runtime, request, call.chat, generate=generate)
    else:
        await relay.run(gateway, request, surface, call)


async def _load(runtime: Runtime, request: Request, wanted: ChatRequest, *, generate: bool) -> None:
    """Have the model in memory or out of it; never a stream, as Ollama answers it."""
    unload = requests.asks_to_unload(wanted)
    model = await installed(runtime, wanted.model)
    try:
        if unload:
            await runtime.engine.unload(model.name)
        else:
            await runtime.engine.load(model.name)
    except UpstreamError as error:
        raise EngineUnavailable(f"`{model.name}` could not be loaded: {error}") from error
    created = runtime.clock.unix()
    await request.json(
        answers.loaded(wanted.model, created=created, generate=generate, unload=unload)
    )


async def installed(runtime: Runtime, name: str) -> Installed:
    """The installed model of that name; raises `UnknownModel`, as Ollama says it."""
    key = names.parse(name).key
    models = (await runtime.engine.status()).models
    for model in models:
        if names.is_valid(model.name) and names.parse(model.name).key == key:
            return model
    nearest = close_to(name, [model.name for model in models])
    raise UnknownModel(f"model '{name}' not found", nearest=nearest)


# --- what is installed ---------------------------------------------------------------------


async def tags(gateway: Gateway, request: Request) -> None:
    """`GET /api/tags`: installed models, newest first."""
    models = (await gateway.runtime.engine.status()).models
    newest = sorted(models, key=lambda model: -model.modified_unix)
    await request.struct({"models": [_listed(model) for model in newest]})


async def ps(gateway: Gateway, request: Request) -> None:
    """`GET /api/ps`: what is in memory now."""
    models = (await gateway.runtime.engine.status(max_age_s=0)).models
    loaded = [model for model in models if model.loaded]
    loaded.sort(key=lambda model: -(model.expires_unix or FOREVER_UNIX))
    await request.struct({"models": [_loaded(model) for model in loaded]})


async def version(gateway: Gateway, request: Request) -> None:
    """`GET /api/version`: a running Ollama's own, or that whose API is spoken here."""
    status = await gateway.runtime.engine.status()
    found = status.version if status.kind == "ollama" and status.version else API_VERSION
    await request.struct({"version": found})


async def show(gateway: Gateway, request: Request) -> None:
    """`POST /api/show`: one installed model, read from the store."""
    fields = Fields(load_object(await request.body()))
    name = model_of(fields)
    if name == "auto":
        raise wrong("model", "the name of an installed model")
    verbose = bool(fields.flag("verbose"))
    model = await installed(gateway.runtime, name)
    found = await asyncio.to_thread(describe, gateway.runtime.store, model, verbose)
    await request.struct(found)


def _details(model: Installed) -> dict[str, Json]:
    """`details` as lists have them, which tell the window, too."""
    return {**details(model), "context_length": model.context_tokens}


def _listed(model: Installed) -> dict[str, Json]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": answers.stamp(model.modified_unix),
        "size": model.size_bytes,
        "digest": model.digest.removeprefix("sha256:"),
        "details": _details(model),
        "capabilities": list(model.capabilities),
    }


def _loaded(model: Installed) -> dict[str, Json]:
    return {
        "name": model.name,
        "model": model.name,
        "size": model.loaded_bytes or model.size_bytes,
        "digest": model.digest.removeprefix("sha256:"),
        "details": _details(model),
        "expires_at": answers.stamp(min(model.expires_unix or FOREVER_UNIX, FOREVER_UNIX)),
        "size_vram": model.loaded_vram_bytes,
        "context_length": model.loaded_context_tokens or model.context_tokens,
    }

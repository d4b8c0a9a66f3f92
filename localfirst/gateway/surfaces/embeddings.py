"""Embeddings on every surface that has them; one model makes the vectors, each shape shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localfirst.errors import EngineUnavailable, UpstreamError
from localfirst.gateway.request import Request
from localfirst.gateway.surfaces.ollama import installed
from localfirst.gateway.surfaces.relay import wishes
from localfirst.types import Call, Dialect, Json
from localfirst.wire.ollama import embeddings as native
from localfirst.wire.openai import embeddings as wire

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway
    from localfirst.runtime import EmbedReply


async def openai(gateway: Gateway, request: Request) -> None:
    """`POST /v1/embeddings`."""
    wanted = wire.decode(await request.body())
    found = await _embed(gateway, request, wanted)
    data = wire.answer(
        found.vectors,
        model=found.model,
        prompt_tokens=found.prompt_tokens,
        encoding=wanted.encoding,
    )
    await request.json(data, *_facts(found, request))


async def ollama(gateway: Gateway, request: Request) -> None:
    """`POST /api/embed`."""
    wanted = native.decode(await request.body())
    if not wanted.texts:
        await _load(gateway, request, wanted)
        await request.json(native.answer([], model=wanted.model, prompt_tokens=0))
        return
    found = await _embed(gateway, request, wanted)
    data = native.answer(
        found.vectors,
        model=wanted.model if wanted.model != "auto" else found.model,
        prompt_tokens=found.prompt_tokens,
        elapsed_s=gateway.clock.monotonic() - request.began,
    )
    await request.json(data, *_facts(found, request))


async def ollama_legacy(gateway: Gateway, request: Request) -> None:
    """`POST /api/embeddings`."""
    wanted = native.decode_legacy(await request.body())
    if not wanted.texts:
        await _load(gateway, request, wanted)
        await request.json(native.answer_legacy([]))
        return
    found = await _embed(gateway, request, wanted)
    await request.json(native.answer_legacy(found.vectors), *_facts(found, request))


async def _load(gateway: Gateway, request: Request, wanted: wire.EmbedRequest) -> None:
    """Nothing to embed is how Ollama's clients have a model loaded."""
    if wanted.model == "auto":
        return
    request.model = wanted.model
    model = await installed(gateway.runtime, wanted.model)
    try:
        await gateway.runtime.engine.load(model.name)
    except UpstreamError as error:
        raise EngineUnavailable(f"`{model.name}` could not be loaded: {error}") from error


async def _embed(gateway: Gateway, request: Request, wanted: wire.EmbedRequest) -> EmbedReply:
    request.model = wanted.model
    options: dict[str, Json] = {}
    if wanted.dimensions is not None:
        options["dimensions"] = wanted.dimensions
    if wanted.truncate is not None:
        options["truncate"] = wanted.truncate
    if wanted.keep_alive is not None:
        options["keep_alive"] = wanted.keep_alive
    if wanted.options:
        options["options"] = wanted.options
    if wanted.extra:
        options["extra"] = wanted.extra
    try:
        found = await gateway.runtime.embed(
            wanted.model, wanted.texts, options, local_only=_asked_local_only(request)
        )
    except UpstreamError as error:
        raise EngineUnavailable(
            f"no vectors from `{wanted.model}`: {error}",
            hint="embeddings need an embedding model, for example `nomic-embed-text`",
        ) from error
    request.model, request.route = found.model, found.route.partition("/")[0]
    request.rung = found.rung.value
    return found


def _asked_local_only(request: Request) -> bool:
    """Whether the request's own header keeps it on this machine."""
    call = Call(model="", stream=False, dialect=Dialect.OPENAI, request_id=request.id)
    wishes(call, request)
    return call.local_only


def _facts(found: EmbedReply, request: Request) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in found.headers(request.id)]

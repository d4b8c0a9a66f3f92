"""Embeddings by a daemon: asked for, counted, and its refusals put right."""

from __future__ import annotations

import msgspec

from localfirst.engines import refusals
from localfirst.engines.ollama.daemon import Daemon
from localfirst.errors import UpstreamNonsense, UpstreamRefused
from localfirst.events import Vectors
from localfirst.types import Json


class _Embeddings(msgspec.Struct):
    embeddings: list[list[float]]
    prompt_eval_count: int = 0


async def vectors(daemon: Daemon, body: dict[str, Json], timeout_s: float) -> Vectors:
    """
    The answer to `/api/embed`'s *body*, a vector for each of its `input`.

    Raises:
        UpstreamError: as the daemon's; a model that makes none is a 400.
    """
    try:
        answer = await daemon.embed(body, timeout_s)
    except UpstreamRefused as error:
        if not refusals.cannot_embed(error):
            raise
        raise refusals.refuse_capability(body["model"], "embeddings") from error
    try:
        found = msgspec.json.decode(answer, type=_Embeddings)
    except msgspec.DecodeError as error:
        raise UpstreamNonsense(f"no embeddings: {error}") from error
    wanted = len(body["input"])
    if len(found.embeddings) != wanted:
        raise UpstreamNonsense(f"{len(found.embeddings)} embeddings for {wanted} texts")
    return Vectors(found.embeddings, found.prompt_eval_count)

"""Embeddings by a daemon: asked for, counted, and its refusals put right."""

from __future__ import annotations

from localfirst.engines import refusals
from localfirst.engines.ollama.daemon import Daemon
from localfirst.errors import UpstreamRefused
from localfirst.events import Vectors
from localfirst.types import Json
from localfirst.wire.ollama import embeddings


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
    return embeddings.read(answer, len(body["input"]))

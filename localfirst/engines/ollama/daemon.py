"""
One Ollama daemon, as seen over its socket.

Small questions with short answers and hard time limits; generation is in `exchange`. Only
what a daemon says about itself identifies it: a port that accepts, or a 200, is not Ollama.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TypeVar

import msgspec

from localfirst.engines.ollama.listing import Listed, Shown, listing
from localfirst.errors import (
    Breakage,
    PrivacyRefused,
    UpstreamBroken,
    UpstreamError,
    UpstreamNonsense,
)
from localfirst.errors import UpstreamRefused as Refused
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Json
from localfirst.wire.forgiving import UNREADABLE

QUICK_S = 2.0
SHOW_S = 10.0
LIMIT_BYTES = 32 * 2**20
CONTENT = [("content-type", "application/json")]

Type = TypeVar("Type")


class Version(msgspec.Struct):
    """`/api/version`."""

    version: str


class Daemon:
    """A daemon at *endpoint* (`http://127.0.0.1:11434`); opening it opens nothing."""

    def __init__(self, endpoint: str, upstream: UpstreamClient) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._upstream = upstream

    async def alive(self, timeout_s: float = QUICK_S) -> bool:
        """Whether `HEAD /` is answered: it is while a model loads and while a runner hangs."""
        try:
            status, _ = await self._ask("HEAD", "/", timeout_s=timeout_s)
        except UpstreamError:
            return False
        return status == 200

    async def version(self, timeout_s: float = QUICK_S) -> str:
        """
        Its version, which is also the proof that it is an Ollama.

        Raises:
            UpstreamBroken: nothing answers there in time.
            UpstreamNonsense, UpstreamRefused: something answers that is no Ollama.
        """
        body = await self._checked("GET", "/api/version", timeout_s=timeout_s)
        return _decoded(body, Version).version

    async def tags(self, timeout_s: float = QUICK_S) -> list[Listed]:
        """The installed models."""
        return listing(await self._checked("GET", "/api/tags", timeout_s=timeout_s))

    async def ps(self, timeout_s: float = QUICK_S) -> list[Listed]:
        """
        The loaded models.

        A runner that died is still in the list, and one that hangs holds the answer back
        for 20 s: a timeout here is no sign of a dead daemon.
        """
        return listing(await self._checked("GET", "/api/ps", timeout_s=timeout_s))

    async def show(self, model: str) -> Shown:
        """What a model is."""
        body = {"model": model}
        return _decoded(await self._post("/api/show", body, SHOW_S), Shown)

    async def load(self, model: str, options: dict[str, Json], timeout_s: float) -> None:
        """
        Have *model* in memory: a generation without a prompt.

        Whether the window may shift is a flag of the runner, so that a load has to say it as
        requests do: else the first of them would load the model again.
        """
        body = {"model": model, "options": options, "stream": False, "shift": False}
        await self._post("/api/generate", body, timeout_s)

    async def unload(self, model: str) -> None:
        """Ask for *model* to leave memory; it goes when its answers are out."""
        await self._post("/api/generate", {"model": model, "keep_alive": 0, "stream": False}, 10.0)

    async def embed(self, body: dict[str, Json], timeout_s: float) -> bytes:
        """`/api/embed`'s answer."""
        return await self._post("/api/embed", body, timeout_s)

    async def _post(self, path: str, body: dict[str, Json], timeout_s: float) -> bytes:
        return await self._checked("POST", path, msgspec.json.encode(body), timeout_s=timeout_s)

    async def _checked(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float
    ) -> bytes:
        status, answer = await self._ask(method, path, body, timeout_s=timeout_s)
        if status != 200:
            raise Refused(status, answer)
        return answer

    async def _ask(
        self, method: str, path: str, sent: bytes = b"", *, timeout_s: float
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._upstream.send(
                    self.endpoint + path,
                    method=method,
                    headers=CONTENT if sent else (),
                    body=sent,
                    connect_s=min(timeout_s, 5.0),
                    first_byte_s=timeout_s,
                    stall_s=timeout_s,
                )
                async with aclosing(response):
                    # A HEAD's answer names the length of a body that does not come.
                    body = b"" if method == "HEAD" else await response.read(LIMIT_BYTES)
                    return response.status, body
        except PrivacyRefused as error:
            # For whoever asks, a daemon that may not be asked is one that does not answer.
            raise UpstreamBroken(Breakage.OFFLINE, error.message) from error
        except TimeoutError as error:
            raise UpstreamBroken(
                Breakage.FIRST_BYTE_TIMEOUT, f"`{path}` took longer than {timeout_s:g} s"
            ) from error


def _decoded(body: bytes, type: type[Type]) -> Type:
    try:
        return msgspec.json.decode(body, type=type)
    except UNREADABLE as error:
        raise UpstreamNonsense(f"not an answer of Ollama: {error}") from error

"""Embeddings by one child: asked for, and a text that is too long cut for who asked for that."""

from __future__ import annotations

import contextlib

import msgspec

from localfirst.engines import refusals
from localfirst.engines.base import Limits
from localfirst.engines.llamacpp.exchange import CONNECT_S, REPLY_BYTES, headers_of
from localfirst.engines.llamacpp.runner import Runner
from localfirst.errors import UpstreamNonsense, UpstreamRefused
from localfirst.events import Vectors
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Json
from localfirst.wire.openai import embeddings

Text = str | list[int]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class Embedding:
    """One request for embeddings to one child."""

    def __init__(self, upstream: UpstreamClient, runner: Runner, limits: Limits) -> None:
        self._upstream = upstream
        self._runner = runner
        self._limits = limits

    async def of(self, texts: list[str], *, truncate: bool = False) -> Vectors:
        """
        Embeddings of *texts* in order; with *truncate* of as much of each as the model sees.

        Raises:
            UpstreamError: as `exchange`; a text that is too long is a 400 with its numbers.
        """
        given: list[Text] = [*texts]
        try:
            return await self._made(given)
        except UpstreamRefused as error:
            found = refusals.overflow(error.body)
            if found is None or not found.prompt_tokens:
                raise
            if not truncate:
                raise refusals.too_long(found) from error
        return await self._made([await self._cut(text, found.context_tokens) for text in texts])

    async def _made(self, texts: list[Text]) -> Vectors:
        asked = {"input": texts, "encoding_format": "float"}
        return embeddings.read(await self._answer("/v1/embeddings", asked), len(texts))

    async def _cut(self, text: str, most: int) -> Text:
        """The ids of the text's beginning that fit, between those that a model wants around it."""
        if len(text.encode()) < most:
            return text
        whole, bare = await self._ids(text, special=True), await self._ids(text, special=False)
        around = len(whole) - len(bare)
        if len(whole) <= most or most <= around:
            return text
        before = next((n for n in range(around) if whole[n : n + len(bare)] == bare), around)
        return whole[: before + most - around] + whole[before + len(bare) :]

    async def _ids(self, text: str, *, special: bool) -> list[int]:
        body = await self._answer("/tokenize", {"content": text, "add_special": special})
        try:
            return msgspec.json.decode(body, type=_Tokens).tokens
        except msgspec.DecodeError as error:
            raise UpstreamNonsense(f"no token ids: {error}") from error

    async def _answer(self, path: str, asked: dict[str, Json]) -> bytes:
        response = await self._upstream.send(
            self._runner.address + path,
            headers=headers_of(self._runner),
            body=msgspec.json.encode(asked),
            connect_s=CONNECT_S,
            first_byte_s=self._limits.first_token_s,
            stall_s=self._limits.stall_s,
            local_only=True,
        )
        async with contextlib.aclosing(response):
            body = await response.read(REPLY_BYTES)
        if response.status >= 400:
            raise UpstreamRefused(response.status, body, response.headers)
        return body

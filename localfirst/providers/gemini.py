"""Gemini's native dialect: `generateContent`, its stream, and embeddings in batches."""

from __future__ import annotations

import msgspec

from localfirst.errors import UpstreamNonsense
from localfirst.events import Event, Vectors
from localfirst.providers.cloud import CloudBackend, Encoded, Headers, Reader
from localfirst.providers.spec import Provider
from localfirst.settings import Secret
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, Clock, Dialect, Json
from localfirst.wire.forgiving import UNREADABLE
from localfirst.wire.gemini import events, requests
from localfirst.wire.gemini.marks import Marks
from localfirst.wire.quirks import Quirks

EMBED_BYTES = 64 * 2**20
EMBED_MOST = 100
"""Texts of one `batchEmbedContents`; more are refused."""


class GeminiBackend(CloudBackend):
    """A `Backend` for `POST {base_url}/models/NAME:generateContent`."""

    dialect = Dialect.GEMINI

    def __init__(self, provider: Provider, upstream: UpstreamClient, clock: Clock) -> None:
        super().__init__(provider, upstream, clock)
        self._marks = Marks()

    def key_headers(self, secret: Secret | None) -> Headers:
        """The key has a header of its own; in the URL it would stand in everybody's logs."""
        return () if secret is None else (("x-goog-api-key", secret.reveal()),)

    def path_of(self, call: Call, model: str) -> str:
        """The model and whether to stream are part of the address."""
        return requests.path_of(model, stream=call.stream)

    def encoded(self, call: Call, model: str, quirks: Quirks) -> Encoded:
        """The decoded request anew: no surface speaks this dialect, so nothing is relayed."""
        body = requests.encode(call.chat, model, quirks=quirks, marks=self._marks)
        return Encoded(body, False)

    def reader(self, call: Call, relay: bool, quirks: Quirks) -> Reader:
        """A reader of events until the end of the bytes."""
        return events.StreamReader(marks=self._marks)

    def whole(self, call: Call, body: bytes, relay: bool) -> list[Event]:
        """The events of one answer."""
        return events.read_reply(body, marks=self._marks)

    async def embed(
        self,
        model: str,
        texts: list[str],
        options: dict[str, Json] | None = None,
        *,
        key_label: str = "",
        local_only: bool = False,
    ) -> Vectors:
        """
        Embeddings of *texts*, in their order; *options* may hold `dimensions`.

        Raises:
            UpstreamError: refused, broken, or no embeddings in the answer.
        """
        found = Vectors()  # Google counts no tokens of embeddings
        for start in range(0, len(texts), EMBED_MOST):
            batch = texts[start : start + EMBED_MOST]
            response = await self._upstream.send(
                self.provider.base_url + requests.path_of(model, method="batchEmbedContents"),
                headers=self._headers_for(key_label),
                body=requests.encode_embeddings(model, batch, (options or {}).get("dimensions")),
                local_only=local_only,
            )
            if response.status >= 400:
                raise await self._refusal(response)
            found += _vectors(await response.read(EMBED_BYTES), len(batch))
        return found


class _Vector(msgspec.Struct):
    values: list[float]


class _Vectors(msgspec.Struct):
    embeddings: list[_Vector]


def _vectors(body: bytes, count: int) -> list[list[float]]:
    try:
        items = msgspec.json.decode(body, type=_Vectors).embeddings
    except UNREADABLE as error:
        raise UpstreamNonsense(f"no embeddings: {error}") from error
    if len(items) != count:
        raise UpstreamNonsense(f"{len(items)} embeddings for {count} texts")
    return [item.values for item in items]

"""Clouds, and servers on this machine, that speak OpenAI's chat dialect."""

from __future__ import annotations

import msgspec

from localfirst.errors import InvalidRequest
from localfirst.events import Event, Vectors
from localfirst.providers.cloud import CloudBackend, Encoded, Reader
from localfirst.providers.spec import Provider
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Call, Clock, Dialect, Json, Texts
from localfirst.wire.openai import embeddings, events, requests
from localfirst.wire.quirks import Quirks

EMBED_BYTES = 64 * 2**20


class OpenAIBackend(CloudBackend):
    """A `Backend` for `POST {base_url}/chat/completions`."""

    dialect = Dialect.OPENAI
    path = "/chat/completions"

    def __init__(self, provider: Provider, upstream: UpstreamClient, clock: Clock) -> None:
        super().__init__(provider, upstream, clock)
        # The catalogue's clouds are known to end their streams; a server of the user's is not.
        self._habits = events.Habits() if provider.custom else None
        # Many know floats alone, and Voyage base64 alone.
        self._encodings = ["float", "base64"]

    def encoded(self, call: Call, model: str, quirks: Quirks) -> Encoded:
        """The caller's own bytes with what must change, or the decoded request anew."""
        if call.relay and call.dialect is Dialect.OPENAI and call.body:
            body = requests.splice(call.body, model=model, quirks=quirks, fields=call.fields)
            return Encoded(body, True)
        chat = call.chat
        if chat.stream != call.stream:
            chat = msgspec.structs.replace(chat, stream=call.stream)
        return Encoded(requests.encode(chat, model, quirks=quirks), False)

    def reader(self, call: Call, relay: bool, quirks: Quirks) -> Reader:
        """Usage that we asked for is not shown to a caller who did not."""
        return events.StreamReader(
            relay=relay,
            strip_usage=relay and not requests.wants_usage(call.body),
            done_required=quirks.done_required,
            habits=self._habits,
            stops=lambda: stops_of(call),
        )

    def whole(self, call: Call, body: bytes, relay: bool) -> list[Event]:
        """The events of a JSON answer."""
        return events.read_reply(body, relay=relay, stops=lambda: stops_of(call))

    async def embed(
        self,
        model: str,
        texts: Texts,
        options: dict[str, Json] | None = None,
        *,
        key_label: str = "",
        local_only: bool = False,
    ) -> Vectors:
        """
        Embeddings of *texts*, in their order; *options* may hold `dimensions` and `extra`.

        Raises:
            UpstreamError: refused, broken, or no embeddings in the answer.
        """
        encoding, *others = self._encodings
        wanted = dict(options or {})
        extra, foreign = wanted.pop("extra", {}), self.provider.quirks(model).drop
        wanted["extra"] = {name: extra[name] for name in extra if name not in foreign}
        response = await self._upstream.send(
            self.provider.base_url + "/embeddings",
            headers=self._headers_for(key_label),
            body=embeddings.encode(model, texts, wanted, encoding),
            local_only=local_only,
        )
        if response.status < 400:
            return embeddings.read(await response.read(EMBED_BYTES), len(texts))
        refused = await self._refusal(response)
        if not others or b"encoding_format" not in refused.body:
            raise refused
        self._encodings = others
        return await self.embed(model, texts, options, key_label=key_label, local_only=local_only)


def stops_of(call: Call) -> tuple[str, ...]:
    """The stop sequences that *call* asks for, as far as they can be read."""
    try:
        return call.chat.stop
    except InvalidRequest:
        return ()

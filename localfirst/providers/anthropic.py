"""Anthropic's own dialect: the Messages API."""

from __future__ import annotations

import msgspec

from localfirst.events import Event
from localfirst.providers.cloud import CloudBackend, Encoded, Headers, Reader
from localfirst.settings import Secret
from localfirst.types import Call, Dialect
from localfirst.wire.anthropic import events, requests
from localfirst.wire.quirks import Quirks

VERSION = "2023-06-01"  # https://docs.anthropic.com/en/api/versioning


class AnthropicBackend(CloudBackend):
    """A `Backend` for `POST {base_url}/messages`."""

    dialect = Dialect.ANTHROPIC
    path = "/messages"

    def key_headers(self, secret: Secret | None) -> Headers:
        """The key has a header of its own, and the API's version is required."""
        version = ("anthropic-version", VERSION)
        return (version,) if secret is None else (version, ("x-api-key", secret.reveal()))

    def call_headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        """Without their names the fields of unfinished features are refused as unknown."""
        return (("anthropic-beta", call.betas),) if call.betas else ()

    def encoded(self, call: Call, model: str, quirks: Quirks) -> Encoded:
        """The caller's own bytes with what must change, or the decoded request anew."""
        if call.relay and call.dialect is Dialect.ANTHROPIC and call.body:
            return Encoded(requests.splice(call.body, model=model, quirks=quirks), True)
        chat = call.chat
        if chat.stream != call.stream:
            chat = msgspec.structs.replace(chat, stream=call.stream)
        return Encoded(requests.encode(chat, model, quirks=quirks), False)

    def reader(self, call: Call, relay: bool, quirks: Quirks) -> Reader:
        """A reader of `message_start` … `message_stop`."""
        return events.StreamReader(relay=relay)

    def whole(self, call: Call, body: bytes, relay: bool) -> list[Event]:
        """The events of one message."""
        return events.read_reply(body, relay=relay)

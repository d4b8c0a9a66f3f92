"""
One request to one cloud, whatever its dialect: sent, refused or opened, read into events.

The dialects' own halves are `openai`, `anthropic` and `gemini`. Here are the key, the address, the
retry without a refused field, and the rule that no key leaves in an error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from localfirst.errors import UpstreamBroken, UpstreamError, UpstreamNonsense, UpstreamRefused
from localfirst.events import Event, Finished, Opened, Relayed
from localfirst.providers import keys
from localfirst.providers.learned import Learned
from localfirst.providers.spec import Provider, merge
from localfirst.settings import Secret
from localfirst.transport.upstream import UpstreamClient, UpstreamResponse
from localfirst.types import Call, Clock, Dialect, Json, Target
from localfirst.wire.quirks import Quirks
from localfirst.wire.refusal import NotTranslatable, untranslated

ERROR_BYTES = 256 * 1024
LIST_BYTES = 16 * 2**20  # OpenRouter's list is about 1 MB
LIST_S = 15.0
MODELS_MOST = 256
"""Models whose quirks are kept; a provider's catalogue changes only with its configuration."""
LESSONS_MOST = 2
"""Retries of one attempt without a field that the cloud named; each must teach something."""

Headers = Sequence[tuple[str, str]]


class Waits(Protocol):
    """The waits that a socket watches, in seconds; `engines.base.Limits` has them."""

    @property
    def connect_s(self) -> float: ...  # noqa: D102
    @property
    def first_token_s(self) -> float: ...  # noqa: D102
    @property
    def stall_s(self) -> float: ...  # noqa: D102


class Reader(Protocol):
    """What every dialect's stream reader can do."""

    failure: UpstreamError | None

    def feed(self, data: bytes) -> list[Event]:
        """Events that are complete now."""
        ...

    def close(self) -> list[Event]:
        """The last events; raises when the stream was cut."""
        ...


class Encoded(msgspec.Struct, frozen=True):
    """
    A request's body, and whether its answer's bytes go to the caller as they are.

    `before` are the refusals that made it what it is.
    """

    body: bytes
    relay: bool
    before: tuple[Exception, ...] = ()


class CloudBackend:
    """
    A `Backend` of one provider.

    Args:
        provider: configured and ready.
        upstream: the shared client; this class owns no socket.
        clock: for callers that need one; the waits are the upstream client's.
    """

    dialect = Dialect.OPENAI
    path = "/chat/completions"

    def __init__(self, provider: Provider, upstream: UpstreamClient, clock: Clock) -> None:
        self.provider = provider
        self._upstream = upstream
        self._clock = clock
        self._learned = Learned(provider.id)
        self._headers: dict[str, tuple[tuple[str, str], ...]] = {}
        self._quirks: dict[tuple[str, bool], Quirks] = {}

    # --- what a dialect adds ---------------------------------------------------------------

    def key_headers(self, secret: Secret | None) -> Headers:
        """How this dialect carries a key."""
        return () if secret is None else (("authorization", f"Bearer {secret.reveal()}"),)

    def call_headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        """What this dialect says of one request outside its body."""
        return ()

    def path_of(self, call: Call, model: str) -> str:
        """Where below the base URL the request goes."""
        return self.path

    def encoded(self, call: Call, model: str, quirks: Quirks) -> Encoded:
        """The body of the request."""
        raise TypeError("a dialect's backend says how")

    def reader(self, call: Call, relay: bool, quirks: Quirks) -> Reader:
        """A reader of its streams."""
        raise TypeError("a dialect's backend says how")

    def whole(self, call: Call, body: bytes, relay: bool) -> list[Event]:
        """The events of an answer that is no stream."""
        raise TypeError("a dialect's backend says how")

    # --- one generation --------------------------------------------------------------------

    async def answer(
        self, call: Call, target: Target, limits: Waits
    ) -> AsyncGenerator[Event, None]:
        """
        Send one generation request and yield its events.

        Raises:
            UpstreamRefused: an error status, an error inside the answer, or (unsent) a
                request that this dialect has no words for.
            UpstreamBroken: the connection failed, or was cut.
            UpstreamNonsense: an answer that is none.
            InvalidRequest: the request is wrong in itself.
            PrivacyRefused: `call.local_only`, and the address is not this machine.
        """
        if not call.stream:
            for event in await self.reply(call, target, limits):
                yield event
            return
        quirks, encoded, response = await self._ask(call, target, limits)
        try:
            yield Opened(response.status, tuple(response.headers), encoded.before)
            reader = self.reader(call, encoded.relay, quirks)
            async for data in response:
                for event in reader.feed(data):
                    if _ends(event):
                        # The terminator is the end; only framing can follow.
                        response.finish()
                        yield event
                        return
                    yield event
                if reader.failure is not None:
                    raise reader.failure
            for event in reader.close():
                yield event
        except UpstreamRefused as refused:
            refused.body = keys.redacted(refused.body, self.provider.keys)
            raise
        finally:
            response.close()

    async def reply(self, call: Call, target: Target, limits: Waits) -> list[Event]:
        """The events of an answer that is no stream; raises what `answer` does."""
        _, encoded, response = await self._ask(call, target, limits)
        try:
            body = await response.read()
            opened = Opened(response.status, tuple(response.headers), encoded.before)
            return [opened, *self.whole(call, body, encoded.relay)]
        except UpstreamRefused as refused:
            refused.body = keys.redacted(refused.body, self.provider.keys)
            raise
        finally:
            response.close()

    async def _ask(
        self, call: Call, target: Target, limits: Waits
    ) -> tuple[Quirks, Encoded, UpstreamResponse]:
        """An answer with a success status, after at most `LESSONS_MOST` smaller requests."""
        base = self._base_quirks(call, target.model)
        before: tuple[UpstreamRefused, ...] = ()
        try:
            while True:
                quirks = self._learned.over(base, target.model)
                encoded = self._encoded(call, target.model, quirks)
                response = await self._send(call, target, limits, encoded.body)
                if response.status < 400:
                    if before:
                        encoded = msgspec.structs.replace(encoded, before=before)
                    return quirks, encoded, response
                refused = await self._refusal(response)
                if len(before) == LESSONS_MOST or not self._learned.from_refusal(
                    refused, target.model, encoded.body
                ):
                    raise refused
                before = (*before, refused)
        except UpstreamError as error:
            error.before = before
            raise

    def _encoded(self, call: Call, model: str, quirks: Quirks) -> Encoded:
        try:
            return self.encoded(call, model, quirks)
        except NotTranslatable as error:
            raise untranslated(error) from error

    def _base_quirks(self, call: Call, model: str) -> Quirks:
        """The catalogue's quirks of a model; made once, for they match patterns and merge."""
        key = (model, call.needs.thinking)
        quirks = self._quirks.get(key)
        if quirks is None:
            quirks = self.provider.quirks(model)
            if self.provider.spec.unless_thinking and not call.needs.thinking:
                quirks = merge(quirks, Quirks(defaults=self.provider.spec.unless_thinking))
            if len(self._quirks) >= MODELS_MOST:
                self._quirks.clear()
            self._quirks[key] = quirks
        return quirks

    def _send(
        self, call: Call, target: Target, limits: Waits, body: bytes
    ) -> Coroutine[Any, Any, UpstreamResponse]:
        # The same tuple each time where a call adds nothing: the client knows its head by it.
        headers = self._headers_for(target.key_label)
        if more := self.call_headers(call):
            headers = (*headers, *more)
        return self._upstream.send(
            self.provider.base_url + self.path_of(call, target.model),
            headers=headers,
            body=body,
            connect_s=limits.connect_s,
            first_byte_s=limits.first_token_s,
            stall_s=limits.stall_s,
            local_only=call.local_only,
        )

    async def _refusal(self, response: UpstreamResponse) -> UpstreamRefused:
        """The refusal that an error status is; a cut body does not change the status."""
        body = bytearray()
        try:
            async for data in response:
                body += data
                if len(body) > ERROR_BYTES:
                    break
        except UpstreamBroken:
            pass
        finally:
            response.close()
        text = keys.redacted(bytes(body[:ERROR_BYTES]), self.provider.keys)
        return UpstreamRefused(response.status, text, response.headers)

    def _headers_for(self, label: str) -> tuple[tuple[str, str], ...]:
        """All headers of a request with the key that *label* names; made once a key."""
        made = self._headers.get(label)
        if made is None:
            secret = keys.chosen(self.provider.keys, label)
            made = self._headers[label] = (
                ("content-type", "application/json"),
                ("user-agent", "localfirst"),
                *self.provider.spec.headers,
                *self.key_headers(secret),
            )
        return made

    # --- beside generations ----------------------------------------------------------------

    @property
    def learned(self) -> Mapping[str, Quirks]:
        """What refusals have taught so far, by model."""
        return self._learned.by_model

    async def models(self, *, local_only: bool = False) -> list[str]:
        """
        The ids that the provider lists now; empty when it has no list.

        Raises:
            UpstreamError: it did not answer, refused, or sent no list.
        """
        if not self.provider.spec.models_path:
            return []
        url = self.provider.base_url + self.provider.spec.models_path
        body = await self._fetch(url, local_only)
        try:
            found = model_ids(msgspec.json.decode(body))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise UpstreamNonsense("the model list is not JSON") from error
        return found

    async def _fetch(self, url: str, local_only: bool) -> bytes:
        response = await self._upstream.send(
            url,
            method="GET",
            headers=self._headers_for(""),
            first_byte_s=LIST_S,
            stall_s=LIST_S,
            local_only=local_only,
        )
        if response.status >= 400:
            raise await self._refusal(response)
        return await response.read(LIST_BYTES)

    async def aclose(self) -> None:
        """Nothing of its own to close."""


def _ends(event: Event) -> bool:
    return isinstance(event, Finished) or (isinstance(event, Relayed) and event.final)


def model_ids(document: Json) -> list[str]:
    """
    The ids in a model list: `{"data": [{"id"}]}`, a bare list, or `{"models": [{"name"}]}`.

    Gemini's `models/` in front is not part of the name that requests use.
    """
    items = document
    if isinstance(document, dict):
        items = document.get("data", document.get("models"))
    if not isinstance(items, list):
        raise UpstreamNonsense("the model list has no list in it")
    found = []
    for item in items:
        name = item if isinstance(item, str) else None
        if isinstance(item, dict):
            name = item.get("id") or item.get("name")
        if isinstance(name, str) and 0 < len(name) <= 200:
            found.append(name.removeprefix("models/"))
    return list(dict.fromkeys(found))

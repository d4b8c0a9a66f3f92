"""One request as a handler sees it: its facts, its body, and the ways to answer it."""

from __future__ import annotations

import functools
import itertools
import os
import secrets
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import msgspec

from localfirst.errors import LocalFirstError
from localfirst.events import Reply
from localfirst.gateway.exchange import Exchange
from localfirst.gateway.refusal import (
    JSON_LINES,
    attempt_headers,
    error_body_for,
    error_headers,
    rendered,
)

if TYPE_CHECKING:
    from localfirst.runtime import Answer

Headers = list[tuple[bytes, bytes]]
Facts = tuple[tuple[str, str], ...]

ID = "x-localfirst-request-id"

_NUMBERS = itertools.count()
_STEM = ""


def _begin_ids() -> None:
    """Make this process's own stem; workers are forks, and would number alike."""
    global _STEM
    _STEM = f"req_{secrets.token_hex(8)}"


_begin_ids()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_ids)


class Request:
    """
    A request and its answer.

    `fields` has the last value of each header. `surface` names the route for logs and metrics;
    `model`, `rung`, `route` and `outcome` are filled in as they become known. `body` may be
    asked for once. After `answer` or `end` nothing more may be written.
    """

    surface = "none"
    model = rung = route = ""
    outcome = "ok"
    status = sent_bytes = 0

    def __init__(self, exchange: Exchange, began: float) -> None:
        repeat = exchange.repeat
        self._exchange = exchange
        self.began = began
        self.head = repeat.head
        self.fields = repeat.fields
        self.repeat = repeat
        self.id = f"{_STEM}{next(_NUMBERS):08x}"
        self.extra_headers: Headers = []

    # --- the question ----------------------------------------------------------------------

    @property
    def method(self) -> str:
        """As it came."""
        return self.head.method

    @property
    def path(self) -> bytes:
        """Raw, without its query."""
        return self.head.path

    @property
    def query(self) -> bytes:
        """What followed the question mark, raw."""
        return self.head.query

    @property
    def headers(self) -> Headers:
        """Every header in its order, names in lower case."""
        return self.head.headers

    @property
    def server(self) -> tuple[str, int]:
        """Address and port at which the client found us."""
        return self._exchange.server

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header; `fields` has the last one."""
        return [value for key, value in self.headers if key == name]

    async def body(self) -> bytes:
        """
        The whole body.

        Raises:
            StreamInterrupted: the client hung up before its end.
        """
        return await self._exchange.receive()

    def learn(self, answer: Answer) -> bytes:
        """Remember who answers; returns the `x-localfirst-*` lines that say so."""
        target = answer.target
        self.model, self.rung, self.route = target.model, target.rung, target.provider
        return self._said(answer.facts())

    def learn_reply(self, reply: Reply, facts: Facts) -> bytes:
        """The same for an answer that is whole already."""
        self.model, self.rung = reply.model, reply.rung
        self.route = reply.route.partition("/")[0]
        return self._said(facts)

    def _said(self, facts: Facts) -> bytes:
        """Header lines: facts that repeat, rendered once, and the request's own id."""
        return b"%bx-localfirst-request-id: %b\r\n" % (_lines(facts), self.id.encode())

    # --- the answer ------------------------------------------------------------------------

    def start(self, status: int, lines: bytes) -> None:
        """Begin a streamed answer with these rendered headers."""
        self.status = status
        self._exchange.start(status, self._with_extra(lines))

    def write(self, data: bytes) -> Awaitable[None]:
        """Write a piece, and wait while the client is behind."""
        self.sent_bytes += len(data)
        return self._exchange.write(data)

    def end(self) -> Awaitable[None]:
        """The answer is complete."""
        return self._exchange.write(b"", last=True)

    def answer(self, data: bytes, lines: bytes, status: int = 200) -> Awaitable[None]:
        """Write a whole answer with these rendered headers."""
        self.status = status
        self.sent_bytes += len(data)
        return self._exchange.answer(status, self._with_extra(lines), data)

    async def json(self, data: bytes, *more: tuple[bytes, bytes]) -> None:
        """Write a whole JSON answer."""
        facts = [(ID.encode(), self.id.encode()), *more]
        await self.answer(data, JSON_LINES + rendered(facts))

    async def struct(self, value: object) -> None:
        """Write anything that msgspec encodes."""
        await self.json(msgspec.json.encode(value))

    async def fail(self, error: LocalFirstError, *, close: bool = False) -> None:
        """Write an error in the surface's shape; nothing when an answer has begun."""
        if self.status:
            return
        self.outcome = error.code
        body = error_body_for(self.path, self.fields)(error, request_id=self.id)
        headers = [*error_headers(error), *attempt_headers(error, self.id)]
        if close:
            self._exchange.keep_alive = False
        await self.answer(body, rendered(headers), error.http_status)

    def _with_extra(self, lines: bytes) -> bytes:
        return lines + rendered(self.extra_headers) if self.extra_headers else lines


@functools.lru_cache(maxsize=256)
def _lines(facts: Facts) -> bytes:
    return rendered([(name.encode(), value.encode("latin-1")) for name, value in facts])

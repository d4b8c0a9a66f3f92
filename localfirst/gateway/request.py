"""One request as a handler sees it: its facts, its body, and the ways to answer it."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from localfirst.errors import LocalFirstError, StreamInterrupted
from localfirst.events import Reply
from localfirst.gateway.hub import Receive, Scope, Send
from localfirst.gateway.refusal import (
    JSON_TYPE,
    SAFE,
    ErrorBody,
    attempt_headers,
    error_body_for,
    error_headers,
)

if TYPE_CHECKING:
    from localfirst.runtime import Answer

Headers = list[tuple[bytes, bytes]]

_NUMBERS = itertools.count()
_STEM = ""


def _begin_ids() -> None:
    """Make this process's own stem; workers are forks, and would number alike."""
    global _STEM  # noqa: PLW0603
    _STEM = f"req_{secrets.token_hex(8)}"


_begin_ids()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_ids)

CLOSE = (b"connection", b"close")


class Request:
    """
    A request and its answer.

    `path` and `query` are raw bytes. `surface` names the route for logs and metrics;
    `model`, `rung`, `route` and `outcome` are filled in as they become known. `body` may be
    asked for once. After `answer` or `end` nothing more may be written.
    """

    __slots__ = (
        "_receive",
        "_send",
        "began",
        "error_body",
        "extra_headers",
        "fields",
        "headers",
        "id",
        "method",
        "model",
        "outcome",
        "path",
        "query",
        "route",
        "rung",
        "sent_bytes",
        "server",
        "status",
        "surface",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        self._receive = receive
        self._send = send
        self.began = began
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.fields = dict(self.headers)
        self.server: tuple[str, int] = scope["server"]
        self.id = f"{_STEM}{next(_NUMBERS):08x}"
        self.error_body: ErrorBody = error_body_for(self.path)
        self.extra_headers: Headers = []
        self.surface = "none"
        self.model = self.rung = self.route = ""
        self.outcome = "ok"
        self.status = 0
        self.sent_bytes = 0

    # --- the question ----------------------------------------------------------------------

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header; `fields` has the last one."""
        return [value for key, value in self.headers if key == name]

    async def body(self) -> bytes:
        """
        The whole body.

        Raises:
            StreamInterrupted: the client hung up before its end.
        """
        pieces = []
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise StreamInterrupted("the client hung up before its request was whole")
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def learn(self, answer: Answer) -> Headers:
        """Remember who answers; returns the `x-localfirst-*` headers that say so."""
        target = answer.target
        self.model, self.rung, self.route = target.model, target.rung.value, target.provider
        return [(name.encode(), value.encode("latin-1")) for name, value in answer.headers()]

    def learn_reply(self, reply: Reply, headers: Sequence[tuple[str, str]]) -> Headers:
        """The same for an answer that is whole already."""
        self.model, self.rung = reply.model, reply.rung.value
        self.route = reply.route.partition("/")[0]
        return [(name.encode(), value.encode("latin-1")) for name, value in headers]

    # --- the answer ------------------------------------------------------------------------

    async def start(self, status: int, headers: Headers) -> None:
        """Write the head of a streamed answer."""
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers + self.extra_headers,
            }
        )

    async def write(self, data: bytes) -> None:
        """Write a piece, and wait while the client is behind."""
        self.sent_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Write the last piece: the answer is complete."""
        self.sent_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, data: bytes, headers: Headers, status: int = 200) -> None:
        """Write a whole answer."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(data))])
        await self.end(data)

    async def json(self, data: bytes, *more: tuple[bytes, bytes]) -> None:
        """Write a whole JSON answer."""
        facts = [(b"x-localfirst-request-id", self.id.encode())]
        await self.answer(data, [JSON_TYPE, *SAFE, *facts, *more])

    async def struct(self, value: object) -> None:
        """Write anything that msgspec encodes."""
        await self.json(msgspec.json.encode(value))

    async def fail(self, error: LocalFirstError, *, close: bool = False) -> None:
        """Write an error in the surface's shape; nothing when an answer has begun."""
        if self.status:
            return
        self.outcome = error.code
        body = self.error_body(error, request_id=self.id)
        headers = [*error_headers(error), *attempt_headers(error, self.id)]
        if close:
            headers.append(CLOSE)
        await self.answer(body, headers, error.http_status)

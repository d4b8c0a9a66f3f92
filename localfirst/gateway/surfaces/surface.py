"""What one surface is: its reader, its writers, its media types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from localfirst.errors import LocalFirstError
from localfirst.events import Event, Reply
from localfirst.gateway.refusal import SAFE, rendered
from localfirst.gateway.request import Request
from localfirst.types import Call, ChatRequest, Dialect
from localfirst.wire.peek import Peek

# nginx gathers an answer before it hands it on unless this header says otherwise:
# https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering
_AS_IT_COMES = (b"x-accel-buffering", b"no")

SSE = rendered([(b"content-type", b"text/event-stream; charset=utf-8"), *SAFE, _AS_IT_COMES])
NDJSON = rendered([(b"content-type", b"application/x-ndjson"), *SAFE, _AS_IT_COMES])


class Writer(Protocol):
    """Writes one streamed answer in a surface's words."""

    def write(self, event: Event) -> bytes:
        """The bytes of an event, or none."""
        ...

    def error(self, err: LocalFirstError) -> bytes:
        """The bytes that end a stream in failure."""
        ...


class Asked(msgspec.Struct, kw_only=True):
    """What a surface's writers may know of the request; times are seconds since 1970."""

    request: Request
    call: Call
    model: str
    created: float
    unix: Callable[[], float]


class Surface(msgspec.Struct, frozen=True, kw_only=True):
    """
    A generation route.

    `relay` says that a backend of the same dialect may hand its bytes through, which holds
    where `dialect` has one kind of generation request only.
    """

    dialect: Dialect
    peek: Callable[[bytes], Peek]
    decode: Callable[[bytes], ChatRequest]
    writer: Callable[[Asked], Writer]
    reply: Callable[[Reply, Asked], bytes]
    stream_lines: bytes = SSE
    relay: bool = False

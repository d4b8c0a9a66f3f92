"""Errors as answers: in the shape of the surface that was asked, with or without a handler."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence

from localfirst.errors import AccessDenied, CascadeExhausted, LocalFirstError
from localfirst.gateway.exchange import STATUS_LINES
from localfirst.types import FailureClass
from localfirst.wire.anthropic import answers as anthropic
from localfirst.wire.ollama import answers as ollama
from localfirst.wire.openai import answers as openai

Headers = list[tuple[bytes, bytes]]

ErrorBody = Callable[..., bytes]

AT_HOME = frozenset({"local", "pull"})
"""Providers that are this machine itself."""

HOPELESS = frozenset({FailureClass.CONFIG, FailureClass.AUTH})
"""What the same request again cannot mend; OpenAI's and Anthropic's clients would send it twice
more, and ask `x-should-retry` first (`_base_client.py` of either)."""

SAFE: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
"""On every answer: no sniffing, no caches, no other page's `<img>`."""

REQUEST_IDS = (b"x-localfirst-request-id", b"x-request-id", b"request-id")
"""Ours, and where OpenAI's and Anthropic's clients look for what they show with an error."""

JSON_TYPE = (b"content-type", b"application/json; charset=utf-8")


def rendered(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Headers as the lines that go over the wire."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


JSON_LINES = rendered([JSON_TYPE, *SAFE])
"""What stands on every JSON answer."""


def error_body_for(path: bytes, headers: Container[bytes] = ()) -> ErrorBody:
    """The error writer of the surface that *path*, asked with *headers*, belongs to."""
    if path.startswith(b"/api/"):
        return ollama.error_body
    # Two APIs have `/v1/models`, and clients of one of them always name its version.
    shared = path.startswith(b"/v1/models")
    if path.startswith(b"/v1/messages") or (shared and b"anthropic-version" in headers):
        return anthropic.error_body
    return openai.error_body


def error_headers(error: LocalFirstError) -> Headers:
    """What an error says beside its body: when to come back, how to authenticate."""
    headers: Headers = [JSON_TYPE, *SAFE, (b"x-localfirst-code", error.code.encode("ascii"))]
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    if isinstance(error, CascadeExhausted) and error.dominating in HOPELESS:
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, AccessDenied) and error.allow:
        headers.append((b"allow", ", ".join(error.allow).encode()))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def attempt_headers(error: LocalFirstError, request_id: str) -> Headers:
    """The `x-localfirst-*` facts of an error: who was asked, and who saw the request."""
    known = request_id.encode()
    facts: Headers = [(name, known) for name in REQUEST_IDS]
    attempts = getattr(error, "attempts", None)
    if attempts is None:
        return facts
    sent = [one for one in attempts if one.sent]
    egress = error.egress
    if egress is None:
        egress = tuple(dict.fromkeys(one.provider for one in sent if one.provider not in AT_HOME))
    trail = ",".join(f"{one.provider}={one.outcome}" for one in attempts)
    return [
        *facts,
        (b"x-localfirst-attempts", b"%d" % len(sent)),
        (b"x-localfirst-trail", _plain(trail)),
        (b"x-localfirst-egress", _plain(",".join(egress) or "none")),
    ]


def _plain(text: str) -> bytes:
    """What may stand in a header (RFC 9110 §5.5), of bounded length."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:1000].encode()


def refusal(error: LocalFirstError, path: bytes, *, date: bytes) -> bytes:
    """A whole HTTP answer for a client that never got as far as the application."""
    body = error_body_for(path)(error, request_id="")
    headers = [
        *error_headers(error),
        (b"content-length", b"%d" % len(body)),
        (b"date", date),
        (b"connection", b"close"),
    ]
    return STATUS_LINES[error.http_status] + rendered(headers) + b"\r\n" + body

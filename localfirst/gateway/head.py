"""
The head of an HTTP/1.1 request, read strictly.

There is one reader and it takes nothing it does not understand: no bare line feeds, no
folded lines, no second length, no target that is not a plain path. Two readers that see
two requests in the same bytes is what request smuggling lives on.

Source: RFC 9112 §2–6, RFC 9110 §5.5–5.6. What passes here also passes llhttp unchanged.
"""

from __future__ import annotations

import re

import msgspec

from localfirst.errors import AccessDenied

HEAD_LIMIT_BYTES = 32 * 2**10
"""The whole head; nginx allows 4 × 8 KiB, Node 16 KiB."""

TARGET_LIMIT_BYTES = 8 * 2**10
"""As nginx's largest header buffer."""

HEADERS_LIMIT = 100
"""Apache's `LimitRequestFields`."""

_LINE = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/1\.([01])")
_FIELDS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"[0-9]{1,20}")
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")

Headers = list[tuple[bytes, bytes]]


class Head(msgspec.Struct, frozen=True, gc=False):
    """
    A request's head.

    `path` and `query` are raw bytes, nothing decoded; `length` is None without a body of
    known length, and no part of `headers`; `keep_alive` is what the client offers; `expects` a
    `100 Continue`.
    """

    method: str
    path: bytes
    query: bytes
    headers: Headers
    http_11: bool
    length: int | None
    chunked: bool
    keep_alive: bool
    expects: bool


def malformed(message: str, *, code: str = "request-malformed", status: int = 400) -> AccessDenied:
    """The refusal of a request that is not HTTP as we speak it."""
    return AccessDenied(message, code=code, status=status, hint="send plain HTTP/1.1")


def parse(data: bytes) -> Head:
    """
    The head in *data*: everything up to and with the blank line.

    Raises:
        AccessDenied: 400, 405, 414, 417, 431 or 501; the connection cannot be used further.
    """
    end = data.find(b"\r\n")
    method, path, query, http_11 = request_line(data[:end])
    if len(data) > HEAD_LIMIT_BYTES:
        raise _too_large()
    headers = fields(data[end + 2 : -2])
    length, chunked, keep_alive, expects = None, False, http_11, False
    for name, value in headers:
        if name == b"content-length":
            length = _length(value, length)
        elif name == b"transfer-encoding":
            chunked = _chunked(value, chunked, http_11)
        elif name == b"connection":
            keep_alive = _keeps(value, keep_alive)
        elif name == b"expect":
            expects = _expects(value)
    if length is not None:
        if chunked:
            raise malformed("both `content-length` and `transfer-encoding`")
        headers = [pair for pair in headers if pair[0] != b"content-length"]
    return Head(
        method, path, query, headers, http_11, length, chunked, keep_alive, expects and http_11
    )


def check_unfinished(data: bytes) -> None:
    """Raises `AccessDenied` as soon as the bytes so far cannot become a head."""
    if not 0x41 <= data[0] <= 0x5A:
        raise malformed("the first byte begins no request")
    if _BARE_LF.search(data):
        raise malformed("a line ends without a carriage return")
    end = data.find(b"\r\n")
    if end >= 0:
        request_line(data[:end])
    elif len(data) > TARGET_LIMIT_BYTES:
        raise _too_long()
    if len(data) > HEAD_LIMIT_BYTES:
        raise _too_large()


def request_line(line: bytes) -> tuple[str, bytes, bytes, bool]:
    """Method, raw path, raw query and whether it is HTTP/1.1."""
    if len(line) > TARGET_LIMIT_BYTES:
        raise _too_long()
    match = _LINE.fullmatch(line)
    if match is None:
        raise malformed("the request line is not `METHOD /path HTTP/1.1`")
    method, target, minor = match.groups()
    if method == b"CONNECT":
        raise malformed("this is no proxy", code="method-not-allowed", status=405)
    if method == b"TRACE" or not _TARGET.fullmatch(target):
        raise malformed("the target must be a path", code="target-malformed")
    path, _, query = target.partition(b"?")
    return method.decode(), path, query, minor == b"1"


def fields(block: bytes) -> Headers:
    """Header fields of a block of whole lines, names in lower case, values trimmed."""
    if not _FIELDS.fullmatch(block):
        raise malformed("a header line is malformed")
    lines = block.split(b"\r\n")
    if len(lines) > HEADERS_LIMIT + 1:
        raise _too_large()
    headers = []
    for line in lines[:-1]:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    return headers


def _length(value: bytes, before: int | None) -> int:
    if before is not None or not _LENGTH.fullmatch(value):
        raise malformed("`content-length` must be one number")
    return int(value)


def _chunked(value: bytes, before: bool, http_11: bool) -> bool:
    if before or not http_11:
        raise malformed("`transfer-encoding` may come once, and in HTTP/1.1 only")
    if value.lower() != b"chunked":
        raise malformed(
            "only `transfer-encoding: chunked` is spoken", code="encoding-not-spoken", status=501
        )
    return True


def _keeps(value: bytes, default: bool) -> bool:
    words = {word.strip() for word in value.lower().split(b",")}
    return False if b"close" in words else b"keep-alive" in words or default


def _expects(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise malformed("only `100-continue` can be expected", code="expect-not-met", status=417)
    return True


def _too_long() -> AccessDenied:
    return malformed("the target is longer than 8 KiB", code="target-too-long", status=414)


def _too_large() -> AccessDenied:
    return malformed(
        "the head is larger than 32 KiB or 100 fields", code="head-too-large", status=431
    )

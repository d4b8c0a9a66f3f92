"""
The same head again: what the last request on a connection said, and what was found of it.

Clients send one head with every request of a connection, but for the length of the body. It
is read, and judged at the door, once; a head that differs in any other byte is a new one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from localfirst.gateway.head import Head, Headers

if TYPE_CHECKING:
    from localfirst.gateway.guard import Guard
    from localfirst.gateway.routes import Route

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
_DIGITS_MOST = 20
NAME = b"content-length"


class Repeat:
    """
    One head as it came, and as it was read.

    `guard` is who let it in, and `route` where to; None until then. `extra_headers` are what
    the guard adds to every answer.
    """

    __slots__ = ("_after", "_before", "_place", "extra_headers", "guard", "head", "route")

    def __init__(self, data: bytes, head: Head) -> None:
        self.head = head
        self.guard: Guard | None = None
        self.route: Route | None = None
        self.extra_headers: Headers = []
        found = _LENGTH.search(data)
        begin, end = found.span(1) if found else (len(data), len(data))
        self._before, self._after = data[:begin], data[end:]
        self._place = next((n for n, (name, _) in enumerate(head.headers) if name == NAME), -1)

    def again(self, data: bytes) -> Head | None:
        """The head in *data* where it is this one but for its length; else None."""
        before = self._before
        if not data.startswith(before):
            return None
        if not self._after:
            return self.head if len(data) == len(before) else None
        digits = data[len(before) : -len(self._after)]
        if not data.endswith(self._after) or not digits.isdigit() or len(digits) > _DIGITS_MOST:
            return None
        head = self.head
        headers = head.headers.copy()
        headers[self._place] = (NAME, digits)
        return Head(
            head.method,
            head.path,
            head.query,
            headers,
            head.http_11,
            int(digits),
            head.chunked,
            head.keep_alive,
            head.expects,
        )

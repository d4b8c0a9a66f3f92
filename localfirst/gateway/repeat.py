"""
The same head again: what the last request on a connection said, and what was found of it.

Clients send one head with every request of a connection, but for the length of the body. It
is read, and judged at the door, once; a head that differs in any other byte is a new one.
What was read of it is shared by its requests, and nobody changes it.
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


class Repeat:
    """
    One head as it came, and as it was read.

    `fields` has the last value of each header. `guard` is who let it in, and `route` where to;
    None until then. `extra_headers` are what the guard adds to every answer.
    """

    __slots__ = ("_after", "_before", "extra_headers", "fields", "guard", "head", "route")

    def __init__(self, data: bytes, head: Head) -> None:
        self.head = head
        self.fields = dict(head.headers)
        self.guard: Guard | None = None
        self.route: Route | None = None
        self.extra_headers: Headers = []
        found = _LENGTH.search(data)
        begin, end = found.span(1) if found else (len(data), len(data))
        self._before, self._after = data[:begin], data[end:]

    def again(self, data: bytes) -> int:
        """The length of the body behind *data* where that is this head again; else -1."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return -1
        if not after:
            return 0 if len(data) == len(before) else -1
        digits = data[len(before) : -len(after)]
        if not data.endswith(after) or not digits.isdigit() or len(digits) > _DIGITS_MOST:
            return -1
        return int(digits)

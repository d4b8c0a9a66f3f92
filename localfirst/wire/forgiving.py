"""
JSON of other people's servers, read in spite of what is wrong with it.

Only for answers: what a client sends is held to the standard (`strict_json`).
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Generic, TypeVar

import msgspec
from msgspec import Raw

from localfirst.types import Json

ABSENT = Raw(b"")
NO_ERROR = (ABSENT, *map(Raw, (b"null", b'""', b"{}", b"[]", b"false")))
"""What servers that always write an `error` write where there is none."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON that was wanted: not only its own errors."""

TOKENS_MOST = 10**8
"""Six times the largest window there is (`fields.MAX_CONTEXT_TOKENS`): more was never counted."""

_HALVES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


Kind = TypeVar("Kind")


class Decoder(Generic[Kind]):
    """Reads one kind of payload: at once where it is as it should be, else with patience."""

    __slots__ = ("_patient", "_quick")

    def __init__(self, kind: type[Kind]) -> None:
        self._quick = msgspec.json.Decoder(kind)
        self._patient = msgspec.json.Decoder(kind, strict=False)

    def decode(self, data: bytes) -> Kind:
        """
        The payload in *data*; numbers may stand there as text, and see `loads`.

        Raises:
            msgspec.DecodeError: it is none even so.
            RecursionError: it nests too deep.
        """
        try:
            return self._quick.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._patient.decode(msgspec.json.encode(loads(data)))


def tokens(count: int | None) -> int:
    """
    A count of tokens as a server tells it; 0 for none, and for one that nobody can have counted.

    Counts are paid for by list price, so that one of 10**30 would have used up every budget.
    """
    return count if count is not None and 0 <= count <= TOKENS_MOST else 0


def loads(data: bytes) -> Json:
    """
    The value in *data*.

    Survived are `NaN` (Python's servers write it among logprobs), halves of characters outside
    the basic plane where a text was cut between them, bytes that are not UTF-8, a byte order
    mark, and numbers too large.

    Raises:
        msgspec.DecodeError: it is no JSON even so.
        RecursionError: it nests too deep.
    """
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(data)
    text = _HALVES.sub(r"\\ufffd", data.decode("utf-8-sig", "replace"))
    try:
        value = json.loads(text, parse_constant=lambda _: None)
        msgspec.json.encode(value)  # what cannot be written again must not come in
    except (ValueError, OverflowError) as exc:
        raise msgspec.DecodeError(str(exc)) from exc
    return value

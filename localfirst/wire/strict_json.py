"""
JSON from strangers, read strictly.

Python's own reader takes NaN, duplicate keys, lone surrogates, any Unicode encoding and
any depth; each of these has been a hole somewhere (two parsers that see two documents, an
answer that cannot be encoded any more). Here each is an `InvalidRequest` that says which.

Source: RFC 8259 §2–8 and §9 on limits.
"""

from __future__ import annotations

import json
import math
import re

from localfirst.errors import InvalidRequest
from localfirst.types import Json

MAX_DEPTH = 64
MAX_INTEGER_DIGITS = 64
MAX_KEY_CHARS = 4096

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Whole strings are stepped over in runs, so that long texts cost little.
_OUTSIDE_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|([\[{]+)|([\]}]+)', re.DOTALL)


def loads(body: bytes) -> Json:
    """
    The JSON value in *body*.

    Raises:
        InvalidRequest: not UTF-8, a byte order mark, malformed, too deep, a duplicate or huge
            key, NaN or Infinity, a number that overflows, or a lone surrogate.
    """
    text = text_of(body)
    check_depth(body)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        raise InvalidRequest(
            f"the body is not valid JSON: {exc.msg.lower()} at character {exc.pos}",
            code="invalid-json",
        ) from exc
    if _SURROGATE_ESCAPE.search(body):
        check_surrogates(value)
    return value


def load_object(body: bytes) -> dict[str, Json]:
    """`loads`, and the top level must be an object."""
    value = loads(body)
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid-json")
    return value


def text_of(body: bytes) -> str:
    """*body* as text; raises `InvalidRequest` unless it is plain UTF-8 without a BOM."""
    if not body.strip():
        raise InvalidRequest("the body is empty; send a JSON object", code="invalid-json")
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidRequest("the body starts with a byte order mark", code="invalid-json")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"the body is not UTF-8 (byte {exc.start})", code="invalid-json"
        ) from exc


def check_depth(body: bytes) -> None:
    """Raises `InvalidRequest` when *body* nests deeper than `MAX_DEPTH`."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _OUTSIDE_STRINGS.finditer(body):
        if match.lastindex == 1:
            depth += match.end() - match.start()
            if depth > MAX_DEPTH:
                raise InvalidRequest(
                    f"the body nests deeper than {MAX_DEPTH} levels", code="invalid-json"
                )
        elif match.lastindex == 2:
            depth -= match.end() - match.start()


def check_surrogates(value: Json) -> None:
    """Raises `InvalidRequest` when a text inside *value* is half of a surrogate pair."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if _LONE_SURROGATE.search(item):
                raise InvalidRequest("a text holds a lone surrogate", code="invalid-json")
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) == len(pairs) and all(len(key) <= MAX_KEY_CHARS for key in found):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(
                f"the key `{key[:80]}` appears twice in one object",
                field=key[:80],
                code="invalid-json",
            )
        seen.add(key)
    raise InvalidRequest(f"a key is longer than {MAX_KEY_CHARS} characters", code="invalid-json")


def _constant(name: str) -> Json:
    raise InvalidRequest(f"`{name}` is not JSON", code="invalid-json")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidRequest(f"the number `{text[:40]}` is too large", code="invalid-json")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise InvalidRequest(
            f"an integer has more than {MAX_INTEGER_DIGITS} digits", code="invalid-json"
        )
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_constant, parse_float=_float, parse_int=_integer
)

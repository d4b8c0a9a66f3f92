"""
A cheap look at a request: what routing needs, without decoding what it does not.

msgspec reads the few fields in place; the body itself is forwarded or decoded later. The
strictness of `strict_json` that touches routing is kept: UTF-8, depth, surrogates and
duplicate keys are looked for here too, the costly way only where a cheap test hints at one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from localfirst.errors import InvalidRequest
from localfirst.types import Needs
from localfirst.wire import strict_json
from localfirst.wire.fields import MAX_IMAGES, REFUSED, refuse, wrong

BYTES_PER_TOKEN = 4
"""Rough size of a token in UTF-8 JSON; only candidates with too small a window depend on it."""

TOKENS_PER_IMAGE = 1100
"""About what vision models charge for one image of 1024 × 1024 pixels."""

_LONG_BASE64 = re.compile(rb"[A-Za-z0-9+/=_-]{1024,}")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")

SMALL_BYTES = 64 * 2**10
"""Below, writing a body once more is cheaper than looking at each of its fields."""

_ENCODER = msgspec.json.Encoder()
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])

Head = TypeVar("Head")


class Peek(msgspec.Struct, frozen=True):
    """
    What routing needs of one request; `model` is "auto" when the body names none.

    `fields` are those of the body, their values unread, where they may be passed on.
    """

    model: str
    stream: bool
    needs: Needs
    fields: dict[str, msgspec.Raw] | None = None


def head(
    body: bytes, decoder: msgspec.json.Decoder[Head], routed: tuple[bytes, ...]
) -> tuple[Head, dict[str, msgspec.Raw]]:
    """
    The struct that *decoder* reads from *body*, and all fields of *body*, unread.

    Args:
        body: the request, as it came.
        decoder: of a struct with the fields that matter; others are skipped.
        routed: quoted keys that must not appear twice (`b'"model"'`).

    Raises:
        InvalidRequest: not JSON, a wrong type, a duplicate routed key, a refused field.
    """
    try:
        found = decoder.decode(body)
    except RecursionError as exc:
        raise InvalidRequest("the body nests too deep", code="invalid-json") from exc
    except msgspec.ValidationError as exc:
        strict_json.load_object(body)
        raise _mismatch(str(exc)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        strict_json.load_object(body)
        raise InvalidRequest(f"the body is not valid JSON: {exc}", code="invalid-json") from exc
    return found, _checked(body, routed)


def raw_object(body: bytes) -> dict[str, msgspec.Raw]:
    """The top-level fields of a body that `head` has accepted, their values unread."""
    try:
        return _RAW_OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}", code="invalid-json") from exc


def has_images(body: bytes, marker: bytes, contents: Iterable[object]) -> bool:
    """
    Whether any part of the messages' *contents* holds *marker*.

    Raises:
        InvalidRequest: more of them than anybody means to send.
    """
    if marker not in body:
        return False
    lists = (content for content in contents if isinstance(content, list))
    count = sum(marker in bytes(part) for parts in lists for part in parts)
    if count > MAX_IMAGES:
        raise wrong("messages", f"with at most {MAX_IMAGES} images, not {count}")
    return count > 0


def prompt_tokens(body: bytes, *, images: bool) -> int:
    """An estimate of the prompt's tokens; base64 counts as images, not as text."""
    if not images:
        return len(body) // BYTES_PER_TOKEN
    runs = _LONG_BASE64.findall(body)
    text_bytes = len(body) - sum(map(len, runs))
    return text_bytes // BYTES_PER_TOKEN + max(1, len(runs)) * TOKENS_PER_IMAGE


def _mismatch(text: str) -> InvalidRequest:
    match = _PATH.search(text)
    path = match.group(1) if match else ""
    expected = text[: match.start()] if match else text
    missing = re.match(r"Object missing required field `(\w+)`", expected)
    if missing:
        path = f"{path}.{missing.group(1)}".lstrip(".")
        return InvalidRequest(f"`{path}` is required", field=path)
    sentence = expected[:1].lower() + expected[1:]
    return InvalidRequest(f"`{path or 'body'}`: {sentence}", field=path or "body")


def _checked(body: bytes, routed: tuple[bytes, ...]) -> dict[str, msgspec.Raw]:
    if not body.isascii():
        strict_json.text_of(body)
    fields = raw_object(body)
    if not REFUSED.isdisjoint(fields):
        refuse(fields.keys())
    twice = not _is_minimal(body, fields) and any(body.count(key) > 1 for key in routed)
    if twice or (b"\\u" in body and (b"\\ud" in body or b"\\uD" in body)):
        strict_json.loads(body)
    else:
        strict_json.check_depth(body)
    return fields


def _is_minimal(body: bytes, fields: dict[str, msgspec.Raw]) -> bool:
    """
    Whether *body* is exactly as long as its distinct fields need without any space.

    Then no key can be there twice, and nothing has to be searched; SDKs write such bodies.
    """
    return len(body) <= SMALL_BYTES and len(_ENCODER.encode(fields)) == len(body)

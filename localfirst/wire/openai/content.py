"""The content of a message in OpenAI's chat dialect: text, or parts with text and images."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence

from localfirst.types import ImagePart, Json, Message, Part, TextPart
from localfirst.wire.fields import MAX_IMAGES, MAX_PARTS, Fields, wrong
from localfirst.wire.refusal import NotTranslatable

_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]*/?[\w.+-]*)(?:;[\w=.+-]+)*;base64,", re.ASCII)
_TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
_IMAGE_TYPES = ("image_url", "input_image")

DEFAULT_MEDIA_TYPE = "image/png"


def content_of(item: Fields, name: str = "content") -> str | tuple[Part, ...]:
    """A message's content; null is empty text, and parts that are all text stay parts."""
    value = item.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(item.at(name), "a string or a list of parts")
    return tuple(_part(part) for part in item.objects(name, MAX_PARTS))


def _part(part: Fields) -> Part:
    kind = part.text("type")
    if kind in _TEXT_TYPES:
        name = "refusal" if kind == "refusal" else "text"
        if not part.has(name):
            raise wrong(part.at(name), "a string")
        return TextPart(text=part.text(name))
    if kind in _IMAGE_TYPES:
        return _image(part)
    if not kind:
        raise wrong(part.at("type"), "`text` or `image_url`")
    raise NotTranslatable(f"`{kind[:80]}` parts", field=part.at("type"))


def _image(part: Fields) -> ImagePart:
    value = part.get("image_url")
    if isinstance(value, str):
        return image_from_url(value, part.at("image_url"), part.text("detail"))
    inner = part.object("image_url")
    if inner is None:
        raise wrong(part.at("image_url"), "an object with a `url`")
    return image_from_url(inner.text("url"), inner.at("url"), inner.text("detail"))


def image_from_url(url: str, path: str, detail: str = "") -> ImagePart:
    """
    An image from a data URI, or a URL that a cloud may fetch; nothing is fetched here.

    Raises:
        InvalidRequest: another scheme (`file://`, `//host`), or data that is not base64.
    """
    match = _DATA_URI.match(url)
    if match:
        data = base64_of(url[match.end() :], path)
        return ImagePart(
            media_type=match.group("type") or DEFAULT_MEDIA_TYPE, data=data, detail=detail
        )
    if url.startswith(("https://", "http://")):
        return ImagePart(url=url, detail=detail)
    raise wrong(path, "a base64 `data:` URI or an http(s) URL")


def check_images(messages: Sequence[Message]) -> None:
    """Raises `InvalidRequest` when a request carries more images than anybody means to send."""
    count = sum(len(message.images) for message in messages)
    if count > MAX_IMAGES:
        raise wrong("messages", f"with at most {MAX_IMAGES} images, not {count}")


def base64_of(data: str, path: str) -> str:
    """
    *data* without line breaks, which `base64` writes and Go's decoder skips.

    Raises:
        InvalidRequest: it is no base64, or empty.
    """
    if "\n" in data or "\r" in data:
        data = data.replace("\n", "").replace("\r", "")
    try:
        decoded = binascii.a2b_base64(data, strict_mode=True)
    except (ValueError, binascii.Error) as exc:
        raise wrong(path, "base64 data") from exc
    if not decoded:
        raise wrong(path, "base64 data, and not empty")
    return data


def parts_of(message: Message) -> Json:
    """The content of a message as a chat completion request carries it."""
    if isinstance(message.content, str):
        return message.content
    if not message.images:
        return message.text
    return [_encoded(part) for part in message.content]


def _encoded(part: Part) -> dict[str, Json]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = part.url or f"data:{part.media_type};base64,{part.data}"
    # The newest of the details is one that only OpenAI's newest models take in a chat.
    detail = "high" if part.detail == "original" else part.detail
    image = {"url": url, "detail": detail} if detail else {"url": url}
    return {"type": "image_url", "image_url": image}

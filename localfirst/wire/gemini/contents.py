"""
A conversation as Gemini's `contents`: turns of `user` and `model`, made of parts.

The results of tools stand in one turn right behind the turn that called them, each with the
name of its function, and signatures go back where they came.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from localfirst.types import ChatRequest, ImagePart, Json, Message, TextPart, ToolCall
from localfirst.wire.conclusion import arguments_object, json_value
from localfirst.wire.gemini.marks import NOTHING, SKIP, Marks
from localfirst.wire.quirks import Quirks

Turn = dict[str, Json]

_SIGNED = re.compile(r"(models/)?gemini-(?![12])")
"""Models that refuse a call of the running turn without a signature."""

_MEDIA_TYPES = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "heic": "image/heic",
}
"""Of images by address, whose type must be named before anybody has seen them."""


def contents(request: ChatRequest, model: str, quirks: Quirks, marks: Marks) -> list[Json]:
    """The turns of *request*, the first of them the user's."""
    scribe = _Scribe(marks, skip=bool(_SIGNED.match(model)), ids="id" not in quirks.drop)
    turns: list[Turn] = []
    for message in request.messages:
        if message.role != "system":
            _add(turns, scribe.turn(message))
    if request.prompt is not None:
        _add(turns, {"role": "user", "parts": [{"text": request.prompt}]})
    if not turns or turns[0]["role"] != "user":
        turns.insert(0, {"role": "user", "parts": [{"text": "."}]})
    return [*turns]


def _add(turns: list[Turn], turn: Turn) -> None:
    """Join turns of one speaker, but never results of tools with what a person says."""
    if not turn["parts"]:
        return
    last = turns[-1] if turns else None
    if last and last["role"] == turn["role"] and _is_results(last) == _is_results(turn):
        last["parts"] += turn["parts"]
        # Results come first; images that belong to them follow.
        last["parts"].sort(key=lambda part: _is_results(turn) and "functionResponse" not in part)
    else:
        turns.append(turn)


def _is_results(turn: Turn) -> bool:
    return any("functionResponse" in part for part in turn["parts"])


class _Scribe:
    """Writes messages as turns, and keeps which call had which name."""

    def __init__(self, marks: Marks, *, skip: bool, ids: bool) -> None:
        self._marks = marks
        self._skip = skip
        self._ids = ids
        self._names: dict[str, str] = {}

    def turn(self, message: Message) -> Turn:
        if message.role == "tool":
            return {"role": "user", "parts": [self._result(message), *_images(message)]}
        parts = _said(message)
        if message.role == "assistant":
            return {"role": "model", "parts": parts + self._calls(message.tool_calls)}
        return {"role": "user", "parts": parts}

    def _calls(self, calls: tuple[ToolCall, ...]) -> list[Json]:
        # Of calls made at once Gemini signs the first; the others are complete without.
        signed = any(self._marks.of(call.id).signature for call in calls)
        return [self._call(call, skip=self._skip and not signed) for call in calls]

    def _call(self, call: ToolCall, *, skip: bool) -> Json:
        self._names[call.id] = call.name
        given = {"name": call.name, "args": arguments_object(call.arguments)}
        part: dict[str, Json] = {"functionCall": self._with_id(given, call.id)}
        signature = self._marks.of(call.id).signature or (SKIP if skip else "")
        return {**part, "thoughtSignature": signature} if signature else part

    def _result(self, message: Message) -> Json:
        name = self._names.get(message.tool_call_id) or message.name or "unknown"
        given = {"name": name, "response": _response(message)}
        return {"functionResponse": self._with_id(given, message.tool_call_id)}

    def _with_id(self, fields: dict[str, Json], identifier: str) -> dict[str, Json]:
        """Ids go back only where they came from: older models refuse the field."""
        mark = self._marks.of(identifier) if self._ids else NOTHING
        return {**fields, "id": identifier} if mark.own_id else fields


def _response(message: Message) -> Json:
    """A result as the object that is wanted: as it is, or under the name Google proposes."""
    if message.is_error:
        return {"error": message.text}
    found = json_value(message.text)
    return found if isinstance(found, dict) else {"output": message.text}


def _said(message: Message) -> list[Json]:
    parts = (
        (TextPart(text=message.content),) if isinstance(message.content, str) else message.content
    )
    found: list[Json] = []
    for part in parts:
        if isinstance(part, ImagePart):
            found.append(_image(part))
        elif part.text:
            found.append({"text": part.text})
    return found


def _images(message: Message) -> list[Json]:
    return [_image(image) for image in message.images]


def _image(part: ImagePart) -> Json:
    if part.url:
        ending = urlsplit(part.url).path.rpartition(".")[2].lower()
        media_type = _MEDIA_TYPES.get(ending, part.media_type)
        return {"fileData": {"fileUri": part.url, "mimeType": media_type}}
    return {"inlineData": {"mimeType": part.media_type, "data": part.data}}

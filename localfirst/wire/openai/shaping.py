"""
A request's fields made to fit one provider: what `Quirks` say, applied.

Works on decoded values and on raw ones (`msgspec.Raw`), so that a forwarded body is opened
only as far as a quirk reaches.
"""

from __future__ import annotations

import json
import re
import zlib

import msgspec

from localfirst.types import Json
from localfirst.wire.quirks import LIMITS, Quirks
from localfirst.wire.refusal import NotTranslatable

OURS = frozenset({"options", "keep_alive", "think", "num_ctx"})
"""Fields that this gateway understands beyond OpenAI's; no cloud does."""

ASKED_FOR = {
    "web_search_options": "a search in the web",
    "modalities": "answers that are no text",
}
"""Fields that no answer may do without; `{}` of them says something, too."""

SHORT_BYTES = 20
NOTHING = frozenset(
    {
        b"", b"null", b"[]", b"[ ]", b"{}", b"{ }", b'""', b'{"type":"text"}',
        b'{"type": "text"}', b'{ "type": "text" }', b'{"type" : "text"}',
    }
)  # fmt: skip
"""Values that say nothing, as clients write them; all are at most `SHORT_BYTES` long."""
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def opened(value: Json) -> Json:
    """A raw value decoded; any other value as it is."""
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def shape(fields: dict[str, Json], quirks: Quirks) -> None:
    """Change *fields* in place, in the order that `Quirks` documents."""
    concerns = quirks.concerns
    # Asked this way round a set looks at the few fields there are, not at all it knows.
    if concerns is not None and concerns.isdisjoint(fields) and OURS.isdisjoint(fields):
        return
    for name in OURS.intersection(fields):
        del fields[name]
    _limit(fields, quirks)
    for name in quirks.drop.intersection(fields):
        _leave_out(name, fields)
    for old, new in quirks.rename.items():
        if old in fields:
            fields[new] = fields.pop(old)
    if quirks.caps or quirks.floors:
        _bound(fields, quirks)
    _fill(fields, quirks)
    if quirks.reaches_inside:
        _inside(fields, quirks)
    if quirks.tool_id_most:
        _shorten(fields, quirks.tool_id_most)
    if not quirks.json_schema:
        _schema_in_words(fields)


def _leave_out(name: str, fields: dict[str, Json]) -> None:
    """Raises `NotTranslatable` for what an answer would silently lack."""
    value = fields.pop(name)
    what = ASKED_FOR.get(name)
    if what is not None and opened(value) not in (None, ["text"]):
        raise NotTranslatable(what, field=name)


def _limit(fields: dict[str, Json], quirks: Quirks) -> None:
    for name in LIMITS:
        if name in fields and name != quirks.max_tokens_field:
            value = fields.pop(name)
            fields.setdefault(quirks.max_tokens_field, value)


def _bound(fields: dict[str, Json], quirks: Quirks) -> None:
    for name, most in quirks.caps.items():
        value = opened(fields.get(name))
        if isinstance(value, int | float) and value > most:
            fields[name] = most if most % 1 else int(most)
    for name, least in quirks.floors.items():
        value = opened(fields.get(name))
        if isinstance(value, int | float) and value < least:
            fields[name] = least


def _fill(fields: dict[str, Json], quirks: Quirks) -> None:
    for name, value in quirks.defaults.items():
        fields.setdefault(name, value)
    fields.update(quirks.forced)
    if "tools" in fields:
        fields.update(quirks.with_tools)


def _inside(fields: dict[str, Json], quirks: Quirks) -> None:
    if quirks.message_drop or quirks.reasoning_field or quirks.tool_id_chars or quirks.call_fields:
        messages = opened(fields.get("messages"))
        if isinstance(messages, list):
            fields["messages"] = [_message(message, quirks) for message in messages]
    if quirks.schema_drop:
        for name in ("tools", "response_format"):
            if name in fields:
                fields[name] = without_keywords(opened(fields[name]), quirks.schema_drop)


def _message(message: Json, quirks: Quirks) -> Json:
    if not isinstance(message, dict):
        return message
    kept = {name: value for name, value in message.items() if name not in quirks.message_drop}
    if quirks.reasoning_field and kept.get("role") == "assistant":
        kept.setdefault(quirks.reasoning_field, "")
    if quirks.tool_id_chars:
        _rename_calls(kept, quirks.tool_id_chars)
    if quirks.call_fields and isinstance(calls := kept.get("tool_calls"), list):
        kept["tool_calls"] = [{**quirks.call_fields, **call} for call in calls]
    return kept


def _shorten(fields: dict[str, Json], most: int) -> None:
    """Shorten ids that another provider made; messages that hold none are not opened."""
    messages = fields.get("messages")
    if isinstance(messages, msgspec.Raw):
        data = bytes(messages)
        named = rb'"(?:tool_call_)?id"\s*:\s*"[^"]{%d}' % (most + 1)
        if b'"tool_call' not in data or not re.search(named, data):
            return
        messages = opened(messages)
    if isinstance(messages, list):
        fields["messages"] = [_shortened(message, most) for message in messages]


def _shortened(message: Json, most: int) -> Json:
    if not isinstance(message, dict):
        return message
    kept = dict(message)
    if len(identifier := str(kept.get("tool_call_id", ""))) > most:
        kept["tool_call_id"] = short_id(identifier, most)
    if isinstance(calls := kept.get("tool_calls"), list):
        kept["tool_calls"] = [
            {**call, "id": short_id(call["id"], most)} if len(call.get("id") or "") > most else call
            for call in calls
        ]
    return kept


def _rename_calls(message: dict[str, Json], chars: int) -> None:
    if isinstance(identifier := message.get("tool_call_id"), str):
        message["tool_call_id"] = short_id(identifier, chars)
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [
            {**call, "id": short_id(str(call.get("id", "")), chars)} for call in calls
        ]


def short_id(identifier: str, chars: int) -> str:
    """*identifier* itself where it fits, else letters and digits that it always maps to."""
    if len(identifier) == chars and re.fullmatch("[A-Za-z0-9]*", identifier):
        return identifier
    number = zlib.crc32(identifier.encode()) | zlib.adler32(identifier.encode()) << 32
    digits = ""
    while len(digits) < chars:
        number, digit = divmod(number, 62)
        digits += _DIGITS[digit]
    return digits


def without_keywords(schema: Json, keywords: frozenset[str]) -> Json:
    """A schema without *keywords*; property names that look like keywords stay."""
    if isinstance(schema, list):
        return [without_keywords(item, keywords) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for name, value in schema.items():
        if name == "properties" and isinstance(value, dict):
            kept[name] = {key: without_keywords(item, keywords) for key, item in value.items()}
        elif name not in keywords:
            kept[name] = without_keywords(value, keywords)
    return kept


def schema_instruction(schema: Json) -> str:
    """The words that ask for an object of a schema where a backend cannot be made to."""
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return f"Answer with one JSON object only, without any other text. Its JSON schema: {text}"


def _schema_in_words(fields: dict[str, Json]) -> None:
    wanted = opened(fields.get("response_format"))
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return
    schema = wanted.get("json_schema", {}).get("schema", {})
    fields["response_format"] = {"type": "json_object"}
    said = {"role": "system", "content": schema_instruction(schema)}
    fields["messages"] = [said, *opened(fields["messages"])]

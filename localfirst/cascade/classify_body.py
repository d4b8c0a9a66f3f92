"""
Error bodies of every shape, brought into one: a `Complaint`.

Clouds wrap errors in objects, lists, strings, prose with JSON inside and JSON inside JSON.
The innermost complaint is the one that was meant, so its status and codes win. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from localfirst.types import Json

# Three wrappings were seen (a gateway around a gateway around a cloud); more is no error body.
DEPTH = 4
# Objects within objects of one document; error bodies stay below six.
NESTED = 16
# Sentences are looked through by a hundred patterns: a page of text is not let near them.
SENTENCE_CHARACTERS, TEXT_CHARACTERS, SENTENCES = 2048, 4096, 24
HEADERS = 32
_HTML = re.compile(r"^\s*<(?:!doctype|html|head|body)\b", re.IGNORECASE)
_STATUS_IN_PROSE = re.compile(r"\b([45]\d\d)\b[ :]")
# Keys whose values are words of a vocabulary, worth comparing whole.
_CODE_KEYS = ("code", "type", "status", "reason", "error_type", "quotaId", "limit_source")
_TEXT_KEYS = ("message", "detail", "msg", "description", "title", "error", "raw", "details")
_INNER_KEYS = (
    "error", "metadata", "availability", "innererror", "details", "errors", "violations",
    "detail", "message", "fieldViolations",
)  # fmt: skip
_FIELD_IN_TEXT = re.compile(
    r"(?:unknown name|unknown parameter:?|unrecognized request argument supplied:?|"
    r"unsupported parameter:?|unexpected keyword argument|property|parameter:?|field:?)\s+"
    r"[\"'`](?P<named>[A-Za-z_][\w.\[\]]{0,60})[\"'`]"
    # The field first: Anthropic's `top_k: Extra inputs are not permitted`, and quoted ones.
    r"|(?:^|[\s'\"])(?P<first>[a-z_][\w.\[\]]{0,60}): extra inputs are not permitted"
    r"|[\"'`](?P<quoted>[a-z_][\w.\[\]]{0,60})[\"'`] (?:parameter |field |property |argument )?"
    r"(?:is|are) (?:not (?:supported|allowed|permitted)|unsupported|deprecated|no longer)"
    # A validator's list printed by Python (vLLM).
    r"|'loc': [(\[]'body', '(?P<loc>[a-z_]\w{0,60})'",
    re.IGNORECASE,
)
_NOT_FIELDS = {"quota", "null", "none", ""}


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """
    What an error body says, whatever its shape.

    `message` is the innermost human sentence, `text` every sentence found, `codes` every
    code word in lower case, `status` the innermost status or 0, `retry` what a structured
    field asks for ("56s", "40"), `field` the request field named, `headers` those that an
    inner gateway was sent, `error_type` and `availability` OpenRouter's own verdicts.
    `html` marks a page, `empty` no body at all.
    """

    message: str = ""
    text: str = ""
    codes: frozenset[str] = frozenset()
    status: int = 0
    retry: str = ""
    field: str = ""
    headers: dict[str, str] = {}
    error_type: str = ""
    availability: str = ""
    html: bool = False
    empty: bool = False


class _Found:
    """What a walk through a body collects, outermost first."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.codes: set[str] = set()
        self.statuses: list[int] = []
        self.retry = ""
        self.field = ""
        self.headers: dict[str, str] = {}
        self.error_type = ""
        self.availability = ""
        self.depth = 0

    def met(self, status: str) -> None:
        """Note an HTTP status of an error; other numbers are codes of somebody's own."""
        if len(status) == 3 and status.isdecimal() and 400 <= int(status) <= 599:
            self.statuses.append(int(status))

    def say(self, text: str) -> None:
        """Note a sentence, its middle left out where it is long."""
        if len(self.messages) < SENTENCES:
            self.messages.append(_short(text, SENTENCE_CHARACTERS))


def read(body: bytes) -> Complaint:
    """Read an error body, whatever its content type claimed."""
    text = body.decode("utf-8", "replace").strip().lstrip("\ufeff")
    if not text:
        return Complaint(empty=True)
    if _HTML.match(text):
        return Complaint(text=_visible(text), message=_visible(text)[:300], html=True)
    found = _Found()
    _walk(text, found, DEPTH)
    message = next((words for words in reversed(found.messages) if words), "")
    return Complaint(
        message=message or _short(text, SENTENCE_CHARACTERS),
        text=_short("\n".join(found.messages) or text, TEXT_CHARACTERS),
        codes=frozenset(found.codes),
        status=found.statuses[-1] if found.statuses else 0,
        retry=found.retry,
        field=found.field or _field_in(found.messages),
        headers=found.headers,
        error_type=found.error_type,
        availability=found.availability,
    )


def _walk(value: Json, found: _Found, depth: int) -> None:
    if depth < 0 or found.depth >= NESTED:
        return
    found.depth += 1
    if isinstance(value, str):
        _walk_text(value, found, depth)
    elif isinstance(value, list):
        for item in value[:8]:
            _walk(item, found, depth)
    elif isinstance(value, dict):
        _walk_object(value, found, depth)
    found.depth -= 1


def _walk_text(text: str, found: _Found, depth: int) -> None:
    inner = _json_inside(text)
    if inner is None:
        found.say(text)
        return
    start, value = inner
    prose = text[:start].strip()
    if prose:
        found.say(prose)
        if status := _STATUS_IN_PROSE.search(prose[:SENTENCE_CHARACTERS] + " "):
            found.met(status[1])
    _walk(value, found, depth - 1)


def _json_inside(text: str) -> tuple[int, Json] | None:
    for start in _openings(text):
        try:
            return start, msgspec.json.decode(text[start:])
        except (msgspec.DecodeError, RecursionError):
            continue
    return None


def _openings(text: str) -> Iterator[int]:
    """Where a JSON document may begin: at the first brace and at the first bracket."""
    places = [place for mark in "{[" if (place := text.find(mark)) >= 0]
    return iter(sorted(places)[:2])


def _walk_object(value: dict[str, Json], found: _Found, depth: int) -> None:
    _note_codes(value, found)
    _note_choices(value, found, depth)
    if isinstance(value.get("retryDelay"), str):
        found.retry = value["retryDelay"]
    if isinstance(value.get("retry_after"), int | float):
        found.retry = str(value["retry_after"])
    _note_field(value, found)
    _note_headers(value, found)
    for key in _TEXT_KEYS:
        if isinstance(value.get(key), str) and value[key]:
            _walk_text(value[key], found, depth - 1)
    for key in _INNER_KEYS:
        if isinstance(value.get(key), dict | list):
            _walk(value[key], found, depth if key != "message" else depth - 1)


def _note_codes(value: dict[str, Json], found: _Found) -> None:
    for key in _CODE_KEYS:
        word = value.get(key)
        if isinstance(word, int) and not isinstance(word, bool):
            word = str(word)
        if not isinstance(word, str) or not word:
            continue
        found.codes.add(word.lower())
        found.met(word)
    if isinstance(value.get("error_type"), str):
        found.error_type = value["error_type"].lower()
    availability = value.get("availability")
    if isinstance(availability, dict) and isinstance(availability.get("code"), str):
        found.availability = availability["code"].lower()
    found.met(str(value.get("http_status") or value.get("raw_status_code")))


def _note_choices(value: dict[str, Json], found: _Found, depth: int) -> None:
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        _walk(choices[0].get("error") or {}, found, depth - 1)


def _note_field(value: dict[str, Json], found: _Found) -> None:
    param = value.get("param")
    if isinstance(param, str) and param.lower() not in _NOT_FIELDS:
        found.field = found.field or param
    where = value.get("loc")
    if isinstance(where, list) and len(where) > 1 and where[0] == "body":
        found.field = found.field or ".".join(str(part) for part in where[1:])


def _note_headers(value: dict[str, Json], found: _Found) -> None:
    headers = value.get("headers")
    if isinstance(headers, dict):
        pairs = list(headers.items())[:HEADERS]
        found.headers |= {name.lower(): str(text)[:64] for name, text in pairs}


def _field_in(messages: list[str]) -> str:
    for text in messages:
        if found := _FIELD_IN_TEXT.search(text):
            return next(name for name in found.groups() if name)
    return ""


def _visible(html: str) -> str:
    """The words of a page, for people: tags, scripts and styles taken out."""
    html = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)", " ", html[:65536])
    # A tag ends at the next one: a page of brackets costs no more than any other.
    return re.sub(r"\s+", " ", re.sub(r"<[^<>]*>?", " ", html)).strip()[:1000]


def _short(text: str, most: int) -> str:
    """*text*, or its beginning and its end: what was meant stands at either."""
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]} … {text[-most // 4 :]}"

"""
`UpstreamRefused` made here: of an error inside a successful answer, and of a request that
one backend has no words for although another may.
"""

from __future__ import annotations

import msgspec

from localfirst.errors import InvalidRequest, UpstreamRefused
from localfirst.types import ChatRequest, Json

BODY_LIMIT_BYTES = 64 * 2**10


class NotTranslatable(InvalidRequest):
    """Raised where a request is put into another dialect, which has no words for *what* it has."""

    def __init__(self, what: str, *, field: str = "") -> None:
        super().__init__(
            f"`{field}`: only backends of this dialect have {what}",
            field=field,
            hint="name a model of a provider that has it, see `localfirst providers`",
        )
        self.what = what


def in_band(payload: bytes, *, status: int = 200) -> UpstreamRefused:
    """
    The refusal that *payload* is.

    Its status is the HTTP status that the payload names (`code` or `status_code` as a
    number), else *status*; the payload itself goes on to the classifier.
    """
    return UpstreamRefused(
        _named_status(payload) or status, payload[:BODY_LIMIT_BYTES], in_band=True
    )


ONLY_LOCAL = {
    "raw": "`raw`: it puts every prompt into its own template",
    "template": "`template`: it has its own",
    "context": "`context`: only the model that gave these numbers can read them",
}
"""What `/api/generate` asks of a model's own engine, and why nobody else can."""


def refuse_only_local(request: ChatRequest) -> None:
    """Raises `UpstreamRefused` for what only a model's own engine can do with a prompt."""
    if request.suffix is not None:
        raise unsupported("insert, which a `suffix` asks for")
    for name, why in ONLY_LOCAL.items():
        if request.generate and name in request.extra:
            raise unsupported(why)


def unsupported(what: str) -> UpstreamRefused:
    """
    The refusal of a request that this backend cannot say, in the words of Ollama's own.

    It speaks of the candidate, not of the request: the next one may be able to.
    """
    error = {"error": f"this backend does not support {what}"}
    return UpstreamRefused(400, msgspec.json.encode(error), unsent=True)


def untranslated(error: NotTranslatable) -> UpstreamRefused:
    """The refusal of a candidate for which a request would have to be put into other words."""
    return unsupported(error.what)


def is_error_object(payload: bytes) -> bool:
    """
    Whether *payload* is a JSON object that says it is an error, or Google's list of one.

    Beside an `error` in it: vLLM's and Mistral's `"object": "error"`, FastAPI's `detail`, and
    a `message` with a code.
    """
    value = _loaded(payload)
    if not isinstance(value, dict):
        return False
    if value.get("error") or "error" in (value.get("object"), value.get("type")):
        return True
    return bool(value.get("detail")) or (
        isinstance(value.get("message"), str) and ("code" in value or "status" in value)
    )


def _named_status(payload: bytes) -> int | None:
    error = _error_in(_loaded(payload))
    for name in ("status_code", "code", "status"):
        number = error.get(name)
        if isinstance(number, str) and number.isdecimal() and len(number) == 3:
            number = int(number)
        if isinstance(number, int) and not isinstance(number, bool) and 400 <= number <= 599:
            return number
    return None


def _error_in(value: Json) -> dict[str, Json]:
    """The object that speaks of the error: inside, inside the first choice, or the whole."""
    if not isinstance(value, dict):
        return {}
    if isinstance(inner := value.get("error"), dict):
        return inner
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    found = first.get("error") if isinstance(first, dict) else None
    return found if isinstance(found, dict) else value


def _loaded(payload: bytes) -> Json:
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    # Gemini wraps its errors in a list of one.
    return value[0] if isinstance(value, list) and value else value

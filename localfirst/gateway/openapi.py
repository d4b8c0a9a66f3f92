"""The OpenAPI document, made from the route table, so that it cannot name what is not there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from localfirst import __version__
from localfirst.gateway.openapi_bodies import ANSWERS, BODIES, ERRORS
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.gateway.routes import Route

_TEXT: Json = {"text/plain": {"schema": {"type": "string"}}}
_HTML: Json = {"text/html": {"schema": {"type": "string"}}}

_WISHES: Json = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "enum": words},
        "description": said,
    }
    for name, words, said in (
        ("x-localfirst-privacy", ["local-only", "allow-cloud"], "no socket leaves this machine"),
        ("x-localfirst-fallback", ["on", "off"], "off: only the first candidate is asked"),
    )
]

_CONTENT: dict[str, Json] = {"root": {**_TEXT, **_HTML}, "ui": _HTML, "metrics": _TEXT}

_STREAMS = {
    "openai.chat": "text/event-stream",
    "openai.completions": "text/event-stream",
    "openai.responses": "text/event-stream",
    "anthropic.messages": "text/event-stream",
    "ollama.chat": "application/x-ndjson",
    "ollama.generate": "application/x-ndjson",
    "ollama.pull": "application/x-ndjson",
}

_GENERATION = frozenset(_STREAMS) - {"ollama.pull"}

_ERRORS = {
    "400": "the request is wrong; the error names the field",
    "401": "a key is needed",
    "403": "host, origin or destination is not allowed",
    "404": "no such model or path",
    "413": "the body or the prompt is too large",
    "415": "the content type is not allowed",
    "429": "limits are used up; see `retry-after`",
    "500": "a defect of the gateway",
    "502": "whoever was asked gave no answer worth the name",
    "503": "nobody could answer now; see `retry-after`",
    "504": "the time ran out",
    "507": "disk or memory will not do",
}


def document(routes: Iterable[Route]) -> bytes:
    """The document as JSON bytes."""
    paths: dict[str, Json] = {}
    for route in routes:
        path = route.path.decode() + ("{name}" if route.prefix else "")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "localfirst", "version": __version__},
            "paths": paths,
            "components": {
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _operation(route: Route) -> dict[str, Json]:
    operation: dict[str, Json] = {
        "operationId": route.name,
        "summary": route.summary,
        "security": [] if route.open else [{}, {"key": []}],
        "responses": _responses(route),
    }
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.method == "POST":
        operation["requestBody"] = {
            "required": True,
            "content": _json(BODIES[route.name]),
        }
    return operation


def _responses(route: Route) -> dict[str, Json]:
    content: dict[str, Json] = dict(_CONTENT.get(route.name) or _json(ANSWERS[route.name]))
    if route.name in _STREAMS:
        content[_STREAMS[route.name]] = {}
    found: dict[str, Json] = {"200": {"description": route.summary, "content": content}}
    error = _json(ERRORS.get(route.name.partition(".")[0]) or ERRORS["openai"])
    for status, text in _ERRORS.items():
        found[status] = {"description": text, "content": error}
    return found


def _parameters(route: Route) -> list[Json]:
    found: list[Json] = []
    if route.prefix:
        found.append(_parameter("name", "path", required=True))
    if route.name == "explain":
        found.append(_parameter("model", "query", required=False))
    if route.name in _GENERATION or route.name == "explain":
        found += _WISHES
    return found


def _json(schema: Json) -> dict[str, Json]:
    return {"application/json": {"schema": schema}}


def _parameter(name: str, place: str, *, required: bool) -> dict[str, Json]:
    return {"name": name, "in": place, "required": required, "schema": {"type": "string"}}

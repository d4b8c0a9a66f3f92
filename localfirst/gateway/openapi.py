"""The OpenAPI document, made from the route table, so that it cannot name what is not there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from localfirst import __version__
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.gateway.routes import Route

_TEXT: Json = {"text/plain": {"schema": {"type": "string"}}}
_HTML: Json = {"text/html": {"schema": {"type": "string"}}}
_OBJECT: Json = {"application/json": {"schema": {"type": "object"}}}

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

_MODEL: Json = {"type": "string"}
_MESSAGES: Json = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_CHAT: Json = {"model": _MODEL, "messages": _MESSAGES, "stream": {"type": "boolean"}}

_BODIES: dict[str, tuple[Json, list[str]]] = {
    "openai.chat": (_CHAT, ["messages"]),
    "anthropic.messages": (
        {**_CHAT, "max_tokens": {"type": "integer", "minimum": 1}},
        ["messages", "max_tokens"],
    ),
    "anthropic.count_tokens": (_CHAT, ["messages"]),
    "openai.completions": ({"model": _MODEL, "prompt": {"type": "string"}}, ["prompt"]),
    "openai.responses": ({"model": _MODEL, "input": {}}, ["input"]),
    "openai.embeddings": ({"model": _MODEL, "input": {}}, ["input"]),
    "pulls.change": (
        {
            "model": _MODEL,
            "action": {"type": "string", "enum": ["start", "pause", "resume", "cancel"]},
        },
        ["model"],
    ),
}

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
    if route.prefix:
        operation["parameters"] = [_parameter("name", "path", required=True)]
    if route.name == "explain":
        operation["parameters"] = [_parameter("model", "query", required=False)]
    if route.method == "POST":
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _body(route.name)}},
        }
    return operation


def _responses(route: Route) -> dict[str, Json]:
    content: dict[str, Json] = dict(_CONTENT.get(route.name) or _OBJECT)
    if route.name in _STREAMS:
        content[_STREAMS[route.name]] = {"schema": {"type": "string"}}
    found: dict[str, Json] = {"200": {"description": route.summary, "content": content}}
    for status, text in _ERRORS.items():
        found[status] = {"description": text, "content": _OBJECT}
    return found


def _body(name: str) -> dict[str, Json]:
    properties, required = _BODIES.get(name, ({"model": _MODEL}, []))
    return {"type": "object", "properties": properties, "required": required}


def _parameter(name: str, place: str, *, required: bool) -> dict[str, Json]:
    return {"name": name, "in": place, "required": required, "schema": {"type": "string"}}

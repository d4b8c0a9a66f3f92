"""
The route table: exact raw paths and who answers there.

Nothing is decoded, folded or normalised before it is compared: `/v1/../api/tags`, `//api/tags`
and `/api/%74ags` are other paths, and other paths do not exist.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from localfirst.errors import AccessDenied
from localfirst.gateway import admin
from localfirst.gateway.request import Request
from localfirst.gateway.surfaces import (
    anthropic,
    embeddings,
    generation,
    models,
    ollama,
    pulls,
)

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway

Handler = Callable[["Gateway", Request], Awaitable[None]]


class Route(msgspec.Struct, frozen=True):
    """
    One thing the gateway does.

    `name` is its label in logs and metrics; `open` routes need no key; a `prefix` route
    takes whatever follows its path as a name.
    """

    method: str
    path: bytes
    name: str
    handler: Handler
    summary: str
    open: bool = False
    prefix: bool = False


ROUTES: tuple[Route, ...] = (
    Route("POST", b"/v1/chat/completions", "openai.chat", generation.chat, "Chat as OpenAI"),
    Route("POST", b"/v1/completions", "openai.completions", generation.completions, "Complete"),
    Route("POST", b"/v1/responses", "openai.responses", generation.responses, "Respond"),
    Route("POST", b"/v1/embeddings", "openai.embeddings", embeddings.openai, "Embed"),
    Route("GET", b"/v1/models", "openai.models", models.listing, "Every model's name"),
    Route("GET", b"/v1/models/", "openai.model", models.one, "One model", prefix=True),
    Route("POST", b"/v1/messages", "anthropic.messages", generation.messages, "Anthropic chat"),
    Route(
        "POST",
        b"/v1/messages/count_tokens",
        "anthropic.count_tokens",
        anthropic.count_tokens,
        "Estimate tokens",
    ),
    Route("POST", b"/api/chat", "ollama.chat", ollama.chat, "Chat as Ollama"),
    Route("POST", b"/api/generate", "ollama.generate", ollama.generate, "Generate as Ollama"),
    Route("POST", b"/api/embed", "ollama.embed", embeddings.ollama, "Embed as Ollama"),
    Route(
        "POST", b"/api/embeddings", "ollama.embeddings", embeddings.ollama_legacy, "Embed one text"
    ),
    Route("GET", b"/api/tags", "ollama.tags", ollama.tags, "Installed models"),
    Route("GET", b"/api/ps", "ollama.ps", ollama.ps, "Loaded models"),
    Route("POST", b"/api/show", "ollama.show", ollama.show, "One installed model"),
    Route("GET", b"/api/version", "ollama.version", ollama.version, "The version"),
    Route("POST", b"/api/pull", "ollama.pull", pulls.ollama, "Download a model"),
    Route("GET", b"/", "root", admin.root, "Liveness, or the page for a browser", open=True),
    Route("GET", b"/localfirst/health", "health", admin.health, "For probes", open=True),
    Route("GET", b"/localfirst/state", "state", admin.state, "What the runtime knows"),
    Route("GET", b"/localfirst/explain", "explain", admin.explain, "Who would answer, and why"),
    Route("GET", b"/localfirst/pulls", "pulls", pulls.listing, "Downloads"),
    Route("POST", b"/localfirst/pulls", "pulls.change", pulls.change, "Start, pause, cancel"),
    Route("GET", b"/localfirst/openapi.json", "openapi", admin.openapi, "This document"),
    Route("GET", b"/metrics", "metrics", admin.metrics, "Prometheus text"),
    Route("GET", b"/ui", "ui", admin.ui, "The page", open=True),
)


SERVED = "what is served is listed at `/localfirst/openapi.json`"

ELSEWHERE = {
    b"/api/copy": "models are copied by Ollama itself, at its own address",
    b"/api/create": "models are made by Ollama itself, at its own address",
    b"/api/delete": "a model is removed by `localfirst rm NAME`",
    b"/api/push": "models are published by Ollama itself, at its own address",
}
"""What clients of Ollama have a call for and this gateway has not: it changes no model."""


BASES = (b"v1", b"api")
"""What clients have in their base URL, or append to it, by the kind of client."""


class Table:
    """`ROUTES`, looked up by raw path, then by method."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self.routes = routes
        self._exact: dict[bytes, dict[str, Route]] = {}
        self._prefixes: list[tuple[bytes, dict[str, Route]]] = []
        for route in routes:
            methods = self._exact.setdefault(route.path, {})
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route
        for route in routes:
            if route.prefix:
                self._prefixes.append((route.path, self._exact.pop(route.path)))

    def find(self, method: str, path: bytes) -> Route:
        """
        The route for a request.

        Raises:
            AccessDenied: 404 for another path, 405 for another method.
        """
        methods = self._exact.get(path) or self._by_prefix(path)
        if methods is None:
            words = ELSEWHERE.get(path) or self._near(path)
            raise AccessDenied(words, code="route-unknown", status=404, hint=SERVED)
        route = methods.get(method)
        if route is None:
            raise AccessDenied(
                f"this path takes {' and '.join(methods)}",
                code="method-not-allowed",
                status=405,
                allow=tuple(methods),
            )
        return route

    def _near(self, path: bytes) -> str:
        """Words for a path that is wrong at its beginning, which is a client's base URL."""
        end = re.sub(rb"/+", b"/", path)
        for known in self._exact:
            start, _, name = known[1:].partition(b"/")
            if name and start in BASES and (end.endswith(known) or end == b"/" + name):
                said = known.decode()
                return f"there is nothing at this path, but at `{said}`: correct the base URL"
        return "there is nothing at this path"

    def _by_prefix(self, path: bytes) -> dict[str, Route] | None:
        for prefix, methods in self._prefixes:
            if path.startswith(prefix) and len(path) > len(prefix):
                return methods
        return None

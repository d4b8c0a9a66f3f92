"""Our own endpoints: liveness, state, the plan of a request, metrics, the page."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from localfirst import __version__
from localfirst.errors import InvalidRequest, Unavailable
from localfirst.gateway import openapi as document
from localfirst.gateway.refusal import SAFE, rendered
from localfirst.gateway.request import Headers, Request
from localfirst.gateway.surfaces.pulls import job_object
from localfirst.gateway.surfaces.relay import wishes
from localfirst.types import Call, ChatRequest, Dialect, Json, Message

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway

TEXT = rendered([(b"content-type", b"text/plain; charset=utf-8"), *SAFE])

# The page runs its own script and style and speaks to its own server; nothing else.
PAGE: Headers = [
    (b"content-type", b"text/html; charset=utf-8"),
    *SAFE,
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        b"connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
]

SURFACES = ("openai.", "anthropic.", "ollama.")

ALIVE = b"Ollama is running"
"""What Ollama's clients look for at `/`."""


async def root(gateway: Gateway, request: Request) -> None:
    """`GET /` and `HEAD /`: Ollama's sign of life, or the page where HTML is asked for."""
    if b"text/html" in request.fields.get(b"accept", b""):
        await ui(gateway, request)
    else:
        await request.answer(ALIVE, TEXT)


async def ui(gateway: Gateway, request: Request) -> None:
    """`GET /ui`: one static page; it asks for a key itself where one is needed."""
    page = resources.files("localfirst.gateway").joinpath("page.html").read_bytes()
    await request.answer(page, rendered(PAGE))


async def health(gateway: Gateway, request: Request) -> None:
    """`GET /localfirst/health`: says "ok" and nothing else, or 503 while stopping."""
    if gateway.draining:
        raise Unavailable("stopping", code="stopping")
    await request.json(b'{"status":"ok"}')


async def state(gateway: Gateway, request: Request) -> None:
    """`GET /localfirst/state`: engine, providers, cooldowns, pulls, and this server."""
    found = dict(await gateway.runtime.state())
    found["version"] = __version__
    found["pulls"] = [job_object(job) for job in gateway.runtime.puller.jobs()]
    found["gateway"] = {
        # Without those of whoever looks on: a page that asks every few seconds is no load.
        "requests": gateway.metrics.requests(SURFACES),
        "running": gateway.running - 1,
        "draining": gateway.draining,
    }
    await request.json(msgspec.json.encode(found, enc_hook=str))


async def explain(gateway: Gateway, request: Request) -> None:
    """`GET /localfirst/explain?model=…`: the plan, each step with its reason; sends nothing."""
    query = _query(request, {"model"})
    model = query.get("model") or "auto"
    call = Call(
        model=model,
        stream=False,
        dialect=Dialect.OPENAI,
        request_id=request.id,
        request=ChatRequest(model=model, messages=(Message(role="user"),)),
    )
    wishes(call, request)
    plan = await gateway.runtime.explain(call)
    steps: list[Json] = [msgspec.to_builtins(step, enc_hook=str) for step in plan.steps]
    error = plan.error
    await request.struct(
        {
            "model": model,
            "steps": steps,
            "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
        }
    )


async def metrics(gateway: Gateway, request: Request) -> None:
    """`GET /metrics` in Prometheus' text format."""
    jobs = gateway.runtime.puller.jobs()
    gauges = (
        ("localfirst_up", "1 while the gateway answers", 1.0),
        ("localfirst_requests_running", "requests being answered", float(gateway.running)),
        ("localfirst_connections", "open connections", float(gateway.connections())),
        ("localfirst_pulls", "downloads known to this server", float(len(jobs))),
    )
    kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
    await request.answer(gateway.metrics.page(gauges), rendered([kind, *SAFE]))


async def openapi(gateway: Gateway, request: Request) -> None:
    """`GET /localfirst/openapi.json`: this server's routes, described."""
    await request.json(document.document(gateway.table.routes))


def _query(request: Request, known: set[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(request.query.decode("ascii"), True, strict_parsing=bool(request.query))
    except ValueError as error:
        raise InvalidRequest("the query is malformed", field="query") from error
    for name, _ in pairs:
        if name not in known:
            raise InvalidRequest(f"`{name[:80]}` is not a parameter here", field=name[:80])
    return dict(pairs)

"""One request to one child: llama.cpp's own server, which speaks OpenAI's dialect."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator

import msgspec

from localfirst.engines import forced
from localfirst.engines.base import Limits
from localfirst.engines.llamacpp.about import About
from localfirst.engines.llamacpp.plan import with_model_defaults
from localfirst.engines.llamacpp.runner import Runner
from localfirst.errors import UpstreamError, UpstreamRefused
from localfirst.events import Event, Finished, Opened
from localfirst.transport.upstream import UpstreamClient, UpstreamResponse
from localfirst.types import Call, ChatRequest, Dialect, Json
from localfirst.wire.openai import events, requests
from localfirst.wire.refusal import unsupported

ERROR_BYTES = 2**20
REPLY_BYTES = 64 * 2**20
_TIMINGS = (re.compile(rb'"predicted_n":\s*(\d+)'), re.compile(rb'"predicted_ms":\s*([\d.]+)'))
_DURATIONS = {
    "prompt_eval_duration": re.compile(rb'"prompt_ms":\s*([\d.]+)'),
    "eval_duration": _TIMINGS[1],
}
CONNECT_S = 2.0  # loopback: either at once or never


def headers_of(runner: Runner) -> list[tuple[str, str]]:
    """What every request to a child carries: its own key, made for it alone."""
    return [("authorization", f"Bearer {runner.key}"), ("content-type", "application/json")]


def relayed(call: Call, about: About) -> bool:
    """Whether the caller's bytes can pass as they are: nothing of the model's is to be added."""
    return (
        call.relay
        and call.stream
        and call.dialect is Dialect.OPENAI
        and b'"messages"' in call.body
        and not about.system
        and not about.params
        and b'"num_ctx"' not in call.body
        and b'"tool_choice"' not in call.body
    )


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is sent for a call: `relay` says that the answer's bytes can pass as they are,
    `forced` that the answer has to be a tool call.
    """

    body: bytes
    path: str = "/v1/chat/completions"
    relay: bool = False
    forced: bool = False


def question(call: Call, about: About) -> Question:
    """*call* as llama.cpp's server is asked; raises `InvalidRequest`."""
    if relayed(call, about):
        return Question(body=requests.splice(call.body, model=about.name), relay=True)
    request = with_model_defaults(call.chat, about.params, about.system)
    request = msgspec.structs.replace(request, stream=True, include_usage=True)
    if request.generate and request.extra.get("raw"):
        return Question(body=_raw(request, about), path="/v1/completions")
    if tools := forced.choices(request):
        request = forced.constrained(request, tools)
    body = _with_engine_fields(requests.encode(request, about.name), request)
    return Question(body=body, forced=bool(tools))


def _raw(request: ChatRequest, about: About) -> bytes:
    """The body for a prompt that stands in the model's own form, which no template is to wrap."""
    turn = request.messages[-1]
    if turn.images:
        raise unsupported("images in a raw prompt")
    if request.suffix is not None:
        raise unsupported("insert, which a `suffix` asks for")
    plain = msgspec.structs.replace(
        request, messages=(), generate=False, schema=None, json_mode=False, think=None
    )
    fields = msgspec.json.decode(_with_engine_fields(requests.encode(plain, about.name), plain))
    fields["prompt"] = turn.text
    if request.schema is not None or request.json_mode:
        fields["json_schema"] = request.schema or {"type": "object"}
    if fields.pop("logprobs", None):
        fields["logprobs"] = fields.pop("top_logprobs", None) or 1
    return msgspec.json.encode(fields)


def _with_engine_fields(body: bytes, request: ChatRequest) -> bytes:
    """Add what llama.cpp's server knows beyond OpenAI's fields (tools/server/README.md)."""
    extra: dict[str, Json] = {
        name: value
        for name in ("top_k", "min_p", "repeat_penalty")
        if (value := getattr(request, name)) is not None
    }
    if request.logprobs and request.top_logprobs == 0:
        # Of none beside the chosen one it says nothing of the chosen one either.
        extra["top_logprobs"] = 1
    if request.think is not None:
        extra["chat_template_kwargs"] = {"enable_thinking": bool(request.think)}
    if not extra:
        return body
    return msgspec.json.encode(msgspec.json.decode(body) | extra)


async def exchange(
    upstream: UpstreamClient, runner: Runner, call: Call, about: About, limits: Limits
) -> AsyncGenerator[Event, None]:
    """
    Ask and yield the answer's events.

    Raises:
        UpstreamError: as the upstream client and the wire raise it; the child's death is
            for the engine to tell from a broken socket.
    """
    asked = question(call, about)
    response = await upstream.send(
        runner.address + asked.path,
        headers=headers_of(runner),
        body=asked.body,
        connect_s=CONNECT_S,
        first_byte_s=limits.first_token_s,
        stall_s=limits.stall_s,
        local_only=True,
    )
    try:
        if response.status >= 400:
            raise UpstreamRefused(
                response.status, await response.read(ERROR_BYTES), response.headers
            )
        yield Opened(response.status, tuple(response.headers))
        heard = _read(response, asked, call, runner)
        call_reader = forced.CallReader() if asked.forced else None
        async with contextlib.aclosing(heard):
            async for event in heard:
                if call_reader is None:
                    yield event
                    continue
                for told in call_reader.feed(event):
                    yield told
    finally:
        await response.aclose()


async def _read(
    response: UpstreamResponse, asked: Question, call: Call, runner: Runner
) -> AsyncGenerator[Event, None]:
    # The usage that we ask for is not shown to a client who did not.
    strip_usage = asked.relay and not requests.wants_usage(call.body)
    reader = events.StreamReader(
        relay=asked.relay, strip_usage=strip_usage, stops=lambda: call.chat.stop
    )
    alone = runner.in_flight == 1
    took: dict[str, Json] = {}
    async for chunk in response:
        if b'"timings"' in chunk:
            took = durations(chunk)
            if alone and runner.in_flight == 1:
                runner.spoke = spoken(chunk)
        for event in reader.feed(chunk):
            yield _timed(event, took)
    for event in reader.close():
        yield _timed(event, took)


def _timed(event: Event, took: dict[str, Json]) -> Event:
    """An answer's end with its durations, which say nothing of how long the model loaded."""
    return msgspec.structs.replace(event, timings=took) if type(event) is Finished else event


def durations(chunk: bytes) -> dict[str, Json]:
    """The nanoseconds that llama.cpp's `timings` in *chunk* tell, by Ollama's names for them."""
    found = {name: pattern.search(chunk) for name, pattern in _DURATIONS.items()}
    return {name: round(float(one[1]) * 1e6) for name, one in found.items() if one is not None}


def spoken(chunk: bytes) -> tuple[int, float]:
    """
    Tokens that were generated and the seconds they took, (0, 0.0) where *chunk* says neither.

    llama.cpp's `timings` come with an answer's last events (tools/server/README.md).
    """
    tokens, milliseconds = (pattern.search(chunk) for pattern in _TIMINGS)
    if tokens is None or milliseconds is None:
        return 0, 0.0
    return int(tokens[1]), float(milliseconds[1]) / 1000


async def answers(upstream: UpstreamClient, runner: Runner) -> bool:
    """Whether a child's server still talks."""
    try:
        response = await upstream.send(
            runner.address + "/health",
            method="GET",
            connect_s=CONNECT_S,
            first_byte_s=CONNECT_S,
            stall_s=CONNECT_S,
            local_only=True,
        )
        async with contextlib.aclosing(response):
            healthy: bool = response.status == 200
        return healthy
    except UpstreamError:
        return False

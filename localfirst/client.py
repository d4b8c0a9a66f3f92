"""
The library: `AsyncClient`, the same cascade and the same state as the gateway.

It owns one `Runtime`, opened at the first call and closed by `aclose()` or `async with`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from localfirst.errors import InvalidRequest, LocalFirstError
from localfirst.events import Event, Progress, Reply, TextDelta
from localfirst.settings import Settings
from localfirst.types import Call, ChatRequest, Dialect, Json, Message, Needs, Tool

if TYPE_CHECKING:
    from localfirst.cascade.plan import Plan
    from localfirst.cascade.run import Answer
    from localfirst.runtime import EmbedReply, ModelEntry, Runtime

Messages = str | Sequence[Message | Mapping[str, Json]]
"""A prompt, or messages as `Message`s or in OpenAI's shape."""


class AsyncStream:
    """
    One streamed answer: `async for event in stream`, or `async for text in stream.text()`.

    `route` and `attempts` are known once the first event came, `reply` after the last.
    Leaving it early (`break`, `aclose()`, cancellation) closes the upstream at once.
    """

    def __init__(self, client: AsyncClient, call: Call) -> None:
        self._client = client
        self._call = call
        self._answer: Answer | None = None
        self._reply: Reply | None = None

    @property
    def route(self) -> str:
        """`provider/model` of who answers; empty before the first event."""
        return self._answer.target.route if self._answer else ""

    @property
    def headers(self) -> dict[str, str]:
        """The `x-localfirst-*` facts about this answer so far."""
        return dict(self._answer.headers()) if self._answer else {}

    @property
    def reply(self) -> Reply:
        """The whole answer; raises `InvalidRequest` while the stream is unfinished."""
        if self._reply is None:
            raise InvalidRequest(
                "the stream is not finished", hint="read it to its end before asking for `reply`"
            )
        return self._reply

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self.events()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The answer's events, once; closing the generator closes the upstream."""
        answer = await self.open()
        try:
            async for event in answer:
                yield event
            self._reply = await answer.reply()
        finally:
            await answer.aclose()

    async def open(self) -> Answer:
        """Climb the ladder until somebody answers; idempotent."""
        if self._answer is None:
            runtime = await self._client.opened()
            self._answer = await runtime.open(self._call)
        return self._answer

    async def text(self) -> AsyncIterator[str]:
        """The visible text alone, piece by piece."""
        async for event in self:
            if isinstance(event, TextDelta) and event.text:
                yield event.text

    async def aclose(self) -> None:
        """Stop, and close the upstream connection."""
        if self._answer is not None:
            await self._answer.aclose()


class AsyncClient:
    """
    Answers from this machine first, then from the clouds whose keys are found.

    Args:
        settings: as `load_settings()` gives them; read from files and environment when None.
        overrides: single settings by path (`**{"cascade.deadline_s": 30}`) or by name with
            `__` for the dot (`cascade__deadline_s=30`).
    """

    def __init__(self, settings: Settings | None = None, **overrides: object) -> None:
        self._settings = settings
        self._overrides = {name.replace("__", "."): value for name, value in overrides.items()}
        self._runtime: Runtime | None = None
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def opened(self) -> Runtime:
        """
        The runtime behind this client, started on first use.

        Raises:
            InvalidRequest: another event loop started it, with sockets that this one has not.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in {None, loop}:
            raise InvalidRequest(
                "this `AsyncClient` belongs to another event loop",
                hint="make one in each `asyncio.run`, or use `localfirst.Client`",
                code="other-loop",
            )
        self._loop = loop
        async with self._opening:
            if self._runtime is None:
                from localfirst import config
                from localfirst.runtime import Runtime

                settings = self._settings or config.load(overrides=self._overrides).settings
                runtime = Runtime(settings)
                await runtime.start()
                self._runtime = runtime
        return self._runtime

    async def chat(
        self, messages: Messages, *, model: str = "auto", schema: Any = None, **options: Any
    ) -> Reply:
        """
        Ask, and wait for the whole answer.

        Args:
            messages: a prompt, or a conversation.
            model: a name of the README's table; "auto" climbs the ladder.
            schema: a Pydantic model or a JSON schema; `Reply.parsed` is then the validated
                object. Streams are not validated.
            options: any field of `ChatRequest` (`temperature`, `max_tokens`, `tools`, …) and
                `local_only`, `fallback`, `deadline_s`.

        Raises:
            CascadeExhausted: nobody could answer; `.attempts` says why.
            InvalidRequest: the request is wrong in itself.
        """
        runtime = await self.opened()
        call = build_call(messages, model=model, stream=False, schema=schema, **options)
        return await runtime.reply(call, schema)

    def stream(self, messages: Messages, *, model: str = "auto", **options: Any) -> AsyncStream:
        """Ask, and read the answer as it comes; arguments as for `chat`."""
        return AsyncStream(self, build_call(messages, model=model, stream=True, **options))

    async def embed(
        self, texts: str | Sequence[str], *, model: str = "auto", **options: Any
    ) -> EmbedReply:
        """Vectors of *texts*, one each, by a local model or `provider/model`."""
        runtime = await self.opened()
        wanted = [texts] if isinstance(texts, str) else list(texts)
        return await runtime.embed(model, wanted, options)

    async def pull(self, name: str, *, insecure: bool = False) -> AsyncGenerator[Progress, None]:
        """Download *name* into Ollama's store; ends when it is verified and listed."""
        runtime = await self.opened()
        async for progress in runtime.pull(name, insecure=insecure):
            yield progress

    async def models(self) -> list[ModelEntry]:
        """Every name a request may use now: installed, clouds', routes'."""
        return await (await self.opened()).models()

    async def explain(self, model: str = "auto", **options: Any) -> Plan:
        """The plan for a request to *model*: each rung with its reason. Sends nothing."""
        runtime = await self.opened()
        return await runtime.explain(build_call("", model=model, stream=False, **options))

    async def state(self) -> dict[str, Json]:
        """What the runtime knows of engine, providers, cooldowns and pulls; no secrets."""
        return await (await self.opened()).state()

    async def aclose(self) -> None:
        """Close every connection and stop what was started; idempotent."""
        runtime, self._runtime, self._loop = self._runtime, None, None
        if runtime is not None:
            await runtime.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


CALL_OPTIONS = ("local_only", "fallback", "deadline_s")


def build_call(
    messages: Messages, *, model: str, stream: bool, schema: Any = None, **options: Any
) -> Call:
    """A `Call` from a library call's arguments; raises `InvalidRequest` naming a wrong one."""
    of_call = {name: options.pop(name) for name in CALL_OPTIONS if name in options}
    if not isinstance(model, str):
        raise InvalidRequest("`model` must be a name", field="model")
    deadline_s = of_call.get("deadline_s")
    if deadline_s is not None and not (isinstance(deadline_s, int | float) and deadline_s > 0):
        raise InvalidRequest("`deadline_s` must be seconds, more than 0", field="deadline_s")
    known = set(ChatRequest.__struct_fields__)
    for name in options:
        if name not in known:
            raise InvalidRequest(f"`{name}` is not an option of a request", field=name)
    try:
        request = msgspec.structs.replace(
            read_messages(messages),
            model=model,
            stream=stream,
            **{name: settled(name, value) for name, value in within(options).items()},
        )
        if schema is not None:
            request = msgspec.structs.replace(request, schema=json_schema(schema))
        msgspec.json.encode(request)
    except UnicodeEncodeError as error:
        # Nobody could be sent it; found later it would look like a fault of whoever is asked.
        raise InvalidRequest("the request's text holds half a character, no Unicode") from error
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request does not fit together: {error}") from error
    return Call(
        model=model,
        stream=stream,
        dialect=Dialect.OPENAI,
        request_id=new_request_id(),
        needs=needs_of(request),
        request=request,
        **of_call,
    )


def new_request_id() -> str:
    """An id that a log line and an answer share."""
    return "lf-" + secrets.token_hex(8)


def read_messages(messages: Messages) -> ChatRequest:
    """Messages of any accepted form, validated as the gateway validates them."""
    if isinstance(messages, str):
        return ChatRequest(messages=(Message(role="user", content=messages),))
    if messages and all(isinstance(message, Message) for message in messages):
        return ChatRequest(messages=tuple(m for m in messages if isinstance(m, Message)))
    from localfirst.wire.openai import requests

    try:
        body = msgspec.json.encode({"model": "auto", "messages": list(messages)})
    except TypeError as error:
        raise InvalidRequest(f"messages are not JSON: {error}", field="messages") from error
    return requests.decode(body)


def within(options: Mapping[str, Any]) -> dict[str, Any]:
    """*options* once the sampling ones are of the types and in the ranges the gateway takes."""
    from localfirst.wire.fields import Fields
    from localfirst.wire.openai.decode import sampling_of

    found = sampling_of(
        Fields({n: list(v) if isinstance(v, tuple) else v for n, v in options.items()})
    )
    return {name: found.get(name, value) for name, value in options.items()}


def settled(name: str, value: Any) -> Any:
    """Accept OpenAI-shaped tools and lists where a `ChatRequest` holds tuples."""
    if name == "tools":
        return tuple(tool if isinstance(tool, Tool) else read_tool(tool) for tool in value)
    return (
        tuple(value)
        if name == "stop" and not isinstance(value, str)
        else ((value,) if name == "stop" else value)
    )


def read_tool(tool: Mapping[str, Json]) -> Tool:
    """A tool in OpenAI's shape, or its inner function alone."""
    function = tool.get("function", tool)
    try:
        return msgspec.convert(dict(function), Tool)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"a tool is malformed: {error}", field="tools") from error


def json_schema(schema: Any) -> dict[str, Json]:
    """The JSON schema of a Pydantic model (class), or a schema as it is."""
    if isinstance(schema, Mapping):
        return dict(schema)
    make = getattr(schema, "model_json_schema", None)
    if make is None:
        raise InvalidRequest(
            "`schema` is neither a Pydantic model nor a JSON schema", field="schema"
        )
    made: dict[str, Json] = make()
    return made


def needs_of(request: ChatRequest) -> Needs:
    """What a candidate must be able to do; about four characters make a token."""
    characters = sum(len(message.text) for message in request.messages) + len(request.prompt or "")
    return Needs(
        tools=bool(request.tools),
        vision=any(message.images for message in request.messages),
        schema=request.schema is not None,
        thinking=bool(request.think),
        prompt_tokens=characters // 4,
        max_tokens=request.max_tokens or 0,
    )


__all__ = ["AsyncClient", "AsyncStream", "LocalFirstError", "Messages", "build_call"]

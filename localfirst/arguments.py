"""What a call of the library was given, as the runtime takes it; raises what names a mistake."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from localfirst.errors import InvalidRequest
from localfirst.types import Call, ChatRequest, Dialect, Json, Message, Needs, Tool

Messages = str | Sequence[Message | Mapping[str, Json]]
"""A prompt, or messages as `Message`s or in OpenAI's shape."""

CALL_OPTIONS = ("local_only", "fallback", "deadline_s")
EMBED_OPTIONS = frozenset({"dimensions", "truncate", "keep_alive", "options", "extra"})


def asked(options: Mapping[str, Any], *, model: str, stream: bool) -> dict[str, Any]:
    """A call's options with what its method decides, which they may not."""
    if "stream" in options:
        raise InvalidRequest(
            "`stream` is not an option of a request",
            field="stream",
            hint="`stream(…)` gives an answer piece by piece, `chat(…)` whole",
        )
    return {**options, "model": model, "stream": stream}


def read_texts(texts: str | Sequence[str]) -> list[str]:
    """The texts to embed, as a list."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("what is embedded must be a text, or a list of texts", field="texts")
    return list(texts)


def embed_options(options: dict[str, Any]) -> bool:
    """Refuse what embeddings have no use for; takes `local_only` out and returns it."""
    for name in options:
        if name not in {"local_only", *EMBED_OPTIONS}:
            raise InvalidRequest(f"`{name}` is not an option of embeddings", field=name)
    return bool(call_options(options).get("local_only"))


def build_call(
    messages: Messages, *, model: str, stream: bool, schema: Any = None, **options: Any
) -> Call:
    """A `Call` from a library call's arguments; raises `InvalidRequest` naming a wrong one."""
    of_call = call_options(options)
    if not isinstance(model, str):
        raise InvalidRequest("`model` must be a name", field="model")
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
        request = msgspec.json.decode(msgspec.json.encode(request), type=ChatRequest)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).removesuffix("`").partition(" - at `$.")
        raise InvalidRequest(f"`{path}` is wrong: {reason}", field=path) from error
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


def call_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take from *options* what is about the call and not of the request."""
    found = {name: options.pop(name) for name in CALL_OPTIONS if name in options}
    for name in ("local_only", "fallback"):
        if not isinstance(found.get(name, False), bool):
            raise InvalidRequest(f"`{name}` must be true or false", field=name)
    deadline_s = found.get("deadline_s")
    if deadline_s is not None and not (isinstance(deadline_s, int | float) and deadline_s > 0):
        raise InvalidRequest("`deadline_s` must be seconds, more than 0", field="deadline_s")
    return found


def new_request_id() -> str:
    """An id that a log line and an answer share."""
    return "lf-" + secrets.token_hex(8)


def read_messages(messages: Messages) -> ChatRequest:
    """Messages of any accepted form, validated as the gateway validates them."""
    if isinstance(messages, str):
        return ChatRequest(messages=(Message(role="user", content=messages),))
    if isinstance(messages, bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequest(
            "`messages` must be a prompt, or a list of messages",
            field="messages",
            hint="a single one is a list too: `[{'role': 'user', 'content': '…'}]`",
        )
    if not any(isinstance(message, Message) for message in messages):
        return decoded(messages)
    return ChatRequest(
        messages=tuple(
            one
            for message in messages
            for one in ((message,) if isinstance(message, Message) else decoded([message]).messages)
        )
    )


def decoded(messages: Sequence[Any]) -> ChatRequest:
    """A request of *messages* in OpenAI's shape."""
    from localfirst.wire.openai import requests

    try:
        body = msgspec.json.encode({"model": "auto", "messages": list(messages)})
    except TypeError as error:
        raise InvalidRequest(f"messages are not JSON: {error}", field="messages") from error
    return requests.decode(body)


def within(options: Mapping[str, Any]) -> dict[str, Any]:
    """*options* once the sampling ones are of the types and in the ranges the gateway takes."""
    from localfirst.wire.fields import Fields
    from localfirst.wire.openai.decode import choice_of, sampling_of, think_of

    given = Fields({n: list(v) if isinstance(v, tuple) else v for n, v in options.items()})
    found = {**sampling_of(given), "think": think_of(given)}
    if not isinstance(options.get("tool_choice"), str):  # else a word, or a tool's name
        found["tool_choice"] = choice_of(given)
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
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidRequest("a tool must be a `Tool`, or of OpenAI's shape", field="tools")
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
    """What a candidate must be able to do, and how long the prompt may be."""
    from localfirst.wire import estimate

    return Needs(
        tools=bool(request.tools),
        vision=any(message.images for message in request.messages),
        schema=request.schema is not None,
        thinking=bool(request.think),
        prompt_tokens=estimate.prompt_tokens(request),
        max_tokens=request.max_tokens or 0,
    )

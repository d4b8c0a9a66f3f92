"""
A `ChatRequest` as a body for Ollama's `/api/chat`, or `/api/generate` for a raw prompt.

`truncate` and `shift` are always off: by default Ollama cuts a prompt that is too long and
answers 200 (ollama/ollama#17889); this way it says so, and a larger window can be found.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md and `api/types.go` there.
"""

from __future__ import annotations

import msgspec

from localfirst.types import ChatRequest, ImagePart, Json, Message, Tool, ToolCall
from localfirst.wire import quirks
from localfirst.wire.conclusion import arguments_object
from localfirst.wire.quirks import Quirks
from localfirst.wire.refusal import ONLY_LOCAL, refuse_only_local, unsupported

_ENCODER = msgspec.json.Encoder()

_EFFORTS = {"minimal": "low", "xhigh": "max", "ultra": "max"}
"""Efforts that Ollama has no word for, by its nearest (`openai/openai.go` maps them so)."""


def encode(request: ChatRequest, model: str, *, quirks: Quirks = quirks.NONE) -> bytes:
    """
    The body for *model*; `path_of` says where it goes.

    Raises:
        UpstreamRefused: an image by URL, which a local engine never fetches; a `context` or
            the like of what is no single turn any more.
    """
    body: dict[str, Json] = {"model": model, "stream": request.stream}
    if _completes(request):
        body.update(_prompt(request))
    else:
        refuse_only_local(request)
        body["messages"] = _messages(request.messages)
        if tools := _tools(request):
            body["tools"] = tools
    body.update(_asked(request))
    if options := options_of(request):
        body["options"] = options
    body["truncate"] = False
    body["shift"] = False
    for name in quirks.drop:
        body.pop(name, None)
    return _ENCODER.encode(body)


def path_of(request: ChatRequest) -> str:
    """The endpoint that `encode`'s body is for."""
    return "/api/generate" if _completes(request) else "/api/chat"


def _completes(request: ChatRequest) -> bool:
    """Whether it is one turn; what was added to it since makes it a conversation."""
    if not request.generate:
        return request.prompt is not None
    *before, last = (message.role for message in request.messages)
    return last == "user" and set(before) <= {"system"}


def options_of(request: ChatRequest) -> dict[str, Json]:
    """Ollama's `options`: what the request names in general terms, over what it passes as is."""
    named = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "num_predict": request.max_tokens,
        "stop": list(request.stop) or None,
        "seed": request.seed,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repeat_penalty": request.repeat_penalty,
        "num_ctx": request.num_ctx,
    }
    said = {name: value for name, value in named.items() if value is not None}
    return {**request.options, **said}


def _asked(request: ChatRequest) -> dict[str, Json]:
    asked: dict[str, Json] = {}
    if request.schema is not None:
        asked["format"] = request.schema
    elif request.json_mode:
        asked["format"] = "json"
    if request.think is not None:
        asked["think"] = _EFFORTS.get(str(request.think), request.think)
    if request.keep_alive is not None:
        asked["keep_alive"] = request.keep_alive
    if request.logprobs:
        asked["logprobs"] = True
        if request.top_logprobs is not None:
            asked["top_logprobs"] = request.top_logprobs
    return asked


def _prompt(request: ChatRequest) -> dict[str, Json]:
    *before, turn = request.messages or (Message(role="user", content=request.prompt or ""),)
    fields: dict[str, Json] = {"prompt": turn.text}
    if request.suffix is not None:
        fields["suffix"] = request.suffix
    if system := "\n\n".join(message.text for message in before):
        fields["system"] = system
    fields.update({name: request.extra[name] for name in ONLY_LOCAL if name in request.extra})
    if images := turn.images:
        fields["images"] = list(map(_image, images))
    return fields


def _messages(messages: tuple[Message, ...]) -> list[Json]:
    """The turns; results carry their tool's name, which templates ask for and others leave out."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [
        _message(message, message.name or names.get(message.tool_call_id, ""))
        for message in messages
    ]


def _message(message: Message, tool_name: str) -> dict[str, Json]:
    role = message.own_role or message.role
    fields: dict[str, Json] = {"role": role, "content": message.text}
    if message.images:
        fields["images"] = list(map(_image, message.images))
    if message.reasoning:
        fields["thinking"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [_call(call, index) for index, call in enumerate(message.tool_calls)]
    if message.role == "tool":
        fields["content"] = message.result
        if tool_name:
            fields["tool_name"] = tool_name
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _image(image: ImagePart) -> str:
    if image.url:
        raise unsupported("images by URL, only base64 data")
    return image.data


def _call(call: ToolCall, index: int) -> dict[str, Json]:
    given = arguments_object(call.arguments)
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": given}}


def _tools(request: ChatRequest) -> list[Json]:
    """The tools on offer; a choice can only be made here by leaving out the others."""
    match request.tool_choice:
        case "none":
            return []
        case None | "auto" | "required":
            return [_tool(tool) for tool in request.tools]
    return [_tool(tool) for tool in request.tools if tool.name == request.tool_choice]


def _tool(tool: Tool) -> dict[str, Json]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}

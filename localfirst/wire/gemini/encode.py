"""
A `ChatRequest` as the body of `generateContent` and `streamGenerateContent`.

The model and whether to stream stand in the path, system text apart, and the results of
tools carry the function's name.

Source: https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from localfirst.types import ChatRequest, Json, Tool
from localfirst.wire import quirks
from localfirst.wire.gemini.contents import contents
from localfirst.wire.gemini.marks import Marks
from localfirst.wire.gemini.thinking import thinking
from localfirst.wire.openai.shaping import schema_instruction, without_keywords
from localfirst.wire.quirks import Quirks
from localfirst.wire.refusal import refuse_only_local

STOPS_MOST = 5
"""More stop sequences are refused."""

_ENCODER = msgspec.json.Encoder()

_PASSED = ("safetySettings", "cachedContent")

_UNREAD = frozenset({"$schema", "propertyNames"})
"""Keywords of JSON schema that the API refuses instead of skipping them."""

_NOT_BOTH = ("gemini-1", "gemini-2")
"""Models that refuse a response schema beside tools."""

_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


def encode(
    request: ChatRequest, model: str, *, quirks: Quirks = quirks.NONE, marks: Marks | None = None
) -> bytes:
    """
    The body for *request*; `path_of` says where it goes.

    Args:
        request: in no dialect.
        model: its name at this provider, which decides how thinking is said.
        quirks: what the provider wants otherwise, by the names of this dialect.
        marks: what is remembered of earlier tool calls.

    Raises:
        UpstreamRefused: a `suffix` or a `context`, which this dialect has no word for.
    """
    refuse_only_local(request)
    in_words = _in_words(request, model, quirks)
    fields: dict[str, Json] = {
        "contents": contents(request, model, quirks, marks or Marks()),
        "systemInstruction": _system(request, in_words=in_words),
        "generationConfig": _config(request, model, quirks, in_words=in_words),
        **_tools(request, quirks),
        **{name: request.extra[name] for name in _PASSED if name in request.extra},
    }
    _shape(fields, quirks)
    return _ENCODER.encode(fields)


def path_of(model: str, *, stream: bool = False, method: str = "") -> str:
    """The endpoint below the base URL, `/models/NAME:METHOD`; a name cannot leave it."""
    method = method or ("streamGenerateContent?alt=sse" if stream else "generateContent")
    folder, _, name = _resource(model).partition("/")
    return f"/{folder}/{quote(name, safe='')}:{method}"


def encode_embeddings(model: str, texts: list[str], dimensions: int | None = None) -> bytes:
    """The body of `batchEmbedContents` for *texts*."""
    beside = {} if dimensions is None else {"outputDimensionality": dimensions}
    wanted = [
        {"model": _resource(model), "content": {"parts": [{"text": text}]}, **beside}
        for text in texts
    ]
    return _ENCODER.encode({"requests": wanted})


def _resource(model: str) -> str:
    """The full name of a model, whichever way it was written."""
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def _system(request: ChatRequest, *, in_words: bool) -> Json:
    said = [message.text for message in request.messages if message.role == "system"]
    if in_words:
        said.append(_wanted(request))
    parts = [{"text": text} for text in said if text.strip()]
    return {"parts": parts} if parts else None


def _wanted(request: ChatRequest) -> str:
    if request.schema is not None:
        return schema_instruction(request.schema)
    return "Answer with one JSON object only, without any other text."


def _in_words(request: ChatRequest, model: str, quirks: Quirks) -> bool:
    """Whether the wish for JSON must be put in words."""
    if request.schema is None and not request.json_mode:
        return False
    beside_tools = bool(request.tools) and model.startswith(_NOT_BOTH)
    return beside_tools or (request.schema is not None and not quirks.json_schema)


def _config(request: ChatRequest, model: str, quirks: Quirks, *, in_words: bool) -> dict[str, Json]:
    config: dict[str, Json] = {
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k if (request.top_k or 0) > 0 else None,
        "maxOutputTokens": request.max_tokens,
        "stopSequences": [text for text in request.stop if text][:STOPS_MOST] or None,
        # A signed 32-bit integer there.
        "seed": None if request.seed is None else request.seed % 2**31,
        "thinkingConfig": thinking(request, model) or None,
    }
    if (request.schema is not None or request.json_mode) and not in_words:
        config["responseMimeType"] = "application/json"
        if request.schema is not None:
            config["responseJsonSchema"] = _schema(request.schema, quirks)
    return config


def _schema(schema: Json, quirks: Quirks) -> Json:
    return _without_const(without_keywords(schema, _UNREAD | quirks.schema_drop))


def _without_const(schema: Json) -> Json:
    """A schema with `enum` of one value for `const`, which the API does not read."""
    if isinstance(schema, list):
        return [_without_const(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Json] = {}
    for name, value in schema.items():
        if name == "properties" and isinstance(value, dict):
            made[name] = {key: _without_const(item) for key, item in value.items()}
        elif name == "const":
            made["enum"] = [value]
        else:
            made[name] = value if name in {"enum", "default"} else _without_const(value)
    return made


def _tools(request: ChatRequest, quirks: Quirks) -> dict[str, Json]:
    if not request.tools:
        return {}
    declared = [_declaration(tool, quirks) for tool in request.tools]
    fields: dict[str, Json] = {"tools": [{"functionDeclarations": declared}]}
    if request.tool_choice is not None:
        config: dict[str, Json] = {"mode": _MODES.get(request.tool_choice, "ANY")}
        if request.tool_choice not in _MODES:
            config["allowedFunctionNames"] = [request.tool_choice]
        fields["toolConfig"] = {"functionCallingConfig": config}
    return fields


def _declaration(tool: Tool, quirks: Quirks) -> dict[str, Json]:
    fields: dict[str, Json] = {"name": tool.name}
    if tool.description:
        fields["description"] = tool.description
    # An object without properties is refused where a schema is read; no schema says the same.
    if tool.parameters.get("properties"):
        fields["parametersJsonSchema"] = _schema(tool.parameters, quirks)
    return fields


def _shape(fields: dict[str, Json], quirks: Quirks) -> None:
    """Apply what *quirks* says of generation's settings and of the body's own fields."""
    config = fields["generationConfig"]
    for name, most in quirks.caps.items():
        value = config.get(name)
        if isinstance(value, int | float) and value > most:
            config[name] = type(value)(most)
    thoughts = config["thinkingConfig"] or {}
    for place in (thoughts, config, fields):
        empty = [name for name, value in place.items() if value is None or value == {}]
        for name in (*empty, *quirks.drop):
            place.pop(name, None)
    for name, value in quirks.defaults.items():
        config.setdefault(name, value)
    config.update(quirks.forced)
    if config:
        fields["generationConfig"] = config

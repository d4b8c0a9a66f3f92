"""
What requests and answers look like, for the OpenAPI document: JSON schemas by route.

A schema says what is accepted and checked here, not all that a surface's maker ever wrote
down: fields that it leaves out are passed on where the backend knows them. Ranges are those
of `wire.fields`; `null` means "not said" everywhere.
"""

from __future__ import annotations

from localfirst.types import Json
from localfirst.wire.anthropic.decode import BLOCKS
from localfirst.wire.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_PARTS,
    MAX_SEED,
    MAX_TOKENS,
    REFUSED,
)
from localfirst.wire.ollama import embeddings as native
from localfirst.wire.openai.decode import EFFORTS
from localfirst.wire.openai.embeddings import MAX_DIMENSIONS, MAX_ID, MAX_TEXTS

_TEXT: Json = {"type": "string"}
_SAID: Json = {"type": "string", "minLength": 1}
_MAYBE: Json = {"type": ["string", "null"]}
_FLAG: Json = {"type": ["boolean", "null"]}
_COUNT: Json = {"type": "integer", "minimum": 0}

_PART = "[A-Za-z0-9_][A-Za-z0-9_-]{0,60}"
_NAMED: Json = {"type": "string", "pattern": f"^{_PART}(:{_PART})?$", "not": {"const": "auto"}}
_MODEL: Json = {"type": ["string", "null"], "pattern": f"^({_PART})?$"}
"""A plain name; all that names one (tags, hosts, providers, routes) makes no readable pattern."""


def _whole(least: int, most: int) -> Json:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def _number(least: float, most: float) -> Json:
    return {"type": ["number", "null"], "minimum": least, "maximum": most}


def _list(items: Json, most: int, *, least: int = 0) -> Json:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _object(properties: dict[str, Json], *required: str) -> dict[str, Json]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _word(*words: str) -> Json:
    return {"type": "string", "enum": list(words)}


def _body(properties: dict[str, Json], *required: str) -> dict[str, Json]:
    """A request's body; what would choose a destination is refused."""
    refused: dict[str, Json] = dict.fromkeys(sorted(REFUSED), False)
    return _object({**properties, **refused}, *required)


# --- requests ------------------------------------------------------------------------------


_TEXT_PART = _object({"type": _word("text"), "text": _TEXT}, "type", "text")
_CONTENT: Json = {"anyOf": [_TEXT, _list(_TEXT_PART, MAX_PARTS)]}
_BLOCKS: Json = {"anyOf": [_TEXT, _list(_TEXT_PART, MAX_PARTS, least=1)]}
# Blocks that only Anthropic reads are counted here, whatever is in them.
_FOREIGN = _object(
    {"type": {"type": "string", "minLength": 1, "not": {"enum": list(BLOCKS)}}}, "type"
)
_COUNTED: Json = {"anyOf": [_TEXT, _list({"anyOf": [_TEXT_PART, _FOREIGN]}, MAX_PARTS, least=1)]}
_SAMPLING: dict[str, Json] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "seed": _whole(-MAX_SEED, MAX_SEED),
    "num_ctx": _whole(1, MAX_CONTEXT_TOKENS),
}
_OPENAI: dict[str, Json] = {
    "model": _MODEL,
    "stream": _FLAG,
    **_SAMPLING,
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
}
_OPTIONS: Json = {
    "type": ["object", "null"],
    "properties": {
        "temperature": _number(0, 100),
        "top_p": _number(0, 1),
        "num_predict": _whole(-2, MAX_TOKENS),
        "num_ctx": _whole(1, MAX_CONTEXT_TOKENS),
    },
}
_NATIVE: dict[str, Json] = {
    "model": _MODEL,
    "stream": _FLAG,
    "options": _OPTIONS,
    "think": {"enum": [True, False, "low", "medium", "high", "max", None]},
    "format": {"anyOf": [{"enum": ["json", "", None]}, {"type": "object"}]},
}


def _turns(*roles: str, content: Json = _CONTENT) -> Json:
    turn = _object({"role": _word(*roles), "content": content}, "role", "content")
    return _list(turn, MAX_MESSAGES, least=1)


_MESSAGES: dict[str, Json] = {
    "model": _MODEL,
    "messages": _turns("user", "assistant", content=_BLOCKS),
    "stream": _FLAG,
    "system": _MAYBE,
    "temperature": _number(0, 1),
    "top_p": _number(0, 1),
}
_TEXTS: list[Json] = [_TEXT, _list(_TEXT, MAX_TEXTS, least=1)]
_INPUT: Json = {"anyOf": _TEXTS}
_IDS = _list({"type": "integer", "minimum": 0, "maximum": MAX_ID - 1}, MAX_TOKENS, least=1)
_WIDTH = _whole(1, MAX_DIMENSIONS)

BODIES: dict[str, dict[str, Json]] = {
    "openai.chat": _body(
        {
            **_OPENAI,
            "messages": _turns("user", "assistant", "system", "developer"),
            "max_tokens": _whole(1, MAX_TOKENS),
            "max_completion_tokens": _whole(1, MAX_TOKENS),
            "reasoning_effort": {"enum": [*EFFORTS, None]},
            "n": _whole(1, 1),
        },
        "messages",
    ),
    "openai.completions": _body(
        {
            **_OPENAI,
            "prompt": _SAID,
            "max_tokens": _whole(1, MAX_TOKENS),
            "echo": {"enum": [False, None]},
        },
        "prompt",
    ),
    "openai.responses": _body(
        {
            "model": _MODEL,
            "input": {
                "anyOf": [_TEXT, _turns("user", "assistant", "system", content=_TEXT)],
            },
            "instructions": _MAYBE,
            "stream": _FLAG,
            **_SAMPLING,
            "max_output_tokens": _whole(1, MAX_TOKENS),
        },
        "input",
    ),
    "openai.embeddings": _body(
        {
            "model": _MODEL,
            "input": {"anyOf": [*_TEXTS, _IDS, _list(_IDS, MAX_TEXTS, least=1)]},
            "dimensions": _WIDTH,
            "encoding_format": {"enum": ["float", "base64", None]},
        },
        "input",
    ),
    "anthropic.messages": _body(
        {**_MESSAGES, "max_tokens": {"type": "integer", "minimum": 1, "maximum": MAX_TOKENS}},
        "messages",
        "max_tokens",
    ),
    "anthropic.count_tokens": _body(
        {
            **_MESSAGES,
            "model": _MAYBE,
            "messages": _turns("user", "assistant", content=_COUNTED),
        },
        "messages",
    ),
    "ollama.chat": _body(
        {
            **_NATIVE,
            "messages": {
                "type": ["array", "null"],
                "items": _object(
                    {
                        # A model's own template may know more than the usual ones.
                        "role": {"type": ["string", "null"], "maxLength": MAX_NAME_CHARS},
                        "content": _MAYBE,
                    }
                ),
                "maxItems": MAX_MESSAGES,
            },
        }
    ),
    "ollama.generate": _body({**_NATIVE, "prompt": _MAYBE}),
    "ollama.embed": _body(
        {
            "model": _MODEL,
            "input": {"anyOf": [_TEXT, _list(_TEXT, native.MAX_TEXTS), {"type": "null"}]},
            "truncate": _FLAG,
            "dimensions": _WIDTH,
        }
    ),
    "ollama.embeddings": _body({"model": _MODEL, "prompt": _MAYBE}),
    "ollama.show": _object({"model": _NAMED, "verbose": _FLAG}, "model"),
    "ollama.pull": _body(
        {"model": _NAMED, "stream": _FLAG, "insecure": {"enum": [False, None]}}, "model"
    ),
    "pulls.change": _body(
        {"model": _NAMED, "action": {"enum": ["start", "pause", "resume", "cancel", None]}},
        "model",
    ),
}


# --- answers -------------------------------------------------------------------------------


_STAMP: Json = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"}
_USAGE = _object(
    {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
)
_NUMBERS: Json = {"type": "array", "items": {"type": "number"}}
_DONE: dict[str, Json] = {
    "model": _TEXT,
    "created_at": _STAMP,
    "done": {"const": True},
    "done_reason": _word("stop", "length", "load", "unload"),
    "total_duration": _COUNT,
    "eval_count": _COUNT,
}
_FINISHED = ("model", "created_at", "done", "done_reason")
_LISTED = _object(
    {"name": _TEXT, "model": _TEXT, "size": _COUNT, "digest": _TEXT, "details": {"type": "object"}},
    "name",
    "model",
    "size",
    "digest",
    "details",
)
_ENTRY = _object(
    {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT},
    "id",
    "object",
    "created",
    "owned_by",
)
_JOB = _object(
    {
        "model": _TEXT,
        "state": _TEXT,
        "completed_bytes": _COUNT,
        "total_bytes": _COUNT,
        "percent": {"type": ["number", "null"]},
    },
    "model",
    "state",
    "completed_bytes",
    "total_bytes",
)


def _choices(name: str, schema: Json) -> Json:
    choice = _object({"index": _COUNT, name: schema, "finish_reason": _TEXT}, "index", name)
    return _list(choice, 1, least=1)


def _completion(word: str, choices: Json) -> dict[str, Json]:
    known = {"id": _TEXT, "object": {"const": word}, "created": _COUNT, "model": _TEXT}
    return _object({**known, "choices": choices, "usage": _USAGE}, *known, "choices", "usage")


ANSWERS: dict[str, dict[str, Json]] = {
    "openai.chat": _completion(
        "chat.completion",
        _choices("message", _object({"role": {"const": "assistant"}}, "role", "content")),
    ),
    "openai.completions": _completion("text_completion", _choices("text", _TEXT)),
    "openai.responses": _object(
        {
            "id": _TEXT,
            "object": {"const": "response"},
            "status": _word("completed", "incomplete"),
            "output": _list({"type": "object"}, MAX_MESSAGES),
        },
        "id",
        "object",
        "status",
        "output",
        "usage",
    ),
    "openai.embeddings": _object(
        {"object": {"const": "list"}, "data": _list({"type": "object"}, MAX_TEXTS, least=1)},
        "object",
        "data",
        "model",
        "usage",
    ),
    "openai.models": _object({"object": {"const": "list"}, "data": _list(_ENTRY, 10**6)}, "data"),
    "openai.model": _ENTRY,
    "anthropic.messages": _object(
        {
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "content": _list(_object({"type": _TEXT}, "type"), MAX_PARTS),
            "usage": _object({"input_tokens": _COUNT, "output_tokens": _COUNT}, "input_tokens"),
        },
        "id",
        "type",
        "role",
        "model",
        "content",
        "stop_reason",
        "stop_sequence",
        "usage",
    ),
    "anthropic.count_tokens": _object({"input_tokens": _COUNT}, "input_tokens"),
    "ollama.chat": _object({**_DONE, "message": {"type": "object"}}, *_FINISHED, "message"),
    "ollama.generate": _object({**_DONE, "response": _TEXT}, *_FINISHED, "response"),
    "ollama.embed": _object(
        {"model": _TEXT, "embeddings": _list(_NUMBERS, native.MAX_TEXTS)}, "model", "embeddings"
    ),
    "ollama.embeddings": _object({"embedding": _NUMBERS}, "embedding"),
    "ollama.tags": _object({"models": _list(_LISTED, 10**6)}, "models"),
    "ollama.ps": _object({"models": _list(_LISTED, 10**6)}, "models"),
    "ollama.show": _object({"details": {"type": "object"}}, "details", "model_info"),
    "ollama.version": _object({"version": _TEXT}, "version"),
    "ollama.pull": _object({"status": {"const": "success"}}, "status"),
    "health": _object({"status": {"const": "ok"}}, "status"),
    "state": _object({"version": _TEXT}, "version", "pulls", "gateway"),
    "explain": _object({"model": _TEXT, "steps": _list({"type": "object"}, 10**6)}, "steps"),
    "pulls": _object({"pulls": _list(_JOB, 10**6)}, "pulls"),
    "pulls.change": _JOB,
    "openapi": _object({"openapi": _TEXT}, "openapi", "paths"),
}

_FAILED = _object({"message": _TEXT, "type": _TEXT, "code": _TEXT}, "message", "type", "code")

ERRORS: dict[str, dict[str, Json]] = {
    "ollama": _object({"error": _TEXT, "code": _TEXT, "hint": _TEXT}, "error"),
    "anthropic": _object(
        {"type": {"const": "error"}, "error": _FAILED, "request_id": _TEXT}, "type", "error"
    ),
    "openai": _object({"error": _FAILED}, "error"),
}
"""An error's shape by surface; our own endpoints speak OpenAI's."""

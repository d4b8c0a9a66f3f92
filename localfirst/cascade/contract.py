"""
Structured output: a schema in, a validated object out.

How to ask a model that has no native structured output, how to read what it wrote (fences,
thoughts, trailing commas), how to say what was wrong with it. Pure; `json-repair` and
`jsonschema` (extra `structured`) are imported when they are first needed.
"""

from __future__ import annotations

import functools
import json
import re
from importlib.util import find_spec
from typing import Any

import msgspec

from localfirst.errors import ConfigError, InvalidRequest
from localfirst.types import ChatRequest, Json, Message

EXTRA_HINT = "install it with `pip install 'localfirst-runtime[structured]'`"
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[A-Za-z0-9_-]*\s*\n?(.*?)```", re.DOTALL)
ERROR_CHARACTERS = 500
ANSWER_CHARACTERS = 4000


class ContractBroken(Exception):
    """
    Raised when a text is no instance of its schema.

    The message is for the model alone: it quotes the answer. `place` is a path, and may be
    shown to anybody.
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def schema_of(wanted: Any) -> dict[str, Json]:
    """
    The JSON schema of a Pydantic model class, or a schema as it is.

    Raises:
        InvalidRequest: it is neither, or no valid schema.
    """
    if isinstance(wanted, dict):
        found = wanted
    else:
        make = getattr(wanted, "model_json_schema", None)
        if make is None:
            raise InvalidRequest(
                "`schema` is neither a Pydantic model nor a JSON schema", field="schema"
            )
        found = make()
    check_schema(found)
    return dict(found)


def check_schema(schema: dict[str, Json]) -> None:
    """Raise `InvalidRequest` unless *schema* is a JSON schema."""
    jsonschema = _jsonschema()
    cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        cls.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InvalidRequest(f"not a JSON schema: {error.message}", field="schema") from error


def instructed(request: ChatRequest) -> ChatRequest:
    """*request* asking in words for what a model without native support is to write."""
    words = (
        "Answer with one JSON value and nothing else: no explanation, no code fence. "
        "It must be valid against this JSON schema:\n"
        + json.dumps(request.schema, ensure_ascii=False, separators=(",", ":"))
    )
    return msgspec.structs.replace(request, messages=_with_system(request.messages, words))


def asked_again(request: ChatRequest, answer: str, problem: str) -> ChatRequest:
    """*request* with the answer that broke the contract, and what was wrong with it."""
    words = (
        f"That is not valid: {problem[:ERROR_CHARACTERS]}\n"
        "Answer again with the corrected JSON value and nothing else."
    )
    return msgspec.structs.replace(
        request,
        messages=(
            *request.messages,
            Message(role="assistant", content=answer[:ANSWER_CHARACTERS] or "(nothing)"),
            Message(role="user", content=words),
        ),
    )


def fulfilled(text: str, schema: dict[str, Json]) -> Json:
    """
    The object that *text* holds, repaired where that is safe, valid against *schema*.

    Raises:
        ContractBroken: there is none, or it is not valid.
        ConfigError: the extra `structured` is not installed.
    """
    try:
        value = parsed(text)
        problem, place = violation(value, schema)
    except RecursionError as error:  # small models do write `[[[[[` until they are stopped
        raise ContractBroken("the answer nests too deep to be read") from error
    if problem:
        raise ContractBroken(problem, place)
    return value


def instance(wanted: Any, value: Json) -> Any:
    """
    *value* as an instance of the Pydantic model *wanted*, or as it is for a JSON schema.

    Raises:
        ContractBroken: a validator of the model refuses it, which no schema can tell of.
    """
    make = getattr(wanted, "model_validate", None)
    try:
        return value if make is None else make(value)
    except ValueError as error:
        raise ContractBroken(str(error)) from error


def parsed(text: str) -> Json:
    """The JSON value in *text*, without thoughts and fences; raises `ContractBroken`."""
    bare = stripped(text)
    try:
        return json.loads(bare)
    except ValueError:
        return _repaired(bare)


def stripped(text: str) -> str:
    """*text* without thoughts, code fences and the prose around a JSON value."""
    text = _THOUGHTS.sub("", text)
    if "</think>" in text:  # the opening tag is part of some chat templates, not of the answer
        text = text.rsplit("</think>", 1)[1]
    fenced = _FENCE.findall(text)
    text = (fenced[-1] if fenced else text).strip()
    starts = [place for mark in "{[" if (place := text.find(mark)) >= 0]
    if starts and not text.startswith('"'):
        text = text[min(starts) :]
    return text


def _repaired(bare: str) -> Json:
    repair = _json_repair()
    try:
        value = repair.loads(bare, skip_json_loads=True)
    except ValueError as error:
        raise ContractBroken(f"the answer cannot be read: {error}") from error
    # The repairer makes an empty string of prose, which is no value that anybody wrote.
    if isinstance(value, str):
        raise ContractBroken("the answer holds no JSON value")
    return value


def violation(value: Json, schema: dict[str, Json]) -> tuple[str, str]:
    """What is wrong with *value*, in one line, and where; ("", "") when nothing is."""
    validator = _validator(json.dumps(schema, sort_keys=True))
    worst = _jsonschema().exceptions.best_match(validator.iter_errors(value))
    if worst is None:
        return "", ""
    place = "/".join(str(part) for part in worst.absolute_path)[:120] or "the top"
    return f"at `{place}`: {worst.message}"[:ERROR_CHARACTERS], place


@functools.lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    jsonschema = _jsonschema()
    loaded = json.loads(schema)
    cls = jsonschema.validators.validator_for(loaded, default=jsonschema.Draft202012Validator)
    return cls(loaded)


def _with_system(messages: tuple[Message, ...], words: str) -> tuple[Message, ...]:
    if messages and messages[0].role == "system":
        first = messages[0]
        joined = msgspec.structs.replace(first, content=f"{first.text}\n\n{words}")
        return (joined, *messages[1:])
    return (Message(role="system", content=words), *messages)


def _jsonschema() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise _missing("jsonschema") from error
    return jsonschema


def _json_repair() -> Any:
    try:
        import json_repair
    except ImportError as error:
        raise _missing("json-repair") from error
    return json_repair


def can_validate() -> bool:
    """Whether the extra that checks schemas is installed."""
    return find_spec("jsonschema") is not None and find_spec("json_repair") is not None


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"structured output needs the package `{package}`",
        hint=EXTRA_HINT,
        code="extra-missing",
    )

"""A chat completion request of a client, into a `ChatRequest`."""

from __future__ import annotations

import json
from typing import Literal

from localfirst.types import ChatRequest, Dialect, Json, Message, Tool, ToolCall
from localfirst.wire import strict_json
from localfirst.wire.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_SEED,
    MAX_STOPS,
    MAX_TOKENS,
    MAX_TOOLS,
    Fields,
    refuse,
    wrong,
)
from localfirst.wire.openai.content import check_images, content_of
from localfirst.wire.options import keep_alive_of, options_of
from localfirst.wire.refusal import NotTranslatable

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max")
"""Every `reasoning_effort` seen in the field; providers take subsets of it."""

MAX_ANSWERS = 128

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_KNOWN = frozenset(
    {
        "model", "messages", "stream", "stream_options", "tools", "tool_choice", "functions",
        "function_call", "parallel_tool_calls", "temperature", "top_p", "top_k", "min_p",
        "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty",
        "frequency_penalty", "repeat_penalty", "repetition_penalty", "logprobs", "top_logprobs",
        "response_format", "reasoning_effort", "reasoning", "think", "num_ctx", "keep_alive",
        "options", "user", "n",
    }
)  # fmt: skip


def decode(body: bytes) -> ChatRequest:
    """
    The request in *body*, fully validated.

    Raises:
        InvalidRequest: naming the field that is missing, wrong or out of range; with code
            `field-not-allowed` for fields that would choose the destination.
    """
    fields = Fields(strict_json.load_object(body))
    refuse(set(fields.values))
    messages = tuple(_message(item) for item in fields.objects("messages", MAX_MESSAGES))
    if not messages:
        raise wrong("messages", "a non-empty list")
    check_images(messages)
    return ChatRequest(
        model=fields.text("model") or "auto",
        messages=messages,
        tools=tools_of(fields),
        tool_choice=choice_of(fields),
        parallel_tool_calls=fields.flag("parallel_tool_calls"),
        **sampling_of(fields),
        **format_of(fields.object("response_format")),
        think=think_of(fields),
        **stream_of(fields),
        extra=fields.rest(_KNOWN),
        dialect=Dialect.OPENAI,
    )


def sampling_of(fields: Fields) -> dict[str, Json]:
    """The sampling fields that chat and completions share."""
    if (fields.integer("n", 1, MAX_ANSWERS) or 1) > 1:
        raise NotTranslatable("several answers to one request", field="n")
    return {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.integer("top_k", -1, 1_000_000),
        "min_p": fields.number("min_p", 0, 1),
        "max_tokens": fields.integer("max_completion_tokens", 1, MAX_TOKENS)
        or fields.integer("max_tokens", 1, MAX_TOKENS),
        "stop": fields.texts("stop", MAX_STOPS),
        "seed": fields.integer("seed", -MAX_SEED, MAX_SEED),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "repeat_penalty": fields.number("repeat_penalty", 0, 10)
        or fields.number("repetition_penalty", 0, 10),
        "logprobs": fields.flag("logprobs"),
        "top_logprobs": fields.integer("top_logprobs", 0, 20),
        "num_ctx": fields.integer("num_ctx", 1, MAX_CONTEXT_TOKENS),
        "keep_alive": keep_alive_of(fields),
        "options": options_of(fields),
        "user": fields.text("user"),
    }


def stream_of(fields: Fields) -> dict[str, Json]:
    """`stream` and whether its usage chunk is wanted."""
    options = fields.object("stream_options")
    return {
        "stream": bool(fields.flag("stream")),
        "include_usage": bool(options and options.flag("include_usage")),
    }


def think_of(fields: Fields) -> bool | str | None:
    """
    `reasoning_effort`, OpenRouter's `reasoning.effort`, Ollama's `think`, or what vLLM, SGLang
    and llama.cpp are told for the template's sake, as Qwen's and others' pages advise.
    """
    nested = fields.object("reasoning")
    effort = fields.choice("reasoning_effort", EFFORTS) or (
        nested and nested.choice("effort", EFFORTS)
    )
    if effort:
        return False if effort == "none" else effort
    think = fields.get("think")
    if think is not None and not isinstance(think, bool) and think not in EFFORTS:
        raise wrong("think", "true, false or an effort")
    if think is None:
        told: Json = fields.mapping("chat_template_kwargs").get("enable_thinking")
        return told if isinstance(told, bool) else None
    found: bool | str = think
    return found


def format_of(found: Fields | None) -> dict[str, Json]:
    """What `response_format` asks for, as fields of a `ChatRequest`."""
    if found is None:
        return {}
    kind = found.choice("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        return {"json_mode": True}
    if kind != "json_schema":
        return {}
    inner = found.object("json_schema")
    if inner is None or not inner.has("schema"):
        raise wrong(found.at("json_schema.schema"), "a JSON schema")
    return {"schema": inner.mapping("schema"), "schema_name": inner.text("name")}


def tools_of(fields: Fields) -> tuple[Tool, ...]:
    """`tools`, or the older `functions`."""
    if not fields.has("tools"):
        return tuple(_function(item) for item in fields.objects("functions", MAX_TOOLS))
    return tuple(_tool(item) for item in fields.objects("tools", MAX_TOOLS))


def _tool(item: Fields) -> Tool:
    kind = item.text("type", "function")
    if kind != "function":
        raise NotTranslatable(f"`{kind[:80]}` tools", field=item.at("type"))
    return _function(item.object("function") or item)


def _function(item: Fields) -> Tool:
    return Tool(
        name=name_of(item),
        description=item.text("description"),
        parameters=item.mapping("parameters"),
        strict=item.flag("strict"),
    )


def name_of(item: Fields) -> str:
    """A tool's name, which must be there and short."""
    name = item.required_text("name")
    if len(name) > MAX_NAME_CHARS:
        raise wrong(item.at("name"), f"at most {MAX_NAME_CHARS} characters long")
    return name


def choice_of(fields: Fields) -> str | None:
    """`tool_choice`, or the older `function_call`: a word or a tool's name."""
    name = "tool_choice" if fields.has("tool_choice") else "function_call"
    value = fields.get(name)
    if value is None or value in ("auto", "none", "required"):
        return value if isinstance(value, str) else None
    if value == "any":
        return "required"
    if not isinstance(value, dict):
        raise wrong(name, "`auto`, `none`, `required` or a function")
    chosen = Fields(value, name)
    if chosen.text("type") in {"allowed_tools", "custom"}:
        raise NotTranslatable(f"a choice of `{chosen.text('type')}`", field=name)
    return (chosen.object("function") or chosen).required_text("name")


def _message(item: Fields) -> Message:
    role = item.choice("role", _ROLES)
    if role is None:
        raise wrong(item.at("role"), "one of " + ", ".join(f"`{word}`" for word in _ROLES))
    if role in {"tool", "function"}:
        return _tool_message(item)
    calls = tuple(_call(call) for call in item.objects("tool_calls", MAX_TOOLS))
    if legacy := item.object("function_call"):
        calls = (_call(legacy, identifier="call_0"),)
    if not item.has("content") and role != "assistant":
        raise wrong(item.at("content"), "a string or a list of parts")
    return Message(
        role=_plain_role(role),
        content=content_of(item),
        tool_calls=calls,
        name=item.text("name"),
        reasoning=item.text("reasoning_content") or item.text("reasoning"),
    )


def _plain_role(role: str) -> Literal["system", "user", "assistant"]:
    if role == "assistant":
        return "assistant"
    return "user" if role == "user" else "system"


def _tool_message(item: Fields) -> Message:
    return Message(
        role="tool",
        content=content_of(item),
        tool_call_id=item.text("tool_call_id") or item.text("name"),
        name=item.text("name"),
    )


def _call(item: Fields, identifier: str = "") -> ToolCall:
    function = item.object("function") or item
    if item.text("type", "function") not in {"function", ""}:
        raise wrong(item.at("type"), "`function`")
    return ToolCall(
        id=item.text("id") or identifier,
        name=function.required_text("name"),
        arguments=arguments_of(function),
    )


def arguments_of(function: Fields) -> str:
    """A call's arguments as the model wrote them; objects are accepted and written out."""
    value = function.get("arguments")
    if value is None or value == "":
        return "{}"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not isinstance(value, str):
        raise wrong(function.at("arguments"), "JSON text")
    return value

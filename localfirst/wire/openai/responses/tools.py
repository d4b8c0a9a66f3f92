"""
Tools of `/v1/responses` as functions for any model, and their calls as clients know them.

Agents send more than functions: groups of them (Codex, one for each MCP server), tools that
take plain text under a grammar (its `apply_patch`), a search for further tools that the agent
itself carries out, and offers of what OpenAI would run.

Sources: https://platform.openai.com/docs/guides/function-calling (custom tools);
codex-rs/protocol/src/models.rs in github.com/openai/codex (namespaces, tools in the input).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Literal

from localfirst.errors import InvalidRequest
from localfirst.types import ChatRequest, Json, Tool
from localfirst.wire.conclusion import json_value
from localfirst.wire.fields import MAX_MESSAGES, MAX_TOOLS, Fields, wrong
from localfirst.wire.openai.decode import choice_of, name_of

NAME_CHARS = 64
"""What OpenAI's dialect takes for a function's name."""

OFFERS = frozenset(
    {
        "web_search", "web_search_2025_08_26", "web_search_preview",
        "web_search_preview_2025_03_11", "image_generation", "code_interpreter", "tool_search",
    }
)  # fmt: skip
"""What a model may use at OpenAI. Beside tools of the client's own an answer does without."""

SEARCH = "tool_search"

Kind = Literal["function", "custom", "tool_search"]

_CALLS: dict[Kind, str] = {
    "function": "function_call", "custom": "custom_tool_call", "tool_search": "tool_search_call",
}  # fmt: skip

TEXT: dict[str, Json] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""The parameters of a tool that takes text."""


def read(fields: Fields) -> tuple[Tool, ...]:
    """
    The functions that `tools`, and the tools told of in `input`, come to.

    Raises:
        InvalidRequest: a tool that only OpenAI runs and that is no mere offer, or nothing else.
    """
    found: dict[str, Tool] = {}
    offers: list[Fields] = []
    for item in _declared(fields):
        if item.text("type") in OFFERS and not _is_clients(item):
            offers.append(item)
            continue
        for tool in _tools(item, ""):
            # Told of again, a tool is what it was told to be last.
            found[tool.name] = tool
    if offers and not found:
        raise _hosted(offers[0])
    if len(found) > MAX_TOOLS:
        raise wrong("tools", f"at most {MAX_TOOLS} functions, those in namespaces counted")
    return tuple(found.values())


def chosen(fields: Fields) -> str | None:
    """`tool_choice`: a word, or the name that the chosen tool has among `read`'s."""
    value = fields.get("tool_choice")
    if not isinstance(value, dict):
        return choice_of(fields)
    choice = Fields(value, "tool_choice")
    if choice.text("type") in {"function", "custom"}:
        return joined(choice.text("namespace"), choice.required_text("name"))
    return choice_of(fields)


def joined(namespace: str, name: str) -> str:
    """One name for a tool of a namespace, short enough for every provider."""
    if not namespace:
        return name
    whole = f"{namespace}__{name}"
    if len(whole) <= NAME_CHARS:
        return whole
    mark = f"_{zlib.crc32(whole.encode()):08x}"
    return whole[: NAME_CHARS - len(mark)] + mark


def named(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Those of *tools* that their client knows otherwise, by the name that a model calls."""
    return {tool.name: tool for tool in tools if tool.namespace or tool.kind != "function"}


def call_item(
    identifier: str, call_id: str, name: str, arguments: str, status: str, tool: Tool | None
) -> dict[str, Json]:
    """A call as the client of *tool* reads it; without one a plain function's."""
    kind = tool.kind if tool else "function"
    item: dict[str, Json] = {"id": identifier, "type": _CALLS[kind], "status": status}
    item["call_id"] = call_id
    if kind == "tool_search":
        return {**item, "execution": "client", "arguments": _object(arguments)}
    if tool and tool.namespace:
        item |= {"name": tool.own_name, "namespace": tool.namespace}
    else:
        item["name"] = name
    if kind == "custom":
        return {**item, "input": text_of(arguments)}
    return {**item, "arguments": arguments}


def text_of(arguments: str) -> str:
    """The text in a custom tool's call; what is no JSON of ours is the text itself."""
    value = json_value(arguments or "{}")
    said = list(value.values()) if isinstance(value, dict) else [value]
    if not said:
        return ""
    # Some models name the one parameter as they like.
    return said[0] if len(said) == 1 and isinstance(said[0], str) else arguments


def written(value: Json) -> str:
    """The arguments of an earlier call, as models write them."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def found_by_search(item: Fields) -> str:
    """What a model is told of the tools that a search has found."""
    names = [tool.name for inner in item.objects("tools", MAX_TOOLS) for tool in _tools(inner, "")]
    return f"These tools can be called now: {', '.join(names)}" if names else "No tool was found."


def echoed(request: ChatRequest) -> list[Json]:
    """The tools that are in force, in the words of this surface."""
    told: list[Json] = []
    groups: dict[str, list[Json]] = {}
    for tool in request.tools:
        if tool.namespace not in groups and tool.namespace:
            inside = groups[tool.namespace] = []
            told.append({"type": "namespace", "name": tool.namespace, "tools": inside})
        groups.get(tool.namespace, told).append(_echo(tool))
    return told


def _echo(tool: Tool) -> dict[str, Json]:
    name, description = tool.own_name or tool.name, tool.description or None
    if tool.kind == "custom":
        return {"type": "custom", "name": name, "description": description}
    given: dict[str, Json] = {"description": description, "parameters": tool.parameters}
    if tool.kind == SEARCH:
        return {"type": SEARCH, "execution": "client", **given}
    return {"type": "function", "name": name, **given, "strict": tool.strict}


def _declared(fields: Fields) -> list[Fields]:
    """Every tool told of, at the top and within the conversation."""
    declared = fields.objects("tools", MAX_TOOLS)
    if isinstance(fields.get("input"), list):
        for item in fields.objects("input", MAX_MESSAGES):
            if item.text("type") in {"additional_tools", f"{SEARCH}_output"}:
                declared += item.objects("tools", MAX_TOOLS)
    return declared


def _tools(item: Fields, namespace: str) -> list[Tool]:
    match item.text("type"):
        case "namespace" if not namespace:
            group = name_of(item)
            inside = item.objects("tools", MAX_TOOLS)
            return [tool for one in inside for tool in _tools(one, group)]
        case "custom":
            return [_own(item, namespace, _ruled(item), TEXT, "custom")]
        case "function":
            parameters = item.mapping("parameters")
            return [_own(item, namespace, item.text("description"), parameters, "function")]
        case "tool_search" if _is_clients(item):
            return [
                Tool(
                    name=SEARCH,
                    description=item.text("description"),
                    parameters=item.mapping("parameters"),
                    kind="tool_search",
                )
            ]
    raise _hosted(item)


def _own(
    item: Fields, namespace: str, description: str, parameters: dict[str, Json], kind: Kind
) -> Tool:
    name = name_of(item)
    return Tool(
        name=joined(namespace, name),
        description=description,
        parameters=parameters,
        strict=item.flag("strict"),
        namespace=namespace,
        own_name=name if namespace else "",
        kind=kind,
    )


def _ruled(item: Fields) -> str:
    """A custom tool's description with its grammar, to which nobody else holds a model."""
    said, form = item.text("description"), item.object("format")
    if form is None or not (rules := form.text("definition")):
        return said
    return f"{said}\n\nThe input must follow this {form.text('syntax')} grammar:\n{rules}"


def _is_clients(item: Fields) -> bool:
    return item.text("type") == SEARCH and item.text("execution") == "client"


def _object(arguments: str) -> Json:
    value = json_value(arguments)
    return value if isinstance(value, dict) else {}


def _hosted(item: Fields) -> InvalidRequest:
    kinds = "`function`, `custom` or `namespace`"
    return wrong(item.at("type"), f"{kinds}; hosted tools run only at OpenAI itself")

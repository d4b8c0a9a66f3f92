"""
Tool calls that have to be made: `tool_choice` "required" or a tool's name.

llama.cpp takes that choice and does not hold many models to it (ggml-org/llama.cpp issue
27217), Ollama has no word for it (ollama/ollama `openai/openai.go` drops it), but both hold
a model to a JSON schema. So the tools are shown to the model as always, the answer has to be
`{"name": …, "arguments": …}` of one of them, and what comes is told as the call that it is.
Pure.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import msgspec

from localfirst.errors import InvalidRequest
from localfirst.events import Event, Finished, FinishReason, TextDelta, ToolCallDelta
from localfirst.types import ChatRequest, Json, Tool

FREE = {None, "auto", "none"}
DEFINITIONS = ("$defs", "definitions")
PARAMETERS = "parameters"
"""
For an Ollama, which sorts a schema's fields by their names (llm/llama_server.go) and reads
calls in this word itself (tools/tools.go): the tool's name has to come first.
"""
_BEGIN = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*', re.DOTALL
)


def choices(request: ChatRequest) -> tuple[Tool, ...]:
    """
    The tools of which one has to be called, none where the model is free.

    Raises:
        InvalidRequest: a tool is named that is not among the tools.
    """
    if not request.tools or request.tool_choice in FREE:
        return ()
    if request.tool_choice == "required":
        return request.tools
    found = tuple(tool for tool in request.tools if tool.name == request.tool_choice)
    if not found:
        raise InvalidRequest(f"`{request.tool_choice}` is none of the tools", field="tool_choice")
    return found


def schema(tools: tuple[Tool, ...], word: str = "arguments") -> dict[str, Json]:
    """
    The JSON schema of a call of one of *tools*, with its arguments under *word*; what their
    schemas refer to is lifted up.
    """
    lifted: dict[str, Json] = {}
    calls = []
    for tool in tools:
        arguments = dict(tool.parameters) or {"type": "object", "properties": {}}
        for kind in DEFINITIONS:
            lifted.setdefault(kind, {}).update(arguments.pop(kind, {}))
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, word: arguments},
                "required": ["name", word],
                "additionalProperties": False,
            }
        )
    found: dict[str, Json] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return found | {word: given for word, given in lifted.items() if given}


def constrained(
    request: ChatRequest, tools: tuple[Tool, ...], word: str = "arguments"
) -> ChatRequest:
    """
    *request* so that a call is all the model can say; its tools stay for the template.

    Words to stop at could stand within the arguments.
    """
    return msgspec.structs.replace(
        request,
        tool_choice="none",
        json_mode=False,
        schema=schema(tools, word),
        schema_name="call",
        stop=(),
        logprobs=None,
        top_logprobs=None,
    )


class CallReader:
    """
    Turns the text of a constrained answer into a tool call, piece by piece.

    Calls that are told as such, and text that is no call, pass as they are: a model that
    was not held to the schema may have said either.
    """

    def __init__(self) -> None:
        self._text = ""
        self._begun = False

    def feed(self, event: Event) -> Iterator[Event]:
        """Yields what *event* means; the brace that closes the whole is never part of it."""
        if isinstance(event, TextDelta):
            self._text += event.text
            yield from self._begin()
            yield from self._more()
            if not self._begun and self._text.strip()[:1] not in {"", "{"}:
                yield from self._as_text()
        elif isinstance(event, Finished):
            yield from self._end(event)
        else:
            yield event

    def _begin(self) -> Iterator[Event]:
        if self._begun or (found := _BEGIN.match(self._text)) is None:
            return
        self._begun = True
        self._text = self._text[found.end() :]
        name = msgspec.json.decode(found[1], type=str)
        yield ToolCallDelta(0, id=f"call_{secrets.token_hex(12)}", name=name)

    def _more(self) -> Iterator[Event]:
        # Everything but the last brace, which may be the one that ends the whole.
        safe = self._text.rfind("}") if "}" in self._text else len(self._text)
        if self._begun and safe > 0:
            yield ToolCallDelta(0, arguments=self._text[:safe])
            self._text = self._text[safe:]

    def _as_text(self) -> Iterator[Event]:
        if self._text.strip():
            yield TextDelta(self._text)
        self._text = ""

    def _end(self, finished: Finished) -> Iterator[Event]:
        whole = finished.reason is FinishReason.STOP
        if not self._begun:  # cut before it named a tool, or no call
            yield from self._as_text()
            yield finished
            return
        if rest := "" if whole else self._text:
            yield ToolCallDelta(0, arguments=rest)
        reason = FinishReason.TOOL_CALLS if whole else finished.reason
        yield msgspec.structs.replace(finished, reason=reason)

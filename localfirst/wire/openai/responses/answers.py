"""
Events and replies of `/v1/responses`.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from localfirst.errors import LocalFirstError
from localfirst.events import (
    Event,
    Finished,
    Progress,
    ReasoningDelta,
    Relayed,
    Reply,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.types import ChatRequest, Json, Tool
from localfirst.wire import progress
from localfirst.wire.conclusion import is_json
from localfirst.wire.openai.answers import ENCODER, error_object, finish_reason
from localfirst.wire.openai.responses.objects import (
    concluded,
    message_item,
    output_of,
    reasoning_item,
    response_object,
    status_of,
    stem,
    text_part,
)
from localfirst.wire.openai.responses.tools import call_item, named, text_of


class _Item:
    """One item of the output while it grows."""

    def __init__(self, kind: str, index: int, identifier: str) -> None:
        self.kind = kind
        self.index = index
        self.id = identifier
        self.text = ""
        self.logprobs: list[Json] = []
        self.call_id = ""
        self.status = ""
        self.name = ""
        self.tool: Tool | None = None

    def object(self, status: str = "") -> dict[str, Json]:
        """The item as it stands; without *status* as it was concluded."""
        status = status or self.status
        if self.kind == "message":
            return message_item(self.id, self.text, status, self.logprobs)
        if self.kind == "reasoning":
            return reasoning_item(self.id, self.text)
        return self.call(self.text or "{}", status)

    def call(self, arguments: str, status: str) -> dict[str, Json]:
        """The call that it is, with these arguments."""
        return call_item(self.id, self.call_id, self.name, arguments, status, self.tool)

    @property
    def way(self) -> str:
        """The kind of tool that is called."""
        return self.tool.kind if self.tool else "function"

    @property
    def at(self) -> dict[str, Json]:
        """Where events about it point."""
        return {"item_id": self.id, "output_index": self.index}


class StreamWriter:
    """Writes one streamed response; `request` is echoed, as this surface does."""

    def __init__(
        self,
        *,
        model: str,
        request_id: str,
        created: int,
        request: ChatRequest | None = None,
    ) -> None:
        self._response = response_object(
            model=model, request_id=request_id, created=created, request=request
        )
        self._stem = stem(request_id)
        self._tools = named(request.tools if request else ())
        self._number = -1
        self._begun = False
        self._items: list[_Item] = []
        self._open: _Item | None = None
        self._calls: dict[int, _Item] = {}

    def write(self, event: Event) -> bytes:
        """The bytes of one event; empty for those a client is not told of."""
        match event:
            case TextDelta(text, logprobs):
                return self._text(text, logprobs)
            case ReasoningDelta(text) if text:
                return self._thought(text)
            case ToolCallDelta():
                return self._tool(event)
            case Finished():
                return self._finish(event)
            case Progress():
                return progress.comment(event)
            case Relayed(data):
                return data
        return b""

    def error(self, err: LocalFirstError) -> bytes:
        """`response.failed` and `error`, which end a stream; nothing is completed."""
        found = error_object(err)
        why = {"code": "server_error", "message": err.message}
        failed = {**self._response, "status": "failed", "error": why}
        ending = {"code": found["code"], "message": err.message, "param": found["param"]}
        return (
            self._begin()
            + self._frame("response.failed", response=failed)
            + self._frame("error", **ending, error=found)
        )

    def _frame(self, kind: str, **fields: Json) -> bytes:
        self._number += 1
        payload = {"type": kind, **fields, "sequence_number": self._number}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), ENCODER.encode(payload))

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._frame("response.created", response=self._response) + self._frame(
            "response.in_progress", response=self._response
        )

    def _item(self, kind: str, prefix: str) -> _Item:
        index = len(self._items)
        item = _Item(kind, index, f"{prefix}_{self._stem}_{index}")
        self._items.append(item)
        return item

    def _text(self, text: str, logprobs: tuple[Json, ...]) -> bytes:
        start = b""
        item = self._open
        if item is None or item.kind != "message":
            start = self._next()
            item = self._open = self._item("message", "msg")
            added = message_item(item.id, None, "in_progress")
            start += self._frame("response.output_item.added", output_index=item.index, item=added)
            part = {**item.at, "content_index": 0, "part": text_part("")}
            start += self._frame("response.content_part.added", **part)
        item.text += text
        item.logprobs += logprobs
        said = {**item.at, "content_index": 0, "delta": text, "logprobs": logprobs}
        return start + self._frame("response.output_text.delta", **said)

    def _thought(self, text: str) -> bytes:
        start = b""
        item = self._open
        if item is None or item.kind != "reasoning":
            start = self._next()
            item = self._open = self._item("reasoning", "rs")
            added = item.object("in_progress")
            start += self._frame("response.output_item.added", output_index=item.index, item=added)
            part = {**item.at, "summary_index": 0, "part": _summary("")}
            start += self._frame("response.reasoning_summary_part.added", **part)
        item.text += text
        said = {**item.at, "summary_index": 0, "delta": text}
        return start + self._frame("response.reasoning_summary_text.delta", **said)

    def _tool(self, event: ToolCallDelta) -> bytes:
        start = b""
        item = self._calls.get(event.index)
        if item is None:
            start = self._next()
            item = self._calls[event.index] = self._item("function_call", "fc")
            item.call_id, item.name = event.id, event.name
            item.tool = self._tools.get(event.name)
            added = item.call("", "in_progress")
            start += self._frame("response.output_item.added", output_index=item.index, item=added)
        item.text += event.arguments
        if not event.arguments or item.way != "function":
            # What stands in JSON for us alone is told once the JSON is whole.
            return start
        return start + self._frame(
            "response.function_call_arguments.delta", **item.at, delta=event.arguments
        )

    def _next(self) -> bytes:
        """Make room for another item: what is whole is concluded."""
        return self._begin() + self._close() + self._close_calls(whole_only=True)

    def _close(self, status: str = "completed") -> bytes:
        """Conclude the open message or reasoning."""
        item, self._open = self._open, None
        if item is None:
            return b""
        if item.kind == "message":
            place = {**item.at, "content_index": 0}
            whole = {"text": item.text, "logprobs": item.logprobs}
            done = self._frame("response.output_text.done", **place, **whole)
            part = text_part(item.text, item.logprobs)
            done += self._frame("response.content_part.done", **place, part=part)
        else:
            place = {**item.at, "summary_index": 0}
            done = self._frame("response.reasoning_summary_text.done", **place, text=item.text)
            part = _summary(item.text)
            done += self._frame("response.reasoning_summary_part.done", **place, part=part)
        return done + self._item_done(item, status)

    def _item_done(self, item: _Item, status: str = "completed") -> bytes:
        item.status = status
        return self._frame("response.output_item.done", output_index=item.index, item=item.object())

    def _close_calls(self, *, whole_only: bool = False) -> bytes:
        """
        Conclude the open calls.

        One call follows the other in this dialect; only a backend that mixes their pieces
        has several open, and those that are not whole yet wait for the end.
        """
        done = b""
        for item in self._calls.values():
            if item.status or (whole_only and not is_json(item.text)):
                continue
            done += self._said(item) + self._item_done(item)
        return done

    def _said(self, item: _Item) -> bytes:
        """The whole of what a call is given."""
        if item.way == "function":
            name = item.tool.own_name if item.tool else item.name
            ending = {**item.at, "name": name, "arguments": item.text or "{}"}
            return self._frame("response.function_call_arguments.done", **ending)
        if item.way != "custom":
            return b""
        text, kind = text_of(item.text), "response.custom_tool_call_input"
        delta = self._frame(f"{kind}.delta", **item.at, delta=text) if text else b""
        return delta + self._frame(f"{kind}.done", **item.at, input=text)

    def _finish(self, event: Finished) -> bytes:
        before = self._begin() + self._close(status_of(event.reason)) + self._close_calls()
        output = [item.object() for item in self._items]
        response = concluded(self._response, output, event.reason, event.usage or Usage())
        return before + self._frame(f"response.{response['status']}", response=response)


def _summary(text: str) -> dict[str, Json]:
    return {"type": "summary_text", "text": text}


def reply(reply: Reply, *, created: int, request: ChatRequest | None = None) -> bytes:
    """A whole answer as a `response` object."""
    response = response_object(
        model=reply.model, request_id=reply.request_id, created=created, request=request
    )
    return ENCODER.encode(
        concluded(response, output_of(reply, request), finish_reason(reply), reply.usage)
    )

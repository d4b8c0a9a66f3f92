"""The response object and its items, as `/v1/responses` writes them."""

from __future__ import annotations

from collections.abc import Sequence

from localfirst.events import FinishReason, Reply, Usage
from localfirst.types import ChatRequest, Json
from localfirst.wire.openai.responses import tools

_INCOMPLETE = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.CONTENT_FILTER: "content_filter",
}


def response_object(
    *, model: str, request_id: str, created: int, request: ChatRequest | None
) -> dict[str, Json]:
    """A response in progress, without output."""
    request = request or ChatRequest()
    return {
        "id": f"resp_{stem(request_id)}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.extra.get("instructions"),
        "max_output_tokens": request.max_tokens,
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": request.think if isinstance(request.think, str) else None},
        "store": False,
        "temperature": request.temperature,
        "text": {"format": _format(request)},
        "tool_choice": _choice(request.tool_choice),
        "tools": tools.echoed(request),
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "metadata": request.extra.get("labels", {}),
    }


def stem(request_id: str) -> str:
    """The part of a request's id that the ids of its items share."""
    return request_id.removeprefix("req_")


def concluded(
    response: dict[str, Json], output: list[Json], reason: FinishReason, usage: Usage
) -> dict[str, Json]:
    """The response with its output, completed or incomplete."""
    why = _INCOMPLETE.get(reason)
    return {
        **response,
        "status": status_of(reason),
        "incomplete_details": {"reason": why} if why else None,
        "output": output,
        "usage": usage_object(usage),
    }


def status_of(reason: FinishReason) -> str:
    """The word for a response, and for its last message, that ended so."""
    return "incomplete" if reason in _INCOMPLETE else "completed"


def usage_object(usage: Usage) -> dict[str, Json]:
    """Usage as this surface spells it."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def reasoning_item(identifier: str, text: str) -> dict[str, Json]:
    """Thinking, as a summary: what clients of this surface show."""
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"id": identifier, "type": "reasoning", "summary": summary}


def message_item(
    identifier: str, text: str | None, status: str, logprobs: Sequence[Json] = ()
) -> dict[str, Json]:
    """Visible text; None is a message that has not begun to speak."""
    content = [] if text is None else [text_part(text, logprobs)]
    return {
        "id": identifier,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def text_part(text: str, logprobs: Sequence[Json] = ()) -> dict[str, Json]:
    """The one part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def output_of(reply: Reply, request: ChatRequest | None) -> list[Json]:
    """The items of a whole reply to *request*."""
    identifier = stem(reply.request_id)
    known = tools.named(request.tools if request else ())
    output: list[Json] = []
    if reply.reasoning:
        output.append(reasoning_item(f"rs_{identifier}", reply.reasoning))
    if reply.text or not reply.tool_calls:
        status = "completed" if reply.tool_calls else status_of(reply.finish_reason)
        output.append(message_item(f"msg_{identifier}", reply.text, status, reply.logprobs))
    for index, call in enumerate(reply.tool_calls):
        arguments, tool = call.arguments or "{}", known.get(call.name)
        place = f"fc_{identifier}_{index}"
        output.append(tools.call_item(place, call.id, call.name, arguments, "completed", tool))
    return output


def _choice(choice: str | None) -> Json:
    if choice in {None, "auto", "none", "required"}:
        return choice or "auto"
    return {"type": "function", "name": choice}


def _format(request: ChatRequest) -> dict[str, Json]:
    if request.schema is None:
        return {"type": "json_object" if request.json_mode else "text"}
    return {
        "type": "json_schema",
        "name": request.schema_name or "answer",
        "schema": request.schema,
    }

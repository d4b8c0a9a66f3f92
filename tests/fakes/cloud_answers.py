"""What a fake cloud says, in OpenAI's and Anthropic's dialects: bodies and stream events."""

from __future__ import annotations

import json
from typing import Any

Step = dict[str, Any]

WORDS = ["Hello", " from", " the", " cloud", "."]


def dialect_of(path: str) -> str:
    return "anthropic" if path.endswith("/messages") else "openai"


def words_of(step: Step) -> list[str]:
    if "chunks" in step:
        return list(step["chunks"])
    return [step["text"]] if "text" in step else WORDS


def tools_of(step: Step) -> list[dict[str, Any]]:
    return list(step.get("tools", [step["tool"]] if "tool" in step else []))


def usage_of(step: Step) -> tuple[int, int]:
    return step.get("prompt_tokens", 7), step.get("completion_tokens", 5)


def whole(dialect: str, step: Step, model: str) -> dict[str, Any]:
    """A JSON answer."""
    text = "".join(words_of(step))
    prompt, completion = usage_of(step)
    tools = tools_of(step)
    if dialect == "anthropic":
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        if thought := step.get("reasoning"):
            blocks.insert(0, {"type": "thinking", "thinking": thought, "signature": "proof"})
        blocks += [_block(number, tool, tool["arguments"]) for number, tool in enumerate(tools, 1)]
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": blocks,
            "stop_reason": step.get("finish", "tool_use" if tools else "end_turn"),
            "stop_sequence": step.get("stop_sequence"),
            "usage": {"input_tokens": prompt, "output_tokens": completion},
        }
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if step.get("reasoning"):
        message["reasoning_content"] = step["reasoning"]
    if tools:
        calls = [_call(tool, number) for number, tool in enumerate(tools, 1)]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": step.get("finish", "tool_calls" if tools else "stop"),
                **_stopped(step),
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _block(number: int, tool: dict[str, Any], given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": tool["name"], "input": given}


def _call(tool: dict[str, Any], number: int = 1) -> dict[str, Any]:
    arguments = json.dumps(tool["arguments"])
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": tool["name"], "arguments": arguments},
    }


def events(dialect: str, step: Step, model: str, *, usage: bool = True) -> list[bytes]:
    """A stream's events, the last of them its terminator."""
    if dialect == "anthropic":
        return _anthropic_events(step, model)
    return _openai_events(step, model, usage=usage)


def _openai_events(step: Step, model: str, *, usage: bool) -> list[bytes]:
    made = [_chunk(model, {"role": "assistant", "content": ""})]
    if step.get("reasoning"):
        made.append(_chunk(model, {"reasoning_content": step["reasoning"]}))
    finish = "stop"
    for index, tool in enumerate(tools_of(step)):
        finish = "tool_calls"
        arguments = json.dumps(tool["arguments"])
        half = len(arguments) // 2
        head = {"index": index, **_call(tool, index + 1)}
        head["function"] = {"name": tool["name"], "arguments": ""}
        made.append(_chunk(model, {"tool_calls": [head]}))
        for piece in (arguments[:half], arguments[half:]):
            call = {"index": index, "function": {"arguments": piece}}
            made.append(_chunk(model, {"tool_calls": [call]}))
    if finish == "stop":
        made += [_chunk(model, {"content": word}) for word in words_of(step)]
    made.append(_chunk(model, {}, step.get("finish", finish), **_stopped(step)))
    if usage:
        prompt, completion = usage_of(step)
        counts = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        made.append(_data({**_frame(model), "choices": [], "usage": counts}))
    return [*made, b"data: [DONE]\n\n"]


def _frame(model: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": model,
    }


def _stopped(step: Step) -> dict[str, Any]:
    """vLLM's word for what ended it: a stop sequence, or a token's id."""
    return {"stop_reason": step["stop_reason"]} if "stop_reason" in step else {}


def _chunk(model: str, delta: dict[str, Any], finish: str | None = None, **beside: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **beside}
    return _data({**_frame(model), "choices": [choice]})


def _data(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _named(kind: str, value: dict[str, Any]) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, **value})


def _anthropic_events(step: Step, model: str) -> list[bytes]:
    prompt, completion = usage_of(step)
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt, "output_tokens": 1},
    }
    made = [_named("message_start", {"message": message})]
    for index, (block, deltas) in enumerate(_anthropic_blocks(step)):
        made.append(_named("content_block_start", {"index": index, "content_block": block}))
        made += [_named("ping", {})] if not index else []
        made += [
            _named("content_block_delta", {"index": index, "delta": delta}) for delta in deltas
        ]
        made.append(_named("content_block_stop", {"index": index}))
    stop = "tool_use" if tools_of(step) else "end_turn"
    named = step.get("stop_sequence")
    ending = {"stop_reason": step.get("finish", stop), "stop_sequence": named}
    made.append(_named("message_delta", {"delta": ending, "usage": {"output_tokens": completion}}))
    return [*made, _named("message_stop", {})]


def _anthropic_blocks(step: Step) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each block as it starts, and its deltas."""
    made: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if thought := step.get("reasoning"):
        deltas = [
            {"type": "thinking_delta", "thinking": thought},
            {"type": "signature_delta", "signature": "proof"},
        ]
        made.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    for number, tool in enumerate(tools_of(step), 1):
        arguments = json.dumps(tool["arguments"])
        half = len(arguments) // 2
        pieces = (arguments[:half], arguments[half:]) if tool["arguments"] else ("",)
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        made.append((_block(number, tool, {}), deltas))
    if not tools_of(step):
        deltas = [{"type": "text_delta", "text": word} for word in words_of(step)]
        made.append(({"type": "text", "text": ""}, deltas))
    return made


def error_event(dialect: str, step: Step) -> bytes:
    """An error inside a stream."""
    error = step.get("error", {"type": "overloaded_error", "message": "Overloaded", "code": 503})
    if dialect == "anthropic":
        return _named("error", {"error": error})
    return _data({"error": error})


def error_body(dialect: str, status: int, step: Step) -> bytes:
    """An error answer's body."""
    if "body" in step:
        body = step["body"]
        return body.encode() if isinstance(body, str) else json.dumps(body).encode()
    message = step.get("message", f"scripted {status}")
    error = {"message": message, "type": "scripted", "code": step.get("code", "scripted")}
    if dialect == "anthropic":
        return json.dumps({"type": "error", "error": error}).encode()
    return json.dumps({"error": error}).encode()

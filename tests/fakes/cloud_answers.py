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


def usage_of(step: Step) -> tuple[int, int]:
    return step.get("prompt_tokens", 7), step.get("completion_tokens", 5)


def whole(dialect: str, step: Step, model: str) -> dict[str, Any]:
    """A JSON answer."""
    text = "".join(words_of(step))
    prompt, completion = usage_of(step)
    tool = step.get("tool")
    if dialect == "anthropic":
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        if tool:
            blocks.append(
                {
                    "type": "tool_use",
                    "id": "toolu_1",
                    "name": tool["name"],
                    "input": tool["arguments"],
                }
            )
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": blocks,
            "stop_reason": step.get("finish", "tool_use" if tool else "end_turn"),
            "stop_sequence": None,
            "usage": {"input_tokens": prompt, "output_tokens": completion},
        }
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if step.get("reasoning"):
        message["reasoning_content"] = step["reasoning"]
    if tool:
        message = {"role": "assistant", "content": None, "tool_calls": [_call(tool)]}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": step.get("finish", "tool_calls" if tool else "stop"),
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _call(tool: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(tool["arguments"])
    return {
        "id": "call_1",
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
    if tool := step.get("tool"):
        finish = "tool_calls"
        arguments = json.dumps(tool["arguments"])
        half = len(arguments) // 2
        head = {"index": 0, **_call(tool)}
        head["function"] = {"name": tool["name"], "arguments": ""}
        made.append(_chunk(model, {"tool_calls": [head]}))
        for piece in (arguments[:half], arguments[half:]):
            call = {"index": 0, "function": {"arguments": piece}}
            made.append(_chunk(model, {"tool_calls": [call]}))
    else:
        made += [_chunk(model, {"content": word}) for word in words_of(step)]
    made.append(_chunk(model, {}, step.get("finish", finish)))
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


def _chunk(model: str, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
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
    stop = "end_turn"
    if tool := step.get("tool"):
        stop = "tool_use"
        arguments = json.dumps(tool["arguments"])
        half = len(arguments) // 2
        block = {"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": {}}
        deltas = [
            {"type": "input_json_delta", "partial_json": piece}
            for piece in (arguments[:half], arguments[half:])
        ]
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": word} for word in words_of(step)]
    made.append(_named("content_block_start", {"index": 0, "content_block": block}))
    made.append(_named("ping", {}))
    made += [_named("content_block_delta", {"index": 0, "delta": delta}) for delta in deltas]
    made.append(_named("content_block_stop", {"index": 0}))
    ending = {"stop_reason": step.get("finish", stop), "stop_sequence": None}
    made.append(_named("message_delta", {"delta": ending, "usage": {"output_tokens": completion}}))
    return [*made, _named("message_stop", {})]


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

"""
The scripted cloud speaking Gemini's native dialect: `python -m tests.fakes.cloud_gemini`.

Scripts, records and faults are those of `tests.fakes.cloud`. Requests are held to what the API
itself refuses: unknown names, no contents, results that do not answer the calls before them,
calls without a signature (Gemini 3), and keys in the URL.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.fakes import cloud
from tests.fakes.cloud_answers import Step, usage_of, words_of
from tests.fakes.cloud_process import ROOT, FakeCloud

NAMES = {
    "": {"contents", "tools", "toolConfig", "safetySettings", "systemInstruction",
         "generationConfig", "cachedContent"},
    "contents": {"role", "parts"},
    "systemInstruction": {"role", "parts"},
    "parts": {"text", "inlineData", "fileData", "functionCall", "functionResponse", "thought",
              "thoughtSignature"},
    "inlineData": {"mimeType", "data"},
    "fileData": {"mimeType", "fileUri"},
    "tools": {"functionDeclarations"},
    "functionDeclarations": {"name", "description", "parameters", "parametersJsonSchema"},
    "toolConfig": {"functionCallingConfig"},
    "functionCallingConfig": {"mode", "allowedFunctionNames"},
    "functionCall": {"id", "name", "args"},
    "functionResponse": {"id", "name", "response"},
    "generationConfig": {"stopSequences", "responseMimeType", "responseSchema",
                         "responseJsonSchema", "candidateCount", "maxOutputTokens", "temperature",
                         "topP", "topK", "seed", "thinkingConfig"},
    "thinkingConfig": {"includeThoughts", "thinkingBudget", "thinkingLevel"},
}  # fmt: skip
FREE = {"args", "response", "parametersJsonSchema", "responseJsonSchema"}
"""Fields whose insides belong to the caller."""

MADE_ID = "m4DeUpByF4ke"


def error(code: int, message: str, status: str = "INVALID_ARGUMENT") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status}}


def complaint(value: Any, place: str = "", at: str = "") -> str:
    """What the API would say of a body's names, or nothing."""
    if isinstance(value, list):
        return next(filter(None, (complaint(item, place, at) for item in value)), "")
    if not isinstance(value, dict) or place not in NAMES:
        return ""
    for name, inside in value.items():
        if name not in NAMES[place]:
            where = f" at '{at}'" if at else ""
            return (
                f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
            )
        found = "" if name in FREE else complaint(inside, name, f"{at}.{name}".lstrip("."))
        if found:
            return found
    return ""


def misplaced(contents: list[dict[str, Any]], model: str) -> str:
    """What the API would say of the turns' order, or nothing."""
    if not contents:
        return "* GenerateContentRequest.contents: contents is not specified"
    for index, turn in enumerate(contents):
        calls = [part for part in turn["parts"] if "functionCall" in part]
        if not turn["parts"] or turn["role"] not in {"user", "model"}:
            return "* contents.parts must not be empty."
        if not calls:
            continue
        answers = contents[index + 1]["parts"] if index + 1 < len(contents) else []
        results = [part for part in answers if "functionResponse" in part]
        if len(results) != len(calls):
            return (
                "Please ensure that the number of function response parts is equal to the number "
                "of function call parts of the function call turn."
            )
        if model.startswith("gemini-3") and "thoughtSignature" not in calls[0]:
            return "Function call is missing a thought_signature in functionCall parts."
    return ""


class Exchange(cloud.Exchange):
    """One request; model and stream are read from its path."""

    def __init__(self, writer: asyncio.StreamWriter, record: dict[str, Any]) -> None:
        super().__init__(writer, record)
        self.dialect = "gemini"
        name, _, method = self.path.rpartition("/")[2].partition(":")
        self.model = name
        self.method = method.partition("?")[0]
        self.stream = method == "streamGenerateContent?alt=sse"

    def events(self, step: Step) -> list[bytes]:
        return [b"data: " + json.dumps(one).encode() + b"\r\n\r\n" for one in payloads(step, self)]


def payloads(step: Step, x: Exchange) -> list[dict[str, Any]]:
    """A stream's payloads: usage is there from the first, the reason only in the last."""
    prompt, completion = usage_of(step)
    finish = step.get("finish", "STOP")
    parts = [{"text": step["reasoning"], "thought": True}] if "reasoning" in step else []
    if tool := step.get("tool"):
        call = {"functionCall": {"name": tool["name"], "args": tool["arguments"]}}
        parts.append({**call, "thoughtSignature": "c2lnbmVk"})
    else:
        parts += [{"text": word} for word in words_of(step)]
    made = [payload(x, [part], {"promptTokenCount": prompt}) for part in parts]
    usage = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": completion,
        "totalTokenCount": prompt + completion,
    }
    return [*made, payload(x, [], usage, finish)]


def payload(
    x: Exchange, parts: list[Any], usage: dict[str, int], finish: str = ""
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model"}, "index": 0}
    if parts:
        candidate["content"]["parts"] = parts
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": x.model,
        "responseId": MADE_ID,
    }


def whole(step: Step, x: Exchange) -> dict[str, Any]:
    """A JSON answer."""
    made = payloads(step, x)
    parts = [one["candidates"][0]["content"].get("parts", []) for one in made]
    made[-1]["candidates"][0]["content"]["parts"] = [part for some in parts for part in some]
    return made[-1]


class Gemini(cloud.Cloud):
    """The server of `tests.fakes.cloud` with this dialect's answers."""

    async def play(self, exchange: Any, step: Step, reader: asyncio.StreamReader) -> bool:
        return await super().play(Exchange(exchange.writer, exchange.record), step, reader)

    async def do_ok(self, x: Any, step: Step) -> bool:
        record = x.record
        if x.path.partition("?")[0].endswith("/models"):
            names = [{"name": f"models/{name}"} for name in self.models.get(record["part"], [])]
            await x.json(200, json.dumps({"models": names}).encode())
            return True
        body = record["body"] or {}
        if x.method == "batchEmbedContents":
            made = [{"values": [float(n), 0.5]} for n in range(len(body["requests"]))]
            await x.json(200, json.dumps({"embeddings": made}).encode())
            return True
        said = complaint(body) or misplaced(body.get("contents", []), x.model)
        if "key=" in x.path or "/models/" not in x.path:
            said = "the key or the model is not where it belongs"
        if said:
            await x.json(400, json.dumps(error(400, said)).encode())
            return True
        if not x.stream:
            await x.json(200, json.dumps(whole(step, x)).encode(), step.get("headers"))
            return True
        return await super().do_ok(x, step)

    async def do_status(self, x: Any, step: Step) -> bool:
        status = step["status"]
        body = step.get("body", [error(status, step.get("message", f"scripted {status}"))])
        await x.json(status, json.dumps(body).encode(), step.get("headers"))
        return True

    async def do_error_event(self, x: Any, step: Step) -> bool:
        await x.open_stream(step)
        for event in x.events(step)[: step.get("events", 0)]:
            await x.chunk(event)
        said = error(503, "The model is overloaded.", "UNAVAILABLE")
        await x.chunk(b"data: " + json.dumps(step.get("error", said)).encode() + b"\r\n\r\n")
        await x.send(b"0\r\n\r\n")
        return True


class FakeGemini(FakeCloud):
    """Speaks to a running one."""

    def base_url(self, part: str = "cloud") -> str:
        return f"{self.url}/{part}/v1beta"


@contextmanager
def fake_gemini() -> Iterator[FakeGemini]:
    """A fake Gemini in its own process, ended with the block."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.cloud_gemini"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        yield FakeGemini(int(child.stdout.readline()))
    finally:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


async def main() -> None:
    server = await asyncio.start_server(Gemini().serve, "127.0.0.1", 0, backlog=64, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

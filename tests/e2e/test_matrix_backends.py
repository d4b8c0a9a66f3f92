"""
Five surfaces over four backends through real sockets: every cell's answer is as recorded.

`LOCALFIRST_GOLDEN=write` writes `tests/data/matrix_golden.json` anew. An answer is kept line
by line as it came, so that the order of events and of their fields counts; only ids, times
and durations are starred, and of the embedded engine, whose numbers belong to the processor,
texts and counts too. What the backend was asked is kept beside what the surface said.

A broken answer leaves its backend cooling, so every cell of `BROKEN` gets a house of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.backends import BROKEN, KINDS, STREAMED, Backend, backend
from tests.fakes.cloud_process import ROOT

GOLDEN = ROOT / "tests" / "data" / "matrix_golden.json"
WRITE = os.environ.get("LOCALFIRST_GOLDEN") == "write"
PATHS = {
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "ollama": "/api/chat",
    "generate": "/api/generate",
}
UNASKABLE = {("generate", cell) for cell in ("tools", "tools_stream", "no_tools")}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HI = {"role": "user", "content": "hi"}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}}

_STARS = (
    (re.compile(r'"(created|created_at|completed_at|\w+_duration)":("[^"]*"|[\d.]+)'), r'"\1":"*"'),
    (re.compile(r'"(modified_at|expires_at)":"[^"]*"'), r'"\1":"*"'),
    (re.compile(r"\[-?\d+\.\d+[^\]\[]*\]"), '["*"]'),
    (re.compile(r"FROM /\S*/blobs"), "FROM */blobs"),
    (re.compile(r"(killed, perhaps out of memory)[^\"]*"), r"\1"),
    (re.compile(r'"(chatcmpl-|cmpl-|(?:req|msg|resp|fc|rs|call)_)[0-9a-f]{12,}'), r'"\1*'),
)
_WORDS = re.compile(r'"(content|text|response|delta|arguments|partial_json)":"(?:[^"\\]|\\.)+"')
_INPUT = re.compile(r'"(input|arguments)": *\{[^{}]+\} *')
_COUNTS = re.compile(r'"(\w+)":\d+')


# --- what is asked ---------------------------------------------------------------------------


def asked(surface: str, cell: str, model: str) -> dict[str, Any]:
    """A surface's request for a cell."""
    message: dict[str, Any] = {"role": "user", "content": "hi"}
    body: dict[str, Any] = {"model": model, "stream": cell in STREAMED}
    if surface in {"ollama", "generate"}:
        body["options"] = {"num_predict": 8, "temperature": 0, "seed": 1}
    else:
        tokens = "max_output_tokens" if surface == "responses" else "max_tokens"
        body |= {tokens: 8, "temperature": 0}
    if cell == "image":
        with_image(surface, message)
    elif cell == "schema":
        body |= with_schema(surface)
    elif "tools" in cell:
        body |= with_tools(surface)
    elif cell.startswith("logprobs"):
        body |= with_logprobs(surface)
    elif cell.startswith("think"):
        body |= with_thought(surface)
    if surface == "generate":
        return body | {"prompt": message.pop("content"), "images": message.get("images", [])}
    return body | {"input" if surface == "responses" else "messages": [message]}


def with_image(surface: str, message: dict[str, Any]) -> None:
    text = {"type": "text", "text": "hi"}
    url = f"data:image/png;base64,{PIXEL}"
    if surface in {"ollama", "generate"}:
        message["images"] = [PIXEL]
    elif surface == "openai":
        message["content"] = [text, {"type": "image_url", "image_url": {"url": url}}]
    elif surface == "responses":
        text = {"type": "input_text", "text": "hi"}
        message["content"] = [text, {"type": "input_image", "image_url": url}]
    else:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        message["content"] = [text, {"type": "image", "source": source}]


def with_schema(surface: str) -> dict[str, Any]:
    named = {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}
    if surface in {"ollama", "generate"}:
        return {"format": SCHEMA}
    if surface == "responses":
        return {"text": {"format": named}}
    if surface == "openai":
        kind = named.pop("type")
        return {"response_format": {"type": kind, "json_schema": named}}
    return {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}


def with_tools(surface: str) -> dict[str, Any]:
    functions = [{"name": name, "description": "d"} for name in ("weather", "time")]
    if surface == "anthropic":
        return {"tools": [one | {"input_schema": PLACE} for one in functions]}
    if surface == "responses":
        return {"tools": [{"type": "function"} | one | {"parameters": PLACE} for one in functions]}
    described = [{"type": "function", "function": one | {"parameters": PLACE}} for one in functions]
    return {"tools": described}


def with_logprobs(surface: str) -> dict[str, Any]:
    if surface == "responses":
        return {"top_logprobs": 1, "include": ["message.output_text.logprobs"]}
    return {} if surface == "anthropic" else {"logprobs": True, "top_logprobs": 1}


def with_thought(surface: str) -> dict[str, Any]:
    if surface in {"ollama", "generate"}:
        return {"think": True}
    if surface == "responses":
        return {"reasoning": {"effort": "low"}}
    if surface == "openai":
        return {"reasoning_effort": "low"}
    return {"thinking": {"type": "adaptive"}}


# --- what is said ----------------------------------------------------------------------------


def starred(line: str, *, noise: bool) -> str:
    """*line* without ids and times; with *noise*, without what a toy made up either."""
    for pattern, instead in _STARS:
        line = pattern.sub(instead, line)
    if not noise:
        return line
    line = _INPUT.sub(r'"\1":"*"', _WORDS.sub(r'"\1":"*"', line))
    return _COUNTS.sub(r'"\1":"*"', line)


def collapsed(lines: list[str]) -> list[str]:
    """*lines* with every run of the same event once, since how many there are is chance."""
    kept: list[str] = []
    for line in lines:
        if kept[-1:] != [line] and kept[-2:-1] != [line]:
            kept.append(line)
    return kept


def answer_of(behind: Backend, surface: str, cell: str) -> dict[str, Any]:
    model = behind.prepare(cell)
    return answer_to(behind, cell, PATHS[surface], asked(surface, cell, model))


def answer_to(behind: Backend, cell: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    status, kind, data, whole = behind.ask(cell, path, body)
    noise = behind.kind == "embedded"
    lines = [starred(line, noise=noise) for line in data.decode().split("\n") if line]
    return {
        "status": status,
        "type": kind,
        "whole": whole,
        "says": collapsed(lines) if noise else lines,
        "asked": behind.asked(),
    }


QUESTIONS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "tags": ("/api/tags", None),
    "show": ("/api/show", {"model": "tiny"}),
    "show of none": ("/api/show", {"model": "absent"}),
    "load": ("/api/generate", {"model": "tiny"}),
    "ps": ("/api/ps", None),
    "unload": ("/api/chat", {"model": "tiny", "messages": [], "keep_alive": 0}),
    "models": ("/v1/models", None),
    "one model": ("/v1/models/tiny:latest", None),
    "embed": ("/api/embed", {"model": "tiny", "input": ["a", "b"]}),
    "embed one": ("/api/embeddings", {"model": "tiny", "prompt": "a"}),
    "embeddings": ("/v1/embeddings", {"model": "tiny", "input": "a"}),
    "complete": ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2}),
    "count": ("/v1/messages/count_tokens", {"model": "tiny", "messages": [HI]}),
}


def hold(name: str, found: dict[str, Any]) -> None:
    """Compare with what was recorded, or record it."""
    if WRITE:
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        golden[name] = golden.get(name, {}) | found
        GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())[name]
    for cell, answer in found.items():
        assert answer == golden[cell], (name, cell)


def needs(kind: str) -> None:
    if kind == "embedded":
        pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")


@pytest.fixture(scope="module", params=KINDS)
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    needs(request.param)
    with backend(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.mark.parametrize("surface", list(PATHS))
def test_a_surface_says_over_this_backend_what_it_always_said(
    behind: Backend, surface: str
) -> None:
    cells = [cell for cell in behind.cells if (surface, cell) not in UNASKABLE]
    found = {cell: answer_of(behind, surface, cell) for cell in cells}
    hold(f"{surface} over {behind.kind}", found)
    assert all(answer["whole"] for answer in found.values())
    assert found["text"]["status"] == found["stream"]["status"] == 200
    assert found["error"]["status"] >= 400


@pytest.mark.parametrize("kind", ["ollama", "embedded"])
def test_what_a_local_backend_has_and_counts_is_told_as_ollama_and_openai_tell_it(
    kind: str, tmp_path: Path
) -> None:
    needs(kind)
    with backend(kind, tmp_path) as running:
        running.prepare("embed")
        found = {name: answer_to(running, name, *asks) for name, asks in QUESTIONS.items()}
    hold(f"questions over {kind}", found)
    assert [name for name, one in found.items() if one["status"] != 200] == ["show of none"]


@pytest.mark.parametrize("surface", list(PATHS))
@pytest.mark.parametrize(("kind", "cell"), BROKEN)
def test_an_answer_that_breaks_behind_its_first_words_is_told_so_and_never_ended(
    kind: str, cell: str, surface: str, tmp_path: Path
) -> None:
    needs(kind)
    with backend(kind, tmp_path) as running:
        found = answer_of(running, surface, cell)
    hold(f"{surface} over {kind}", {cell: found})
    assert (found["status"], found["whole"]) == (200, False)
    said = "".join(found["says"])
    assert "stream-interrupted" in said
    assert not any(end in said for end in ("[DONE]", "message_stop", '"done":true', "completed"))

"""
Three surfaces over four backends through real sockets: every cell's answer is as recorded.

`LOCALFIRST_GOLDEN=write` writes `tests/data/matrix_golden.json` anew. Ids and times are removed;
of the embedded engine, whose numbers belong to the processor, texts and counts too. A cell
"cut" leaves its cloud cooling, so that the next surface's first answer is also a recovery.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localfirst.models import toy
from tests.fakes.cloud_process import ROOT, FakeCloud, fake_cloud
from tests.fakes.house import house

GOLDEN = ROOT / "tests" / "data" / "matrix_golden.json"
WRITE = os.environ.get("LOCALFIRST_GOLDEN") == "write"
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "ollama": "/api/chat"}
CELLS = ("text", "stream", "tools", "tools_stream", "image", "schema", "error", "cut")
UNCUT = {("embedded", "cut"), ("ollama", "cut")}
VOLATILE = {"id", "created", "created_at", "request_id", "system_fingerprint"}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}}
CALL = {"name": "weather", "arguments": {"city": "Bern"}}


class Backend:
    """A running house over one backend, and how to make that backend misbehave."""

    def __init__(self, kind: str, url: str, cloud: FakeCloud | None) -> None:
        self.kind = kind
        self.at = url.removeprefix("http://")
        self.cloud = cloud

    def prepare(self, cell: str) -> str:
        """Script the backend for *cell*; the model to ask for."""
        if self.cloud is None:
            return "absent" if cell == "error" else "tiny"
        self.cloud.reset()
        steps: dict[str, dict[str, Any]] = {
            "tools": {"do": "ok", "tool": CALL},
            "tools_stream": {"do": "ok", "tool": CALL},
            "schema": {"do": "ok", "chunks": ['{"a":', "true}"]},
            "error": {"do": "status", "status": 400, "message": "no such thing", "times": -1},
            "cut": {"do": "cut", "events": 5},
        }
        if cell in steps:
            self.cloud.script(steps[cell], part="cloud")
        return "auto"

    def ask(self, path: str, body: dict[str, Any]) -> tuple[int, bytes, bool]:
        """Status, bytes, and whether the answer was whole."""
        connection = http.client.HTTPConnection(self.at, timeout=20)
        try:
            headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            try:
                return answer.status, answer.read(), True
            except http.client.IncompleteRead as cut:
                return answer.status, cut.partial, False
        finally:
            connection.close()


@contextlib.contextmanager
def daemon() -> Iterator[str]:
    """A fake Ollama with a model that answers."""
    models = {"tiny": {"capabilities": ["completion", "tools", "vision"]}}
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.ollama_daemon", json.dumps({"models": models})],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


@contextlib.contextmanager
def backend(kind: str, folder: Path) -> Iterator[Backend]:
    """A house whose whole ladder is one backend."""
    with contextlib.ExitStack() as stack:
        if kind in {"openai", "anthropic"}:
            cloud = stack.enter_context(fake_cloud())
            config = (
                f'order = ["scripted"]\n[providers.scripted]\nbase_url = "{cloud.base_url()}"\n'
                f'model = "m"\ndialect = "{kind}"\n'
            )
            variables = {"LOCALFIRST_LOCAL_ENGINE": "none"}
            at = stack.enter_context(house(folder, config=config, **variables))
            yield Backend(kind, at.url, cloud)
            return
        variables = {"LOCALFIRST_ORDER": "local", "LOCALFIRST_OFFLINE": "1"}
        if kind == "ollama":
            variables |= {"OLLAMA_HOST": stack.enter_context(daemon())}
            variables |= {"LOCALFIRST_LOCAL_ENGINE": "ollama"}
        else:
            toy.publish(folder / "models")
            variables |= {"LOCALFIRST_LOCAL_ENGINE": "llamacpp"}
        at = stack.enter_context(house(folder, **variables))
        yield Backend(kind, at.url, None)


@pytest.fixture(scope="module", params=["ollama", "embedded", "openai", "anthropic"])
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    if request.param == "embedded":
        pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    with backend(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


def asked(surface: str, cell: str, model: str) -> dict[str, Any]:
    """A surface's request for a cell."""
    message: dict[str, Any] = {"role": "user", "content": "hi"}
    stream = cell in {"stream", "tools_stream", "cut"}
    body: dict[str, Any] = {"model": model, "messages": [message], "stream": stream}
    if surface == "ollama":
        body["options"] = {"num_predict": 8, "temperature": 0, "seed": 1}
    else:
        body |= {"max_tokens": 8, "temperature": 0}
    if cell == "image":
        with_image(surface, message)
    elif cell == "schema":
        with_schema(surface, body)
    elif cell.startswith("tools"):
        function = {"name": "weather", "description": "d", "parameters": PLACE}
        tool: dict[str, Any] = {"type": "function", "function": function}
        if surface == "anthropic":
            tool = {"name": "weather", "description": "d", "input_schema": PLACE}
        body["tools"] = [tool]
    return body


def with_image(surface: str, message: dict[str, Any]) -> None:
    text = {"type": "text", "text": "hi"}
    if surface == "ollama":
        message["images"] = [PIXEL]
    elif surface == "openai":
        url = {"url": f"data:image/png;base64,{PIXEL}"}
        message["content"] = [text, {"type": "image_url", "image_url": url}]
    else:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        message["content"] = [text, {"type": "image", "source": source}]


def with_schema(surface: str, body: dict[str, Any]) -> None:
    if surface == "ollama":
        body["format"] = SCHEMA
    elif surface == "openai":
        named = {"name": "a", "schema": SCHEMA, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    else:
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}


def scrubbed(value: Any, *, texts: bool) -> Any:
    """*value* without ids and times; with *texts*, without what a model made up either."""
    if isinstance(value, list):
        return [scrubbed(one, texts=texts) for one in value]
    if not isinstance(value, dict):
        return value
    made: dict[str, Any] = {}
    for key, one in value.items():
        if key in VOLATILE or key.endswith("_duration"):
            continue
        counted = isinstance(one, int) and not isinstance(one, bool)
        if texts and (counted or (key in {"content", "text"} and isinstance(one, str))):
            made[key] = "*" if counted or one else ""
        else:
            made[key] = scrubbed(one, texts=texts)
    return made


def lines(data: bytes) -> list[Any]:
    """The JSON documents of an answer, in order; a terminator that is none as text."""
    found: list[Any] = []
    for line in data.decode().splitlines():
        line = line.removeprefix("data: ").strip()
        if line and not line.startswith(("event:", ":")):
            found.append(json.loads(line) if line.startswith("{") else line)
    return found


def collapsed(found: list[Any]) -> list[Any]:
    return [one for index, one in enumerate(found) if not index or found[index - 1] != one]


def answer_of(behind: Backend, surface: str, cell: str) -> dict[str, Any]:
    model = behind.prepare(cell)
    status, data, whole = behind.ask(PATHS[surface], asked(surface, cell, model))
    texts = behind.kind == "embedded"
    found = [scrubbed(one, texts=texts) for one in lines(data)]
    return {"status": status, "whole": whole, "says": collapsed(found) if texts else found}


@pytest.mark.parametrize("surface", list(PATHS))
def test_a_surface_says_over_this_backend_what_it_always_said(
    behind: Backend, surface: str
) -> None:
    cells = [cell for cell in CELLS if (behind.kind, cell) not in UNCUT]
    found = {cell: answer_of(behind, surface, cell) for cell in cells}
    name = f"{surface} over {behind.kind}"
    if WRITE:
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        golden[name] = found
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())[name]
    for cell in cells:
        assert found[cell] == golden[cell], (name, cell)
    assert found["text"]["status"] == found["stream"]["status"] == 200
    assert found["error"]["status"] >= 400

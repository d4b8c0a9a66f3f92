"""
The four kinds of backend behind a running house, each made to speak or to break on command.

A *cell* is one word for what is asked and for what the backend does about it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from localfirst.models import toy
from localfirst.models.store import Store
from tests.fakes.cloud_process import ROOT, FakeCloud, fake_cloud
from tests.fakes.embedded_bench import install
from tests.fakes.house import House, house

KINDS = ("ollama", "embedded", "openai", "anthropic")
BROKEN = [
    ("ollama", "cut"),
    ("ollama", "unfinished"),
    ("embedded", "cut"),
    ("openai", "cut"),
    ("anthropic", "cut"),
]
"""The cells whose answer breaks off, by kind of backend."""

STREAMED = {"stream", "tools_stream", "think_stream", "logprobs_stream", "cut", "unfinished"}
WEATHER = {"name": "weather", "arguments": {"city": "Bern"}}
TIME = {"name": "time", "arguments": {"zone": "utc"}}
OBJECT = '{"a":true}'
ENDLESS_TOKENS = 1900
WIDE = 65_536
LIKELY = {
    "token": "Hi",
    "logprob": -0.5,
    "bytes": [72, 105],
    "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}],
}
LONG = 400
BERN = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern"]}},
    "required": ["city"],
    "additionalProperties": False,
}
SEVERAL_EVENTS_BYTES = 8000

CALLER = (
    "{%- for tool in tools or [] %}tool: {{ tool.function.name }}\n{% endfor %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
"""A chat template that shows tools, which is what makes an embedded model one that calls them."""


class Backend:
    """A running house over one backend."""

    kind = ""
    cells: tuple[str, ...] = ()
    """The cells that this kind of backend can play to their end; see `BROKEN`."""

    def __init__(self, at: House) -> None:
        self.house = at
        self.at = at.url.removeprefix("http://")

    def prepare(self, cell: str) -> str:
        """Script the backend for *cell*; the model to ask for."""
        raise AssertionError("each kind of backend says how")

    def shape(self, cell: str, body: dict[str, Any]) -> None:
        """Change what is asked where this backend needs it."""

    def enough(self, cell: str) -> int:
        """The bytes of an answer that `shown` waits for."""
        return 1

    def shown(self, cell: str) -> None:
        """Called in the middle of an answer."""

    def asked(self) -> list[Any]:
        """The bodies that the backend was sent since `prepare`."""
        return []

    def ask(
        self, cell: str, path: str, body: dict[str, Any] | None
    ) -> tuple[int, str, bytes, bool]:
        """Status, content type, bytes, and whether the answer was whole; a GET without *body*."""
        if body is not None:
            self.shape(cell, body)
        connection = http.client.HTTPConnection(self.at, timeout=20)
        headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
        try:
            if body is None:
                connection.request("GET", path, headers={"accept": "application/json"})
            else:
                connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            data, whole = b"", True
            try:
                while (piece := answer.read1()) and len(data := data + piece) < self.enough(cell):
                    pass
                self.shown(cell)
                data += answer.read()
            except http.client.IncompleteRead as cut:
                data, whole = data + cut.partial, False
            return answer.status, answer.getheader("content-type", ""), data, whole
        finally:
            connection.close()


class CloudBackend(Backend):
    """A scripted cloud in one of the two dialects."""

    cells = (
        "text", "stream", "tools", "tools_stream", "think", "think_stream",
        "image", "schema", "error",
    )  # fmt: skip

    def __init__(self, at: House, kind: str, cloud: FakeCloud) -> None:
        super().__init__(at)
        self.kind = kind
        self.cloud = cloud

    def prepare(self, cell: str) -> str:
        self.cloud.reset()
        called = {"do": "ok", "tools": [WEATHER, TIME]}
        thought = {"do": "ok", "reasoning": "hm"}
        steps: dict[str, dict[str, Any]] = {
            "tools": called,
            "tools_stream": called,
            "think": thought,
            "think_stream": thought,
            "schema": {"do": "ok", "chunks": [OBJECT[:5], OBJECT[5:]]},
            "error": {"do": "status", "status": 400, "message": "no such thing", "times": -1},
            "cut": {"do": "cut", "events": 5},
        }
        if cell in steps:
            self.cloud.script(steps[cell], part="cloud")
        return "auto"

    def asked(self) -> list[Any]:
        return [record["body"] for record in self.cloud.requests() if record["method"] == "POST"]


class OllamaBackend(Backend):
    """The fake daemon, which plays recordings of a real one."""

    kind = "ollama"
    cells = (*CloudBackend.cells, "logprobs", "logprobs_stream")

    def __init__(self, at: House, url: str) -> None:
        super().__init__(at)
        self.daemon = url.removeprefix("http://")
        self._before = 0

    def prepare(self, cell: str) -> str:
        function = [
            {"id": f"call_{number}", "function": {"index": number, **call}}
            for number, call in enumerate((WEATHER, TIME))
        ]
        called = {"says": [{"content": "Let me see."}, {"tool_calls": function}]}
        thought = {"says": [{"thinking": "hm"}, {"content": "Hello"}]}
        likely = {"says": [{"content": "Hi", "logprobs": [LIKELY]}, {"content": "!"}]}
        scripts: dict[str, dict[str, Any]] = {
            "tools": called,
            "tools_stream": called,
            "think": thought,
            "think_stream": thought,
            "logprobs": likely,
            "logprobs_stream": likely,
            "schema": {"says": [{"content": OBJECT[:5]}, {"content": OBJECT[5:]}]},
            "schema_logprobs": {"says": [{"content": OBJECT, "logprobs": [LIKELY]}]},
            "embed": {"embeds": True},
            "silent": {"says": [{"content": ""}]},
            "anything": {"embeds": True, "window": WIDE, "context": WIDE},
            "cut": {"reply": "runner_killed_chat"},
            "unfinished": {"cut_after": 3},
        }
        can = {"capabilities": ["completion", "tools", "vision", "thinking"]}
        self._before = len(self._tell({"models": {"tiny": can | scripts.get(cell, {})}}))
        return "absent" if cell == "error" else "tiny"

    def asked(self) -> list[Any]:
        sent = [one["body"] for one in self._tell({})[self._before :]]
        return [body for body in sent if body.get("messages") or body.get("prompt")]

    def embeddings(self) -> list[Any]:
        """The bodies of embeddings that it was asked for since `prepare`."""
        return [one["body"] for one in self._tell({})[self._before :] if "embed" in one["path"]]

    def _tell(self, script: dict[str, Any]) -> list[Any]:
        connection = http.client.HTTPConnection(self.daemon, timeout=5)
        try:
            connection.request("POST", "/fake", json.dumps(script))
            found: list[Any] = json.loads(connection.getresponse().read())["requests"]
            return found
        finally:
            connection.close()


class EmbeddedBackend(Backend):
    """
    The embedded engine over a toy model: real inference, so its words are noise.

    What it must say, by a schema or by a call it has to make, it says.
    """

    kind = "embedded"
    cells = ("text", "stream", "tools", "tools_stream", "no_tools", "image", "schema", "error")

    def prepare(self, cell: str) -> str:
        return {"error": "absent", "tools": "caller", "tools_stream": "caller"}.get(cell, "tiny")

    def shape(self, cell: str, body: dict[str, Any]) -> None:
        if cell in {"tools", "tools_stream"}:
            self._oblige(body)
        tokens = {"cut": ENDLESS_TOKENS, "schema": LONG, "tools": LONG, "tools_stream": LONG}.get(
            cell
        )
        if tokens is None:
            return
        for names in (body, body.get("options", {})):
            for name in {"num_predict", "max_tokens", "max_output_tokens"} & names.keys():
                names[name] = tokens

    def _oblige(self, body: dict[str, Any]) -> None:
        """One tool with one possible call, which has to be made where the surface can say so."""
        tool = body["tools"][0]
        body["tools"] = [tool]
        if "input_schema" in tool:
            tool["input_schema"] = BERN
            body["tool_choice"] = {"type": "any"}
        else:
            (tool.get("function") or tool)["parameters"] = BERN
            if "options" not in body:
                body["tool_choice"] = "required"

    def enough(self, cell: str) -> int:
        return SEVERAL_EVENTS_BYTES if cell == "cut" else 1

    def shown(self, cell: str) -> None:
        if cell == "cut":
            for child in self.children():
                os.kill(child, signal.SIGKILL)

    def children(self) -> list[int]:
        """The pids of the programs that hold models."""
        found = psutil.Process(self.house.child.pid).children(recursive=True)
        return [child.pid for child in found if "llamacpp_child" in " ".join(child.cmdline())]


@contextlib.contextmanager
def daemon() -> Iterator[str]:
    """A fake Ollama, without models until it is told of some."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.ollama_daemon", "{}"],
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
    alone = {"LOCALFIRST_ORDER": "local", "LOCALFIRST_OFFLINE": "1"}
    with contextlib.ExitStack() as stack:
        if kind in {"openai", "anthropic"}:
            cloud = stack.enter_context(fake_cloud())
            config = (
                f'order = ["scripted"]\n[providers.scripted]\nbase_url = "{cloud.base_url()}"\n'
                f'model = "m"\ndialect = "{kind}"\n'
            )
            none = {"LOCALFIRST_LOCAL_ENGINE": "none"}
            at = stack.enter_context(house(folder, config=config, **none))
            yield CloudBackend(at, kind, cloud)
        elif kind == "ollama":
            url = stack.enter_context(daemon())
            engine = {"LOCALFIRST_LOCAL_ENGINE": "ollama", "OLLAMA_HOST": url}
            yield OllamaBackend(stack.enter_context(house(folder, **alone, **engine)), url)
        else:
            toy.publish(folder / "models")
            install(Store(folder / "models"), "caller", CALLER)
            engine = {"LOCALFIRST_LOCAL_ENGINE": "llamacpp"}
            yield EmbeddedBackend(stack.enter_context(house(folder, **alone, **engine)))

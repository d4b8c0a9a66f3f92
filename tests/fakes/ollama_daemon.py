"""
A scripted Ollama daemon: a program of its own on a real socket.

Every answer is a recording of a real daemon (`tests/data/ollama`) with the model's name
put in; what is scripted is which of them a model gives, and when.

    python -m tests.fakes.ollama_daemon '{"models": {"tiny": {}}}'

prints its port. A model's script: `reply` (a recording's name), `load_s`, `word_delay_s`,
`silent_after`, `die_after` and `cut_after` (lines), `says` (the messages of a streamed chat, in
place of the recorded ones), `shows` (capabilities that only `/api/show` tells), `context` (its
`num_ctx`; a longer prompt overflows on the path `overflow`: "error", "friendly" or "cut"),
`window`, `capabilities`, `embeds`, `vram`, `bytes` (what `/api/ps` says it takes), `digest`,
`loaded`, `remote`, `parallel` (answers at once, the rest wait), `dead_s` (its runner is dead:
still listed for that long, then loaded again), `unload_s` (until an unload shows) and `vram_next`
(after it). Beside the models: `busy` (503), `ps` ("frozen" holds `/api/ps` back), `tags`
("broken"), `unload` ("refused"), `version`. `POST /fake` replaces parts of the script, `GET /fake`
tells the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data" / "ollama"
DIGEST = "e59b7c5d6d0a446a49943ebfabef6e7166587c90ba583edc46ad37b736843eb1"
FROZEN_S = 20.0
BYTES_PER_TOKEN = 4


def recording(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())["response"]


class Daemon:
    """The script, what is loaded, and what was asked."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script: dict[str, Any] = {"models": {}, "busy": False, "ps": "ok"} | script
        self.loaded: dict[str, int] = {
            name: 0 for name, model in self.models.items() if model.get("loaded")
        }
        self.requests: list[dict[str, Any]] = []
        self.running = 0
        self.places: dict[str, asyncio.Semaphore] = {}
        self.leaving: asyncio.Future[None] | None = None

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        return self.script["models"]

    def named(self, name: str) -> str:
        """The model of that name as it is listed: letter case makes no difference."""
        wanted = short(name)
        return next((own for own in self.models if short(own) == wanted), wanted)

    # --- one connection ------------------------------------------------------------------

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (asked := await read_request(reader)) is not None:
                method, path, body = asked
                if path.startswith("/api/") and method in {"POST", "DELETE"}:
                    self.requests.append({"path": path, "body": body})
                await self.answer(writer, method, path, body)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, body: dict[str, Any]
    ) -> None:
        if path == "/fake":
            if method == "POST":
                self.script |= body
            state = {"requests": self.requests, "loaded": sorted(self.loaded)}
            return await send_json(writer, 200, state)
        if path == "/":
            found = recording("root_head" if method == "HEAD" else "root_get")
            return await play(writer, found, {}, head=method == "HEAD")
        handler = HANDLERS.get(path)
        if handler is None:
            return await play(writer, recording("unknown_path"), {})
        return await handler(self, writer, body)

    # --- lists ---------------------------------------------------------------------------

    async def version(self, writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        found = recording("version_get")
        if "version" in self.script:
            found["body"] = json.dumps({"version": self.script["version"]})
        await play(writer, found, {})

    async def tags(self, writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        if self.script.get("tags") == "broken":
            return await send_json(writer, 500, {"error": "no list"})
        template = json.loads(recording("tags_with_models")["body"])["models"][1]
        listed = [self.entry(template, name) for name in self.models]
        return await send_json(writer, 200, {"models": listed})

    def entry(self, template: dict[str, Any], name: str) -> dict[str, Any]:
        model = self.models[name]
        details = template["details"] | {"context_length": model.get("window", 2048)}
        entry = template | {"name": full(name), "model": full(name), "details": details}
        entry["capabilities"] = model.get("capabilities", ["completion"])
        entry["digest"] = model.get("digest", entry["digest"])
        if model.get("remote"):
            entry |= {"remote_model": name, "remote_host": "https://ollama.com:443"}
        return entry

    async def ps(self, writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        if self.script["ps"] == "frozen":
            await asyncio.sleep(FROZEN_S)
        template = json.loads(recording("ps_loaded")["body"])["models"][0]
        listed = [
            template
            | {
                "name": full(name),
                "model": full(name),
                "digest": self.models[name].get("digest", DIGEST),
                "size": self.models[name].get("bytes", template["size"]),
                "size_vram": self.models[name].get("vram", 0),
                "context_length": context,
            }
            for name, context in self.loaded.items()
            if name in self.models
        ]
        await send_json(writer, 200, {"models": listed})

    async def show(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        name = self.named(body.get("model", ""))
        if name not in self.models:
            return await play(writer, recording("show_missing"), {"nope:latest": full(name)})
        found = json.loads(recording("show")["body"])
        script = self.models[name]
        found["capabilities"] = script.get("shows", script.get("capabilities", ["completion"]))
        if self.models[name].get("remote"):
            found["remote_host"] = "https://ollama.com:443"
        await send_json(writer, 200, found)
        return None

    # --- models --------------------------------------------------------------------------

    async def chat(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if not body.get("messages"):
            return await self.load_or_unload(writer, body, "chat")
        await self.generation(writer, body, "chat_stream")
        return None

    async def generate(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if not body.get("prompt"):
            return await self.load_or_unload(writer, body, "generate")
        says = "says" in self.models.get(self.named(body.get("model", "")), {})
        await self.generation(writer, body, "chat_stream" if says else "generate_stream")
        return None

    async def load_or_unload(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], kind: str
    ) -> None:
        name = self.named(body.get("model", ""))
        if name not in self.models:
            return await self.missing(writer, name)
        load = {"chat": "chat_load_empty_messages", "generate": "generate_load"}[kind]
        if body.get("keep_alive") == 0:
            if self.script.get("unload") == "refused":
                return await send_json(writer, 500, {"error": "no"})
            self.unload(name)
            return await self.play(writer, f"{kind}_unload", name)
        await self.load(name, body)
        return await self.play(writer, load, name)

    def unload(self, name: str) -> None:
        """Answered at once; the model leaves when its answers are out, or a little later."""

        async def leave() -> None:
            await asyncio.sleep(self.models[name].get("unload_s", 0))
            while self.running:
                await asyncio.sleep(0.01)
            self.loaded.pop(name, None)
            self.models[name]["vram"] = self.models[name].get("vram_next", 0)

        self.leaving = asyncio.ensure_future(leave())

    async def generation(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], usual: str
    ) -> None:
        name = self.named(body.get("model", ""))
        model = self.models.get(name)
        if name.endswith(":cloud"):
            return await play(writer, recording("generate_cloud_name"), {})
        if model is None:
            return await self.missing(writer, name)
        if self.script["busy"]:
            return await play(writer, recording("queue_full_503"), {})
        if refusal := self.refusal(model, body):
            return await self.play(writer, refusal, name)
        await self.load(name, body)
        if self.too_long(name, body) and (found := self.overflow(name, body)) is not None:
            return await play(writer, found, {})
        places = self.places.setdefault(name, asyncio.Semaphore(model.get("parallel", 100)))
        async with places:
            self.running += 1
            try:
                found = model.get("reply", usual)
                return await self.play(writer, found, name, prompt=bool(body.get("prompt")))
            finally:
                self.running -= 1

    def refusal(self, model: dict[str, Any], body: dict[str, Any]) -> str:
        can = model.get("shows", model.get("capabilities", ["completion"]))
        if body.get("tools") and "tools" not in can:
            return "tools_unsupported_gguf_template"
        if body.get("think") and "thinking" not in can:
            return "think_unsupported"
        images = any(message.get("images") for message in body.get("messages", []))
        return "image_on_text_model_chat" if images and "vision" not in can else ""

    async def load(self, name: str, body: dict[str, Any]) -> None:
        model = self.models[name]
        asked = body.get("options", {}).get("num_ctx", 0)
        context = min(asked or model.get("context", 2048), model.get("window", 2048))
        if "dead_s" in model:
            await asyncio.sleep(model.pop("dead_s"))
            self.loaded.pop(name, None)
        if self.loaded.get(name) not in {None, 0, context}:
            self.loaded.pop(name)
        if name not in self.loaded:
            await asyncio.sleep(model.get("load_s", 0))
        self.loaded[name] = context

    def too_long(self, name: str, body: dict[str, Any]) -> bool:
        return prompt_tokens(body) > (self.loaded[name] or 2048)

    def overflow(self, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """As the GGUF path ("error"), the Go-template path ("friendly"), or cut silently."""
        way = self.models[name].get("overflow", "error")
        whole = body.get("truncate") is False
        if way == "cut" and not whole:
            return None
        if way == "friendly" and not whole:
            return None if body.get("shift") is not False else recording("chat_tmpl_shift_false")
        found = recording("chat_gguf_both_false")
        text = found["body"].replace("746", str(prompt_tokens(body)))
        found["body"] = text.replace("256", str(self.loaded[name] or 2048))
        return found

    async def delete(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        name = self.named(body.get("model", ""))
        if self.models.pop(name, None) is None:
            recorded = recording("delete_missing")
            await play(writer, recorded, {"'nope'": f"'{body.get('model')}'"})
        else:
            await play(writer, recording("delete_ok"), {})

    async def embed(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        name = self.named(body.get("model", ""))
        if name not in self.models:
            return await play(writer, recording("embed_missing_model"), {"nope": name})
        if not self.models[name].get("embeds"):
            return await play(writer, recording("embed_on_text_model"), {})
        await self.load(name, body)
        found = json.loads(recording("embed_batch")["body"])
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [found["embeddings"][index % 2] for index in range(len(texts))]
        return await send_json(writer, 200, found | {"model": name, "embeddings": vectors})

    async def missing(self, writer: asyncio.StreamWriter, name: str) -> None:
        await play(writer, recording("chat_missing_model"), {"'nope'": f"'{name}'"})

    async def play(
        self, writer: asyncio.StreamWriter, found: str, name: str, *, prompt: bool = False
    ) -> None:
        model = self.models[name]
        recorded = renamed(recording(found), name)
        if model.get("says") and "lines" in recorded:
            recorded["lines"] = spoken(recorded["lines"], model["says"])
        if prompt:
            recorded |= (
                {"lines": [*map(generated, recorded["lines"])]} if "lines" in recorded else {}
            )
        await play(writer, recorded, {}, script=model)


def spoken(lines: list[dict[str, Any]], says: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A recorded chat with other messages in it; its last line, which ends it, says `stop`."""
    first, last = json.loads(lines[0]["line"]), json.loads(lines[-1]["line"])
    pieces = []
    for said in says:
        beside = {"logprobs": said["logprobs"]} if "logprobs" in said else {}
        words = {name: value for name, value in said.items() if name not in beside}
        message = {"role": "assistant", "content": ""} | words
        pieces.append(first | {"message": message} | beside)
    ending = last | {"done_reason": "stop"}
    return [{"line": json.dumps(line, separators=(",", ":"))} for line in [*pieces, ending]]


def generated(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a chat as it stands in the answer to a prompt."""
    said = json.loads(line["line"])
    if "message" not in said:
        return line
    message = said.pop("message")
    told = {"response": message.pop("content", "")} | message
    told.pop("role")
    whole = {name: said[name] for name in ("model", "created_at")} | told | said
    return {"line": json.dumps(whole, separators=(",", ":"))}


def renamed(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The recording with *name* where the recorded model's own name stood."""
    texts = [line["line"] for line in found.get("lines", [])] or [found.get("body", "")]
    try:
        recorded = json.loads(texts[0]).get("model", "")
    except (json.JSONDecodeError, AttributeError):
        recorded = ""
    if recorded:
        old, new = json.dumps({"model": recorded})[1:-1], json.dumps({"model": name})[1:-1]
        old, new = old.replace(": ", ":"), new.replace(": ", ":")
        for line in found.get("lines", []):
            line["line"] = line["line"].replace(old, new)
        if "body" in found:
            found["body"] = found["body"].replace(old, new)
    return found


HANDLERS = {
    "/api/version": Daemon.version,
    "/api/tags": Daemon.tags,
    "/api/ps": Daemon.ps,
    "/api/show": Daemon.show,
    "/api/chat": Daemon.chat,
    "/api/generate": Daemon.generate,
    "/api/embed": Daemon.embed,
    "/api/delete": Daemon.delete,
}


def full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def short(name: str) -> str:
    return name.lower().removesuffix(":latest")


def prompt_tokens(body: dict[str, Any]) -> int:
    texts = [str(message.get("content", "")) for message in body.get("messages", [])]
    return sum(len(text) for text in [*texts, body.get("prompt") or ""]) // BYTES_PER_TOKEN


# --- bytes -----------------------------------------------------------------------------------


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, Any]] | None:
    first = (await reader.readline()).decode().split()
    if len(first) < 3:
        return None
    length = 0
    while (line := (await reader.readline()).strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    body = await reader.readexactly(length)
    return first[0], first[1], json.loads(body) if body else {}


async def send_json(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    headers = [["Content-Type", "application/json; charset=utf-8"]]
    found = {"status": status, "status_line": f"HTTP/1.1 {status} X", "headers": headers}
    await play(writer, found | {"body": json.dumps(body)}, {})


async def play(
    writer: asyncio.StreamWriter,
    found: dict[str, Any],
    replace: dict[str, str],
    *,
    script: dict[str, Any] | None = None,
    head: bool = False,
) -> None:
    """Send a recorded answer with the framing it had."""
    script = script or {}
    kept = [h for h in found["headers"] if h[0].lower() not in HOP]
    if "lines" not in found:
        body = found.get("body", "")
        for old, new in replace.items():
            body = body.replace(old, new)
        length = found_length(found) if head else len(body.encode())
        kept.append(["Content-Length", str(length)])
        writer.write(head_bytes(found["status_line"], kept) + body.encode())
        return await writer.drain()
    writer.write(head_bytes(found["status_line"], [*kept, ["Transfer-Encoding", "chunked"]]))
    for number, line in enumerate(found["lines"]):
        if number == script.get("silent_after"):
            await asyncio.sleep(3600)
        if number == script.get("die_after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == script.get("cut_after"):
            return writer.write(b"0\r\n\r\n")  # whole as HTTP has it, without `done: true`
        data = line["line"].encode() + b"\n"
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
        await asyncio.sleep(script.get("word_delay_s", 0))
    if found["end"] == "terminating chunk":
        writer.write(b"0\r\n\r\n")
        return await writer.drain()
    if found["end"] == "client timeout":  # the recorder gave up: nothing ever came
        await asyncio.sleep(3600)
    raise ConnectionResetError


HOP = {"content-length", "transfer-encoding", "connection", "date"}


def found_length(found: dict[str, Any]) -> int:
    return next((int(v) for k, v in found["headers"] if k.lower() == "content-length"), 0)


def head_bytes(status_line: str, headers: list[list[str]]) -> bytes:
    lines = [status_line, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def serve(script: dict[str, Any]) -> None:
    daemon = Daemon(script)
    server = await asyncio.start_server(daemon.talk, "127.0.0.1", int(script.get("port", 0)))
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}))

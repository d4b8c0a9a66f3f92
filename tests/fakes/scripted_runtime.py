"""
A runtime that says what a test wrote down: the gateway's other side, without engines or clouds.

It has the gateway's edge of `localfirst.runtime.Runtime` and nothing else. Every call that
reaches it is kept in `calls`, so that a test can say that none did.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.errors import LocalFirstError
from localfirst.events import (
    Event,
    Finished,
    Reply,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.models.names import parse
from localfirst.runtime.entries import EmbedReply
from localfirst.settings import GatewaySettings, Secret, Settings
from localfirst.transport.clock import SystemClock
from localfirst.types import Attempt, Call, Rung, Target, ToolCall

HELLO: tuple[Event, ...] = (
    TextDelta("Hel"),
    TextDelta("lo"),
    Finished(usage=Usage(prompt_tokens=3, completion_tokens=2)),
)

LLAMA = LocalModel(
    name="llama3.2:3b",
    digest="a" * 64,
    size_bytes=2_019_393_189,
    context_tokens=131_072,
    capabilities=("completion", "tools"),
    family="llama",
    parameters="3.2B",
    quantization="Q4_K_M",
    modified_unix=1_767_225_600.0,
    loaded=True,
    loaded_bytes=3_000_000_000,
    loaded_context_tokens=4096,
)


class Gate:
    """A place in a script where the answer waits until a test opens it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()


Step = Event | LocalFirstError | Gate


class ScriptedAnswer:
    """An `Answer` whose events were written down; an error among them is raised there."""

    def __init__(self, call: Call, steps: Sequence[Step], target: Target) -> None:
        self.call = call
        self.target = target
        self.attempts = [Attempt(provider=target.provider, model=target.model, outcome="ok")]
        self.seen: list[Event] = []
        self.closed = asyncio.Event()
        self._events = self._run(steps)

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (
            ("x-localfirst-rung", self.target.rung.value),
            ("x-localfirst-route", self.target.route),
            ("x-localfirst-attempts", "1"),
            ("x-localfirst-trail", f"{self.target.provider}=ok"),
            ("x-localfirst-egress", "none"),
        )

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    async def _run(self, steps: Sequence[Step]) -> AsyncGenerator[Event, None]:
        for step in steps:
            if isinstance(step, Gate):
                step.reached.set()
                await step.opened.wait()
            elif isinstance(step, LocalFirstError):
                raise step
            else:
                self.seen.append(step)
                yield step

    async def aclose(self) -> None:
        self.closed.set()
        await self._events.aclose()

    async def read(self) -> list[Event]:
        return [event async for event in self]

    async def reply(self) -> Reply:
        async for _ in self:
            pass
        last = next((e for e in reversed(self.seen) if isinstance(e, Finished)), Finished())
        calls = [e for e in self.seen if isinstance(e, ToolCallDelta)]
        return Reply(
            text="".join(e.text for e in self.seen if isinstance(e, TextDelta)),
            tool_calls=tuple(ToolCall(id=c.id, name=c.name, arguments=c.arguments) for c in calls),
            route=self.target.route,
            rung=self.target.rung,
            model=self.target.model,
            finish_reason=last.reason,
            usage=last.usage or Usage(),
            request_id=self.call.request_id,
            timings=last.timings,
        )


class ScriptedEngine:
    """An engine with models and no tensors."""

    def __init__(self, models: tuple[LocalModel, ...] = (LLAMA,)) -> None:
        self.models = models
        self.loaded: list[str] = []
        self.unloaded: list[str] = []

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        return EngineStatus(
            kind="ollama", state="ready", ready=True, version="0.33.0", models=self.models
        )

    async def load(self, model: str) -> None:
        self.loaded.append(model)

    async def unload(self, model: str) -> bool:
        self.unloaded.append(model)
        return True


class Moment(msgspec.Struct):
    name: str
    state: str
    error: str = ""
    hint: str = ""
    rate_bytes_s: float = 0.0
    eta_s: float | None = None


class ScriptedJob:
    """A download that does what it is told and nothing else."""

    def __init__(self, name: str) -> None:
        from localfirst.events import Progress

        self.ref = parse(name)
        self.name = self.ref.display
        self.state = "pulling"
        self.progress = Progress(stage="pulling", completed_bytes=123, total_bytes=1000)

    def snapshot(self) -> Moment:
        return Moment(self.name, self.state)

    def pause(self) -> None:
        self.state = "paused"

    def resume(self) -> None:
        self.state = "pulling"

    def cancel(self) -> None:
        self.state = "cancelled"


class ScriptedPuller:
    def __init__(self) -> None:
        self.started: dict[str, ScriptedJob] = {}

    def start(self, name: str, *, insecure: bool = False) -> ScriptedJob:
        return self.started.setdefault(parse(name).key, ScriptedJob(name))

    def jobs(self) -> list[ScriptedJob]:
        return list(self.started.values())


class NoStore:
    def model_file(self, name: str) -> Path:
        raise LocalFirstError("nothing is stored")


class Entry(msgspec.Struct):
    id: str
    owned_by: str
    created: int = 0
    local: LocalModel | None = None


class Steps(msgspec.Struct):
    steps: tuple[Any, ...] = ()
    error: LocalFirstError | None = None


class ScriptedRuntime:
    """
    Answers every call with the same *steps*.

    An error as *refusal* is what `open` raises; *key* closes the door; `calls`, `answers`
    and `asked` (other questions) show what got through.
    """

    def __init__(
        self,
        steps: Sequence[Step] | Callable[[Call], Sequence[Step]] = HELLO,
        *,
        refusal: LocalFirstError | None = None,
        gateway: GatewaySettings | None = None,
        key: str = "",
        target: Target | None = None,
    ) -> None:
        door = gateway or GatewaySettings(
            port=0, keys=(Secret(key, "gateway.keys"),) if key else ()
        )
        self.settings = Settings(gateway=door)
        self.clock = SystemClock()
        self.engine = ScriptedEngine()
        self.puller = ScriptedPuller()
        self.store = NoStore()
        self.steps = steps
        self.refusal = refusal
        self.target = target or Target(rung=Rung.LOCAL, provider="local", model="llama3.2:3b")
        self.calls: list[Call] = []
        self.answers: list[ScriptedAnswer] = []
        self.asked: list[str] = []
        self.closed = False

    async def start(self) -> None:
        self.asked.append("start")

    def keep_fresh(self) -> None:
        self.asked.append("keep_fresh")

    def go_on_with(self, old: Any) -> None:
        self.asked.append("go_on_with")

    async def aclose(self) -> None:
        self.closed = True

    def validates(self, call: Call) -> bool:
        """No schema is checked here."""
        del call
        return False

    async def open(self, call: Call) -> ScriptedAnswer:
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal
        steps = self.steps(call) if callable(self.steps) else self.steps
        answer = ScriptedAnswer(call, steps, self.target)
        self.answers.append(answer)
        return answer

    async def models(self) -> list[Entry]:
        return [
            Entry("auto", "localfirst"),
            Entry("llama3.2:3b", "local", 1_767_225_600, LLAMA),
            Entry("groq/openai/gpt-oss-20b", "groq"),
        ]

    async def embed(
        self, model: str, texts: list[str], options: dict[str, Any], *, local_only: bool = False
    ) -> EmbedReply:
        self.asked.append(f"embed {model} {options}" + " local-only" * local_only)
        return EmbedReply(
            vectors=[[float(len(text)), 0.5] for text in texts],
            model="nomic-embed-text:latest",
            route="local/nomic-embed-text:latest",
            prompt_tokens=4,
        )

    async def state(self) -> dict[str, Any]:
        return {"engine": {"kind": "ollama", "state": "ready"}, "providers": []}

    async def explain(self, call: Call) -> Steps:
        self.asked.append(f"explain {call.model}")
        step = {"target": self.target, "state": "ready", "reason": "it is loaded"}
        return Steps(steps=(step,))

    async def pull_last(self, job: ScriptedJob) -> tuple[int, bytes]:
        return 200, b'{"status":"success"}'

    async def pull_lines(self, job: ScriptedJob) -> AsyncGenerator[bytes, None]:
        yield b'{"status":"pulling manifest"}\n'
        yield b'{"status":"success"}\n'

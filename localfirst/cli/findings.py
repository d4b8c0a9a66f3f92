"""What the doctor finds: every finding with its severity, the evidence, and the fix."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec

from localfirst.cli import providers, render
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.client import AsyncClient
    from localfirst.engines.base import EngineStatus
    from localfirst.machine.fit import Hardware
    from localfirst.runtime import Runtime


class Severity(StrEnum):
    """How much a finding matters: a problem keeps something from working."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """One thing found; `fix` is empty where nothing is to be done."""

    severity: Severity
    subject: str
    evidence: str
    fix: str = ""

    @property
    def document(self) -> dict[str, Json]:
        """As JSON."""
        made: dict[str, Json] = msgspec.to_builtins(self)
        return made


class Examination(msgspec.Struct, frozen=True):
    """All findings, who would answer now ("" nobody), and everything as JSON."""

    findings: list[Finding]
    answers: str
    document: dict[str, Json]


async def examine(client: AsyncClient) -> Examination:
    """Look at machine, store, engine, clouds, network; sends no request to a model."""
    runtime = await client.opened()
    status = await runtime.engine.status(max_age_s=0)
    online = await runtime.connectivity.probe()
    ready = (await client.explain()).ready
    # A download is a way to an answer, but nobody who could give one now.
    answers = ready[0].target.route if ready else ""
    findings = [
        *machine(runtime.hardware()),
        *store(runtime),
        *engine(status),
        *clouds(runtime),
        *surroundings(runtime, online),
    ]
    return Examination(findings, answers, document(runtime, status, findings, answers, online))


def machine(hardware: Hardware) -> Iterator[Finding]:
    """Memory, processor, graphics."""
    limit = f", limited to {render.size(hardware.limit_bytes)}" if hardware.limit_bytes else ""
    free, total = hardware.ram_available_bytes, hardware.ram_total_bytes
    memory = f"{render.size(free)} free of {render.size(total)}{limit}"
    if not hardware.known:
        yield Finding(Severity.WARNING, "memory", "could not be measured")
    elif free < 2 * 10**9:
        yield Finding(Severity.WARNING, "memory", memory, "close programs, or use small models")
    else:
        yield Finding(Severity.OK, "memory", memory)
    cpu = hardware.cpu
    cores = f"{cpu.usable:g} of {cpu.threads} cores" if cpu.threads else "cores unknown"
    where = f" in a {hardware.kind}" if hardware.kind else ""
    yield Finding(Severity.OK, "processor", f"{cpu.model or cpu.architecture}, {cores}{where}")
    for gpu in hardware.gpus:
        room = "" if gpu.free_bytes is None else f"{render.size(gpu.free_bytes)} free of "
        text = f"{gpu.name or gpu.vendor}, {room}{render.size(gpu.total_bytes)}"
        severity = Severity.OK if gpu.usable else Severity.WARNING
        yield Finding(severity, "graphics", text + (f": {gpu.reason}" if gpu.reason else ""))
    if not hardware.gpus:
        yield Finding(Severity.NOTE, "graphics", "none found; models run on the processor")
    for note in hardware.notes:
        yield Finding(Severity.NOTE, "hardware", note)


def store(runtime: Runtime) -> Iterator[Finding]:
    """The place of the models."""
    root, disk = runtime.store.root, runtime.hardware().disk
    reserve = runtime.settings.pull.reserve_disk_bytes
    refusal = runtime.store.writable()
    if refusal:
        fix = "set `OLLAMA_MODELS` to a folder of yours"
        yield Finding(Severity.WARNING, "store", refusal, fix)
    count = render.count(len(runtime.store.models()), "model")
    told = f"{root}, {count}, {render.size(disk.free_bytes)} free"
    if disk.total_bytes and disk.free_bytes < reserve:
        fix = f"free some: a pull keeps {render.size(reserve)} in reserve (`pull.reserve_disk`)"
        yield Finding(Severity.WARNING, "disk", told, fix)
    else:
        yield Finding(Severity.OK, "disk", told)
    for path, reason in runtime.store.damaged():
        fix = f"remove `{path}`, then pull the model again"
        yield Finding(Severity.WARNING, "store", f"a manifest is damaged: {reason}", fix)


def engine(status: EngineStatus) -> Iterator[Finding]:
    """What runs models here, and which it has."""
    told = " ".join(filter(None, (status.kind, status.version, status.endpoint)))
    told += f", {status.state}" + (f": {status.reason}" if status.reason else "")
    if status.ready or status.can_start:
        yield Finding(Severity.OK, "engine", told)
    else:
        fix = "install Ollama (https://ollama.com), or the extra: "
        fix += "pip install 'localfirst-runtime[embedded]'"
        yield Finding(Severity.PROBLEM, "engine", told, fix)
    if status.kind != "llamacpp" and find_spec("xllamacpp"):
        yield Finding(Severity.OK, "embedded", "llama.cpp is installed and steps in")
    local = [model for model in status.models if not model.remote]
    fitting = [model.name for model in local if model.fit != "no"]
    if fitting:
        more = f" and {len(fitting) - 5} more" if len(fitting) > 5 else ""
        yield Finding(Severity.OK, "models", ", ".join(fitting[:5]) + more)
    elif local:
        fix = "`localfirst pull llama3.2:1b` fetches a small one"
        yield Finding(Severity.WARNING, "models", "none of the installed ones fits", fix)
    else:
        fix = "`localfirst pull llama3.2:1b` fetches a small one"
        yield Finding(Severity.WARNING, "models", "none is installed", fix)


def clouds(runtime: Runtime) -> Iterator[Finding]:
    """Keys, and what is wrong with them."""
    known = runtime.providers.values()
    ready = [one.id for one in known if one.ready and one.id in runtime.settings.order]
    if str(runtime.settings.privacy) == "local-only":
        yield Finding(Severity.OK, "clouds", "none is asked: privacy is local-only")
    elif ready:
        yield Finding(Severity.OK, "clouds", ", ".join(ready))
    else:
        fix = "set a key, for example `GROQ_API_KEY`; `localfirst providers` lists them"
        yield Finding(Severity.NOTE, "clouds", "none has a key", fix)
    for one in known:
        if str(one.state) not in {"ready", "no key"}:
            yield Finding(Severity.WARNING, one.id, f"{one.state}: {one.reason}")


def surroundings(runtime: Runtime, online: bool) -> Iterator[Finding]:
    """The network, and whether this is a place for downloads."""
    if online:
        yield Finding(Severity.OK, "network", runtime.connectivity.reason())
    else:
        told = runtime.connectivity.reason()
        yield Finding(Severity.NOTE, "network", f"offline: {told}", "local answers need none")
    verdict = runtime.serverless
    severity = Severity.NOTE if verdict.skip_pull else Severity.OK
    yield Finding(severity, "place", verdict.reason)


def document(
    runtime: Runtime,
    status: EngineStatus,
    findings: list[Finding],
    answers: str,
    online: bool,
) -> dict[str, Json]:
    """Everything as JSON."""
    verdict = runtime.serverless
    return {
        "answers": answers or None,
        "findings": [finding.document for finding in findings],
        "hardware": msgspec.to_builtins(runtime.hardware()),
        "engine": msgspec.to_builtins(status),
        "store": {"path": str(runtime.store.root), "not_writable": runtime.store.writable()},
        "providers": providers.describe(runtime),
        "network": {"online": online, "reason": runtime.connectivity.reason()},
        "serverless": {
            "rule": verdict.rule,
            "category": verdict.category,
            "skip_pull": verdict.skip_pull,
            "reason": verdict.reason,
        },
        "python": platform.python_version(),
    }

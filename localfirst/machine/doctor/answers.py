"""Findings on who can answer: engine, models, clouds, network, settings, and all together."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from localfirst.config.loopback import is_loopback
from localfirst.machine.doctor.facts import Facts, Finding, Model, Severity
from localfirst.machine.fit import shown

CARRY = "carry a model here (`localfirst bundle --help`)"
HALF = 0.5  # of a loaded model; llama.cpp moves single layers off a crowded GPU


def engine(facts: Facts) -> Iterator[Finding]:
    """The local engine: running, startable, or missing."""
    state = facts.engine
    if facts.settings.local.engine == "none":
        yield Finding(
            code="engine-off",
            area="engine",
            severity=Severity.INFO,
            title="the local engine is switched off",
            evidence="`local.engine` is none",
        )
        return
    if state is None or not (state.ready or state.can_start):
        yield _no_engine(facts)
        return
    who = f"{state.kind} {state.version}".strip()
    where = f" at {state.endpoint}" if state.endpoint else ""
    doing = "running" if state.ready else "starts with the first request"
    owner = ", started by somebody else and left alone" if state.adopted else ""
    yield Finding(
        code="engine",
        area="engine",
        severity=Severity.OK,
        title=f"{who} {doing}",
        evidence=f"{state.state}{where}{owner}",
    )


def _no_engine(facts: Facts) -> Finding:
    state = facts.engine
    seen = f"{state.kind}: {state.state}; {state.reason}" if state else "nothing was found"
    if state is not None and state.state == "crash_loop":
        fix = "read the log's last lines above; update Ollama, or remove the model that kills it"
    elif facts.ollama_installed:
        fix = "start Ollama (`ollama serve`), or look why it does not start"
    elif facts.embedded:
        fix = "pull a model: `localfirst pull qwen3:4b`"
    else:
        fix = "install Ollama, or `pip install 'localfirst-runtime[embedded]'`"
    return Finding(
        code="engine-absent",
        area="engine",
        severity=Severity.WARN if facts.clouds and not facts.local_only else Severity.ERROR,
        title="no local engine can answer",
        evidence=seen.rstrip("; "),
        fix=fix,
    )


def models(facts: Facts) -> Iterator[Finding]:
    """What is installed, what is too large, what is damaged, what runs where it should not."""
    installed = facts.models
    count = max(len(installed), facts.store.models)
    yield Finding(
        code="models" if count else "models-none",
        area="models",
        severity=Severity.OK if count else Severity.WARN,
        title=("1 local model" if count == 1 else f"{count} local models")
        if count
        else "no local model is installed",
        evidence=", ".join(map(_told, installed[:8])) or f"`{facts.store.root}`",
        fix="" if count else "`localfirst recommend` names the best for this machine",
    )
    large = [model for model in installed if model.fit == "no"]
    if large:
        yield Finding(
            code="models-too-large",
            area="models",
            severity=Severity.WARN,
            title="installed models do not fit the memory",
            evidence=", ".join(f"{model.name} ({_need(model)})" for model in large),
            fix="`localfirst recommend` names smaller ones; `localfirst rm` frees their disk",
        )
    if facts.store.damaged:
        yield Finding(
            code="models-damaged",
            area="models",
            severity=Severity.ERROR,
            title="models on disk are damaged",
            evidence=", ".join(facts.store.damaged),
            fix="`localfirst verify --repair`",
        )
    if facts.store.partial_bytes:
        yield Finding(
            code="models-partial",
            area="models",
            severity=Severity.INFO,
            title="interrupted downloads wait to be finished",
            evidence=f"{shown(facts.store.partial_bytes)} under `{facts.store.root}`",
            fix="run the same `localfirst pull` again",
        )
    yield from _on_the_processor(facts)


def _told(model: Model) -> str:
    speed = model.measured_tokens_per_s
    return f"{model.name} ({speed:.0f} tokens/s measured)" if speed >= 1 else model.name


def _need(model: Model) -> str:
    """What decides against it: what it took here, what it would take, or only its size."""
    if model.measured_bytes:
        return f"took {shown(model.measured_bytes)} of memory here"
    if model.needed_bytes:
        return f"needs {shown(model.needed_bytes)} of memory"
    return shown(model.size_bytes)


def _on_the_processor(facts: Facts) -> Iterator[Finding]:
    """A model that slipped to the processor although a GPU is there: slow, and never said."""
    if not any(gpu.usable and not gpu.unified for gpu in facts.hardware.gpus):
        return
    for model in facts.models:
        if model.loaded and model.loaded_vram_bytes < HALF * model.loaded_bytes:
            yield Finding(
                code="model-on-cpu",
                area="models",
                severity=Severity.WARN,
                title=f"{model.name} runs mostly on the processor",
                evidence=f"{shown(model.loaded_vram_bytes)} of {shown(model.loaded_bytes)}"
                " lie on the GPU",
                fix=f"`localfirst unload {model.name}`, free GPU memory, and ask again",
            )


def providers(facts: Facts) -> Iterator[Finding]:
    """Which clouds have a key."""
    ready = [key.provider for key in facts.clouds]
    if facts.local_only:
        yield Finding(
            code="privacy-local-only",
            area="providers",
            severity=Severity.OK,
            title="nothing leaves this machine",
            evidence='`privacy` is "local-only"; clouds are never asked',
        )
    else:
        yield Finding(
            code="clouds" if ready else "clouds-none",
            area="providers",
            severity=Severity.OK if ready else Severity.INFO,
            title=f"{len(ready)} clouds stand behind it" if ready else "no cloud has a key",
            evidence=", ".join(ready) or "every cloud of the order is without a key",
            fix="" if ready else "set one, for example `GROQ_API_KEY`, to have a second answerer",
        )
    for key in facts.keys:
        if "placeholder" in key.state:
            name = key.variables[0] if key.variables else f"{key.provider}'s key"
            yield Finding(
                code="key-placeholder",
                area="providers",
                severity=Severity.ERROR,
                title=f"the key of {key.provider} is a placeholder",
                evidence=key.reason or f"`{name}` holds an example, not a key",
                fix=f"put the real key into `{name}`, or unset it",
            )
        if key.unset:
            yield Finding(
                code="key-unset",
                area="providers",
                severity=Severity.WARN,
                title=f"a key of {key.provider} is not set",
                evidence=key.wanting,
                fix=f"set `{key.unset[0]}`, or take it out of `providers.{key.provider}.keys`",
            )


def network(facts: Facts) -> Iterator[Finding]:
    """Online or not, and whether that matters."""
    online = facts.online
    asked = (bool(facts.clouds) and not facts.local_only) or may_pull(facts)
    needed = asked and not facts.runnable and not facts.settings.offline
    severity = Severity.OK if online else Severity.INFO
    if online is False and needed:
        severity = Severity.ERROR
    yield Finding(
        code="network" if online else "network-unknown" if online is None else "network-offline",
        area="network",
        severity=severity,
        title="online" if online else "not known" if online is None else "offline",
        evidence=facts.online_reason or "the routing table",
        fix=f"connect to a network, or {CARRY}" if severity is Severity.ERROR else "",
    )


def has_engine(facts: Facts) -> bool:
    """Whether anything here could run a model."""
    return facts.engine_ready or facts.embedded or facts.ollama_installed


def may_pull(facts: Facts) -> bool:
    """Whether the ladder would download a model, were its registry reached."""
    choice = facts.last_resort
    return (
        facts.settings.local.auto_pull
        and "pull" in facts.settings.order
        and not facts.serverless.skip_pull
        and has_engine(facts)
        and (choice is None or bool(choice.name))
        and not facts.store.unwritable
    )


def mirrors(facts: Facts) -> Iterator[Finding]:
    """Where models are downloaded from, and whether a mirror's end is a download's end."""
    for mirror in facts.mirrors:
        alone = f"`{mirror.registry}` is not asked where it fails"
        why = "`privacy` is local-only" if facts.local_only else "not in `pull.registries`"
        yield Finding(
            code="mirror" if mirror.backed else "mirror-alone",
            area="pull",
            severity=Severity.OK if mirror.backed else Severity.INFO,
            title=f"models of {mirror.registry} come from its mirror",
            evidence=f"`{mirror.host}` is asked first, `{mirror.registry}` where it fails"
            if mirror.backed
            else f"`{mirror.host}`; {alone}: {why}",
        )


def hosting(facts: Facts) -> Iterator[Finding]:
    """Where this process runs, as far as downloads are concerned."""
    found = facts.serverless
    yield Finding(
        code="serverless" if found.skip_pull else "hosting",
        area="serverless",
        severity=Severity.INFO if found.skip_pull else Severity.OK,
        title="no model is downloaded here" if found.skip_pull else f"runs on: {found.category}",
        evidence=found.reason,
    )


def settings(facts: Facts) -> Iterator[Finding]:
    """Settings that contradict each other or this machine."""
    chosen = facts.settings
    host = chosen.gateway.host
    if not is_loopback(host) and not chosen.gateway.keys:
        yield Finding(
            code="gateway-open",
            area="settings",
            severity=Severity.ERROR,
            title="the gateway would be open to the network without a key",
            evidence=f"`gateway.host` is {host}, `gateway.keys` is empty",
            fix="set `gateway.keys`, or leave `gateway.host` at 127.0.0.1",
        )
    local = urlsplit(chosen.local.host).hostname or ""
    if facts.local_only and not is_loopback(local):
        yield Finding(
            code="local-host-remote",
            area="settings",
            severity=Severity.ERROR,
            title="the local engine is on another machine",
            evidence=f'`local.host` is {local} while `privacy` is "local-only"',
            fix="point `OLLAMA_HOST` at this machine, or allow it in `privacy`",
        )
    if facts.state_unwritable:
        yield Finding(
            code="state-unwritable",
            area="settings",
            severity=Severity.WARN,
            title="history cannot be kept",
            evidence=f"`{chosen.state_dir}`: {facts.state_unwritable}",
            fix="set `LOCALFIRST_STATE_DIR` to a folder of yours; answers come without it too",
        )
    choice = facts.last_resort
    if choice is not None and choice.requested:
        yield Finding(
            code="last-resort-substituted" if choice.name else "last-resort-none",
            area="settings",
            severity=Severity.INFO if choice.name else Severity.WARN,
            title=f"the last resort {choice.requested} does not fit this machine",
            evidence=choice.reason,
            fix=f'set `local.last_resort = "{choice.name}"` to stop being told'
            if choice.name
            else "free memory or disk, or set a cloud's key",
        )


def together(facts: Facts) -> Iterator[Finding]:
    """Whether a question asked now gets an answer, and from whom."""
    ways = []
    if facts.engine_ready and facts.runnable:
        ways.append(f"locally with {facts.runnable[0].name}")
    if facts.clouds and not facts.local_only and facts.online is not False:
        ways.append(f"from {facts.clouds[0].provider}")
    if may_pull(facts) and facts.online is not False:
        choice = facts.last_resort
        ways.append(f"after downloading {choice.name if choice else 'a model'}")
    yield Finding(
        code="answer" if ways else "answer-none",
        area="answer",
        severity=Severity.OK if ways else Severity.ERROR,
        title="a question asked now is answered" if ways else "nobody can answer",
        evidence="; else ".join(ways) or "no engine with a model, no cloud that can be reached",
        fix="" if ways else _way_out(facts),
    )


def _way_out(facts: Facts) -> str:
    """What to do where nobody can answer."""
    key = "" if facts.local_only else ", or set a cloud's key"
    if not has_engine(facts):
        return f"install an engine, as is told below{key}"
    if facts.online is not False:
        return f"install a model (`localfirst recommend --pull`){key}"
    return CARRY if facts.settings.offline else f"connect to a network, or {CARRY}"

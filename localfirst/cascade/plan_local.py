"""The rungs of this machine: which installed model answers, and whether one may be fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from localfirst.cascade import plan_names
from localfirst.cascade.plan_names import Asked, Wanted
from localfirst.cascade.plan_steps import Step, StepState, skipped, with_health
from localfirst.cascade.plan_world import LocalModelView, World
from localfirst.types import Call, Needs, Rung, Target

# How gladly a model is taken by its fit; "no" is not taken unless it is asked for by name.
_FITS = {"fits": 0, "tight": 1, "unknown": 2}
_TOLD = {
    "fits": "installed, and it fits",
    "tight": "installed, and it barely fits",
    "unknown": "installed; not known whether it fits",
}
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def local_steps(call: Call, world: World, wanted: Wanted) -> Iterator[Step]:
    """The local rung: the model that was named, else the best installed one that can do it."""
    engine = world.local
    named = _named(world, wanted)
    if not engine.ready and not engine.can_start:
        reason = engine.reason or f"the local engine is {engine.state}"
        yield skipped(_target(named), reason)
        return
    found, reason = _choose(call, world, wanted, named)
    if found is None:
        yield skipped(_target(named), reason)
        return
    requested = wanted.model if wanted.kind is Asked.CLOUD_MODEL else ""
    step = Step(
        target=Target(rung=Rung.LOCAL, provider="local", model=found.name, requested=requested),
        state=StepState.READY,
        reason=reason,
        window_tokens=found.context_tokens,
        leaves_machine=found.remote,
    )
    yield with_health(step, world)


def _named(world: World, wanted: Wanted) -> str:
    """The local model that must be it, or "" when any will do."""
    if wanted.kind in {Asked.LOCAL_MODEL, Asked.PROVIDER} and wanted.model:
        return "" if wanted.model == "auto" else wanted.model
    return "" if world.local_model == "auto" else world.local_model


def _choose(
    call: Call, world: World, wanted: Wanted, named: str
) -> tuple[LocalModelView | None, str]:
    models = world.local.models
    local_only = world.local_only or call.local_only
    if named:
        return _by_name(models, named, call, local_only=local_only)
    del wanted
    return _best(models, call.needs)


def _by_name(
    models: Sequence[LocalModelView], named: str, call: Call, *, local_only: bool
) -> tuple[LocalModelView | None, str]:
    wanted = plan_names.canonical(named)
    found = next((one for one in models if plan_names.canonical(one.name) == wanted), None)
    if found is None:
        return None, f"`{named}` is not installed"
    if found.remote and local_only:
        return None, f"`{named}` runs in Ollama's cloud, and `local-only` is set"
    reason = _unfit(found, call.needs)
    if reason:
        return None, reason
    return found, "loaded" if found.loaded else "installed"


def _best(models: Sequence[LocalModelView], needs: Needs) -> tuple[LocalModelView | None, str]:
    """Of those that can do it: a loaded one, else the largest that fits."""
    usable = [one for one in models if not one.remote and one.fit in _FITS and _can_chat(one)]
    if not models:
        return None, "no model is installed"
    if not usable:
        return None, "no installed model fits this machine"
    capable = [one for one in usable if not _unfit(one, needs)]
    if not capable:
        return None, _unfit(usable[0], needs)
    best = min(capable, key=lambda one: (not one.loaded, _FITS[one.fit], -one.size_bytes, one.name))
    return best, "loaded" if best.loaded else _TOLD[best.fit]


def _can_chat(model: LocalModelView) -> bool:
    return not model.capabilities or "completion" in model.capabilities


def _unfit(model: LocalModelView, needs: Needs) -> str:
    if not _can_chat(model):
        return f"`{model.name}` cannot chat"
    if model.context_tokens and needs.prompt_tokens > model.context_tokens:
        return (
            f"about {needs.prompt_tokens} tokens do not fit the window of "
            f"{model.context_tokens} of `{model.name}`"
        )
    # Thinking is a wish and not a need: a model that cannot think can still answer.
    missing = missing_for(
        msgspec.structs.replace(needs, schema=False, thinking=False), frozenset(model.capabilities)
    )
    return f"`{model.name}` cannot do {missing}" if missing else ""


def missing_for(needs: Needs, capabilities: frozenset[str]) -> str:
    """What a request needs and a candidate is known not to have, in words; or ""."""
    if not capabilities:
        return ""
    wanted = {"tools": needs.tools, "vision": needs.vision}
    return " or ".join(
        name for name, needed in wanted.items() if needed and name not in capabilities
    )


def pull_step(call: Call, world: World, wanted: Wanted) -> Step:
    """The last rung: download the model that was asked for, else the last resort."""
    asked = wanted.model if wanted.kind in {Asked.LOCAL_MODEL, Asked.PROVIDER} else ""
    model = asked or world.last_resort
    requested = wanted.model if wanted.kind is Asked.CLOUD_MODEL else ""
    reason = f"`{model}` would be downloaded"
    if not asked and world.last_resort_for:
        requested = requested or world.last_resort_for
        reason += f": {world.last_resort_reason}"
    target = Target(rung=Rung.PULL, provider="pull", model=model, requested=requested)
    no = _pull_refusal(call, world, model)
    if no:
        return skipped(target, no)
    return with_health(Step(target=target, state=StepState.READY, reason=reason), world)


def _pull_refusal(call: Call, world: World, model: str) -> str:
    near = model.startswith(LOOPBACK_HOSTS)
    if world.skip_pull:
        return world.skip_pull_reason or "models are not downloaded on this platform"
    if not world.auto_pull:
        return "`local.auto_pull` is off"
    if not model:
        return world.last_resort_reason or "`local.last_resort` is empty"
    if (world.local_only or call.local_only) and not near:
        return "a download leaves this machine, and `local-only` is set"
    if world.local.kind == "none" and not world.local.can_start:
        return "nothing here could run it: " + (world.local.reason or "no local engine")
    if plan_names.is_installed(model, world.installed):
        return f"`{model}` is already installed"
    if world.online is False and not near:
        return world.offline_reason
    return ""


def _target(named: str) -> Target:
    return Target(rung=Rung.LOCAL, provider="local", model=named)

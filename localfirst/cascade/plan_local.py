"""The rungs of this machine: which installed model answers, and whether one may be fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from localfirst.cascade import plan_names
from localfirst.cascade.plan_names import Asked, Wanted
from localfirst.cascade.plan_steps import No, Skip, Step, StepState, skipped, with_health
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
        # An engine that nobody has installed is no candidate; any other may come back.
        skip = Skip.SHUT if engine.state == "absent" else Skip.LATER
        reason = engine.reason or f"the local engine is {engine.state}"
        yield skipped(_target(named), No(reason, skip))
        return
    chosen = _choose(call, world, named)
    if isinstance(chosen, No):
        yield skipped(_target(named), chosen)
        return
    found, reason = chosen
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


def _choose(call: Call, world: World, named: str) -> tuple[LocalModelView, str] | No:
    """The model that answers and why it, or why none does."""
    engine = world.local
    if named:
        local_only = world.local_only or call.local_only
        chosen = _by_name(engine.models, named, call, local_only=local_only)
    else:
        chosen = _best(engine.models, call.needs)
    unseen = engine.partial or not (engine.ready or engine.models)
    known = named and isinstance(chosen, No) and chosen.skip in {Skip.LACKS, Skip.SMALL}
    if isinstance(chosen, No) and unseen and not known:
        return No(chosen.reason)  # there may be a model that is not listed now
    return chosen


def _by_name(
    models: Sequence[LocalModelView], named: str, call: Call, *, local_only: bool
) -> tuple[LocalModelView, str] | No:
    wanted = plan_names.canonical(named)
    found = next((one for one in models if plan_names.canonical(one.name) == wanted), None)
    if found is None:
        return No(f"`{named}` is not installed", Skip.SHUT)
    if found.remote and local_only:
        return No(f"`{named}` runs in Ollama's cloud, and `local-only` is set", Skip.SHUT)
    return _unfit(found, call.needs) or (found, "loaded" if found.loaded else "installed")


def _best(models: Sequence[LocalModelView], needs: Needs) -> tuple[LocalModelView, str] | No:
    """Of those that can do it: a loaded one, else the largest that fits."""
    chatting = [one for one in models if not one.remote and _can_chat(one)]
    usable = [one for one in chatting if one.fit in _FITS]
    if not models:
        return No("no model is installed", Skip.SHUT)
    if not usable:
        # Memory may be given back; a model that cannot chat never will.
        reason = "no installed model fits this machine"
        return No(reason, Skip.LATER if chatting else Skip.SHUT)
    capable = [one for one in usable if _unfit(one, needs) is None]
    if not capable:
        return _shortfall(chatting, needs)
    best = min(capable, key=lambda one: (bool(_missing(one, needs)), *_rank(one)))
    return best, "loaded" if best.loaded else _TOLD[best.fit]


def _shortfall(models: Sequence[LocalModelView], needs: Needs) -> No:
    """What *models*, none of which can be used, want for: the nearest to an answer tells."""
    found = [_unfit(one, needs) for one in models]
    lacking = [no for no in found if no is not None]
    small = next((no for no in lacking if no.skip is Skip.SMALL), None)
    nearest = small or lacking[0]
    # One that could do it does not fit now, and may later.
    return nearest if len(lacking) == len(found) else No(nearest.reason)


def _can_chat(model: LocalModelView) -> bool:
    return not model.capabilities or "completion" in model.capabilities


def _unfit(model: LocalModelView, needs: Needs) -> No | None:
    """Why *model* cannot answer, what no other prompt mends first."""
    if not _can_chat(model):
        return No(f"`{model.name}` does not support chat", Skip.LACKS, "chat")
    # One that may do more than is listed is asked: its engine finds out.
    if (missing := _missing(model, needs)) and not model.partial:
        return No(f"`{model.name}` does not support {missing}", Skip.LACKS, missing)
    if model.context_tokens and needs.prompt_tokens > model.context_tokens:
        return No(_beyond(needs.prompt_tokens, model.context_tokens, model.name), Skip.SMALL)
    return None


def _beyond(tokens: int, window: int, model: str) -> str:
    return f"about {tokens} tokens do not fit the window of {window} of `{model}`"


def _rank(model: LocalModelView) -> tuple[bool, int, int, str]:
    return not model.loaded, _FITS[model.fit], -model.size_bytes, model.name


def _missing(model: LocalModelView, needs: Needs) -> str:
    # Thinking is a wish and not a need: a model that cannot think can still answer.
    asked = msgspec.structs.replace(needs, schema=False, thinking=False)
    return missing_for(asked, frozenset(model.capabilities))


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
    if no is not None:
        return skipped(target, no)
    window = world.windows.get(model, 0)
    step = Step(target=target, state=StepState.READY, reason=reason, window_tokens=window)
    return with_health(step, world)


def _pull_refusal(call: Call, world: World, model: str) -> No | None:
    near = model.startswith(LOOPBACK_HOSTS)
    if world.skip_pull:
        reason = world.skip_pull_reason or "models are not downloaded on this platform"
        return No(reason, Skip.SHUT)
    if not world.auto_pull:
        return No("`local.auto_pull` is off", Skip.SHUT)
    if not model:
        return No(world.last_resort_reason or "`local.last_resort` is empty", Skip.SHUT)
    if (world.local_only or call.local_only) and not near:
        return No("a download leaves this machine, and `local-only` is set", Skip.SHUT)
    if world.local.kind == "none" and not world.local.can_start:
        return No(
            "nothing here could run it: " + (world.local.reason or "no local engine"), Skip.SHUT
        )
    if plan_names.is_installed(model, world.installed):
        return No(f"`{model}` is already installed", Skip.SHUT)
    # Gigabytes are not fetched for a refusal.
    missing = missing_for(call.needs, world.abilities.get(model, frozenset()))
    if missing:
        return No(f"`{model}` does not support {missing}", Skip.LACKS, missing)
    window = world.windows.get(model, 0)
    if window and call.needs.prompt_tokens > window:
        return No(_beyond(call.needs.prompt_tokens, window, model), Skip.SMALL)
    return No(world.offline_reason) if world.online is False and not near else None


def _target(named: str) -> Target:
    return Target(rung=Rung.LOCAL, provider="local", model=named)

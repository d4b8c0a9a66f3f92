"""
The plan: for one request and one world, who would be asked, in which order, and why.

Pure, and the only place that decides: `explain`, the dashboard, the tests and the cascade
itself read the same steps. Nothing is opened. Every rung of the order has at least one
step, if only to say why it is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from localfirst.cascade import plan_local, plan_names, plan_refusal, plan_strategy
from localfirst.cascade.health import NEVER
from localfirst.cascade.plan_names import Asked, Wanted
from localfirst.cascade.plan_steps import No, Plan, Skip, Step, StepState, skipped, with_health
from localfirst.cascade.plan_world import (
    EngineView,
    LocalModelView,
    NoEngine,
    ProviderView,
    World,
)
from localfirst.errors import LocalFirstError, PrivacyRefused, UnknownModel
from localfirst.settings import RouteSettings
from localfirst.types import Call, Rung, Target

__all__ = [
    "EngineView",
    "LocalModelView",
    "NoEngine",
    "Plan",
    "ProviderView",
    "Skip",
    "Step",
    "StepState",
    "World",
    "plan",
]


def plan(call: Call, world: World) -> Plan:
    """
    Decide who would be asked for *call* in *world*.

    A request that nothing can mean (`UnknownModel`), that may not leave (`PrivacyRefused`)
    or that nobody could ever answer (`InvalidRequest`) has its error in the plan.
    """
    try:
        wanted = plan_names.read(call.model, world)
    except UnknownModel as unknown:
        return Plan(error=unknown)
    steps = tuple(_first_only(_steps(call, world, wanted), call.fallback and world.fallback))
    error = _privacy_error(call, world, wanted) or plan_refusal.error(steps)
    return Plan(
        steps=steps,
        error=error,
        until_unix=min(
            [world.health.next_change_unix(world.now_unix), *(step.again_unix for step in steps)]
        ),
        fits_tokens=min(_windows(world, steps), default=NEVER),
        named=plan_names.named(wanted, world),
    )


def _windows(world: World, steps: tuple[Step, ...]) -> Iterator[int]:
    """Every window that is known, of those too that this prompt is too long for."""
    for window in (
        *(step.window_tokens for step in steps),
        *(model.context_tokens for model in world.local.models),
        *(world.windows.get(s.target.model, 0) for s in steps if s.target.rung is Rung.PULL),
    ):
        if window:
            yield window


def _steps(call: Call, world: World, wanted: Wanted) -> Iterator[Step]:
    match wanted.kind:
        case Asked.ROUTE:
            yield from _route(call, world, wanted.model, world.routes[wanted.model])
        case Asked.LOCAL:
            yield from plan_local.local_steps(call, world, Wanted(kind=Asked.LADDER))
        case Asked.PROVIDER:
            yield from _rung(call, world, wanted, wanted.provider)
        case _:
            for name in _rungs(world):
                yield from _rung(call, world, wanted, name)


def _rungs(world: World) -> Iterator[str]:
    """The order, each rung once, `ollama` read as local."""
    seen = set()
    for name in world.order:
        name = "local" if name in plan_names.LOCAL_NAMES else name
        if name not in seen:
            seen.add(name)
            yield name


def _rung(call: Call, world: World, wanted: Wanted, name: str) -> Iterator[Step]:
    if name == "local":
        yield from plan_local.local_steps(call, world, wanted)
    elif name == plan_names.PULL:
        yield plan_local.pull_step(call, world, wanted)
    elif name in world.providers:
        yield from _cloud(call, world, wanted, world.providers[name])
    else:
        target = Target(rung=Rung.CLOUD, provider=name, model="")
        yield skipped(target, No(f"no provider `{name}` is configured", Skip.SHUT))


def _route(call: Call, world: World, name: str, route: RouteSettings) -> Iterator[Step]:
    steps: list[Step] = []
    for text in route.targets:
        wanted = plan_names.at_provider(text, world)
        if wanted is None:
            target = Target(rung=Rung.CLOUD, provider=name, model=text)
            steps.append(skipped(target, No(f"`{text}` is no `provider/model`", Skip.SHUT)))
        else:
            steps.extend(_rung(call, world, wanted, wanted.provider))
    yield from plan_strategy.arranged(steps, route, world)


def _cloud(call: Call, world: World, wanted: Wanted, view: ProviderView) -> Iterator[Step]:
    models, requested = _models_at(view, wanted)
    first = models[0] if models else ""
    no = _cloud_refusal(call, world, view)
    if no is None and not models:
        no = No(f"no model is set for it: set `providers.{view.id}.model`", Skip.SHUT)
    if no is not None:
        yield skipped(Target(rung=view.rung, provider=view.id, model=first), no)
        return
    alternate = False
    for model in models:
        target = Target(rung=view.rung, provider=view.id, model=model, requested=requested)
        step = _cloud_step(call, world, view, target, alternate=alternate)
        yield step
        # The next default is for the case that this one has died, not that it is busy.
        alternate = True


def _models_at(view: ProviderView, wanted: Wanted) -> tuple[tuple[str, ...], str]:
    """The models to try at a provider, and what they stand in for ("" = nothing)."""
    if wanted.model and (wanted.provider == view.id or wanted.model in view.known_models):
        return (wanted.model,), ""
    return view.default_models, wanted.model


def _cloud_refusal(call: Call, world: World, view: ProviderView) -> No | None:
    """Why a provider is not asked at all, the reason that the user can least change first."""
    leaves = not view.own
    if leaves and (world.local_only or call.local_only):
        return No("the request may not leave this machine (`local-only`)", Skip.SHUT)
    if not view.enabled:
        return No(view.reason or "it is not configured", Skip.SHUT)
    # What no waiting mends is said before what one does.
    if missing := plan_local.missing_for(call.needs, view.capabilities):
        return No(f"`{view.id}` does not support {missing}", Skip.LACKS, missing)
    if not view.near and world.online is False:
        return No(world.offline_reason)
    return No(world.over_budget) if leaves and world.over_budget else None


def _cloud_step(
    call: Call, world: World, view: ProviderView, target: Target, *, alternate: bool
) -> Step:
    window = view.windows.get(target.model, view.context_tokens)
    tokens = call.needs.prompt_tokens
    base = Step(
        target=target,
        state=StepState.READY,
        reason="ready",
        alternate=alternate,
        window_tokens=window,
        timeout_s=view.timeout_s,
        leaves_machine=not view.own,
    )
    if window and tokens > window:
        return msgspec.structs.replace(
            base,
            state=StepState.SKIPPED,
            reason=f"about {tokens} tokens do not fit its window of {window}",
            skip=Skip.SMALL,
        )
    return with_health(base, world, view.key_labels, tokens)


def _first_only(steps: Iterator[Step], fallback: bool) -> Iterator[Step]:
    """Without fallback the ladder ends after the first step that could be taken."""
    for step in steps:
        yield step
        if not fallback and step.state is not StepState.SKIPPED:
            return


def _privacy_error(call: Call, world: World, wanted: Wanted) -> LocalFirstError | None:
    """A name that only a cloud can mean, asked under `local-only`, is refused as such."""
    if wanted.kind is not Asked.PROVIDER or not (world.local_only or call.local_only):
        return None
    view = world.providers.get(wanted.provider)
    if view is None or view.own:
        return None
    return PrivacyRefused(f"`{wanted.provider}` is not on this machine, and `local-only` is set")

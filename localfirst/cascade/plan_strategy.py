"""How a route orders its targets: as written, by load, by speed, by price, clouds first."""

from __future__ import annotations

from collections.abc import Sequence

from localfirst.cascade.plan_steps import Step
from localfirst.cascade.plan_world import World
from localfirst.settings import RouteSettings
from localfirst.types import Rung

MEASURED = frozenset({"balance", "fastest"})
"""Strategies whose answer changes with every request: their plans are not kept."""


def arranged(steps: Sequence[Step], route: RouteSettings, world: World) -> list[Step]:
    """*steps* in the order that the route's strategy asks for; equals keep their order."""
    match route.strategy:
        case "balance":
            weights = _weights(route)
            return sorted(steps, key=lambda step: _load(step, weights, world))
        case "fastest":
            # Who was never measured goes first once, or would never be measured.
            return sorted(steps, key=lambda step: world.first_token_s.get(step.target.route, 0.0))
        case "cheapest":
            return sorted(steps, key=lambda step: _price(step, world))
        case "cloud_first":
            return sorted(steps, key=lambda step: step.target.rung is not Rung.CLOUD)
        case _:
            return list(steps)


def _weights(route: RouteSettings) -> dict[str, float]:
    pairs = zip(route.targets, route.weights, strict=False)
    return {target: weight for target, weight in pairs if weight > 0}


def _load(step: Step, weights: dict[str, float], world: World) -> float:
    """Requests in flight for each unit of weight, the next one included."""
    busy = world.in_flight.get(step.target.provider, 0)
    return (busy + 1) / weights.get(step.target.route, 1.0)


def _price(step: Step, world: World) -> float:
    """What is not known is dearer than anything that is; what runs here is free."""
    if step.target.rung is not Rung.CLOUD:
        return 0.0
    return world.priced.get(step.target.route, float("inf"))

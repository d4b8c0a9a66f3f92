"""
A frozen look at who is cooling down: what stands in a target's way, and who may try it.

States of a place: closed (no entry) → open (`until_unix`) → half-open (one request tries) →
closed, or open again for longer. A wait that a server named is a fact: over, it is over. One
that we made up is tried early by a single request, and when it is over it is still tried by
one first, for a while. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from localfirst.types import FailureClass, Scope, Target

NEVER = float("inf")
# A guess is tried again by one request after this part of it; a guessed day after an hour.
EARLY, EARLY_LONGEST_S = 0.5, 3600.0
# Nobody having tried it for so long after its wait, a place is closed like any other.
HALF_OPEN_S = 300.0

Place = tuple[str, str, str]
"""(provider, key label, model); an empty part means "any"."""


class Gate(StrEnum):
    """Whether a target may be asked now."""

    READY = "ready"
    PROBE = "probe"
    COOLING = "cooling"


class Cooldown(msgspec.Struct, frozen=True, kw_only=True):
    """
    One place that is left alone, and why.

    `duration_s` is the whole length, by which a clock that jumped back is found out.
    `strikes` counts ejections; `mark` identifies the configuration that was at fault (a
    digest made by the caller), so that a changed key is tried again.
    """

    provider: str
    key_label: str = ""
    model: str = ""
    cls: FailureClass = FailureClass.UNKNOWN
    since_unix: float = 0.0
    until_unix: float = 0.0
    duration_s: float = 0.0
    fact: bool = False
    strikes: int = 1
    message: str = ""
    mark: str = ""

    @property
    def place(self) -> Place:
        """What cools."""
        return (self.provider, self.key_label, self.model)

    @property
    def probe_unix(self) -> float:
        """From when on a single request may try."""
        if self.fact or self.duration_s == NEVER:
            return self.until_unix
        return min(self.until_unix, self.since_unix + min(self.duration_s * EARLY, EARLY_LONGEST_S))

    def half_open(self, now_unix: float) -> bool:
        """Whether its wait is over and nobody has shown yet that the trouble is."""
        return not self.fact and self.until_unix <= now_unix < self.until_unix + HALF_OPEN_S


class HealthView(msgspec.Struct, frozen=True, kw_only=True):
    """
    A frozen look at the health, good until `Health.revision` changes.

    `local` are this machine's own: they are never half-open, or a crowd would go to the
    clouds while one request tries an engine that is back.
    """

    cooldowns: Mapping[Place, Cooldown] = {}
    probing: Mapping[Place, float] = {}
    local: frozenset[str] = frozenset()

    def blockers(self, target: Target, now_unix: float) -> list[Cooldown]:
        """Every cooldown that stands in this target's way, the longest first."""
        if not self.cooldowns:
            return []
        found = [
            entry
            for place in places(target)
            if (entry := self.cooldowns.get(place)) is not None and entry.until_unix > now_unix
        ]
        return sorted(found, key=lambda entry: -entry.until_unix)

    def blocker(self, target: Target, now_unix: float) -> Cooldown | None:
        """The cooldown that stands longest in this target's way, or None."""
        return next(iter(self.blockers(target, now_unix)), None)

    def gate(self, target: Target, now_unix: float) -> tuple[Gate, Cooldown | None]:
        """Whether the target may be asked now, and what stands longest in the way."""
        if not self.cooldowns:
            return Gate.READY, None
        found = self.blockers(target, now_unix)
        if not found:
            return self._after(target, now_unix)
        # One that may not be tried yet is enough: a fact is not undone by a guess beside it.
        if all(self._open_to_probe(entry, now_unix) for entry in found):
            return Gate.PROBE, found[0]
        return Gate.COOLING, found[0]

    def to_try(self, target: Target, now_unix: float) -> list[Cooldown]:
        """The entries that a request to this target would try: cooling or half-open."""
        found = self.blockers(target, now_unix)
        if target.provider in self.local:
            return found
        every = (self.cooldowns.get(place) for place in places(target))
        return found + [one for one in every if one is not None and one.half_open(now_unix)]

    def being_tried(self, target: Target, now_unix: float) -> bool:
        """Whether only another request, which is trying it, stands in this target's way."""
        if self.blockers(target, now_unix):
            return False
        return self.gate(target, now_unix)[0] is Gate.COOLING

    def _after(self, target: Target, now_unix: float) -> tuple[Gate, Cooldown | None]:
        """The gate when every wait is over: one request goes first."""
        found = self.to_try(target, now_unix)
        if not found:
            return Gate.READY, None
        busy = any(self.probing.get(entry.place, 0.0) > now_unix for entry in found)
        return (Gate.COOLING if busy else Gate.PROBE), found[0]

    def _open_to_probe(self, entry: Cooldown, now_unix: float) -> bool:
        busy = self.probing.get(entry.place, 0.0) > now_unix
        return entry.probe_unix <= now_unix and not busy

    def next_change_unix(self, now_unix: float) -> float:
        """The earliest instant at which a gate opens by itself."""
        edges = [
            edge
            for entry in self.cooldowns.values()
            for edge in (entry.probe_unix, entry.until_unix, self.probing.get(entry.place, 0.0))
            if edge > now_unix
        ]
        return min(edges, default=NEVER)


def places(target: Target) -> tuple[Place, Place, Place, Place]:
    """The four scopes that a target lies in, widest first."""
    provider, key, model = target.provider, target.key_label, target.model
    return (provider, "", ""), (provider, key, ""), (provider, "", model), (provider, key, model)


def place_of(target: Target, scope: Scope) -> Place | None:
    """The place that a failure of *scope* speaks of; None for the request's own fault."""
    provider, key, model = target.provider, target.key_label, target.model
    match scope:
        case Scope.PROVIDER:
            return (provider, "", "")
        case Scope.KEY:
            return (provider, key, "")
        case Scope.MODEL:
            return (provider, "", model)
        case Scope.KEY_MODEL:
            return (provider, key, model)
        case _:
            return None

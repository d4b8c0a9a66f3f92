"""
The refusal of a request that nobody could ever answer: no candidate does what it needs.

It is the request's own fault, and so a 400 instead of a 503 that invites to try again. Said
only where it is certain: whoever is merely down, or not known to lack it, may do it later.
"""

from __future__ import annotations

from collections.abc import Sequence

from localfirst.cascade.plan_steps import Skip, Step, StepState
from localfirst.errors import ContextTooLong, InvalidRequest

CODE = "ability-missing"
FIELDS = {"tools": "tools", "chat": "model"}
"""What asks for an ability, where every dialect has the same word for it."""
HINT = "name a model that does, or add a provider that has one; see `localfirst explain`"


def error(steps: Sequence[Step]) -> InvalidRequest | None:
    """What to tell whoever asked, or None where somebody may still answer."""
    if any(step.state is not StepState.SKIPPED or step.skip is Skip.LATER for step in steps):
        return None
    wanting = [step for step in steps if step.skip in {Skip.LACKS, Skip.SMALL}]
    if not wanting:
        return None
    told = "; ".join(dict.fromkeys(step.reason for step in wanting))
    # A shorter prompt would find an answer at whoever only has too small a window.
    if any(step.skip is Skip.SMALL for step in wanting):
        return ContextTooLong(told)
    missing = {step.lacks for step in wanting}
    field = FIELDS.get(missing.pop(), "") if len(missing) == 1 else ""
    return InvalidRequest(told, field=field, hint=HINT, code=CODE)

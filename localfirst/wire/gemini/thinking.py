"""
How a wish to think is said to Gemini: a level since Gemini 3, a budget of tokens before.

Sources: https://ai.google.dev/gemini-api/docs/thinking; what an effort is worth in tokens:
https://ai.google.dev/gemini-api/docs/openai#thinking.
"""

from __future__ import annotations

import re

from localfirst.types import ChatRequest, Json

_WITHOUT = re.compile(r"(models/)?(gemini-(1|2\.0)|gemma)")
"""Models that refuse to be told about thinking at all."""

_BUDGETED = re.compile(r"(models/)?gemini-2")

_LEVELS = {"minimal": "minimal", "low": "low", "medium": "medium"}
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192}

BUDGET_MOST = 24_576
BUDGET_LEAST_PRO = 128
"""`pro` models of Gemini 2.5 cannot be kept from thinking."""


def thinking(request: ChatRequest, model: str) -> dict[str, Json]:
    """The `thinkingConfig` for *request*, empty where nothing was said."""
    wish, budget = request.think, request.thinking_budget_tokens
    if (wish is None and not budget) or _WITHOUT.match(model):
        return {}
    asleep = wish is False or wish == "none"
    if _BUDGETED.match(model):
        config = _budgeted(wish, budget, asleep=asleep, least=_least(model))
    else:
        config = _levelled(wish, budget, asleep=asleep, pro="pro" in model)
    return config if asleep else {**config, "includeThoughts": True}


def _least(model: str) -> int:
    return BUDGET_LEAST_PRO if "pro" in model else 0


def _budgeted(
    wish: bool | str | None, budget: int | None, *, asleep: bool, least: int
) -> dict[str, Json]:
    if asleep:
        return {"thinkingBudget": least}
    if budget:
        return {"thinkingBudget": max(least, min(budget, BUDGET_MOST))}
    if isinstance(wish, str):
        return {"thinkingBudget": _BUDGETS.get(wish, BUDGET_MOST)}
    return {}


def _levelled(
    wish: bool | str | None, budget: int | None, *, asleep: bool, pro: bool
) -> dict[str, Json]:
    """A level; the least there is stands for none, as thinking cannot be turned off."""
    if asleep or wish == "minimal":
        return {"thinkingLevel": "low" if pro else "minimal"}
    if isinstance(wish, str):
        return {"thinkingLevel": _LEVELS.get(wish, "high")}
    if budget:
        level = next((name for name in ("low", "medium") if budget <= _BUDGETS[name]), "high")
        return {"thinkingLevel": level}
    return {}

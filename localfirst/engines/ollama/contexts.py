"""One context size for each model: another one would reload it, and a small one cut prompts."""

from __future__ import annotations

from collections.abc import Sequence

from localfirst.engines.base import LocalModel
from localfirst.engines.ollama import guard
from localfirst.engines.ollama.listing import Listed, full_name
from localfirst.engines.refusals import Overflow
from localfirst.engines.wishes import said
from localfirst.types import Call


class Contexts:
    """
    The sizes that models have had, by name and in tokens; they only ever grow.

    *configured* is the size from the settings, 0 for the daemon's own choice.
    """

    def __init__(self, configured: int) -> None:
        self._configured = configured
        self._settled: dict[str, int] = {}
        self._loaded: dict[str, int] = {}

    def see(self, running: Sequence[Listed]) -> None:
        """Take in what `/api/ps` lists: the sizes that models are loaded with now."""
        self._loaded = {full_name(entry.name): entry.context_length for entry in running}

    def known(self, name: str) -> bool:
        """Whether the model's size is settled."""
        return full_name(name) in self._settled

    def settle(self, name: str, own: int = 0) -> bool:
        """
        Begin with the size the model is loaded with, else the one of its own parameters.

        False when neither is known and *own* is not told either.
        """
        size = max(self._configured, self._loaded.get(full_name(name), 0)) or own
        if size:
            self._settled[full_name(name)] = size
        return bool(size)

    def keep_own(self, name: str) -> None:
        """Leave the choice to the daemon as long as that will do."""
        self._settled.setdefault(full_name(name), 0)

    def of(self, name: str) -> int:
        """The size so far, 0 for the daemon's own choice."""
        return self._settled.get(full_name(name), self._configured)

    def grows(self, call: Call, model: LocalModel) -> bool:
        """Whether *call* wants more than what is settled."""
        return self._wanted(call, model, self.of(model.name)) > self.of(model.name)

    def take(self, call: Call, model: LocalModel) -> int:
        """The `num_ctx` to send; never less than what is loaded, which would be a reload."""
        size = self.of(model.name)
        if self.grows(call, model):
            size = self._wanted(call, model, max(size, self._loaded.get(full_name(model.name), 0)))
        if size:
            self._settled[full_name(model.name)] = size
        return size

    def _wanted(self, call: Call, model: LocalModel, settled: int) -> int:
        asked = said(call, "num_ctx")
        return guard.stable_context(
            settled=settled,
            asked=asked if isinstance(asked, int) else 0,
            prompt_tokens=call.needs.prompt_tokens,
            max_tokens=call.needs.max_tokens,
            window=model.context_tokens,
        )

    def grow(self, call: Call, model: LocalModel, found: Overflow | None) -> bool:
        """Settle on a larger size after an overflow; False when the model has none."""
        if found is None or not found.prompt_tokens:
            return False
        size = guard.stable_context(
            settled=max(found.context_tokens, self.of(model.name)),
            asked=0,
            prompt_tokens=found.prompt_tokens,
            max_tokens=call.needs.max_tokens,
            window=model.context_tokens,
        )
        if size < found.prompt_tokens or size <= found.context_tokens:
            return False
        self._settled[full_name(model.name)] = size
        return True

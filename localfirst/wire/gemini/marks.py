"""
What Gemini put on its tool calls and wants to see again on the next turn.

No other dialect has a place for it, so it is remembered here, by the call's id, for as long
as there is room; a call that is not known any more goes back without.

Source: https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

import msgspec

CALLS_MOST = 2048
SIGNATURE_CHARS_MOST = 65_536
"""Signatures of a few kB were seen; a longer one is not worth its memory."""

SKIP = "skip_thought_signature_validator"
"""Google's own word for calls that another model made and that nobody signed."""


class Mark(msgspec.Struct, frozen=True, gc=False):
    """One call's signature, and whether its id is Gemini's own and so may be sent back."""

    signature: str = ""
    own_id: bool = False


NOTHING = Mark()


class Marks:
    """The marks of the latest calls, the oldest forgotten first."""

    __slots__ = ("_by_id",)

    def __init__(self) -> None:
        self._by_id: dict[str, Mark] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def put(self, identifier: str, signature: str, own_id: bool) -> None:
        """Remember one call; nothing to say is not remembered."""
        if len(signature) > SIGNATURE_CHARS_MOST:
            signature = ""
        if not signature and not own_id:
            return
        self._by_id.pop(identifier, None)
        if len(self._by_id) >= CALLS_MOST:
            del self._by_id[next(iter(self._by_id))]
        self._by_id[identifier] = Mark(signature, own_id)

    def of(self, identifier: str) -> Mark:
        """The mark of a call, empty when it is not known."""
        return self._by_id.get(identifier, NOTHING)

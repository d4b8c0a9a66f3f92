"""
Earlier turns made fit for Anthropic's API, whoever wrote them.

A conversation may have begun elsewhere: other models' calls have ids that this API refuses
(`functions.Bash:0`), or that come again turns later, and nobody signed their thinking. What
needs no change goes on as it came.

Sources: the API's own refusals, "tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'",
"`tool_use` ids must be unique", "Invalid `signature` in `thinking` block", and "a final
`assistant` message must start with a thinking block"; the last only of a fixed budget
(https://docs.anthropic.com/en/docs/build-with-claude/adaptive-thinking).
"""

from __future__ import annotations

import re

import msgspec

from localfirst.types import Json

Block = dict[str, Json]
Turn = dict[str, Json]

_MARKERS = (b'"tool_use"', b'"thinking"')
_REFUSED = re.compile(r"[^a-zA-Z0-9_-]")
_FORMS = {b'"tool_use"': "id", b'"tool_result"': "tool_use_id"}
_THOUGHTS = frozenset({b'"thinking"', b'"redacted_thinking"'})
_NOTHING = frozenset({b"", b"null", b'""'})

_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_TEXT = msgspec.json.Decoder(str)
_FIXED = re.compile(rb'"type"\s*:\s*"enabled"')


class Ids:
    """The ids of a conversation's calls: each of them allowed, and each of one call alone."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._open: dict[str, list[str]] = {}

    def turn(self) -> None:
        """A model speaks: what it calls is answered behind it, and not what was called before."""
        self._open.clear()

    def call(self, given: str) -> str:
        """The id to send for a call."""
        plain = _REFUSED.sub("_", given) or "call"
        own, number = plain, 1
        while own in self._taken:
            number += 1
            own = f"{plain}_{number}"
        self._taken.add(own)
        self._open.setdefault(given, []).append(own)
        return own

    def result(self, given: str) -> str:
        """The id to send for a result: that of the first such call without one."""
        calls = self._open.get(given)
        return calls.pop(0) if calls else _REFUSED.sub("_", given)


def mend(fields: dict[str, Json], *, signed: bool) -> None:
    """
    Mend the raw `messages` in a client's own body, and its wish to think, in place.

    Args:
        fields: of the body, their values raw.
        signed: leave out the thinking that nobody signed.
    """
    data = bytes(fields.get("messages", b""))
    if not any(marker in data for marker in _MARKERS):
        return
    try:
        turns: list[Turn] = [dict(turn) for turn in _OBJECTS.decode(data)]
        changed = _mend(turns, signed)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return  # no Messages request, which the API says better
    if changed:
        fields["messages"] = [turn for turn in turns if turn.get("content") != []]
    if signed and _FIXED.search(bytes(fields.get("thinking", b""))) and _unproved(turns):
        del fields["thinking"]


def _mend(turns: list[Turn], signed: bool) -> bool:
    """Mend the blocks of *turns* and open them all; whether any was changed."""
    ids, changed = Ids(), False
    for turn in turns:
        if _is_models(turn):
            ids.turn()
        if bytes(turn.get("content", b""))[:1] != b"[":
            continue
        given: list[Block] = [dict(block) for block in _OBJECTS.decode(turn["content"])]
        kept = [block for block in given if not (signed and _is_unsigned(block))]
        renamed = [_rename(block, ids) for block in kept]
        changed |= len(kept) < len(given) or any(renamed)
        turn["content"] = kept
    return changed


def _is_models(turn: Turn) -> bool:
    return bytes(turn.get("role", b"")) == b'"assistant"'


def _kind(block: Block) -> bytes:
    return bytes(block.get("type", b""))


def _is_unsigned(block: Block) -> bool:
    return _kind(block) == b'"thinking"' and bytes(block.get("signature", b"")) in _NOTHING


def _rename(block: Block, ids: Ids) -> bool:
    """Give a call or a result the id to send; whether that is another one."""
    kind = _kind(block)
    name = _FORMS.get(kind)
    if name is None:
        return False
    given = _TEXT.decode(block.get(name, b'""'))
    own = ids.call(given) if name == "id" else ids.result(given)
    if own == given:
        return False
    block[name] = own
    return True


def _unproved(turns: list[Turn]) -> bool:
    """Whether the conversation ends in results for calls that no proved thinking precedes."""
    called = False
    for turn in reversed(turns):
        content = turn.get("content")
        kinds = {_kind(block) for block in content} if isinstance(content, list) else {b"text"}
        if _is_models(turn):
            if kinds & _THOUGHTS:
                return False
            called |= b'"tool_use"' in kinds
        elif b'"tool_result"' not in kinds:
            break
    return called

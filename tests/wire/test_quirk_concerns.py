"""A request that no quirk concerns is let through; looked at thoroughly, it stays the same."""

from __future__ import annotations

import msgspec
import pytest

from localfirst.providers.catalog import CATALOG
from localfirst.types import Json
from localfirst.wire.openai import requests
from localfirst.wire.quirks import Quirks
from localfirst.wire.refusal import NotTranslatable
from tests.wire.support import dumps

CALLED: Json = [
    {
        "role": "assistant", "name": "n", "reasoning_content": "r",
        "tool_calls": [{"id": "x" * 60, "type": "function", "function": {"name": "f"}}],
    },
    {"role": "tool", "tool_call_id": "x" * 60, "content": "1"},
]  # fmt: skip

FIELDS: dict[str, Json] = {
    "messages": CALLED, "stream": True, "stream_options": {"include_usage": False},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "max_tokens": 10**7, "max_completion_tokens": 1, "temperature": 2, "top_p": 0, "stop": ["x"],
    "think": True, "options": {"num_ctx": 1}, "keep_alive": 5, "num_ctx": 9, "n": 2,
}  # fmt: skip
"""What quirks look into; of whatever else they name, being there is enough."""

ALONE = [
    Quirks(drop=frozenset({"seed"})), Quirks(rename={"seed": "random_seed"}),
    Quirks(caps={"temperature": 1}), Quirks(floors={"top_p": 0.1}), Quirks(defaults={"n": 1}),
    Quirks(forced={"n": 1}), Quirks(with_tools={"n": 1}), Quirks(json_schema=False),
    Quirks(max_tokens_field="max_completion_tokens"), Quirks(message_drop=frozenset({"name"})),
    Quirks(schema_drop=frozenset({"type"})), Quirks(reasoning_field="reasoning_content"),
    Quirks(call_fields={"mark": 1}), Quirks(tool_id_chars=9), Quirks(tool_id_most=40),
    Quirks(stream_usage=False),
]  # fmt: skip

CASES = {f"alone-{number}": quirks for number, quirks in enumerate(ALONE)} | {
    f"{spec.id}-{number}": quirks
    for spec in CATALOG.values()
    for number, quirks in enumerate([spec.quirks, *(more for _, more in spec.model_quirks)])
}


def outcome(sent: bytes, quirks: Quirks) -> bytes | str:
    """What is sent on, or the field that is not for this provider."""
    try:
        return requests.splice(sent, model="m", quirks=quirks)
    except NotTranslatable as refused:
        return refused.field


@pytest.mark.parametrize("name", CASES)
def test_what_is_let_through_would_have_stayed_as_it_is(name: str) -> None:
    quirks = CASES[name]
    thorough = msgspec.structs.replace(quirks)
    thorough.__dict__["concerns"] = None
    named = {*quirks.drop, *quirks.rename, *quirks.caps, *quirks.floors}
    fields: dict[str, Json] = {**dict.fromkeys(named, 1), **FIELDS}
    for only in ({}, *({field: value} for field, value in fields.items()), fields):
        sent = dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **only})
        assert outcome(sent, quirks) == outcome(sent, thorough), ", ".join(only)


def test_most_requests_concern_no_quirk_of_a_plain_server() -> None:
    plain = {"model", "messages", "stream", "temperature", "max_tokens", "tools"}
    assert plain.isdisjoint(Quirks().concerns or plain)

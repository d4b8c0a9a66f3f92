"""Whole numbers as languages without integers write them, and parts that forgot their text."""

from __future__ import annotations

import pytest

from localfirst.errors import InvalidRequest
from localfirst.types import Json
from localfirst.wire.anthropic import requests as anthropic
from localfirst.wire.ollama import requests as ollama
from localfirst.wire.openai import requests as openai
from tests.wire.support import dumps

ASKED: Json = [{"role": "user", "content": "hi"}]


def body(surface: str, tokens: float) -> bytes:
    common: dict[str, Json] = {"model": "m", "messages": ASKED}
    if surface == "ollama":
        return dumps({**common, "options": {"num_predict": tokens, "seed": tokens}})
    return dumps({**common, "max_tokens": tokens})


READERS = {"openai": openai, "anthropic": anthropic, "ollama": ollama}


@pytest.mark.parametrize("surface", list(READERS))
def test_eight_point_zero_is_eight(surface: str) -> None:
    reader = READERS[surface]
    assert reader.peek(body(surface, 8.0)).needs.max_tokens == 8
    found = reader.decode(body(surface, 8.0)).max_tokens
    assert (found, type(found)) == (8, int)


@pytest.mark.parametrize("surface", list(READERS))
def test_eight_and_a_half_is_no_count(surface: str) -> None:
    with pytest.raises(InvalidRequest):
        READERS[surface].decode(body(surface, 8.5))


@pytest.mark.parametrize("surface", ["openai", "anthropic"])
def test_a_text_part_without_text_is_refused_by_name(surface: str) -> None:
    turn = {"role": "user", "content": [{"type": "text"}]}
    with pytest.raises(InvalidRequest) as caught:
        READERS[surface].decode(dumps({"model": "m", "max_tokens": 1, "messages": [turn]}))
    assert caught.value.field == "messages[0].content[0].text"

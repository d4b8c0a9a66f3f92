"""
The small print of the three APIs, as their own clients read it: over a daemon that answers as a
real one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import ollama
import openai
import pytest

from tests.fakes.backends import LIKELY, Backend, backend

HI: list[Any] = [{"role": "user", "content": "hi"}]
SCHEMA: Any = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with backend("ollama", tmp_path_factory.mktemp("ollama")) as running:
        yield running


def openai_at(behind: Backend) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{behind.house.url}/v1", api_key="x", max_retries=0)


def test_an_answer_that_was_checked_against_a_schema_keeps_its_times_and_logprobs(
    behind: Backend,
) -> None:
    behind.prepare("schema")
    with closing(ollama.Client(behind.house.url)) as client:
        checked = client.chat("tiny", messages=HI, format=SCHEMA)
    times = (checked.load_duration, checked.prompt_eval_duration, checked.eval_duration)
    assert all(times) and checked.total_duration != checked.eval_duration
    behind.prepare("schema_logprobs")
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    with openai_at(behind) as other:
        whole = other.chat.completions.create(
            model="tiny", messages=HI, response_format=wanted, logprobs=True
        )
    assert whole.choices[0].logprobs and whole.choices[0].logprobs.content
    assert whole.choices[0].logprobs.content[0].token == LIKELY["token"]

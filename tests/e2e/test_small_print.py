"""
The small print of the three APIs, as their own clients read it: over a daemon that answers as a
real one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.fakes.backends import LIKELY, OllamaBackend, backend

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

HI: list[Any] = [{"role": "user", "content": "hi"}]
SCHEMA: Any = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaBackend]:
    with backend("ollama", tmp_path_factory.mktemp("ollama")) as running:
        assert isinstance(running, OllamaBackend)
        yield running


def openai_at(behind: OllamaBackend) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{behind.house.url}/v1", api_key="x", max_retries=0)


def test_an_answer_that_was_checked_against_a_schema_keeps_its_times_and_logprobs(
    behind: OllamaBackend,
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


def test_one_model_is_found_by_the_short_name_that_requests_use(behind: OllamaBackend) -> None:
    behind.prepare("text")
    with openai_at(behind) as client:
        assert client.models.retrieve("tiny").id == "tiny", "as an Ollama says it"
        assert client.models.retrieve("tiny:latest").owned_by == "local"
        assert client.models.retrieve("auto").id == "auto"
        for unknown in ("tin", "tiny:3b", "Auto"):
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(unknown)
    with anthropic.Anthropic(base_url=behind.house.url, api_key="x", max_retries=0) as other:
        assert other.models.retrieve("tiny").id == "tiny"
        with pytest.raises(anthropic.NotFoundError) as refused:
            other.models.retrieve("unknown")
    said: Any = refused.value.body
    assert said["type"] == "error" and said["error"]["type"] == "not_found_error"


def test_an_image_may_be_broken_into_lines(behind: OllamaBackend) -> None:
    behind.prepare("image")
    broken = f"{PIXEL[:76]}\r\n{PIXEL[76:]}\n"
    path, body = "/api/chat", {"model": "tiny", "messages": [{**HI[0], "images": [broken]}]}
    assert behind.ask("image", path, body)[0] == 200
    assert behind.asked()[-1]["messages"][0]["images"] == [PIXEL]
    body["messages"] = [{**HI[0], "images": [f"{PIXEL[:76]} {PIXEL[76:]}"]}]
    assert behind.ask("image", path, body)[0] == 400


def test_embeddings_ask_for_what_an_ollamas_own_client_asks_for(behind: OllamaBackend) -> None:
    behind.prepare("embed")
    with closing(ollama.Client(behind.house.url)) as client:
        client.embed("tiny", "a", keep_alive="7m")
        client.embed("tiny", "a", truncate=False)
    with openai_at(behind) as other:
        other.embeddings.create(model="tiny", input="a")
    asked = [(one["truncate"], one.get("keep_alive")) for one in behind.embeddings()]
    assert asked == [(True, "7m"), (False, None), (False, None)], "this API cuts unless told not to"


def test_a_role_that_only_a_models_template_knows_reaches_it(behind: OllamaBackend) -> None:
    behind.prepare("text")
    control = {"role": "control", "content": "thinking"}
    with closing(ollama.Client(behind.house.url)) as client:
        client.chat("tiny", messages=[control, *HI])
    assert behind.asked()[-1]["messages"] == [control, *HI]
    path, body = "/api/chat", {"model": "tiny", "messages": [{"role": "r" * 999, "content": ""}]}
    assert behind.ask("text", path, body)[0] == 400

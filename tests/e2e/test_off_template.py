"""
A model with tools whose answer its own template's parser does not read.

llama.cpp ends such an answer with an error of status 500 inside its stream, however good the
words were (ggml-org/llama.cpp `common/chat.cpp`). It is that candidate's failure alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from localfirst.models.store import Store
from tests.fakes import stranger
from tests.fakes.cloud_process import FakeCloud
from tests.fakes.embedded_bench import install
from tests.fakes.house import House, house
from tests.fakes.stranger import SURFACES, Told

pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")

# What llama.cpp makes of the way this one writes calls does not read plain words.
PECULIAR = (
    "{%- for tool in tools or [] %}tool: {{ tool.function.name }}\n{% endfor %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{%- for c in m.tool_calls or [] %}call {{ c.function.name }} {{ c.function.arguments }}\n"
    "{%- endfor %}{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}}
UNREAD = "does not match the expected"
CONFIG = """
order = ["local", "scripted"]
[cascade]
backoff_s = [0.01]
[providers.scripted]
base_url = "{url}"
model = "m"
"""


def tools(surface: str) -> list[dict[str, Any]]:
    if surface == "anthropic":
        return [{"name": "weather", "description": "d", "input_schema": PLACE}]
    function = {"name": "weather", "description": "d", "parameters": PLACE}
    return [{"type": "function", "function": function}]


@pytest.fixture(scope="module")
def at(scripted: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    store = Store(folder / "models")
    # One for each test: a model that fails three times in a row is left alone for a while.
    for surface in SURFACES:
        for how in ("whole", "streamed", "alone"):
            install(store, f"{surface}-{how}", PECULIAR)
    config = CONFIG.format(url=scripted.base_url())
    with house(folder, config=config, LOCALFIRST_LOCAL_ENGINE="llamacpp") as running:
        yield running


def ask(at: House, surface: str, model: str, *, stream: bool) -> Told:
    asked: dict[str, Any] = {"tools": tools(surface), "surface": surface, "stream": stream}
    if surface == "ollama":
        asked["options"] = {"num_predict": 16}
    return asyncio.run(stranger.ask(at.url, model, max_tokens=16, **asked))


@pytest.mark.parametrize("how", ["whole", "streamed"])
@pytest.mark.parametrize("surface", SURFACES)
def test_the_next_candidate_answers_before_the_first_token(
    at: House, surface: str, how: str
) -> None:
    told = ask(at, surface, f"{surface}-{how}", stream=how == "streamed")
    assert (told.status, told.finished, told.route) == (200, True, "scripted/m"), told.body
    assert told.trail == "local=invalid_response,scripted=ok"


@pytest.mark.parametrize("surface", SURFACES)
def test_alone_it_is_told_as_an_answer_that_does_not_do(at: House, surface: str) -> None:
    told = ask(at, surface, f"local/{surface}-alone", stream=True)
    assert (told.status, told.finished) == (502, False), told.body
    assert UNREAD in told.message
    assert set(told.trail.split(",")) == {"local=invalid_response"}


@pytest.mark.parametrize("surface", SURFACES)
def test_behind_the_first_words_it_is_an_error_in_the_stream(
    at: House, cloud: FakeCloud, surface: str
) -> None:
    """The same words of a llama.cpp that had been heard already: never a false end."""
    error = {"code": 500, "message": f"The model produced output that {UNREAD} peg-native format"}
    event = {"do": "error_event", "events": 2, "error": error | {"type": "server_error"}}
    cloud.script(event, part="cloud")
    told = ask(at, surface, "scripted/m", stream=True)
    assert (told.status, told.finished) == (200, False), told.body
    assert told.text and told.error
    assert UNREAD in json.dumps(told.error)

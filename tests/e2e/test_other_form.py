"""
Clouds that stream although nobody asked, or do not although they were asked, or never say that
they are done.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.fakes import cloud_answers
from tests.fakes.cloud_process import FakeCloud
from tests.fakes.house import House, house

HELLO = "Hello from the cloud."
HI: list[Any] = [{"role": "user", "content": "hi"}]
each_dialect = pytest.mark.parametrize("dialect", ["openai", "anthropic"])


@pytest.fixture(scope="module")
def at(scripted: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    sections = "".join(
        f'[providers.{kind}box]\nbase_url = "{scripted.base_url(kind)}"\nmodel = "m"\n'
        f'dialect = "{kind}"\n'
        for kind in ("openai", "anthropic")
    )
    sections += f'[providers.silent]\nbase_url = "{scripted.base_url("silent")}"\nmodel = "m"\n'
    config = 'order = ["openaibox", "anthropicbox", "silent", "groq"]\n' + sections
    folder = tmp_path_factory.mktemp("house")
    groq = {"GROQ_API_KEY": "gsk_0a1B2c3D4e5F6g7H", "GROQ_BASE_URL": scripted.base_url("groq")}
    with house(folder, config=config, LOCALFIRST_LOCAL_ENGINE="none", **groq) as running:
        yield running


def answers(cloud: FakeCloud, dialect: str, *, stream: bool, unsaid: int = 0) -> None:
    """Let the cloud answer the next request in this form, without the *unsaid* last events."""
    cloud.reset()
    events = cloud_answers.events(dialect, {}, "m")
    kind, body = "text/event-stream", b"".join(events[: len(events) - unsaid])
    if not stream:
        kind, body = "application/json", json.dumps(cloud_answers.whole(dialect, {}, "m")).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    raw = base64.b64encode(head.encode() + body).decode()
    cloud.script({"do": "raw", "base64": raw, "then": "keep"})


@each_dialect
def test_a_stream_is_made_of_a_whole_answer(at: House, cloud: FakeCloud, dialect: str) -> None:
    model = f"{dialect}box/m"
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        answers(cloud, dialect, stream=False)
        chunks = client.chat.completions.create(model=model, messages=HI, stream=True)
        parts = [choice for chunk in chunks for choice in chunk.choices]
        assert "".join(part.delta.content or "" for part in parts) == HELLO
        assert parts[-1].finish_reason == "stop"
    with anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as native:
        answers(cloud, dialect, stream=False)
        with native.messages.stream(model=model, messages=HI, max_tokens=9) as events:
            assert events.get_final_text() == HELLO


@each_dialect
def test_a_whole_answer_is_made_of_a_stream(at: House, cloud: FakeCloud, dialect: str) -> None:
    model = f"{dialect}box/m"
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        answers(cloud, dialect, stream=True)
        answer = client.chat.completions.create(model=model, messages=HI)
        assert answer.choices[0].message.content == HELLO
        assert answer.usage is not None and answer.usage.completion_tokens == 5
    with anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as native:
        answers(cloud, dialect, stream=True)
        (block,) = native.messages.create(model=model, messages=HI, max_tokens=9).content
        assert block.type == "text" and block.text == HELLO


def test_a_server_of_ones_own_may_leave_out_the_terminator_as_long_as_it_always_does(
    at: House, cloud: FakeCloud
) -> None:
    def asked(model: str, unsaid: int) -> str:
        answers(cloud, "openai", stream=True, unsaid=unsaid)
        with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
            chunks = client.chat.completions.create(model=model, messages=HI, stream=True)
            parts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        return "".join(parts)

    for _ in range(2):
        assert asked("silent/m", 1) == HELLO
    with pytest.raises(openai.APIError):
        asked("silent/m", 4)  # without a finish reason it is cut
    assert asked("silent/m", 0) == HELLO
    for model in ("silent/m", "groq/m"):
        with pytest.raises(openai.APIError):
            asked(model, 1)

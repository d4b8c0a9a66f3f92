"""Clouds that stream although nobody asked, or do not although they were asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.fakes import cloud_answers
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import House, house

HELLO = "Hello from the cloud."
HI: list[Any] = [{"role": "user", "content": "hi"}]
each_dialect = pytest.mark.parametrize("dialect", ["openai", "anthropic"])


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as running:
        yield running


@pytest.fixture(scope="module")
def at(cloud: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    sections = "".join(
        f'[providers.{kind}box]\nbase_url = "{cloud.base_url(kind)}"\nmodel = "m"\n'
        f'dialect = "{kind}"\n'
        for kind in ("openai", "anthropic")
    )
    config = 'order = ["openaibox", "anthropicbox"]\n' + sections
    folder = tmp_path_factory.mktemp("house")
    with house(folder, config=config, LOCALFIRST_LOCAL_ENGINE="none") as running:
        yield running


def answers(cloud: FakeCloud, dialect: str, *, stream: bool) -> None:
    """Let the cloud answer the next request in this form, whatever it asks for."""
    cloud.reset()
    kind, body = "text/event-stream", b"".join(cloud_answers.events(dialect, {}, "m"))
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

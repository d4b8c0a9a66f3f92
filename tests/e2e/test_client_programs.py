"""What ordinary programs do with the three packages, beyond a chat: on real sockets."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from localfirst.models import toy
from tests.fakes.backends import CloudBackend, EmbeddedBackend, OllamaBackend, backend
from tests.fakes.engine_bench import NO_REAL, REAL, real_daemon
from tests.fakes.house import house

HI: Any = [{"role": "user", "content": "hi"}]
SHORT: Any = {"num_predict": 4, "temperature": 0, "seed": 1}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaBackend]:
    with backend("ollama", tmp_path_factory.mktemp("ollama")) as running:
        assert isinstance(running, OllamaBackend)
        yield running


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudBackend]:
    with backend("openai", tmp_path_factory.mktemp("cloud")) as running:
        assert isinstance(running, CloudBackend)
        yield running


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    with backend("embedded", tmp_path_factory.mktemp("embedded")) as running:
        assert isinstance(running, EmbeddedBackend)
        yield running


# --- /api/generate and its context ---------------------------------------------------------


def test_a_conversation_goes_on_by_the_context_that_was_given(daemon: OllamaBackend) -> None:
    daemon.prepare("text")
    with closing(ollama.Client(daemon.house.url)) as client:
        first = client.generate("tiny", "hi", system="be kind", template="{{ .Prompt }}")
        *_, last = client.generate("tiny", "more", context=first.context, stream=True)
    assert first.context and last.context
    opened, went_on = daemon.asked()
    assert (opened["system"], opened["template"]) == ("be kind", "{{ .Prompt }}")
    assert "context" not in opened and went_on["context"] == list(first.context)


@pytest.mark.parametrize(
    "said", [{"context": [1, 2]}, {"raw": True}, {"template": "x"}, {"suffix": "b"}]
)
def test_a_cloud_is_not_asked_for_what_it_would_leave_out(
    cloud: CloudBackend, said: dict[str, Any]
) -> None:
    cloud.prepare("text")
    with closing(ollama.Client(cloud.house.url)) as client:
        with pytest.raises(ollama.ResponseError, match="does not support") as refused:
            client.generate("auto", "hi", **said)
        assert client.generate("auto", "hi", raw=False, context=[]).context is None
    assert refused.value.status_code == 400
    assert len(cloud.asked()) == 1


def test_the_embedded_engine_takes_a_raw_prompt_as_it_is(embedded: EmbeddedBackend) -> None:
    async def tokens(**said: Any) -> int | None:
        client = ollama.AsyncClient(embedded.house.url)
        try:
            found = await client.generate("tiny", "hi", options=SHORT, **said)
            assert found.response and found.done_reason == "length"
            return found.prompt_eval_count
        finally:
            await client.close()

    templated, raw = asyncio.run(tokens()), asyncio.run(tokens(raw=True))
    # The letters of "hi" and a beginning.
    assert raw == 3 and templated is not None and templated > 10
    for said in ({"context": [1]}, {"template": "x"}, {"raw": True, "suffix": "b"}):
        with pytest.raises(ollama.ResponseError, match="does not support"):
            asyncio.run(tokens(**said))


def test_a_raw_prompt_has_its_schema_stops_and_logprobs(embedded: EmbeddedBackend) -> None:
    schema: Any = {"enum": ["Bern"]}
    with closing(ollama.Client(embedded.house.url)) as client:
        held = client.generate("tiny", "hi", raw=True, format=schema, options={"temperature": 0})
        assert held.response == '"Bern"'
        whole = client.generate("tiny", "hi", raw=True, options=SHORT)
        cut = client.generate("tiny", "hi", raw=True, options=SHORT | {"stop": [whole.response[2]]})
        assert cut.response == whole.response[:2] and cut.done_reason == "stop"
        likely = client.generate(
            "tiny", "hi", raw=True, options=SHORT, logprobs=True, top_logprobs=2
        )
        assert likely.logprobs and len(likely.logprobs) == 4
        assert len(likely.logprobs[0].top_logprobs or ()) == 2


@pytest.mark.real_ollama
@pytest.mark.skipif(not REAL.exists(), reason=NO_REAL)
def test_a_conversation_is_the_one_that_ollama_itself_would_have(tmp_path: Path) -> None:
    store = tmp_path / "store"
    toy.publish(store)

    def talk(url: str) -> list[Any]:
        with closing(ollama.Client(url)) as client:
            first = client.generate("tiny", "hi", options=SHORT, system="be kind")
            more = client.generate("tiny", "more", options=SHORT, context=first.context)
        return [(x.response, x.context, x.prompt_eval_count) for x in (first, more)]

    async def both() -> tuple[list[Any], list[Any]]:
        async with real_daemon(tmp_path, store) as served:
            alone = {"LOCALFIRST_ORDER": "local", "LOCALFIRST_OFFLINE": "1"}
            own = {"LOCALFIRST_LOCAL_ENGINE": "ollama", "OLLAMA_HOST": served.endpoint}
            with house(tmp_path, **alone, **own) as at:
                return await asyncio.to_thread(talk, served.endpoint), await asyncio.to_thread(
                    talk, at.url
                )

    direct, through = asyncio.run(both())
    assert through == direct
    assert len(through[1][1]) > len(through[0][1])


# --- a stop sequence that is met at once ----------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_over_before_its_first_word_is_none_that_failed(
    daemon: OllamaBackend, stream: bool
) -> None:
    daemon.prepare("silent")
    asked: Any = {"model": "tiny", "messages": HI, "stream": stream}
    url = daemon.house.url
    with closing(ollama.Client(url)) as own:
        found: Any = own.chat("tiny", HI, options={"stop": ["END"]}, stream=stream)
        last = [*found][-1] if stream else found
        assert (last.message.content, last.done_reason) == ("", "stop")
        with pytest.raises(ollama.ResponseError, match="empty answer"):
            own.chat("tiny", HI)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        answer: Any = client.chat.completions.create(**asked, stop="END")
        choices = [one.choices[0] for one in answer if one.choices] if stream else answer.choices
        assert choices[-1].finish_reason == "stop"
        assert not any((one.delta if stream else one.message).content for one in choices)
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as third:
        told: Any = third.messages.create(**asked, max_tokens=9, stop_sequences=["END"])
        ends = [e.delta for e in told if e.type == "message_delta"] if stream else [told]
        assert (ends[-1].stop_reason, ends[-1].stop_sequence) == ("stop_sequence", "END")
    # One for each that was answered, and two tries for the one that nothing explains.
    assert len(daemon.asked()) == 5


def test_the_embedded_engine_stops_before_its_first_word(embedded: EmbeddedBackend) -> None:
    with closing(ollama.Client(embedded.house.url)) as client:
        whole = client.chat("tiny", HI, options=SHORT).message.content or ""
        for stop in (whole[:1], whole[:3]):
            cut = client.chat("tiny", HI, options=SHORT | {"stop": [stop]})
            assert (cut.message.content, cut.done_reason) == ("", "stop")
        assert client.generate("tiny", "hi", options=SHORT | {"stop": [whole[0]]}).response == ""


# --- embeddings ----------------------------------------------------------------------------


def test_token_ids_are_refused_by_who_would_read_them_as_others(daemon: OllamaBackend) -> None:
    daemon.prepare("embed")
    with (
        openai.OpenAI(base_url=f"{daemon.house.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="token ids") as refused,
    ):
        client.embeddings.create(model="tiny", input=[[9906, 1917]])
    body: Any = refused.value.body
    assert body["param"] == "input" and "check_embedding_ctx_length=False" in body["hint"]
    assert daemon.embeddings() == []


def test_the_embedded_engine_takes_all_that_clients_of_ollama_send_at_once(
    embedded: EmbeddedBackend,
) -> None:
    texts = ["hi", "x" * 9000, *["a"] * 300]
    with closing(ollama.Client(embedded.house.url)) as client:
        found = client.embed("tiny", texts, dimensions=4)
        short = client.embed("tiny", "hi", dimensions=4)
        assert len(found.embeddings) == len(texts)
        assert list(found.embeddings[0]) == pytest.approx(list(short.embeddings[0]), abs=1e-4)
        # The window that a text is cut to by default, and the short ones.
        assert found.prompt_eval_count == 3 + 2048 + 300 * 2
        with pytest.raises(ollama.ResponseError, match="exceeds the available context"):
            client.embed("tiny", texts[1], truncate=False)


def test_what_says_none_is_not_taken_for_no_limit(embedded: EmbeddedBackend) -> None:
    with closing(ollama.Client(embedded.house.url)) as client:
        assert client.chat("tiny", HI, options={"num_predict": 0}).eval_count == 1
        found = client.chat("tiny", HI, options=SHORT, logprobs=True, top_logprobs=0)
        assert found.logprobs and len(found.logprobs) == 4


# --- how long it took ----------------------------------------------------------------------


def test_the_embedded_engine_tells_how_fast_it_spoke_and_not_how_long_it_loaded(
    embedded: EmbeddedBackend,
) -> None:
    with closing(ollama.Client(embedded.house.url)) as client:
        found = client.chat("tiny", HI, options=SHORT)
        *_, last = client.chat("tiny", HI, options=SHORT, stream=True)
    for end in (found, last):
        spoke, read = end.eval_duration, end.prompt_eval_duration
        assert spoke and read and end.total_duration
        assert spoke + read < end.total_duration


# --- what would silently be missing --------------------------------------------------------


def test_what_only_anthropic_can_do_is_asked_of_nobody_else(cloud: CloudBackend) -> None:
    cloud.prepare("text")
    servers: Any = [{"type": "url", "url": "https://example.com/mcp", "name": "x"}]
    with anthropic.Anthropic(base_url=cloud.house.url, api_key="x", max_retries=0) as client:
        asked: Any = {"model": "auto", "max_tokens": 9, "messages": HI}
        with pytest.raises(anthropic.BadRequestError, match="servers of tools"):
            client.beta.messages.create(**asked, mcp_servers=servers)
        assert client.beta.messages.create(**asked, mcp_servers=[]).content
        counted = client.beta.messages.count_tokens(
            model="auto", messages=HI, mcp_servers=servers, betas=["mcp-client-2025-11-20"]
        )
        assert counted.input_tokens
    assert len(cloud.asked()) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_turned_off_in_the_words_of_vllm_as_well(
    daemon: OllamaBackend, stream: bool
) -> None:
    daemon.prepare("text")
    with openai.OpenAI(base_url=f"{daemon.house.url}/v1", api_key="x", max_retries=0) as client:
        for said in ({"enable_thinking": False}, {"enable_thinking": True}, {"other": 1}):
            found: Any = client.chat.completions.create(
                model="tiny",
                messages=HI,
                stream=stream,
                extra_body={"chat_template_kwargs": said},
            )
            assert not stream or list(found)
    assert [asked.get("think") for asked in daemon.asked()] == [False, True, None]


# --- what clients look at before they ask --------------------------------------------------


def test_the_version_is_one_that_clients_of_ollama_take(embedded: EmbeddedBackend) -> None:
    with urllib.request.urlopen(f"{embedded.house.url}/api/version") as answer:
        version = json.load(answer)["version"]
    # As VS Code compares it: part by part, as numbers, with 0.6.4.
    assert [int(part) for part in version.split(".")] >= [0, 6, 4]


def test_calls_that_change_models_say_who_takes_them(daemon: OllamaBackend) -> None:
    with closing(ollama.Client(daemon.house.url)) as client:
        with pytest.raises(ollama.ResponseError, match="localfirst rm") as refused:
            client.delete("tiny")
        assert refused.value.status_code == 404
        for call in (
            lambda: client.copy("tiny", "other"),
            lambda: client.create("other", from_="tiny"),
            lambda: client.push("me/tiny"),
        ):
            with pytest.raises(ollama.ResponseError, match="by Ollama itself"):
                call()

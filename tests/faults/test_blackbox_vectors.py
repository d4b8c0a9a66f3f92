"""What is asked of embeddings' clouds and what of them comes back, as the real client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import House, house
from tests.fakes.stranger import BARE, provider

IDS: list[list[int]] = [[9906, 1917], [100257]]


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as running:
        yield running


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, cloud: FakeCloud) -> Iterator[House]:
    config = BARE.replace("[]", '["openai", "mistral"]') + provider("box", cloud.base_url("box"))
    config += provider("packs", cloud.base_url("packs"))
    config += provider("native", cloud.base_url("native"), "gemini")
    with house(tmp_path_factory.mktemp("vectors"), config=config, **keys(cloud)) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(cloud: FakeCloud) -> None:
    cloud.reset()


def keys(cloud: FakeCloud) -> dict[str, str]:
    return {
        "OPENAI_API_KEY": "sk-0123456789abcdef0123",
        "OPENAI_BASE_URL": cloud.base_url("openai"),
        "GROQ_API_KEY": "gsk-0123456789abcdef",
    }


@pytest.fixture
def client(at: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("ids", [IDS, IDS[0]])
@pytest.mark.parametrize("name", ["openai/e", "box/e"])
def test_token_ids_reach_who_has_their_tokenizer(
    client: openai.OpenAI, cloud: FakeCloud, name: str, ids: Any
) -> None:
    found = client.embeddings.create(model=name, input=ids)
    several = ids is IDS
    assert [one.embedding for one in found.data] == [[0.0, 0.5], [1.0, 0.5]][: 1 + several]
    assert found.usage.prompt_tokens == 3
    (asked,) = cloud.requests()
    assert asked["body"]["input"] == (IDS if several else [ids])


def test_token_ids_are_refused_where_another_tokenizer_would_read_them(
    client: openai.OpenAI, cloud: FakeCloud
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="native/e", input=IDS)
    body: Any = refused.value.body
    assert body["param"] == "input" and "check_embedding_ctx_length=False" in body["hint"]
    assert cloud.requests() == []


def test_what_only_the_cloud_understands_reaches_it(
    client: openai.OpenAI, cloud: FakeCloud
) -> None:
    more = {"input_type": "query", "truncate": "END"}
    for name in ("box/e", "openai/e"):
        client.embeddings.create(model=name, input="a", dimensions=2, user="u", extra_body=more)
    sent = {"model": "e", "input": ["a"], "encoding_format": "float", "dimensions": 2, **more}
    # As in chats, nobody but OpenAI is told of its users: strict ones refuse what they do not know.
    assert [asked["body"] for asked in cloud.requests()] == [sent, sent | {"user": "u"}]


def test_a_bare_name_is_asked_of_whose_it_is(client: openai.OpenAI, cloud: FakeCloud) -> None:
    found = client.embeddings.with_raw_response.create(model="text-embedding-3-small", input="a")
    assert found.headers["x-localfirst-route"] == "openai/text-embedding-3-small"
    assert found.parse().model == "text-embedding-3-small"
    (asked,) = cloud.requests("openai")
    assert asked["body"]["model"] == "text-embedding-3-small"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gemini-embedding-001", "`order` does not name"),
        ("mistral-embed", "`mistral` cannot be asked for embeddings"),
        ("bge-m3", "`bge-m3` is not installed"),
    ],
)
def test_a_bare_name_that_nobody_may_be_asked_for_says_why(
    client: openai.OpenAI, cloud: FakeCloud, name: str, words: str
) -> None:
    with pytest.raises(openai.NotFoundError, match=words):
        client.embeddings.create(model=name, input="a")
    assert cloud.requests() == []


def test_a_model_that_answers_for_another_is_named(client: openai.OpenAI, cloud: FakeCloud) -> None:
    cloud.script({"do": "ok", "model": "another"}, part="box")
    assert client.embeddings.create(model="box/e", input="a").model == "another"
    assert client.embeddings.create(model="box/e", input="a").model == "e"


def test_vectors_out_of_order_are_put_in_order(client: openai.OpenAI, cloud: FakeCloud) -> None:
    cloud.script({"do": "ok", "order": -1}, part="box")
    found = client.embeddings.create(model="box/e", input=["a", "b", "c"])
    assert [(one.index, one.embedding[0]) for one in found.data] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_cloud_that_knows_base64_alone_is_asked_for_that(at: House, cloud: FakeCloud) -> None:
    # As Voyage says it; its answers count no tokens of a prompt either.
    no = "Value 'float' provided for `encoding_format` is invalid"
    refused = {"do": "status", "status": 400, "message": no}
    packed = {"do": "ok", "packed": True, "times": 3}
    cloud.script(refused, packed, part="packs")
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        for encoding in ("float", "base64", openai.omit):
            found = client.embeddings.create(
                model="packs/e", input=["a", "b"], encoding_format=encoding
            )
            assert len(found.data) == 2
        assert list(client.embeddings.create(model="box/e", input="a").data[0].embedding)
    asked = [one["body"]["encoding_format"] for one in cloud.requests("packs")]
    # It is remembered.
    assert asked == ["float", "base64", "base64", "base64"]


def test_another_refusal_is_asked_once(client: openai.OpenAI, cloud: FakeCloud) -> None:
    cloud.script({"do": "status", "status": 400, "message": "no"}, part="box")
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="box/e", input="a")
    assert len(cloud.requests("box")) == 1


def test_more_texts_than_a_cloud_takes_are_sent_in_turn(at: House, cloud: FakeCloud) -> None:
    with closing(ollama.Client(at.url)) as client:
        found = client.embed("box/e", ["a"] * 2100)
    first, second = (len(asked["body"]["input"]) for asked in cloud.requests("box"))
    assert (first, second) == (2048, 52)
    assert [row[0] for row in found.embeddings] == [*map(float, range(2048)), *range(52)]
    assert found.prompt_eval_count == 6


def test_vectors_of_two_models_are_never_mixed(at: House, cloud: FakeCloud) -> None:
    cloud.script(
        {"do": "ok", "model": "one"}, {"do": "ok", "model": "another", "times": -1}, part="box"
    )
    with closing(ollama.Client(at.url)) as client:
        with pytest.raises(ollama.ResponseError, match="`another` answered after `one`"):
            client.embed("box/e", ["a"] * 2100)
        # By itself either is what it says it is.
        assert client.embed("box/e", ["a"]).embeddings


def test_no_text_leaves_a_machine_that_is_set_offline(tmp_path: Path, cloud: FakeCloud) -> None:
    # An address that is not loopback, and that nobody has (RFC 5737).
    away = keys(cloud) | {"OPENAI_BASE_URL": "https://192.0.2.1/v1"}
    with (
        house(tmp_path, config=BARE, LOCALFIRST_OFFLINE="1", **away) as at,
        openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="`offline` is set") as refused,
    ):
        client.embeddings.create(model="openai/e", input="a")
    assert refused.value.response.headers["x-localfirst-attempts"] == "0"

"""Embeddings by a cloud: keys, waits, privacy and budget as for answers; nobody stands in."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import House, house
from tests.fakes.stranger import BARE, provider
from tests.fakes.terminal import run

KEYED = "[cascade]\nbackoff_s = [0.01]\n"


NAMES = ("box", "keys", "sick", "limited", "wrong", "gone")


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as running:
        yield running


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, cloud: FakeCloud) -> Iterator[House]:
    config = BARE + KEYED
    for name in NAMES:
        config += provider(name, cloud.base_url(name), keys=2 if name == "keys" else 1)
    with house(tmp_path_factory.mktemp("embeddings"), config=config, **groq(cloud)) as running:
        yield running


def groq(cloud: FakeCloud) -> dict[str, str]:
    return {"GROQ_API_KEY": "gsk-0123456789abcdef", "GROQ_BASE_URL": cloud.base_url("groq")}


def embed(at: House, model: str, path: str = "/v1/embeddings", **headers: str) -> Any:
    """Status, headers and body of one request."""
    asked = urllib.request.Request(
        at.url + path,
        json.dumps({"model": model, "input": ["a", "b"]}).encode(),
        {
            "content-type": "application/json",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        },
    )
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.load(error)


def status(code: int, times: int = 1, **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"do": "status", "status": code, "times": times, "headers": named}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
def test_a_private_request_reaches_no_cloud(at: House, cloud: FakeCloud, path: str) -> None:
    before = len(cloud.requests("groq"))
    code, _, _ = embed(at, "groq/e", path, x_localfirst_privacy="local-only")
    assert (code, len(cloud.requests("groq"))) == (403, before)
    # A server that its user named is this machine's own.
    code, headers, _ = embed(at, "box/e", path, x_localfirst_privacy="local-only")
    assert (code, headers["x-localfirst-egress"]) == (200, "none")


def test_who_made_the_vectors_is_told(at: House) -> None:
    code, headers, said = embed(at, "groq/e")
    assert (code, len(said["data"])) == (200, 2)
    assert said["usage"]["prompt_tokens"] == 3
    facts = {name: headers[f"x-localfirst-{name}"] for name in ("rung", "route", "trail", "egress")}
    assert facts == {"rung": "cloud", "route": "groq/e", "trail": "groq=ok", "egress": "groq"}


def test_a_limited_key_gives_way_to_the_next(at: House, cloud: FakeCloud) -> None:
    cloud.script(status(429, retry_after="60"), part="keys")
    _, headers, _ = embed(at, "keys/e")
    assert headers["x-localfirst-trail"] == "keys=rate_limit,keys=ok"
    _, headers, _ = embed(at, "keys/e")
    assert headers["x-localfirst-trail"] == "keys=ok"
    keys = [one["headers"]["authorization"] for one in cloud.requests("keys")]
    assert keys[0] != keys[1] == keys[2]


def test_trouble_that_passes_is_tried_again(at: House, cloud: FakeCloud) -> None:
    cloud.script(status(503), part="sick")
    code, headers, _ = embed(at, "sick/e")
    assert (code, headers["x-localfirst-trail"]) == (200, "sick=unavailable,sick=ok")


def test_a_limit_is_told_with_its_status_and_kept(at: House, cloud: FakeCloud) -> None:
    cloud.script(status(429, times=-1, retry_after="60"), part="limited")
    for attempts in ("1", "0"):
        code, headers, _ = embed(at, "limited/e")
        assert (code, headers["x-localfirst-attempts"]) == (429, attempts)
        assert 50 < int(headers["retry-after"]) <= 60
    assert len(cloud.requests("limited")) == 1


def test_the_requests_own_fault_keeps_its_status(at: House, cloud: FakeCloud) -> None:
    cloud.script(status(400), part="wrong")
    assert embed(at, "wrong/e")[0] == 400


def test_the_real_client_leaves_and_nobody_is_blamed(at: House, cloud: FakeCloud) -> None:
    cloud.script({"do": "hang"}, part="gone")

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{at.url}/v1", api_key="x") as client:
            asking = asyncio.ensure_future(client.embeddings.create(model="gone/e", input="a"))
            while not cloud.requests("gone"):
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.wait({asking})

    asyncio.run(leave())
    assert embed(at, "gone/e")[1]["x-localfirst-trail"] == "gone=ok"


def test_the_days_budget_counts_them(tmp_path: Path, cloud: FakeCloud) -> None:
    before = len(cloud.requests("groq"))
    limit = {"LOCALFIRST_BUDGET_CLOUD_REQUESTS_PER_DAY": "1"}
    with house(tmp_path, config=BARE, **groq(cloud), **limit) as at:
        assert [embed(at, "groq/e")[0] for _ in range(2)] == [200, 503]
    assert len(cloud.requests("groq")) == before + 1


def test_vectors_made_here_cost_nothing(tmp_path: Path, cloud: FakeCloud) -> None:
    """They were told as of an unknown price, as are those of a cloud."""
    config = BARE + provider("box", cloud.base_url("box"))
    with house(tmp_path, config=config, **groq(cloud)) as at:
        assert [embed(at, model)[0] for model in ("box/e", "groq/e")] == [200, 200]
    rows = json.loads(run(tmp_path, "stats", "--json").out)["usage"]
    assert {row["provider"]: row["usd"] for row in rows} == {"box": 0.0, "groq": None}

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

KEYED = "[cascade]\nbackoff_s = [0.01]\n"


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as running:
        yield running


def serve(folder: Path, cloud: FakeCloud, **environ: str) -> Any:
    config = BARE + KEYED + provider("box", cloud.base_url("box"), keys=2)
    groq = {"GROQ_API_KEY": "gsk-0123456789abcdef", "GROQ_BASE_URL": cloud.base_url("groq")}
    return house(folder, config=config, **groq, **environ)


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
def test_a_private_request_reaches_no_cloud(tmp_path: Path, cloud: FakeCloud, path: str) -> None:
    with serve(tmp_path, cloud) as at:
        code, _, _ = embed(at, "groq/e", path, x_localfirst_privacy="local-only")
        assert code == 403
        # A server that its user named is this machine's own.
        code, headers, _ = embed(at, "box/e", path, x_localfirst_privacy="local-only")
        assert (code, headers["x-localfirst-egress"]) == (200, "none")
    assert [one["part"] for one in cloud.requests()] == ["box"]


def test_who_made_the_vectors_is_told(tmp_path: Path, cloud: FakeCloud) -> None:
    with serve(tmp_path, cloud) as at:
        code, headers, said = embed(at, "groq/e")
    assert (code, len(said["data"])) == (200, 2)
    facts = {name: headers[f"x-localfirst-{name}"] for name in ("rung", "route", "trail", "egress")}
    assert facts == {"rung": "cloud", "route": "groq/e", "trail": "groq=ok", "egress": "groq"}


def test_a_limited_key_gives_way_to_the_next(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.script(status(429, retry_after="60"), part="box")
    with serve(tmp_path, cloud) as at:
        _, headers, _ = embed(at, "box/e")
        assert headers["x-localfirst-trail"] == "box=rate_limit,box=ok"
        _, headers, _ = embed(at, "box/e")
        assert headers["x-localfirst-trail"] == "box=ok"
    keys = [one["headers"]["authorization"] for one in cloud.requests("box")]
    assert keys[0] != keys[1] == keys[2]


def test_trouble_that_passes_is_tried_again(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.script(status(503), part="groq")
    with serve(tmp_path, cloud) as at:
        code, headers, _ = embed(at, "groq/e")
    assert (code, headers["x-localfirst-trail"]) == (200, "groq=unavailable,groq=ok")


def test_a_limit_is_told_with_its_status_and_kept(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.script(status(429, times=-1, retry_after="60"), part="groq")
    with serve(tmp_path, cloud) as at:
        for attempts in ("1", "0"):
            code, headers, _ = embed(at, "groq/e")
            assert (code, headers["x-localfirst-attempts"]) == (429, attempts)
            assert 50 < int(headers["retry-after"]) <= 60
    assert len(cloud.requests()) == 1


def test_the_requests_own_fault_keeps_its_status(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.script(status(400), part="groq")
    with serve(tmp_path, cloud) as at:
        assert embed(at, "groq/e")[0] == 400


def test_the_days_budget_counts_them(tmp_path: Path, cloud: FakeCloud) -> None:
    with serve(tmp_path, cloud, LOCALFIRST_BUDGET_CLOUD_REQUESTS_PER_DAY="1") as at:
        assert [embed(at, "groq/e")[0] for _ in range(2)] == [200, 503]
    assert len(cloud.requests()) == 1


def test_the_real_client_leaves_and_nobody_is_blamed(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.script({"do": "hang"}, part="groq")
    with serve(tmp_path, cloud) as at:

        async def leave() -> None:
            async with openai.AsyncOpenAI(base_url=f"{at.url}/v1", api_key="x") as client:
                asking = asyncio.ensure_future(client.embeddings.create(model="groq/e", input="a"))
                while not cloud.requests():
                    await asyncio.sleep(0.01)
                asking.cancel()
                await asyncio.wait({asking})

        asyncio.run(leave())
        assert embed(at, "groq/e")[1]["x-localfirst-trail"] == "groq=ok"

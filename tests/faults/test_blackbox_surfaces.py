"""The other surfaces under the same faults: responses, older completions, Ollama's generate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.fakes.cloud_process import fake_cloud
from tests.fakes.house import House, house
from tests.fakes.stranger import BARE, ask, provider, route

ENDS = {
    "/v1/responses": b"response.completed",
    "/v1/completions": b"[DONE]",
    "/api/generate": b'"done":true',
}
BEFORE: dict[str, dict[str, Any]] = {
    "sick": {"do": "status", "status": 500},
    "reset": {"do": "reset"},
    "hang": {"do": "hang"},
    "error": {"do": "error_event"},
    "empty": {"do": "empty"},
    "html": {"do": "html"},
}
AFTER: dict[str, dict[str, Any]] = {
    "cut": {"do": "cut", "events": 3},
    "stall": {"do": "stall", "events": 3},
    "late-error": {"do": "error_event", "events": 3},
}


def name_of(path: str, fault: str, stream: bool) -> str:
    return f"{fault}-{path.rpartition('/')[2]}-{'s' if stream else 'w'}"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    config = BARE + "[timeouts]\nfirst_token_s = 0.8\nstall_s = 0.8\n[cascade]\ndeadline_s = 6\n"
    with ExitStack() as stack:
        cloud = stack.enter_context(fake_cloud())
        for path in ENDS:
            for fault, step in (BEFORE | AFTER).items():
                for stream in (True, False):
                    name = name_of(path, fault, stream)
                    cloud.script({**step, "times": -1}, part=name)
                    config += provider(name, cloud.base_url(name)) + route(f"to-{name}", name, "ok")
        config += provider("ok", cloud.base_url("ok"))
        yield stack.enter_context(house(tmp_path_factory.mktemp("surfaces"), config=config))


async def told(at: House, path: str, fault: str, *, stream: bool) -> tuple[int, str, bytes]:
    """Status, trail and body of one request on *path*."""
    name = name_of(path, fault, stream)
    field = "input" if path == "/v1/responses" else "prompt"
    body = {"model": f"to-{name}", "stream": stream, field: "hi"}
    answer = await ask(at.url, path=path, body=body)
    return answer.status, answer.trail, answer.body


@pytest.mark.parametrize("fault", BEFORE)
def test_a_fault_before_content_is_survived(at: House, fault: str) -> None:
    cells = [(path, stream) for path in ENDS for stream in (True, False)]

    async def main() -> list[tuple[int, str, bytes]]:
        return await asyncio.gather(*(told(at, p, fault, stream=s) for p, s in cells))

    for (path, stream), (status, trail, body) in zip(cells, asyncio.run(main()), strict=True):
        assert status == 200 and trail.endswith(",ok=ok"), (path, stream, trail)
        assert b"Hello from the cloud." in body or ENDS[path] in body
        assert not stream or ENDS[path] in body


@pytest.mark.parametrize("fault", AFTER)
def test_a_fault_after_content_has_no_false_end_and_a_whole_answer_goes_on(
    at: House, fault: str
) -> None:
    async def main() -> list[tuple[int, str, bytes]]:
        streamed = [told(at, path, fault, stream=True) for path in ENDS]
        whole = [told(at, path, fault, stream=False) for path in ENDS]
        return await asyncio.gather(*streamed, *whole)

    found = asyncio.run(main())
    for path, (status, _, body) in zip(ENDS, found[:3], strict=True):
        assert status == 200
        assert ENDS[path] not in body and b"interrupted" in body, path
    for path, (status, trail, body) in zip(ENDS, found[3:], strict=True):
        assert (status, trail.rpartition(",")[2]) == (200, "ok=ok"), path
        assert json.loads(body)

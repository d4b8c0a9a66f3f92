"""The embedded engine behind the three surfaces: what a client sees when its process dies."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from localfirst.models import toy
from localfirst.models.store import Store
from tests.fakes.embedded_bench import install
from tests.fakes.house import House, house

pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")

SLOW = toy.Shape(layers=4, embedding=128, feed_forward=256, context=8192)
ASKED = {"messages": [{"role": "user", "content": "hi"}], "model": "tiny", "stream": True}
SURFACES = {
    "/v1/chat/completions": ASKED | {"max_tokens": 7000},
    "/v1/messages": ASKED | {"max_tokens": 7000},
    "/api/chat": ASKED | {"options": {"num_predict": 7000}},
    "/api/generate": {
        "model": "tiny",
        "prompt": "hi",
        "stream": True,
        "options": {"num_predict": 7000},
    },
}


TOOLS = (
    "{%- for tool in tools or [] %}tool: {{ tool.function.name }}\n{% endfor %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    toy.publish(folder / "models", shape=SLOW, params={"num_ctx": 8192})
    install(Store(folder / "models"), "handy", TOOLS)
    with house(folder, LOCALFIRST_LOCAL_ENGINE="llamacpp", LOCALFIRST_ORDER="local") as made:
        yield made


def child(served: House) -> psutil.Process:
    """The one process that holds the model."""
    (found,) = [
        each
        for each in psutil.Process(served.child.pid).children(recursive=True)
        if each.status() != psutil.STATUS_ZOMBIE
    ]
    return found


@contextlib.contextmanager
def asking(served: House, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
        connection.request("POST", path, json.dumps(body), headers)
        yield connection.getresponse()
    finally:
        connection.close()


def rest(response: http.client.HTTPResponse) -> bytes:
    """All that still comes, up to the end or to where it was cut."""
    try:
        return response.read()
    except http.client.IncompleteRead as error:
        return error.partial
    except ConnectionError:
        return b""


@pytest.mark.parametrize("path", SURFACES)
def test_an_answer_whose_process_died_ends_with_an_error_and_never_with_an_end(
    served: House, path: str
) -> None:
    with asking(served, path, SURFACES[path]) as response:
        assert response.status == 200
        said = response.read(200)
        child(served).send_signal(signal.SIGKILL)
        said += rest(response)
    last = [line for line in said.splitlines() if line][-1]
    assert b'"error"' in last
    assert b"perhaps out of memory" in last or b"engine" in last  # it says what happened
    for end in (b"[DONE]", b"message_stop", b'"done":true', b'finish_reason":"stop'):
        assert end not in said
    # The next one is answered, by another process.
    again = SURFACES[path] | {"stream": False, "max_tokens": 3, "options": {"num_predict": 3}}
    with asking(served, path, again) as response:
        assert response.status == 200, response.read()
        assert json.loads(response.read())


@pytest.mark.parametrize("path", SURFACES)
def test_a_process_that_is_gone_before_the_answer_costs_no_request(
    served: House, path: str
) -> None:
    short = SURFACES[path] | {"stream": False, "max_tokens": 3, "options": {"num_predict": 3}}
    with asking(served, path, short) as response:
        assert response.status == 200
        response.read()
    child(served).send_signal(signal.SIGKILL)
    with asking(served, path, short) as response:
        assert (response.status, response.getheader("x-localfirst-rung")) == (200, "local")
        response.read()


# --- a tool that has to be called ------------------------------------------------------------

FUNCTION = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
CALLING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "tools": [FUNCTION],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 400,
    },
    "/v1/messages": {
        "tools": [{"name": "get_weather", "input_schema": CITY}],
        "tool_choice": {"type": "any"},
        "max_tokens": 400,
    },
}


def arguments(path: str, stream: bool, body: bytes) -> tuple[str, Any]:
    """The name and the arguments of the one call in an answer."""
    if not stream:
        found = json.loads(body)
        if path == "/v1/messages":
            (block,) = [each for each in found["content"] if each["type"] == "tool_use"]
            assert found["stop_reason"] == "tool_use"
            return block["name"], block["input"]
        (choice,) = found["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        return call["function"]["name"], json.loads(call["function"]["arguments"])
    lines = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
    events = [json.loads(line) for line in lines]
    if path == "/v1/messages":
        starts = [e["content_block"] for e in events if e["type"] == "content_block_start"]
        deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
        return starts[0]["name"], json.loads("".join(d["partial_json"] for d in deltas))
    calls = [
        c for e in events for each in e["choices"] for c in each["delta"].get("tool_calls", ())
    ]
    said = "".join(call["function"].get("arguments", "") for call in calls)
    return calls[0]["function"]["name"], json.loads(said)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", CALLING)
def test_a_call_that_has_to_be_made_reaches_the_client_valid(
    served: House, path: str, stream: bool
) -> None:
    with asking(served, path, ASKED | {"model": "handy", "stream": stream} | CALLING[path]) as got:
        body = got.read()
        assert (got.status, got.getheader("x-localfirst-rung")) == (200, "local"), body
    name, given = arguments(path, stream, body)
    assert name == "get_weather"
    assert given["city"] in {"Rome", "Oslo"}

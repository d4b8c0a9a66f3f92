"""The selftest's own client: one streamed question to a gateway on loopback, and its health."""

from __future__ import annotations

import asyncio
import http.client
import json

import msgspec

ANSWER_S = 60.0
PAUSE_S = 0.02


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What came back: the text, who gave it, who failed before, or the error's body."""

    text: str = ""
    route: str = ""
    trail: str = ""
    error: str = ""


def ask(port: int, model: str) -> Answered:
    """Send one streamed chat request and read it to its end; blocking."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 32,
        "messages": [{"role": "user", "content": "Say something."}],
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        route = response.headers.get("x-localfirst-route", "")
        trail = response.headers.get("x-localfirst-trail", "")
        data = response.read().decode(errors="replace")
    finally:
        connection.close()
    if response.status != 200:
        return Answered(route=route, trail=trail, error=data[:300])
    return Answered(text=text_of(data), route=route, trail=trail)


def text_of(stream: str) -> str:
    """The text of an OpenAI event stream; "" unless it came to its end."""
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line[:6] == "data: "]
    if not events or events[-1] != "[DONE]":
        return ""
    choices = [json.loads(event).get("choices") for event in events[:-1]]
    return "".join(one[0]["delta"].get("content") or "" for one in choices if one)


async def healthy(port: int) -> None:
    """Return when the gateway at *port* answers; whoever waits sets the limit."""
    while not await asyncio.to_thread(answers, port):
        # Nothing to wait on but time; the clock of the house is not ours to have here.
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=PAUSE_S)


def answers(port: int) -> bool:
    """Whether the gateway's health can be asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/localfirst/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

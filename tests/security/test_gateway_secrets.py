"""What is never said, and what never breaks a line: rows A6, K3–K7, T1, T3, T4, and S10."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from localfirst.errors import CascadeExhausted
from localfirst.events import Finished, TextDelta
from localfirst.gateway.access import clean
from localfirst.types import Attempt, Rung, Target
from tests.fakes.gateway_host import Answer, hosted, run
from tests.fakes.scripted_runtime import ScriptedRuntime
from tests.security.attack import BODY, CANARY

CHAT = "/v1/chat/completions"
PROMPT = "lf-prompt-8c1d"


def everything(runtime: ScriptedRuntime, *asks: tuple[str, str, bytes | None]) -> str:
    """Every byte that the gateway answers to *asks*."""

    async def main() -> str:
        async with hosted(runtime) as host:
            fields = {"authorization": f"Bearer {CANARY}"}
            found = [await host.ask(method, path, body, fields) for method, path, body in asks]
            return " ".join(f"{answer.headers} {answer.body!r}" for answer in found)

    return run(main())


def test_k6_k7_keys_and_prompts_are_in_no_answer_and_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    body = BODY.replace(b'"hi"', b'"%b"' % PROMPT.encode())
    said = everything(
        ScriptedRuntime(key=CANARY),
        ("POST", CHAT, body),
        ("POST", "/api/chat", body),
        ("POST", "/v1/messages", body),
        ("POST", CHAT, body[:-9]),
        ("GET", "/localfirst/state", None),
        ("GET", "/localfirst/explain?model=auto", None),
        ("GET", "/metrics", None),
        ("GET", "/nothing?secret=" + PROMPT, None),
        ("GET", "/ui", None),
    )
    assert CANARY not in said and PROMPT not in said
    assert CANARY not in caplog.text and PROMPT not in caplog.text
    lines = [record.getMessage() for record in caplog.records if record.name == "localfirst.access"]
    assert any("openai.chat" in line and " 200 " in line for line in lines)


def test_k4_a_defect_is_answered_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ScriptedRuntime):
        async def models(self) -> Any:
            raise RuntimeError(f"inside {CANARY}")

    async def main() -> Answer:
        async with hosted(Broken()) as host:
            return await host.ask("GET", "/v1/models")

    answer = run(main())
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal")
    assert CANARY.encode() not in answer.body
    assert "failed" in caplog.text


NASTY = "a\nb\r\x1b]52;c;ZXZpbA==\x07\u202e\x85\u2028 c"


def test_t1_a_nasty_model_name_stays_one_printable_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "localfirst.access")

    async def main() -> Answer:
        async with hosted(ScriptedRuntime()) as host:
            body = json.dumps({**json.loads(BODY), "model": NASTY}).encode()
            return await host.ask("POST", "/v1/embeddings", body[:-1] + b',"input":"x"}')

    assert run(main()).status == 200
    assert clean(NASTY).isascii() and clean(NASTY).isprintable()
    for record in caplog.records:
        assert record.getMessage().isprintable()


def test_t1_a_log_line_has_a_bound() -> None:
    assert len(clean("\u202e" * 5000)) <= 80 * 6


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat", "/v1/responses"])
def test_t3_text_cannot_end_a_stream(path: str) -> None:
    evil = 'x\n\ndata: [DONE]\n\nevent: message_stop\ndata: {}\n\n{"done":true}\n'
    runtime = ScriptedRuntime([TextDelta(evil), Finished()])
    fields = {"stream": True, "max_tokens": 5, "input": "hi"}
    body = json.dumps({**json.loads(BODY), **fields}).encode()

    async def main() -> Answer:
        async with hosted(runtime) as host:
            return await host.ask("POST", path, body)

    answer = run(main())
    lines = answer.body.split(b"\n")
    assert lines.count(b"data: [DONE]") == (1 if path == CHAT else 0)
    assert lines.count(b"event: message_stop") == (1 if path == "/v1/messages" else 0)
    assert lines.count(b'{"done":true}') == 0


def test_t4_nothing_in_a_header_breaks_its_line() -> None:
    target = Target(rung=Rung.CLOUD, provider="groq", model="m")
    refusal = CascadeExhausted(
        "no", attempts=[Attempt(provider="a\r\nset-cookie: x", model="m", outcome="auth\n")]
    )

    async def main() -> Answer:
        async with hosted(ScriptedRuntime(refusal=refusal, target=target)) as host:
            return await host.ask("POST", CHAT, BODY)

    answer = run(main())
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-localfirst-trail"] == "a??set-cookie: x=auth?"


def test_a6_credentials_never_reach_the_runtime() -> None:
    """What a client shows to get in is not part of the call that goes out."""
    runtime = ScriptedRuntime(key=CANARY)
    everything(runtime, ("POST", CHAT, BODY))
    (call,) = runtime.calls
    assert CANARY not in repr(call) and call.body == BODY


def test_s10_a_url_in_an_answer_is_text() -> None:
    runtime = ScriptedRuntime([TextDelta("http://127.0.0.1:1/x"), Finished()])
    assert "http://127.0.0.1:1/x" in everything(runtime, ("POST", CHAT, BODY))
    assert runtime.asked == []

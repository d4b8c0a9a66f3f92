"""The chat surface over a real socket: what a client of OpenAI sees."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.errors import CascadeExhausted, InvalidRequest, StreamInterrupted, UnknownModel
from localfirst.events import Finished, Progress, Relayed, TextDelta
from localfirst.types import Attempt, FailureClass
from tests.fakes.gateway_host import Answer, hosted, run
from tests.fakes.scripted_runtime import HELLO, ScriptedRuntime

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> bytes:
    asked = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields}
    return json.dumps(asked).encode()


def chat(runtime: ScriptedRuntime, **fields: Any) -> Answer:
    async def main() -> Answer:
        async with hosted(runtime) as host:
            return await host.ask("POST", CHAT, body(**fields))

    return run(main())


def test_an_answer_is_a_chat_completion_that_says_who_gave_it() -> None:
    answer = chat(ScriptedRuntime())
    assert answer.status == 200 and answer.complete
    assert answer.json["choices"][0]["message"]["content"] == "Hello"
    assert answer.json["usage"]["total_tokens"] == 5
    assert answer.headers["x-localfirst-route"] == "local/llama3.2:3b"
    assert answer.headers["x-localfirst-rung"] == "local"
    assert answer.headers["x-localfirst-request-id"].startswith("req_")


def test_a_stream_ends_with_done() -> None:
    answer = chat(ScriptedRuntime(), stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.complete and answer.body.endswith(b"data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in answer.body.split(b"\n\n") if line[6:7] == b"{"]
    texts = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(texts) == "Hello"


def test_relayed_bytes_are_written_as_they_came() -> None:
    odd = b'data: {"odd" : 1}\r\n\r\n'
    runtime = ScriptedRuntime(
        [Relayed(odd, content=True), Relayed(b"data: [DONE]\n\n", final=True)]
    )
    answer = chat(runtime, stream=True)
    assert answer.body == odd + b"data: [DONE]\n\n"
    assert runtime.calls[0].relay and runtime.calls[0].body == body(stream=True)


def test_a_relayed_json_answer_is_written_as_it_came() -> None:
    whole = b'{ "id":"x",\n "choices":[] }'
    answer = chat(ScriptedRuntime([Relayed(whole, content=True, final=True)]))
    assert answer.body == whole
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_a_model_that_loads_is_waited_for_without_a_word() -> None:
    """The head must not go out before it is known who answers."""
    loading = [Progress("queued"), Progress("loading", "llama3.2:3b")]
    answer = chat(ScriptedRuntime([*loading, *HELLO]), stream=True)
    assert answer.status == 200
    assert answer.body.startswith(b"data: ")
    assert b"loading" not in answer.body


def test_a_download_is_seen_as_comments_in_the_same_answer() -> None:
    moving = Progress("pulling", "llama2:7b", 123, 1000)
    answer = chat(ScriptedRuntime([moving, *HELLO]), stream=True)
    first, _, rest = answer.body.partition(b"\n\n")
    assert first.startswith(b": pulling llama2:7b 12")
    assert rest.startswith(b"data: {") and rest.endswith(b"[DONE]\n\n")


def test_a_stream_that_breaks_ends_with_an_error_and_without_done() -> None:
    broken = StreamInterrupted("the upstream was cut")
    answer = chat(ScriptedRuntime([TextDelta("Hel"), broken]), stream=True)
    assert not answer.complete
    assert b"[DONE]" not in answer.body
    last = answer.body.rstrip().split(b"\n\n")[-1]
    assert json.loads(last[6:])["error"]["code"] == "stream-interrupted"


def test_when_nobody_answers_every_attempt_is_named() -> None:
    attempts = [
        Attempt(provider="groq", model="m", outcome="rate_limit", status=429),
        Attempt(provider="openai", model="n", outcome="auth", status=401),
    ]
    refusal = CascadeExhausted(
        "nobody could answer",
        attempts=attempts,
        skipped=[("pull", "serverless")],
        dominating=FailureClass.RATE_LIMIT,
        http_status=429,
        retry_after_s=2.2,
    )
    answer = chat(ScriptedRuntime(refusal=refusal))
    assert answer.status == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["x-localfirst-trail"] == "groq=rate_limit,openai=auth"
    assert answer.headers["x-localfirst-attempts"] == "2"
    assert answer.headers["x-localfirst-egress"] == "groq,openai"
    named = [(one["provider"], one["outcome"]) for one in answer.json["error"]["attempts"]]
    assert named == [("groq", "rate_limit"), ("openai", "auth"), ("pull", "skipped")]


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (b'{"model":"auto"}', "messages"),
        (b'{"model":1,"messages":[]}', "model"),
        (b'{"model":"auto","messages":"hi"}', "messages"),
        (b'{"model":"auto","messages":[{"role":"user","content":"x"}],"api_base":"x"}', "api_base"),
    ],
)
def test_a_wrong_field_is_named(sent: bytes, field: str) -> None:
    async def main() -> Answer:
        async with hosted(ScriptedRuntime()) as host:
            return await host.ask("POST", CHAT, sent)

    answer = run(main())
    assert answer.status == 400
    assert answer.json["error"]["param"] == field


def test_an_unknown_model_is_404() -> None:
    answer = chat(ScriptedRuntime(refusal=UnknownModel("model `nope` is not known")))
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


def test_headers_make_a_request_stricter() -> None:
    runtime = ScriptedRuntime()

    async def main() -> list[Answer]:
        async with hosted(runtime) as host:
            strict = {"x-localfirst-privacy": "local-only", "x-localfirst-fallback": "off"}
            odd = {"x-localfirst-privacy": "perhaps"}
            return [await host.ask("POST", CHAT, body(), given) for given in (strict, odd)]

    good, bad = run(main())
    assert (good.status, bad.status) == (200, 400)
    assert bad.json["error"]["param"] == "x-localfirst-privacy"
    assert runtime.calls[0].local_only and not runtime.calls[0].fallback


def test_an_invalid_request_of_the_cascade_keeps_its_status() -> None:
    answer = chat(ScriptedRuntime(refusal=InvalidRequest("`top_p` is wrong", field="top_p")))
    assert (answer.status, answer.json["error"]["param"]) == (400, "top_p")


def test_a_finish_without_usage_is_an_answer() -> None:
    assert chat(ScriptedRuntime([TextDelta("x"), Finished()])).json["usage"]["total_tokens"] == 0

"""Destinations, names, JSON, ranges: rows S1–S4, §4.6, E11, E12 and §4.8 of the attack table."""

from __future__ import annotations

import json

import pytest

from tests.fakes.gateway_host import Answer, hosted, run
from tests.fakes.scripted_runtime import ScriptedRuntime
from tests.security.attack import BODY, code_of

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
NATIVE = "/api/chat"
SURFACES = (CHAT, "/v1/responses", MESSAGES, NATIVE)


def send(path: str, body: bytes, runtime: ScriptedRuntime | None = None) -> Answer:
    runtime = runtime or ScriptedRuntime()

    async def main() -> Answer:
        async with hosted(runtime) as host:
            answer = await host.ask("POST", path, body)
            assert (await host.ask("HEAD", "/")).status == 200
            return answer

    answer = run(main())
    if answer.status >= 400:
        assert runtime.calls == [] and runtime.puller.started == {}
        assert len(answer.body) <= 1024
    return answer


def chat_with(**fields: object) -> bytes:
    return json.dumps({**json.loads(BODY), "max_tokens": 9, **fields}).encode()


REFUSED = (
    "api_base", "base_url", "api_key", "extra_headers", "extra_body", "proxy", "organization",
)  # fmt: skip


@pytest.mark.parametrize("path", SURFACES)
@pytest.mark.parametrize("field", REFUSED)
def test_s1_a_field_that_chooses_the_destination_is_refused(path: str, field: str) -> None:
    answer = send(path, chat_with(**{field: "http://evil.example/", "input": "hi"}))
    assert (answer.status, code_of(answer)) == (400, "field-not-allowed")
    assert b"evil.example" not in answer.body


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("evil.example/a/b", 403, "registry-not-allowed"),
        ("127.0.0.1:5000/library/tiny", 403, "registry-not-allowed"),
        ("169.254.169.254/a/b:c", 403, "registry-not-allowed"),
        ("hf.co@evil/a/b", 400, "model-name-invalid"),
        ("http://user@evil/a/b", 400, "model-name-invalid"),
    ],
)
@pytest.mark.parametrize("path", ["/api/pull", "/localfirst/pulls"])
def test_s2_only_allowed_registries_are_asked(
    path: str, model: str, status: int, code: str
) -> None:
    answer = send(path, json.dumps({"model": model}).encode())
    assert (answer.status, code_of(answer)) == (status, code)


def test_s2_insecure_is_not_for_requests() -> None:
    answer = send("/api/pull", b'{"model":"http://169.254.169.254/a/b:c","insecure":true}')
    assert answer.status == 400


@pytest.mark.parametrize("path", ["/api/pull", "/api/show", NATIVE, "/api/generate"])
def test_s3_two_spellings_of_the_model_are_refused(path: str) -> None:
    answer = send(path, chat_with(model="ok", name="evil.example/x/y"))
    assert answer.status == 400


@pytest.mark.parametrize("url", ["file:///etc/passwd", "//host/x", "gopher://x", "data:text,x"])
def test_s4_an_image_is_data_or_https(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [part]}]
    answer = send("/v1/responses", chat_with(input=messages))
    assert answer.status == 400


NAMES = (
    "../../etc/passwd", "..", "a/../b", "/abs", "a\\..\\b", "a%2f..", ".hidden", "-rf", "a b",
    "a\n", "a\0b", "x" * 5000, "\uff4clama", "a@sha256:abc", "\U0001f600", "a\u202eb", "$(id)",
    ";ls", "a:b:c/d",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:24])
@pytest.mark.parametrize("path", ["/api/pull", "/api/show", "/localfirst/pulls"])
def test_n1_names_outside_the_grammar_are_refused(path: str, name: str) -> None:
    answer = send(path, json.dumps({"model": name}).encode())
    assert (answer.status, code_of(answer)) == (400, "model-name-invalid")


@pytest.mark.parametrize("name", ["", None])
def test_n1_no_name_is_no_model(name: str | None) -> None:
    assert send("/api/pull", json.dumps({"model": name}).encode()).status == 400


FULL = BODY[:-1] + b',"input":"hi","max_tokens":9}'

TEXTS = {
    "deep": b"[" * 100_000,
    "deep-inside": b'{"model":"a","messages":' + b'[{"a":' * 50_000,
    "nan": FULL[:-1] + b',"temperature":NaN}',
    "infinity": FULL[:-1] + b',"temperature":Infinity}',
    "1e999": FULL[:-1] + b',"temperature":1e999}',
    "digits": FULL[:-1] + b"9" * 5000 + b"}",
    "surrogate": FULL.replace(b'"hi"', b'"\\ud800"'),
    "duplicate": b'{"model":"a",' + FULL[1:],
    "utf-16": FULL.decode().encode("utf-16"),
    "bom": b"\xef\xbb\xbf" + FULL,
    "invalid-utf-8": FULL.replace(b"hi", b"\xff"),
    "overlong-utf-8": FULL.replace(b"hi", b"\xc0\xaf"),
    "list": b"[" + FULL + b"]",
    "text": b'"hi"',
    "number": b"1",
    "null": b"null",
    "nothing": b"",
    "spaces": b"   ",
    "cut": FULL[:-5],
    "two": FULL + FULL,
    "comment": FULL + b"// x",
}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, NATIVE, "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("body", TEXTS.values(), ids=TEXTS.keys())
def test_j1_json_that_is_not_plain_is_refused(path: str, body: bytes) -> None:
    assert send(path, FULL).status == 200, "without its fault the body is honest"
    assert send(path, body).status == 400


RANGES = {
    "true-tokens": (CHAT, {"max_tokens": True}),
    "text-tokens": (CHAT, {"max_tokens": "9"}),
    "true-message-tokens": (MESSAGES, {"max_tokens": True}),
    "true-predict": (NATIVE, {"options": {"num_predict": True}}),
    "true-response-tokens": ("/v1/responses", {"input": "x", "max_output_tokens": True}),
    "n": (CHAT, {"n": 10**9}),
    "negative-tokens": (CHAT, {"max_tokens": -1}),
    "endless-tokens": (CHAT, {"max_tokens": 10**18}),
    "no-tokens": (MESSAGES, {"max_tokens": 0}),
    "endless-message": (MESSAGES, {"max_tokens": 10**18}),
    "hot": (CHAT, {"temperature": 1e9}),
    "text-temperature": (CHAT, {"temperature": "hot"}),
    "context": (NATIVE, {"options": {"num_ctx": 10**12}}),
    "context-type": (NATIVE, {"options": {"num_ctx": "4096"}}),
    "predict": (NATIVE, {"options": {"num_predict": -(10**9)}}),
    "keep-alive": (NATIVE, {"keep_alive": "999999h"}),
    "keep-alive-number": (NATIVE, {"keep_alive": 10**12}),
    "messages": (CHAT, {"messages": [{"role": "user", "content": "x"}] * 10_000}),
    "tools": (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}] * 2_000}),
    "stops": (CHAT, {"stop": ["x"] * 100_000}),
    "images": (NATIVE, {"messages": [{"role": "user", "content": "x", "images": ["aGk="] * 1000}]}),
    "texts": ("/v1/embeddings", {"input": ["x"] * 10_000}),
}


@pytest.mark.parametrize(("path", "fields"), RANGES.values(), ids=RANGES.keys())
def test_e11_e12_numbers_and_lists_have_bounds(path: str, fields: dict[str, object]) -> None:
    assert send(path, chat_with(**fields)).status == 400


def test_dangerous_looking_but_legal_bodies_pass_untouched() -> None:
    runtime = ScriptedRuntime()
    body = chat_with(__proto__={"x": 1}, metadata={"$ref": "#/x"})
    assert send(CHAT, body, runtime).status == 200
    assert runtime.calls[0].body == body

"""What an error says in its headers."""

from __future__ import annotations

import json

import pytest

from localfirst.errors import AccessDenied, CascadeExhausted, LocalFirstError, UnknownModel
from localfirst.gateway.refusal import attempt_headers, error_body_for, error_headers, refusal
from localfirst.types import Attempt, FailureClass


def headers_of(error: LocalFirstError) -> dict[bytes, bytes]:
    return dict([*error_headers(error), *attempt_headers(error, "req_7")])


def exhausted(dominating: FailureClass, retry_after_s: float | None = None) -> CascadeExhausted:
    return CascadeExhausted("nobody", dominating=dominating, retry_after_s=retry_after_s)


@pytest.mark.parametrize("hopeless", [FailureClass.CONFIG, FailureClass.AUTH])
def test_a_client_is_told_not_to_repeat_what_only_configuration_mends(
    hopeless: FailureClass,
) -> None:
    assert headers_of(exhausted(hopeless))[b"x-should-retry"] == b"false"


@pytest.mark.parametrize("passing", [FailureClass.NETWORK, FailureClass.RATE_LIMIT])
def test_a_client_may_repeat_what_passes(passing: FailureClass) -> None:
    found = headers_of(exhausted(passing, 1.2))
    assert b"x-should-retry" not in found
    assert found[b"retry-after"] == b"2"


@pytest.mark.parametrize("name", [b"x-localfirst-request-id", b"x-request-id", b"request-id"])
def test_every_client_finds_the_request_id_where_it_looks(name: bytes) -> None:
    assert headers_of(UnknownModel("model `x` not found"))[name] == b"req_7"


def test_a_wait_of_nothing_is_still_a_second() -> None:
    assert headers_of(exhausted(FailureClass.NETWORK, 0.0))[b"retry-after"] == b"1"
    assert b"retry-after" not in headers_of(exhausted(FailureClass.NETWORK))


def tried(*attempts: tuple[str, bool]) -> CascadeExhausted:
    error = exhausted(FailureClass.NETWORK)
    error.attempts = tuple(
        Attempt(provider=name, model="m", outcome="network", sent=sent) for name, sent in attempts
    )
    return error


def test_an_error_tells_who_was_asked_and_who_saw_the_request() -> None:
    found = headers_of(tried(("local", True), ("groq", True), ("groq", True), ("mistral", False)))
    assert found[b"x-localfirst-attempts"] == b"3"
    trail = b"local=network,groq=network,groq=network,mistral=network"
    assert found[b"x-localfirst-trail"] == trail
    assert found[b"x-localfirst-egress"] == b"groq"
    assert headers_of(tried(("local", True), ("pull", True)))[b"x-localfirst-egress"] == b"none"
    # Who knows it better says so: a server of one's own is nobody else's.
    error = tried(("box", True))
    error.egress = ()
    assert headers_of(error)[b"x-localfirst-egress"] == b"none"


def test_names_in_headers_break_no_line() -> None:
    found = headers_of(tried(("a\r\nSet-Cookie: x=é", True)))[b"x-localfirst-trail"]
    assert found == b"a??Set-Cookie: x=?=network"
    assert len(headers_of(tried(("a" * 5000, True)))[b"x-localfirst-trail"]) == 1000


@pytest.mark.parametrize(
    ("path", "headers", "shape"),
    [
        (b"/api/chat", (), {"error"}),
        (b"/v1/chat/completions", (), {"error"}),
        (b"/v1/messages", (), {"type", "error"}),
        (b"/v1/messages/count_tokens", (), {"type", "error"}),
        (b"/v1/models", (b"anthropic-version",), {"type", "error"}),
        (b"/v1/models/x", (b"anthropic-version",), {"type", "error"}),
        (b"/v1/models", (), {"error"}),
        (b"/v1/chat/completions", (b"anthropic-version",), {"error"}),
        (b"/api/tags", (b"anthropic-version",), {"error"}),
    ],
)
def test_an_error_has_the_shape_of_the_api_that_was_asked(
    path: bytes, headers: tuple[bytes, ...], shape: set[str]
) -> None:
    body = json.loads(error_body_for(path, headers)(UnknownModel("no"), request_id="req_7"))
    assert shape <= set(body)
    assert ("type" in body) == ("type" in shape)
    assert isinstance(body["error"], str) == path.startswith(b"/api/")


def test_a_refusal_before_any_handler_is_a_whole_answer_that_ends_the_connection() -> None:
    error = AccessDenied("no", code="method-not-allowed", status=405, allow=("GET", "HEAD"))
    head, _, body = refusal(error, b"/api/tags", date=b"today").partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 405 ")
    assert {b"connection: close", b"date: today", b"allow: GET, HEAD",
            b"x-localfirst-code: method-not-allowed", b"x-content-type-options: nosniff",
            b"content-type: application/json; charset=utf-8",
            b"content-length: %d" % len(body)} <= set(lines)  # fmt: skip
    assert isinstance(json.loads(body)["error"], str)
    key = AccessDenied("no", code="key-required", status=401)
    assert (b"www-authenticate", b"Bearer") in error_headers(key)
    assert b"www-authenticate" not in dict(error_headers(error))

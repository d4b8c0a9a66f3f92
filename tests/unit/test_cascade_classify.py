"""Every error seen in the wild gets its class and its wait; unseen ones of its kind as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.cascade import classify, classify_body, classify_wait
from localfirst.errors import (
    Breakage,
    EngineUnavailable,
    InsufficientResources,
    PrivacyRefused,
    PullError,
    PullStalled,
    UpstreamBroken,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.types import FailureClass, Scope

DATA = Path(__file__).parent.parent / "data"
ERRORS = [json.loads(line) for line in (DATA / "errors.jsonl").read_text().splitlines()]
WAITS = json.loads((DATA / "retry_cases.json").read_text())["cases"]
NOW = 1_795_176_000.0  # 2026-11-20T12:00:00Z, as in retry_cases.json


def refused(status: int, body: Any = "", headers: dict[str, str] | None = None, **rest: Any) -> Any:
    raw = body if isinstance(body, str) else json.dumps(body)
    error = UpstreamRefused(status, raw.encode(), tuple((headers or {}).items()))
    return classify.failure(
        rest.get("provider", "groq"), error, model=rest.get("model", "m"), now_unix=NOW
    )


@pytest.mark.parametrize("case", ERRORS, ids=[f"{n}-{c['provider']}" for n, c in enumerate(ERRORS)])
def test_an_error_from_the_wild_gets_its_class_and_wait(case: dict[str, Any]) -> None:
    found = refused(case["status"], case["body"], case["headers"], provider=case["provider"])
    assert found.cls == case["expected_class"]
    assert found.retry_after_s == pytest.approx(case["retry_after_s"])


@pytest.mark.parametrize("case", WAITS, ids=[c["kind"] + ":" + c["value"][:30] for c in WAITS])
def test_a_wait_is_read_in_every_spelling(case: dict[str, Any]) -> None:
    value = case["value"]
    found = {
        "duration": lambda: classify_wait.duration(value),
        "retry-after": lambda: classify_wait.retry_after(value, NOW),
        "retry-after-ms": lambda: classify_wait.in_headers({"retry-after-ms": value}, NOW),
        "text": lambda: classify_wait.in_text(value, NOW),
    }.get(case["kind"], lambda: classify_wait.reset(value, NOW))()
    assert found == pytest.approx(case["expect_s"])


# Wordings that no corpus line has, of the kinds it has.
UNSEEN = [
    (429, {"error": {"message": "Rate limit exceeded, try again in 2 minutes"}}, "rate_limit"),
    (429, {"error": {"message": "You have run out of credits"}}, "quota"),
    (403, {"error": "Your account has been disabled"}, "auth"),
    (400, {"error": {"message": "This model's maximum context length is 8192 tokens"}},
     "context_length"),
    (400, {"message": "prompt is too long: 9 tokens > 8 maximum"}, "context_length"),
    (404, {"detail": "Not Found"}, "model_not_found"),
    (400, {"error": {"message": "model `foo/bar` not found"}}, "model_not_found"),
    (422, {"detail": [{"loc": ["body", "top_k"], "msg": "extra"}]}, "invalid_request"),
    (500, "Internal Server Error", "unavailable"),
    (503, "<html><title>503</title></html>", "unavailable"),
    (520, "", "unavailable"),
    (504, "<html>gateway</html>", "timeout"),
    (200, {"error": {"message": "upstream overloaded"}}, "unavailable"),
    (200, {"error": {"code": 429, "message": "slow down"}}, "rate_limit"),
    (402, "", "quota"),
    (401, "", "auth"),
    (400, {"error": {"code": "content_filter"}}, "content_filter"),
    (451, {"error": {"message": "not available in your country"}}, "config"),
    (418, "teapot", "invalid_request"),
    (429, {"error": {"message": "Daily request limit reached for this model"}}, "quota"),
    (403, {"error": {"message": "Your credit has been exhausted"}}, "quota"),
    (403, {"error": {"message": "Key limit exceeded (total limit)", "code": 403}}, "quota"),
    (404, {"error": {"type": "not_found_error", "message": "model: claude-2.0"}},
     "model_not_found"),
    (400, {"message": "Input is too long."}, "context_length"),
    (400, {"error": {"message": "Your input was rejected by our safety system"}},
     "content_filter"),
    (200, {"error": "an error was encountered while running the model"}, "unavailable"),
    (503, {"error": {"message": "The model is currently loading"}}, "unavailable"),
    (500, {"error": {"message": "insufficient balance"}}, "quota"),
    (403, "<html>Just a moment...</html>", "unavailable"),
    (407, "proxy authentication", "config"),
    (403, {"error": {"message": "Your API key does not have permission"}}, "auth"),
    (500, {"error": {"message": "CUDA out of memory"}}, "unavailable"),
    (400, {"error": {"message": "'messages' is a required property"}}, "invalid_request"),
    (429, {"error": {"message": "tokens per day (TPD): Limit 9. Try again in 9m"}}, "rate_limit"),
    (500, {"error": {"message": "The model produced output that does not match the expected "
                                "peg-native format", "type": "server_error"}}, "invalid_response"),
    (500, {"error": '{"error":{"code":500,"message":"The model produced output that does not '
                    'match the expected peg-native format"}}'}, "invalid_response"),
    # By the status alone, by a code alone, by words alone.
    (413, "", "context_length"),
    (412, {"error": {"message": "Account suspended: unpaid invoice"}}, "quota"),
    (403, {"error": {"details": [{"quotaId": "RequestsPerDayPerProject"}]}}, "quota"),
    (400, {"error": {"code": "tool_use_failed", "message": "x"}}, "invalid_response"),
    (403, {"error": {"code": "unsupported_country_region_territory", "message": "x"}}, "config"),
    (500, {"error": {"code": "context_length_exceeded", "message": "x"}}, "context_length"),
    (400, {"error": {"code": "context_length_exceeded", "message": "x"}}, "context_length"),
    (429, {"error": {"message": "Request too large for gpt-4o"}}, "context_length"),
    (400, {"error": {"code": "invalid_prompt", "message": "flagged by our policy"}},
     "content_filter"),
    (400, {"error": {"code": "invalid_api_key", "message": "x"}}, "auth"),
    (500, {"error": {"message": "upstream timed out"}}, "timeout"),
    (400, {"error": {"code": "overloaded_error", "message": "x"}}, "unavailable"),
    (400, {"error": {"code": "rate_limit_exceeded", "message": "x"}}, "rate_limit"),
    (410, "", "model_not_found"),
    # Words of one kind under a status of another.
    (500, {"error": {"message": "model `x` not found"}}, "unavailable"),
    (429, {"error": {"message": "model `x` not found"}}, "rate_limit"),
    (500, {"error": {"message": "invalid api key"}}, "unavailable"),
    (429, {"error": {"message": "invalid api key"}}, "rate_limit"),
    (500, {"error": {"code": "rate_limit_exceeded", "message": "x"}}, "unavailable"),
    (400, {"error": {"code": "invalid_prompt", "message": "bad"}}, "invalid_request"),
    (400, {"error": {"message": "bad value for limit: 0"}}, "invalid_request"),
    (500, {"error": {"message": "You have reached your daily limit"}}, "unavailable"),
    (500, {"error": {"message": "prompt is too long"}}, "unavailable"),
    (400, {"error": {"message": "prompt is too long: would exceed your account's rate limit"}},
     "invalid_request"),
    (503, {"error": {"error_type": "rate_limit_exceeded", "message": "overloaded"}}, "rate_limit"),
    (429, {"error": {"error_type": "rate_limit_exceeded", "message": "insufficient credits"}},
     "quota"),
    (400, {"error": {"error_type": "invalid_request",
                     "message": "maximum context length is 8 tokens"}}, "context_length"),
    (400, {"error": {"message": "Invalid 'user': string too long. Expected at most 64",
                     "param": "user", "code": "string_too_long"}}, "invalid_request"),
    (429, {"error": {"message": "Please reduce the length of your prompt and try again"}},
     "rate_limit"),
    (400, {"error": {"message": "API key not valid. Please pass a valid one."}}, "auth"),
    (200, "<html>Sign in</html>", "invalid_response"),
    (418, "<html>odd</html>", "unavailable"),
    (400, "<html>nginx: bad request</html>", "unavailable"),
    (200, {"error": {"message": "Too many requests"}}, "rate_limit"),
    (200, {"error": {"message": "odd"}}, "unknown"),
    (502, {"error": {"error_type": "provider_unavailable",
                     "message": "the model `x` was not found"}}, "unavailable"),
    (400, {"error": {"error_type": "timeout", "message": "model not found"}}, "timeout"),
    (400, {"error": {"message": "Failed to initialize samplers: std::exception",
                     "type": "invalid_request_error"}}, "invalid_response"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "expected"), UNSEEN)
def test_an_unseen_error_of_a_known_kind_gets_its_class(
    status: int, body: Any, expected: str
) -> None:
    assert refused(status, body).cls == expected


@pytest.mark.parametrize("breakage", list(Breakage))
def test_every_breakage_has_a_class_that_another_candidate_may_answer(breakage: Breakage) -> None:
    found = classify.failure("groq", UpstreamBroken(breakage), model="m", now_unix=NOW)
    expected = {
        FailureClass.NETWORK,
        FailureClass.TIMEOUT,
        FailureClass.UNAVAILABLE,
        FailureClass.INVALID_RESPONSE,
    }
    assert found.cls in expected
    assert ("timeout" in breakage) == (found.cls is FailureClass.TIMEOUT)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), FailureClass.TIMEOUT),
        (ConnectionRefusedError(111, "Connection refused"), FailureClass.NETWORK),
        (UpstreamNonsense("empty"), FailureClass.INVALID_RESPONSE),
        (EngineUnavailable("no engine"), FailureClass.UNAVAILABLE),
        (ZeroDivisionError(), FailureClass.UNKNOWN),
    ],
)
def test_what_slips_past_a_backend_is_classified(error: Exception, expected: FailureClass) -> None:
    assert classify.failure("x", error, model="m", now_unix=NOW).cls is expected


NO_ROOM = InsufficientResources("no room", kind="memory", needed_bytes=2, available_bytes=1)
OURS = [
    (PrivacyRefused("it may not leave"), FailureClass.CONFIG, Scope.REQUEST, "it may not leave"),
    (NO_ROOM, FailureClass.CONFIG, Scope.MODEL, "no room"),
    (EngineUnavailable("no engine"), FailureClass.UNAVAILABLE, Scope.PROVIDER, "no engine"),
    (PullStalled("it stands"), FailureClass.TIMEOUT, Scope.MODEL, "it stands"),
    (PullError("torn"), FailureClass.UNAVAILABLE, Scope.MODEL, "torn"),
    (UpstreamNonsense("half a frame"), FailureClass.INVALID_RESPONSE, Scope.MODEL, "half a frame"),
    (UpstreamNonsense(), FailureClass.INVALID_RESPONSE, Scope.MODEL, "the answer was empty or "
     "malformed"),
    (OSError(113, "No route to host"), FailureClass.NETWORK, Scope.PROVIDER, "No route to host"),
    (ConnectionResetError(), FailureClass.NETWORK, Scope.PROVIDER, "ConnectionResetError"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "cls", "scope", "message"), OURS)
def test_an_error_of_our_own_says_whom_it_is_about_and_what_it_is(
    error: Exception, cls: FailureClass, scope: Scope, message: str
) -> None:
    found = classify.failure("x", error, model="m", now_unix=NOW)
    assert (found.cls, found.scope, found.message) == (cls, scope, message)


def test_only_the_scope_that_a_failure_speaks_of_is_named() -> None:
    assert refused(429, {"error": {"message": "Rate limit reached"}}).scope is Scope.KEY_MODEL
    assert refused(401, "").scope is Scope.KEY
    assert refused(503, "").scope is Scope.PROVIDER
    assert refused(503, {"error": "llama-9 is overloaded"}, model="llama-9").scope is Scope.MODEL
    assert refused(404, {"error": "model 'x' not found"}).scope is Scope.MODEL
    assert refused(400, {"error": "bad"}).scope is Scope.REQUEST
    full = {"error": {"code": "model_capacity_exhausted", "message": "later"}}
    assert refused(503, full).scope is Scope.MODEL
    terms = {"error": {"message": "You must accept the terms of this model"}}
    assert refused(403, terms).scope is Scope.MODEL
    assert refused(403, {"error": "guardrail restrictions"}).scope is Scope.PROVIDER
    assert refused(402, "").scope is Scope.KEY
    whose = {"error": {"details": [{"quotaId": "RequestsPerDayPerProjectPerModel-FreeTier"}]}}
    assert refused(429, whose).scope is Scope.KEY_MODEL


def test_a_stated_wait_is_a_fact_and_a_daily_quota_of_seconds_is_not() -> None:
    assert refused(429, "", {"retry-after": "7"}).retry_is_fact
    assert not refused(429, {"error": {"message": "slow down"}}).retry_is_fact
    daily = {"error": {"details": [{"quotaId": "RequestsPerDay"}, {"retryDelay": "5s"}]}}
    assert refused(429, daily).cls is FailureClass.QUOTA
    assert not refused(429, daily).retry_is_fact
    assert refused(429, daily, {"retry-after": "300"}).retry_is_fact
    # What a tier does not have, no wait brings.
    zero = {"error": {"message": "Quota exceeded, limit: 0, model: gemini-3-pro"}}
    assert not refused(429, zero, {"retry-after": "5000"}).retry_is_fact


@pytest.mark.parametrize(
    ("provider", "status", "body", "expected"),
    [
        ("local", 403, "", "config"),
        ("ollama", 403, "", "config"),
        ("groq", 403, "", "auth"),
        ("local", 404, "", "model_not_found"),
        ("local", 403, {"error": "no"}, "auth"),
    ],
)
def test_an_ollama_that_refuses_our_host_says_nothing_and_is_understood(
    provider: str, status: int, body: Any, expected: str
) -> None:
    assert refused(status, body, provider=provider).cls == expected


@pytest.mark.parametrize(
    ("status", "wait", "expected"),
    [
        (429, "86401", "quota"),
        (429, "86400", "rate_limit"),
        (503, "86401", "unavailable"),
        (403, "86401", "auth"),
    ],
)
def test_who_is_sent_away_for_more_than_a_day_has_used_something_up(
    status: int, wait: str, expected: str
) -> None:
    found = refused(status, "", {"retry-after": wait})
    assert (found.cls, found.retry_after_s) == (expected, float(wait))


def test_the_most_explicit_wait_is_the_one_that_counts() -> None:
    body = {"error": {"message": "try again in 9s", "details": [{"retryDelay": "8s"}],
                      "metadata": {"headers": {"Retry-After": "7"}}}}  # fmt: skip
    assert refused(503, body, {"Retry-After": "6"}).retry_after_s == 6.0
    assert refused(503, body).retry_after_s == 7.0
    del body["error"]["metadata"]
    assert refused(503, body).retry_after_s == 8.0
    del body["error"]["details"]
    assert refused(503, body).retry_after_s == 9.0
    # A reset without a remainder counts only where a limit was met.
    reset = {"x-ratelimit-reset-requests": "5s"}
    assert refused(429, "", reset).retry_after_s == 5.0
    assert refused(503, "", reset).retry_after_s is None


def test_what_was_answered_is_told_as_it_came() -> None:
    found = refused(503, {"error": {"code": 429, "message": "later"}})
    assert (found.cls, found.status, found.message) == ("rate_limit", 503, "later")
    assert refused(502, "").message == "HTTP 502 without a body"
    broken = UpstreamBroken(Breakage.CONNECT_TIMEOUT)
    told = classify.failure("x", broken, model="m", now_unix=NOW).message
    assert told.startswith("connect timeout")


def test_only_a_request_that_is_wrong_may_be_right_for_another_model() -> None:
    able = "This model does not support tools"
    assert classify.is_capability(refused(400, {"error": {"message": able}}))
    assert not classify.is_capability(refused(400, {"error": {"message": "bad tools"}}))
    assert not classify.is_capability(refused(503, {"error": {"message": able}}))


def test_a_wait_beyond_any_limit_there_is_was_somebodys_mistake() -> None:
    assert refused(503, "", {"retry-after": str(32 * 86400)}).retry_after_s == 32 * 86400
    found = refused(503, "", {"retry-after": str(32 * 86400 + 1)})
    assert (found.retry_after_s, found.retry_is_fact) == (None, False)


def test_the_wait_that_an_inner_gateway_was_told_is_the_wait() -> None:
    headers = {"X-RateLimit-Reset-Requests": "90s"}
    body = {"error": {"code": 429, "message": "x", "metadata": {"headers": headers}}}
    assert refused(429, body).retry_after_s == 90.0


def test_a_unit_that_only_looks_like_one_is_none() -> None:
    found = refused(429, {"error": {"message": "try again in 5 \u017feconds"}})
    assert (found.cls, found.retry_after_s) == (FailureClass.RATE_LIMIT, None)


def test_the_reset_of_a_spent_limit_is_the_wait() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "9h",
    }
    assert refused(429, "", headers).retry_after_s == pytest.approx(179.56)


def test_an_upstreams_field_is_named() -> None:
    body = {"detail": [{"type": "extra_forbidden", "loc": ["body", "store"], "msg": "no"}]}
    assert refused(422, body).field == "store"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234",
        "gsk_AbCdEf0123456789AbCdEf",
        "AIzaSyA1234567890abcdefghijklmnopqrstu",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "Bearer abcdef0123456789",
        "sk-ant-api03-abcdefghijklmnop",
        "org-abcdefghijklmnopqrstuvwx",
    ],
)
def test_a_message_shows_no_key_however_it_is_echoed(secret: str) -> None:
    body = {"error": {"message": f"Incorrect API key provided: {secret}. Sorry."}}
    found = refused(401, body)
    assert secret.split()[-1] not in found.message
    assert "Sorry" in found.message


def test_a_message_is_one_short_line() -> None:
    found = refused(500, "a\n\x1b[31mb\u202e" + "x" * 5000)
    assert len(found.message) <= 300
    assert found.message.isprintable()


@settings(max_examples=150, deadline=None)
@given(st.integers(200, 599), st.binary(max_size=400))
def test_any_bytes_are_classified_and_never_raise(status: int, body: bytes) -> None:
    found = classify.failure("x", UpstreamRefused(status, body), model="m", now_unix=NOW)
    assert found.cls in set(FailureClass)
    assert len(found.message) <= 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "detail", "choices", "metadata", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_any_json_is_read_and_never_raises(body: Any) -> None:
    classify_body.read(json.dumps(body).encode())


@pytest.mark.parametrize("code", ['"²"', '"' + "9" * 5000 + '"', "9" * 5000, '"①②③"', "true"])
@pytest.mark.parametrize("key", ["code", "status", "http_status", "raw_status_code"])
def test_a_number_that_is_no_status_is_none(key: str, code: str) -> None:
    assert refused(503, f'{{"error":{{"{key}":{code}}}}}').cls is FailureClass.UNAVAILABLE


@pytest.mark.parametrize("key", ["code", "status", "http_status", "raw_status_code"])
@pytest.mark.parametrize("written", ["429", '"429"'])
def test_the_status_inside_is_the_one_that_was_meant(key: str, written: str) -> None:
    body = f'{{"error":{{"{key}":{written},"message":"upstream"}}}}'
    assert refused(502, body).cls is FailureClass.RATE_LIMIT


def test_a_body_nested_beyond_reason_is_read_without_harm() -> None:
    body = b'{"error":' * 5000 + b"1" + b"}" * 5000
    assert refused(500, body.decode()).cls is FailureClass.UNAVAILABLE

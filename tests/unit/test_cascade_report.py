"""The one text that says why nobody answered, and the headers that say who did."""

from __future__ import annotations

import pytest

from localfirst.cascade import report
from localfirst.types import Attempt, FailureClass, Rung, Target

TRIES = (
    Attempt(provider="local", model="llama3.2:3b", outcome="network", message="refused",
            duration_s=0.01),
    Attempt(provider="groq", model="m", outcome="rate_limit", key_label="GROQ_API_KEY#2",
            status=429, message="Rate limit reached", duration_s=0.24, retry_after_s=40.0),
)  # fmt: skip


def test_the_report_names_every_attempt_with_what_to_do() -> None:
    text = report.text(TRIES, [("openai", "no key")], retry_after_s=40.0)
    assert text.splitlines() == [
        "nobody could answer",
        "  - local/llama3.2:3b: network after 0.0 s: refused"
        " (check that it runs and can be reached: `localfirst doctor`)",
        "  - groq/m [GROQ_API_KEY#2]: rate_limit HTTP 429 after 0.2 s, back in 40 s:"
        " Rate limit reached (wait, or add another key or provider)",
        "  - openai: no key",
        "soonest recovery in 40 s",
    ]


@pytest.mark.parametrize("provider", ["local", "pull"])
def test_a_model_that_is_not_there_is_no_matter_of_a_setting_that_does_not_exist(
    provider: str,
) -> None:
    tried = Attempt(provider=provider, model="llama3.2:1q", outcome=FailureClass.MODEL_NOT_FOUND)
    text = report.text([tried])
    assert "`providers." not in text and "`localfirst list`" in text


def test_every_class_has_advice_and_a_status() -> None:
    assert set(report.ADVICE) == set(report.STATUS) == set(FailureClass)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([], "config"),
        (["rate_limit", "quota", "rate_limit"], "rate_limit"),
        (["network", "timeout", "timeout"], "timeout"),
        (["auth", "unavailable"], "auth"),
        (["ok"], "config"),
    ],
)
def test_the_most_frequent_class_decides_the_status(classes: list[str], expected: str) -> None:
    assert report.dominating(classes) == expected


def test_headers_say_who_answered_and_who_was_asked_before() -> None:
    target = Target(rung=Rung.CLOUD, provider="groq", model="m", requested="gpt-5")
    ok = Attempt(provider="groq", model="m", outcome="ok")
    found = dict(
        report.headers([*TRIES, ok], request_id="lf-1", target=target, egress=["groq", "groq"])
    )
    assert found == {
        "x-localfirst-rung": "cloud",
        "x-localfirst-route": "groq/m",
        "x-localfirst-attempts": "3",
        "x-localfirst-trail": "local=network,groq=rate_limit,groq=ok",
        "x-localfirst-egress": "groq",
        "x-localfirst-request-id": "lf-1",
        "x-localfirst-substituted": "gpt-5",
    }
    none = dict(report.headers((), request_id="lf-1"))
    assert none["x-localfirst-egress"] == "none"
    assert "x-localfirst-route" not in none


def test_no_name_breaks_out_of_a_header() -> None:
    target = Target(rung=Rung.CLOUD, provider="x", model="a\r\nset-cookie: b\u2028ü")
    for _, value in report.headers((), request_id="\n", target=target):
        assert value.isascii() and value.isprintable()

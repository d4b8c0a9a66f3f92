"""What a library call refuses before anybody is asked."""

from __future__ import annotations

from typing import Any

import pytest

from localfirst.client import build_call
from localfirst.errors import InvalidRequest


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_p": 2}, "top_p"),
        ({"stop": 5}, "stop"),
        ({"options": {"num_ctx": -1}}, "options"),
        ({"temprature": 1}, "temprature"),
        ({"schema": 5}, "schema"),
        ({"deadline_s": "a"}, "deadline_s"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"model": 5}, "model"),
    ],
)
def test_an_option_that_no_surface_would_take_is_refused_by_name(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_call("x", **{"model": "auto", "stream": False, **options})
    assert (caught.value.field or "").startswith(named)


@pytest.mark.parametrize(
    "given",
    [
        {"messages": "half \ud800 a character"},
        {"messages": "x", "options": {"stop": ["\udfff"]}},
        {"messages": "x", "user": "\ud800"},
        {"messages": "x", "schema": {"title": "\ud800"}},
    ],
)
def test_half_a_character_is_the_requests_fault_and_nobody_elses(given: dict[str, Any]) -> None:
    """Found when it is sent, it would cool down who was asked, and wake a human."""
    with pytest.raises(InvalidRequest, match="half a character"):
        build_call(given.pop("messages"), model="auto", stream=False, **given)


def test_a_conversation_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        build_call([], model="auto", stream=False)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        build_call("x", model="auto", stream=False, extra={"when": object()})


def test_options_arrive_as_a_request_holds_them() -> None:
    call = build_call(
        "x", model="auto", stream=False, stop=("a", "b"), temperature=1, max_tokens=5, seed=None
    )
    assert call.request is not None
    assert (call.request.stop, call.request.temperature) == (("a", "b"), 1.0)
    assert (call.request.max_tokens, call.request.seed) == (5, None)
    one = build_call("x", model="auto", stream=False, stop="a").request
    assert one is not None and one.stop == ("a",)

"""Error bodies made to hurt: classified all the same, and before anybody notices."""

from __future__ import annotations

import json
import time

import pytest

from localfirst.cascade import classify
from localfirst.errors import UpstreamRefused
from localfirst.types import Failure

SIZE = 256 * 1024  # what is read of an error body
BODIES = {
    "one word": b"x" * SIZE,
    "quotes": b'model "' * (SIZE // 7),
    "a page of brackets": b"<html>" + b"<" * SIZE,
    "a page of scripts": b"<html>" + b"<script " * (SIZE // 8),
    "half a phrase": b"has not been used in project " * (SIZE // 29),
    "durations": b"retry in " + b"1m" * (SIZE // 2),
    "a long message": b'{"error":{"message":"' + b"reduce the " * (SIZE // 11) + b'"}}',
    "objects in objects": b'{"error":' * 5000 + b"1" + b"}" * 5000,
    "lists in lists": b"[" * 5000 + b"]" * 5000,
    "open braces": b"{" * SIZE,
}


def classified(body: bytes, status: int = 500) -> Failure:
    return classify.failure("groq", UpstreamRefused(status, body), model="m", now_unix=0.0)


@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_classified_in_a_moment(name: str, status: int) -> None:
    began = time.process_time()
    found = classified(BODIES[name], status)
    # The slowest took ten seconds of every other request's time; a loaded machine is slow too.
    assert time.process_time() - began < 0.5
    assert len(found.message) <= 300


def test_what_is_meant_may_stand_at_the_end_of_a_long_message() -> None:
    long = {"error": {"message": "padding " * 10_000 + "Insufficient Balance"}}
    assert classified(json.dumps(long).encode(), 400).cls == "quota"


def test_an_error_inside_many_errors_is_an_error() -> None:
    assert classified(b'{"error":' * 500 + b"1" + b"}" * 500).cls == "unavailable"

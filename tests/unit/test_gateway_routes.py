"""Paths that are wrong at their beginning, as a client's base URL makes them."""

from __future__ import annotations

import pytest

from localfirst.errors import AccessDenied
from localfirst.gateway.routes import Table


def said(path: bytes) -> str:
    with pytest.raises(AccessDenied) as caught:
        Table().find("POST", path)
    assert caught.value.http_status == 404
    return caught.value.message


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (b"/chat/completions", "/v1/chat/completions"),
        (b"/v1//chat/completions", "/v1/chat/completions"),
        (b"/openai/v1/responses", "/v1/responses"),
        (b"/api/v1/chat/completions", "/v1/chat/completions"),
        (b"/v1/v1/messages", "/v1/messages"),
        (b"/v1/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        (b"/v1/api/chat", "/api/chat"),
        (b"//api/tags", "/api/tags"),
    ],
)
def test_a_wrong_base_url_is_told_where_the_answer_is(path: bytes, meant: str) -> None:
    assert said(path) == f"there is nothing at this path, but at `{meant}`: correct the base URL"


@pytest.mark.parametrize("path", [b"/v1", b"/api/", b"/x", b"//", b"/v1/batches", b"/health"])
def test_a_path_that_nobody_has_is_not_guessed(path: bytes) -> None:
    assert said(path) == "there is nothing at this path"

"""What an error says in its headers."""

from __future__ import annotations

import pytest

from localfirst.errors import CascadeExhausted, LocalFirstError, UnknownModel
from localfirst.gateway.refusal import attempt_headers, error_headers
from localfirst.types import FailureClass


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

"""Which `Host` means a listener, wherever it listens and whatever is configured."""

from __future__ import annotations

import pytest

from localfirst.errors import AccessDenied
from localfirst.gateway.guard import Guard
from localfirst.settings import GatewaySettings

ANSWERED = [
    ("127.0.0.1", 11435, "127.0.0.1:11435"),
    ("127.0.0.1", 11435, "[::1]:11435"),
    ("127.0.0.1", 11435, "LocalHost:11435"),
    ("0.0.0.0", 11435, "127.0.0.1:11435"),
    ("192.168.1.5", 11435, "192.168.1.5:11435"),
    ("192.168.1.5", 11435, "127.0.0.1:11435"),
    ("fd00::5", 11435, "[fd00::5]:11435"),
    ("127.0.0.1", 80, "localhost"),
    ("127.0.0.1", 80, "localhost:80"),
    ("127.0.0.1", 11435, "box.lan:11435"),
    ("127.0.0.1", 11435, "BOX.lan"),
    ("127.0.0.1", 11435, "gw.example:443"),
]
REFUSED = [
    ("127.0.0.1", 11435, "localhost", "host-not-allowed"),
    ("127.0.0.1", 11435, "localhost:80", "host-not-allowed"),
    ("192.168.1.5", 11435, "192.168.1.6:11435", "host-not-allowed"),
    ("fd00::5", 11435, "[fd00::6]:11435", "host-not-allowed"),
    ("127.0.0.1", 11435, "gw.example", "host-not-allowed"),
    ("fd00::5", 11435, "fd00::5:11435", "host-malformed"),
    ("127.0.0.1", 11435, "gw.example:443:11435", "host-malformed"),
    # A listener without an address, such as a socket that was handed over.
    ("", 11435, ":11435", "host-malformed"),
]


@pytest.fixture
def guard() -> Guard:
    return Guard(GatewaySettings(hosts=("Box.lan", "gw.example:443")))


@pytest.mark.parametrize(("address", "port", "host"), ANSWERED)
def test_a_listener_answers_to_its_names(guard: Guard, address: str, port: int, host: str) -> None:
    for _ in range(2):  # found, and remembered
        guard._check_host(host.encode(), (address, port))


@pytest.mark.parametrize(("address", "port", "host", "code"), REFUSED)
def test_a_listener_answers_to_no_other(
    guard: Guard, address: str, port: int, host: str, code: str
) -> None:
    with pytest.raises(AccessDenied) as caught:
        guard._check_host(host.encode(), (address, port))
    assert caught.value.code == code


def test_who_listens_at_a_name_is_asked_by_it_and_by_no_wildcard_address() -> None:
    guard = Guard(GatewaySettings(host="Box.lan"))
    guard._check_host(b"box.lan:11435", ("127.0.1.1", 11435))
    for host in ("0.0.0.0", "::", "localhost"):
        with pytest.raises(AccessDenied):
            Guard(GatewaySettings(host=host))._check_host(host.encode(), ("127.0.0.1", 11435))

"""What is guarded: a host of which this machine has only a part."""

from __future__ import annotations

import errno
import socket
from urllib.parse import urlsplit

import pytest

from localfirst.errors import Unavailable
from localfirst.gateway.listener import close_all, listen, listen_at, url_of
from localfirst.settings import GatewaySettings

HERE = (socket.AF_INET, ("127.0.0.1", 0))
# RFC 5737: an address of documents, which no machine has.
ABSENT = (socket.AF_INET, ("192.0.2.1", 0))


@pytest.mark.parametrize("addresses", [[ABSENT, HERE], [HERE, ABSENT]])
def test_an_address_that_this_machine_lacks_is_passed_over(
    addresses: list[tuple[int, tuple[object, ...]]],
) -> None:
    """`localhost` is `::1` too where IPv6 is switched off: the gateway did not start."""
    (one,) = sockets = listen_at(addresses)
    try:
        with socket.create_connection(one.getsockname(), timeout=5.0):
            assert url_of(one) == f"http://127.0.0.1:{one.getsockname()[1]}"
    finally:
        close_all(sockets)


def test_a_host_of_which_this_machine_has_nothing_is_named() -> None:
    with pytest.raises(OSError) as caught:
        listen_at([ABSENT, ABSENT])
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(Unavailable) as told:
        listen(GatewaySettings(host="192.0.2.1", port=0))
    assert told.value.code == "address-unusable"
    assert "192.0.2.1" in told.value.message and "gateway.host" in told.value.hint


def test_a_port_that_is_taken_at_one_address_is_taken() -> None:
    """A client that is sent to the other program would ask it with a key of ours."""
    (taken,) = listen_at([HERE])
    try:
        with pytest.raises(OSError) as caught:
            listen_at([HERE, (socket.AF_INET, taken.getsockname())])
        assert caught.value.errno == errno.EADDRINUSE
    finally:
        taken.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_address_is_told_as_one_that_answers(host: str) -> None:
    """`::` was told as 127.0.0.1, where nobody listened."""
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    sockets = listen(GatewaySettings(host=host, port=0))
    try:
        at = urlsplit(url_of(sockets[0]))
        assert at.hostname and at.port
        socket.create_connection((at.hostname, at.port), timeout=5.0).close()
    finally:
        close_all(sockets)

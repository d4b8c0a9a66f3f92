"""
Whether the internet can be reached, answered at once and without asking it.

The routing table is asked through a datagram socket that is connected and never written
to: the kernel answers in microseconds whether there is a way out, and nothing leaves the
machine. Behind a router that lost its line there still is a way out; that is learnt from
failures that mean "the network", of at least two different hosts, and forgotten on any
success, when this machine's own address changes, or after a wait that grows.

`watch()` is the only thing here that talks to anybody: while the network is believed
gone, it tries the given hosts at growing intervals, so that its return is noticed without
a request paying for the trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from localfirst.errors import Breakage
from localfirst.types import Clock

# Documentation addresses (RFC 5737, RFC 3849): covered by any default route, and nobody's.
OUTSIDE = ("203.0.113.1", "2001:db8::1")
ROUTE_AGE_S = 1.0  # a look-up is cheap, but a burst of requests needs only one
HOSTS_BEFORE_OFFLINE = 2  # one dead cloud is not a dead network
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 30.0
PROBE_TIMEOUT_S = 3.0
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")

# Failures that speak of the network between us and the host. A refusal does not: somebody
# answered it.
NETWORK_FAILURES = frozenset(
    {Breakage.OFFLINE, Breakage.DNS, Breakage.CONNECT_TIMEOUT, Breakage.PROXY}
)

Route = Callable[[str], str]


def route_to(address: str) -> str:
    """The local address that packets to *address* would leave from, or "" without a route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


class Connectivity:
    """
    What is known of the network now.

    Args:
        clock: monotonic time, and the sleeps of `watch`.
        environ: read for proxies only; through a proxy the way out is the way to it.
        offline: the setting; True ends all questions.
        local_only: the privacy rule; nobody outside is ever tried, whoever asks.
        hosts: `host` or `host:port` that `watch` may try, usually the configured clouds'.
        route: the routing table.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        environ: Mapping[str, str] | None = None,
        offline: bool = False,
        local_only: bool = False,
        hosts: Sequence[str] = (),
        route: Route = route_to,
    ) -> None:
        self._clock = clock
        self._offline = offline
        self._local_only = local_only
        self._hosts = () if local_only else tuple(hosts)
        self._route = route
        self._proxy = "" if local_only else _proxy_host(environ or {})
        self._looked = float("-inf")
        self._source: str | None = None
        self._failed: set[str] = set()
        self._wait_s = FIRST_WAIT_S
        self._gone_until: float | None = None
        self._suspicion = asyncio.Event()

    def online(self) -> bool | None:
        """
        True, False, or None for "worth a try". Never waits.

        None stands after a believed outage has lasted its wait, and where a proxy's name
        would have to be resolved first.
        """
        if self._offline:
            return False
        source = self._way_out()
        if source == "":
            return False
        if self._gone_until is None:
            return None if source is None else True
        return False if self._clock.monotonic() < self._gone_until else None

    def reason(self) -> str:
        """One line for people on why `online` says what it says."""
        if self._offline:
            return "`offline` is set"
        source = self._way_out()
        if source == "":
            return "no route leaves this machine" + (" to the proxy" if self._proxy else "")
        if self._gone_until is not None:
            hosts = f"{len(self._failed)} hosts" if len(self._failed) > 1 else "the only host asked"
            return f"{hosts} could not be reached"
        return "there is a way out" + (f" through the proxy {self._proxy}" if self._proxy else "")

    def note_success(self) -> None:
        """Something outside answered: whatever was believed before is forgotten."""
        self._failed.clear()
        self._gone_until = None
        self._wait_s = FIRST_WAIT_S
        self._suspicion.clear()

    def note_failure(self, host: str = "", *, breakage: str = "", alone: bool = False) -> None:
        """
        A host could not be reached; without a *breakage* it counts as the network's fault.

        *alone*: there is no second one to be sure by.
        """
        if breakage and breakage not in NETWORK_FAILURES:
            return
        self._looked = float("-inf")
        self._failed.add(host)
        outage = self._gone_until is not None
        if len(self._failed) < HOSTS_BEFORE_OFFLINE and not (outage or alone):
            return
        if outage:
            if self._clock.monotonic() < (self._gone_until or 0.0):
                return
            self._wait_s = min(self._wait_s * 2, LONGEST_WAIT_S)
        self._gone_until = self._clock.monotonic() + self._wait_s
        self._suspicion.set()

    async def probe(self, hosts: Sequence[str] = (), *, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
        """
        Try to open a connection to any of *hosts* (default: those given); note the outcome.

        Sends nothing over it. Through a proxy the proxy is tried instead.
        """
        targets = [self._proxy] if self._proxy else list(hosts or self._hosts)
        if self._offline or self._local_only or not targets:
            return self.online() is True
        if await _any_answers(targets, timeout_s):
            self.note_success()
            return True
        for target in targets:
            self.note_failure(target, alone=len(targets) == 1)
        return False

    async def watch(self) -> None:
        """While the network is believed gone, look whether it is back; runs until cancelled."""
        while True:
            await self._suspicion.wait()
            wait_s = max(0.0, (self._gone_until or 0.0) - self._clock.monotonic())
            await self._clock.sleep(min(wait_s, LONGEST_WAIT_S))
            if self._gone_until is None:
                continue
            if not self._hosts and not self._proxy:
                self._suspicion.clear()
            elif self._way_out() == "":
                # Without a route a probe cannot succeed, and the table says when it is back.
                self._gone_until = self._clock.monotonic() + self._wait_s
            else:
                await self.probe()

    def _way_out(self) -> str | None:
        """Our address towards the outside; "" without one, None when only a trial can tell."""
        now = self._clock.monotonic()
        if now - self._looked < ROUTE_AGE_S:
            return self._source
        source = self._look_up()
        if source and self._source not in {None, source}:
            # Another network than the one that failed, or its return.
            self.note_success()
        self._looked, self._source = now, source
        return source

    def _look_up(self) -> str | None:
        if self._proxy:
            return self._way_to_proxy()
        return next((source for address in OUTSIDE if (source := self._outside(address))), "")

    def _outside(self, address: str) -> str:
        source = self._route(address)
        return "" if _loopback(source) else source

    def _way_to_proxy(self) -> str | None:
        host = _split(self._proxy)[0]
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return None
        return self._route(host)


def _proxy_host(environ: Mapping[str, str]) -> str:
    """The proxy's `host:port` without its credentials, or ""."""
    url = next((environ[name] for name in PROXY_VARIABLES if environ.get(name)), "")
    if not url:
        return ""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.hostname:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"{host}:{port}"
    return ""


def _loopback(address: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return False


def _split(target: str) -> tuple[str, int]:
    parts = urlsplit(f"//{target}")
    return parts.hostname or target, parts.port or 443


async def _any_answers(targets: Sequence[str], timeout_s: float) -> bool:
    tries = [asyncio.create_task(_answers(target)) for target in targets]
    try:
        async with asyncio.timeout(timeout_s):
            for done in asyncio.as_completed(tries):
                if await done:
                    return True
    except TimeoutError:
        return False
    finally:
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
    return False


async def _answers(target: str) -> bool:
    """True when *target* takes a connection, or refuses it: both come from somebody."""
    host, port = _split(target)
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True

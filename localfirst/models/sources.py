"""
Who is asked for a name's bytes: its registry's mirror, and where that fails the registry.

The registry stands in only where it may be asked without its mirror: among
`pull.registries` or on this machine, and never beyond this machine under `local-only`.
Whose bytes they are does not matter, since each blob is known by its digest. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from localfirst.errors import PullError, RegistryRefused
from localfirst.models.names import ModelName
from localfirst.models.pull_errors import is_passing
from localfirst.settings import PullSettings
from localfirst.transport import http
from localfirst.transport.bulk import is_private
from localfirst.types import Clock

Tell = Callable[[str], None]
"""Is told, in a line for people, that somebody else is asked."""

REST_S = 60.0
"""How long one that was down is asked only after the other."""


def silent(told: str) -> None:
    """Tell nobody."""
    del told


class Sources:
    """The sources that *settings* allow, and which of them failed a moment ago."""

    def __init__(self, settings: PullSettings, *, clock: Clock, local_only: bool) -> None:
        self._settings = settings
        self._clock = clock
        self._local_only = local_only
        self._rests_until: dict[str, float] = {}

    def of(
        self,
        name: ModelName,
        *,
        insecure: bool = False,
        any_host: bool = False,
        without: frozenset[str] = frozenset(),
    ) -> tuple[str, ...]:
        """
        Base URLs, `scheme://host[/prefix]` with user and password, in the order to ask them;
        those of *without* only if there are no others.

        Raises:
            RegistryRefused: the host is not among `pull.registries`, or http is not allowed.
        """
        mirror = self._settings.mirrors.get(name.host, "")
        if not mirror:
            return (self._registry(name, insecure=insecure, any_host=any_host),)
        target = host_of(mirror)
        if mirror.startswith("http:") and not (is_private(target) or insecure):
            raise _plain(target)
        first = mirror.rstrip("/")
        if not self._stands_in(name):
            return (first,)
        # What was allowed for the mirror says nothing of the world outside.
        both = (first, self._registry(name, insecure=False, any_host=False))
        now = self._clock.monotonic()
        ranked = sorted(both, key=lambda base: self._rests_until.get(base, 0.0) > now)
        return tuple(base for base in ranked if base not in without) or both

    def failed(self, base: str, error: PullError) -> None:
        """*base* was asked in vain: one that is in trouble comes last for a while."""
        if is_passing(error) or error.code == "digest-mismatch":
            self._rests_until[base] = self._clock.monotonic() + REST_S

    def mirror(self, name: ModelName) -> str:
        """The mirror of *name* where its registry may stand in for it, else ""."""
        given = self._settings.mirrors.get(name.host, "").rstrip("/")
        return given if given and self._stands_in(name) else ""

    def _stands_in(self, name: ModelName) -> bool:
        if http.is_loopback(host_of("//" + name.host)):
            return True
        allowed = name.host in self._settings.registries and name.scheme != "http"
        return allowed and not self._local_only

    def _registry(self, name: ModelName, *, insecure: bool, any_host: bool) -> str:
        host = host_of("//" + name.host)
        near = http.is_loopback(host)
        if not (any_host or near or name.host in self._settings.registries):
            raise RegistryRefused(
                f"`{name.host}` is not among the registries that may be asked",
                hint=f"add it: `LOCALFIRST_PULL_REGISTRIES={name.host}`",
                code="registry-not-allowed",
            )
        scheme = name.scheme or ("http" if near or insecure else "https")
        if scheme == "http" and not (near or insecure):
            raise _plain(host)
        return f"{scheme}://{name.host}"


def host_of(base: str) -> str:
    """The host of a base URL, for messages."""
    return urlsplit(base).hostname or ""


def passed_on(error: PullError, base: str) -> str:
    """What watchers are told when *base* is asked after *error*."""
    return f"{error.message}: going on at `{urlsplit(base).netloc.rpartition('@')[2]}`"


def of_both(first: PullError | None, last: PullError) -> PullError:
    """
    One error for two sources that failed, led by the one that says most: the last where it
    answered, else the first, which is the one that was configured.
    """
    if first is None:
        return last
    answered = getattr(last, "status", None) is not None
    lead, other = (last, first) if answered else (first, last)
    lead.message = f"{lead.message}; {other.message}"
    lead.args = (lead.message,)
    return lead


def _plain(host: str) -> RegistryRefused:
    return RegistryRefused(
        f"`{host}` would be asked in plain http",
        hint="use https, or say `--insecure` if you trust the network",
        code="registry-insecure",
    )

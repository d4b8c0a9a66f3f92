"""
A registry or its mirror, asked over HTTP: manifests, and where blobs are.

Redirects are followed by hand: the authorization stays with the registry's origin, https
never becomes http, and a registry elsewhere cannot send us to this machine. A registry on
loopback is spoken to in plain http; elsewhere http needs `insecure`. Nothing is cached but
connections and tokens, and no body is read past its bound.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from localfirst.errors import LocalFirstError, PrivacyRefused, PullError, RegistryRefused
from localfirst.models import manifest as manifests
from localfirst.models import registry_auth as auth
from localfirst.models.manifest import Layer
from localfirst.models.names import ModelName
from localfirst.models.pull_errors import broken, is_passing, refused, retry_after_s
from localfirst.models.sources import Sources, Tell, of_both, passed_on, silent
from localfirst.settings import PullSettings
from localfirst.transport import http
from localfirst.transport.bulk import origin, tls_context
from localfirst.types import Clock
from localfirst.wire.forgiving import UNREADABLE

if TYPE_CHECKING:
    import httpx

LOG = logging.getLogger(__name__)
T = TypeVar("T")
HOPS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TOKEN_LIMIT_BYTES = 64 * 2**10
PAUSES_S = (0.5, 1.0, 2.0, 4.0)


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where a blob's bytes are now. `url` may be signed and expire; it is never shown.

    `source` is the base URL of who told it; `others` says that somebody else may have them.
    """

    url: str
    authorization: str = ""
    source: str = ""
    others: bool = False

    @property
    def host(self) -> str:
        """The host, for messages."""
        return urlsplit(self.url).hostname or ""

    def headers(self) -> list[tuple[str, str]]:
        """The headers to send with each request."""
        return [("Authorization", self.authorization)] if self.authorization else []


class Registry:
    """
    Registries as *settings* allow them: `registries`, `mirrors`, and this machine's own.

    With *local_only* nothing beyond this machine is asked (`PrivacyRefused`); blobs are
    fetched only from where one was located, so that this one check guards them too.
    Every method raises `RegistryRefused` (with a code for each cause), `PullStalled`, or
    `PullError`; passing trouble is retried after *pauses_s* first. Where a mirror fails its
    registry is asked, which *tell* is told; *without* are sources that are not asked.
    """

    def __init__(
        self,
        settings: PullSettings,
        *,
        environ: Mapping[str, str],
        clock: Clock,
        pauses_s: tuple[float, ...] = PAUSES_S,
        local_only: bool = False,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._clock = clock
        self._pauses_s = pauses_s
        self._local_only = local_only
        self.sources = Sources(settings, clock=clock, local_only=local_only)
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._tokens: dict[str, str] = {}

    async def aclose(self) -> None:
        """Close the connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def manifest(
        self,
        name: ModelName,
        *,
        digest: str = "",
        insecure: bool = False,
        any_host: bool = False,
        tell: Tell = silent,
    ) -> tuple[bytes, str]:
        """
        A manifest's bytes, and their SHA-256 in hex; raises `ManifestInvalid` for others.

        A mirror's that is not *digest*, where one is wanted, is taken only if there is none
        of the registry's own.
        """
        others: list[tuple[bytes, str]] = []

        async def ask(base: str, other: bool) -> tuple[bytes, str]:
            url = _url(base, name, f"manifests/{name.tag}")
            accept = manifests.MANIFEST_TYPE
            _, data, _ = await self._fetch(
                base, url, name, limit=manifests.LIMIT_BYTES, accept=accept, hurry=other
            )
            found = manifests.parse(data).digest
            if other and digest not in {"", found}:
                others.append((data, found))
                host = urlsplit(base).hostname
                raise RegistryRefused(f"`{host}` has another version of `{name.display}`")
            return data, found

        bases = self.sources.of(name, insecure=insecure, any_host=any_host)
        try:
            return await self._of_any(bases, ask, tell)
        except PullError:
            if not others:
                raise
            return others[0]

    async def digest(
        self, name: ModelName, *, insecure: bool = False, any_host: bool = False
    ) -> str:
        """The digest a tag has now: by HEAD where the registry tells it so, else by GET."""

        async def ask(base: str, other: bool) -> str:
            url = _url(base, name, f"manifests/{name.tag}")
            headers, _, _ = await self._fetch(
                base, url, name, method="HEAD", accept=manifests.MANIFEST_TYPE, hurry=other
            )
            for header in ("ollama-content-digest", "docker-content-digest"):
                value = headers.get(header, "").removeprefix("sha256:").lower()
                if len(value) == 64 and not set(value) - set("0123456789abcdef"):
                    return value
            return ""

        bases = self.sources.of(name, insecure=insecure, any_host=any_host)
        found = await self._of_any(bases, ask, silent)
        return found or (await self.manifest(name, insecure=insecure, any_host=any_host))[1]

    async def locate(
        self,
        name: ModelName,
        layer: Layer,
        *,
        insecure: bool = False,
        any_host: bool = False,
        without: frozenset[str] = frozenset(),
        tell: Tell = silent,
    ) -> Location:
        """Where a blob's bytes are; asked again when that has expired."""
        bases = self.sources.of(name, insecure=insecure, any_host=any_host, without=without)

        async def ask(base: str, other: bool) -> Location:
            url = _url(base, name, f"blobs/{layer.digest}")
            _, _, found = await self._fetch(base, url, name, first=0, last=0, limit=1, hurry=other)
            return msgspec.structs.replace(
                found, source=base, others=bool(set(bases) - {base} - without)
            )

        return await self._of_any(bases, ask, tell)

    async def piece(
        self,
        name: ModelName,
        layer: Layer,
        length: int,
        *,
        insecure: bool = False,
        any_host: bool = False,
        without: frozenset[str] = frozenset(),
        tell: Tell = silent,
    ) -> bytes:
        """The first *length* bytes of a blob (a GGUF's header, or a small blob whole)."""
        bases = self.sources.of(name, insecure=insecure, any_host=any_host, without=without)
        length = min(length, layer.size_bytes)
        if not length:
            return b""

        async def ask(base: str, other: bool) -> bytes:
            url = _url(base, name, f"blobs/{layer.digest}")
            _, data, _ = await self._fetch(
                base, url, name, first=0, last=length - 1, limit=length, hurry=other
            )
            return data

        return await self._of_any(bases, ask, tell)

    # --- inside ------------------------------------------------------------------------

    async def _of_any(
        self, bases: Sequence[str], ask: Callable[[str, bool], Awaitable[T]], tell: Tell
    ) -> T:
        """The answer of the first of *bases* that has one."""
        failed: PullError | None = None
        for base, following in zip(bases, (*bases[1:], ""), strict=True):
            try:
                return await ask(base, bool(following))
            except PullError as error:
                self.sources.failed(base, error)
                if not following:
                    raise of_both(failed, error) from error
                LOG.warning("%s", passed_on(error, following))
                tell(passed_on(error, following))
                failed = error
        raise AssertionError("the last one returns or raises")

    async def _fetch(
        self,
        base: str,
        url: str,
        name: ModelName,
        *,
        method: str = "GET",
        accept: str = "*/*",
        first: int | None = None,
        last: int = 0,
        limit: int = 0,
        hurry: bool = False,
    ) -> tuple[Mapping[str, str], bytes, Location]:
        """
        One thing, with retries: one only in a *hurry*, since somebody else may have it.
        *limit* bounds the body; ranges are cut to it.
        """
        headers = {"accept": accept}
        if first is not None:
            headers["range"] = f"bytes={first}-{last}"
        pauses_s = self._pauses_s[:1] if hurry else self._pauses_s
        for number, pause in enumerate((*pauses_s, None)):
            try:
                return await self._follow(base, url, name, method, headers, limit)
            except LocalFirstError as error:
                wait = getattr(error, "retry_after_s", None)
                # Offline is told at once: somebody may be waiting for this answer.
                hopeless = number and first is None and _never_connected(error)
                too_long = (wait or 0) > (pause if hurry and pause else 60)
                if pause is None or hopeless or too_long or not is_passing(error):
                    raise
                await self._clock.sleep(pause if wait is None else wait)
        raise AssertionError("the last try returns or raises")

    async def _follow(
        self,
        base: str,
        url: str,
        name: ModelName,
        method: str,
        headers: dict[str, str],
        limit: int,
    ) -> tuple[Mapping[str, str], bytes, Location]:
        asked_token = False
        for _ in range(HOPS):
            at_home = auth.same_service(url, base)
            authorization = self._authorization(base) if at_home else ""
            sent = {**headers, **({"authorization": authorization} if authorization else {})}
            status, answer, body = await self._once(method, url, sent, limit)
            if status in REDIRECTS and answer.get("location"):
                url = self._next(url, answer["location"])
            elif status == 401 and at_home and not asked_token:
                asked_token = True
                await self._authorize(base, answer.get("www-authenticate"), url, name)
            elif status in {200, 206}:
                return answer, body, Location(url=url, authorization=authorization)
            else:
                wait = retry_after_s(answer.get("retry-after"), self._clock.unix())
                host = urlsplit(url).hostname or ""
                raise refused(status, host, f"`{name.display}`", body, retry_after_s=wait)
        raise RegistryRefused(f"`{urlsplit(base).hostname}` redirects in circles")

    async def _once(
        self, method: str, url: str, headers: Mapping[str, str], limit: int
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request; the connection is dropped when the body is longer than wanted."""
        import httpx

        host = urlsplit(url).hostname or ""
        if self._local_only and not http.is_loopback(host):
            raise PrivacyRefused(f"`{host}` is beyond this machine, and privacy is local-only")
        ranged = "range" in headers
        body = b""
        try:
            async with self._client(url).stream(method, url, headers=headers) as response:
                good = response.status_code in {200, 206}
                bound = limit if good else 2000
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > bound:
                        break
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise broken(error, host) from error
        if good and len(body) > limit and not ranged:
            raise RegistryRefused(f"the answer is larger than {limit} bytes")
        if good and ranged and len(body) < limit:
            raise RegistryRefused(f"the answer ended after {len(body)} of {limit} bytes")
        return response.status_code, response.headers, body[:bound]

    def _client(self, url: str) -> httpx.AsyncClient:
        near = http.is_loopback(urlsplit(url).hostname or "")
        if near not in self._clients:
            context = tls_context(self._environ)
            self._clients[near] = http.client(
                url,
                read_s=self._settings.stall_s,
                verify=context,
                connect_s=10.0,
                environ=self._environ,
            )
        return self._clients[near]

    def _authorization(self, base: str) -> str:
        return self._tokens.get(base) or auth.first_authorization(base, self._environ)

    async def _authorize(self, base: str, header: str | None, url: str, name: ModelName) -> None:
        """Get a token for *base*; raises when there is no way to get one."""
        challenge = auth.read_challenge(header)
        host = urlsplit(base).hostname or ""
        if challenge is None or challenge.scheme == "basic":
            raise refused(401, host, f"`{name.display}`")
        self._tokens.pop(base, None)
        now = self._clock.unix()
        where, by = auth.token_request(challenge, base, now_unix=now, environ=self._environ)
        headers = {"authorization": by} if by else {}
        status, _, body = await self._once("GET", where, headers, TOKEN_LIMIT_BYTES)
        if status != 200:
            raise refused(401 if status < 500 else status, host, f"a token for `{name.display}`")
        self._tokens[base] = f"Bearer {_token(body, host)}"

    def _next(self, url: str, location: str) -> str:
        """The target of a redirect, if we may go there."""
        try:
            target = urljoin(url, location)
            here, there = origin(url), origin(target)
        except ValueError:
            raise RegistryRefused("the registry redirects to something that is no URL") from None
        if there[0] not in {"http", "https"} or not there[1]:
            raise RegistryRefused("the registry redirects to something that is no web address")
        downgraded = here[0] == "https" and there[0] == "http"
        if downgraded or (http.is_loopback(there[1]) and not http.is_loopback(here[1])):
            raise RegistryRefused(
                f"`{here[1]}` redirects to `{there[0]}://{there[1]}`, which is not safe",
                code="registry-redirect-refused",
            )
        return auth.without_user(target)


def _url(base: str, name: ModelName, what: str) -> str:
    return f"{auth.without_user(base)}/v2/{name.namespace}/{name.model}/{what}"


def _never_connected(error: LocalFirstError) -> bool:
    """Whether nobody was reached at all: no network, no such name, a closed port."""
    return type(error.__cause__).__name__ in {"ConnectError", "ConnectTimeout", "ProxyError"}


def _token(body: bytes, host: str) -> str:
    try:
        read = msgspec.json.decode(body, type=dict[str, object])
    except UNREADABLE:
        read = {}
    token = read.get("token") or read.get("access_token")
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise refused(401, host, "a token (the answer holds none)")
    return token

"""
A registry, asked over HTTP: manifests, and where blobs are.

Redirects are followed by hand: the authorization stays with the registry's origin, https
never becomes http, and a registry elsewhere cannot send us to this machine. A registry on
loopback is spoken to in plain http; elsewhere http needs `insecure`. Nothing is cached but
connections and tokens, and no body is read past its bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import msgspec

from localfirst.errors import LocalFirstError, PrivacyRefused, RegistryRefused
from localfirst.models import manifest as manifests
from localfirst.models import registry_auth as auth
from localfirst.models.manifest import Layer
from localfirst.models.names import ModelName
from localfirst.models.pull_errors import broken, is_passing, refused, retry_after_s
from localfirst.settings import PullSettings
from localfirst.transport import http
from localfirst.transport.bulk import is_private, tls_context
from localfirst.types import Clock

if TYPE_CHECKING:
    import httpx

HOPS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TOKEN_LIMIT_BYTES = 64 * 2**10
PAUSES_S = (0.5, 1.0, 2.0, 4.0)


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """Where a blob's bytes are now. `url` may be signed and expire; it is never shown."""

    url: str
    authorization: str = ""

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
    `PullError`; passing trouble is retried after *pauses_s* first.
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
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._tokens: dict[str, str] = {}

    async def aclose(self) -> None:
        """Close the connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    def base_url(self, name: ModelName, *, insecure: bool = False, any_host: bool = False) -> str:
        """
        `scheme://host[/prefix]` of a name's registry or its mirror, user and password included.

        Raises:
            RegistryRefused: the host is not among `pull.registries`, or http is not allowed.
        """
        mirror = self._settings.mirrors.get(name.host, "")
        host = urlsplit("//" + name.host).hostname or ""
        if not (
            mirror or any_host or name.host in self._settings.registries or http.is_loopback(host)
        ):
            raise RegistryRefused(
                f"`{name.host}` is not among the registries that may be asked",
                hint=f"add it: `LOCALFIRST_PULL_REGISTRIES={name.host}`",
                code="registry-not-allowed",
            )
        plain = http.is_loopback(host) or insecure
        base = mirror or f"{name.scheme or ('http' if plain else 'https')}://{name.host}"
        target = urlsplit(base).hostname or ""
        near = http.is_loopback(target) or (bool(mirror) and is_private(target))
        if base.startswith("http:") and not (near or insecure):
            raise RegistryRefused(
                f"`{target}` would be asked in plain http",
                hint="use https, or say `--insecure` if you trust the network",
                code="registry-insecure",
            )
        return base.rstrip("/")

    async def manifest(
        self, name: ModelName, *, insecure: bool = False, any_host: bool = False
    ) -> tuple[bytes, str]:
        """A manifest's bytes, and their SHA-256 in hex; raises `ManifestInvalid` for others."""
        base = self.base_url(name, insecure=insecure, any_host=any_host)
        url = _url(base, name, f"manifests/{name.tag}")
        _, data, _ = await self._fetch(
            base, url, name, limit=manifests.LIMIT_BYTES, accept=manifests.MANIFEST_TYPE
        )
        return data, manifests.parse(data).digest

    async def digest(
        self, name: ModelName, *, insecure: bool = False, any_host: bool = False
    ) -> str:
        """The digest a tag has now: by HEAD where the registry tells it so, else by GET."""
        base = self.base_url(name, insecure=insecure, any_host=any_host)
        url = _url(base, name, f"manifests/{name.tag}")
        headers, _, _ = await self._fetch(
            base, url, name, method="HEAD", accept=manifests.MANIFEST_TYPE
        )
        for header in ("ollama-content-digest", "docker-content-digest"):
            value = headers.get(header, "").removeprefix("sha256:").lower()
            if len(value) == 64 and not set(value) - set("0123456789abcdef"):
                return value
        return (await self.manifest(name, insecure=insecure, any_host=any_host))[1]

    async def locate(
        self, name: ModelName, layer: Layer, *, insecure: bool = False, any_host: bool = False
    ) -> Location:
        """Where a blob's bytes are; asked again when that has expired."""
        base = self.base_url(name, insecure=insecure, any_host=any_host)
        url = _url(base, name, f"blobs/{layer.digest}")
        _, _, location = await self._fetch(base, url, name, first=0, last=0, limit=1)
        return location

    async def piece(
        self,
        name: ModelName,
        layer: Layer,
        length: int,
        *,
        insecure: bool = False,
        any_host: bool = False,
    ) -> bytes:
        """The first *length* bytes of a blob (a GGUF's header, or a small blob whole)."""
        base = self.base_url(name, insecure=insecure, any_host=any_host)
        url = _url(base, name, f"blobs/{layer.digest}")
        length = min(length, layer.size_bytes)
        if not length:
            return b""
        _, data, _ = await self._fetch(base, url, name, first=0, last=length - 1, limit=length)
        return data

    # --- inside ------------------------------------------------------------------------

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
    ) -> tuple[Mapping[str, str], bytes, Location]:
        """One thing, with retries. *limit* bounds the body; ranges are cut to it."""
        headers = {"accept": accept}
        if first is not None:
            headers["range"] = f"bytes={first}-{last}"
        for number, pause in enumerate((*self._pauses_s, None)):
            try:
                return await self._follow(base, url, name, method, headers, limit)
            except LocalFirstError as error:
                wait = getattr(error, "retry_after_s", None)
                # Offline is told at once: somebody may be waiting for this answer.
                hopeless = number and first is None and _never_connected(error)
                if pause is None or hopeless or not is_passing(error) or (wait or 0) > 60:
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
                url, read_s=self._settings.stall_s, verify=context, connect_s=10.0
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
        target = urljoin(url, location)
        try:
            here, there = auth.origin(url), auth.origin(target)
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
    except msgspec.DecodeError:
        read = {}
    token = read.get("token") or read.get("access_token")
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise refused(401, host, "a token (the answer holds none)")
    return token

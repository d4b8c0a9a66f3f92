"""
The door: who may speak to this gateway at all. One function a rule, cheap ones first.

    Host          only names of this listener, port included    (DNS rebinding)
    Origin        only our own page and configured origins      (CSRF)
    Fetch site    no other site's images, scripts, forms
    key           constant time, every header form the same, any wrong one fails
    content type  a browser may send JSON only

Loopback is no trust boundary: every web page a user opens can send requests to it. Names
are compared with literals; predicates such as `is_loopback` have accepted `::1%evil`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import parse_qsl

from localfirst.config.loopback import is_loopback
from localfirst.errors import AccessDenied
from localfirst.gateway.request import Headers, Request
from localfirst.settings import GatewaySettings

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.%A-Za-z]{2,64}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")

_NAMES = re.compile(rb"[A-Za-z0-9-]{1,64}(?:, ?[A-Za-z0-9-]{1,64}){0,63}")

_SENSITIVE = (b"host", b"origin", b"content-type", b"content-encoding", b"x-api-key", b"api-key")

_QUERY_KEYS = frozenset({"key", "api_key", "apikey", "api-key", "access_token", "token"})

KEY_LIMIT_BYTES = 4096

ALLOWED_METHODS = b"GET, HEAD, POST, OPTIONS"
ALLOWED_HEADERS = (
    b"authorization, content-type, x-api-key, api-key, anthropic-version, anthropic-beta, "
    b"x-localfirst-privacy, x-localfirst-fallback"
)
EXPOSED_HEADERS = (
    b"x-localfirst-rung, x-localfirst-route, x-localfirst-attempts, x-localfirst-trail, "
    b"x-localfirst-egress, x-localfirst-request-id, x-localfirst-substituted, "
    b"x-request-id, request-id, retry-after, x-should-retry"
)


class Guard:
    """The rules of one configuration; holds digests of the keys, not the keys."""

    def __init__(self, settings: GatewaySettings) -> None:
        # Who listens at a name is asked by it; an address is told by the socket.
        name = settings.host
        own = () if ":" in name or is_loopback(name) or not any(map(str.isalpha, name)) else (name,)
        self._hosts = frozenset(host.lower().encode() for host in (*settings.hosts, *own))
        self._origins = frozenset(origin.rstrip("/").encode() for origin in settings.origins)
        self._keys = tuple(_digest(key.reveal().encode()) for key in settings.keys)
        self._known: dict[tuple[str, int], frozenset[bytes]] = {}

    def enter(self, request: Request) -> None:
        """
        Host, then where the request comes from.

        Raises:
            AccessDenied: 400 or 403.
        """
        fields = request.fields
        if len(fields) != len(request.headers):
            _check_single(request)
        self._check_host(fields.get(b"host"), request.server)
        origin = fields.get(b"origin")
        if origin is not None:
            self._check_origin(origin, fields[b"host"])
            if origin in self._origins:
                request.extra_headers = _cors(origin)
        elif fields.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}:
            raise AccessDenied(
                "another site's page may not ask this gateway",
                code="origin-not-allowed",
                hint="add its origin to `gateway.origins`",
            )
        if request.query:
            _check_query(request.query)

    def authenticate(self, request: Request) -> None:
        """
        A configured key, by any of three headers; every key that is shown must be right.

        Raises:
            AccessDenied: 401, the same for no key and a wrong one.
        """
        if not self._keys:
            return
        shown = _shown(request)
        right = [self._is_key(key) for key in shown]
        if not right or not all(right):
            raise AccessDenied(
                "a key is needed",
                code="key-required",
                status=401,
                hint="send `Authorization: Bearer …` with a key of `gateway.keys`",
            )

    def preflight(self, request: Request) -> Headers:
        """The answer to a browser's OPTIONS; raises `AccessDenied` unless the origin may ask."""
        if request.fields[b"origin"] not in self._origins:
            raise AccessDenied(
                "OPTIONS is answered to configured origins only", code="origin-not-allowed"
            )
        # Clients in browsers add headers of their own, which differ by version.
        wished = request.fields.get(b"access-control-request-headers", b"")
        return [
            (b"access-control-allow-methods", ALLOWED_METHODS),
            (
                b"access-control-allow-headers",
                wished if _NAMES.fullmatch(wished) else ALLOWED_HEADERS,
            ),
            (b"access-control-max-age", b"600"),
        ]

    def _check_host(self, host: bytes | None, server: tuple[str, int]) -> None:
        if host is None:
            raise AccessDenied("the `host` header is missing", code="host-missing", status=400)
        allowed = self._known.get(server)
        if allowed is None:
            allowed = self._known[server] = self._names(server)
        if host in allowed or host.lower() in allowed:
            return
        if not _HOST.fullmatch(host):
            raise AccessDenied("the `host` header is malformed", code="host-malformed", status=400)
        raise AccessDenied(
            "this gateway does not answer to that `host`",
            code="host-not-allowed",
            hint="use the address the gateway printed, or add the name to `gateway.hosts`",
        )

    def _names(self, server: tuple[str, int]) -> frozenset[bytes]:
        """Every `Host` that means this listener, as clients spell it."""
        address, port = server
        own = {b"localhost", b"127.0.0.1", b"[::1]"}
        own.add(b"[%b]" % address.encode() if ":" in address else address.encode())
        own.discard(b"")
        names = {b"%b:%d" % (name, port) for name in own}
        names |= {b"%b:%d" % (name, port) for name in self._hosts if b":" not in name}
        # A name that was configured may also be that of a proxy on its own default port.
        names |= self._hosts
        return frozenset(names | (own if port == 80 else set()))

    def _check_origin(self, origin: bytes, host: bytes) -> None:
        scheme, _, named = origin.lower().partition(b"://")
        # We speak http; a name that was configured may be that of a proxy which speaks TLS.
        own = named == host.lower() and (scheme == b"http" or named in self._hosts)
        if origin in self._origins or (own and scheme in {b"http", b"https"}):
            return
        raise AccessDenied(
            "this origin may not ask this gateway",
            code="origin-not-allowed",
            hint="add it to `gateway.origins`",
        )

    def _is_key(self, shown: bytes) -> bool:
        digest = _digest(shown)
        # Every key is compared, so that the time says nothing about which one was near.
        found = [hmac.compare_digest(digest, key) for key in self._keys]
        return any(found)


def check_type(request: Request) -> None:
    """
    A browser may send JSON only, and nobody an encoded body.

    `curl -d` says `application/x-www-form-urlencoded`, and Ollama's own examples use it; so
    any type is taken from whoever is no browser. A page cannot pass for one: browsers send
    `Origin` with every POST.

    Raises:
        AccessDenied: 415.
    """
    fields = request.fields
    if fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise AccessDenied("encoded bodies are not taken", code="encoding-not-allowed", status=415)
    given = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if given == b"application/json":
        return
    browser = b"origin" in fields or b"sec-fetch-site" in fields or b"sec-fetch-mode" in fields
    if not browser:
        return
    raise AccessDenied(
        "the body must be `application/json`",
        code="content-type-not-allowed",
        status=415,
        hint="send `Content-Type: application/json`",
    )


def _check_single(request: Request) -> None:
    for name in _SENSITIVE:
        if len(request.all(name)) > 1:
            raise AccessDenied(
                f"the `{name.decode()}` header came twice",
                code="host-malformed" if name == b"host" else "header-repeated",
                status=400,
            )


def _check_query(query: bytes) -> None:
    names = {name.lower() for name, _ in parse_qsl(query.decode("latin-1"), True)}
    if names & _QUERY_KEYS:
        raise AccessDenied(
            "a key does not belong into a URL: it ends up in logs",
            code="key-in-url",
            status=400,
            hint="send it as `Authorization: Bearer …`",
        )


def _shown(request: Request) -> list[bytes]:
    """Every key the client shows; a form that is none counts as a wrong key."""
    shown = []
    for name, value in request.headers:
        if name == b"authorization":
            shown.append(value.removeprefix(b"Bearer ") if value[:7] == b"Bearer " else b"")
        elif name in {b"x-api-key", b"api-key"}:
            shown.append(value)
    return shown


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key[:KEY_LIMIT_BYTES]).digest()


def _cors(origin: bytes) -> Headers:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED_HEADERS),
        (b"vary", b"Origin"),
    ]

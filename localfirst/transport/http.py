"""
The one place that builds an httpx client.

For everything off the hot path: registries, probes, webhooks, model lists. Proxies and CAs
are those of the hot path, and no proxy applies to loopback; redirects are never followed by
themselves, bodies come as they are (identity), and every wait has a timeout.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from localfirst.config.loopback import is_loopback as is_loopback
from localfirst.transport import process

if TYPE_CHECKING:
    import httpx


def client(
    url: str,
    *,
    connect_s: float = 5.0,
    read_s: float = 30.0,
    verify: ssl.SSLContext | None = None,
    environ: Mapping[str, str] | None = None,
) -> httpx.AsyncClient:
    """
    An httpx client for *url*'s host.

    Args:
        url: any URL of the host that will be asked; plain http needs no CA.
        connect_s: seconds to connect, TLS included; also the wait for a pooled connection.
        read_s: seconds without a byte.
        verify: a context with a custom CA; that of *environ* when None, and always verifying.
        environ: has the variables of proxies and CAs; this process' own when None.

    Raises:
        ConfigError: *environ* names a CA file that cannot be read.
    """
    import httpx

    from localfirst.transport.bulk import tls_context
    from localfirst.transport.http_routes import Routes
    from localfirst.transport.upstream_proxy import from_environment

    # httpx logs whole URLs at INFO; a registry's signed URLs are credentials.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    found = process.environ() if environ is None else environ
    if verify is None:
        # Nobody is trusted where there is no TLS, whatever file of CAs is named.
        plain = urlsplit(url).scheme == "http"
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else tls_context(found)
    limits = httpx.Limits(max_connections=8, keepalive_expiry=15.0)
    return httpx.AsyncClient(
        transport=Routes(from_environment(found), verify, limits),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(read_s, connect=connect_s, pool=connect_s, write=30.0),
        headers={"accept-encoding": "identity", "user-agent": "localfirst"},
    )

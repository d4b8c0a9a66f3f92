"""
The one place that builds an httpx client.

For everything off the hot path: registries, probes, webhooks, model lists. Proxies apply
to remote hosts and never to loopback, redirects are never followed by themselves, bodies
come as they are (identity), and every wait has a timeout.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from localfirst.config.loopback import is_loopback as is_loopback

if TYPE_CHECKING:
    import httpx


def client(
    url: str,
    *,
    connect_s: float = 5.0,
    read_s: float = 30.0,
    verify: ssl.SSLContext | bool = True,
) -> httpx.AsyncClient:
    """
    An httpx client for *url*'s host.

    Args:
        url: any URL of the host that will be asked; decides whether proxies apply.
        connect_s: seconds to connect, TLS included; also the wait for a pooled connection.
        read_s: seconds without a byte.
        verify: a context with a custom CA, or True for the system's; never False.
    """
    import httpx

    # httpx logs whole URLs at INFO; a registry's signed URLs are credentials.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    local = is_loopback(urlsplit(url).hostname or "")
    return httpx.AsyncClient(
        trust_env=not local,
        follow_redirects=False,
        verify=verify,
        timeout=httpx.Timeout(read_s, connect=connect_s, pool=connect_s, write=30.0),
        limits=httpx.Limits(max_connections=8, keepalive_expiry=15.0),
        headers={"accept-encoding": "identity", "user-agent": "localfirst"},
    )
